"""The best plan of the cache that passes reach one after the other: what a joint solve has to beat.

Deployed systems stack methods: one decides which tokens stay, another how many bits they take, each with the other's
choice fixed. Here both orders are tried, each pass solved as well as the joint plan is and priced alike, and how the
bytes are split between the passes is tried on a grid: the first pass is held to a larger share, and the second brings
the plan down to the share asked for.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from passes.assign import within_limits
from planner.errors import InputError
from planner.pipeline import PassContext
from planner.space import FLOAT16, Choice, Full, KvChoice, KvSite, Site, Space

Order = Literal["spans then bits", "bits then spans"]
ORDERS: tuple[Order, ...] = ("spans then bits", "bits then spans")

SPLITS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Where between the share asked for (0) and the whole cache (1) the first pass stops, on a logarithmic scale."""


@dataclass(frozen=True, slots=True)
class Stacked:
    """What two passes reached: their order, the share that the first was held to, the plan, and its sum of prices."""

    order: Order
    first_share: float
    plan: Space
    price_nats: float


def sequential(space: Space, ctx: PassContext, splits: Sequence[float] = SPLITS) -> Stacked | None:
    """The best of both orders and all splits by price; None where none keeps the goal's share of the cache.

    `space` is the widened space that the joint plan is solved over. Raises InputError where the goal has no `kv_share`.
    """
    share = ctx.goal.limits.kv_share
    if share is None:
        raise InputError("goal.limits.kv_share: found none; passes split a share of the cache")
    best: Stacked | None = None
    for order in ORDERS:
        for split in splits:
            found = one_after_the_other(space, ctx, order, min(share ** (1 - split), 1.0))
            if found is not None and (best is None or found.price_nats < best.price_nats):
                best = found
    return best


def one_after_the_other(space: Space, ctx: PassContext, order: Order, first_share: float) -> Stacked | None:
    """One pass held to `first_share` with the other's choice left alone, then the other with the first's choices.

    None where one of them cannot keep its share, or where nothing has a price.
    """
    loss = ctx.loss
    if loss is None:
        return None
    limits = replace(ctx.goal.limits, kv_share=first_share)
    started = only(space, lambda _, choice: whole(choice) if order == "bits then spans" else unrounded(choice))
    first = within_limits(started, replace(ctx, goal=replace(ctx.goal, limits=limits)))
    if first is None:
        return None
    decided = first.chosen

    def kept(site: Site, choice: KvChoice) -> bool:
        own = decided[site]
        if not isinstance(own, KvChoice):
            return True
        return (choice.k, choice.v) == (own.k, own.v) if order == "bits then spans" else choice.span == own.span

    plan = within_limits(only(space, kept), ctx)
    if plan is None:
        return None
    return Stacked(order, first_share, plan, loss.total(plan.chosen))


def whole(choice: KvChoice) -> bool:
    """Whether every token stays."""
    return isinstance(choice.span, Full)


def unrounded(choice: KvChoice) -> bool:
    """Whether keys and values stay at 16 bits."""
    return (choice.k, choice.v) == (FLOAT16, FLOAT16)


def only(space: Space, wanted: Callable[[Site, KvChoice], bool]) -> Space:
    """The space with those candidates of the cache that are wanted; matrices keep all of theirs."""

    def keep(site: Site, choices: tuple[Choice, ...]) -> tuple[Choice, ...]:
        if not isinstance(site, KvSite):
            return choices
        return tuple(choice for choice in choices if isinstance(choice, KvChoice) and wanted(site, choice))

    return space.narrow(keep)
