"""The best lower bound that prices on the limits give, and the choices met on the way to it.

Dantzig-Wolfe: a linear programme mixes choices of whole components so that the mix keeps the limits; its dual values
are prices on the rows; at those prices the tree finds every component's cheapest choice, which joins the programme
where it is new. At any prices the cheapest choice bounds the optimum from below (Lagrange), so a bound needs no
trust in the programme. Prices are rounded: last digits that differ between machines choose no other plan.
"""

import math
from dataclasses import dataclass

import numpy as np
from ortools.linear_solver import pywraplp

from planner.solver_problem import Floats, Ints, Problem
from planner.solver_tree import Priced, Tree

MOST_ROUNDS = 80
# What a broken limit costs, in the scale of the whole objective, before a second round asks if it must be broken.
BROKEN = 1e3
# Relative distance between bound and programme at which prices are good enough.
SETTLED = 1e-7


@dataclass(frozen=True, slots=True, eq=False)
class Bound:
    """A proved lower bound, the prices that prove it, and good choices to start from.

    `weights` are the shares of the minimised rows (they sum to 1), `prices` the objective gained per unit of limit.
    """

    value: float
    weights: Floats
    prices: Floats
    starts: tuple[Ints, ...]
    rounds: int

    def costs(self, problem: Problem) -> Floats:
        """What each candidate costs at these prices."""
        return weighted(problem.usage, self.weights + self.prices)


def weighted(usage: Floats, weights: Floats) -> Floats:
    """usage @ weights, added in one fixed order (a BLAS is free to choose another)."""
    result = np.zeros(len(usage))
    for row in np.flatnonzero(weights):
        result += usage[:, row] * weights[row]
    return result


def lagrangian(problem: Problem, priced: Priced, weights: Floats, prices: Floats) -> float:
    """The lower bound that these prices prove."""
    limits = np.where(prices > 0, problem.limits, 0.0)
    fixed = weights * problem.constant + prices * (problem.constant - limits)
    return math.fsum((*priced.value, *fixed))


def rounded(values: Floats) -> Floats:
    """Ten significant digits.

    >>> rounded(np.array([1 / 3, 0.0])).tolist()
    [0.3333333333, 0.0]
    """
    return np.array([float(f"{value:.10g}") for value in values])


class Programme:
    """The linear programme over mixes of choices met so far. Rows are shifted and scaled to be of order one."""

    def __init__(self, problem: Problem, tree: Tree, scale: Floats, broken: float, objective: bool) -> None:
        self.problem, self.scale = problem, scale
        self.sites = np.concatenate(tree.components)
        self.runs = np.cumsum([0, *(len(c) for c in tree.components[:-1])])
        self.base = np.minimum.reduceat(problem.usage, problem.starts, axis=0)
        self.solver = pywraplp.Solver.CreateSolver("GLOP")
        self.solver.SetSolverSpecificParametersAsString("use_preprocessing: false")
        infinity = self.solver.infinity()
        totals = self.base.sum(axis=0) + problem.constant
        self.limited, self.minimised = problem.limited, problem.minimise if objective else ()
        rooms = (problem.limits - totals) / scale
        self.caps = [self.solver.Constraint(-infinity, float(rooms[r])) for r in self.limited]
        # All minimised rows share one scale, so that their maximum stays their maximum.
        self.unit = max((scale[r] for r in self.minimised), default=1.0)
        self.shift = max((totals[r] for r in self.minimised), default=0.0)
        self.peaks = [self.solver.Constraint(-infinity, (self.shift - totals[r]) / self.unit) for r in self.minimised]
        self.target = self.solver.Objective()
        if objective:
            peak = self.solver.NumVar(-infinity, infinity, "")
            self.target.SetCoefficient(peak, 1.0)
            for row in self.peaks:
                row.SetCoefficient(peak, -1.0)
        self.excess = [self.solver.NumVar(0.0, infinity, "") for _ in self.limited]
        for variable, cap in zip(self.excess, self.caps, strict=True):
            cap.SetCoefficient(variable, -1.0)
            self.target.SetCoefficient(variable, broken)
        self.target.SetMinimization()
        self.convex = [self.solver.Constraint(1.0, 1.0) for _ in tree.components]
        self.columns: list[tuple[int, int, pywraplp.Variable]] = []  # component, number of the choice, its share
        self.choices: list[Ints] = []
        self.seen: set[tuple[int, bytes]] = set()

    def add(self, chosen: Ints) -> bool:
        """Offer a choice, component by component; whether any of it is new."""
        used = (self.problem.usage[self.problem.starts + chosen] - self.base)[self.sites]
        rows = np.add.reduceat(used, self.runs, axis=0)
        limited, minimised = list(self.limited), list(self.minimised)
        coefficients = np.hstack([rows[:, limited] / self.scale[limited], rows[:, minimised] / self.unit])
        constraints = self.caps + self.peaks
        new = False
        for component, own in enumerate(coefficients):
            key = (component, own.tobytes())
            if key in self.seen:
                continue
            self.seen.add(key)
            share = self.solver.NumVar(0.0, self.solver.infinity(), "")
            self.convex[component].SetCoefficient(share, 1.0)
            for constraint, value in zip(constraints, own.tolist(), strict=True):
                if value:
                    constraint.SetCoefficient(share, value)
            self.columns.append((component, len(self.choices), share))
            new = True
        if new:
            self.choices.append(chosen)
        return new

    def solve(self) -> tuple[float, Floats, Floats]:
        """Value of the best mix, and the weights and prices that its dual gives."""
        self.solver.Solve()
        weights, prices = np.zeros(len(self.scale)), np.zeros(len(self.scale))
        for row, peak in zip(self.minimised, self.peaks, strict=True):
            weights[row] += max(0.0, -peak.dual_value())
        if self.minimised:
            weights /= weights.sum() or 1.0
        for row, cap in zip(self.limited, self.caps, strict=True):
            prices[row] = max(0.0, -cap.dual_value()) * self.unit / self.scale[row]
        weights = rounded(weights)
        # Weights must sum to one exactly, or the bound would be off by their rounding.
        if self.minimised:
            last = self.minimised[-1]
            weights[last] = 0.0
            weights[last] = max(0.0, 1.0 - weights.sum())
        return self.target.Value() * self.unit + self.shift, weights, rounded(prices)

    def broken(self) -> float:
        """How far the best mix breaks the limits, in scaled units."""
        return float(sum(variable.solution_value() for variable in self.excess))

    def likeliest(self) -> Ints:
        """The choice that has, in every component, the largest share of the mix."""
        best: dict[int, tuple[float, int]] = {}
        for component, number, variable in self.columns:
            share = variable.solution_value()
            if component not in best or share > best[component][0]:
                best[component] = (share, number)
        result = self.choices[0].copy()
        ends = [*self.runs[1:], len(self.sites)]
        for component, (_, number) in best.items():
            own = self.sites[self.runs[component] : ends[component]]
            result[own] = self.choices[number][own]
        return result


