"""The best plan that one method alone can reach within the limits: what a joint plan has to beat.

Each method decides the cache and nothing else; the matrices stay as a given plan has them. Methods that leave the
cache's numbers as they are keep them at 16 bits. A method with one number to turn (a window, a budget) gets the best
value of that number, searched ever finer; a method that decides head by head gets the solver.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from passes import prefix_kv, pyramid_kv
from passes.assign import within_limits
from passes.kv_bits import storable
from passes.legalise import paged
from passes.spans import coded_tokens
from planner.pipeline import PassContext
from planner.prices import PriceTable
from planner.space import FLOAT16, Choice, Full, KvChoice, KvSite, Site, Space, Span, Window, violated

Method = Literal["uniform-window", "uniform-bits", "pyramid", "prefix", "head-windows", "head-bits"]
METHODS: tuple[Method, ...] = ("uniform-window", "uniform-bits", "pyramid", "prefix", "head-windows", "head-bits")

PROBES = 33
"""Values tried at once; each round searches between the neighbours of the best."""

SpansAt = Callable[[int], Sequence[Span]]
"""The span of every layer at one value of a method's number."""


def single_method(method: Method, space: Space, base: Space, ctx: PassContext) -> Space | None:
    """The best plan of a method, None where it cannot reach the limits.

    `space` is the widened space whose candidates the methods by head choose from; `base` has one candidate per site
    and says how the matrices are stored.
    """
    if method != "uniform-bits" and ctx.loss is None:
        return None
    match method:
        case "uniform-window":
            most = max(coded_tokens(layer, ctx) for layer in range(len(ctx.spec.layers)))
            return best_value(1, most, lambda tokens: [Window(tokens)] * len(ctx.spec.layers), base, ctx)
        case "pyramid":
            return best_value(*pyramid_plans(ctx), base, ctx)
        case "prefix":
            return best_value(*prefix_plans(ctx), base, ctx)
        case "uniform-bits":
            pairs = [KvChoice(Full(), k, v, ctx.sinks, ctx.home) for k in storable(ctx)[0] for v in storable(ctx)[1]]
            plans: list[dict[Site, Choice]] = [{site: choice for site in ctx.spec.kv_sites} for choice in pairs]
            return best_of(plans, base, ctx).plan if plans else None
        case "head-windows":
            return by_head(space, base, ctx, lambda choice: (choice.k, choice.v) == (FLOAT16, FLOAT16))
        case "head-bits":
            return by_head(space, base, ctx, lambda choice: isinstance(choice.span, Full))


def by_head(space: Space, base: Space, ctx: PassContext, wanted: Callable[[KvChoice], bool]) -> Space | None:
    """The solver's plan over some of the candidates in the fastest tier."""

    def offered(site: Site) -> tuple[Choice, ...]:
        if not isinstance(site, KvSite):
            return base.candidates[site]
        kv = (choice for choice in space.candidates[site] if isinstance(choice, KvChoice))
        return tuple(choice for choice in kv if choice.tier == ctx.home and wanted(choice))

    only = Space({site: offered(site) for site in space.sites}, space.constraints)
    return within_limits(only, ctx) if all(only.candidates.values()) else None


def pyramid_plans(ctx: PassContext) -> tuple[int, int, SpansAt]:
    """The fewest and most tokens of PyramidKV's rule over all layers, and its spans at a number of tokens."""
    coded = [coded_tokens(layer, ctx) for layer in range(len(ctx.spec.layers))]

    def plan(total_tokens: int) -> list[Span]:
        return [Window(tokens) for tokens in pyramid_kv.budgets(total_tokens, len(coded), most=max(coded))]

    return len(coded), len(coded) * max(coded), plan


def prefix_plans(ctx: PassContext) -> tuple[int, int, SpansAt]:
    """The fewest and most pages of PrefixKV's rule over all layers, and its spans at a number of pages."""
    page = prefix_kv.PrefixKv().page
    curves = prefix_kv.layer_curves(ctx, page)

    def plan(total_steps: int) -> list[Span]:
        return [Window(steps * page) for steps in prefix_kv.budgets(curves, total_steps)]

    return len(curves), sum(map(len, curves)), plan


@dataclass(frozen=True, slots=True)
class Best:
    """The number of the best of some plans, and the plan itself where it keeps the limits."""

    number: int
    plan: Space | None


def best_value(least: int, most: int, plan: SpansAt, base: Space, ctx: PassContext) -> Space | None:
    """The best plan over a method's number, searched between the neighbours of the best value ever finer."""
    while True:
        values = sorted({round(value) for value in np.geomspace(least, most, PROBES)})
        best = best_of([in_float16(plan(value), ctx) for value in values], base, ctx)
        low, high = values[max(best.number - 1, 0)], values[min(best.number + 1, len(values) - 1)]
        if all(b - a == 1 for a, b in pairwise(values)) or (low, high) == (least, most):
            return best.plan
        least, most = low, high


def in_float16(spans: Sequence[Span], ctx: PassContext) -> dict[Site, Choice]:
    """Every head with its layer's span, as the runtime can carry it, at 16 bits."""
    return {
        site: KvChoice(paged(spans[site.layer], site, ctx), FLOAT16, FLOAT16, ctx.sinks, ctx.home)
        for site in ctx.spec.kv_sites
    }


def best_of(plans: Sequence[dict[Site, Choice]], base: Space, ctx: PassContext) -> Best:
    """The best of some plans of the cache: within the limits, or nearest to them."""

    def side_by_side(site: Site) -> tuple[Choice, ...]:
        return tuple(plan[site] for plan in plans) if isinstance(site, KvSite) else base.candidates[site]

    table = ctx.price(Space({site: side_by_side(site) for site in base.sites}))
    totals = np.array(list(totals_of(table, len(plans))))
    broken = np.maximum((totals / table.limits).max(axis=1), 1.0)
    objective = totals[:, list(table.minimise)].max(axis=1)
    ties = [totals[:, row] for row in reversed(table.tie_break)]
    number = int(np.lexsort((*ties, objective, broken))[0])
    chosen = {**base.chosen, **plans[number]}
    fits = broken[number] == 1.0 and violated(chosen, base.constraints) is None
    return Best(number, base.choose(chosen) if fits else None)


def totals_of(table: PriceTable, plans: int) -> Iterator[NDArray[np.float64]]:
    """What each of the plans uses of every row: KV sites have one candidate per plan, matrices one for all."""
    starts = np.cumsum([0, *table.groups[:-1]])
    several = np.array(table.groups) == plans
    for plan in range(plans):
        yield table.usage[starts + plan * several].sum(axis=0) + table.constant
