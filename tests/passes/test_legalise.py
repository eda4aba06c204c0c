"""What the runtime cannot carry is rounded or dropped, and the space stays valid."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from passes.elastic_windows import ElasticWindows
from passes.kv_bits import KvBits
from passes.legalise import Legalise
from passes.uniform_kv import UniformKv
from passes.weight_bits import WeightBits
from planner.errors import InputError
from planner.pipeline import PassContext, dense, run
from planner.space import FLOAT32, Full, KvChoice, KvSite, Requires, Space, WeightFormat, Window, check

Make = Callable[..., PassContext]
HEAD = KvSite(0, 0)


def spans(space: Space) -> list[object]:
    return [choice.span for choice in space.candidates[HEAD] if isinstance(choice, KvChoice)]


def test_windows_fill_whole_pages_and_equal_ones_become_one(context: Make) -> None:
    ctx = context(page=64)
    space = UniformKv((16, 60, 64, 65, 1000)).run(dense(ctx), ctx)
    assert set(spans(Legalise().run(space, ctx))) == {Full(), Window(64), Window(128)}
    assert len(spans(Legalise().run(space, ctx))) == 3  # 1000 needs 1024 slots, which is all of 1020


def test_windows_that_grow_fill_whole_pages_at_the_longest_context(context: Make) -> None:
    ctx = context(page=64, contexts=(500, 1000))
    space = Legalise().run(ElasticWindows((5,), (0.1, 0.25)).run(dense(ctx), ctx), ctx)
    growing = [span for span in spans(space) if isinstance(span, Window) and span.beta]
    assert {span.tokens(1000) for span in growing} == {128, 256}


def test_legal_spaces_stay_as_they_are(context: Make) -> None:
    for page in (1, 16):
        ctx = context(page=page)
        once = Legalise().run(run((UniformKv(), KvBits(), WeightBits()), dense(ctx), ctx)[0], ctx)
        assert Legalise().run(once, ctx) == once
        check(once, "legalise")


def test_formats_the_runtime_does_not_store_are_dropped(context: Make) -> None:
    ctx = context()
    space, _ = run((UniformKv((64,)), KvBits(), WeightBits()), dense(ctx), ctx)
    kept = tuple(form for form in ctx.capabilities.kv_formats if form.bits in (4, 32))
    poorer = replace(ctx, capabilities=replace(ctx.capabilities, kv_formats=kept, weight_formats=(WeightFormat(32),)))
    legal = Legalise().run(space, poorer)
    check(legal, "legalise")
    kv = [choice for choice in legal.candidates[HEAD] if isinstance(choice, KvChoice)]
    assert {form.bits for choice in kv for form in (choice.k, choice.v)} == {4, 32}
    formats = {choice.format for site in ctx.spec.weight_sites for choice in legal.candidates[site]}
    assert formats == {WeightFormat(32), WeightFormat(4.5, "native", 32)}


def test_a_site_left_with_nothing_is_refused(context: Make) -> None:
    ctx = context()
    poorer = replace(ctx, capabilities=replace(ctx.capabilities, kv_formats=ctx.capabilities.kv_formats[1:]))
    assert FLOAT32 not in poorer.capabilities.kv_formats
    with pytest.raises(InputError, match="layer 0 kv head 0: toy 1 stores none of the formats"):
        Legalise().run(dense(ctx), poorer)


def test_relations_name_the_rounded_candidates(context: Make) -> None:
    ctx = context(page=64)
    space = UniformKv((16, 100)).run(dense(ctx), ctx)
    short = frozenset(c for c in space.candidates[HEAD] if isinstance(c, KvChoice) and c.span == Window(16))
    other = KvSite(0, 1)
    legal = Legalise().run(space.constrain(Requires(HEAD, short, other, short)), ctx)
    (relation,) = legal.constraints
    assert isinstance(relation, Requires)
    assert {choice.span for choice in relation.choices if isinstance(choice, KvChoice)} == {Window(64)}
    assert relation.choices <= set(legal.candidates[HEAD])
    assert relation.other_choices <= set(legal.candidates[other])
