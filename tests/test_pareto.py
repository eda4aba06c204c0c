"""planner pareto on tiny models: the directory it writes, a bare config, what it refuses."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from planner.cli import main
from planner.front import Front
from planner.plan import Plan
from planner.serde import load_file

pytestmark = pytest.mark.usefixtures("planner_cache")

Tiny = Callable[[str], Path]


def model_yaml(at: Path, source: Path, goal: str = "{}") -> Path:
    kind = "huggingface" if source.is_dir() else "config"
    at.write_text(
        "schema: planner/model@1\n"
        f"source: {{{kind}: '{source}'}}\n"
        "workload: {context_tokens: [64], new_tokens: 8, prefill_chunk_tokens: 32}\n"
        f"goal: {goal}\n"
        "calibration: {documents: 1, draws: 2}\n"
        "verification: {documents: 2}\n"
    )
    return at


def pareto(*args: object) -> Result:
    return CliRunner().invoke(main, ["pareto", *(str(arg) for arg in args)], catch_exceptions=False)


def test_a_front_is_printed_written_and_run(tiny_llama: Path, tmp_path: Path) -> None:
    path, out = model_yaml(tmp_path / "model.yaml", tiny_llama), tmp_path / "front"
    told = pareto(path, "--target", "laptop-cpu", "--points", 9, "--verify", 2, "-o", out, "--json")
    assert told.exit_code == 0, told.stderr
    front = load_file(out / "front.json", Front)
    assert json.loads((out / "front.json").read_text()) == json.loads(told.stdout)
    assert {p.name for p in out.iterdir()} == {"front.json", "front.txt", "front.svg", "plans", "manifest.json"}
    assert (out / "front.svg").read_text().startswith("<svg") and "measured" in (out / "front.txt").read_text()
    assert front.solves <= 9 and len(front.points) >= 3 and front.over == ("loss_nats", "decode_s", "memory_bytes")
    for point in front.points:
        plan = load_file(out / "plans" / f"{point.name}.yaml", Plan)
        assert (plan.predicted, plan.measured, plan.goal) == (point.predicted, point.measured, point.goal)
        limit = point.goal.limits.memory_bytes
        assert limit is None or point.predicted.memory_bytes <= limit
        own = [point.value(name) for name in front.over]
        for other in (*front.points, *front.beside):
            theirs = [other.value(name) for name in front.over]
            assert theirs == own or not all(a <= b for a, b in zip(theirs, own, strict=True))
    assert len([p for p in front.verified if p.kind != "dense"]) == 2
    for point in front.verified:
        assert point.measured is not None and point.measured.kv_bytes == point.predicted.kv_bytes
    # Written once more in its place, from the same measurements: the same front.
    assert pareto(path, "--target", "laptop-cpu", "--points", 9, "--verify", 0, "-o", out).exit_code == 0
    again = load_file(out / "front.json", Front)
    assert [p.predicted for p in again.points] == [p.predicted for p in front.points]
    refused = CliRunner().invoke(main, ["verify", str(out)])
    assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1)


def test_a_bare_config_has_time_against_bytes_on_a_data_sheet(tiny_llama: Path, tmp_path: Path) -> None:
    # Of ordinary size: a tiny model is all launches, and nothing is quicker for lying nearer.
    sizes = {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "num_key_value_heads": 8}
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads((tiny_llama / "config.json").read_text()) | sizes | {"head_dim": 128}))
    path = model_yaml(tmp_path / "bare.yaml", config)
    told = pareto(path, "--target", "a100", "--points", 6, "--json")
    front = json.loads(told.stdout)
    assert told.exit_code == 0 and front["over"] == ["decode_s", "memory_bytes"]
    assert len(front["points"]) >= 3 and any("without weights" in note for note in front["notes"])
    assert all(point["measured"] is None for point in front["points"])
    assert set(tmp_path.iterdir()) == {config, path}


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("--over", "loss_nats,decode"), 1, "Error: --over: unknown currency 'decode'; did you mean 'decode_s'?"),
        (("--over", "memory_bytes"), 1, "Error: --over: found 1 of them; a front is over two or three"),
        (("--points", "1"), 1, "Error: --points: found 1; a front has at least 2"),
        (("--verify", "-1"), 1, "Error: --verify: found -1; must be at least 0"),
        (("--over", "loss_nats,kv_bytes"), 1, "Error: --over: loss_nats: without weights no loss can be measured"),
        (("--target", "h1000"), 1, "Error: unknown target 'h1000'"),
        (("--backend", "none"), 1, "Error: "),
        (("--passes", "uniform-kv"), 1, "Error: --passes: must end with assign"),
        (("--points", "many"), 2, "Usage: main pareto"),
    ],
)
def test_bad_input_ends_in_one_line(
    args: tuple[str, ...], code: int, message: str, tiny_llama: Path, tmp_path: Path
) -> None:
    path = model_yaml(tmp_path / "bare.yaml", tiny_llama / "config.json")
    told = pareto(path, "--target", "a100", *args)
    assert (told.exit_code, told.stdout) == (code, "")
    assert told.stderr.startswith(message) and (code == 2 or told.stderr.count("\n") == 1)


def test_a_front_replaces_no_artefact_and_nothing_foreign(tiny_llama: Path, tmp_path: Path) -> None:
    path = model_yaml(tmp_path / "bare.yaml", tiny_llama / "config.json")
    out = tmp_path / "out"
    assert CliRunner().invoke(main, ["compile", str(path), "--target", "a100", "-o", str(out)]).exit_code == 0
    kept = sorted(out.iterdir())
    told = pareto(path, "--target", "a100", "-o", out)
    assert (told.exit_code, told.stderr.count("\n")) == (1, 1) and "holds a compiled artefact" in told.stderr
    assert sorted(out.iterdir()) == kept
    assert "cannot be replaced" in pareto(path, "--target", "a100", "-o", "/").stderr


def test_limits_that_nothing_keeps_end_in_exit_code_3(tiny_llama: Path, tmp_path: Path) -> None:
    path = model_yaml(tmp_path / "bare.yaml", tiny_llama / "config.json", "{limits: {weight_bytes: 1 kB}}")
    told = pareto(path, "--target", "a100")
    assert (told.exit_code, told.stdout, told.stderr.count("\n")) == (3, "", 1)
    assert "weight_bytes" in told.stderr and "without weights" in told.stderr
