"""Seconds of one matrix's products and of one KV head's attention on a target.

By what is known of the target, the best first: operator models of a GPU, products and attention measured whole as a
runtime does them, or a roofline of throughput and bandwidth.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from planner.formats import GGML, has_minimum
from planner.hardware import HardwareProfile
from planner.space import WeightFormat
from planner.spec import LayerSpec, TensorSpec

Floats = NDArray[np.float64]

FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Matrices of a layer that GPU runtimes multiply with in one call."""


def product_s(
    tensor: TensorSpec, form: WeightFormat, tokens: int, read_bytes: float, fused_rows: int, hardware: HardwareProfile
) -> float:
    """Seconds of the products of so many tokens, expansion apart; `read_bytes` of the fastest tier are read once.

    On a GPU a matrix takes its share, by rows, of the call it is fused into. A table that is only looked up (active 0)
    takes none. Of a mixture each touched expert multiplies the tokens that were sent to it.
    """
    if not tensor.active or not tokens:
        return 0.0
    if hardware.operators is not None:
        touched = touched_share(tensor, tokens)
        each = max(tokens * tensor.active / touched, 1.0)
        whole_s = hardware.operators.product_s(form.bits, each, fused_rows, tensor.cols)
        return whole_s * tensor.rows / fused_rows * tensor.count * touched
    measured = hardware.product_time(product_kind(tensor, form))
    if measured is not None:
        return tensor.elements * measured.seconds(tokens)
    return max(2 * tensor.elements * tensor.active * tokens / flop_per_s(hardware), read_bytes / bytes_per_s(hardware))


def touched_share(tensor: TensorSpec, tokens: int) -> float:
    """The share of a matrix's experts that a step of so many tokens touches.

    >>> touched_share(TensorSpec("w", 0, 64, 64, count=4, active=0.5), 2)
    0.75
    """
    return 1 - (1 - tensor.active) ** tokens


def attention_s(
    layer: LayerSpec,
    bits: float,
    batch: int,
    tokens: Floats,
    held: Floats,
    read_bytes: Floats,
    decode: bool,
    hardware: HardwareProfile,
) -> Floats:
    """Seconds of one KV head's attention in each of some steps, expansion apart.  [steps]

    tokens      [steps] new ones of each sequence
    held        [steps] slots they attend to, beside one another; when decoding, the new token's own among them
    read_bytes  [steps] of the fastest tier, the whole batch together
    """
    if hardware.operators is not None:
        whole_s = hardware.operators.attention_s(layer, bits, batch, tokens, held, decode)
        # A call is counted with the classes of heads.
        return np.maximum(whole_s - hardware.kernel_overhead_s, 0.0) / layer.kv_heads
    # Multiplications of a query's number with a cached one; of a prompt's tokens with all that is filled and with one
    # another, what a window hides included.
    seen = held if decode else held + tokens
    work = 2 * layer.group * layer.head_dim * batch * tokens * seen
    measured = hardware.attention_time(bits, layer.head_dim)
    if measured is not None:
        return np.asarray(work * _at(measured.decode if decode else measured.prefill, seen))
    return np.maximum(2 * work / flop_per_s(hardware), read_bytes / bytes_per_s(hardware))


def _at(points: tuple[tuple[int, float], ...], slots: Floats) -> Floats:
    """Seconds at each number of slots: linear between points, the nearest point's outside of them."""
    sizes, seconds = zip(*points, strict=True)
    return np.asarray(np.interp(slots, sizes, seconds))


def fused_rows(tensor: TensorSpec, layer: Iterable[TensorSpec]) -> int:
    """Rows of the call that a matrix of a layer is fused into on a GPU: its own and its siblings'.

    >>> q, k, o = (TensorSpec(f"0.{name}.weight", 0, rows, 64) for name, rows in (("q_proj", 64), ("k_proj", 32),
    ...     ("o_proj", 64)))
    >>> fused_rows(q, (q, k, o)), fused_rows(o, (q, k, o))
    (96, 64)
    """
    for names in FUSED:
        if any(name in tensor.name for name in names):
            like = [other for other in layer if any(name in other.name for name in names) and other.cols == tensor.cols]
            return sum(other.rows for other in like)
    return tensor.rows


def product_kind(tensor: TensorSpec, form: WeightFormat) -> str:
    """How a hardware profile names the products of a matrix in a format.

    >>> matrix = TensorSpec("w", 0, 64, 64)
    >>> product_kind(matrix, WeightFormat(32)), product_kind(matrix, WeightFormat(4, "block", 32))
    ('float32', 'block4')
    """
    if form.scheme in GGML:
        return form.scheme
    # Codes without a minimum are blocks like any others, whoever rounded them.
    scheme = "block" if form.scheme == "exact" and not has_minimum(tensor) else form.scheme
    return f"{scheme}{form.bits:g}"


def flop_per_s(hardware: HardwareProfile) -> float:
    """Throughput that products of dense numbers reach."""
    return hardware.flop_per_s(hardware.float_bits) * hardware.efficiency


def bytes_per_s(hardware: HardwareProfile) -> float:
    """Rate at which kernels read the fastest tier."""
    return hardware.fastest.read_bytes_per_s * hardware.efficiency
