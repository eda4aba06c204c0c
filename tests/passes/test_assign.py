"""Pruning and choosing: the optimum stays, agrees with brute force, and only gets better where a limit loosens."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passes.assign import Assign, assign
from passes.kv_bits import KvBits
from passes.pipeline import PIPELINE, known
from passes.prune_dominated import PruneDominated
from passes.uniform_kv import UniformKv
from passes.weight_bits import WeightBits
from planner.compile.search import pipeline
from planner.dominance import undominated
from planner.errors import Infeasible
from planner.goal import Limits
from planner.pipeline import Pass, PassContext, dense, run, spelled
from planner.pipeline_spec import parse_passes
from planner.space import (
    AtMostDistinct,
    Constraint,
    KvSite,
    Requires,
    Same,
    Space,
    WeightSite,
    check,
    violated,
)

Make = Callable[..., PassContext]

WIDENING = pipeline(None).widening

SMALL: tuple[Pass, ...] = (UniformKv((64, 256)), KvBits((4, 16), (2, 16)), WeightBits((4,)))


def relations(space: Space) -> tuple[Constraint, ...]:
    """One of every kind."""
    heads = tuple(site for site in space.sites if isinstance(site, KvSite))
    matrices = tuple(site for site in space.sites if isinstance(site, WeightSite))
    first, second = heads[:2]
    return (
        AtMostDistinct(heads, "kernel", 3),
        Same(matrices[:2], "format"),
        Requires(first, frozenset(space.candidates[first][:5]), second, frozenset(space.candidates[second][:3])),
    )


def brute(space: Space, ctx: PassContext) -> float:
    """The least objective over all choices, inf where none keeps limits and relations."""
    table = ctx.price(space)
    starts = np.cumsum([0, *table.groups[:-1]])
    best = inf
    for picked in product(*map(range, table.groups)):
        totals = table.usage[starts + picked].sum(axis=0) + table.constant
        objective = float(totals[list(table.minimise)].max())
        if objective < best and bool((totals <= table.limits).all()):
            chosen = {site: space.candidates[site][i] for site, i in zip(space.sites, picked, strict=True)}
            if violated(chosen, space.constraints) is None:
                best = objective
    return best


def tiny(context: Make, limits: Limits, minimise: str, seed: int) -> tuple[Space, PassContext]:
    """Two heads and three matrices, a few random candidates each."""
    ctx = context(limits, minimise, layers=1, seed=seed)
    space, _ = run(SMALL, dense(ctx), ctx)
    rng = np.random.default_rng(seed)
    few = {
        site: tuple(choices[i] for i in sorted({0, *rng.integers(0, len(choices), 5).tolist()}))
        for site, choices in space.candidates.items()
    }
    return Space(few), ctx


@pytest.mark.parametrize("minimise", ["loss_nats", "kv_bytes", "decode_s"])
@pytest.mark.parametrize("related", [False, True])
def test_assign_agrees_with_brute_force(context: Make, minimise: str, related: bool) -> None:
    for seed in range(6):
        space, ctx = tiny(context, Limits(loss_nats=0.2, kv_share=1.2), minimise, seed)
        if related:
            space = space.constrain(*relations(space))
        expected = brute(space, ctx)
        if expected == inf:
            with pytest.raises(Infeasible):
                assign(space, ctx, gap=0.0)
            continue
        plan, report = assign(space, ctx, gap=0.0)
        assert violated(plan.chosen, space.constraints) is None
        assert ctx.loss is not None
        shown = ctx.loss.correction.expected(expected) if minimise == "loss_nats" else expected
        assert report.objective == pytest.approx(shown, rel=1e-9)
        assert report.status == "optimal" and report.bound <= report.objective * (1 + 1e-9)


@pytest.mark.parametrize("related", [False, True])
@pytest.mark.parametrize("limits", [Limits(kv_share=0.3), Limits(kv_share=0.3, weight_bytes=700_000, decode_s=0.02)])
def test_pruning_never_changes_the_optimum(context: Make, limits: Limits, related: bool) -> None:
    for seed in range(3):
        ctx = context(limits, seed=seed, layers=2)
        space, _ = run(SMALL, dense(ctx), ctx)
        if related:
            space = space.constrain(*relations(space))
        pruned = PruneDominated().run(space, ctx)
        assert pruned.size < space.size
        assert assign(pruned, ctx, gap=0.0)[1].objective == pytest.approx(
            assign(space, ctx, gap=0.0)[1].objective, rel=1e-9
        )
        assert PruneDominated().run(pruned, ctx) == pruned


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), rows=st.integers(1, 200), columns=st.integers(1, 4), values=st.integers(1, 6))
def test_what_is_dropped_is_dominated_by_what_stays(seed: int, rows: int, columns: int, values: int) -> None:
    rng = np.random.default_rng(seed)
    usage, cell = rng.integers(0, values, (rows, columns)).astype(float), rng.integers(0, 3, rows)
    keep = undominated(usage, cell)
    for i in range(rows):
        beaten = [j for j in range(rows) if j != i and cell[j] == cell[i] and (usage[j] <= usage[i]).all()]
        strictly = [j for j in beaten if (usage[j] < usage[i]).any() or j < i]
        assert keep[i] == (not strictly)
        assert keep[i] or any(keep[j] for j in strictly)


def test_loosening_a_limit_never_worsens(context: Make) -> None:
    before = inf
    for share in (0.05, 0.1, 0.2, 0.4, 0.8):
        ctx = context(Limits(kv_share=share))
        now = assign(run(SMALL, dense(ctx), ctx)[0], ctx, gap=0.0)[1].objective
        assert now <= before
        before = now


def test_shadow_prices_say_what_a_little_more_buys(context: Make) -> None:
    """The solver's price per byte, in expected nats, lies near what a small change of the limit really gives."""
    found = {}
    for share in (0.2, 0.21):
        ctx = context(Limits(kv_share=share), layers=8, kv_heads=4)
        found[share] = assign(run(WIDENING, dense(ctx), ctx)[0], ctx, gap=0.0)[1]
    ((name, price),) = found[0.2].shadow_prices
    one_percent_bytes = 0.01 * 8 * 4 * 1024 * 64 * 2 * 2
    gained = found[0.21].objective - found[0.2].objective
    assert name == "kv_bytes" and price < 0
    assert gained == pytest.approx(price * one_percent_bytes, rel=0.3)


