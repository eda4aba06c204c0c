"""A projection is a plan that the runtime carries, the same plan where it carries it, and no match for solving."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from passes.assign import assign
from passes.elastic_windows import ElasticWindows
from passes.kv_bits import KvBits
from passes.legalise import Legalise
from passes.project import Projection, planned_spans, project, spent
from passes.uniform_kv import UniformKv
from passes.weight_bits import WeightBits
from planner.errors import Infeasible
from planner.goal import Limits
from planner.pipeline import PassContext, dense, run
from planner.space import Choice, Full, KvChoice, KvSite, Site, Space, Window
from tests.passes.test_capabilities import runtimes

Make = Callable[..., PassContext]
WIDENING = (UniformKv((64, 256)), ElasticWindows((16,), (0.25,)), KvBits((2, 4), (4,)), WeightBits((4, 16)))
hypothesised = settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def random_plan(ctx: PassContext, seed: int) -> dict[Site, Choice]:
    """A plan that the free runtime carries."""
    space = run((*WIDENING, Legalise()), dense(ctx), ctx)[0]
    chance = np.random.default_rng(seed)
    return {site: choices[int(chance.integers(len(choices)))] for site, choices in space.candidates.items()}


def projected(wanted: Mapping[Site, Choice], ctx: PassContext, there: PassContext) -> tuple[Projection, Space]:
    """A plan of one runtime carried over to another, and the space of the other."""
    space = run((planned_spans(wanted), *WIDENING, Legalise()), dense(there), there)[0]
    prices = spent(Space({site: (choice,) for site, choice in wanted.items()}), ctx)
    return project(wanted, prices, space, there), space


@hypothesised
@given(can=runtimes, share=st.floats(0.05, 0.9), seed=st.integers(0, 10**6))
def test_projections_are_carried_stay_and_lose_to_solving(
    context: Make, can: Mapping[str, Any], share: float, seed: int
) -> None:
    ctx = context(Limits(kv_share=share), layers=2)
    ctx = replace(ctx, capabilities=replace(ctx.capabilities, offloads=False))
    there = replace(ctx, capabilities=replace(ctx.capabilities, **can))
    wanted = random_plan(ctx, seed)
    found, space = projected(wanted, ctx, there)
    chosen = found.space.chosen
    assert there.capabilities.admits(chosen)
    assert set(found.moved) == {site for site in chosen if chosen[site] != wanted[site]}
    again, _ = projected(chosen, there, there)
    assert again.space.chosen == chosen and again.moved == () and again.distance == 0
    if not found.keeps_limits:  # a plan that is carried stays, whatever its limits
        if found.moved:
            with pytest.raises(Infeasible):
                assign(space, there)
        return
    assert there.loss is not None
    solved = assign(space, there)[1].objective
    total = sum(there.loss.price(site, choice) for site, choice in chosen.items())
    assert solved <= there.loss.correction.expected(total) * (1 + 2e-3) + 1e-12


def test_what_is_carried_keeps_its_choice_where_no_relation_moves_it(context: Make) -> None:
    ctx = context(layers=3)
    wanted = random_plan(ctx, 3)
    poorer = tuple(form for form in ctx.capabilities.weight_formats if form.bits != 4)
    there = replace(ctx, capabilities=replace(ctx.capabilities, weight_formats=poorer))
    found, _ = projected(wanted, ctx, there)
    lost = {site for site, choice in wanted.items() if rounded_bits(choice) == 4}
    assert lost and set(found.moved) == lost


def rounded_bits(choice: Choice) -> float:
    """Bits of a matrix that is not as its source has it; 0 for a cache."""
    return 0.0 if isinstance(choice, KvChoice) or choice.format.as_source else choice.format.bits


def test_heads_that_must_agree_meet_at_a_window_of_the_plan(context: Make) -> None:
    ctx = context(layers=1, kv_heads=4)
    there = replace(ctx, capabilities=replace(ctx.capabilities, spans="layer", offloads=False))
    form = KvChoice(Full(), ctx.capabilities.kv_formats[0], ctx.capabilities.kv_formats[0], 4, ctx.home)
    wanted: dict[Site, Choice] = dict(random_plan(ctx, 0))
    for head in range(4):
        wanted[KvSite(0, head)] = replace(form, span=Window(777) if head else Window(64))
    found, _ = projected(wanted, ctx, there)
    spans = {c.span for c in found.space.chosen.values() if isinstance(c, KvChoice)}
    assert spans == {Window(777)}


def test_limits_are_kept_where_a_carried_plan_can_keep_them(context: Make) -> None:
    for share, possible in ((0.3, True), (1e-4, False)):
        ctx = context(Limits(kv_share=share), layers=2)
        there = replace(ctx, capabilities=replace(ctx.capabilities, spans="layer", offloads=False))
        wanted = random_plan(ctx, 1)
        found, _ = projected(wanted, ctx, there)
        assert found.keeps_limits == possible
        if possible:
            table = there.price(found.space)
            assert bool((table.usage.sum(0) + table.constant <= table.limits).all())
