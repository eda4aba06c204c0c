"""planner validate: tables in, errors out, in text and as one JSON document."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from planner.cli import main

# One row of NVIDIA aiconfigurator 0.12.0's silicon_sample.csv (Apache-2.0, Copyright (c) 2025-2026 NVIDIA CORPORATION &
# AFFILIATES), some columns left out.
CSV = (
    "silicon_data_source,backend,model_path,system,mode,isl,osl,gemm_quant_mode,batch_size,tp_size,silicon_ttft_ms,"
    "silicon_tpot_ms\n"
    "silicon_concurrency=4,vllm,meta-llama/Llama-3.1-70B,h100_sxm,agg,1024,1024,fp8,4,2,121.3,17.41\n"
)

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    Path("deployments.csv").write_text(CSV, encoding="utf-8")
    return lambda *arguments: CliRunner().invoke(main, ["validate", *arguments])


def test_deployments_as_text(run: Run) -> None:
    result = run("deployments", "deployments.csv")
    assert result.exit_code == 0, result.output
    assert "Llama-3.1-70B fp8" in result.stdout
    assert "formula: vllm Llama-3.1-70B: 4.70 us a small kernel" in result.stdout


def test_deployments_as_json(run: Run) -> None:
    result = run("deployments", "deployments.csv", "--target", "h100", "--json")
    document = json.loads(result.stdout)
    assert document["target"] == "h100"
    everything = document["groups"][0]
    assert everything["rows"] == 1
    # Measured: 17.41 ms a token. The roofline knows neither launches nor all-reduces.
    assert everything["tpot"]["formula"]["mape"] < 0.15 < everything["tpot"]["roofline"]["mape"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("deployments", "missing.csv"), "missing.csv: cannot be read"),
        (("deployments", "deployments.csv", "--target", "h200"), "no deployment on h200; its rows are of h100"),
        (("deployments", "deployments.csv", "--target", "server-cpu"), "chip"),
        (("deployments", "deployments.csv", "--silicon", "."), "no table; expected gemm/"),
        (("silicon", ".", "--target", "h100"), "no table; expected gemm/"),
        (("silicon", ".", "--target", "h1000"), "unknown target"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(run: Run, arguments: tuple[str, ...], said: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1
    assert said in result.stderr


def test_a_table_of_several_systems_asks_which(run: Run) -> None:
    rows = CSV.splitlines()
    Path("two.csv").write_text("\n".join([*rows, rows[1].replace("h100_sxm", "h200_sxm")]), encoding="utf-8")
    result = run("deployments", "two.csv")
    assert result.exit_code == 1
    assert "column system names h100, h200; say which with --target" in result.stderr


def test_without_the_extra_it_says_what_to_install(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planner.cli.validate.EXTRA", ("pyarrow", "not_a_module"))
    result = run("deployments", "deployments.csv")
    assert result.exit_code == 1
    assert result.stderr == "Error: validating needs not_a_module; pip install llm-planner[silicon]\n"
