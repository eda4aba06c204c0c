"""Pruning under relations: the optimum stays, whatever heads share, and what heads share shrinks."""

from collections.abc import Callable
from itertools import product
from math import inf

import numpy as np
import pytest

from passes.kv_bits import KvBits
from passes.prune_dominated import PruneDominated
from passes.uniform_kv import UniformKv
from planner.goal import Limits, Objective
from planner.pipeline import PassContext, dense, run
from planner.space import AtMostDistinct, Constraint, KvSite, Requires, Same, Space, violated

Make = Callable[..., PassContext]


def heads_only(context: Make, seed: int) -> tuple[Space, PassContext]:
    """Three heads of one layer with a few random candidates each, many of them the same; no matrices."""
    ctx = context(Limits(kv_share=0.6), layers=1, kv_heads=3, seed=seed)
    space, _ = run((UniformKv((64, 256)), KvBits((2, 4, 16), (2, 16))), dense(ctx), ctx)
    rng = np.random.default_rng(seed)
    common = rng.integers(0, 18, 5).tolist()
    few = {
        site: tuple(choices[i] for i in sorted({0, *common, *rng.integers(0, len(choices), 2).tolist()}))
        for site, choices in space.candidates.items()
        if isinstance(site, KvSite)
    }
    return Space(few), ctx


def best(space: Space, ctx: PassContext, minimise: Objective, kv_bytes: float) -> float:
    """The least total of one price with so many bytes of cache, over all choices; inf where none is allowed."""
    table = ctx.price(space)
    starts = np.cumsum((0, *table.groups[:-1]))
    column = next(i for i, row in enumerate(table.rows) if row.startswith(minimise))
    found = inf
    for picked in product(*map(range, table.groups)):
        totals = table.usage[starts + picked].sum(axis=0)
        chosen = {site: space.candidates[site][i] for site, i in zip(space.sites, picked, strict=True)}
        if totals[table.rows.index("kv_bytes")] <= kv_bytes and violated(chosen, space.constraints) is None:
            found = min(found, float(totals[column]))
    return found


def relations(space: Space, which: str) -> tuple[Constraint, ...]:
    first, second, third = space.sites
    heads = (first, second, third)
    return {
        "two classes": (AtMostDistinct(heads, "kernel", 2),),
        "one class": (AtMostDistinct(heads, "kernel", 1),),
        "overlapping": (AtMostDistinct((first, second), "kernel", 1), AtMostDistinct((second, third), "span", 1)),
        "all kinds": (
            AtMostDistinct(heads, "kernel", 2),
            Same((first, second), "v"),
            Requires(first, frozenset(space.candidates[first][:2]), third, frozenset(space.candidates[third][:3])),
        ),
    }[which]


@pytest.mark.parametrize("which", ["two classes", "one class", "overlapping", "all kinds"])
def test_pruning_never_changes_the_optimum_of_what_heads_share(context: Make, which: str) -> None:
    dropped = 0
    for seed in range(8):
        space, ctx = heads_only(context, seed)
        space = space.constrain(*relations(space, which))
        pruned = PruneDominated().run(space, ctx)
        assert PruneDominated().run(pruned, ctx) == pruned
        dropped += space.size - pruned.size
        most = float(ctx.price(space).usage[:, 1].max()) * 3
        for share in (0.15, 0.4, 1.0):
            for minimise in ("loss_nats", "decode_s"):
                assert best(pruned, ctx, minimise, most * share) == best(space, ctx, minimise, most * share)
    assert dropped > 0


def test_a_class_that_another_beats_at_every_head_is_dropped_at_all(context: Make) -> None:
    ctx = context(layers=2, kv_heads=3, classes=2)
    space, _ = run((UniformKv((64, 128, 256)), KvBits()), dense(ctx), ctx)
    pruned = PruneDominated().run(space, ctx)
    for layer in range(2):
        before, after = (
            [set(own.candidates[site]) for site in space.sites if isinstance(site, KvSite) and site.layer == layer]
            for own in (space, pruned)
        )
        assert len(after[0]) < len(before[0])
        assert after[0] == after[1] == after[2]
