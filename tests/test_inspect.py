"""Artefacts read back into plans: ours to the last choice, and files that others made by what they say."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from backends.vllm.executor import VllmExecutor
from planner.artefact import MANIFEST, PLAN
from planner.cli import main
from planner.formats import FP8, integers
from planner.goal import Workload
from planner.plan import Plan
from planner.serde import load_file
from planner.space import FLOAT16, Full, KvChoice, WeightFormat, Window
from tests.backends.oracle import choice, subject
from tests.profiles.test_sources_gguf import write

pytestmark = pytest.mark.usefixtures("planner_cache")


def planner(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args], catch_exceptions=False)


def read(path: Path, out: Path) -> tuple[Plan, dict[str, object]]:
    """The plan behind a path, and what --json told."""
    told = planner("inspect", path, "-o", out, "--json")
    assert told.exit_code == 0, told.output
    return load_file(out, Plan), json.loads(told.stdout)


def refused(path: Path, *parts: str) -> None:
    told = planner("inspect", path)
    assert (told.exit_code, told.stdout, told.stderr.count("\n")) == (told.exit_code or 1, "", 1), told.output
    for part in parts:
        assert part in told.stderr


def test_our_artefact_comes_back_as_the_plan_it_was_written_of(
    compiled: tuple[Path, Path, Result], tmp_path: Path
) -> None:
    _, out, _ = compiled
    plan, told = read(out, tmp_path / "plan.yaml")
    assert plan == load_file(out / PLAN, Plan)
    assert told["runtime"] == "onnxruntime" and told["what"] == "an artefact of planner"
    assert "KV heads" in planner("inspect", out).stdout


def test_an_artefact_of_which_a_file_was_changed_is_refused(
    compiled: tuple[Path, Path, Result], tmp_path: Path
) -> None:
    _, out, _ = compiled
    for path in out.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "config.json").write_text("{}")
    refused(tmp_path, "config.json: differs from the sha256 in manifest.json")


@pytest.mark.parametrize(
    ("kind", "form"),
    [("Q4_1", WeightFormat(4, "q4_1", 32)), ("Q8_0", WeightFormat(8, "q8_0", 32)), ("F16", WeightFormat(16))],
)
def test_a_gguf_of_anyone_is_a_plan_of_its_types(kind: str, form: WeightFormat, tmp_path: Path) -> None:
    path = write(tmp_path / "model.gguf", kind)
    plan, told = read(path, tmp_path / "plan.yaml")
    forms = {site.tensor: c.format for site, c in plan.weights}
    assert forms.pop("model.embed_tokens.weight") == WeightFormat(8, "q8_0", 32)
    assert set(forms.values()) == {form} and len(forms) == 14
    assert {c for _, c in plan.kv} == {KvChoice(Full(), FLOAT16, FLOAT16, 0, (("memory", 1.0),))}
    assert told["runtime"] == "llamacpp" and told["file_bytes"] == path.stat().st_size
    assert plan.predicted is not None and 0 < path.stat().st_size - plan.predicted.weight_bytes < 16384  # its header


def test_a_checkpoint_says_its_own_formats_without_our_plan(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    who = subject(tiny("llama-three"))

    def form(name: str) -> WeightFormat:
        if "embed" in name or "lm_head" in name:
            return WeightFormat(16)
        return integers(4, 32) if "layers.0" in name else integers(8, 0)

    given = who.plan(lambda site: choice(Window(32) if site.layer else Full(), FLOAT16, sinks=0), form)
    given = replace(given, workload=Workload((128,), new_tokens=16))
    for file in VllmExecutor(who.executor.weights, who.spec).emit(given, who.spec):
        (tmp_path / file.path).parent.mkdir(exist_ok=True)
        (tmp_path / file.path).write_bytes(file.content if isinstance(file.content, bytes) else b"")
    assert not (tmp_path / MANIFEST).exists()
    plan, told = read(tmp_path, tmp_path / "plan.yaml")
    assert {s.tensor: c.format for s, c in plan.weights} == {s.tensor: c.format for s, c in given.weights}
    assert told["runtime"] == "vllm"


def test_schemes_that_others_write(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    source = tiny("llama-three")
    for path in source.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((source / "config.json").read_text())
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128}
    whole = {"num_bits": 8, "type": "float", "strategy": "channel"}
    told = {
        "quant_method": "compressed-tensors",
        "config_groups": {
            "group_0": {"targets": ["re:.*down_proj"], "weights": whole},
            "group_1": {"targets": ["Linear"], "weights": weights},
        },
        "ignore": ["lm_head"],
        "kv_cache_scheme": {"num_bits": 8, "type": "float"},
    }

    def wrote(**changes: object) -> None:
        (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": {**told, **changes}}))

    wrote()
    plan, _ = read(tmp_path, tmp_path / "plan.yaml")
    forms = {site.tensor: c.format for site, c in plan.weights}
    assert forms["model.layers.1.mlp.down_proj.weight"] == WeightFormat(8, "fp8")
    assert forms["model.layers.1.mlp.up_proj.weight"] == integers(4, 128)
    assert forms["lm_head.weight"] == forms["model.embed_tokens.weight"] == WeightFormat(32)
    assert {c.k for _, c in plan.kv} == {FP8}
    (tmp_path / "plan.yaml").unlink()
    wrote(config_groups={"group_0": {"targets": ["Linear"], "weights": {**weights, "num_bits": 3}}})
    refused(tmp_path, "config_groups.group_0.weights: 3 bits of type int by group")
    wrote(config_groups={})
    refused(tmp_path, "quantization_config.config_groups: found nothing")
    wrote(kv_cache_scheme={"num_bits": 4, "type": "int"})
    refused(tmp_path, "kv_cache_scheme: found")
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "awq"}}))
    refused(tmp_path, "quantization_config: found 'awq'; compressed-tensors can be read back")


def test_what_is_nothing_of_the_kind_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "gone", "does not exist")
    refused(tmp_path, "holds neither manifest.json nor config.json")
    (tmp_path / "text").write_text("no model")
    refused(tmp_path / "text", "not b'GGUF'")
