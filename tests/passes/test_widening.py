"""Widening commutes, repeats freely, keeps what there was, never worsens the optimum; passes offer what they say."""

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from passes.assign import assign
from passes.elastic_windows import ElasticWindows
from passes.kv_bits import KvBits
from passes.placement import Placement
from passes.prefix_kv import PrefixKv
from passes.pyramid_kv import PyramidKv
from passes.streaming_heads import StreamingHeads
from passes.uniform_kv import UniformKv
from passes.weight_bits import WeightBits
from planner.errors import InputError
from planner.goal import Limits
from planner.pipeline import Pass, PassContext, dense, run
from planner.prices import lossless
from planner.space import (
    FLOAT16,
    FLOAT32,
    Full,
    KvChoice,
    KvFormat,
    KvSite,
    Space,
    WeightChoice,
    WeightFormat,
    WeightSite,
    Window,
)

Make = Callable[..., PassContext]

WIDENING: tuple[Pass, ...] = (
    UniformKv((32, 128)),
    PyramidKv((0.25,)),
    PrefixKv((0.25,)),
    StreamingHeads((64,)),
    ElasticWindows((0,), (0.25,)),
    KvBits((4, 16), (2, 16)),
    WeightBits((4,)),
    Placement((0.5,)),
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(WIDENING))
def test_any_order_gives_the_same_space(context: Make, order: list[Pass]) -> None:
    ctx = context(contexts=(512, 1024), fast_bytes=5_000_000)
    assert run(order, dense(ctx), ctx)[0] == run(WIDENING, dense(ctx), ctx)[0]


def test_widening_twice_offers_nothing_new(context: Make) -> None:
    ctx = context(contexts=(512, 1024), fast_bytes=5_000_000)
    once, _ = run(WIDENING, dense(ctx), ctx)
    assert run(WIDENING, once, ctx)[0] == once


def test_widening_keeps_every_candidate_and_the_first_one_first(context: Make) -> None:
    ctx = context(contexts=(512, 1024), fast_bytes=5_000_000)
    space = dense(ctx)
    for each in WIDENING:
        wider = each.run(space, ctx)
        for site, choices in space.candidates.items():
            assert set(choices) <= set(wider.candidates[site])
            assert wider.candidates[site][0] == choices[0]
        space = wider


@pytest.mark.parametrize("minimise", ["loss_nats", "kv_bytes", "decode_s"])
def test_widening_never_worsens_the_optimum(context: Make, minimise: str) -> None:
    ctx = context(Limits(loss_nats=0.5, memory_bytes=12_000_000), minimise, contexts=(512, 1024))
    space, best = dense(ctx), float("inf")
    for each in WIDENING:
        space = each.run(space, ctx)
        now = assign(space, ctx, gap=0.0)[1].objective
        assert now <= best * (1 + 1e-9)
        best = now


def test_without_prices_only_what_changes_nothing_is_offered(context: Make) -> None:
    ctx = context(lossy=False)
    space, _ = run(WIDENING, dense(ctx), ctx)
    offered = {choice for choices in space.candidates.values() for choice in choices}
    assert all(lossless(choice) for choice in offered)
    kinds = {(choice.k, choice.v) for choice in offered if isinstance(choice, KvChoice)}
    assert kinds == {(FLOAT32, FLOAT32), (FLOAT16, FLOAT16)}
    assert WeightChoice(WeightFormat(4.5, "native", 32), ctx.home) in offered


def spans(space: Space, site: KvSite) -> set[object]:
    return {choice.span for choice in space.candidates[site] if isinstance(choice, KvChoice)}


def test_a_window_that_drops_nothing_is_not_offered(context: Make) -> None:
    # A context of 512 has 508 tokens beside 4 sinks; odd layers were trained with a window of 100.
    ctx = context(contexts=(512,), window=100)
    space = UniformKv((64, 128, 507, 508)).run(dense(ctx), ctx)
    assert spans(space, KvSite(0, 0)) == {Full(), Window(64), Window(128), Window(507)}
    assert spans(space, KvSite(1, 0)) == {Full(), Window(64)}


