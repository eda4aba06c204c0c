"""Branch and bound over what the bound cannot rule out: CP-SAT, one worker, a fixed seed, and counted (not timed) work.

CP-SAT adds integers. Usage is rounded down to fine units first, so that no choice is lost and its bound holds; a
choice that keeps the limits only because of the rounding is found out exactly, and the search repeated rounded up.
"""

from dataclasses import dataclass
from math import ceil, floor, isfinite, log2

import numpy as np
from ortools.sat.python import cp_model

from planner.solver_dual import Bound, lagrangian
from planner.solver_problem import AtMost, Bools, Ints, Problem
from planner.solver_tree import Tree

# A row's room is counted in this many bits, and single values in so many: sums stay far inside 64 bits.
ROOM_BITS = 40
VALUE_BITS = 58
MARGIN = 1e-9
# Branch and bound is lost among more candidates than this.
MOST_CANDIDATES = 10_000


@dataclass(frozen=True, slots=True, eq=False)
class Proof:
    """What the search found: the best choice if any, a lower bound, and whether that there is none is proved."""

    chosen: Ints | None
    bound: float
    infeasible: bool


def prove(
    problem: Problem, tree: Tree, bound: Bound, incumbent: Ints | None, gap: float, seed: int, effort: float
) -> Proof:
    """Search for something better than the incumbent until the gap is closed or the effort spent."""
    excess = tree.excess(bound.costs(problem))
    best = np.inf if incumbent is None else problem.objective(problem.totals(incumbent))
    keep = np.isfinite(excess) if incumbent is None else bound.value + excess <= best + MARGIN * abs(best)
    if incumbent is not None:
        keep[problem.starts + incumbent] = True
    partial = int(keep.sum()) > MOST_CANDIDATES
    if partial:  # More than can be searched: the likeliest ones, which prove nothing.
        likeliest = np.argsort(excess, kind="stable")[:MOST_CANDIDATES]
        keep = keep & np.isin(np.arange(len(keep)), likeliest)
        keep[problem.starts + tree.cheapest(tree.price(bound.costs(problem)))] = True
        if incumbent is not None:
            keep[problem.starts + incumbent] = True
    first = Model(problem, tree, bound, keep, incumbent, up=False).search(gap, seed, effort)
    if partial:
        first = Proof(first.chosen, bound.value, False)
    if first.chosen is None or problem.keeps(first.chosen):
        return first
    second = Model(problem, tree, bound, keep, incumbent, up=True).search(gap, seed, effort)
    return Proof(second.chosen, first.bound, False)


