"""Improves a choice by exchanges: one candidate or one component's choice for another, then two at once.

At the bound's prices every candidate has a reduced cost: what taking it adds to the bound. The objective of a choice
is the bound plus its reduced costs plus what its unused room is worth, so only exchanges of small reduced cost can
lead anywhere near the optimum; pairs of the cheapest few thousand of them close most of the gap.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from planner.solver_dual import Bound
from planner.solver_problem import Bools, Floats, Ints, Problem, keeps_relations
from planner.solver_tree import Tree

# Exchanges considered in pairs, few first: all pairs of n cost n * n.
PAIRED = (200, 600, 1500)
CHUNK = 256
MOST_STEPS = 3000
# Improvements smaller than this share are rounding.
WORTHWHILE = 1e-12


@dataclass(frozen=True, slots=True, order=True)
class Merit:
    """How good a choice is: broken limits first, then the objective, then the rows that break ties."""

    broken: float
    objective: float
    ties: tuple[float, ...]


def merit(problem: Problem, totals: Floats) -> Merit:
    over = np.maximum(totals - problem.limits, 0.0)[list(problem.limited)]
    size = np.abs(problem.limits[list(problem.limited)]) + 1e-300
    return Merit(float((over / size).sum()), problem.objective(totals), tuple(totals[list(problem.tie_break)].tolist()))


class Search:
    """One choice and the exchanges from it. Every step is checked exactly before it is taken."""

    def __init__(self, problem: Problem, tree: Tree, bound: Bound, chosen: Ints) -> None:
        self.problem, self.tree, self.bound = problem, tree, bound
        self.starts = problem.starts
        self.site = np.repeat(np.arange(len(problem.groups)), problem.groups)
        self.component = np.empty(len(problem.groups), dtype=np.int64)
        for number, sites in enumerate(tree.components):
            self.component[sites] = number
        self.reduced = bound.costs(problem)
        self.cheapest = tree.price(self.reduced).value
        self.blocked = np.zeros(len(self.site), dtype=np.int64)
        self.effect: list[tuple[Ints, Ints] | None] = [None] * (len(problem.at_most) + len(problem.requires))
        self.touching: list[list[int]] = [[] for _ in problem.groups]
        for number, relation in enumerate(problem.at_most):
            for s in relation.sites:
                self.touching[s].append(number)
        for number, rule in enumerate(problem.requires, len(problem.at_most)):
            for s in {rule.site, rule.other}:
                self.touching[s].append(number)
        self.labels = [[np.array(own) for own in relation.labels] for relation in problem.at_most]
        self.members = [np.concatenate([self.numbers(s) for s in r.sites]) for r in problem.at_most]
        self.chosen = chosen.copy()
        self.totals = problem.totals(chosen)
        self.merit = merit(problem, self.totals)
        self.refresh(range(len(self.effect)))

    def numbers(self, site: int) -> Ints:
        return np.arange(self.starts[site], self.starts[site] + self.problem.groups[site])

    def refresh(self, relations: Iterable[int]) -> None:
        """Recount which candidates these relations forbid, given what every other site takes."""
        for number in relations:
            old = self.effect[number]
            if old is not None:
                self.blocked[old[0]] -= old[1]
            fresh = (
                self.forbidden_labels(number)
                if number < len(self.problem.at_most)
                else self.forbidden_by_rule(number - len(self.problem.at_most))
            )
            self.blocked[fresh[0]] += fresh[1]
            self.effect[number] = fresh

    def forbidden_labels(self, number: int) -> tuple[Ints, Ints]:
        relation = self.problem.at_most[number]
        taken = [int(own[self.chosen[s]]) for s, own in zip(relation.sites, self.labels[number], strict=True)]
        masks = []
        for place, own in enumerate(self.labels[number]):
            others = np.array(sorted(set(taken[:place] + taken[place + 1 :])), dtype=np.int64)
            room = len(others) < relation.most
            masks.append(np.zeros(len(own), dtype=bool) if room else ~np.isin(own, others))
        return self.members[number], np.concatenate(masks).astype(np.int64)

    def forbidden_by_rule(self, number: int) -> tuple[Ints, Ints]:
        rule = self.problem.requires[number]
        if rule.site == rule.other:
            bad = np.array(sorted(set(rule.candidates) - set(rule.other_candidates)), dtype=np.int64)
            return self.starts[rule.site] + bad, np.ones(len(bad), dtype=np.int64)
        site, other = self.numbers(rule.site), self.numbers(rule.other)
        triggers = np.isin(np.arange(len(site)), rule.candidates)
        answers = np.isin(np.arange(len(other)), rule.other_candidates)
        first = triggers & (self.chosen[rule.other] not in rule.other_candidates)
        second = ~answers & (self.chosen[rule.site] in rule.candidates)
        return np.concatenate((site, other)), np.concatenate((first, second)).astype(np.int64)

    def step(self, pool: "Pool | None", paired: int) -> bool:
        """Take the best exchange, or the best pair among the `paired` of least reduced cost; whether there was one."""
        current = self.starts + self.chosen
        allowed = np.flatnonzero((self.blocked == 0) & (np.arange(len(self.site)) != current[self.site]))
        change = self.problem.usage[allowed] - self.problem.usage[current][self.site[allowed]]
        cost = self.reduced[allowed] - self.reduced[current][self.site[allowed]]
        owner, payload = self.component[self.site[allowed]], allowed
        if pool is not None:
            used = np.zeros((len(self.tree.components), change.shape[1]))
            np.add.at(used, self.component, self.problem.usage[current])
            now = np.zeros(len(self.tree.components))
            np.add.at(now, self.component, self.reduced[current])
            change = np.concatenate((change, pool.usage - used[pool.component]))
            cost = np.concatenate((cost, pool.cost - now[pool.component]))
            owner = np.concatenate((owner, pool.component))
            payload = np.concatenate((payload, -1 - np.arange(len(pool.component))))
        if not paired:
            return self.take_best(change, [(int(x),) for x in payload], pool, change)
        # Cheapness is measured from the component's cheapest choice, so that all components compare alike.
        slack = cost + self.slack_now()[owner]
        keep = np.argsort(slack, kind="stable")[:paired]
        return self.best_pair(change[keep], owner[keep], payload[keep], pool)

    def slack_now(self) -> Floats:
        now = np.zeros(len(self.tree.components))
        np.add.at(now, self.component, self.reduced[self.starts + self.chosen])
        return now - self.cheapest

    def rank(self, change: Floats) -> tuple[Bools, Floats, Floats]:
        """Which changes look like improvements, with the two leading keys to sort them by."""
        problem = self.problem
        totals = [self.totals[r] + change[..., r] for r in range(change.shape[-1])]
        broken = np.zeros(change.shape[:-1])
        for r in problem.limited:
            over = totals[r] - problem.limits[r]
            size = abs(problem.limits[r]) + 1e-300
            broken += np.where(over > WORTHWHILE * size, over / size, 0.0)
        objective = totals[problem.minimise[0]]
        for r in problem.minimise[1:]:
            objective = np.maximum(objective, totals[r])
        margin = WORTHWHILE * (abs(self.merit.objective) + 1e-300)
        if self.merit.broken > WORTHWHILE:
            return broken < self.merit.broken * (1 - 1e-9), broken, objective
        better = (broken == 0) & (objective < self.merit.objective - margin)
        equal = (broken == 0) & (objective <= self.merit.objective)
        for place, r in enumerate(problem.tie_break):
            least = self.merit.ties[place]
            better |= equal & (totals[r] < least - WORTHWHILE * abs(least))
            equal &= totals[r] <= least
        return better, broken, objective

    def take_best(
        self, change: Floats, payloads: list[tuple[int, ...]], pool: "Pool | None", ties: Floats, tries: int = 20
    ) -> bool:
        """Try the best-looking exchanges, exactly, until one holds."""
        better, broken, objective = self.rank(change)
        found = np.flatnonzero(better)
        keys = [ties[found, r] for r in reversed(self.problem.tie_break)]
        ordered = found[np.lexsort((*keys, objective[found], broken[found]))]
        return any(self.take(payloads[index], pool) for index in ordered[:tries].tolist())

    def best_pair(self, change: Floats, owner: Ints, payload: Ints, pool: "Pool | None") -> bool:
        """Take the best pair of exchanges in different places."""
        found: list[tuple[Floats, list[tuple[int, ...]]]] = []
        single = payload >= 0
        site = np.where(single, self.site[np.maximum(payload, 0)], -1)
        for begin in range(0, len(change), CHUNK):
            rows = slice(begin, begin + CHUNK)
            both = change[rows, None, :] + change[None, :, :]
            better, broken, objective = self.rank(both)
            apart = owner[rows, None] != owner
            # Two single exchanges in one component go together at different sites; relations are checked when taken.
            apart |= (site[rows, None] != site) & single[rows, None] & single
            first, second = np.nonzero(better & apart & (np.arange(len(change)) > np.arange(len(change))[rows, None]))
            best = np.lexsort((objective[first, second], broken[first, second]))[:20]
            pairs = zip((first[best] + begin).tolist(), second[best].tolist(), strict=True)
            found.append(
                (both[first[best], second[best]], [(int(payload[a]), int(payload[b])) for a, b in pairs])
            )
        changes = np.concatenate([part for part, _ in found])
        return bool(len(changes)) and self.take_best(changes, [p for _, own in found for p in own], pool, changes)

    def take(self, payload: tuple[int, ...], pool: "Pool | None") -> bool:
        """Take an exchange if it keeps the relations and improves the choice, in exact arithmetic."""
        trial = self.chosen.copy()
        for item in payload:
            if item >= 0:
                trial[self.site[item]] = item - self.starts[self.site[item]]
            elif pool is not None:
                sites = self.tree.components[pool.component[-1 - item]]
                trial[sites] = pool.choices[pool.number[-1 - item]][sites]
        totals = self.problem.totals(trial)
        new = merit(self.problem, totals)
        if new >= self.merit:
            return False
        if (len(payload) > 1 or not self.tree.exact) and not keeps_relations(self.problem, trial):
            return False
        changed = np.flatnonzero(trial != self.chosen)
        self.chosen, self.totals, self.merit = trial, totals, new
        self.refresh(sorted({number for s in changed for number in self.touching[s]}))
        return True

    def run(self, pool: "Pool | None", good_enough: float) -> None:
        """Exchange until nothing improves, or a choice that keeps the limits has a good enough objective."""
        for _ in range(MOST_STEPS):
            if self.step(pool, 0):
                continue
            if self.merit.broken == 0 and self.merit.objective <= good_enough:
                return
            if not any(self.step(pool, paired) for paired in PAIRED):
                return


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """Choices of whole components, from the choices the bound met: what each uses and costs."""

    component: Ints
    number: Ints
    usage: Floats
    cost: Floats
    choices: tuple[Ints, ...]


def pool_of(problem: Problem, tree: Tree, bound: Bound) -> Pool | None:
    """Every different choice of a component that has several sites; None where there is no such component."""
    costs = bound.costs(problem)
    component, number, usage, cost = [], [], [], []
    for place, sites in enumerate(tree.components):
        seen = set()
        for index, chosen in enumerate(bound.starts if len(sites) > 1 else ()):
            key = chosen[sites].tobytes()
            if key not in seen:
                seen.add(key)
                picked = problem.starts[sites] + chosen[sites]
                component.append(place)
                number.append(index)
                usage.append(problem.usage[picked].sum(axis=0))
                cost.append(costs[picked].sum())
    if not component:
        return None
    return Pool(np.array(component), np.array(number), np.array(usage), np.array(cost), bound.starts)


def improve(problem: Problem, tree: Tree, bound: Bound, good_enough: float, most_starts: int = 4) -> Search | None:
    """The best choice that exchanges lead to from the bound's most promising ones; None if none keeps the limits."""
    pool = pool_of(problem, tree, bound)
    starts = [bound.starts[0]]
    others = [s for s in bound.starts[1:] if tree.exact or keeps_relations(problem, s)]
    merits = [(merit(problem, problem.totals(s)), index) for index, s in enumerate(others)]
    starts += [others[index] for _, index in sorted(merits)[: most_starts - 1]]
    best: Search | None = None
    for start in starts:
        if not tree.exact and not keeps_relations(problem, start):
            continue
        search = Search(problem, tree, bound, start)
        search.run(pool, good_enough)
        if search.merit.broken == 0 and (best is None or search.merit < best.merit):
            best = search
        if best is not None and best.merit.objective <= good_enough:
            break
    return best
