"""planner profile model: measured once for each seed, and what compile then reads back."""

import json
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from planner.cli import main
from planner.serde import dump
from profiles.targets import target

MODEL = """schema: planner/model@1
source: {{{source}}}
workload: {{context_tokens: [64], new_tokens: 8, prefill_chunk_tokens: 32}}
goal: {{minimise: loss_nats, limits: {{kv_share: 0.5}}}}
calibration: {{documents: 1, draws: 1}}
verification: {{documents: 1}}
"""


def planner(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args], catch_exceptions=False)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that holds a profile of the machine already, so that nothing is timed for it."""
    directory = tmp_path / "cache"
    directory.mkdir()
    today = replace(target("laptop-cpu"), name="local", date=date.today().isoformat())
    (directory / "hardware-local.yaml").write_text(dump(today))
    monkeypatch.setenv("PLANNER_CACHE", str(directory))
    return directory


def test_a_seed_has_its_own_profile_which_compile_reads_back(cache: Path, tiny_llama: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.yaml"
    model.write_text(MODEL.format(source=f"huggingface: '{tiny_llama}'"))

    def told(*args: object) -> dict[str, object]:
        done = planner("profile", "model", model, "--json", *args)
        assert done.exit_code == 0
        found: dict[str, object] = json.loads(done.stdout)
        return found

    by_default, one = told(), told("--seed", 1)
    assert len(list((cache / "profiles").iterdir())) == 2
    assert by_default["uniform"] != one["uniform"]
    kept = {path: path.stat().st_mtime_ns for path in (cache / "profiles").rglob("*.safetensors")}
    assert (told("--seed", 0), told("--seed", 1)) == (by_default, one)
    assert planner("compile", model, "--target", "laptop-cpu", "--seed", 1, "-o", tmp_path / "out").exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in (cache / "profiles").rglob("*.safetensors")} == kept


def test_a_bare_config_has_nothing_to_measure(cache: Path, tiny_llama: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.yaml"
    model.write_text(MODEL.format(source=f"config: '{tiny_llama / 'config.json'}'"))
    told = planner("profile", "model", model)
    assert (told.exit_code, told.stdout, told.stderr.count("\n")) == (1, "", 1)
    assert "no weights to measure" in told.stderr and not (cache / "profiles").exists()
