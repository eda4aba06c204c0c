"""Operators answered by a GPU's measured tables, and by a model where no table reaches."""

import re
from collections.abc import Callable, Sequence
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
    decode_tables,
    gemm_tables,
    prefill_tables,
)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


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
    decode: DecodeTable | None
    prefill: PrefillTable | None


def framework_tables(directory: Path) -> dict[str, FrameworkTables]:
    """Every framework's tables in a directory as `tables` reads it; InputError where one is missing or broken."""
    gemm = gemm_tables(directory).tables
    decode, prefill = decode_tables(directory).tables, prefill_tables(directory).tables
    kinds = sorted({table.kind for table in gemm})
    found = {}
    for framework in sorted({table.framework for table in gemm}):
        newest = (_newest([table for table in gemm if table.kind == kind], framework) for kind in kinds)
        found[framework] = FrameworkTables(
            gemm=tuple(table for table in newest if table is not None),
            decode=_newest(decode, framework),
            prefill=_newest(prefill, framework),
        )
    return found


class MeasuredOperators:
    """A framework's tables over a model: what was measured, and between its shapes the model times what it was off by.

    `model` answers for a deployment, `benchmark` for the conditions of the tables: small weights stay in the cache of a
    benchmark, and of no transformer. What differs between the two carries over to the answer.
    """

    def __init__(self, tables: FrameworkTables, model: Operators, benchmark: Operators) -> None:
        self._model = model
        self._benchmark = benchmark
        self._gemm = {table.kind: table for table in tables.gemm}
        decode, prefill = tables.decode, tables.prefill
        self._decode = (
            _Phase(decode, decode.context, np.ones_like(decode.batch), benchmark.decode_attention_s) if decode else None
        )
        # Without a prefix, and with queries in 16 bits unless nothing else was measured.
        self._prefill = (
            _Phase(
                prefill, prefill.prompt, prefill.compute_bits - 32 * (prefill.prefix > 0), benchmark.prefill_attention_s
            )
            if prefill
            else None
        )
        # Interpolated when first asked for: a model needs few of several kinds.
        self._grids: dict[str, Grid] = {}

    def gemm_s(self, kind: str, m: Floats, n: Floats | int, k: Floats | int) -> Floats:
        latency = self._model.gemm_s(kind, m, n, k)
        table = self._gemm.get(kind)
        if table is None:
            return latency
        if kind not in self._grids:
            sizes = table.m, table.n, table.k
            expected = self._benchmark.gemm_s(kind, *(size.astype(np.float64) for size in sizes))
            self._grids[kind] = Grid.of(sizes, np.log(table.latency_s / expected))
        return _corrected(latency, self._grids[kind].at(m, n, k))

    def decode_attention_s(
        self, batch: Floats, q_heads: int, kv_heads: int, head_dim: int, context: Floats, kv_bits: int
    ) -> Floats:
        latency = self._model.decode_attention_s(batch, q_heads, kv_heads, head_dim, context, kv_bits)
        if self._decode is None:
            return latency
        return _corrected(latency, self._decode.log_ratio(batch, context, q_heads, kv_heads, head_dim, kv_bits))

    def prefill_attention_s(
        self, batch: Floats, q_heads: int, kv_heads: int, head_dim: int, prompt: Floats, kv_bits: int
    ) -> Floats:
        latency = self._model.prefill_attention_s(batch, q_heads, kv_heads, head_dim, prompt, kv_bits)
        if self._prefill is None:
            return latency
        return _corrected(latency, self._prefill.log_ratio(batch, prompt, q_heads, kv_heads, head_dim, kv_bits))

    def all_reduce_s(self, gpus: int, message_bytes: Floats) -> Floats:
        return self._model.all_reduce_s(gpus, message_bytes)

    def memory_s(self, moved_bytes: Floats) -> Floats:
        return self._model.memory_s(moved_bytes)


class _Phase:
    """One phase of attention: log(measured / model) over batch and tokens, for every combination of heads asked for.

    `tokens` are those of each row of the table. Of the rows of some heads those of the highest `preference` count, and
    none of 0 or less.
    """

    def __init__(
        self,
        table: DecodeTable | PrefillTable,
        tokens: Ints,
        preference: Ints,
        expected: Callable[[Floats, int, int, int, Floats, int], Floats],
    ) -> None:
        self._table = table
        self._tokens = tokens
        self._preference = preference
        self._expected = expected
        # Interpolated when first asked for: a model needs one of several hundred.
        self._grids: dict[tuple[int, int, int, int], Grid | None] = {}

    def log_ratio(
        self, batch: Floats, tokens: Floats, q_heads: int, kv_heads: int, head_dim: int, kv_bits: int
    ) -> Floats:
        """At each size; NaN for heads that were not measured."""
        heads = q_heads, kv_heads, head_dim, kv_bits
        if heads not in self._grids:
            self._grids[heads] = self._grid(*heads)
        grid = self._grids[heads]
        return np.full(np.shape(tokens), np.nan) if grid is None else grid.at(batch, tokens)

    def _grid(self, q_heads: int, kv_heads: int, head_dim: int, kv_bits: int) -> Grid | None:
        table = self._table
        rows = (table.q_heads == q_heads) & (table.kv_heads == kv_heads) & (table.head_dim == head_dim)
        rows &= (table.kv_bits == kv_bits) & (table.window == 0) & (self._preference > 0)
        if not rows.any():
            return None
        rows &= self._preference == self._preference[rows].max()
        sizes = table.batch[rows], self._tokens[rows]
        batch, tokens = (size.astype(np.float64) for size in sizes)
        expected = self._expected(batch, q_heads, kv_heads, head_dim, tokens, kv_bits)
        return Grid.of(sizes, np.log(table.latency_s[rows] / expected))


def _corrected(latency: Floats, log_ratio: Floats) -> Floats:
    """The model's latency times the ratio, as it is where there is none."""
    corrected: Floats = latency * np.exp(np.nan_to_num(log_ratio))
    return corrected


def _newest(tables: Sequence[T], framework: str) -> T | None:
    """The framework's table of the highest version: 0.5.14 is above 0.5.6.post2."""
    ours = [table for table in tables if table.framework == framework]
    return max(ours, key=lambda table: [int(part) for part in re.findall(r"\d+", table.version)], default=None)
