"""llama.cpp from the command line: plans compiled for it, and artefacts raced against it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from backends.llamacpp.library import missing
from planner.cli import main

pytestmark = [
    pytest.mark.usefixtures("planner_cache"),
    pytest.mark.skipif(bool(missing()), reason=f"llama.cpp is not here: {missing()}"),
]


def planner(*args: object, fails: bool = False) -> Result:
    result = CliRunner().invoke(main, [str(arg) for arg in args], catch_exceptions=False)
    assert (result.exit_code != 0) == fails, result.output
    return result


@pytest.fixture(scope="module")
def request_file(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llamacpp") / "model.yaml"
    path.write_text(
        "schema: planner/model@1\n"
        f"source: {{huggingface: '{tiny('llama-three')}'}}\n"
        "workload: {context_tokens: [64], new_tokens: 8, prefill_chunk_tokens: 32}\n"
        "goal: {minimise: loss_nats, limits: {weight_bytes: 240000}}\n"
        "calibration: {documents: 1, draws: 2}\n"
        "verification: {documents: 2}\n"
    )
    return path


def test_a_plan_is_compiled_into_a_file_that_speaks_and_keeps_its_limit(request_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    told = json.loads(
        planner("compile", request_file, "--backend", "llamacpp", "--target", "laptop-cpu", "-o", out, "--json").stdout
    )
    shipped = told[told["shipped"]]
    size = json.loads((out / "llama.json").read_text())["file_bytes"]
    assert (out / "model.gguf").stat().st_size == sum(size.values())
    assert shipped["predicted"]["weight_bytes"] == size["weights"] + size["vectors"] <= 240000
    assert shipped["measured"]["weight_bytes"] == shipped["predicted"]["weight_bytes"]
    types = {line.strip() for line in (out / "plan.yaml").read_text().splitlines() if "scheme" in line}
    assert len(types) > 1
    verified = json.loads(planner("verify", out, "--json").stdout)
    assert not verified["missed"]


def test_an_artefact_is_raced_against_llama_cpp_with_the_same_model(compiled: tuple[Path, Path, Result]) -> None:
    path, out, _ = compiled
    args = ("bench", out, "--against", "llama.cpp", "--context-tokens", 64, "--rounds", 1)
    told = json.loads(planner(*args, "--model", path, "--documents", 1, "--json").stdout)
    assert set(told["rows"]) == {"out", "llama.cpp"}
    for row in told["rows"].values():
        assert row["decode_s"]["value"] > 0 and row["loss_nats"]["value"] >= 0
    assert sum("taken" in line for line in told["told"]) == 1 and len(told["told"]) == 2  # heads of 16 have no q8_0


def test_the_race_needs_the_model_that_the_artefact_is_of(
    compiled: tuple[Path, Path, Result], request_file: Path
) -> None:
    _, out, _ = compiled
    refused = planner("bench", out, "--against", "llama.cpp", fails=True)
    assert "--against llama.cpp: needs --model" in refused.output
    other = planner("bench", out, "--against", "llama.cpp", "--model", request_file, fails=True)
    assert "names other weights than this artefact was made of" in other.output
