"""Uniform settings and single methods: they keep the limits, are the best of their kind, and lose to the joint plan."""

from collections.abc import Callable

import numpy as np
import pytest

from passes.assign import assign
from passes.kv_bits import KvBits
from passes.single_methods import METHODS, Method, single_method
from passes.uniform_kv import UniformKv
from passes.uniform_settings import uniform_settings
from passes.weight_bits import WeightBits
from planner.compile.search import pipeline
from planner.goal import Limits
from planner.pipeline import PassContext, dense, run
from planner.space import FLOAT16, Full, KvChoice, KvSite, Space, WeightChoice, WeightFormat, WeightSite, Window

Make = Callable[..., PassContext]

WIDENING = pipeline(None).widening


def loss(plan: Space, ctx: PassContext) -> float:
    assert ctx.loss is not None
    return ctx.loss.total(plan.chosen)


def keeps(plan: Space, ctx: PassContext) -> bool:
    table = ctx.price(plan)
    return bool((table.usage.sum(axis=0) + table.constant <= table.limits).all())


def kv(plan: Space) -> list[KvChoice]:
    return [choice for choice in plan.chosen.values() if isinstance(choice, KvChoice)]


def test_uniform_settings_are_all_those_that_fit_best_first(context: Make) -> None:
    ctx = context(Limits(kv_share=0.3, weight_bytes=900_000))
    space, _ = run((UniformKv((64, 256)), KvBits((4, 16), (4, 16)), WeightBits((4,))), dense(ctx), ctx)
    plans = uniform_settings(space, ctx, most=10_000)
    assert all(keeps(plan, ctx) and len(set(kv(plan))) == 1 for plan in plans)
    losses = [loss(plan, ctx) for plan in plans]
    assert losses == sorted(losses)
    # 256 of 1020 slots at 16 bits are a quarter; all of them at 4 bits are a little more than that.
    shapes = {(choice.span, choice.k.bits, choice.v.bits) for plan in plans for choice in kv(plan)[:1]}
    assert (Window(256), 16, 16) in shapes and (Full(), 16, 16) not in shapes and (Full(), 4, 4) in shapes
    assert uniform_settings(space, ctx) == plans[:3]


def test_a_uniform_weight_format_leaves_what_cannot_take_it(context: Make) -> None:
    ctx = context(Limits(weight_bytes=400_000))
    space = WeightBits((4,)).run(dense(ctx), ctx)
    (best, *_) = uniform_settings(space, ctx)
    formats = {site.tensor: c.format for site, c in best.chosen.items() if isinstance(site, WeightSite)}
    assert formats["layers.0.q"] == formats["layers.0.up"] == WeightFormat(4, "grouped", 32)
    assert formats["layers.0.odd"] == WeightFormat(32)


def test_native_counts_as_one_format(context: Make) -> None:
    ctx = context(Limits(weight_bytes=500_000))
    space = WeightBits().run(dense(ctx), ctx)
    plans = uniform_settings(space, ctx, most=100)
    kinds = [{c.format.scheme for c in plan.chosen.values() if isinstance(c, WeightChoice)} for plan in plans]
    assert {"native", "float"} in kinds


def test_layers_with_a_shorter_window_of_their_own_keep_it(context: Make) -> None:
    ctx = context(Limits(kv_share=0.8), window=100)
    space = UniformKv((64, 256)).run(dense(ctx), ctx)
    spans = [[choice.span for choice in kv(plan)] for plan in uniform_settings(space, ctx, most=100)]
    assert [Window(256), Window(256), Full(), Full()] * 2 in spans


def test_nothing_uniform_fits(context: Make) -> None:
    ctx = context(Limits(kv_bytes=1000))
    space, _ = run(WIDENING, dense(ctx), ctx)
    assert uniform_settings(space, ctx) == ()
    assert all(single_method(method, space, dense(ctx), ctx) is None for method in METHODS)


@pytest.mark.parametrize("share", [0.3, 0.15])
def test_the_joint_plan_beats_every_single_method(context: Make, share: float) -> None:
    ctx = context(Limits(kv_share=share))
    space, _ = run(WIDENING, dense(ctx), ctx)
    base = dense(ctx)
    plan, _ = assign(space, ctx)
    reached = [found for method in METHODS if (found := single_method(method, space, base, ctx)) is not None]
    assert len(reached) >= 4
    for single in (*reached, *uniform_settings(space, ctx)):
        assert keeps(single, ctx)
        assert loss(plan, ctx) <= loss(single, ctx) * 1.001
    for single in reached:
        assert [single.chosen[site] for site in ctx.spec.weight_sites] == [
            base.chosen[site] for site in ctx.spec.weight_sites
        ]


@pytest.mark.parametrize("method", ["uniform-window", "pyramid", "prefix"])
def test_a_number_is_turned_as_far_as_the_limit_allows(context: Make, method: Method) -> None:
    """Within a step of the limit in bytes: one token of every head, or a page of a layer."""
    ctx = context(Limits(kv_share=0.2))
    space, _ = run(WIDENING, dense(ctx), ctx)
    plan = single_method(method, space, dense(ctx), ctx)
    assert plan is not None
    table = ctx.price(plan)
    row = table.rows.index("kv_bytes")
    left = table.limits[row] - table.usage[:, row].sum() - table.constant[row]
    token = 2 * 64 * 2
    assert 0 <= left < token * {"uniform-window": 8, "pyramid": 2, "prefix": 32}[method]
    assert all((choice.k, choice.v) == (FLOAT16, FLOAT16) for choice in kv(plan))


def test_the_least_window_that_a_loss_allows(context: Make) -> None:
    ctx = context(Limits(loss_nats=0.3), "kv_bytes")
    space, _ = run(WIDENING, dense(ctx), ctx)
    plan = single_method("uniform-window", space, dense(ctx), ctx)
    assert plan is not None and keeps(plan, ctx)
    (span,) = {choice.span for choice in kv(plan)}
    assert isinstance(span, Window)
    shorter = {
        site: KvChoice(Window(span.alpha - 1), FLOAT16, FLOAT16, ctx.sinks, ctx.home)
        for site in plan.sites
        if isinstance(site, KvSite)
    }
    assert not keeps(plan.choose({**plan.chosen, **shorter}), ctx)


def test_uniform_bits_is_the_best_pair(context: Make) -> None:
    ctx = context(Limits(kv_share=0.3))
    space = KvBits().run(dense(ctx), ctx)
    plan = single_method("uniform-bits", space, dense(ctx), ctx)
    assert plan is not None
    pairs = {(choice.k, choice.v) for choice in space.candidates[KvSite(0, 0)] if isinstance(choice, KvChoice)}
    every = [
        dense(ctx).choose(
            {**dense(ctx).chosen, **{s: KvChoice(Full(), k, v, ctx.sinks, ctx.home) for s in ctx.spec.kv_sites}}
        )
        for k, v in pairs
    ]
    assert loss(plan, ctx) == pytest.approx(min(loss(p, ctx) for p in every if keeps(p, ctx)))


def test_methods_by_head_use_one_family(context: Make) -> None:
    ctx = context(Limits(kv_share=0.3))
    space, _ = run(WIDENING, dense(ctx), ctx)
    windows = single_method("head-windows", space, dense(ctx), ctx)
    bits = single_method("head-bits", space, dense(ctx), ctx)
    assert windows is not None and bits is not None
    assert {(choice.k, choice.v) for choice in kv(windows)} == {(FLOAT16, FLOAT16)}
    assert {choice.span for choice in kv(bits)} == {Full()}
    assert np.isfinite(loss(windows, ctx) + loss(bits, ctx))
