"""Limits that cannot be kept: the message names them and what would do, and what it says is true."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from passes.assign import as_problem, assign
from passes.kv_bits import KvBits
from passes.shortfall import enough_alone, nearest
from passes.uniform_kv import UniformKv
from passes.weight_bits import WeightBits
from planner.errors import Infeasible
from planner.goal import Goal, Limits
from planner.pipeline import PassContext, dense, run
from planner.space import Requires, Space

Make = Callable[..., PassContext]


def widened(ctx: PassContext) -> Space:
    return run((UniformKv((64, 256)), KvBits((4, 16), (4, 16)), WeightBits((4,))), dense(ctx), ctx)[0]


def failure(ctx: PassContext) -> str:
    with pytest.raises(Infeasible) as found:
        assign(widened(ctx), ctx)
    return str(found.value)


def loosened(ctx: PassContext, **limits: float) -> PassContext:
    return replace(ctx, goal=Goal(ctx.goal.minimise, replace(ctx.goal.limits, **limits)))


@pytest.mark.parametrize(
    "limits",
    [
        Limits(loss_nats=0.01, kv_share=0.1),
        Limits(loss_nats=0.01, kv_bytes=200_000, weight_bytes=700_000),
        Limits(loss_nats=0.001, weight_bytes=250_000),
        Limits(decode_s=1e-4, loss_nats=1e-3),
        Limits(kv_share=0.5, ttft_s=1e-3),
    ],
)
def test_raising_a_limit_as_told_is_enough(context: Make, limits: Limits) -> None:
    ctx = context(limits)
    problem = as_problem(widened(ctx), ctx.price(widened(ctx)))
    found = enough_alone(problem, ctx)
    message = failure(ctx)
    for shortfall in found:
        assert str(shortfall.limit) in message
        assert shortfall.least > shortfall.limit.value
        looser = loosened(ctx, **{shortfall.limit.name: shortfall.least})
        assign(widened(looser), looser)
    if not found:
        together = nearest(problem, ctx)
        assert len(together) > 1
        assert all(str(shortfall) in message for shortfall in together)
        looser = loosened(ctx, **{shortfall.limit.name: shortfall.least for shortfall in together})
        assign(widened(looser), looser)


def test_the_message_is_one_line_with_a_nearest_plan(context: Make) -> None:
    message = failure(context(Limits(loss_nats=0.01, kv_bytes=1000)))
    assert "\n" not in message
    assert message.startswith("no plan keeps every limit; with the others kept, ")
    assert "loss_nats (0.01 nats)" in message or "kv_bytes (1 kB)" in message
    assert "raise " in message and "to at least" in message


def test_least_bytes_are_those_of_the_smallest_candidates(context: Make) -> None:
    """8 heads of 64 slots at 4 bits, 4 sinks and 3 rows of static factors at 16: 8 * (64 * 68 + 4 * 256 + 384)."""
    message = failure(context(Limits(kv_bytes=1000)))
    assert "kv_bytes (1 kB) can be no less than 46.08 kB; raise kv_bytes to at least 46.08 kB" in message


def test_several_limits_that_only_go_together(context: Make) -> None:
    message = failure(context(Limits(kv_bytes=1000, weight_bytes=1000)))
    assert "loosening one is not enough of kv_bytes (1 kB), weight_bytes (1 kB)" in message
    assert "raise kv_bytes to at least" in message and "raise weight_bytes to at least" in message


def test_a_tier_that_is_too_small_asks_for_another_target(context: Make) -> None:
    message = failure(context(tiers=1, fast_bytes=300_000))
    assert "dram_bytes (300 kB)" in message
    assert "take a target with at least" in message and "of dram" in message


def test_without_prices_only_limits_are_told(context: Make) -> None:
    """Why nothing smaller is offered is for whoever knows the source to say."""
    message = failure(context(Limits(kv_share=0.2), lossy=False))
    (told,) = {part for part in message.split("; ")[1:] if "raise" not in part}
    assert told == "with the others kept, kv_share (0.2) can be no less than 1"


def test_relations_that_contradict_are_told_apart_from_limits(context: Make) -> None:
    ctx = context()
    space = widened(ctx)
    first, second = space.sites[:2]
    never = Requires(first, frozenset(space.candidates[first]), second, frozenset())
    with pytest.raises(Infeasible, match="the relations between sites leave no choice"):
        assign(space.constrain(never), ctx)


def test_seconds_are_kept_at_the_pessimistic_end(context: Make) -> None:
    """A feasible plan keeps the limit even where it takes as much longer as the target's error allows."""
    ctx = context()
    fastest = replace(ctx, goal=Goal("decode_s"))
    space, _ = assign(widened(fastest), fastest)
    table = fastest.price(space)
    least_s = float((table.usage.sum(0) + table.constant)[list(table.minimise)].max())
    assert ctx.hardware.error > 0
    kept = loosened(ctx, decode_s=least_s * (1 + ctx.hardware.error) * 1.001)
    assign(widened(kept), kept)
    with pytest.raises(Infeasible, match="decode_s"):
        missed = loosened(ctx, decode_s=least_s * (1 + ctx.hardware.error) * 0.98)
        assign(widened(missed), missed)
