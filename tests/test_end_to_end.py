"""The whole line on tiny models: every command, the same plan twice, every family, pass and goal."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from passes.pipeline import PIPELINE
from planner import api
from planner.artefact import MANIFEST, PLAN, REPORT
from planner.cli import main
from planner.config import parse_request
from planner.plan import Plan
from planner.report import COLUMNS, ROWS
from planner.request import Request
from planner.serde import dump, load_file
from planner.space import Space

QUICK = {"context_tokens": "[64]", "documents": 1}
Tiny = Callable[[str], Path]


pytestmark = pytest.mark.usefixtures("planner_cache")


def model_yaml(
    source: Path, goal: str = "{minimise: loss_nats, limits: {kv_share: 0.5}}", *, more: str = "", **quick: object
) -> str:
    """A model.yaml; `quick` replaces what makes a run short."""
    told = {**QUICK, **quick}
    kind = "huggingface" if source.is_dir() else "config"
    return (
        "schema: planner/model@1\n"
        f"source: {{{kind}: '{source}'}}\n"
        f"workload: {{context_tokens: {told['context_tokens']}, new_tokens: 8, prefill_chunk_tokens: 32{more}}}\n"
        f"goal: {goal}\n"
        "calibration: {documents: 1, draws: 2}\n"
        f"verification: {{documents: {told['documents']}}}\n"
    )


def asked(source: Path, goal: str = "{minimise: loss_nats, limits: {kv_share: 0.5}}", **options: object) -> Request:
    return parse_request(model_yaml(source, goal, **options), "tiny", Path("/"), "tiny.yaml")  # type: ignore[arg-type]


def planner(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args], catch_exceptions=False)


def costs(report: dict[str, dict[str, dict[str, object]]], name: str) -> tuple[dict[str, object], dict[str, object]]:
    return report[name]["predicted"], report[name]["measured"]


# --- one model all the way ----------------------------------------------------------------------


def test_compile_prints_one_document_with_every_figure(compiled: tuple[Path, Path, Result]) -> None:
    _, out, told = compiled
    assert told.exit_code == 0
    report = json.loads(told.stdout)
    assert json.loads((out / REPORT).read_text()) == report
    for name in ROWS:
        for figures in costs(report, name):
            assert set(COLUMNS) <= set(figures)


def test_bytes_are_predicted_within_a_hundredth(compiled: tuple[Path, Path, Result]) -> None:
    report = json.loads(compiled[2].stdout)
    for name in ROWS:
        predicted, measured = costs(report, name)
        for figure in ("kv_bytes", "weight_bytes"):
            assert measured[figure] == pytest.approx(predicted[figure], rel=0.01)


def test_the_manifest_lists_every_file_with_its_digest(compiled: tuple[Path, Path, Result]) -> None:
    _, out, _ = compiled
    manifest = json.loads((out / MANIFEST).read_text())
    found = {str(p.relative_to(out)): p for p in out.rglob("*") if p.is_file() and p.name != MANIFEST}
    assert manifest["files"] == {name: hashlib.sha256(p.read_bytes()).hexdigest() for name, p in found.items()}
    assert {PLAN, REPORT, "runner.py", "model.onnx", "model.onnx.data", "tokenizer.json"} <= set(found)


def test_the_shipped_plan_keeps_its_limit_and_says_what_was_proved(compiled: tuple[Path, Path, Result]) -> None:
    _, out, told = compiled
    plan, report = load_file(out / PLAN, Plan), json.loads(told.stdout)
    assert report["shipped"] in ROWS and plan.name.endswith(report["shipped"])
    assert plan.measured is not None and report["dense"]["measured"]["kv_bytes"] >= 2 * plan.measured.kv_bytes
    assert (plan.quality_verified, plan.speed_measured) == (True, False)
    assert plan.measured.source == "measured here, not on the target"


def test_the_other_commands_take_the_artefact(compiled: tuple[Path, Path, Result]) -> None:
    _, out, _ = compiled
    told = planner("verify", out, "--documents", 1, "--json")
    verified = json.loads(told.stdout)
    assert told.exit_code == 0 and verified["uniform"] is None
    assert set(COLUMNS) <= set(verified["planned"]["measured"]) and set(COLUMNS) <= set(verified["dense"]["measured"])
    assert planner("run", out, "--prompt", "The river", "--max-new-tokens", 4).exit_code == 0
    assert "minimise loss_nats within kv_share <= 0.5" in planner("explain", out / PLAN).stdout
    assert planner("diff", out / PLAN, out / PLAN).stdout == "the plans are the same\n"


def test_a_second_compilation_measures_nothing_anew_and_gives_the_same_plan(
    compiled: tuple[Path, Path, Result], planner_cache: Path, tmp_path: Path
) -> None:
    path, out, _ = compiled
    kept = {p: p.stat().st_mtime_ns for p in (planner_cache / "profiles").rglob("*.safetensors")}
    assert planner("compile", path, "--target", "laptop-cpu", "-o", tmp_path / "again").exit_code == 0
    assert {p: p.stat().st_mtime_ns for p in (planner_cache / "profiles").rglob("*.safetensors")} == kept
    one, two = (load_file(directory / PLAN, Plan) for directory in (out, tmp_path / "again"))
    assert dump(one.without_measurement()) == dump(two.without_measurement())


def test_an_artefact_is_replaced_and_nothing_stays_beside_it(
    compiled: tuple[Path, Path, Result], tmp_path: Path
) -> None:
    path, out = compiled[0], tmp_path / "out"
    out.mkdir()
    for _ in range(2):
        told = planner("compile", path, "--target", "laptop-cpu", "-o", out, "--dump", tmp_path / "spaces")
        assert told.exit_code == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "spaces"]
    names = [p.stem for p in sorted((tmp_path / "spaces").iterdir())]
    assert names == [f"{i:02}-{each.name}" for i, each in enumerate(PIPELINE)]
    chosen = load_file(tmp_path / "spaces" / f"{names[-1]}.yaml", Space)
    assert all(len(choices) == 1 for choices in chosen.candidates.values())
    assert load_file(out / PLAN, Plan).provenance.target == "laptop-cpu"


def test_kernels_lie_beside_a_plan_for_a_gpu(compiled: tuple[Path, Path, Result], tmp_path: Path) -> None:
    out = tmp_path / "out"
    passes = "uniform-kv{tokens=24},legalise,assign"  # floats alone: few kernels to compile
    told = planner("compile", compiled[0], "--target", "a100", "--passes", passes, "-o", out)
    assert told.exit_code == 0 and "compiled for sm_80" in told.stdout
    assert load_file(out / PLAN, Plan).provenance.target == "a100"
    layers, resources = (json.loads((out / "kernels" / name).read_text()) for name in ("layers.json", "resources.json"))
    assert {each["module"] for each in layers["uses"]} == {"decode_attention", "prefill_attention", "kv_append"}
    for kernel in resources["kernels"]:
        for launch in (launch for kept in kernel["kept"] for launch in kept["launches"]):
            assert launch["resources"]["spilled_bytes"] == 0
        assert all((out / "kernels" / launch["binary"]).is_file() for launch in kernel["kept"][0]["launches"])
    assert "kernels/" in (out / "manifest.json").read_text() and (out / "run_kernels.py").is_file()


# --- families -----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["qwen3", "mistral", "gemma3_text", "gpt2", "mixtral"])
def test_every_family_compiles_to_half_of_its_cache(family: str, tiny: Tiny, tmp_path: Path) -> None:
    report = api.compile(asked(tiny(family)), target="laptop-cpu", out=tmp_path / "out")
    measured = {row.name: row.plan.measured for row in report.rows}
    dense, shipped = measured["dense"], measured[report.shipped]
    assert dense is not None and shipped is not None
    assert 2 * shipped.kv_bytes <= dense.kv_bytes
    for row in report.rows:
        assert row.plan.measured is not None and row.plan.predicted is not None
        assert row.plan.measured.kv_bytes == pytest.approx(row.plan.predicted.kv_bytes, rel=0.01)
        assert row.plan.measured.weight_bytes == pytest.approx(row.plan.predicted.weight_bytes, rel=0.01)


@pytest.mark.parametrize(
    ("family", "part"), [("mamba", "state-space"), ("bloom", "ALiBi"), ("deepseek_v3", "latent attention")]
)
def test_a_family_that_cannot_be_handled_ends_in_a_line_that_says_why(family: str, part: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    (tmp_path / "model.yaml").write_text(model_yaml(tmp_path / "config.json"))
    told = planner("compile", tmp_path / "model.yaml", "--target", "a100", "-o", tmp_path / "out")
    assert (told.exit_code, told.stdout, told.stderr.count("\n")) == (1, "", 1)
    assert part in told.stderr
    assert not (tmp_path / "out").exists()


# --- passes and goals ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", [each.name for each in PIPELINE[:-1]])
def test_every_pass_can_be_named_alone(name: str, tiny_llama: Path, tmp_path: Path) -> None:
    goal = "{minimise: kv_bytes}"
    (tmp_path / "config.json").write_bytes((tiny_llama / "config.json").read_bytes())
    report = api.compile(
        asked(tmp_path / "config.json", goal), target="a100", out=tmp_path / "out", passes=f"{name},assign"
    )
    assert [step.name for step in report.steps] == [name, "assign"]


@pytest.mark.parametrize(
    "goal",
    [
        "{minimise: kv_bytes, limits: {loss_nats: 0.02}}",
        "{minimise: weight_bytes, limits: {loss_nats: 0.05}}",
        "{minimise: memory_bytes, limits: {loss_nats: 0.05}}",
        "{minimise: decode_s, limits: {loss_nats: 0.05}}",
        "{minimise: ttft_s, limits: {loss_nats: 0.05}}",
    ],
)
def test_what_ships_keeps_the_loss_limit_when_run(goal: str, tiny_llama: Path, tmp_path: Path) -> None:
    stages = set()
    report = api.compile(
        asked(tiny_llama, goal),
        target="laptop-cpu",
        out=tmp_path / "out",
        progress=lambda stage, done, of: stages.add(stage),
    )
    plan = load_file(tmp_path / "out" / PLAN, Plan)
    assert plan.measured is not None and plan.measured.loss_nats is not None and plan.goal.limits.loss_nats is not None
    assert plan.measured.loss_nats.value <= plan.goal.limits.loss_nats
    assert "correcting" in stages
    by_name = {row.name: row.plan for row in report.rows}
    for figure in ("kv_bytes", "weight_bytes"):
        if plan.goal.minimise == figure:
            assert getattr(plan.measured, figure) <= getattr(by_name["dense"].measured, figure)


def test_a_batch_and_two_lengths_are_counted_whole(tiny_llama: Path, tmp_path: Path) -> None:
    request = asked(tiny_llama, context_tokens="[48, 64]", more=", weights: [3, 1], batch: 4")
    report = api.compile(request, target="laptop-cpu", out=tmp_path / "out")
    for row in report.rows:
        assert row.plan.measured is not None and row.plan.predicted is not None
        assert row.plan.measured.kv_bytes == pytest.approx(row.plan.predicted.kv_bytes, rel=0.01)


# --- shapes alone -------------------------------------------------------------------------------


def test_a_bare_config_gives_a_plan_with_bytes_and_seconds_and_says_what_it_lacks(
    tiny_llama: Path, tmp_path: Path
) -> None:
    path, out = tmp_path / "bare.yaml", tmp_path / "out"
    path.write_text(model_yaml(tiny_llama / "config.json", "{minimise: decode_s}"))
    for _ in range(2):
        told = planner("compile", path, "--target", "a100", "-o", out)
        assert told.exit_code == 0
    assert "without weights no loss can be measured" in told.stdout
    plan = load_file(out / PLAN, Plan)
    assert plan.predicted is not None and plan.predicted.decode_s is not None and plan.predicted.kv_bytes > 0
    assert (plan.measured, plan.quality_verified) == (None, False)
    assert not (out / "weights.safetensors").exists()
    kernels = json.loads((out / "kernels" / "resources.json").read_text())
    assert {each["module"] for each in kernels["kernels"]} == {"decode_attention", "kv_append", "prefill_attention"}
    for each in kernels["kernels"]:
        launches = [launch for kept in each["kept"] for launch in kept["launches"]]
        assert launches and all(launch["resources"]["spilled_bytes"] == 0 for launch in launches)
        assert all((out / "kernels" / launch["binary"]).is_file() for launch in each["kept"][0]["launches"])
    assert "note: kernels: " in told.stdout and "compiled for sm_80" in told.stdout
    for command in (("verify", out), ("run", out, "--prompt", "a")):
        refused = planner(*command)
        assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1)
        assert "nothing to run" in refused.stderr


def test_a_limit_that_only_lossy_options_would_keep_says_why_they_are_missing(tiny_llama: Path, tmp_path: Path) -> None:
    path = tmp_path / "bare.yaml"
    path.write_text(model_yaml(tiny_llama / "config.json"))
    told = planner("compile", path, "--target", "a100", "-o", tmp_path / "out")
    assert (told.exit_code, told.stderr.count("\n")) == (3, 1)
    assert "kv_share" in told.stderr and "without weights" in told.stderr
    assert told.stderr.count("not offered") == 1


# --- retreat ------------------------------------------------------------------------------------


def test_a_loss_that_no_plan_keeps_when_run_ends_in_the_limit_that_binds(tiny_llama: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "tight.yaml", tmp_path / "out"
    goal = "{minimise: weight_bytes, limits: {kv_share: 0.3, loss_nats: 0.004}}"
    path.write_text(model_yaml(tiny_llama, goal))
    told = planner("compile", path, "--target", "laptop-cpu", "-o", out)
    assert told.exit_code in (3, 4)
    assert (told.stdout, told.stderr.count("\n")) == ("", 1)
    assert "loss_nats" in told.stderr
    assert not out.exists()
