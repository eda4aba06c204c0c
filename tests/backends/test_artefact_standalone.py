"""An artefact runs without this project, gives the same tokens, and refuses to run once a byte of it has changed."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from shutil import copytree

import pytest

from backends.transformers import executor, runner
from planner import artefact
from planner.errors import InputError, TamperedArtifact
from planner.executor import Artifact
from planner.formats import grouped, rotated
from planner.space import Full, KvChoice, KvSite, Window
from tests.backends.oracle import Subject, choice, subject

PROMPT = "The miller counted 405 sacks"
NEW_TOKENS = 24
HEADER = artefact.Header("transformers", "1", "0" * 64, "test")

# Runs a program as `python -I` would where this project is not installed.
ALONE = """
import runpy, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("planner", "passes", "backends", "profiles"):
            raise ModuleNotFoundError(f"No module named {name!r}")
sys.meta_path.insert(0, Absent())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def mixed(site: KvSite) -> KvChoice:
    """Two classes a layer."""
    return choice(Window(12), rotated(3), rotated(4)) if site.kv_head else choice(Full(), rotated(4))


@pytest.fixture(scope="module")
def llama(tiny_llama: Path) -> Subject:
    return subject(tiny_llama)


@pytest.fixture(scope="module")
def written(llama: Subject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artefact with windows, coded caches and packed weights."""
    directory = tmp_path_factory.mktemp("artefact") / "out"
    plan = llama.plan(mixed, lambda _: grouped(4))
    files = (*llama.executor.emit(plan, llama.spec), Artifact("notes/read me.txt", b"hello\n"))
    artefact.write(directory, files, HEADER)
    return directory


@pytest.fixture
def copied(written: Path, tmp_path: Path) -> Path:
    """An artefact to damage."""
    return Path(copytree(written, tmp_path / "copy"))


def alone(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """runner.py of an artefact, run in another directory without this project."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [sys.executable, "-I", "-c", ALONE, str(directory / "runner.py"), *arguments]
    return subprocess.run(
        command, cwd=directory.parent, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def in_process(directory: Path, prompt: str = PROMPT) -> str:
    return "".join(runner.answer(runner.load(directory), directory, prompt, NEW_TOKENS, 256, raw=False))


# --- running ------------------------------------------------------------------------------------


def test_it_runs_where_this_project_is_not(written: Path, tmp_path: Path) -> None:
    (tmp_path / "runner.py").write_text("import planner")
    assert "No module named 'planner'" in alone(tmp_path).stderr
    found = alone(written, "--prompt", PROMPT, "--max-new-tokens", str(NEW_TOKENS))
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout == in_process(written) + "\n"


def test_it_runs_with_the_tokens_of_the_plan(llama: Subject, written: Path) -> None:
    plan = llama.plan(mixed, lambda _: grouped(4))
    prompts = [[5, 6, 7] * 20, [9]]
    opened = llama.executor.open(plan).generate(prompts, NEW_TOKENS)
    assert executor.load(written).generate(prompts, NEW_TOKENS) == opened
    tokenizer = llama.executor.weights.tokenizer
    turns = tokenizer.apply_chat_template(
        [{"role": "user", "content": PROMPT}], tokenize=False, add_generation_prompt=True
    )
    (reply,) = llama.executor.open(plan).generate([tokenizer(turns).input_ids], NEW_TOKENS)
    stop = reply.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in reply else None
    wanted = tokenizer.decode(reply[:stop])
    printed = "".join(executor.reply(written, PROMPT, NEW_TOKENS, 256))
    assert printed and wanted.startswith(printed)  # a character that is not complete is never printed


def test_the_runner_is_copied_as_it_is(written: Path) -> None:
    assert (written / "runner.py").read_bytes() == executor.RUNNER.read_bytes()


def test_licences_travel_with_the_weights(written: Path) -> None:
    assert "licensed as" in (written / "LICENCE-OF-WEIGHTS.txt").read_text()
    assert (written / "tokenizer.json").is_file()


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


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(bytes(content))


def test_a_changed_byte_of_any_file_is_found(copied: Path) -> None:
    files = [path for path in sorted(copied.rglob("*")) if path.is_file() and path.name != artefact.MANIFEST]
    assert {path.name for path in files} >= {"runner.py", "kv.json", "weights.safetensors", "read me.txt"}
    runner.checked(copied)
    for path in files:
        for at in (0, path.stat().st_size // 2, path.stat().st_size - 1):
            flip(path, at)
            refused(copied, str(path), "differs from the sha256")
            flip(path, at)
        path.write_bytes(path.read_bytes() + b" ")
        refused(copied, str(path), "differs")
        path.write_bytes(path.read_bytes()[:-1])
    runner.checked(copied)


def test_a_changed_byte_of_the_list_of_files_is_found(copied: Path) -> None:
    manifest = copied / artefact.MANIFEST
    text = manifest.read_bytes()
    for at in range(text.index(b'"files"'), len(text) - 1, 11):
        flip(manifest, at)
        refused(copied, str(copied))
        flip(manifest, at)


def test_a_missing_file_is_found(copied: Path) -> None:
    for name in ("notes/read me.txt", "kv.json", "runner.py", artefact.MANIFEST):
        path = copied / name
        content = path.read_bytes()
        path.unlink()
        refused(copied, str(path), "not found" if name == artefact.MANIFEST else "is missing")
        path.write_bytes(content)


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "notes/../../secret", "notes/.."])
def test_a_path_that_leads_out_is_refused(copied: Path, name: str) -> None:
    (copied.parent / "secret").write_text("")
    edited(copied, lambda files: files | {name: "0" * 64})
    refused(copied, name, "lies outside the artefact")


@pytest.mark.parametrize("name", ["config.json", "kv.json", "weights.json", "weights.safetensors"])
def test_a_file_that_is_not_listed_is_not_read(copied: Path, name: str) -> None:
    edited(copied, lambda files: {n: digest for n, digest in files.items() if n != name})
    refused(copied, "does not list", name)


def edited(directory: Path, change: Callable[[dict[str, str]], dict[str, str]]) -> None:
    path = directory / artefact.MANIFEST
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "files": change(manifest["files"])}))


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"files": 5}', b'{"files": "ab"}', b"\xff", b"null"])
def test_a_manifest_that_is_none_is_refused(copied: Path, content: bytes) -> None:
    (copied / artefact.MANIFEST).write_bytes(content)
    refused(copied, artefact.MANIFEST, "is not a manifest")


def test_what_is_no_artefact_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not found; give a directory that planner compile wrote"):
        executor.load(tmp_path)


def test_a_prompt_beyond_the_models_positions_is_refused(written: Path) -> None:
    with pytest.raises(InputError, match=r"a context of \d+ tokens is more than the 2048"):
        list(executor.reply(written, "word " * 2048, NEW_TOKENS, 256))


def test_damage_ends_in_one_line(copied: Path) -> None:
    flip(copied / "weights.safetensors", 5000)
    found = alone(copied, "--prompt", PROMPT)
    assert (found.returncode, found.stdout) == (1, "")
    wanted = f"Error: {copied / 'weights.safetensors'}: differs from the sha256 in manifest.json; compile again\n"
    assert found.stderr == wanted


def test_a_prompt_beyond_the_models_positions_ends_in_one_line(written: Path) -> None:
    found = alone(written, "--prompt", "word " * 2048, "--max-new-tokens", "5")
    assert (found.returncode, found.stdout) == (1, "")
    assert found.stderr.startswith("Error: a context of ")
    assert found.stderr.count("\n") == 1
