"""An artefact for ONNX Runtime runs with three packages, bit for bit as in process, and not once it was changed."""

import os
import subprocess
import sys
from pathlib import Path
from shutil import copytree

import numpy as np
import onnx
import pytest

from backends.onnxruntime import executor, runner
from backends.onnxruntime.runner import Chat
from planner import artefact
from planner.errors import InputError, TamperedArtifact
from planner.executor import Artifact
from planner.formats import block, static
from planner.plan import Plan
from planner.space import FLOAT32, Full, KvChoice, KvSite, WeightFormat, Window
from tests.backends.oracle import DENSE, choice, tokens_of
from tests.backends.ort import Pair, pair, read, stepped
from tests.backends.test_artefact_standalone import edited, flip

PROMPT = "The miller counted 405 sacks"
NEW_TOKENS = 24
HEADER = artefact.Header("onnxruntime", "1", "0" * 64, "test")

# Runs a program where this project and every framework that it may lean on are not installed.
ALONE = """
import runpy, sys
ABSENT = {"planner", "passes", "backends", "profiles", "torch", "transformers", "onnx", "jinja2", "safetensors"}
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}")
sys.meta_path.insert(0, Absent())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def mixed(site: KvSite) -> KvChoice:
    """Two classes a layer, coded at two widths and not at all."""
    if site.kv_head:
        return choice(Window(12), static(8 if site.layer % 2 else 4))
    return choice(Full(), static(8) if site.layer else FLOAT32)


def weights(name: str) -> WeightFormat:
    return block(8) if "embed" in name else block(4) if "mlp" in name else DENSE


@pytest.fixture(scope="module")
def llama(tiny_llama: Path) -> Pair:
    return pair(tiny_llama)


@pytest.fixture(scope="module")
def plan(llama: Pair) -> Plan:
    return llama.other.plan(mixed, weights)


@pytest.fixture(scope="module")
def written(llama: Pair, plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("artefact") / "out"
    files = (*llama.executor.emit(plan, llama.other.spec), Artifact("notes/read me.txt", b"hello\n"))
    artefact.write(directory, files, HEADER)
    return directory


@pytest.fixture
def copied(written: Path, tmp_path: Path) -> Path:
    """An artefact to damage."""
    return Path(copytree(written, tmp_path / "copy"))


def alone(directory: Path, *arguments: str, said: str = "") -> subprocess.CompletedProcess[str]:
    """runner.py of an artefact, run in another directory without this project."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [sys.executable, "-I", "-c", ALONE, str(directory / "runner.py"), *arguments]
    return subprocess.run(
        command,
        cwd=directory.parent,
        env=environment,
        input=said,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def in_process(directory: Path, prompt: list[int], chat: Chat) -> str:
    model = runner.load(directory)
    cache = model.cache(1, len(prompt) + NEW_TOKENS)
    return "".join(runner.answer(model, chat, cache, prompt, NEW_TOKENS, 256))


# --- running ------------------------------------------------------------------------------------


def test_it_gives_what_the_plan_gave_in_process(llama: Pair, plan: Plan, written: Path) -> None:
    opened, loaded = llama.open(plan), runner.load(written)
    tokens = tokens_of(90)
    assert np.array_equal(read(opened, tokens, 120, 16), read(loaded, tokens, 120, 16))
    steps = []
    for model in (opened, loaded):
        cache = model.cache(1, 120)
        model.read(cache, 0, tokens[:40], 16)
        steps.append(stepped(model, cache, tokens[40:]))
    assert np.array_equal(steps[0], steps[1])
    assert (opened.weight_bytes, opened.static_bytes) == (loaded.weight_bytes, loaded.static_bytes)
    assert opened.layout == loaded.layout
    prompts = [tokens_of(60), [9]]
    assert executor.load(written).generate(prompts, 20) == llama.executor.open(plan).generate(prompts, 20)


def test_it_holds_what_is_counted(written: Path, llama: Pair, plan: Plan) -> None:
    """The graph's constants, at whole pages, with the tables that are made from the config."""
    model = llama.open(plan)
    size = (written / runner.GRAPH_DATA).stat().st_size
    tables = 2 * llama.other.spec.max_positions * 8 * 4
    counted = model.weight_bytes + model.static_bytes + tables
    assert counted <= size < counted + 200 * 4096
    assert (written / runner.GRAPH).stat().st_size < 200_000


@pytest.mark.parametrize("arguments", [(), ("--raw",)])
def test_it_runs_where_nothing_else_is(written: Path, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    (tmp_path / "runner.py").write_text("import transformers")
    assert "No module named 'transformers'" in alone(tmp_path).stderr
    found = alone(written, "--prompt", PROMPT, "--max-new-tokens", str(NEW_TOKENS), *arguments)
    chat = Chat.of(written)
    prompt = chat.raw(PROMPT) if arguments else chat.prompt([{"role": "user", "content": PROMPT}])
    assert found.returncode == 0, found.stderr
    assert found.stdout.removesuffix("\n") == in_process(written, prompt, chat).removesuffix("\n")
    assert found.stdout.strip()


def test_it_holds_a_conversation(written: Path) -> None:
    found = alone(written, "--max-new-tokens", "6", "--threads", "1", said="How many sacks?\nAnd then?\n")
    assert (found.returncode, found.stderr) == (0, "")
    model, chat = runner.load(written, 1), Chat.of(written)
    messages: list[dict[str, str]] = []
    wanted = ""
    cache = model.cache(1, model.layout["max_positions"])
    for said in ("How many sacks?", "And then?"):
        messages.append({"role": "user", "content": said})
        reply = "".join(runner.answer(model, chat, cache, chat.prompt(messages), 6, 256))
        messages.append({"role": "assistant", "content": reply})
        wanted += reply + "\n"
    assert found.stdout == wanted
    assert len(wanted.strip()) > 2


def test_an_empty_line_is_a_message_and_no_line_is_none(written: Path) -> None:
    assert alone(written, said="").stdout == ""
    found = alone(written, "--max-new-tokens", "4", said="\n")
    assert (found.returncode, found.stderr) == (0, "")


def test_the_runner_and_the_licence_travel_along(written: Path) -> None:
    assert (written / "runner.py").read_bytes() == executor.RUNNER.read_bytes()
    assert "licensed as" in (written / "LICENCE-OF-WEIGHTS.txt").read_text()


def test_constants_can_be_mapped(written: Path) -> None:
    """Every one begins a page, behind the one before, and the last one ends the file."""
    model = onnx.load(str(written / runner.GRAPH), load_external_data=False)
    size, end = (written / runner.GRAPH_DATA).stat().st_size, 0
    outside = [each for each in model.graph.initializer if each.data_location == onnx.TensorProto.EXTERNAL]
    assert len(outside) > 20
    for each in outside:
        told = {entry.key: entry.value for entry in each.external_data}
        offset, length = int(told["offset"]), int(told["length"])
        assert told["location"] == runner.GRAPH_DATA and offset % 4096 == 0 and end <= offset
        end = offset + length
    assert end == size


# --- damage -------------------------------------------------------------------------------------


def refused(directory: Path, *words: str) -> None:
    """Loading it raises, in one line that holds the words, and so does the executor."""
    with pytest.raises(runner.ArtefactError) as error:
        runner.load(directory)
    message = str(error.value)
    assert "\n" not in message
    assert all(word in message for word in words), message
    with pytest.raises(TamperedArtifact):
        executor.load(directory)


def test_a_changed_byte_of_any_file_is_found(copied: Path) -> None:
    files = [path for path in sorted(copied.rglob("*")) if path.is_file() and path.name != artefact.MANIFEST]
    needed = {"runner.py", "kv.json", "chat.json", "tokenizer.json", "model.onnx", "model.onnx.data", "read me.txt"}
    assert {path.name for path in files} >= needed
    runner.checked(copied)
    for path in files:
        for at in {0, path.stat().st_size // 2, path.stat().st_size - 1}:
            flip(path, at)
            refused(copied, str(path), "differs from the sha256")
            flip(path, at)
    runner.checked(copied)


@pytest.mark.parametrize("name", ["kv.json", "model.onnx", "model.onnx.data", "tokenizer.json", artefact.MANIFEST])
def test_a_missing_file_is_found(copied: Path, name: str) -> None:
    (copied / name).unlink()
    refused(copied, name, "not found" if name == artefact.MANIFEST else "is missing")


@pytest.mark.parametrize("name", ["kv.json", "chat.json", "tokenizer.json", "model.onnx", "model.onnx.data"])
def test_a_file_that_is_not_listed_is_not_read(copied: Path, name: str) -> None:
    edited(copied, lambda files: {n: digest for n, digest in files.items() if n != name})
    refused(copied, "does not list", name)


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "notes/../../secret"])
def test_a_path_that_leads_out_is_refused(copied: Path, name: str) -> None:
    (copied.parent / "secret").write_text("")
    edited(copied, lambda files: files | {name: "0" * 64})
    refused(copied, name, "lies outside the artefact")


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"files": 5}', b'{"files": "ab"}', b"\xff", b"null"])
def test_a_manifest_that_is_none_is_refused(copied: Path, content: bytes) -> None:
    (copied / artefact.MANIFEST).write_bytes(content)
    refused(copied, artefact.MANIFEST, "is not a manifest")


def test_what_is_no_artefact_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not found; give a directory that planner compile wrote"):
        executor.load(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--prompt", ""), ""),
        (("--prompt", "word " * 2048, "--max-new-tokens", "5"), "tokens"),
        (("--prompt", PROMPT, "--chunk-tokens", "0"), "chunks of 0 tokens; give at least 1"),
    ],
)
def test_what_it_cannot_do_ends_in_one_line(written: Path, arguments: tuple[str, ...], words: str) -> None:
    found = alone(written, *arguments, "--raw")
    assert (found.returncode, found.stdout) == (1, "")
    assert found.stderr.startswith("Error: ") and words in found.stderr and found.stderr.count("\n") == 1


def test_damage_ends_in_one_line(copied: Path) -> None:
    flip(copied / runner.GRAPH_DATA, 5000)
    found = alone(copied, "--prompt", PROMPT)
    assert (found.returncode, found.stdout) == (1, "")
    wanted = f"Error: {copied / runner.GRAPH_DATA}: differs from the sha256 in manifest.json; compile again\n"
    assert found.stderr == wanted
