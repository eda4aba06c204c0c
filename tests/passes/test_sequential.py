"""Passes one after the other: they keep the share, never beat the joint plan, and never lose to a pass alone."""

from collections.abc import Callable

import pytest

from passes.assign import assign
from passes.sequential import ORDERS, SPLITS, Order, one_after_the_other, sequential
from passes.single_methods import single_method
from planner.compile.search import pipeline
from planner.errors import InputError
from planner.goal import Limits
from planner.pipeline import PassContext, dense, run
from planner.space import FLOAT16, Full, KvChoice, Space

Make = Callable[..., PassContext]
WIDENING = pipeline(None).widening
SLACK = 1.01
"""Both sides are solved to within a gap."""


def widened(ctx: PassContext) -> Space:
    return run(WIDENING, dense(ctx), ctx)[0]


def loss(plan: Space, ctx: PassContext) -> float:
    assert ctx.loss is not None
    return ctx.loss.total(plan.chosen)


@pytest.mark.parametrize("share", [0.25, 0.125, 0.0625])
@pytest.mark.parametrize("seed", [0, 1])
def test_between_the_joint_plan_and_each_pass_alone(context: Make, share: float, seed: int) -> None:
    ctx = context(Limits(kv_share=share), seed=seed)
    space = widened(ctx)
    found = sequential(space, ctx)
    assert found is not None
    table = ctx.price(found.plan)
    assert (table.usage.sum(axis=0) + table.constant <= table.limits).all()
    assert loss(assign(space, ctx)[0], ctx) <= found.price_nats * SLACK
    assert found.price_nats == pytest.approx(loss(found.plan, ctx))
    for method in ("head-windows", "head-bits"):
        alone = single_method(method, space, dense(ctx), ctx)
        assert alone is None or found.price_nats <= loss(alone, ctx) * SLACK


def test_more_splits_never_make_it_worse(context: Make) -> None:
    ctx = context(Limits(kv_share=0.125))
    space = widened(ctx)
    prices = [sequential(space, ctx, SPLITS[:count]) for count in range(1, len(SPLITS) + 1)]
    found = [each.price_nats for each in prices if each is not None]
    assert found == sorted(found, reverse=True)
    assert found[-1] < found[0]


@pytest.mark.parametrize("order", ORDERS)
def test_a_second_pass_leaves_the_choices_of_the_first(context: Make, order: Order) -> None:
    ctx = context(Limits(kv_share=0.125))
    # Held to the whole cache, the first pass has nothing to do and the second decides alone.
    found = one_after_the_other(widened(ctx), ctx, order, 1.0)
    if order == "spans then bits":
        assert found is None  # 2 bits of 16 and their scales are more than an eighth
    else:
        assert found is not None
        choices = [choice for choice in found.plan.chosen.values() if isinstance(choice, KvChoice)]
        assert {(choice.k, choice.v) for choice in choices} == {(FLOAT16, FLOAT16)}
        assert any(not isinstance(choice.span, Full) for choice in choices)


def test_no_share_to_split(context: Make) -> None:
    ctx = context(Limits(kv_bytes=100_000))
    with pytest.raises(InputError, match="kv_share: found none"):
        sequential(widened(ctx), ctx)


def test_nothing_to_reach(context: Make) -> None:
    ctx = context(Limits(kv_share=1e-4))
    assert sequential(widened(ctx), ctx) is None
    assert sequential(widened(ctx), context(Limits(kv_share=0.125), lossy=False)) is None
