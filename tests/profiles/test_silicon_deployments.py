"""Measured deployments: how rows are read, and that no model has a say in the constants it is predicted with."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from planner.errors import InputError
from planner.operators.roofline import Roofline
from planner.operators.serving import Engine
from profiles.silicon.deployment_report import compare
from profiles.silicon.deployments import Deployment, read_deployments
from profiles.silicon.engine_fit import Server, bare, leave_one_model_out
from profiles.targets import gpu_sheet

H100 = gpu_sheet("h100")
OPERATORS = {framework: Roofline(H100) for framework in ("vllm", "trtllm", "sglang")}

# Rows of NVIDIA aiconfigurator 0.12.0's silicon_sample.csv (Apache-2.0, Copyright (c) 2025-2026 NVIDIA CORPORATION &
# AFFILIATES), some columns left out.
HEAD = (
    "id,silicon_data_source,backend,model_path,system,mode,isl,osl,gemm_quant_mode,batch_size,tp_size,pp_size,"
    "attention_dp_size,silicon_ttft_ms,silicon_tpot_ms"
)
GENERATED = "source_file=/Users/x/projects/aic-auto-gap-analysis/data/h100_sxm/{}.csv; silicon_concurrency={}"
LLAMA_70B = (
    "a,source_file=2026-04-06.csv; silicon_concurrency={1},vllm,meta-llama/Llama-3.1-70B,h100_sxm,agg,{0},"
    "fp8,{1},{2},1,1,{3}"
)
ROWS = (
    LLAMA_70B.format("1024,1024", 4, 2, "121.3,17.41"),
    LLAMA_70B.format("1024,1024", 64, 8, "184.8,15.45"),
    f"b,{GENERATED.format('vllm', 8)},vllm,Qwen/Qwen3-32B,h100_sxm,agg,1024,512,,8,4,1,,125.97,10.73",
    f"c,{GENERATED.format('vllm', 32)},vllm,Qwen/Qwen3-32B,h100_sxm,agg,4096,512,,32,8,1,,471.9,15.33",
    f"d,{GENERATED.format('trtllm', 16)},trtllm,Qwen/Qwen3-32B,h100_sxm,agg,1024,256,fp8,16,2,,,189.69,12.91",
    f"e,{GENERATED.format('sglang', 16)},sglang,Qwen/Qwen3-32B,h100_sxm,agg,1024,256,,16,2,,,805.97,16.15",
    "f,source_file=x.csv,vllm,Qwen/Qwen3-32B,h100_sxm,agg,4000,1000,fp8,48,2,,,184.6,11.63",
    "g,db-dump,trtllm,deepseek-ai/DeepSeek-R1,h100_sxm,disagg,1024,1024,fp8,30,8,,,500,20",
    "h,x; silicon_concurrency=4,vllm,openai/gpt-oss-120b,h100_sxm,agg,1024,1024,nvfp4,4,1,,,70,5",
)

Table = Callable[..., Path]


@pytest.fixture
def csv(tmp_path: Path) -> Table:
    def write(*rows: str, head: str = HEAD) -> Path:
        path = tmp_path / "deployments.csv"
        path.write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")
        return path

    return write


def by_name(deployments: tuple[Deployment, ...]) -> dict[str, Deployment]:
    return {deployment.name: deployment for deployment in deployments}


def test_dense_aggregated_rows_are_read_and_the_others_counted(csv: Table) -> None:
    deployments, notes = read_deployments(csv(*ROWS))
    assert [deployment.name for deployment in deployments] == ["a", "a", "b", "c", "d", "e", "f"]
    assert notes == (
        "1 rows that are not aggregated",
        "1 rows of models that are not dense ones we know the shapes of",
    )


def test_rows_say_what_ran_and_under_which_load(csv: Table) -> None:
    found = by_name(read_deployments(csv(*ROWS))[0])
    llama, generated, unstated = found["a"], found["b"], found["f"]
    assert (llama.system, llama.framework, llama.kind, llama.gpus, llama.kv_bits) == ("h100", "vllm", "fp8", 8, 16)
    assert (llama.load.concurrency, llama.load.spread, llama.engine.token_budget) == (64, 0.2, 8192)
    assert (llama.ttft_s, llama.tpot_s) == pytest.approx((0.1848, 0.01545))
    assert (generated.kind, generated.load.spread, generated.engine.token_budget) == ("bf16", 0.0, 1024 + 1628)
    assert not generated.stated_type and generated.stated_load
    assert (unstated.kind, unstated.load.concurrency, unstated.stated_load) == ("fp8_block", 48, False)
    assert found["d"].kv_bits == 8 and found["d"].engine.reserves_output
    assert not found["e"].engine.mixed


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (ROWS[2].replace(",125.97,", ",soon,"), "csv:2: silicon_ttft_ms: expected a number, found 'soon'"),
        (ROWS[2].replace(",125.97,", ",-1,"), "expected a number above 0, found -1"),
        (ROWS[2].replace(",1024,512,", ",1024.5,512,"), "isl: expected a whole number, found 1024.5"),
        (ROWS[2].replace(",8,4,", ",8,,"), "tp_size: expected a number, found ''"),
        (ROWS[7], "no deployment of a dense model among its rows .1 that are not aggregated"),
        (ROWS[2].replace(",8,4,1,", ",8,4,2,"), "1 with pipeline or attention data parallelism"),
        (ROWS[2].replace(",vllm,", ",other,"), "1 of frameworks we know no engine of"),
    ],
)
def test_bad_rows_are_refused_with_their_place(csv: Table, row: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_deployments(csv(row))


def test_another_table_is_refused(csv: Table) -> None:
    with pytest.raises(InputError, match="no column backend, model_path"):
        read_deployments(csv("1,2", head="m,n"))
    with pytest.raises(InputError, match="it has none"):
        read_deployments(csv())


def test_a_model_has_no_say_in_its_own_constants(csv: Table) -> None:
    deployments, _ = read_deployments(csv(*ROWS))
    before = leave_one_model_out(H100, OPERATORS, deployments)
    # The Llama rows ten times as slow: Llama's constants stay, Qwen's change with them.
    slower = tuple(replace(one, tpot_s=10 * one.tpot_s) if one.model == "Llama-3.1-70B" else one for one in deployments)
    after = leave_one_model_out(H100, OPERATORS, slower)
    constants = [{(one.framework, one.model): one for one in found.constants} for found in (before, after)]
    llama, qwen = ("vllm", "Llama-3.1-70B"), ("vllm", "Qwen3-32B")
    assert constants[0][llama] == constants[1][llama]
    assert constants[0][qwen] != constants[1][qwen]
    assert constants[0][llama].fitted_on == "2 rows of vllm Qwen3-32B"
    assert constants[0][qwen].fitted_on == "2 rows of vllm Llama-3.1-70B"
    # SGLang and TensorRT-LLM serve no other model here; the constants of vLLM's stand in.
    assert constants[0]["sglang", "Qwen3-32B"].fitted_on == "2 rows of vllm Llama-3.1-70B"


def test_constants_that_made_the_times_are_found_again(csv: Table) -> None:
    deployments, _ = read_deployments(csv(*ROWS))
    server = Server(H100, OPERATORS)
    truth = tuple(
        replace(one, tpot_s=served.tpot_s, ttft_s=served.ttft_s)
        for one in deployments
        if one.framework == "vllm" and (served := server.serve(one, 6e-6, 40e-6))
    )
    found = leave_one_model_out(H100, OPERATORS, truth)
    for constants in found.constants:
        assert constants.kernel_s == pytest.approx(6e-6, rel=0.05)
        assert constants.sequence_s == pytest.approx(40e-6, rel=0.2)
    for served, one in zip(found.served, truth, strict=True):
        assert served is not None and served.tpot_s == pytest.approx(one.tpot_s, rel=0.02)


def test_without_another_model_the_defaults_are_taken(csv: Table) -> None:
    deployments, _ = read_deployments(csv(*ROWS[:2]))
    (constants,) = leave_one_model_out(H100, OPERATORS, deployments).constants
    assert (constants.kernel_s, constants.sequence_s) == (Engine(1).kernel_s, Engine(1).sequence_s)
    assert constants.fitted_on == "nothing: no other model"


def test_the_report_covers_every_row_once_and_names_the_worst(csv: Table) -> None:
    deployments, notes = read_deployments(csv(*ROWS))
    predictors = {
        "fitted": leave_one_model_out(H100, OPERATORS, deployments),
        "roofline": bare(H100, OPERATORS, deployments),
    }
    report = compare("h100", deployments, predictors, notes)
    frameworks = [group for group in report.groups if not group.name.startswith((" ", "all"))]
    assert report.groups[0].rows == len(deployments) == sum(group.rows for group in frameworks)
    assert all(group.tpot["fitted"].mape < group.tpot["roofline"].mape for group in report.groups[:1])
    assert report.worst[0].name == "vllm Qwen3-32B fp8_block on 2, 4000 + 1000 tokens, 48 clients"
    text = report.as_text()
    assert "Qwen3-32B fp8_block, concurrency not stated" in text
    assert "note: 1 rows that are not aggregated" in text


def test_a_model_too_large_for_its_gpus_is_left_out_and_said(csv: Table) -> None:
    alone = ROWS[0].replace("fp8,4,2,", ",4,1,")
    deployments, notes = read_deployments(csv(alone, *ROWS[:3]))
    report = compare("h100", deployments, {"roofline": bare(H100, OPERATORS, deployments)}, notes)
    assert report.groups[0].rows == 3
    assert any(note.startswith("1 rows whose weights leave no room") for note in report.notes)
