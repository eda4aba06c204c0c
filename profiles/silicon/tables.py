"""Measured operator latencies of one GPU, read from a directory of parquet tables.

    DIR/gemm/<framework>/<version>/gemm_perf.parquet
    DIR/attention/<framework>/<version>/context_attention_perf.parquet
    DIR/attention/<framework>/<version>/generation_attention_perf.parquet

The layout and the columns are those of NVIDIA aiconfigurator (Apache-2.0, https://github.com/ai-dynamo/aiconfigurator);
latency is in milliseconds there and in seconds here. Columns that are not read may be anything. Rows that no model of
ours prices are left out and counted in a note.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from planner.errors import InputError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Texts = NDArray[np.str_]
Mask = NDArray[np.bool_]
T = TypeVar("T")

# The tables' names of types, and ours. fp8_ootb is TensorRT-LLM's fp8 by another plugin; sq is SmoothQuant, w8a8.
GEMM_KINDS: Mapping[str, str] = {
    "bfloat16": "bf16",
    "float16": "bf16",
    "bf16": "bf16",
    "fp16": "bf16",
    "fp8": "fp8",
    "fp8_static": "fp8",
    "fp8_ootb": "fp8",
    "fp8_block": "fp8_block",
    "int8_wo": "int8_wo",
    "int4_wo": "int4_wo",
    "sq": "int8",
    "int8": "int8",
    "nvfp4": "fp4",
}
BITS: Mapping[str, int] = {"bfloat16": 16, "float16": 16, "bf16": 16, "fp16": 16, "fp8": 8, "int8": 8}


@dataclass(frozen=True, slots=True, eq=False)
class GemmTable:
    """Products [m, k] x [k, n] of one kind (a value of GEMM_KINDS) by one framework; equally long arrays."""

    framework: str
    version: str
    kind: str
    m: Ints
    n: Ints
    k: Ints
    latency_s: Floats


@dataclass(frozen=True, slots=True, eq=False)
class DecodeTable:
    """One decode step of one layer's attention by one framework; equally long arrays.

    `context` counts the tokens attended to, the new one included; `window` is 0 where there is none.
    """

    framework: str
    version: str
    batch: Ints
    q_heads: Ints
    kv_heads: Ints
    head_dim: Ints
    context: Ints
    kv_bits: Ints
    window: Ints
    latency_s: Floats


@dataclass(frozen=True, slots=True, eq=False)
class PrefillTable:
    """One layer's causal attention over a prompt, after a cached prefix, by one framework; equally long arrays.

    `compute_bits` is the type the products run in (16, or 8 where queries are fp8 as well).
    """

    framework: str
    version: str
    batch: Ints
    q_heads: Ints
    kv_heads: Ints
    head_dim: Ints
    prompt: Ints
    prefix: Ints
    kv_bits: Ints
    compute_bits: Ints
    window: Ints
    latency_s: Floats


@dataclass(frozen=True, slots=True)
class Tables(Generic[T]):
    """What a directory holds of one operator, and what was left out: one line a reason, with its count of rows."""

    tables: tuple[T, ...]
    notes: tuple[str, ...]


def gemm_tables(directory: Path) -> Tables[GemmTable]:
    """One table a framework, version and kind; InputError where the directory has no GEMM table or one is broken."""
    tables: list[GemmTable] = []
    notes: list[str] = []
    for file in _files(directory, "gemm", "gemm_perf.parquet"):
        kind, unpriced = _translated(file.texts("gemm_dtype"), GEMM_KINDS)
        m, n, k = file.ints("m"), file.ints("n"), file.ints("k")
        latency_s, usable = file.latency_s((m > 0) & (n > 0) & (k > 0))
        notes += file.notes({"of a kind without a model": unpriced, "without a size or a latency": ~usable & ~unpriced})
        for one in sorted(set(kind[usable & ~unpriced].tolist())):
            rows = usable & (kind == one)
            tables.append(GemmTable(file.framework, file.version, one, m[rows], n[rows], k[rows], latency_s[rows]))
    return Tables(tuple(tables), tuple(notes))


def decode_tables(directory: Path) -> Tables[DecodeTable]:
    """One table a framework and version; InputError where the directory has none or one is broken."""
    tables: list[DecodeTable] = []
    notes: list[str] = []
    for file in _files(directory, "attention", "generation_attention_perf.parquet"):
        (batch, q_heads, kv_heads, head_dim), rows, latency_s = _attention(file, notes)
        tables.append(
            DecodeTable(
                framework=file.framework,
                version=file.version,
                batch=batch[rows],
                q_heads=q_heads[rows],
                kv_heads=kv_heads[rows],
                head_dim=head_dim[rows],
                context=(file.ints("step") + file.ints("isl"))[rows],
                kv_bits=file.bits("kv_cache_dtype")[rows],
                window=file.window()[rows],
                latency_s=latency_s[rows],
            )
        )
    return Tables(tuple(tables), tuple(notes))


def prefill_tables(directory: Path) -> Tables[PrefillTable]:
    """One table a framework and version; InputError where the directory has none or one is broken."""
    tables: list[PrefillTable] = []
    notes: list[str] = []
    for file in _files(directory, "attention", "context_attention_perf.parquet"):
        (batch, q_heads, kv_heads, head_dim), rows, latency_s = _attention(file, notes)
        tables.append(
            PrefillTable(
                framework=file.framework,
                version=file.version,
                batch=batch[rows],
                q_heads=q_heads[rows],
                kv_heads=kv_heads[rows],
                head_dim=head_dim[rows],
                prompt=file.ints("isl")[rows],
                prefix=file.ints("step")[rows],
                kv_bits=file.bits("kv_cache_dtype")[rows],
                compute_bits=file.bits("attn_dtype")[rows],
                window=file.window()[rows],
                latency_s=latency_s[rows],
            )
        )
    return Tables(tuple(tables), tuple(notes))


@dataclass(frozen=True, slots=True, eq=False)
class _File:
    """One parquet file in memory: columns by name."""

    path: Path
    framework: str
    version: str
    columns: Mapping[str, NDArray[np.generic]]

    def ints(self, name: str) -> Ints:
        """Whole numbers; 0 where the file has none."""
        column = self._column(name)
        if np.issubdtype(column.dtype, np.integer):
            return column.astype(np.int64)
        if np.issubdtype(column.dtype, np.floating):
            numbers = np.nan_to_num(column.astype(np.float64))
            if (numbers == np.rint(numbers)).all():
                return numbers.astype(np.int64)
        raise InputError(f"{self.path}: column {name}: expected whole numbers, found {column.dtype} {column[0]}")

    def texts(self, name: str) -> Texts:
        return self._column(name).astype(np.str_)

    def bits(self, name: str) -> Ints:
        """Bits of a type's name; 0 for one that BITS does not know."""
        names, where = np.unique(self.texts(name), return_inverse=True)
        return np.array([BITS.get(str(one), 0) for one in names], np.int64)[where]

    def window(self) -> Ints:
        """The attention window, 0 where the file knows none."""
        if "window_size" in self.columns:
            return np.maximum(self.ints("window_size"), 0)
        return np.zeros(len(self._column("latency")), np.int64)

    def latency_s(self, sized: Mask) -> tuple[Floats, Mask]:
        """Latency of every row, and which rows have both a latency and, by `sized`, a size."""
        column = self._column("latency")
        if not np.issubdtype(column.dtype, np.number):
            raise InputError(f"{self.path}: column latency: expected milliseconds, found {column.dtype}")
        latency_s = column.astype(np.float64) * 1e-3
        usable = sized & np.isfinite(latency_s) & (latency_s > 0)
        if not usable.any():
            raise InputError(f"{self.path}: none of its {len(column)} rows has a size and a latency above 0")
        return latency_s, usable

    def notes(self, left_out: Mapping[str, Mask]) -> Iterator[str]:
        for reason, rows in left_out.items():
            if rows.any():
                yield f"{self.framework} {self.version} {self.path.stem}: {int(rows.sum())} rows {reason}"

    def _column(self, name: str) -> NDArray[np.generic]:
        if name not in self.columns:
            raise InputError(f"{self.path}: no column {name}; it has {', '.join(sorted(self.columns))}")
        return self.columns[name]


