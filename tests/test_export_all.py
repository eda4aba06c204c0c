"""Every runtime takes a plan over, and plans inside what it carries, from the command line to the files."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from backends.genai.capabilities import MODULE, VERSIONS
from planner.artefact import intact, read_plan
from planner.cli import main
from planner.compile.runtimes import runtime

pytestmark = pytest.mark.usefixtures("planner_cache")
here = pytest.mark.skipif(not VERSIONS[-1].executes_here, reason=f"{MODULE} is not installed (extra: genai)")


def planner(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args], catch_exceptions=False)


@pytest.mark.parametrize("name", ["tensorrt-llm", "openvino", "compose"])
def test_a_plan_is_written_for_a_runtime_that_is_not_here(
    name: str, compiled: tuple[Path, Path, Result], tmp_path: Path
) -> None:
    pytest.importorskip("jsonschema", reason="jsonschema is not installed (extra: manifests)")
    model, source, _ = compiled
    out = tmp_path / "out"
    told = planner("export", source, "--model", model, "--target", "a100", "--backend", name, "-o", out, "--json")
    assert told.exit_code == 0, told.output
    report, plan = json.loads(told.stdout), read_plan(out)
    assert "NOT-EXECUTED.txt" in intact(out).files
    assert runtime(name).capabilities.admits(plan.chosen) and report["moved"] > 0
    measured = report["exported"]["measured"]
    assert measured["loss_nats"] is not None and measured["decode_s"] is None
    assert "nothing timed" in measured["source"] and not plan.speed_measured


@here
def test_genai_plans_inside_what_it_carries_and_runs_what_was_written(
    compiled: tuple[Path, Path, Result], tmp_path: Path
) -> None:
    model, _, _ = compiled
    out = tmp_path / "out"
    args = ("compile", model, "--target", "laptop-cpu", "--backend", "onnxruntime-genai", "-o", out, "--json")
    told = planner(*args)
    assert told.exit_code == 0, told.output
    plan, report = read_plan(out), json.loads(told.stdout)
    assert VERSIONS[-1].admits(plan.chosen) and plan.quality_verified
    row = report[report["shipped"]]
    assert row["predicted"]["kv_bytes"] == row["measured"]["kv_bytes"]
    assert row["predicted"]["weight_bytes"] == row["measured"]["weight_bytes"]
    assert planner("run", out, "--prompt", "The river", "--max-new-tokens", 3).exit_code == 0
    assert planner("verify", out, "--documents", 1).exit_code == 0
