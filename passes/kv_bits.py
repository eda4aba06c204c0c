"""Bits of keys and values, chosen apart at every head.

KVQuant (Hooper et al., https://arxiv.org/abs/2401.18079) and KIVI (Liu et al., https://arxiv.org/abs/2402.02750) give a
whole model one width; KV-AdaQuant (https://arxiv.org/abs/2502.15075) shows that keys need more bits than values. Here
every pair of formats is a candidate of every head, priced by what it really changes there. How a format codes numbers
is the runtime's: the default runtime codes each token's vector by itself, rotated, with a codebook made for the normal
distribution (see planner.formats), where KVQuant groups keys along tokens per channel and keeps 1 % outliers. Formats
wider than what the target computes in are not offered, and coded ones only where the profile has their price.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from planner.pipeline import PassContext
from planner.space import FLOAT16, Choice, KvChoice, KvFormat, Site, Space, Span, Tier


@dataclass(frozen=True, slots=True)
class KvBits:
    """Offers every pair of key and value formats that the runtime stores and the profile has priced."""

    name: ClassVar[str] = "kv-bits"
    k_bits: tuple[float, ...] = ()
    v_bits: tuple[float, ...] = ()

    def run(self, space: Space, ctx: PassContext) -> Space:
        keys, values = storable(ctx)
        pairs = [
            (k, v)
            for k in keys
            for v in values
            if (not self.k_bits or k.bits in self.k_bits) and (not self.v_bits or v.bits in self.v_bits)
        ]

        made: dict[tuple[Span, int, Tier], tuple[Choice, ...]] = {}

        def variants(site: Site, choice: Choice) -> Iterable[Choice]:
            if not isinstance(choice, KvChoice):
                return ()
            # Heads have much the same spans: each candidate is made once, and known again at the next head.
            key = choice.span, choice.sinks, choice.tier
            if key not in made:
                made[key] = tuple(KvChoice(choice.span, k, v, choice.sinks, choice.tier) for k, v in pairs)
            return made[key]

        return space.widen(variants, everywhere=True)


def storable(ctx: PassContext) -> tuple[tuple[KvFormat, ...], tuple[KvFormat, ...]]:
    """Formats of keys and of values that can be offered: 16 bits, and below that what is priced."""
    carried = [form for form in ctx.capabilities.kv_formats if form.bits <= min(ctx.hardware.float_bits, 16)]
    if ctx.loss is None:
        known: tuple[KvFormat, ...] = tuple(form for form in carried if form == FLOAT16)
        return known, known
    prices = ctx.loss.profile.kv
    k, v = (tuple(form for form in carried if form in priced) for priced in (prices.k_formats, prices.v_formats))
    return k, v
