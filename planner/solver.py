"""Picks one candidate at every site: exact, deterministic, with a proved bound, or an explanation why there is none.

    reduce    drop candidates that others match or beat, limits nothing can reach          solver_reduce
    bound     prices on the limits, by column generation over independent components       solver_dual, solver_tree
    improve   exchanges of small reduced cost, from the linear programme's likeliest choice solver_search
    divide    relations that span many sites, side by side, where a gap is left            solver_divide
    combine   whole choices of components as candidates, where a gap is left               solver_combine
    prove     branch and bound on what the bound cannot rule out, where a gap is left      solver_exact

Knows numbers only. The same problem and options give the same solution on any run: work is counted, never timed.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal, TypeGuard

import numpy as np

from planner.errors import Infeasible
from planner.solver_branch import build
from planner.solver_divide import divide, start
from planner.solver_dual import Bound, bound, span
from planner.solver_problem import AtMost, Floats, Implies, Ints, Problem
from planner.solver_reduce import reduce
from planner.solver_search import polish

__all__ = ["AtMost", "Implies", "InfeasibleProblem", "LimitReport", "Problem", "Solution", "explain", "solve"]

Status = Literal["optimal", "within gap", "stopped"]

# A gap of this share of the objective, or of what it ranges over, is the rounding of floats and units.
ROUNDING = 1e-9
RANGE_ROUNDING = 1e-12
# With so few candidates branch and bound is quick, and better than dividing.
EASILY_PROVED = 1500


@dataclass(frozen=True, slots=True)
class Solution:
    """The choice, and how good it is proved to be.

    `bound` is what no choice can go below and `gap` the distance to it as a share of the objective. A shadow price is
    the objective gained per unit by which the row's limit is loosened a little; 0 where the limit does not bind.
    """

    chosen: tuple[int, ...]
    objective: float
    bound: float
    gap: float
    status: Status
    shadow_prices: dict[str, float]


@dataclass(frozen=True, slots=True)
class LimitReport:
    """One limit of a problem: the least its row can be alone, and with every other limit kept (None: impossible)."""

    row: str
    limit: float
    least_alone: float
    least_with_others: float | None


class InfeasibleProblem(Infeasible):
    """No choice keeps every limit and relation; `proved` is False where the search ended without an answer."""

    def __init__(self, reports: tuple[LimitReport, ...], proved: bool) -> None:
        super().__init__(message(reports, proved))
        self.reports = reports
        self.proved = proved


@dataclass(frozen=True, slots=True)
class NoChoice:
    """The search found nothing."""

    proved: bool


def solve(problem: Problem, *, gap: float = 1e-3, seed: int = 0, effort: float = 2.0) -> Solution:
    """The choice of least objective, proved to within `gap` (a share of it), or to the end for a gap of 0.

    `effort` bounds each branch and bound, in units of one to three seconds; it is used only where a gap is left.

    >>> usage = np.array([[0.0, 8.0], [1.0, 4.0], [0.0, 8.0], [3.0, 4.0]])
    >>> problem = Problem((2, 2), ("loss", "bytes"), usage, np.zeros(2), np.array([np.inf, 12.0]), (0,))
    >>> solution = solve(problem, gap=0.0)
    >>> solution.chosen, solution.objective, solution.status
    ((1, 0), 1.0, 'optimal')
    """
    found = attempt(problem, gap, seed, effort)
    if isinstance(found, NoChoice):
        raise InfeasibleProblem(explain(problem, gap=gap, seed=seed, effort=effort / 4), found.proved)
    return found


def explain(problem: Problem, *, gap: float = 1e-3, seed: int = 0, effort: float = 0.5) -> tuple[LimitReport, ...]:
    """For every limit the least value that its row can take; nothing where the relations alone leave no choice.

    >>> usage = np.array([[0.0, 8.0], [5.0, 4.0]])
    >>> problem = Problem((2,), ("loss", "bytes"), usage, np.zeros(2), np.array([1.0, 6.0]), (0,))
    >>> for report in explain(problem): print(report.row, report.least_alone, report.least_with_others)
    loss 0.0 5.0
    bytes 4.0 8.0
    """
    reports = []
    free = np.full(len(problem.rows), np.inf)
    for row in problem.limited:
        others = problem.limits.copy()
        others[row] = np.inf
        alone, beside = (
            attempt(replace(problem, minimise=(row,), limits=limits, tie_break=()), gap, seed, effort)
            for limits in (free, others)
        )
        if isinstance(alone, NoChoice):
            return ()
        least = None if isinstance(beside, NoChoice) else beside.objective
        reports.append(LimitReport(problem.rows[row], float(problem.limits[row]), alone.objective, least))
    return tuple(reports)


def message(reports: tuple[LimitReport, ...], proved: bool) -> str:
    """What stands in the way, and the nearest values that would do.

    >>> print(message((LimitReport("bytes", 6.0, 4.0, 8.0), LimitReport("loss", 1.0, 0.0, None)), True))
    no choice keeps every limit; loosening one is enough: bytes <= 6 would have to be 8; not enough: loss <= 1
    """
    head = "no choice keeps every limit" if proved else "found no choice that keeps every limit"
    if not reports:
        return "no choice keeps the relations between sites, whatever the limits" if proved else head
    impossible = [r for r in reports if r.least_alone > r.limit]
    enough = [r for r in reports if r.least_with_others is not None]
    others = [r for r in reports if r not in impossible and r not in enough]
    parts = [f"{r.row} <= {r.limit:.6g} is below its least, {r.least_alone:.6g}" for r in impossible]
    if enough:
        values = (f"{r.row} <= {r.limit:.6g} would have to be {r.least_with_others:.6g}" for r in enough)
        parts.append("loosening one is enough: " + ", ".join(values))
    if others:
        parts.append("not enough: " + ", ".join(f"{r.row} <= {r.limit:.6g}" for r in others))
    return "; ".join((head, *parts))


def attempt(problem: Problem, gap: float, seed: int, effort: float) -> Solution | NoChoice:
    """Solve, or say that nothing was found."""
    reduced = reduce(problem)
    if reduced is None:
        return NoChoice(proved=True)
    core, kept = reduced
    tree = build(core)
    if tree is None:
        return NoChoice(proved=True)
    dual = bound(core, tree)
    if dual is None:
        return NoChoice(proved=True)
    chosen, proved = start(core, tree, dual, dual.value + gap * abs(dual.value)), dual.value
    if settled(chosen, core, proved, gap):
        return finish(problem, kept, chosen, core, dual, proved, gap)
    # Imported where it is needed: it takes longer than most problems do.
    from planner.solver_combine import combine
    from planner.solver_exact import prove

    if len(core.usage) > EASILY_PROVED:
        chosen, proved = divide(core, tree, dual, chosen, gap)
        if tree.exact and len(tree.components) < len(core.groups) and not settled(chosen, core, proved, gap):
            chosen = combine(core, tree, dual, chosen, gap, seed, effort)
    if not settled(chosen, core, proved, gap):
        proof = prove(core, tree, dual, chosen, gap, seed, effort)
        if chosen is None and proof.chosen is None:
            return NoChoice(proof.infeasible)
        chosen, proved = better(core, chosen, proof.chosen), max(proved, proof.bound)
    if chosen is None:
        return NoChoice(proved=False)
    return finish(problem, kept, polish(core, tree, dual, chosen), core, dual, proved, gap)


def settled(chosen: Ints | None, problem: Problem, proved: float, gap: float) -> TypeGuard[Ints]:
    """Whether there is a choice, and the bound proves it good enough."""
    return chosen is not None and distance(problem, chosen, proved) <= max(gap, ROUNDING)


def better(problem: Problem, first: Ints | None, second: Ints | None) -> Ints | None:
    """Of two choices the one with the lower objective that keeps the limits, the first if they are equal."""
    there = [c for c in (first, second) if c is not None and problem.keeps(c)]
    return min(there, key=lambda c: problem.objective(problem.totals(c)), default=None)


def distance(problem: Problem, chosen: Ints, proved: float) -> float:
    """The gap of a choice: 0 where the rest is rounding."""
    objective = problem.objective(problem.totals(chosen))
    left = objective - proved
    if left <= RANGE_ROUNDING * max(float(span(problem)[r]) for r in problem.minimise):
        return 0.0
    return left / abs(objective) if objective else math.inf


def finish(
    problem: Problem, kept: list[Ints], chosen: Ints, core: Problem, dual: Bound, proved: float, gap: float
) -> Solution:
    """The solution in the numbering of the problem as it was given, checked once more."""
    original = tuple(int(own[c]) for own, c in zip(kept, chosen, strict=True))
    if not problem.keeps(original):
        raise ArithmeticError("the solver returned a choice that breaks a limit or a relation")
    objective = problem.objective(problem.totals(original))
    left = distance(core, chosen, proved)
    status: Status = "optimal" if left <= ROUNDING else "within gap" if left <= gap else "stopped"
    prices: Floats = dual.prices
    return Solution(
        chosen=original,
        objective=objective,
        bound=min(proved, objective),
        gap=0.0 if status == "optimal" else left,
        status=status,
        shadow_prices={problem.rows[r]: float(prices[r]) for r in problem.limited},
    )
