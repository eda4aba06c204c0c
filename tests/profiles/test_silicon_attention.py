"""Fits of attention kernels: what they recover, what they must not see, and what the shipped ones promise."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from planner.operators.attention import AttentionModel, DecodeKernel
from planner.operators.attention_work import Calls
from planner.operators.sheet import GpuSheet
from planner.serde import dump, load
from profiles.silicon.attention_data import (
    DIRECTORY,
    AttentionTransfer,
    FittedAttention,
    attention_model,
    fitted,
    transfer,
)
from profiles.silicon.attention_kernels import attention_kernels
from profiles.silicon.attention_report import attention_reports, attention_roofline
from profiles.silicon.fit_attention import attention_documents, carried, errors, fit_kernel, fit_model, held_out_calls
from profiles.silicon.tables import DecodeTable, PrefillTable
from profiles.targets import gpu_sheet

A100 = gpu_sheet("a100")
H100 = gpu_sheet("h100")

# Rows of the vLLM tables (A100 0.14.0, H100 0.24.0) that no fit saw: batch, query heads, KV heads, head size, new
# tokens, cached tokens, KV bits, window, milliseconds. From NVIDIA aiconfigurator 0.12.0, Apache-2.0, Copyright (c)
# 2025-2026 NVIDIA CORPORATION & AFFILIATES.
MEASURED = {
    "a100": (
        (8, 32, 8, 128, 1, 127, 16, 0, 0.019760),
        (64, 64, 8, 128, 1, 63, 16, 0, 0.037019),
        (8, 64, 8, 128, 1, 1023, 16, 0, 0.043312),
        (512, 32, 8, 128, 1, 7, 16, 0, 0.174011),
        (2, 64, 8, 128, 10240, 0, 16, 0, 19.525846),
        (32, 64, 8, 128, 256, 0, 16, 0, 0.508480),
        (8, 32, 8, 128, 16, 0, 16, 0, 0.019109),
        (8, 64, 8, 128, 1536, 0, 16, 0, 2.055899),
    ),
    "h100": (
        (1024, 64, 8, 128, 1, 63, 8, 128, 0.232784),
        (32, 64, 8, 128, 1, 8191, 8, 0, 0.204571),
        (8, 64, 8, 128, 1, 3, 16, 0, 0.012341),
        (32, 64, 8, 128, 1, 8191, 16, 128, 0.019264),
        (8, 32, 8, 128, 6144, 0, 8, 0, 4.646539),
        (16, 32, 8, 128, 6144, 0, 8, 128, 1.965755),
        (1, 64, 8, 128, 32, 0, 16, 0, 0.014656),
        (8, 64, 8, 128, 1536, 0, 16, 0, 0.700875),
    ),
}


def grid(prompt: int = 1) -> Calls:
    """A few hundred calls of a model's sizes; of one new token after a context, or prompts with nothing cached."""
    batch, heads, tokens = np.meshgrid([1, 4, 16, 64, 256, 1024], [1, 2, 4, 8], 2 ** np.arange(4, 15), indexing="ij")
    one = np.ones(batch.size, np.int64)
    step = prompt == 1
    return Calls(
        batch=batch.ravel(),
        q_heads=4 * heads.ravel(),
        kv_heads=heads.ravel(),
        head_dim=128 * one,
        prompt=one if step else tokens.ravel(),
        prefix=tokens.ravel() if step else 0 * one,
        kv_bits=16 * one,
        compute_bits=16 * one,
        window=0 * one,
    )


def tables(calls: Calls, prompts: Calls, step_s: np.ndarray, prompt_s: np.ndarray) -> tuple[DecodeTable, PrefillTable]:
    sizes = ("batch", "q_heads", "kv_heads", "head_dim", "kv_bits", "window")
    of = {name: getattr(calls, name) for name in sizes}
    decode = DecodeTable(framework="vllm", version="1", context=calls.context, latency_s=step_s, **of)
    of = {name: getattr(prompts, name) for name in (*sizes, "prompt", "prefix", "compute_bits")}
    return decode, PrefillTable(framework="vllm", version="1", latency_s=prompt_s, **of)


