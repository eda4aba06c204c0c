"""Operators answered by a GPU's measured tables, and by a model where no table reaches."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from planner.operators.step import Operators
from profiles.silicon.grid import Grid
from profiles.silicon.tables import (
    DecodeTable,
    GemmTable,
    PrefillTable,
    ScaleTable,
    decode_tables,
    gemm_tables,
    prefill_tables,
    scale_tables,
)

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


class _Versioned(Protocol):
    @property
    def framework(self) -> str: ...

    @property
    def version(self) -> str: ...


T = TypeVar("T", bound=_Versioned)


@dataclass(frozen=True, slots=True, eq=False)
class FrameworkTables:
    """What one framework measured on one GPU, in its newest version of each table; None or empty where it did not."""

    gemm: tuple[GemmTable, ...]
    scale: ScaleTable | None
    decode: DecodeTable | None
    prefill: PrefillTable | None


def framework_tables(directory: Path) -> dict[str, FrameworkTables]:
    """Every framework's tables in a directory as `tables` reads it; InputError where one is missing or broken."""
    gemm, scale = gemm_tables(directory).tables, scale_tables(directory)
    decode, prefill = decode_tables(directory).tables, prefill_tables(directory).tables
    kinds = sorted({table.kind for table in gemm})
    found = {}
    for framework in sorted({table.framework for table in gemm}):
        newest = (_newest([table for table in gemm if table.kind == kind], framework) for kind in kinds)
        found[framework] = FrameworkTables(
            gemm=tuple(table for table in newest if table is not None),
            scale=_newest(scale, framework),
            decode=_newest(decode, framework),
            prefill=_newest(prefill, framework),
        )
    return found


class MeasuredOperators:
    """A framework's tables over a model: what was measured, and between its shapes the model times what it was off by.

    `model` answers for a deployment, `benchmark` for the conditions of the tables: small weights stay in the cache of a
    benchmark, and of no transformer. What differs between the two carries over to the answer.

    Tables of per-tensor fp8 find the activations' scale at every product. Checkpoints store the scale, and a runtime
    then skips the kernel that finds it, so that kernel's time is taken off again where it was measured by itself.
    """

    def __init__(self, tables: FrameworkTables, model: Operators, benchmark: Operators) -> None:
        self._tables = tables
        self._model = model
        self._benchmark = benchmark
        self._gemm = {table.kind: table for table in tables.gemm}
        self._scale = Grid.of((tables.scale.m, tables.scale.k), tables.scale.latency_s) if tables.scale else None
        # Interpolated when first asked for: a model needs a few of several hundred combinations of heads.
        self._grids: dict[tuple[str | int, ...], Grid | None] = {}

    def gemm_s(self, kind: str, m: Floats, n: Floats | int, k: Floats | int) -> Floats:
        latency = self._model.gemm_s(kind, m, n, k)
        if kind not in self._gemm:
            return latency
        if (kind,) not in self._grids:
            table = self._gemm[kind]
            expected = self._benchmark.gemm_s(kind, table.m.astype(float), table.n.astype(float), table.k.astype(float))
            self._grids[(kind,)] = Grid.of((table.m, table.n, table.k), np.log(table.latency_s / expected))
        latency = _corrected(latency, self._grids[(kind,)], m, n, k)
        if kind == "fp8" and self._scale is not None:
            # Tables of different days do not subtract exactly; what is left is never less than this share.
            latency = np.maximum(latency - np.nan_to_num(self._scale.at(m, k)), 0.3 * latency)
        return latency

    def decode_attention_s(
        self, batch: Floats, q_heads: int, kv_heads: int, head_dim: int, context: Floats, kv_bits: int
    ) -> Floats:
        key = ("decode", q_heads, kv_heads, head_dim, kv_bits)
        table = self._tables.decode
        if key not in self._grids:
            rows = _rows(table, q_heads, kv_heads, head_dim, kv_bits)
            self._grids[key] = None
            if table is not None and rows.any():
                sizes = table.batch[rows], table.context[rows]
                expected = self._benchmark.decode_attention_s(
                    sizes[0].astype(float), q_heads, kv_heads, head_dim, sizes[1].astype(float), kv_bits
                )
                self._grids[key] = Grid.of(sizes, np.log(table.latency_s[rows] / expected))
        latency = self._model.decode_attention_s(batch, q_heads, kv_heads, head_dim, context, kv_bits)
        return _corrected(latency, self._grids[key], batch, context)

    def prefill_attention_s(
        self, batch: Floats, q_heads: int, kv_heads: int, head_dim: int, prompt: Floats, kv_bits: int
    ) -> Floats:
        key = ("prefill", q_heads, kv_heads, head_dim, kv_bits)
        table = self._tables.prefill
        if key not in self._grids:
            rows = _rows(table, q_heads, kv_heads, head_dim, kv_bits)
            self._grids[key] = None
            if table is not None and rows.any():
                rows &= table.prefix == 0
                # Queries stay in 16 bits unless nothing else was measured.
                rows &= table.compute_bits == table.compute_bits[rows].max()
                sizes = table.batch[rows], table.prompt[rows]
                expected = self._benchmark.prefill_attention_s(
                    sizes[0].astype(float), q_heads, kv_heads, head_dim, sizes[1].astype(float), kv_bits
                )
                self._grids[key] = Grid.of(sizes, np.log(table.latency_s[rows] / expected))
        latency = self._model.prefill_attention_s(batch, q_heads, kv_heads, head_dim, prompt, kv_bits)
        return _corrected(latency, self._grids[key], batch, prompt)

    def all_reduce_s(self, gpus: int, message_bytes: Floats) -> Floats:
        return self._model.all_reduce_s(gpus, message_bytes)

    def memory_s(self, moved_bytes: Floats) -> Floats:
        return self._model.memory_s(moved_bytes)


def _corrected(latency: Floats, log_ratio: Grid | None, *sizes: Floats | int) -> Floats:
    """The model's latency times the ratio, where there is one."""
    if log_ratio is None:
        return latency
    corrected: Floats = latency * np.exp(np.nan_to_num(log_ratio.at(*sizes)))
    return corrected


def _rows(table: DecodeTable | PrefillTable | None, q_heads: int, kv_heads: int, head_dim: int, kv_bits: int) -> Mask:
    """Rows of these heads without a window."""
    if table is None:
        return np.zeros(0, np.bool_)
    heads = (table.q_heads == q_heads) & (table.kv_heads == kv_heads) & (table.head_dim == head_dim)
    rows: Mask = heads & (table.kv_bits == kv_bits) & (table.window == 0)
    return rows


def _newest(tables: Sequence[T], framework: str) -> T | None:
    """The framework's table of the highest version: 0.5.14 is above 0.5.6.post2."""
    ours = [table for table in tables if table.framework == framework]
    return max(ours, key=lambda table: [int(part) for part in re.findall(r"\d+", table.version)], default=None)
