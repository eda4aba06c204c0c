"""A plan carried over to another runtime: what moved, what it costs, and an artefact that runs."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from backends.transformers.executor import CAPABILITIES
from planner.artefact import PLAN, read_plan
from planner.cli import main
from planner.plan import Plan
from planner.serde import load_file

pytestmark = pytest.mark.usefixtures("planner_cache")


def planner(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args], catch_exceptions=False)


def test_a_plan_goes_to_another_runtime_and_says_what_that_costs(
    compiled: tuple[Path, Path, Result], tmp_path: Path
) -> None:
    model, source, _ = compiled
    given = read_plan(source)
    assert given.provenance.backend == "onnxruntime"
    args = ("export", source, "--model", model, "--target", "laptop-cpu")
    told = planner(*args, "--backend", "transformers", "-o", tmp_path / "out", "--json")
    assert told.exit_code == 0, told.output
    report, plan = json.loads(told.stdout), read_plan(tmp_path / "out")
    assert plan.provenance.backend == "transformers" and CAPABILITIES.admits(plan.chosen)
    assert plan.goal == given.goal and plan.workload == given.workload
    moved = [site for site, choice in plan.chosen.items() if choice != given.chosen[site]]
    assert report["moved"] == len(moved) > 0 and report["distance"] > 0
    assert set(report["projection"]) == {"loss_nats", "memory_bytes", "decode_s"}
    assert report["given"]["predicted"]["loss_nats"] is not None
    assert report["exported"]["measured"]["loss_nats"] is not None
    assert planner("run", tmp_path / "out", "--prompt", "The river", "--max-new-tokens", 2).exit_code == 0


def test_a_plan_that_is_carried_stays_as_it_is(compiled: tuple[Path, Path, Result], tmp_path: Path) -> None:
    model, source, _ = compiled
    args = ("export", source / PLAN, "--model", model, "--target", "laptop-cpu", "--backend", "onnxruntime")
    told = planner(*args, "-o", tmp_path / "out")
    assert told.exit_code == 0, told.output
    assert "for onnxruntime 1: the plan is carried as it is" in told.stdout
    assert "projection, loss_nats:" in told.stdout and "(+0)" in told.stdout
    assert read_plan(tmp_path / "out").chosen == load_file(source / PLAN, Plan).chosen


@pytest.mark.parametrize(
    ("backend", "part"),
    [
        ("onnxruntim", "unknown runtime 'onnxruntim'; did you mean 'onnxruntime'"),
        ("transformers@7", "transformers 7: what this version carries is not known; give one of 1"),
    ],
)
def test_unknown_runtimes_and_versions_end_in_a_line(
    compiled: tuple[Path, Path, Result], tmp_path: Path, backend: str, part: str
) -> None:
    model, source, _ = compiled
    told = planner("export", source, "--model", model, "--backend", backend, "-o", tmp_path / "out")
    assert (told.exit_code, told.stderr.count("\n")) == (1, 1)
    assert part in told.stderr
    assert not (tmp_path / "out").exists()
