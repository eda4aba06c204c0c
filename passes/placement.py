"""Which memory each head's cache and each matrix lies in.

FlexGen (Sheng et al., https://arxiv.org/abs/2303.06865) solves a linear programme for the share of all weights, and of
all caches, in GPU memory, main memory and on flash. Here every head and every matrix has its own tier, decided together
with its bits and its window, and what it costs to fetch overlaps with computing as the cost model says. With `shares`
one site may also be split between two neighbouring tiers.

Nothing is offered where the target has one tier, or where the dense model fits the fastest one together with any limit
on its bytes and those bytes are not what is minimised. Then bytes are no reason to leave it. Seconds hardly are: what
is left out is reading two memories at once, which gains at most the slower link's share of their joint bandwidth: a
sixtieth for an A100 and its host.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar

from planner import cost
from planner.errors import InputError
from planner.pipeline import PassContext
from planner.space import Choice, Site, Space, Tier


@dataclass(frozen=True, slots=True)
class Placement:
    """Offers every candidate in each memory tier of the target, where the dense model overflows the fastest."""

    name: ClassVar[str] = "placement"
    shares: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.shares and (min(self.shares) <= 0 or max(self.shares) >= 1):
            raise InputError(f"placement: shares: found {list(self.shares)}; give shares above 0 and below 1")

    def run(self, space: Space, ctx: PassContext) -> Space:
        if stays(space, ctx):
            return space
        tiers = self._tiers(ctx)

        made: dict[Choice, tuple[Choice, ...]] = {}

        def variants(site: Site, choice: Choice) -> Iterable[Choice]:
            if choice not in made:  # heads have much the same candidates
                made[choice] = tuple(replace(choice, tier=tier) for tier in tiers)
            return made[choice]

        return space.widen(variants)

    def _tiers(self, ctx: PassContext) -> list[Tier]:
        names = [tier.name for tier in ctx.hardware.tiers]
        split: list[Tier] = [
            ((fast, share), (slow, 1 - share)) for fast, slow in pairwise(names) for share in self.shares
        ]
        return [((name, 1.0),) for name in names] + split


def stays(space: Space, ctx: PassContext) -> bool:
    """Whether bytes give no reason to leave the fastest tier: what the space starts from fits there."""
    if len(ctx.hardware.tiers) == 1:
        return True
    first = {site: choices[0] for site, choices in space.candidates.items()}
    used = cost.total(first, ctx.spec, ctx.workload, ctx.hardware).memory_bytes
    limit = ctx.goal.limits.memory_bytes
    fits = used <= ctx.hardware.fastest.capacity_bytes and (limit is None or used <= limit)
    return fits and ctx.goal.minimise != "memory_bytes"
