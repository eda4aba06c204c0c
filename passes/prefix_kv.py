"""Layer budgets that keep the same share of attention mass everywhere.

PrefixKV (Wang et al., https://arxiv.org/abs/2412.03409) sorts a layer's tokens by attention and finds by bisection the
one share p whose prefixes, over all layers, fill the budget. `budgets` is its exact form without a loop: every step of
every layer goes in one list by the mass its layer holds before it, and the budget takes the smallest. What differs:
steps of a page instead of single tokens; a layer's curve is the mass its sinks and newest tokens hold (so its budget is
a window), measured at some windows and interpolated between them, averaged over its KV heads; the longest context
counts. The pass offers the windows of several budgets; one for all layers is what `single_methods` compares with.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from passes.spans import check_shares, check_tokens, coded_tokens, offer
from planner.errors import InputError
from planner.pipeline import PassContext
from planner.space import KvSite, Space, Window

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PrefixKv:
    """Offers each layer the windows that keep one share of attention mass in all layers."""

    name: ClassVar[str] = "prefix-kv"
    shares: tuple[float, ...] = (1 / 4, 1 / 2)
    page: int = 16

    def __post_init__(self) -> None:
        check_shares("prefix-kv: shares", self.shares)
        check_tokens("prefix-kv: page", (self.page,))

    def run(self, space: Space, ctx: PassContext) -> Space:
        if ctx.loss is None:
            return space
        curves = layer_curves(ctx, self.page)
        steps = sum(map(len, curves))
        plans = [budgets(curves, max(round(share * steps), len(curves))) for share in self.shares]

        def spans(site: KvSite) -> list[Window]:
            return [Window(plan[site.layer] * self.page) for plan in plans]

        return offer(space, ctx, spans)


def budgets(curves: Sequence[Floats], total_steps: int) -> tuple[int, ...]:
    """Steps of each layer: the smallest of all masses held before a step, so many of them.

    `curves[layer][i]` is the share of mass that the first i steps hold; it never falls. Of equal masses the first
    layer's count first. The second layer below holds 0.9 with one step, the first needs three:

    >>> budgets([np.array([0.0, 0.4, 0.7, 0.9]), np.array([0.0, 0.9, 0.95, 1.0])], 4)
    (3, 1)
    """
    most = sum(map(len, curves))
    if not 1 <= total_steps <= most:
        raise InputError(f"prefix budgets: {total_steps} steps over {len(curves)} layers; give 1 to {most}")
    layer = np.repeat(np.arange(len(curves)), [len(curve) for curve in curves])
    smallest = np.argsort(np.concatenate(curves), kind="stable")[:total_steps]
    return tuple(np.bincount(layer[smallest], minlength=len(curves)).tolist())


def layer_curves(ctx: PassContext, page: int) -> list[Floats]:
    """For each layer the mass held before each page of its cache at the longest context, mean over its KV heads.

    Between measured windows the mass is interpolated over the logarithm of the tokens, as losses are. The first page
    comes before all others (its layer holds nothing yet): every layer keeps some window.
    """
    if ctx.loss is None:
        raise InputError("prefix budgets need attention mass, which a profile of the model's weights holds")
    profile, longest = ctx.loss.profile, ctx.workload.longest_tokens
    if longest not in profile.context_tokens:
        raise InputError(f"the profile was measured at {profile.context_tokens} tokens, not {longest}; profile again")
    mass = profile.mass[:, :, profile.context_tokens.index(longest)]
    curves = []
    for layer in range(len(ctx.spec.layers)):
        heads = [i for i, site in enumerate(profile.kv.sites) if site.layer == layer]
        coded = coded_tokens(layer, ctx)
        known = [i for i, window in enumerate(profile.kv.windows) if window < coded]
        points = np.log1p([0, *(profile.kv.windows[i] for i in known), coded])
        values = np.maximum.accumulate([0.0, *mass[heads].mean(axis=0)[known], 1.0])
        curves.append(np.interp(np.log1p(np.arange(0, coded, page)), points, values))
    return curves
