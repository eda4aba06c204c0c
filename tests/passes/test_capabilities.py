"""What a runtime carries is a filter and relations: every plan solved for inside them is one that it carries."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from passes.assign import assign
from passes.elastic_windows import ElasticWindows
from passes.kv_bits import KvBits
from passes.legalise import Legalise
from passes.prune_dominated import PruneDominated
from passes.uniform_kv import UniformKv
from passes.weight_bits import WeightBits
from planner.errors import Infeasible, InputError
from planner.executor import Capabilities, of_version
from planner.formats import rotated
from planner.goal import Limits
from planner.pipeline import Pass, PassContext, dense, run
from planner.prices import LOSS
from planner.space import FLOAT32, AtMostDistinct, Full, KvChoice, KvSite, Same, Site, Space, Window, violated

Make = Callable[..., PassContext]
WIDENING = (UniformKv((64, 256)), ElasticWindows((16,), (0.25,)), KvBits((2, 4), (4,)), WeightBits((4, 16)))
FEW = (UniformKv((64, 256)), KvBits((4,), (4,)))

runtimes = st.fixed_dictionaries(
    {
        "spans": st.sampled_from(["head", "layer", "model", "full"]),
        "kv_one": st.sampled_from(["head", "model", "model or float"]),
        "kv_alike": st.booleans(),
        "elastic": st.booleans(),
        "window_page_tokens": st.sampled_from([1, 48]),
        "classes_per_layer": st.sampled_from([None, 1, 2]),
        "native": st.sampled_from(["native", "none"]),
        "weight_sets": st.sampled_from([(), (("q", "up"),), (("q", "up", "odd"),)]),
    }
)
hypothesised = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def inside(ctx: PassContext, can: Mapping[str, Any]) -> PassContext:
    """The context of a runtime."""
    return replace(ctx, capabilities=replace(ctx.capabilities, offloads=False, **can))


def legal(ctx: PassContext, widening: tuple[Pass, ...] = WIDENING) -> Space:
    """What the runtime of a context can be offered."""
    return run((*widening, Legalise()), dense(ctx), ctx)[0]


@hypothesised
@given(can=runtimes, share=st.floats(0.05, 0.9), seed=st.integers(0, 3))
def test_plans_are_carried_whatever_the_runtime(context: Make, can: Mapping[str, Any], share: float, seed: int) -> None:
    ctx = inside(context(Limits(kv_share=share), seed=seed, layers=2), can)
    space = legal(ctx)
    try:
        chosen, report = assign(PruneDominated().run(space, ctx), ctx)
    except Infeasible:
        return
    assert ctx.capabilities.admits(chosen.chosen)
    assert report.objective <= assign(space, ctx)[1].objective * (1 + 2e-3) + 1e-12, "pruning lost the best plan"


@pytest.mark.parametrize("spans", ["layer", "model", "full"])
@pytest.mark.parametrize("kv_one", ["head", "model", "model or float"])
def test_the_best_of_all_choices_that_are_carried_is_found(context: Make, spans: str, kv_one: str) -> None:
    ctx = inside(context(Limits(kv_share=0.2), layers=2), {"spans": spans, "kv_one": kv_one})
    space = legal(ctx, FEW)
    table = ctx.price(space)
    starts = np.cumsum([0, *table.groups])
    best = np.inf
    for picks in product(*(range(count) for count in table.groups)):
        chosen = {site: space.candidates[site][i] for site, i in zip(space.sites, picks, strict=True)}
        used = table.constant + table.usage[[start + i for start, i in zip(starts, picks, strict=False)]].sum(0)
        if bool((used <= table.limits).all()) and ctx.capabilities.admits(chosen):
            best = min(best, float(used[table.rows.index(LOSS)]))
    assert ctx.loss is not None
    if best == np.inf:
        with pytest.raises(Infeasible):
            assign(space, ctx, gap=0.0)
        return
    assert assign(space, ctx, gap=0.0)[1].objective == pytest.approx(ctx.loss.correction.expected(best))


def test_one_window_leaves_every_layer_the_choice_between_it_and_none(context: Make) -> None:
    ctx = inside(context(), {"spans": "model"})
    heads = [KvSite(i, h) for i in range(2) for h in range(2)]

    def windows(*spans: Window | Full) -> dict[Site, KvChoice]:
        return {s: KvChoice(span, FLOAT32, FLOAT32, 4, ctx.home) for s, span in zip(heads, spans, strict=True)}

    rules = ctx.capabilities.constraints(heads)
    assert violated(windows(Full(), Full(), Window(64), Window(64)), rules) is None
    assert violated(windows(Window(64), Window(64), Window(64), Window(64)), rules) is None
    assert isinstance(violated(windows(Full(), Window(64), Full(), Full()), rules), Same)
    assert isinstance(violated(windows(Window(32), Window(32), Window(64), Window(64)), rules), AtMostDistinct)


def test_one_code_leaves_every_layer_the_choice_between_it_and_floats(context: Make) -> None:
    ctx = inside(context(), {"kv_one": "model or float"})
    heads = [KvSite(i, 0) for i in range(3)]

    def coded(*bits: int) -> dict[Site, KvChoice]:
        forms = [FLOAT32 if b == 32 else rotated(b) for b in bits]
        return {s: KvChoice(Full(), form, form, 4, ctx.home) for s, form in zip(heads, forms, strict=True)}

    rules = ctx.capabilities.constraints(heads)
    assert violated(coded(32, 4, 4), rules) is None
    assert violated(coded(32, 4, 8), rules) is not None


def test_windows_of_a_runtime_with_one_length_leave_models_alone_that_have_theirs(context: Make) -> None:
    ctx = inside(context(window=128), {"spans": "model"})
    assert {c.span for s in ctx.spec.kv_sites for c in legal(ctx).candidates[s] if isinstance(c, KvChoice)} == {Full()}


def test_windows_that_cannot_grow_are_as_long_as_the_longest_context_asks(context: Make) -> None:
    ctx = inside(context(contexts=(500, 1000)), {"elastic": False})
    space = legal(ctx, (ElasticWindows((16,), (0.25,)),))
    spans = {c.span for c in space.candidates[KvSite(0, 0)] if isinstance(c, KvChoice)}
    assert Window(266) in spans  # 16 and a quarter of 1000
    assert not any(isinstance(span, Window) and span.beta for span in spans)


def test_versions_nobody_looked_at_are_refused(context: Make) -> None:
    one = context().capabilities
    tables: tuple[Capabilities, ...] = (one, replace(one, version="2"))
    assert of_version(tables, None).version == "2" and of_version(tables, "1") == one
    with pytest.raises(InputError, match="toy 3: what this version carries is not known; give one of 1, 2"):
        of_version(tables, "3")
