"""Which runtime a compilation takes, what verify and bench run it beside, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from planner.cli import main
from planner.compile.runtimes import RUNTIMES, choose, runtime
from planner.errors import InputError
from profiles.targets import target

Tiny = Callable[[str], Path]

pytestmark = pytest.mark.usefixtures("planner_cache")


def planner(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args], catch_exceptions=False)


def config(tiny: Tiny, family: str) -> str:
    return (tiny(family) / "config.json").read_text()


def test_a_cpu_takes_onnx_runtime_and_a_gpu_transformers(tiny: Tiny) -> None:
    llama = config(tiny, "llama")
    assert choose(None, "local", llama) == choose(None, target("server-cpu"), llama) == ("onnxruntime", ())
    assert choose(None, target("a100"), llama) == ("transformers", ())
    assert choose("transformers", "local", llama) == ("transformers", ())


def test_a_family_without_a_graph_is_told(tiny: Tiny) -> None:
    gpt2 = config(tiny, "gpt2")
    name, notes = choose(None, "local", gpt2)
    assert name == "transformers" and "model_type: found 'gpt2'" in notes[0]
    with pytest.raises(InputError, match=r"--backend onnxruntime: model_type: found 'gpt2'.*give --backend transf"):
        choose("onnxruntime", "local", gpt2)


def test_graphs_for_cpus_are_not_planned_for_a_gpu(tiny: Tiny) -> None:
    with pytest.raises(InputError, match="--backend onnxruntime: its graphs are for CPUs, and the target is a GPU"):
        choose("onnxruntime", target("a100"), config(tiny, "llama"))


def test_an_unknown_runtime_is_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match="--backend: unknown runtime 'onnxrutime'; did you mean 'onnxruntime'"):
        runtime("onnxrutime")


def test_every_runtime_is_listed() -> None:
    told = json.loads(planner("backends", "--json").stdout)
    assert {each["runtime"] for each in told["backends"]} == set(RUNTIMES)


def test_dense_beside_an_artefact_is_its_weights_under_a_full_cache(compiled: tuple[Path, Path, Result]) -> None:
    _, out, _ = compiled
    here = runtime(json.loads((out / "manifest.json").read_text())["runtime"])
    dense, planned = here.uncompressed(out), here.load(out)
    tokens = [3 + i % 40 for i in range(60)]
    # As long as nothing has left and nothing is coded the two are one; later they are not.
    full = dense.time(tokens, 2, 16)
    assert full.weight_bytes == planned.time(tokens, 2, 16).weight_bytes
    assert full.kv_bytes > planned.time(tokens, 2, 16).kv_bytes
    scores = dense.score(tokens, 0, 7)
    assert np.allclose(scores, dense.score(tokens, 0, 60), atol=2e-4)
    assert not np.allclose(scores, planned.score(tokens, 0, 60), atol=1e-3)


def test_bench_times_artefacts_in_turns(compiled: tuple[Path, Path, Result]) -> None:
    _, out, _ = compiled
    told = planner("bench", out, "--against", "dense", "--rounds", 2, "--batch", 2, "--json")
    assert told.exit_code == 0
    report = json.loads(told.stdout)
    assert set(report["rows"]) == {out.name, "dense"} and report["batch"] == 2
    for row in report["rows"].values():
        assert 0 < row["decode_s"]["low"] <= row["decode_s"]["value"] <= row["decode_s"]["high"]
    assert report["rows"]["dense"]["kv_bytes"] > report["rows"][out.name]["kv_bytes"]
    assert report["process_bytes"] > report["rows"]["dense"]["weight_bytes"]


def test_bench_refuses_what_it_cannot_time(compiled: tuple[Path, Path, Result], tmp_path: Path) -> None:
    _, out, _ = compiled
    for against, why in (
        (out, "there already"),
        (tmp_path, "holds no manifest.json"),
        ("nowhere", "is not a directory"),
    ):
        told = planner("bench", out, "--against", against)
        assert told.exit_code == 1 and why in told.stderr and told.stderr.count("\n") == 1
