"""Budgets that shrink linearly from the first layer to the last.

PyramidKV (Cai et al., https://arxiv.org/abs/2406.02069) reads in attention maps that information funnels into fewer
tokens layer by layer, and gives the last layer 1/beta of the mean budget. `budgets` is its rule as kvpress writes it,
rounded so that the total is exact. Which tokens stay differs: PyramidKV keeps those that the newest queries attend to
most, here a layer's budget is a window of its newest tokens beside the sinks. The pass offers the windows of several
totals at the heads of each layer; one total for all layers is what `single_methods` compares with.
"""

from dataclasses import dataclass
from math import floor
from typing import ClassVar

from passes.spans import check_shares, coded_tokens, offer
from planner.errors import InputError
from planner.pipeline import PassContext
from planner.space import KvSite, Space, Window

BETA = 20.0


@dataclass(frozen=True, slots=True)
class PyramidKv:
    """Offers each layer the windows that PyramidKV's linear rule gives it."""

    name: ClassVar[str] = "pyramid-kv"
    shares: tuple[float, ...] = (1 / 4, 1 / 2)
    beta: float = BETA

    def __post_init__(self) -> None:
        check_shares("pyramid-kv: shares", self.shares)
        if self.beta < 1:
            raise InputError(f"pyramid-kv: beta: found {self.beta}; must be at least 1")

    def run(self, space: Space, ctx: PassContext) -> Space:
        coded = [coded_tokens(layer, ctx) for layer in range(len(ctx.spec.layers))]
        totals = (max(round(share * sum(coded)), len(coded)) for share in self.shares)
        plans = [budgets(total, len(coded), self.beta, max(coded)) for total in totals]

        def spans(site: KvSite) -> list[Window]:
            return [Window(plan[site.layer]) for plan in plans]

        return offer(space, ctx, spans)


def budgets(total_tokens: int, layers: int, beta: float = BETA, most: int | None = None) -> tuple[int, ...]:
    """Tokens of each layer: a falling line whose last value is the mean over beta, none above `most`.

    >>> budgets(400, 4)
    (195, 132, 68, 5)

    Where the first layer would get more than there is, the line turns around the mean; the total stays.

    >>> budgets(400, 4, most=120)
    (120, 107, 93, 80)
    """
    mean = total_tokens / layers
    if mean < 1 or (most is not None and mean > most):
        fitting = "" if most is None else f" and at most {layers * most}"
        raise InputError(f"pyramid budgets: {total_tokens} tokens for {layers} layers; give at least {layers}{fitting}")
    least = max(mean / beta, 1.0)
    highest = 2 * mean - least
    if most is not None and highest > most:
        highest, least = float(most), 2 * mean - most
    step = (highest - least) / max(layers - 1, 1)
    exact = [highest - i * step for i in range(layers)] if layers > 1 else [mean]
    # Largest remainder: round all down, then give what is missing to those that lost most, the first of equals.
    rounded = [floor(value + 1e-9) for value in exact]
    lost = sorted(range(layers), key=lambda i: (round(rounded[i] - exact[i], 9), i))
    for i in lost[: total_tokens - sum(rounded)]:
        rounded[i] += 1
    return tuple(rounded)