def bound(problem: Problem, tree: Tree) -> Bound | None:
    """The best bound and its prices; None where not even a mix of choices keeps the limits."""
    starts = ladder(problem, tree)
    scale = scales(problem, starts)
    programme = Programme(problem, tree, scale, BROKEN, objective=True)
    for chosen in starts:
        programme.add(chosen)
    found = generate(problem, tree, programme)
    if programme.broken() > SETTLED:
        feasibility = Programme(problem, tree, scale, 1.0, objective=False)
        for chosen in programme.choices:
            feasibility.add(chosen)
        if generate(problem, tree, feasibility).value > 0:
            return None
        programme = Programme(problem, tree, scale, BROKEN * 1e4, objective=True)
        for chosen in feasibility.choices:
            programme.add(chosen)
        found = generate(problem, tree, programme)
    return found


def generate(problem: Problem, tree: Tree, programme: Programme) -> Bound:
    """Add choices until prices settle."""
    best, best_weights, best_prices = -np.inf, np.zeros(len(problem.rows)), np.zeros(len(problem.rows))
    rounds = 0
    for rounds in range(1, MOST_ROUNDS + 1):
        value, weights, prices = programme.solve()
        priced = tree.price(weighted(problem.usage, weights + prices))
        proved = lagrangian(problem, priced, weights, prices)
        if proved > best:
            best, best_weights, best_prices = proved, weights, prices
        chosen = tree.cheapest(priced)
        if value - best <= SETTLED * abs(value) or rounds == MOST_ROUNDS or not programme.add(chosen):
            break
    starts = (programme.likeliest(), *programme.choices[::-1])
    return Bound(best, best_weights, best_prices, starts, rounds)


def ladder(problem: Problem, tree: Tree) -> list[Ints]:
    """Choices from the best objective to the smallest use of limited rows, to start the programme from."""
    count = len(problem.rows)
    spread = span(problem)
    weights = np.zeros(count)
    weights[list(problem.minimise)] = 1.0 / len(problem.minimise)
    goal = float((weights * spread).sum()) or 1.0
    tight = np.zeros(count)
    for row in problem.limited:
        tight[row] = goal / (spread[row] or 1.0)
    found = [tree.cheapest(tree.price(weighted(problem.usage, weights)))]
    if problem.limited:
        for step in (1e-4, 1e-2, 1e-1, 1.0, 1e4):
            found.append(tree.cheapest(tree.price(weighted(problem.usage, weights + step * tight))))
    return found


def span(problem: Problem) -> Floats:
    """How far apart the least and the most use of each row are."""
    least = np.minimum.reduceat(problem.usage, problem.starts, axis=0)
    most = np.maximum.reduceat(problem.usage, problem.starts, axis=0)
    result: Floats = (most - least).sum(axis=0)
    return result


def scales(problem: Problem, starts: list[Ints]) -> Floats:
    """What counts as one of each row: the room its limit leaves, and for the objective what a good choice costs."""
    least = np.minimum.reduceat(problem.usage, problem.starts, axis=0).sum(axis=0)
    spread = span(problem)
    room = problem.limits - problem.constant - least
    scale = np.where(np.isfinite(room), np.maximum(room, 1e-4 * spread), spread)
    totals = [problem.totals(chosen) for chosen in starts]
    kept = [t for t in totals if (t <= problem.limits).all()]
    if kept:
        good = min(kept, key=problem.objective)
        for row in problem.minimise:
            if not np.isfinite(room[row]):
                scale[row] = max(good[row] - problem.constant[row] - least[row], 1e-6 * spread[row])
    return np.where(scale > 0, scale, 1.0)
