"""Every head its own window, growing with the context where contexts differ: alpha + beta * context tokens.

MoA (Fu et al., https://arxiv.org/abs/2406.14909) gives every query head such a rule out of 54 and solves an integer
programme for each of several lengths. Here a rule belongs to a KV head, because its query heads share the cache (a plan
per query head, folded afterwards, stores up to two thirds where it promised half). A workload of one length gets fixed
windows only, for there beta says nothing new. The lengths' losses are weighed as the workload weighs them, rather
than traded off on a front; and losses are Fisher prices of the whole KL where MoA's influence is of first order.
"""

from dataclasses import dataclass
from itertools import pairwise
from math import sqrt
from typing import ClassVar

from passes.spans import check_tokens, offer
from planner.errors import InputError
from planner.pipeline import PassContext
from planner.space import Space, Window


@dataclass(frozen=True, slots=True)
class ElasticWindows:
    """Offers windows at every head, and windows that grow with the context where the workload has several."""

    name: ClassVar[str] = "elastic-windows"
    alphas: tuple[int, ...] = (0, 128)
    betas: tuple[float, ...] = (1 / 16, 1 / 8, 1 / 4, 1 / 2)

    def __post_init__(self) -> None:
        if not self.alphas or min(self.alphas) < 0:
            raise InputError(f"elastic-windows: alphas: found {list(self.alphas)}; give numbers of at least 0")
        if self.betas and (min(self.betas) <= 0 or max(self.betas) >= 1):
            raise InputError(f"elastic-windows: betas: found {list(self.betas)}; give shares above 0 and below 1")

    def run(self, space: Space, ctx: PassContext) -> Space:
        if ctx.loss is None:
            return space
        windows = [Window(tokens) for tokens in with_midpoints(ctx.loss.profile.kv.windows)]
        if len(ctx.workload.context_tokens) > 1:
            windows += [Window(alpha, beta) for alpha in self.alphas for beta in self.betas]
        return offer(space, ctx, lambda site: windows)


def with_midpoints(windows: tuple[int, ...]) -> tuple[int, ...]:
    """The windows and the geometric middle of every two neighbours.

    >>> with_midpoints((16, 32, 64))
    (16, 23, 32, 45, 64)
    """
    check_tokens("profile: windows", windows)
    middles = (round(sqrt(a * b)) for a, b in pairwise(sorted(windows)))
    return tuple(sorted({*windows, *middles}))
