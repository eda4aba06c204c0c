"""Operator times by the roofline alone: operations over peak rate, bytes over peak bandwidth, whichever is longer."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.operators.sheet import GpuSheet

Floats = NDArray[np.float64]

# What the products compute in, and how many bits each weight is stored in.
_KINDS = {
    "bf16": ("bf16", 16),
    "fp8": ("fp8", 8),
    "fp8_block": ("fp8", 8),
    "int8": ("int8", 8),
    "int8_wo": ("bf16", 8),
    "int4_wo": ("bf16", 4),
    "fp4": ("fp4", 4),
}


@dataclass(frozen=True, slots=True)
class Roofline:
    """Operators of a GPU at its data-sheet rates (Williams et al., CACM 2009): a bound, no estimate."""

    sheet: GpuSheet

    def gemm_s(self, kind: str, m: Floats, n: Floats | int, k: Floats | int) -> Floats:
        """[m, k] x [k, n]; operands at the width of the kind, results in 16 bits."""
        computed, bits = _KINDS[kind]
        activation_bytes = 2 if computed == "bf16" else bits / 8
        moved_bytes = bits / 8 * n * k + activation_bytes * m * k + 2 * m * n
        return self._longer(2 * m * n * k, computed, moved_bytes)

    def decode_attention_s(
        self, batch: Floats, q_heads: int, kv_heads: int, head_dim: int, context: Floats, kv_bits: int
    ) -> Floats:
        """One new token for each sequence: the cache is read once, whatever the query heads that share it."""
        operations = 4 * batch * context * q_heads * head_dim
        return self._longer(operations, "bf16", 2 * batch * context * kv_heads * head_dim * kv_bits / 8)

    def prefill_attention_s(
        self, batch: Floats, q_heads: int, kv_heads: int, head_dim: int, prompt: Floats, kv_bits: int
    ) -> Floats:
        """Causal attention, half of the square."""
        moved_bytes = batch * prompt * head_dim * (2 * 2 * q_heads + 2 * kv_heads * kv_bits / 8)
        return self._longer(2 * batch * prompt**2 * q_heads * head_dim, "bf16", moved_bytes)

    def all_reduce_s(self, gpus: int, message_bytes: Floats) -> Floats:
        """Each GPU sends and receives 2 (gpus - 1) / gpus of the message."""
        if gpus == 1:
            return np.zeros(message_bytes.shape)
        link = self.sheet.link_bytes_per_s or self.sheet.pcie_bytes_per_s
        latency: Floats = 2 * (gpus - 1) / gpus * message_bytes / link
        return latency

    def memory_s(self, moved_bytes: Floats) -> Floats:
        return moved_bytes / self.sheet.memory_bytes_per_s

    def _longer(self, operations: Floats, computed: str, moved_bytes: Floats) -> Floats:
        longer: Floats = np.maximum(operations / self.sheet.rate(computed), moved_bytes / self.sheet.memory_bytes_per_s)
        return longer