@pytest.mark.parametrize("prompt", [1, 2])
def test_a_fit_finds_the_kernel_that_made_the_latencies(prompt: int) -> None:
    calls = grid(prompt)
    model = fitted("a100").frameworks["vllm"].model
    start = attention_kernels("vllm", A100.architecture)
    made, kernel = (model.decode[0], start.decode[0]) if prompt == 1 else (model.prefill[0], start.prefill[0])
    latency_s = made.latency_s(A100, calls, made.work(A100, calls))
    found = fit_kernel(kernel, A100, calls, latency_s)
    before = np.abs(kernel.latency_s(A100, calls, kernel.work(A100, calls)) / latency_s - 1).mean()
    after = np.abs(found.latency_s(A100, calls, found.work(A100, calls)) / latency_s - 1).mean()
    assert after < 0.015 < before / 2


def test_a_fit_never_sees_the_shapes_kept_out() -> None:
    steps, prompts = grid(), grid(2)
    start = attention_kernels("vllm", A100.architecture)
    step_s, prompt_s = np.full(len(steps.batch), 1e-4), np.full(len(prompts.batch), 1e-4)
    step_s += 1e-9 * steps.kv_bytes
    model = fit_model(start, A100, *tables(steps, prompts, step_s, prompt_s))
    kept_out = held_out_calls(steps)
    assert 0.2 < kept_out.mean() < 0.45
    spoilt = np.where(kept_out, 100 * step_s, step_s)
    assert fit_model(start, A100, *tables(steps, prompts, spoilt, prompt_s)) == model
    error = errors(model, A100, *tables(steps, prompts, spoilt, prompt_s))["decode, all"]
    assert error.rows == kept_out.sum()
    assert error.mape > 0.9


def test_kernels_without_rows_are_left_out() -> None:
    steps, prompts = grid(), grid(2)
    seconds = np.full(len(steps.batch), 1e-4)
    model = fit_model(attention_kernels("vllm", "sm_90"), H100, *tables(steps, prompts, seconds, seconds))
    assert [kernel.name for kernel in (*model.decode, *model.prefill)] == ["fa3", "fa3"]


@pytest.mark.parametrize("gpu", ["a100", "h100"])
def test_shipped_fits_predict_measured_rows(gpu: str) -> None:
    model = attention_model(gpu_sheet(gpu), "vllm").model
    rows = np.array(MEASURED[gpu])
    sizes = rows[:, :8].astype(np.int64)
    predicted = model.prefill_s(gpu_sheet(gpu), *sizes.T)
    error = np.abs(predicted / (rows[:, 8] * 1e-3) - 1)
    assert error.mean() < 0.1
    assert error.max() < 0.3


def test_shipped_errors_are_what_is_claimed() -> None:
    for gpu in ("a100", "h100"):
        promised = fitted(gpu).frameworks["vllm"].errors
        assert promised["decode, all"].mape < 0.12
        assert promised["prefill, all"].mape < 0.10
    for name, found in transfer().errors.items():
        if name.startswith("vllm"):
            assert found["decode, all"].mape < 0.25
            assert found["prefill, all"].mape < 0.25


@pytest.mark.parametrize("path", sorted(DIRECTORY.glob("attention-*.yaml")), ids=lambda path: path.stem)
def test_shipped_documents_read_back_as_they_were_written(path: Path) -> None:
    kind: type = AttentionTransfer if path.stem == "attention-transfer" else FittedAttention
    document = load(path.read_text(), kind, path.name)
    assert dump(document) == path.read_text()


def test_a_gpu_with_a_sheet_only_borrows_the_fit_of_its_architecture() -> None:
    own, near, far = (attention_model(gpu_sheet(name), "vllm") for name in ("h100", "h200", "b200"))
    assert (own.fitted_on, near.fitted_on, far.fitted_on) == ("h100", "h100", "h100")
    assert near.model == own.model
    # What it is told of its error is what leaving a GPU out showed, not the fit's own.
    assert near.errors["decode, all"].mape > own.errors["decode, all"].mape


