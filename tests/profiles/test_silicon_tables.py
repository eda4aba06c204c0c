"""Tables of measured operators: what is read, what is left out and counted, and what is refused in one line.

The rows are of NVIDIA aiconfigurator 0.12.0, systems/data/a100_sxm (vLLM 0.14.0): Apache-2.0, Copyright (c) 2025-2026
NVIDIA CORPORATION & AFFILIATES.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from planner.errors import InputError
from profiles.silicon.regimes import accuracy, by_regime, gemm_regimes
from profiles.silicon.split import held_out
from profiles.silicon.tables import decode_tables, gemm_tables, prefill_tables

Columns = Mapping[str, Sequence[object]]

GEMM: Columns = {
    "gemm_dtype": ["bfloat16"] * 5,
    "m": [1, 64, 1024, 8192, 16],
    "n": [4096, 4096, 4096, 8192, 256],
    "k": [4096, 4096, 4096, 8192, 1024],
    "latency": [
        0.024080889092551336,
        0.027181333965725366,
        0.20388621754121644,
        3.743376837836372,
        0.005963555640644497,
    ],
}
DECODE: Columns = {
    "batch_size": [8, 8],
    "isl": [1, 1],
    "num_heads": [32, 32],
    "num_key_value_heads": [8, 8],
    "head_dim": [128, 128],
    "beam_width": [1, 1],
    "attn_dtype": ["bfloat16", "bfloat16"],
    "kv_cache_dtype": ["bfloat16", "bfloat16"],
    "step": [16383, 32767],
    "latency": [0.34162131945292157, 0.6513226826985677],
}
PREFILL: Columns = {
    **DECODE,
    "batch_size": [1, 1],
    "isl": [12288, 16384],
    "step": [0, 0],
    "latency": [7.186682383219401, 12.505157470703125],
}


def written(root: Path, columns: Columns, operator: str = "gemm", name: str = "gemm_perf") -> Path:
    folder = root / operator / "vllm" / "0.14.0"
    folder.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table(dict(columns)), folder / f"{name}.parquet")
    return root


def test_a_table_is_read_in_seconds_and_in_our_names(tmp_path: Path) -> None:
    found = gemm_tables(written(tmp_path, GEMM))
    (table,) = found.tables
    assert (table.framework, table.version, table.kind, found.notes) == ("vllm", "0.14.0", "bf16", ())
    assert table.m.tolist() == GEMM["m"] and table.latency_s[2] == pytest.approx(2.0388621754121644e-4)


def test_a_decode_step_attends_to_the_token_it_adds(tmp_path: Path) -> None:
    (table,) = decode_tables(written(tmp_path, DECODE, "attention", "generation_attention_perf")).tables
    assert table.context.tolist() == [16384, 32768]
    assert table.window.tolist() == [0, 0] and table.kv_bits.tolist() == [16, 16]


def test_a_prefill_has_a_prompt_and_a_prefix(tmp_path: Path) -> None:
    (table,) = prefill_tables(written(tmp_path, PREFILL, "attention", "context_attention_perf")).tables
    assert (table.prompt.tolist(), table.prefix.tolist(), table.compute_bits.tolist()) == (
        [12288, 16384],
        [0, 0],
        [16, 16],
    )


def test_rows_no_model_prices_are_counted_and_the_rest_is_read(tmp_path: Path) -> None:
    odd = {**GEMM, "gemm_dtype": ["bfloat16", "w3a5", "fp8", "w3a5", "fp8"], "latency": [1.0, 1.0, 0.0, 1.0, 2.0]}
    found = gemm_tables(written(tmp_path, odd))
    assert [(table.kind, len(table.m)) for table in found.tables] == [("bf16", 1), ("fp8", 1)]
    assert found.notes == (
        "vllm 0.14.0 gemm_perf: 2 rows of a kind without a model",
        "vllm 0.14.0 gemm_perf: 1 rows without a size or a latency",
    )


def test_attention_of_another_sort_is_counted(tmp_path: Path) -> None:
    odd = {**DECODE, "beam_width": [4, 1], "num_key_value_heads": [8, 5]}
    with pytest.raises(InputError, match="none of its 2 rows is attention that our models price"):
        decode_tables(written(tmp_path, odd, "attention", "generation_attention_perf"))
    odd = {**DECODE, "kv_cache_dtype": ["int3", "fp8"]}
    found = decode_tables(written(tmp_path, odd, "attention", "generation_attention_perf"))
    assert found.tables[0].kv_bits.tolist() == [8]
    assert found.notes == ("vllm 0.14.0 generation_attention_perf: 1 rows of a type without a model",)


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        (
            {name: column for name, column in GEMM.items() if name != "k"},
            "no column k; it has gemm_dtype, latency, m, n",
        ),
        ({name: [] for name in GEMM}, "an empty table"),
        ({**GEMM, "latency": ["soon"] * 5}, "column latency: expected milliseconds, found"),
        ({**GEMM, "m": ["many"] * 5}, "column m: expected whole numbers, found"),
        ({**GEMM, "m": [1.5] * 5}, "column m: expected whole numbers, found float64 1.5"),
        ({**GEMM, "latency": [float("nan")] * 5}, "none of its 5 rows has a size and a latency above 0"),
        ({**GEMM, "n": [0] * 5}, "none of its 5 rows has a size and a latency above 0"),
    ],
)
def test_a_broken_table_is_refused_in_one_line(tmp_path: Path, columns: Columns, found: str) -> None:
    with pytest.raises(InputError, match=found) as refused:
        gemm_tables(written(tmp_path, columns))
    assert "gemm_perf.parquet" in str(refused.value) and "\n" not in str(refused.value)


def test_a_file_of_another_format_is_refused(tmp_path: Path) -> None:
    written(tmp_path, GEMM)
    next(tmp_path.rglob("*.parquet")).write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(InputError, match="not a parquet table"):
        gemm_tables(tmp_path)


def test_a_directory_without_tables_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no table; expected gemm/<framework>/<version>/gemm_perf\.parquet below it"):
        gemm_tables(tmp_path / "nowhere")


def test_without_the_reader_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, GEMM)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"pip install llm-planner\[silicon\]"):
        gemm_tables(tmp_path)


def test_a_third_of_the_shapes_is_kept_out_whatever_the_sizes() -> None:
    m, n = (axis.ravel() for axis in np.meshgrid(np.arange(1, 400), 2 ** np.arange(17)))
    out = held_out(m, n)
    assert out.mean() == pytest.approx(1 / 3, abs=0.02)
    assert all(0.2 < out[n == size].mean() < 0.47 for size in 2 ** np.arange(17))


@given(st.lists(st.tuples(st.integers(0, 2**40), st.integers(0, 2**40)), min_size=1, max_size=20))
def test_a_shape_falls_on_one_side_wherever_it_stands(shapes: list[tuple[int, int]]) -> None:
    columns = np.array(shapes, np.int64).T
    backwards = held_out(*columns[:, ::-1])[::-1]
    assert held_out(*columns).tolist() == backwards.tolist()


def test_regimes_of_large_products_share_no_row_and_leave_none() -> None:
    m, n, k = (np.array(axis) for axis in ([1, 64, 65, 1023, 1024, 9], [1024] * 5 + [512], [2048] * 6))
    regimes = gemm_regimes(m, n, k)
    parts = [mask for name, mask in regimes.items() if "m" in name]
    assert len(parts) == 3 and (np.sum(parts, axis=0) == regimes["n,k >= 1024"]).all()
    assert regimes["all"].all() and not regimes["n,k >= 1024"][-1]


def test_the_error_is_a_share_of_what_was_measured() -> None:
    found = by_regime(np.array([2.0, 1.0]), np.array([1.0, 1.0]), gemm_regimes(*np.full((3, 2), 2048)))
    assert found["all"].mape == 0.5 and "n,k >= 1024, decode m <= 64" not in found
    assert accuracy(np.array([]), np.array([])).rows == 0
