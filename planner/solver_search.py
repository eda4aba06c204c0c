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
PAIRED = (300, 1000, 2000)
CHUNK = 128
MOST_SINGLES = 6000
MOST_CHOICES = 3000
MOST_STEPS = 2000
MOST_STARTS = 3
# Looks are decided in floats; so many of the best-looking exchanges are tried exactly.
TRIES = 20
TINY = 1e-300
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
    size = np.abs(problem.limits[list(problem.limited)]) + TINY
    return Merit(float((over / size).sum()), problem.objective(totals), tuple(totals[list(problem.tie_break)].tolist()))


class Search:
    """One choice and the exchanges from it. Every step is checked exactly before it is taken."""

    def __init__(self, problem: Problem, tree: Tree, bound: Bound, moves: "Moves", chosen: Ints) -> None:
        self.problem, self.tree, self.moves = problem, tree, moves
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
            for s in relation.everyone:
                self.touching[s].append(number)
        for number, rule in enumerate(problem.requires, len(problem.at_most)):
            for s in {rule.site, rule.other}:
                self.touching[s].append(number)
        self.labels = [[np.array(own) for own in relation.labels] for relation in problem.at_most]
        self.members = [np.concatenate([self.numbers(s) for s in r.everyone]) for r in problem.at_most]
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
        room, masks = relation.room(self.chosen), []
        for place, own in enumerate(self.labels[number]):
            others = np.array(sorted(set(taken[:place] + taken[place + 1 :])), dtype=np.int64)
            masks.append(np.zeros(len(own), dtype=bool) if len(others) < room else ~np.isin(own, others))
        if relation.payer is not None:
            masks.append(np.array(relation.paid) < len(set(taken)))
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

    def step(self, paired: int) -> bool:
        """Take the best exchange, or the best pair among the `paired` of least reduced cost; whether there was one."""
        moves, current = self.moves, self.starts + self.chosen
        singles = moves.singles
        singles = singles[(self.blocked[singles] == 0) & (singles != current[self.site[singles]])]
        now = current[self.site[singles]]
        used, cost_now = self.by_component(self.problem.usage[current]), self.by_component(self.reduced[current])
        usage = self.problem.usage
        change = np.concatenate((usage[singles] - usage[now], moves.usage - used[moves.owner]))
        cost = np.concatenate((self.reduced[singles] - self.reduced[now], moves.cost - cost_now[moves.owner]))
        owner = np.concatenate((self.component[self.site[singles]], moves.owner))
        payload = np.concatenate((singles, -1 - np.arange(len(moves.owner))))
        if not paired:
            return self.take_best(change, cost, [(x,) for x in payload.tolist()])
        # Dearness is counted from each component's cheapest choice, so that all components compare alike.
        keep = np.argsort(cost + (cost_now - self.cheapest)[owner], kind="stable")[:paired]
        return self.best_pair(change[keep], cost[keep], owner[keep], payload[keep])

    def by_component(self, values: Floats) -> Floats:
        """Sums over the sites of each component."""
        result: Floats = np.add.reduceat(values[self.moves.sites], self.moves.runs, axis=0)
        return result

    def rank(self, change: Floats, cost: Floats, whole: bool) -> tuple[Bools, Floats]:
        """Which changes look like improvements, and a key to sort them by.

        While limits are broken an improvement mends them: `whole`ly, at the least objective, or in part, at the least
        reduced cost for what it mends.
        """
        problem = self.problem
        totals = [self.totals[r] + change[..., r] for r in range(change.shape[-1])]
        broken = np.zeros(change.shape[:-1])
        for r in problem.limited:
            size = abs(problem.limits[r]) + TINY
            over = totals[r] - problem.limits[r]
            broken += np.where(over > WORTHWHILE * size, over / size, 0.0)
        objective = totals[problem.minimise[0]]
        for r in problem.minimise[1:]:
            objective = np.maximum(objective, totals[r])
        if self.merit.broken > 0:
            if whole:
                return broken == 0, objective
            mended = self.merit.broken - broken
            return mended > 1e-9 * self.merit.broken, np.maximum(cost, 0.0) / np.where(mended > 0, mended, 1.0)
        better = (broken == 0) & (objective < self.merit.objective - WORTHWHILE * abs(self.merit.objective))
        equal = (broken == 0) & (objective <= self.merit.objective)
        for place, r in enumerate(problem.tie_break):
            least = self.merit.ties[place]
            better |= equal & (totals[r] < least - WORTHWHILE * abs(least))
            equal &= totals[r] <= least
        return better, objective

    def take_best(self, change: Floats, cost: Floats, payloads: list[tuple[int, ...]]) -> bool:
        """Try the best-looking exchanges, exactly, until one holds."""
        for whole in (True, False) if self.merit.broken else (True,):
            better, key = self.rank(change, cost, whole)
            found = np.flatnonzero(better)
            ties = [change[found, r] for r in reversed(self.problem.tie_break)]
            ordered = found[np.lexsort((*ties, key[found]))]
            if any(self.take(payloads[index]) for index in ordered[:TRIES].tolist()):
                return True
        return False

    def best_pair(self, change: Floats, cost: Floats, owner: Ints, payload: Ints) -> bool:
        """Take the best pair of exchanges in different places."""
        single = payload >= 0
        site = np.where(single, self.site[np.maximum(payload, 0)], -1)
        changes, costs = [], []
        pairs: list[tuple[int, ...]] = []
        for begin in range(0, len(change), CHUNK):
            rows = slice(begin, begin + CHUNK)
            both, costs_both = change[rows, None, :] + change[None, begin:, :], cost[rows, None] + cost[None, begin:]
            better, key = self.rank(both, costs_both, True)
            apart = owner[rows, None] != owner[begin:]
            # Two single exchanges in one component go together at different sites; relations are checked when taken.
            apart |= (site[rows, None] != site[begin:]) & single[rows, None] & single[begin:]
            first, second = np.nonzero(np.triu(better & apart, 1))
            best = np.argsort(key[first, second], kind="stable")[:TRIES]
            first, second = first[best], second[best]
            changes.append(both[first, second])
            costs.append(costs_both[first, second])
            pairs += zip(payload[begin + first].tolist(), payload[begin + second].tolist(), strict=True)
        return bool(pairs) and self.take_best(np.concatenate(changes), np.concatenate(costs), pairs)

    def take(self, payload: tuple[int, ...]) -> bool:
        """Take an exchange if it keeps the relations and improves the choice, in exact arithmetic."""
        trial = self.chosen.copy()
        for item in payload:
            if item >= 0:
                trial[self.site[item]] = item - self.starts[self.site[item]]
            else:
                trial[self.tree.components[self.moves.owner[-1 - item]]] = self.moves.choices[-1 - item]
        totals = self.problem.totals(trial)
        new = merit(self.problem, totals)
        if new >= self.merit:
            return False
        single = len(payload) == 1 and payload[0] >= 0
        if not (single or (len(payload) == 1 and self.tree.exact)) and not keeps_relations(self.problem, trial):
            return False
        changed = np.flatnonzero(trial != self.chosen)
        self.chosen, self.totals, self.merit = trial, totals, new
        self.refresh(sorted({number for s in changed for number in self.touching[s]}))
        return True

    def run(self, good_enough: float) -> None:
        """Exchange until nothing improves, or a choice that keeps the limits has a good enough objective."""
        for _ in range(MOST_STEPS):
            done = self.merit.broken == 0 and self.merit.objective <= good_enough
            # Mending by a pair is closer to the mark than by one, and worth its time.
            if self.merit.broken > 0 and self.step(PAIRED[0]):
                continue
            if self.step(0):
                continue
            if done or not any(self.step(paired) for paired in PAIRED):
                return


