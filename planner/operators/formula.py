"""Operator times by the fitted formulae of one framework on one GPU."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.errors import InputError
from planner.operators.attention import AttentionModel
from planner.operators.collective import AllReduceModel
from planner.operators.gemm import GemmModel
from planner.operators.sheet import GpuSheet

Floats = NDArray[np.float64]

STREAMING = 0.8
"""Share of the data sheet's bandwidth that kernels reach which only move bytes."""


@dataclass(frozen=True, slots=True)
class FormulaOperators:
    """A framework's operators on a GPU; `gemm` by kind.

    `weight_copies` as in `GemmModel.latency_s`: infinitely many in a model, six in the tables' benchmark.
    """

    sheet: GpuSheet
    gemm: Mapping[str, GemmModel]
    attention: AttentionModel
    all_reduce: AllReduceModel
    weight_copies: float = np.inf

    def gemm_s(self, kind: str, m: Floats, n: Floats | int, k: Floats | int) -> Floats:
        if kind not in self.gemm:
            raise InputError(f"{self.sheet.name}: no fitted products of kind {kind}; there are {', '.join(self.gemm)}")
        return self.gemm[kind].latency_s(self.sheet, kind, m, n, k, self.weight_copies)

    def decode_attention_s(
        self, batch: Floats, q_heads: int, kv_heads: int, head_dim: int, context: Floats, kv_bits: int
    ) -> Floats:
        rows, tokens = np.rint(batch).astype(np.int64), np.rint(context).astype(np.int64)
        return self.attention.decode_s(self.sheet, rows, q_heads, kv_heads, head_dim, tokens, kv_bits)

    def prefill_attention_s(
        self, batch: Floats, q_heads: int, kv_heads: int, head_dim: int, prompt: Floats, kv_bits: int
    ) -> Floats:
        rows, tokens = np.rint(batch).astype(np.int64), np.rint(prompt).astype(np.int64)
        return self.attention.prefill_s(self.sheet, rows, q_heads, kv_heads, head_dim, tokens, 0, kv_bits)

    def all_reduce_s(self, gpus: int, message_bytes: Floats) -> Floats:
        return self.all_reduce.latency_s(self.sheet, gpus, message_bytes)

    def memory_s(self, moved_bytes: Floats) -> Floats:
        return moved_bytes / (STREAMING * self.sheet.memory_bytes_per_s)
