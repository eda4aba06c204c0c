"""Operators over measured tables: the tables where they reach, the model elsewhere."""

from dataclasses import replace

import numpy as np
import pytest

from planner.operators.roofline import Roofline
from profiles.silicon.measured_operators import FrameworkTables, MeasuredOperators
from profiles.silicon.tables import DecodeTable, GemmTable, PrefillTable
from profiles.targets import gpu_sheet

MODEL = Roofline(gpu_sheet("h100"))
M, N, K = (size.ravel() for size in np.meshgrid([1, 16, 256], [1024, 4096], [1024, 8192], indexing="ij"))
ONE = np.ones(6, np.int64)
BATCH, TOKENS = (size.ravel() for size in np.meshgrid([1, 8], [128, 1024, 8192], indexing="ij"))


def gemm(kind: str, times: float) -> GemmTable:
    floats = [size.astype(float) for size in (M, N, K)]
    return GemmTable("vllm", "1", kind, M, N, K, times * MODEL.gemm_s(kind, *floats))


def decode(times: float) -> DecodeTable:
    latency_s = times * MODEL.decode_attention_s(BATCH.astype(float), 32, 8, 128, TOKENS.astype(float), 16)
    return DecodeTable("vllm", "1", BATCH, 32 * ONE, 8 * ONE, 128 * ONE, TOKENS, 16 * ONE, 0 * ONE, latency_s)


def prefill(times: float, compute_bits: int, prefix: int = 0) -> PrefillTable:
    latency_s = times * MODEL.prefill_attention_s(BATCH.astype(float), 32, 8, 128, TOKENS.astype(float), 8)
    heads = (BATCH, 32 * ONE, 8 * ONE, 128 * ONE, TOKENS, prefix * ONE, 8 * ONE, compute_bits * ONE, 0 * ONE)
    return PrefillTable("vllm", "1", *heads, latency_s)


NOTHING = FrameworkTables(gemm=(), decode=None, prefill=None)


def over(tables: FrameworkTables) -> MeasuredOperators:
    return MeasuredOperators(tables, MODEL, MODEL)


def test_without_tables_the_model_answers() -> None:
    m = np.array([1.0, 100.0])
    bare = over(NOTHING)
    assert (bare.gemm_s("bf16", m, 512, 512) == MODEL.gemm_s("bf16", m, 512, 512)).all()
    assert (bare.decode_attention_s(m, 32, 8, 128, m, 16) == MODEL.decode_attention_s(m, 32, 8, 128, m, 16)).all()
    assert (bare.prefill_attention_s(m, 32, 8, 128, m, 16) == MODEL.prefill_attention_s(m, 32, 8, 128, m, 16)).all()
    assert (bare.all_reduce_s(2, m) == MODEL.all_reduce_s(2, m)).all()
    assert (bare.memory_s(m) == MODEL.memory_s(m)).all()


def test_a_table_that_is_everywhere_twice_the_model_doubles_it_everywhere() -> None:
    operators = over(replace(NOTHING, gemm=(gemm("bf16", 2.0),), decode=decode(2.0)))
    m = np.array([1.0, 5.0, 300.0, 10_000.0])
    assert operators.gemm_s("bf16", m, 3000, 100_000) == pytest.approx(2 * MODEL.gemm_s("bf16", m, 3000, 100_000))
    doubled = operators.decode_attention_s(m, 32, 8, 128, 50 * m, 16)
    assert doubled == pytest.approx(2 * MODEL.decode_attention_s(m, 32, 8, 128, 50 * m, 16))


def test_kinds_and_heads_that_were_not_measured_are_the_models() -> None:
    operators = over(replace(NOTHING, gemm=(gemm("bf16", 2.0),), decode=decode(2.0)))
    m = np.array([4.0])
    assert operators.gemm_s("fp8", m, 1024, 1024) == MODEL.gemm_s("fp8", m, 1024, 1024)
    assert operators.decode_attention_s(m, 64, 8, 128, m, 16) == MODEL.decode_attention_s(m, 64, 8, 128, m, 16)


def test_what_a_deployment_does_otherwise_than_the_benchmark_carries_over() -> None:
    slow = Roofline(replace(MODEL.sheet, memory_bytes_per_s=MODEL.sheet.memory_bytes_per_s / 3))
    operators = MeasuredOperators(replace(NOTHING, gemm=(gemm("bf16", 2.0),)), slow, MODEL)
    assert operators.gemm_s("bf16", np.array([1.0]), 4096, 4096) == pytest.approx(
        6 * MODEL.gemm_s("bf16", np.array([1.0]), 4096, 4096)
    )


def test_queries_in_16_bits_and_prompts_without_a_prefix_come_first() -> None:
    tables = (prefill(5.0, 8), prefill(2.0, 16), prefill(9.0, 16, prefix=64))
    columns = {
        name: np.concatenate([getattr(table, name) for table in tables])
        for name in PrefillTable.__slots__
        if name not in ("framework", "version")
    }
    at = np.array([2.0])
    model_s = MODEL.prefill_attention_s(at, 32, 8, 128, 300 * at, 8)
    for kept, times in ((columns, 2.0), ({name: column[:6] for name, column in columns.items()}, 5.0)):
        operators = over(replace(NOTHING, prefill=PrefillTable("vllm", "1", **kept)))
        assert operators.prefill_attention_s(at, 32, 8, 128, 300 * at, 8) == pytest.approx(times * model_s)
    only_prefixed = over(replace(NOTHING, prefill=tables[2]))
    assert only_prefixed.prefill_attention_s(at, 32, 8, 128, 300 * at, 8) == pytest.approx(model_s)