def test_windows_grow_only_where_contexts_differ(context: Make) -> None:
    fixed, several = context(contexts=(1024,)), context(contexts=(512, 1024))
    betas = [
        {span.beta for span in spans(ElasticWindows().run(dense(ctx), ctx), KvSite(0, 0)) if isinstance(span, Window)}
        for ctx in (fixed, several)
    ]
    assert betas == [{0.0}, {0.0, 1 / 16, 1 / 8, 1 / 4, 1 / 2}]


def test_keys_and_values_are_restricted_apart(context: Make) -> None:
    ctx = context()
    space = KvBits(k_bits=(4,), v_bits=(2, 3)).run(dense(ctx), ctx)
    offered = {(choice.k, choice.v) for choice in space.candidates[KvSite(0, 0)] if isinstance(choice, KvChoice)}
    four, three, two = (KvFormat(bits, "rotated") for bits in (4, 3, 2))
    assert offered == {(FLOAT32, FLOAT32), (four, three), (four, two)}


def test_a_matrix_is_offered_what_it_can_take(context: Make) -> None:
    ctx = context()
    space = WeightBits().run(dense(ctx), ctx)

    def formats(tensor: str) -> set[tuple[str, float]]:
        choices = space.candidates[WeightSite(0, f"layers.0.{tensor}")]
        return {(choice.format.scheme, choice.format.bits) for choice in choices if isinstance(choice, WeightChoice)}

    floats, grouped = {("float", 32), ("float", 16)}, {("grouped", 2), ("grouped", 4), ("grouped", 8)}
    assert formats("q") == floats | grouped
    assert formats("up") == floats | grouped | {("native", 4.5)}
    assert formats("odd") == floats  # 72 inputs are no whole groups of 32


def test_a_format_without_a_price_is_not_offered(context: Make) -> None:
    ctx = context()
    assert ctx.loss is not None
    ctx.loss.profile.weights.loss[0, -1] = float("nan")
    space = WeightBits().run(dense(ctx), ctx)
    offered = {choice.format for choice in space.candidates[WeightSite(0, "layers.0.q")]}
    assert WeightFormat(8, "grouped", 32) not in offered
    assert WeightFormat(4, "grouped", 32) in offered


def test_tiers_are_offered_where_bytes_leave_the_fastest(context: Make) -> None:
    def sizes(ctx: PassContext) -> set[int]:
        return {len(choices) for choices in Placement().run(dense(ctx), ctx).candidates.values()}

    assert sizes(context()) == {1}
    assert sizes(context(tiers=1, fast_bytes=5_000_000)) == {1}
    assert sizes(context(fast_bytes=5_000_000)) == {2}
    assert sizes(context(Limits(memory_bytes=5_000_000))) == {2}
    assert sizes(context(minimise="memory_bytes", tiers=3)) == {3}


def test_splits_are_between_neighbouring_tiers(context: Make) -> None:
    ctx = context(fast_bytes=5_000_000, tiers=3)
    space = Placement((0.25,)).run(dense(ctx), ctx)
    tiers = {choice.tier for choice in space.candidates[KvSite(0, 0)]}
    assert tiers == {
        (("dram", 1.0),),
        (("flash", 1.0),),
        (("disk", 1.0),),
        (("dram", 0.25), ("flash", 0.75)),
        (("flash", 0.25), ("disk", 0.75)),
    }


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: UniformKv(()),
        lambda: UniformKv((0,)),
        lambda: StreamingHeads((-4,)),
        lambda: PyramidKv((1.5,)),
        lambda: PyramidKv(beta=0.5),
        lambda: PrefixKv(()),
        lambda: PrefixKv(page=0),
        lambda: ElasticWindows((-1,)),
        lambda: ElasticWindows(betas=(1.0,)),
        lambda: Placement((0.0,)),
    ],
)
def test_options_out_of_range_are_refused(wrong: Callable[[], Pass]) -> None:
    with pytest.raises(InputError, match="found"):
        wrong()


def test_a_profile_of_other_lengths_is_refused(context: Make) -> None:
    measured, asked = context(contexts=(512,)), context(contexts=(1024,))
    assert measured.loss is not None and asked.loss is not None
    asked.loss.profile = measured.loss.profile
    with pytest.raises(InputError, match="profile again"):
        PrefixKv().run(dense(asked), asked)