class Model:
    """The candidates that are kept as a CP-SAT model, all usage rounded one way."""

    def __init__(
        self, problem: Problem, tree: Tree, bound: Bound, keep: Bools, incumbent: Ints | None, up: bool
    ) -> None:
        self.problem, self.bound, self.incumbent, self.up = problem, bound, incumbent, up
        self.numbers = np.flatnonzero(keep)
        self.site = np.repeat(np.arange(len(problem.groups)), problem.groups)[self.numbers]
        self.first = np.searchsorted(self.site, np.arange(len(problem.groups)))
        self.model = cp_model.CpModel()
        self.taken = [self.model.new_bool_var("") for _ in self.numbers]
        self.of = dict(zip(self.numbers.tolist(), self.taken, strict=True))
        for own in np.split(np.arange(len(self.numbers)), self.first[1:]):
            self.model.add_exactly_one(self.taken[i] for i in own)
        for relation in problem.at_most:
            self.add_at_most(relation)
        for rule in problem.requires:
            triggers = self.literals(rule.site, rule.candidates)
            answers = self.literals(rule.other, rule.other_candidates)
            self.model.add(sum(triggers) <= sum(answers))
        for row in problem.limited:
            limit = float(problem.limits[row])
            unit = self.unit_of(row, limit)
            values, base = self.integers(row, unit)
            if not up:  # A total that rounds to the limit keeps it.
                limit = float(np.nextafter(limit, np.inf))
            self.model.add(self.dot(values) <= floor(limit / unit) - base)
        self.add_objective()
        if incumbent is not None:
            self.add_bound_cut(tree)
            hinted = set((problem.starts + incumbent).tolist())
            for number, variable in self.of.items():
                self.model.add_hint(variable, number in hinted)

    def literals(self, site: int, local: tuple[int, ...]) -> list[cp_model.IntVar]:
        numbers = (int(self.problem.starts[site]) + c for c in sorted(set(local)))
        return [self.of[number] for number in numbers if number in self.of]

    def add_at_most(self, relation: AtMost) -> None:
        used: dict[int, cp_model.IntVar] = {}
        for site, labels in zip(relation.sites, relation.labels, strict=True):
            by_label: dict[int, list[cp_model.IntVar]] = {}
            for candidate, label in enumerate(labels, int(self.problem.starts[site])):
                if candidate in self.of:
                    by_label.setdefault(label, []).append(self.of[candidate])
            for label, variables in sorted(by_label.items()):
                if label not in used:
                    used[label] = self.model.new_bool_var("")
                self.model.add(sum(variables) <= used[label])
        if len(used) > relation.most:
            self.model.add(sum(used.values()) <= relation.most)
        if relation.payer is not None:
            start = int(self.problem.starts[relation.payer])
            paying = [(self.of[start + c], paid) for c, paid in enumerate(relation.paid) if start + c in self.of]
            self.model.add(sum(used.values()) <= sum(paid * taken for taken, paid in paying))

    def unit_of(self, row: int, limit: float) -> float:
        """The unit, a power of two, that counts the room under a limit (or all of the row's spread) finely."""
        own = self.problem.usage[self.numbers, row]
        least, most = (operation.reduceat(own, self.first).sum() for operation in (np.minimum, np.maximum))
        spread, constant = float(most - least), float(self.problem.constant[row])
        room = max(min(limit - constant - float(least), spread), spread * 2.0**-20)
        largest = max(float(own.max()), abs(constant), abs(limit) if isfinite(limit) else 0.0)
        bits = [ceil(log2(value)) - kept for value, kept in ((room, ROOM_BITS), (largest, VALUE_BITS)) if value > 0]
        return 2.0 ** max(bits, default=0)

    def integers(self, row: int, unit: float) -> tuple[Ints, int]:
        """What candidates use in whole units above the least of their site, and the units used at least."""
        whole = (np.ceil if self.up else np.floor)(self.problem.usage[self.numbers, row] / unit).astype(np.int64)
        smallest = np.minimum.reduceat(whole, self.first)
        constant = (ceil if self.up else floor)(float(self.problem.constant[row]) / unit)
        return whole - smallest[self.site], sum(smallest.tolist()) + constant

    def dot(self, values: Ints) -> cp_model.LinearExpr:
        used = np.flatnonzero(values)
        return cp_model.LinearExpr.weighted_sum([self.taken[i] for i in used], values[used].tolist())

    def add_objective(self) -> None:
        """Minimise the largest of the minimised rows, all in the coarsest unit of theirs."""
        problem = self.problem
        upper = np.inf if self.incumbent is None else problem.objective(problem.totals(self.incumbent))
        self.unit = max(self.unit_of(row, upper) for row in problem.minimise)
        rows = [self.integers(row, self.unit) for row in problem.minimise]
        self.base = min(base for _, base in rows)
        if len(rows) == 1:
            self.model.minimize(self.dot(rows[0][0]))
            return
        most = max(base - self.base + int(np.maximum.reduceat(values, self.first).sum()) for values, base in rows)
        peak = self.model.new_int_var(0, most, "")
        for values, base in rows:
            self.model.add(self.dot(values) + (base - self.base) <= peak)
        self.model.minimize(peak)

    def add_bound_cut(self, tree: Tree) -> None:
        """What is better than the incumbent costs less than it at the bound's prices: implied, and prunes early."""
        if self.incumbent is None:
            return
        problem, bound = self.problem, self.bound
        costs = bound.costs(problem)
        fixed = lagrangian(problem, tree.price(costs), bound.weights, bound.prices) - tree.price(costs).value.sum()
        limit = problem.objective(problem.totals(self.incumbent)) - fixed
        limit += MARGIN * (abs(limit) + abs(fixed))
        own = costs[self.numbers]
        least = np.minimum.reduceat(own, self.first)
        room = limit - least.sum()
        if room <= 0 or not np.isfinite(room):
            return
        unit = room / 2.0**30
        values = np.floor((own - least[self.site]) / unit).astype(np.int64)
        self.model.add(self.dot(values) <= 2**30 + 1)

    def search(self, gap: float, seed: int, effort: float) -> Proof:
        """Run CP-SAT and read its answer back in the units of the problem."""
        solver = cp_model.CpSolver()
        solver.parameters.num_workers = 1
        solver.parameters.random_seed = seed
        solver.parameters.max_deterministic_time = effort
        magnitude = abs(self.bound.value) if isfinite(self.bound.value) else 0.0
        solver.parameters.absolute_gap_limit = max(0.0, gap * magnitude / self.unit)
        status = solver.solve(self.model)
        if status == cp_model.INFEASIBLE:
            return Proof(None, self.bound.value, True)
        if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            return Proof(None, self.bound.value, False)
        chosen = np.empty(len(self.problem.groups), dtype=np.int64)
        for position, variable in enumerate(self.taken):
            if solver.boolean_value(variable):
                site = self.site[position]
                chosen[site] = self.numbers[position] - self.problem.starts[site]
        proved = (self.base + ceil(solver.best_objective_bound - 1e-6)) * self.unit
        return Proof(chosen, max(self.bound.value, proved), False)
