"""What measuring a model gave: the price of every option of every site in nats, and how far the sum is off.

Filled by profiles.model; read by passes and by planner.loss. A profile holds for one model and one runtime's formats.
"""

from dataclasses import dataclass

from planner.space import KvFormat, KvSite, Span, WeightFormat, WeightSite


@dataclass(frozen=True, slots=True)
class KvPrice:
    """Loss in nats per token of one head cached as (span, k, v) with every other site dense.

    One value per context length of the profile; `error_nats` is the standard error over draws.
    """

    span: Span
    k: KvFormat
    v: KvFormat
    loss_nats: tuple[float, ...]
    error_nats: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class WeightPrice:
    """Loss in nats per token of one matrix stored in `format` with every other site dense."""

    format: WeightFormat
    loss_nats: float
    error_nats: float


@dataclass(frozen=True, slots=True)
class Anchor:
    """A whole setting really measured: what the sites' prices sum to, and the KL that running it gave."""

    name: str
    context_tokens: int
    predicted_nats: float
    measured_nats: float


@dataclass(frozen=True, slots=True)
class LayerMass:
    """Attention mass of a layer's cached tokens at one context length.

    `recent[i]` is the mean share of attention mass that the protected sinks and the newest `tokens[i]` tokens hold,
    per KV head: recent[i][head].
    """

    tokens: tuple[int, ...]
    recent: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """All that was measured of one model under one runtime's formats.

    `documents` are sha256 of the calibration documents, so that verification can prove it never saw them.
    """

    weights_sha256: str
    formats: str
    context_tokens: tuple[int, ...]
    sinks: int
    draws: int
    seed: int
    documents: tuple[str, ...]
    kv: tuple[tuple[KvSite, tuple[KvPrice, ...]], ...]
    weights: tuple[tuple[WeightSite, tuple[WeightPrice, ...]], ...]
    mass: tuple[LayerMass, ...]
    anchors: tuple[Anchor, ...]
    seconds: float
