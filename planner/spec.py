"""What a trained model is to the planner: shapes, the tensors that hold its bytes, and where they came from."""

from dataclasses import dataclass

from planner.space import KvSite, Site, WeightFormat, WeightSite


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """One decoder layer's attention. `window` is the sliding window it was trained with, or None.

    >>> LayerSpec(q_heads=9, kv_heads=3, head_dim=64).kv_bytes_per_token(16)
    768
    """

    q_heads: int
    kv_heads: int
    head_dim: int
    window: int | None = None

    @property
    def group(self) -> int:
        """Query heads that share one KV head; head q belongs to KV head q // group."""
        return self.q_heads // self.kv_heads

    def kv_bytes_per_token(self, bits: int) -> int:
        """Bytes of K and V that one token leaves in this layer's cache, uncompressed."""
        return 2 * self.kv_heads * self.head_dim * bits // 8


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One matrix that is a decision: [rows, cols] = [outputs, inputs], `count` of them stacked (experts).

    `native` is the block grid the source already stores it on (None where it is plain floating point) and
    `native_bytes` what that takes. `active` is the share of the matrix one decoded token reads: 1, or
    experts per token / experts, or rows of an embedding that is only looked up (0).
    """

    name: str
    layer: int
    rows: int
    cols: int
    count: int = 1
    active: float = 1.0
    native: WeightFormat | None = None
    native_bytes: int = 0

    @property
    def elements(self) -> int:
        return self.rows * self.cols * self.count


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Shapes and identity of a decoder-only transformer.

    `family` is transformers' model_type. `weights_sha256` identifies the weights; it is empty for a bare config, which
    has shapes and no weights. `other_bytes` counts what is never compressed (norms, biases, position tables).
    """

    family: str
    source: str
    weights_sha256: str
    hidden_size: int
    vocab_size: int
    max_positions: int
    layers: tuple[LayerSpec, ...]
    tensors: tuple[TensorSpec, ...]
    other_bytes: int
    licence: str = "unknown"

    @property
    def has_weights(self) -> bool:
        return bool(self.weights_sha256)

    @property
    def kv_sites(self) -> tuple[KvSite, ...]:
        return tuple(KvSite(i, h) for i, layer in enumerate(self.layers) for h in range(layer.kv_heads))

    @property
    def weight_sites(self) -> tuple[WeightSite, ...]:
        return tuple(WeightSite(t.layer, t.name) for t in self.tensors)

    @property
    def sites(self) -> tuple[Site, ...]:
        return (*self.kv_sites, *self.weight_sites)

    def kv_bytes_per_token(self, bits: int) -> int:
        """Bytes that one token leaves in the whole uncompressed cache; 23,040 for SmolLM2-135M at 16 bits."""
        return sum(layer.kv_bytes_per_token(bits) for layer in self.layers)
