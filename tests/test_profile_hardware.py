"""`planner profile hardware` as CI runs it: the example's own script, exit codes, reports, and nothing left behind."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from click.testing import CliRunner, Result

from planner.cli import main
from planner.hardware import HardwareProfile
from planner.measured import Curve
from planner.serde import dump_file, load_file
from profiles import record

ROOT = Path(__file__).parents[1]
CI = ROOT / "examples" / "ci"
BRIEFLY = ("--quick", "--backend", "transformers")


def planner(*args: object) -> Result:
    return CliRunner().invoke(main, ["profile", "hardware", *map(str, args)], catch_exceptions=False)


def environment(directory: Path, **more: str) -> Mapping[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PLANNER_CACHE": str(directory / "cache"),
        "PLANNER": f"{sys.executable} -m planner",
        **more,
    }


def script(directory: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """The workflow's step, in a directory of its own."""
    command = ["sh", str(CI / "hardware.sh"), "--backend", "transformers"]
    return subprocess.run(
        command, cwd=directory, env=environment(directory, **more), capture_output=True, text=True, timeout=600
    )


def faster(profile: HardwareProfile, factor: float) -> HardwareProfile:
    """The profile of a machine so many times as fast."""

    def scaled(curve: Curve) -> Curve:
        by = 1 / factor if curve.unit == "s" else factor
        return replace(curve, points=tuple((at, value * by, spread) for at, value, spread in curve.points))

    return replace(profile, curves=tuple(map(scaled, profile.curves)))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the script ran once and wrote its baseline."""
    directory = tmp_path_factory.mktemp("ci")
    told = script(directory)
    assert (told.returncode, told.stdout) == (
        0, "wrote hardware-baseline/profile.yaml: the next run is compared with it\n"
    )  # fmt: skip
    return directory


@pytest.fixture
def baseline(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PLANNER_CACHE", str(directory / "cache"))
    monkeypatch.setattr(record, "QUICK_SHARE", 0.01)
    return directory / "hardware-baseline" / "profile.yaml"


def test_the_second_run_is_compared_and_a_regression_ends_in_its_code(directory: Path, baseline: Path) -> None:
    fast = directory / "fast.yaml"
    dump_file(faster(load_file(baseline, HardwareProfile), 1e6), fast)
    told = script(directory, BASELINE=str(fast), TOLERANCE="10%", REPORTS="reports")
    assert told.returncode == 5
    assert re.search(r"Error: \S+fast\.yaml: .* takes \S+ times as long, ", told.stderr)
    assert told.stdout.startswith("moved ") and "slower" in told.stdout
    suite = ElementTree.parse(directory / "reports" / "report.xml").getroot()[0]
    now = load_file(directory / "reports" / "profile.yaml", HardwareProfile)
    assert int(str(suite.get("tests"))) == sum(len(curve.points) for curve in now.curves)
    assert suite.get("failures") == suite.get("tests")


def test_what_got_faster_fails_nothing(directory: Path, baseline: Path, tmp_path: Path) -> None:
    slow = tmp_path / "slow.yaml"
    dump_file(faster(load_file(baseline, HardwareProfile), 1e-6), slow)
    told = planner(*BRIEFLY, "--check", slow, "--tolerance", "10%", "--json", "--out", tmp_path / "now.yaml")
    assert told.exit_code == 0
    found = json.loads(told.stdout)
    assert {row["verdict"] for row in found["check"]["moved"]} == {"faster"}
    assert found["profile"]["schema"] == "planner/hardware-profile@2" and (tmp_path / "now.yaml").is_file()


def test_a_quick_profile_is_not_kept_for_planning(directory: Path, baseline: Path) -> None:
    assert not list((directory / "cache").glob("hardware-local-*"))


@pytest.mark.parametrize(
    ("edit", "args", "said"),
    [
        (lambda text: text, ("--quick",), "$.machine.runtime: the baseline's is 'transformers', here"),
        (lambda text: text, BRIEFLY[1:], "$.machine.quick"),
        (lambda text: re.sub("processor: .*", "processor: other", text), BRIEFLY, "$.machine.processor"),
        (lambda text: text[: len(text) // 2], BRIEFLY, "baseline.yaml: "),
        (lambda text: text[: text.rindex("\n", 0, -1)], BRIEFLY, "baseline.yaml: "),
        (lambda text: text[: text.index("\nmachine:")], BRIEFLY, "holds no timed figures to compare with"),
        (lambda text: "", BRIEFLY, "expected a document"),
        (lambda text: text.replace("profile@2", "profile@9"), BRIEFLY, "$.schema"),
    ],
)  # fmt: skip
def test_a_baseline_that_will_not_do_is_refused_before_anything_is_measured(
    edit: Callable[[str], str], args: tuple[str, ...], said: str, baseline: Path, tmp_path: Path
) -> None:
    path = tmp_path / "baseline.yaml"
    path.write_text(edit(baseline.read_text()))
    told = planner(*args, "--check", path, "--out", tmp_path / "now.yaml")
    assert (told.exit_code, told.stdout, told.stderr.count("\n")) == (1, "", 1) and said in told.stderr
    assert not (tmp_path / "now.yaml").exists()


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (("--check", "none.yaml"), 1, "none.yaml: cannot be read"),
        (("--check", "none.yaml", "--tolerance", "-10%"), 1, "--tolerance: expected a percentage above 0%"),
        (("--tolerance", "nonsense"), 1, "--tolerance: expected a percentage above 0%"),
        (("--junit", "report.xml"), 1, "--junit: there is nothing to report on; give --check"),
        (("--backend", "onnxruntim"), 1, "--backend: unknown runtime 'onnxruntim'; did you mean 'onnxruntime'?"),
        ((*BRIEFLY, "--flash", "none"), 1, "none: is not a directory"),
        (("--device", "tpu"), 2, "'tpu' is not one of"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    args: tuple[str, ...], code: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLANNER_CACHE", str(tmp_path))
    told = planner(*args)
    assert (told.exit_code, told.stdout) == (code, "") and said in told.stderr


def opened(pid: int) -> str:
    """The paths of the files that a process has open."""
    paths = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # it may be closed between being listed and being read
            paths.append(os.readlink(descriptor))
    return "\n".join(paths)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_however_it_ends_no_file_stays_behind(end: signal.Signals, tmp_path: Path) -> None:
    flash, out = tmp_path / "flash", tmp_path / "out"
    flash.mkdir()
    out.mkdir()
    command = [sys.executable, "-m", "planner", "profile", "hardware", *BRIEFLY[1:], "--flash", str(flash)]
    with subprocess.Popen(
        [*command, "--out", str(out / "p.yaml")], env=environment(tmp_path), stderr=subprocess.PIPE, text=True
    ) as run:
        for _ in range(600):
            if run.poll() is not None or str(flash) in opened(run.pid):
                break
            time.sleep(0.1)
        assert run.poll() is None
        run.send_signal(end)
        _, told = run.communicate(timeout=60)
    assert list(flash.iterdir()) == list(out.iterdir()) == []
    if end == signal.SIGINT:
        assert run.returncode == 130 and "nothing was left half-written" in told


def test_the_workflow_runs_the_script_that_is_tested() -> None:
    workflow = yaml.safe_load((CI / "hardware.yml").read_text())
    (job,) = workflow["jobs"].values()
    (step,) = [step for step in job["steps"] if "hardware.sh" in step.get("run", "")]
    assert step["run"].split() == ["sh", "examples/ci/hardware.sh"]
    text = (CI / "hardware.sh").read_text()
    assert all(f"${{{name}:-" in text for name in step["env"])
    (cache,) = [step["with"]["path"] for step in job["steps"] if "cache" in step.get("uses", "")]
    assert step["env"]["BASELINE"].startswith(f"{cache}/")
    # The script's own defaults are the workflow's.
    assert all(f"${{{name}:-{value}}}" in text for name, value in step["env"].items())
