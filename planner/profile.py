"""What measuring a model gave: the price of every option of every site in nats, and how far their sum is off.

Filled by profiles.model; read by passes and by planner.loss. A profile holds for one model and one runtime's formats.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import log

import numpy as np
from numpy.typing import NDArray

from planner.executor import KvStatics
from planner.space import FLOAT16, FLOAT32, Full, KvChoice, KvFormat, KvSite, Span, WeightFormat, WeightSite
from planner.spec import LayerSpec

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Anchor:
    """A whole setting really measured: what the sites' prices sum to, and the KL that running it gave.

    `chosen`: each site's choice was made by its price, as a solver does; else by anything but prices.
    """

    name: str
    context_tokens: int
    predicted_nats: float
    measured_nats: float
    chosen: bool = False


@dataclass(frozen=True, slots=True)
class KvPrices:
    """Loss in nats per token of one head cached as (span, k, v) with every other site dense.

    loss, error  [kv_sites, spans, k_formats, v_formats, lengths]; `error` is the standard error over the draws of all
    documents. Spans are windows by coded tokens, and `Full` last; every price is with `sinks` protected tokens.
    """

    sites: tuple[KvSite, ...]
    windows: tuple[int, ...]
    k_formats: tuple[KvFormat, ...]
    v_formats: tuple[KvFormat, ...]
    sinks: int
    loss: FloatArray
    error: FloatArray

    def prices(
        self, index: int, choices: Sequence[KvChoice], layer: LayerSpec, contexts: tuple[int, ...]
    ) -> FloatArray:
        """Loss of choices at the site of that index, at each length of the profile: [choices, lengths].

        Between two measured windows the loss is interpolated over the logarithm of the window. A window that reaches
        the whole context is Full. A float of 32 bits costs what one of 16 bits does: next to nothing.
        """
        spans, ks, vs, (span, k, v) = _parts(tuple(choices))
        between = np.array([[self._between(each, layer, context) for context in contexts] for each in spans])
        low, high, share = between[..., 0].astype(np.int64), between[..., 1].astype(np.int64), between[..., 2]
        lengths = np.arange(len(contexts))
        table = np.moveaxis(self.loss[index], -1, 1)  # [spans, lengths, k, v]
        share = share[:, :, None, None]
        read = table[low, lengths] * (1 - share) + table[high, lengths] * share
        k_index = np.array([_index(self.k_formats, form) for form in ks])
        v_index = np.array([_index(self.v_formats, form) for form in vs])
        found: FloatArray = read[span, :, k_index[k], v_index[v]]
        return found

    def _between(self, span: Span, layer: LayerSpec, context: int) -> tuple[int, int, float]:
        """The measured spans below and above a span at a context, and the share of the one above in its loss."""
        last = len(self.windows)
        if isinstance(span, Full):
            return last, last, 0.0
        reach = context if layer.window is None else min(layer.window, context)
        most = reach - (self.sinks if layer.window is None else 0)
        tokens = span.tokens(context)
        if tokens >= most:
            return last, last, 0.0
        known = [w for w in self.windows if w < most]
        above = bisect_left(known, tokens)
        if above == 0:
            return (0, 0, 0.0) if known else (last, last, 0.0)
        top = known[above] if above < len(known) else most
        share = log(tokens / known[above - 1]) / log(top / known[above - 1])
        return above - 1, above if above < len(known) else last, share


@lru_cache(maxsize=256)
def _parts(
    choices: tuple[KvChoice, ...],
) -> tuple[tuple[Span, ...], tuple[KvFormat, ...], tuple[KvFormat, ...], NDArray[np.int64]]:
    """The spans, key formats and value formats among choices, and each choice's place in the three, [3, choices].

    Heads of a layer mostly share one tuple of choices, and it is taken apart once.
    """
    spans: dict[Span, int] = {}
    ks: dict[KvFormat, int] = {}
    vs: dict[KvFormat, int] = {}
    places = [
        (
            spans.setdefault(choice.span, len(spans)),
            ks.setdefault(choice.k, len(ks)),
            vs.setdefault(choice.v, len(vs)),
        )
        for choice in choices
    ]
    return tuple(spans), tuple(ks), tuple(vs), np.array(places, dtype=np.int64).T


def _index(formats: tuple[KvFormat, ...], form: KvFormat) -> int:
    try:
        return formats.index(FLOAT16 if form == FLOAT32 else form)
    except ValueError:
        raise KeyError(f"the profile holds no price for {form}; it has {', '.join(map(str, formats))}") from None


@dataclass(frozen=True, slots=True)
class WeightPrices:
    """Loss in nats per token of one matrix stored in a format with every other site dense: [sites, formats].

    NaN where a matrix cannot take a format. What keeps the source's numbers and rounds no inputs changes nothing and
    costs nothing; an exact format costs what rounding the inputs of its products does.
    """

    sites: tuple[WeightSite, ...]
    formats: tuple[WeightFormat, ...]
    loss: FloatArray
    error: FloatArray

    def price(self, index: int, form: WeightFormat) -> float:
        """Loss of a format at the site of that index; NaN where the matrix cannot take it."""
        if form.scheme in ("native", "unrounded") or form == WeightFormat(32):
            return 0.0
        return float(self.loss[index, self.formats.index(form)])


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """All that was measured of one model under one runtime's formats.

    mass       [kv_sites, windows, lengths]: share of a head's attention that the sinks and the newest tokens hold
    documents  sha256 of the token sequences that were read, so that verification can prove it never saw them
    """

    weights_sha256: str
    formats_sha256: str
    context_tokens: tuple[int, ...]
    draws: int
    seed: int
    kv: KvPrices
    weights: WeightPrices
    mass: FloatArray
    statics: Mapping[KvSite, KvStatics]
    documents: tuple[str, ...]
    anchors: tuple[Anchor, ...] = ()
