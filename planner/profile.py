"""What measuring a model gave: the price of every option of every site in nats, and how far their sum is off.

Filled by profiles.model; read by passes and by planner.loss. A profile holds for one model and one runtime's formats.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.executor import KvStatics
from planner.space import FLOAT16, FLOAT32, Full, KvChoice, KvFormat, KvSite, Span, WeightFormat, WeightSite, Window
from planner.spec import LayerSpec

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Anchor:
    """A whole setting really measured: what the sites' prices sum to, and the KL that running it gave."""

    name: str
    context_tokens: int
    predicted_nats: float
    measured_nats: float


@dataclass(frozen=True, slots=True)
class KvPrices:
    """Loss in nats per token of one head cached as (span, k, v) with every other site dense.

    loss, error  [kv_sites, spans, k_formats, v_formats, lengths]; `error` is the standard error over draws. Spans are
    windows by coded tokens, and `Full` last; every price is with `sinks` protected tokens.
    """

    sites: tuple[KvSite, ...]
    windows: tuple[int, ...]
    k_formats: tuple[KvFormat, ...]
    v_formats: tuple[KvFormat, ...]
    sinks: int
    loss: FloatArray
    error: FloatArray

    def price(self, index: int, choice: KvChoice, layer: LayerSpec, contexts: tuple[int, ...]) -> FloatArray:
        """Loss of a choice at the site of that index, at each length of the profile.

        Between two measured windows the loss is interpolated over the logarithm of the window. A window that reaches
        the whole context is Full. A float of 32 bits costs what one of 16 bits does: next to nothing.
        """
        table = self.loss[index, :, _index(self.k_formats, choice.k), _index(self.v_formats, choice.v), :]  # [spans, lengths]
        if isinstance(choice.span, Full):
            return np.asarray(table[-1])
        return np.array(
            [self._at(choice.span, table[:, i], layer, context) for i, context in enumerate(contexts)], np.float64
        )

    def _at(self, span: Window, column: FloatArray, layer: LayerSpec, context: int) -> float:
        reach = context if layer.window is None else min(layer.window, context)
        most = reach - (self.sinks if layer.window is None else 0)
        known = [w for w in self.windows if w < most]
        points = np.log([*known, most])
        values = [*column[: len(known)], column[-1]]
        return float(np.interp(np.log(min(span.tokens(context), most)), points, values))


def _index(formats: tuple[KvFormat, ...], form: KvFormat) -> int:
    try:
        return formats.index(FLOAT16 if form == FLOAT32 else form)
    except ValueError:
        raise KeyError(f"the profile holds no price for {form}; it has {', '.join(map(str, formats))}") from None


@dataclass(frozen=True, slots=True)
class WeightPrices:
    """Loss in nats per token of one matrix stored in a format with every other site dense: [sites, formats].

    NaN where a matrix cannot take a format. A native format changes nothing and costs nothing.
    """

    sites: tuple[WeightSite, ...]
    formats: tuple[WeightFormat, ...]
    loss: FloatArray
    error: FloatArray

    def price(self, index: int, form: WeightFormat) -> float:
        """Loss of a format at the site of that index; NaN where the matrix cannot take it."""
        if form.scheme == "native" or form == WeightFormat(32):
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
    seconds: float = 0.0
