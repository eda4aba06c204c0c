"""Plans for one pair of limits after another: a space priced once, and solved again for every goal of a front."""

import math
from dataclasses import dataclass, field, fields, replace

import numpy as np

from passes.assign import Assign, as_problem, pick, report
from passes.shortfall import infeasible
from planner import prices, solver
from planner.errors import Infeasible
from planner.frontier import Found, Values
from planner.goal import Goal, Limits, Objective
from planner.pipeline import PassContext
from planner.plan import SolverReport
from planner.prices import AIMED_SHARE, LOSS, PriceTable
from planner.solver_problem import Floats, Problem
from planner.space import Space

MOST_LOSS_NATS = 1.0
"""Plans expected to lose more are not looked for, unless the goal allows them: text written by them is of no use, and
nothing was measured there that could correct the sum of the prices."""

EFFORT = 0.5
"""Most effort that a solve spends on a gap. Where two limits bind hard, four times as much takes ten times as long for
a gap of 4 instead of 5 %, and a front has points beside that one."""

ROUNDING = 1 + 1e-9
"""A limit found by solving must allow the very plan that it was found by, whatever is multiplied and divided."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A choice that a solve gave, and the goal that it is best for."""

    goal: Goal
    solution: solver.Solution


@dataclass
class FrontSolver:
    """Solves for goals over some currencies of a space that is left to choose from.

    What the goal limits besides these currencies stays limited.
    """

    space: Space
    ctx: PassContext
    over: tuple[Objective, ...]
    last: Assign
    within: Limits = field(init=False)
    table: PriceTable = field(init=False)
    problem: Problem = field(init=False)

    def __post_init__(self) -> None:
        self.within = held(self.ctx.goal.limits, self.over, self.ctx)
        self.table = self.ctx.price(self.space)
        self.problem = as_problem(self.space, self.table)

    def solve(self, number: int, most: Values) -> Found[Choice] | None:
        """The plan that takes least of a currency, by its place in `over`, within limits on those after the first."""
        goal = self.goal(number, most)
        solution = solver.attempt(self._limited(goal), self.last.gap, self.ctx.seed, min(self.last.effort, EFFORT))
        if isinstance(solution, solver.NoChoice):
            return None
        totals = self.problem.totals(solution.chosen)
        return Found(tuple(self.taken(totals, name) for name in self.over), Choice(goal, solution))

    def goal(self, number: int, most: Values) -> Goal:
        """The goal as a user would state it: seconds to be kept at the pessimistic end of what is predicted."""
        limits = {own.name: getattr(self.within, own.name) for own in fields(Limits)}
        for name, value in zip(self.over[1:], most, strict=True):
            if name.endswith("_bytes") and value < math.inf:
                limits[name] = math.floor(value)
            elif value < math.inf:
                limits[name] = value * self.ctx.hardware.pessimism * ROUNDING
        return Goal(self.over[number], Limits(**limits))

    def chosen(self, choice: Choice) -> tuple[Space, SolverReport]:
        """The space of a choice with one candidate per site, and how it was proved."""
        ctx, problem = replace(self.ctx, goal=choice.goal), self._limited(choice.goal)
        return pick(self.space, choice.solution), report(choice.solution, problem, self.table, ctx)

    def fits(self, space: Space) -> bool:
        """Whether a choice, not of this space perhaps, keeps what is limited besides the currencies."""
        table, goal = self.ctx.price(space), self.goal(0, self._free)
        return bool((table.usage.sum(axis=0) + table.constant <= self._limited(goal).limits).all())

    def refusal(self) -> Infeasible:
        """Why nothing keeps what is limited besides the currencies."""
        goal = self.goal(0, self._free)
        return infeasible(self._limited(goal), replace(self.ctx, goal=goal), proved=True)

    def taken(self, totals: Floats, name: Objective) -> float:
        """What a choice takes of a currency: of seconds the slowest stage, of loss what is expected, of bytes a whole
        number, as limits on them are."""
        most = max(float(totals[row]) for row in prices.stages(name, self.problem.rows))
        if name == LOSS and self.ctx.loss is not None:
            return self.ctx.loss.correction.expected(most)
        return float(math.ceil(most)) if name.endswith("_bytes") else most

    @property
    def _free(self) -> Values:
        return (math.inf,) * (len(self.over) - 1)

    def _limited(self, goal: Goal) -> Problem:
        ctx = self.ctx
        limits = [prices.limit(row, ctx.spec, ctx.workload, goal, ctx.hardware, ctx.loss) for row in self.problem.rows]
        return replace(self.problem, limits=np.array(limits), minimise=prices.stages(goal.minimise, self.problem.rows))


def held(limits: Limits, over: tuple[Objective, ...], ctx: PassContext) -> Limits:
    """The limits of a goal that a front over some currencies keeps: those on anything else, and one on the loss."""
    ranged = {*over, *(("kv_share",) if "kv_bytes" in over else ())}
    kept = {own.name: getattr(limits, own.name) for own in fields(limits) if own.name not in ranged}
    if ctx.loss is not None and kept.get(LOSS) is None:
        kept[LOSS] = max(MOST_LOSS_NATS, limits.loss_nats or 0.0) / AIMED_SHARE
    return Limits(**kept)
