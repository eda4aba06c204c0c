"""Fronts of the made-up model, each point solved: within limits, best there, and no worse where more is offered."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from passes.assign import Assign, assign
from passes.kv_bits import KvBits
from passes.prune_dominated import PruneDominated
from passes.uniform_kv import UniformKv
from passes.weight_bits import WeightBits
from planner.compile.front_marks import uniform_front
from planner.compile.front_solver import MOST_LOSS_NATS, Choice, FrontSolver
from planner.errors import Infeasible
from planner.frontier import Found, Solved, Values, front, trace, within
from planner.goal import Limits, Objective
from planner.pipeline import Pass, PassContext, dense, run
from planner.space import Space

Make = Callable[..., PassContext]
Over = tuple[Objective, ...]

THREE: Over = ("loss_nats", "decode_s", "memory_bytes")
TWO: Over = ("loss_nats", "kv_bytes")
FEW: tuple[Pass, ...] = (UniformKv((64, 256)), WeightBits((4,)))
MORE: tuple[Pass, ...] = (UniformKv((32, 64, 256, 512)), WeightBits((2, 4, 8)), KvBits((2, 4, 8, 16), (2, 4, 8, 16)))
GAP = 1e-3
SLACK = 1 + 2 * GAP
LEAST_NATS = 1e-7


def widened(ctx: PassContext, passes: tuple[Pass, ...]) -> Space:
    return run(passes, dense(ctx), ctx)[0]


def solver_of(ctx: PassContext, over: Over, passes: tuple[Pass, ...] = MORE) -> FrontSolver:
    return FrontSolver(PruneDominated().run(widened(ctx, passes), ctx), ctx, over, Assign())


def solves(solver: FrontSolver, most: int = 12) -> list[tuple[Solved[Choice], Found[Choice]]]:
    done = trace(solver.solve, len(solver.over), most, lambda loss: np.log1p(loss / 1e-3))
    return [(solved, solved.found) for solved in done if solved.found is not None]


def as_front(found: list[tuple[Solved[Choice], Found[Choice]]]) -> list[Values]:
    rows = [each.values for _, each in found]
    return [rows[i] for i in front(np.array(rows))]


@pytest.mark.parametrize("over", [TWO, THREE, ("decode_s", "memory_bytes")])
def test_every_point_keeps_its_limits_and_compile_finds_it_by_its_goal(context: Make, over: Over) -> None:
    ctx = context(Limits(loss_nats=0.5) if "loss_nats" not in over else None)
    solver = solver_of(ctx, over)
    for solved, found in solves(solver, 6):
        assert found.choice.goal.minimise == over[0]
        assert all(value <= most * (1 + 1e-6) for value, most in zip(found.values[1:], solved.limits, strict=True))
        own = replace(ctx, goal=found.choice.goal)
        table = own.price(chosen := solver.chosen(found.choice)[0])
        assert (table.usage.sum(axis=0) + table.constant <= table.limits * (1 + 1e-9)).all()
        again, report = assign(solver.space, own)
        limited = FrontSolver(solver.space, own, over, Assign())
        best = limited.problem.objective(limited.table.constant + own.price(again).usage.sum(axis=0))
        assert limited.problem.objective(table.usage.sum(axis=0) + table.constant) <= best * SLACK + LEAST_NATS
        assert report.status in ("optimal", "within gap")
        assert chosen.size == len(solver.space.sites)


def test_a_front_over_two_falls_and_no_point_beats_another(context: Make) -> None:
    points = as_front(solves(solver_of(context(), TWO)))
    assert len(points) >= 6
    assert all(a[0] < b[0] and a[1] > b[1] for a, b in pairwise(points))


def test_no_uniform_setting_beats_a_point(context: Make) -> None:
    ctx = context()
    solver = solver_of(ctx, THREE)
    points = as_front(solves(solver, 16))
    for setting in uniform_front(widened(ctx, MORE), ctx, THREE, solver.within, 50):
        table = ctx.price(setting)
        totals = table.usage.sum(axis=0) + table.constant
        taken = tuple(solver.taken(totals, name) for name in THREE)
        for point in points:
            assert not (taken[0] < point[0] / SLACK - LEAST_NATS and within(taken, point[1:]))


@pytest.mark.parametrize("over", [TWO, THREE])
def test_what_more_passes_offer_never_makes_a_front_worse(context: Make, over: Over) -> None:
    ctx = context()
    narrow, wide = (solver_of(ctx, over, passes) for passes in (FEW, MORE))
    for solved, found in solves(narrow, 8):
        better = wide.solve(0, solved.limits)
        assert better is not None and better.values[0] <= found.values[0] * SLACK + LEAST_NATS
    few = as_front(solves(narrow, 8))
    for point in as_front(solves(wide, 12)):
        assert not any(other[0] < point[0] / SLACK - LEAST_NATS and within(other, point[1:]) for other in few)


@pytest.mark.parametrize("over", [TWO, THREE])
def test_more_points_answer_every_point_there_was(context: Make, over: Over) -> None:
    solver = solver_of(context(), over)
    few, many = (as_front(solves(solver, most)) for most in (6, 14))
    for point in few:
        assert any(all(a <= max(b, 1e-3) * SLACK for a, b in zip(other, point, strict=True)) for other in many)


def test_limits_on_other_things_stay(context: Make) -> None:
    ctx = context(Limits(kv_share=0.3, weight_bytes=500_000, loss_nats=0.01))
    solver = solver_of(ctx, ("loss_nats", "decode_s"))
    assert (solver.within.kv_share, solver.within.weight_bytes) == (0.3, 500_000)
    row = solver.problem.rows.index("weight_bytes")
    for _, found in solves(solver, 5):
        assert solver.problem.totals(found.choice.solution.chosen)[row] <= 500_000
        assert found.values[0] <= MOST_LOSS_NATS


def test_the_limit_on_what_is_ranged_over_goes(context: Make) -> None:
    solver = solver_of(context(Limits(kv_share=0.1, loss_nats=2.5)), TWO)
    assert solver.within.kv_share is None
    assert max(found.values[0] for _, found in solves(solver, 4)) > 0.5


def test_limits_that_nothing_keeps_are_named(context: Make) -> None:
    solver = solver_of(context(Limits(weight_bytes=1000)), TWO)
    assert solves(solver) == []
    with pytest.raises(Infeasible, match="weight_bytes"):
        raise solver.refusal()


def test_without_weights_time_is_ranged_against_bytes(context: Make) -> None:
    from passes.placement import Placement

    ctx = context(lossy=False, minimise="memory_bytes")
    points = as_front(solves(solver_of(ctx, ("decode_s", "memory_bytes"), (Placement(),)), 8))
    assert len(points) >= 4
    assert points[0][1] > 1.5 * points[-1][1]