def test_the_same_inputs_give_the_same_plan(context: Make) -> None:
    def plan() -> str:
        ctx = context(Limits(kv_share=0.125, weight_bytes=800_000), contexts=(512, 1024), classes=1)
        return repr(run(PIPELINE, dense(ctx), ctx)[0])

    assert plan() == plan()


def test_the_pipeline_ends_in_a_plan_that_keeps_the_limits(context: Make) -> None:
    for window in (None, 100):
        ctx = context(Limits(kv_share=0.125, weight_bytes=800_000), window=window, classes=1, page=16)
        plan, steps = run(PIPELINE, dense(ctx), ctx)
        check(plan, "pipeline")
        table = ctx.price(plan)
        assert set(table.groups) == {1}
        assert bool((table.usage.sum(axis=0) + table.constant <= table.limits).all())
        assert violated(plan.chosen, plan.constraints) is None
        assert [step.name for step in steps] == [kind.name for kind in known()]


def test_without_prices_the_pipeline_leaves_the_model_as_it_is(context: Make) -> None:
    ctx = context(lossy=False)
    plan, _ = run(PIPELINE, dense(ctx), ctx)
    assert ctx.price(plan).usage[:, 0].sum() == 0


def test_every_pass_reads_back_from_what_it_is_spelled_as() -> None:
    options = replace(UniformKv(), tokens=(8, 24)), replace(Assign(), gap=0.01)
    for each in (*PIPELINE, *options):
        assert parse_passes(spelled(each), known()) == (each,)
    assert len({kind.name for kind in known()}) == len(known())


def test_widening_is_all_that_offers(context: Make) -> None:
    ctx = context()
    assert PIPELINE[: len(WIDENING)] == WIDENING
    space, _ = run(WIDENING, dense(ctx), ctx)
    assert all(set(first) <= set(space.candidates[site]) for site, first in dense(ctx).candidates.items())