def _attention(file: _File, notes: list[str]) -> tuple[Sequence[Ints], Mask, Floats]:
    """Batch, query heads, KV heads and head size; the rows our models price; every row's latency."""
    shape = [file.ints(name) for name in ("batch_size", "num_heads", "num_key_value_heads", "head_dim")]
    sized = np.all([column > 0 for column in shape], axis=0)
    sized &= (file.ints("step") >= 0) & (file.ints("isl") > 0)
    latency_s, usable = file.latency_s(sized)
    untyped = (file.bits("kv_cache_dtype") == 0) | (file.bits("attn_dtype") == 0)
    beams = file.ints("beam_width") != 1
    # Fewer query heads than KV heads, or a fraction of them to each, is no grouped-query attention.
    ungrouped = shape[1] % np.maximum(shape[2], 1) != 0
    priced = usable & ~untyped & ~beams & ~ungrouped
    notes += file.notes(
        {
            "of a type without a model": untyped,
            "of beam search": beams & ~untyped,
            "whose query heads do not share KV heads evenly": ungrouped & ~beams & ~untyped,
            "without a size or a latency": ~usable & ~ungrouped & ~beams & ~untyped,
        }
    )
    if not priced.any():
        raise InputError(f"{file.path}: none of its {len(priced)} rows is attention that our models price")
    return shape, priced, latency_s


def _translated(names: Texts, known: Mapping[str, str]) -> tuple[Texts, Mask]:
    """Our names of what the tables name, and which rows have none."""
    found, where = np.unique(names, return_inverse=True)
    ours = np.array([known.get(str(one), "") for one in found], np.str_)[where]
    return ours, ours == ""


def _files(directory: Path, operator: str, name: str) -> Iterator[_File]:
    """Every file of an operator below the directory, in the order of framework and version."""
    paths = sorted((directory / operator).glob(f"*/*/{name}"))
    if not paths:
        raise InputError(f"{directory}: no table; expected {operator}/<framework>/<version>/{name} below it")
    for path in paths:
        yield _File(path, path.parts[-3], path.parts[-2], _columns(path))


def _columns(path: Path) -> dict[str, NDArray[np.generic]]:
    """The columns of a parquet file; InputError where it is none, or empty."""
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError as error:
        raise InputError(f"{path}: reading it needs pyarrow; pip install llm-planner[silicon]") from error
    try:
        table = parquet.read_table(path)
    except (arrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a parquet table ({str(error).splitlines()[0]})") from error
    if table.num_rows == 0:
        raise InputError(f"{path}: an empty table")
    return {name: table.column(name).to_numpy() for name in table.column_names}
