"""Operators answered by a GPU's measured tables, and by a model where no table reaches."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from planner.errors import InputError
from planner.operators.step import Operators
from profiles.silicon.grid import Grid
from profiles.silicon.tables import (
    DecodeTable,
    GemmTable,
    PrefillTable,
    decode_tables,
    gemm_tables,
    prefill_tables,
    scale_tables,
)

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class MeasuredOperators:
    """What a framework's tables measured; between and beside their shapes, a model times what it was off by nearby.

    gemm      by kind: log(measured / model) over (m, n, k)
    scale     seconds of finding an activation's scale, over (m, k)
    decode    by (query heads, KV heads, head size, KV bits): log(measured / model) over (batch, context)
    prefill   likewise, over (batch, prompt)

    Tables of per-tensor fp8 find the activations' scale at every product. Checkpoints store the scale, and a runtime
    then skips the kernel that finds it, so that kernel's time is taken off again where it was measured by itself.
    """

    model: Operators
    gemm: Mapping[str, Grid]
    scale: Grid | None
    decode: Mapping[tuple[int, int, int, int], Grid]
    prefill: Mapping[tuple[int, int, int, int], Grid]

    def gemm_s(self, kind: str, m: Floats, n: int, k: int) -> Floats:
        latency = self.model.gemm_s(kind, m, n, k)
        if kind not in self.gemm:
            return latency
        latency = _corrected(latency, self.gemm[kind].at(m, n, k))
        if kind == "fp8" and self.scale is not None:
            # Never below what moving the operands takes: two tables of different days do not subtract exactly.
            latency = np.maximum(latency - np.nan_to_num(self.scale.at(m, k)), 0.3 * latency)
        return latency

    def decode_attention_s(
        self, batch: Floats, q_heads: int, kv_heads: int, head_dim: int, context: Floats, kv_bits: int
    ) -> Floats:
        latency = self.model.decode_attention_s(batch, q_heads, kv_heads, head_dim, context, kv_bits)
        grid = self.decode.get((q_heads, kv_heads, head_dim, kv_bits))
        return latency if grid is None else _corrected(latency, grid.at(batch, context))

    def prefill_attention_s(
        self, batch: Floats, q_heads: int, kv_heads: int, head_dim: int, prompt: Floats, kv_bits: int
    ) -> Floats:
        latency = self.model.prefill_attention_s(batch, q_heads, kv_heads, head_dim, prompt, kv_bits)
        grid = self.prefill.get((q_heads, kv_heads, head_dim, kv_bits))
        return latency if grid is None else _corrected(latency, grid.at(batch, prompt))

    def all_reduce_s(self, gpus: int, message_bytes: Floats) -> Floats:
        return self.model.all_reduce_s(gpus, message_bytes)

    def memory_s(self, moved_bytes: Floats) -> Floats:
        return self.model.memory_s(moved_bytes)
