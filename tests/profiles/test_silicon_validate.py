"""planner validate silicon: the errors of known tables, on the rows that no fit saw and on no others."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from planner.errors import InputError
from profiles.silicon.attention_data import attention_model
from profiles.silicon.fit_gemm import WEIGHT_COPIES
from profiles.silicon.fitted import gemm_choice
from profiles.silicon.split import held_out
from profiles.silicon.validate import PREDICTORS, SiliconReport, validate_silicon
from profiles.targets import gpu_sheet

H100 = gpu_sheet("h100")
M, N, K = (
    size.ravel()
    for size in np.meshgrid([1, 8, 64, 512, 2048, 8192], [512, 2048, 8192], [1024, 4096, 16384], indexing="ij")
)
BATCH, TOKENS = (size.ravel() for size in np.meshgrid([1, 4, 16, 64], [128, 512, 2048, 8192], indexing="ij"))
SLOWER = 1.25


def write(directory: Path, operator: str, name: str, columns: dict[str, object], framework: str = "vllm") -> None:
    folder = directory / operator / framework / "1.0"
    folder.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table(columns), folder / f"{name}.parquet")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPU on which everything takes a quarter longer than the formulae say."""
    root = tmp_path_factory.mktemp("gpu")
    kinds, seconds = [], []
    for kind, name in (("bf16", "bfloat16"), ("fp8", "fp8")):
        kinds += [name] * len(M)
        seconds.append(gemm_choice(H100, "vllm", kind).model.latency_s(H100, kind, M, N, K, WEIGHT_COPIES))
    twice = {name: np.tile(column, 2) for name, column in (("m", M), ("n", N), ("k", K))}
    latency = SLOWER * 1e3 * np.concatenate(seconds)
    write(root, "gemm", "gemm_perf", {"gemm_dtype": kinds, **twice, "latency": latency})
    attention = attention_model(H100, "vllm").model
    shape = {
        "batch_size": BATCH,
        "num_heads": np.full_like(BATCH, 32),
        "num_key_value_heads": np.full_like(BATCH, 8),
        "head_dim": np.full_like(BATCH, 128),
        "beam_width": np.ones_like(BATCH),
        "attn_dtype": ["bfloat16"] * len(BATCH),
        "kv_cache_dtype": ["bfloat16"] * len(BATCH),
    }
    decode_s = attention.decode_s(H100, BATCH, 32, 8, 128, TOKENS + 1, 16)
    step = {**shape, "isl": np.ones_like(BATCH), "step": TOKENS, "latency": SLOWER * 1e3 * decode_s}
    write(root, "attention", "generation_attention_perf", step)
    prefill_s = attention.prefill_s(H100, BATCH, 32, 8, 128, TOKENS, 0, 16)
    prompt = {**shape, "isl": TOKENS, "step": np.zeros_like(BATCH), "latency": SLOWER * 1e3 * prefill_s}
    write(root, "attention", "context_attention_perf", prompt)
    return root


@pytest.fixture(scope="module")
def report(directory: Path) -> SiliconReport:
    return validate_silicon(directory, "h100")


def test_the_formula_is_off_by_what_the_gpu_is_slower_and_the_table_makes_up_for_it(report: SiliconReport) -> None:
    for line in report.lines:
        assert line.errors["formula"].mape == pytest.approx(1 - 1 / SLOWER, abs=1e-3)
        assert line.errors["with table"].mape < 0.5 * line.errors["formula"].mape
        assert line.regime != "all" or line.errors["roofline"].mape > line.errors["3 constants"].mape


def test_only_shapes_that_no_fit_saw_count(report: SiliconReport) -> None:
    kept = int(held_out(M, N, K).sum())
    rows = {(line.operator, line.regime): line.errors["formula"].rows for line in report.lines}
    assert rows["bf16 products", "all"] == kept
    assert rows["all products", "all"] == 2 * kept
    regimes = [count for (operator, name), count in rows.items() if operator == "all products" and "m " in name]
    assert sum(regimes) == rows["all products", "n,k >= 1024"] < 2 * kept


def test_every_line_has_every_predictor_and_the_text_shows_them(report: SiliconReport) -> None:
    assert all(tuple(line.errors) == PREDICTORS for line in report.lines)
    operators = {line.operator for line in report.lines}
    assert operators == {
        *("all products", "bf16 products", "fp8 products"),
        *("decode attention", "prefill attention"),
    }
    text = report.as_text()
    assert "decode attention, vllm 1.0" in text and "20.0" in text
    assert report.as_json()["target"] == "h100"


def test_a_gpu_without_a_fit_of_its_own_is_judged_by_what_carries_over(directory: Path) -> None:
    origins = " ".join(validate_silicon(directory, "h200").origins)
    assert "carried over" in origins or "fitted on h100" in origins


def test_a_framework_without_tables_is_refused(directory: Path) -> None:
    assert validate_silicon(directory, "h100", "vllm").lines
    with pytest.raises(InputError, match="no table of sglang; there are vllm"):
        validate_silicon(directory, "h100", "sglang")


def test_a_kind_that_the_gpu_cannot_multiply_is_left_out_and_said(directory: Path) -> None:
    report = validate_silicon(directory, "a100")
    assert "fp8 products" not in {line.operator for line in report.lines}
    (note,) = report.notes
    assert note.startswith(f"vllm 1.0: {len(M)} rows left out: a100: no throughput for fp8")
