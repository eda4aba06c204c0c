"""A plan carried over to vLLM from the command line: planned in its numbers, written, and not run here."""

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from backends.vllm.capabilities import VERSIONS
from planner.artefact import read_plan
from planner.cli import main
from planner.space import WeightChoice

pytestmark = pytest.mark.usefixtures("planner_cache")


def planner(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args], catch_exceptions=False)


def test_a_plan_goes_to_vllm(compiled: tuple[Path, Path, Result], tmp_path: Path) -> None:
    model, source, _ = compiled
    out = tmp_path / "out"
    args = ("export", source, "--model", model, "--target", "laptop-cpu", "--backend", "vllm", "-o", out, "--json")
    told = planner(*args)
    assert told.exit_code == 0, told.output
    plan = read_plan(out)
    assert plan.provenance.backend == "vllm" and VERSIONS[-1].admits(plan.chosen)
    assert json.loads(told.stdout)["exported"]["measured"]["loss_nats"] is not None
    assert plan.measured is not None and plan.measured.decode_s is None and not plan.speed_measured
    arguments = yaml.safe_load((out / "serve.yaml").read_text())
    assert arguments["max-model-len"] == plan.workload.longest_tokens
    config = json.loads((out / "config.json").read_text())
    schemes = config.get("quantization_config", {"config_groups": {}})["config_groups"].values()
    stored = {module for scheme in schemes for module in scheme["targets"]}
    chosen = {site.tensor: choice for site, choice in plan.weights if isinstance(choice, WeightChoice)}
    assert stored == {name.removesuffix(".weight") for name, c in chosen.items() if c.format.scheme == "ct"}
    run = planner("run", out, "--prompt", "The river")
    assert (run.exit_code, run.stderr) == (
        1,
        f"Error: {out}: is run by vllm, not by this process: sh serve.sh there serves it\n",
    )


def test_this_machine_is_not_timed_for_it(compiled: tuple[Path, Path, Result], tmp_path: Path) -> None:
    model, source, _ = compiled
    told = planner("export", source, "--model", model, "--target", "local", "--backend", "vllm", "-o", tmp_path / "out")
    assert told.exit_code == 1
    assert "--target local: how fast vllm is on this machine is not measured" in told.stderr