@dataclass(frozen=True, slots=True, eq=False)
class Moves:
    """The exchanges worth trying: candidates of small excess, and whole choices of components with several sites.

    `sites` lists all sites component by component, `runs` where each component starts.
    """

    singles: Ints
    owner: Ints
    usage: Floats
    cost: Floats
    choices: tuple[Ints, ...]
    sites: Ints
    runs: Ints


def moves_of(problem: Problem, tree: Tree, bound: Bound) -> Moves:
    """Exchanges around the bound: the candidates of least excess, each also with its component's best answer to it."""
    costs = bound.costs(problem)
    excess = tree.excess(costs)
    singles = np.argsort(excess, kind="stable")[:MOST_SINGLES]
    singles = singles[np.isfinite(excess[singles])]
    starts = problem.starts
    site = np.repeat(np.arange(len(problem.groups)), problem.groups)
    component = np.empty(len(problem.groups), dtype=np.int64)
    several = np.zeros(len(problem.groups), dtype=bool)
    for number, sites in enumerate(tree.components):
        component[sites] = number
        several[sites] = len(sites) > 1
    found: dict[tuple[int, bytes], Ints] = {}
    wanted = singles[several[site[singles]]][:MOST_CHOICES]
    if len(wanted):
        for chosen in bound.starts:
            for number, sites in enumerate(tree.components):
                if len(sites) > 1:
                    found.setdefault((number, chosen[sites].tobytes()), chosen[sites])
        picked, query = tree.through(costs, wanted)
        ordered = picked[np.lexsort((picked, query))]
        ends = np.cumsum(np.bincount(query, minlength=len(wanted)))[:-1]
        for candidate, own in zip(wanted, np.split(ordered, ends), strict=True):
            chosen = own - starts[site[own]]
            found.setdefault((int(component[site[candidate]]), chosen.tobytes()), chosen)
    owner = np.array([number for number, _ in found], dtype=np.int64)
    usage, cost = np.zeros((len(found), len(problem.rows))), np.zeros(len(found))
    for index, ((number, _), chosen) in enumerate(found.items()):
        own = starts[tree.components[number]] + chosen
        usage[index], cost[index] = problem.usage[own].sum(axis=0), costs[own].sum()
    runs = np.cumsum([0, *(len(sites) for sites in tree.components[:-1])])
    return Moves(singles, owner, usage, cost, tuple(found.values()), np.concatenate(tree.components), runs)


def improve(problem: Problem, tree: Tree, bound: Bound, good_enough: float) -> Ints | None:
    """The first choice within the limits that exchanges make of the bound's most promising ones, or None."""
    moves = moves_of(problem, tree, bound)
    possible = [s for s in bound.starts if tree.exact or keeps_relations(problem, s)]
    merits = sorted((merit(problem, problem.totals(s)), index) for index, s in enumerate(possible[1:], 1))
    for start in (*possible[:1], *(possible[index] for _, index in merits[:MOST_STARTS])):
        search = Search(problem, tree, bound, moves, start)
        search.run(good_enough)
        if search.merit.broken == 0:
            return search.chosen
    return None


def polish(problem: Problem, tree: Tree, bound: Bound, chosen: Ints) -> Ints:
    """The choice after the single exchanges that lower the objective or, at the same objective, the tie-break rows."""
    search = Search(problem, tree, bound, moves_of(problem, tree, bound), chosen)
    search.run(np.inf)
    return search.chosen