def test_more_bandwidth_makes_a_long_step_faster_by_as_much() -> None:
    model = attention_model(H100, "vllm").model
    slow, fast = (model.decode_s(gpu_sheet(name), 64, 32, 8, 128, 65536, 16) for name in ("h100", "h200"))
    assert slow / fast == pytest.approx(4.8 / 3.35, rel=0.15)


def test_an_unknown_framework_is_taken_for_vllm_and_says_so() -> None:
    found = attention_model(H100, "llama")
    assert (found.framework, found.model) == ("vllm", attention_model(H100, "vllm").model)


def test_another_gpus_figures_are_carried_into_ones_own_kernels() -> None:
    source = fitted("a100").frameworks["vllm"].model
    kernels = attention_kernels("vllm", "sm_90")
    model = carried(source, kernels)
    given = source.decode[0]
    assert [kernel.name for kernel in model.decode] == ["fa4", "fa3", "fa3-8"]
    for kernel in model.decode:
        assert isinstance(kernel, DecodeKernel)
        assert (kernel.schedule, kernel.resident, kernel.alone) == ("fa3", 1, 1.0)
        assert replace(kernel, name="", serves=given.serves, schedule="fa2", resident=2, alone=given.alone) == replace(
            given, name=""
        )


def test_a_roofline_counts_the_keys_that_queries_see() -> None:
    calls = replace(grid(2).take(np.arange(len(grid(2).batch)) == 0), prompt=np.array([50]), prefix=np.array([7]))
    for window in (0, 1, 5, 20, 40):
        seen = sum(min(7 + i + 1, window or 99) for i in range(50))
        flop_s, _ = attention_roofline(H100, replace(calls, window=np.array([window])))
        assert flop_s[0] == pytest.approx(4 * 4 * 128 * seen / H100.rate("bf16"))


def write_tables(directory: Path, model: AttentionModel, sheet: GpuSheet, slower: float) -> None:
    """Tables of the grid's calls as a model predicts them, times a factor."""
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    for phase, calls in (("generation", grid()), ("context", grid(2))):
        path = directory / "attention" / "vllm" / "1" / f"{phase}_attention_perf.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        columns = {
            "batch_size": calls.batch,
            "isl": calls.prompt,
            "num_heads": calls.q_heads,
            "num_key_value_heads": calls.kv_heads,
            "head_dim": calls.head_dim,
            "beam_width": np.ones_like(calls.batch),
            "attn_dtype": np.full(len(calls.batch), "bfloat16"),
            "kv_cache_dtype": np.full(len(calls.batch), "bfloat16"),
            "step": calls.prefix,
            "latency": slower * 1e3 * model.latency_s(sheet, calls),
        }
        parquet.write_table(arrow.table(columns), path)


def test_a_report_covers_every_table_on_held_out_shapes_only(tmp_path: Path) -> None:
    write_tables(tmp_path, attention_model(H100, "vllm").model, H100, slower=1.2)
    for report in attention_reports(tmp_path, H100, backed=True):
        kept = held_out_calls(grid(1 if report.phase == "decode" else 2)).sum()
        assert report.backed is not None
        assert report.formula["all"].rows == report.roofline["all"].rows == kept
        # Every latency is the formula's times 1.2, which the other shapes tell.
        assert report.formula["all"].mape == pytest.approx(1 - 1 / 1.2, abs=1e-3)
        assert report.backed["all"].mape < 0.03
        assert report.three_constants["all"].mape < report.roofline["all"].mape


def test_documents_are_a_fit_a_gpu_and_the_error_of_leaving_each_out(tmp_path: Path) -> None:
    for sheet in (A100, H100):
        write_tables(tmp_path / sheet.name, attention_model(sheet, "vllm").model, sheet, slower=1.0)
    fits, lent = attention_documents([(tmp_path / s.name, s) for s in (A100, H100)], "2026-01-01", "made", "none")
    assert [fit.gpu for fit in fits] == ["a100", "h100"]
    assert fits[1].frameworks["vllm"].errors["prefill, all"].mape < 0.03
    assert (lent.nearest["sm_89"], lent.otherwise) == ("a100", "h100")
    assert set(lent.errors) == {"vllm, a100 to h100", "vllm, h100 to a100"}
    for found in lent.errors.values():
        assert found["decode, all"].mape > 0.03
