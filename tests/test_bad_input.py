"""What ends badly ends in one line and its exit code and loses nothing: bad requests, places, artefacts; signals."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from shutil import copytree

import pytest
from click.testing import CliRunner, Result

from planner.artefact import MANIFEST, PLAN
from planner.cli import main
from planner.compile.exam import exam
from planner.errors import InputError
from planner.goal import Workload
from planner.plan import Plan
from planner.request import Verification
from planner.serde import dump, load_file
from profiles.documents import CALIBRATION_TEXT, shipped, tokenizer

pytestmark = pytest.mark.usefixtures("planner_cache")
Compiled = tuple[Path, Path, Result]
Files = Mapping[str, bytes]


def planner(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args], catch_exceptions=False)


def files(directory: Path) -> Files:
    """Everything below a directory."""
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def refused(told: Result, code: int, *parts: str) -> None:
    """The command ended in one line with these parts, and printed nothing else."""
    assert (told.exit_code, told.stdout, told.stderr.count("\n")) == (code, "", 1), told.output
    for part in parts:
        assert part in told.stderr


@pytest.fixture
def compile_with(compiled: Compiled, tmp_path: Path) -> Callable[..., Result]:
    """Compile the good request with one thing replaced; nothing may be left of it."""
    good = compiled[0].read_text()

    def run(old: str, new: str, *args: object) -> Result:
        assert old in good
        path = tmp_path / "model.yaml"
        path.write_text(good.replace(old, new))
        before = files(tmp_path)
        told = planner("compile", path, "--target", "laptop-cpu", "-o", tmp_path / "out", *args)
        assert files(tmp_path) == before
        assert not (tmp_path / "out").exists()
        return told

    return run


# --- requests -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("new_tokens: 8", "new_tokens: many", ("$.workload.new_tokens", "'many'")),
        ("new_tokens: 8", "new_token: 8", ("did you mean 'new_tokens'?",)),
        ("new_tokens: 8", "new_tokens: 64", ("leaves no prompt",)),
        ("minimise: loss_nats", "minimise: los_nats", ("$.goal.minimise",)),
        ("kv_share: 0.5", "kv_share: -1", ("kv_share", "positive")),
        ("kv_share: 0.5", "kv_bytes: 3 parsec", ("kv_bytes", "parsec")),
        ("[64]", "[4096]", ("4096", "2048 positions")),
        ("{documents: 2}", "{documents: 0}", ("verification.documents", "at least 1")),
        ("{documents: 2}", "{recall: -1}", ("verification.recall", "at least 0")),
        ("{documents: 2}", "{documents: 100000}", ("holds", "documents of 64 need")),
        ("{documents: 2}", "{documents: 2, text: none.txt}", ("none.txt", "cannot be read")),
        ("huggingface: ", "huggingface: ./nowhere, config: ", ("source", "exactly one")),
        ("huggingface: ", "gguf: ", ("source",)),
        ("schema: planner/model@1", "schema: planner/modle@1", ("schema",)),
        ("schema: planner/model@1", "schema: [", ("model.yaml",)),
    ],
)
def test_a_request_that_is_wrong_is_told_where(
    old: str, new: str, parts: tuple[str, ...], compile_with: Callable[..., Result]
) -> None:
    refused(compile_with(old, new), 1, *parts)


def test_yaml_runs_no_code(compile_with: Callable[..., Result], tmp_path: Path) -> None:
    code = f"!!python/object/apply:os.mkdir ['{tmp_path / 'made'}']"
    refused(compile_with("minimise: loss_nats", f"minimise: {code}"), 1, "model.yaml")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("args", "code", "parts"),
    [
        (("--target", "laptop-cpi"), 1, ("did you mean 'laptop-cpu'?",)),
        (("--target", "none.yaml"), 1, ("none.yaml", "cannot be read")),
        (("--passes", "prefix-kw,assign"), 1, ("--passes", "did you mean 'prefix-kv'?")),
        (("--passes", "uniform-kv{token=64},assign"), 1, ("--passes", "token")),
        (("--passes", "uniform-kv"), 1, ("--passes", "end with assign")),
        (("--passes", "assign,assign"), 1, ("--passes", "name it once")),
        (("--backend", "transformer"), 1, ("--backend", "did you mean 'transformers'?")),
        (("--dump", "OUT/spaces"), 1, ("--dump", "another")),
    ],
)
def test_an_option_that_is_wrong_is_told(
    args: tuple[str, ...], code: int, parts: tuple[str, ...], compile_with: Callable[..., Result], tmp_path: Path
) -> None:
    told = [arg.replace("OUT", str(tmp_path / "out")) for arg in args]
    refused(compile_with("schema", "schema", *told), code, *parts)


@pytest.mark.parametrize("seed", ["-1", "many", str(2**31)])
def test_a_seed_that_is_none_is_wrong_usage(seed: str, compile_with: Callable[..., Result]) -> None:
    assert compile_with("schema", "schema", "--seed", seed).exit_code == 2


@pytest.mark.parametrize(
    ("limits", "name"),
    [
        ("{kv_share: 0.001}", "kv_share"),
        ("{weight_bytes: 1 kB}", "weight_bytes"),
        ("{decode_s: 1 ns}", "decode_s"),
        ("{kv_share: 0.25, loss_nats: 0.000001}", "loss_nats"),
    ],
)
def test_limits_that_cannot_be_met_are_named_with_what_could(
    limits: str, name: str, compile_with: Callable[..., Result]
) -> None:
    refused(compile_with("{kv_share: 0.5}", limits), 3, name, "at least")


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF\x03\0\0\0" + (9).to_bytes(8, "little") * 2, b"no model"])
def test_a_gguf_that_is_cut_short_is_told(content: bytes, compile_with: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "cut.gguf").write_bytes(content)
    refused(compile_with("source: {huggingface: ", "source: {gguf: cut.gguf} #"), 1, "cut.gguf")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_model_directory_that_is_damaged_is_told(
    name: str, damage: str, tiny_llama: Path, compile_with: Callable[..., Result], tmp_path: Path
) -> None:
    path = Path(copytree(tiny_llama, tmp_path / "damaged")) / name
    content = path.read_bytes()
    path.unlink()
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    refused(compile_with("source: {huggingface: ", "source: {huggingface: damaged} #"), 1, "damaged")


@pytest.mark.parametrize(
    ("content", "part"), [(b"", "holds 0 tokens"), (b"A short text.", "longer text"), (b"\xff\xfe\x00x", "not UTF-8")]
)
@pytest.mark.parametrize("section", ["calibration: {", "verification: {"])
def test_a_text_that_is_no_use_is_told(
    content: bytes, part: str, section: str, compile_with: Callable[..., Result], tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_bytes(content)
    refused(compile_with(section, f"{section}text: text.txt, "), 1, "text.txt", part)


def test_a_text_is_not_both_learnt_from_and_verified_on(compile_with: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("The river ran past the old mill. " * 200)
    good = "calibration: {documents: 1, draws: 2}\nverification: {documents: 2}"
    both = good.replace("{", "{text: text.txt, ")
    refused(compile_with(good, both), 1, "text.txt", "calibrated on")


def test_documents_that_quote_the_calibration_text_are_refused(tiny_llama: Path, tmp_path: Path) -> None:
    """However their lines are broken; a phrase in common is no quotation."""
    learnt, text, workload = shipped(CALIBRATION_TEXT), tmp_path / "text.txt", Workload((1024,), new_tokens=8)
    own = "".join(f"Sentence {i} of a text of its own.\n" for i in range(200))
    for quoted, seen in ((learnt[1000:1100], False), (learnt[1000:1500], True)):
        text.write_text(own[:600] + "\n".join(textwrap.wrap(quoted, 40)) + own)
        asked = partial(exam, tokenizer(tiny_llama), workload, Verification(text, 1, recall=0))
        assert len(asked().documents) == 1
        with pytest.raises(InputError, match="shares the passage") if seen else nullcontext():
            asked(learnt=learnt)


def test_a_bad_text_is_told_before_anything_is_measured(
    compile_with: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLANNER_CACHE", str(tmp_path / "empty"))
    refused(compile_with("verification: {", "verification: {text: none.txt, "), 1, "none.txt")
    assert not files(tmp_path / "empty")


def test_a_cache_that_cannot_be_made_is_told(
    compile_with: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("PLANNER_CACHE", str(tmp_path / "file" / "cache"))
    refused(compile_with("schema", "schema"), 1, "PLANNER_CACHE")


# --- places -------------------------------------------------------------------------------------


def test_a_place_that_is_not_ours_is_left_alone(compiled: Compiled, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_bytes(b"mine")
    (Path(copytree(compiled[1], tmp_path / "noted")) / "notes.txt").write_bytes(b"mine")
    before = files(tmp_path)
    for out, part in (
        (tmp_path / "file", "is a file"),
        (tmp_path / "file" / "below", "not a directory"),
        (tmp_path / "full", "is not empty"),
        (tmp_path / "noted", "notes.txt"),
        (Path("/proc/out"), "cannot be written"),
        (Path("."), "cannot be replaced"),
        (Path("/"), "cannot be replaced"),
    ):
        refused(planner("compile", compiled[0], "--target", "laptop-cpu", "-o", out), 1, f"Error: {out}: ", part)
        assert files(tmp_path) == before


# --- artefacts ----------------------------------------------------------------------------------


def uses(out: Path) -> Iterator[Result]:
    """Every command that runs an artefact."""
    yield planner("verify", out, "--documents", 1)
    yield planner("run", out, "--prompt", "a", "--max-new-tokens", 1)


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("harm", [flipped, Path.unlink], ids=["flipped", "missing"])
def test_every_file_of_an_artefact_is_guarded(harm: Callable[[Path], None], compiled: Compiled, tmp_path: Path) -> None:
    for name in files(compiled[1]):
        out = Path(copytree(compiled[1], tmp_path / name))
        harm(out / name)
        for told in uses(out):
            refused(told, 1, str(out))


@pytest.mark.parametrize("word", ['"onnxruntime"', '"runtime_version": "', '"planner_version": "', "planner/manifest"])
def test_every_word_of_a_manifest_is_guarded(word: str, compiled: Compiled, tmp_path: Path) -> None:
    out = Path(copytree(compiled[1], tmp_path / "out"))
    text = (out / MANIFEST).read_text()
    at = text.index(word) + len(word)
    (out / MANIFEST).write_text(f"{text[: at - 1]}9{text[at - 1 :]}")
    for told in uses(out):
        refused(told, 1, str(out))


def test_the_plan_of_another_model_is_not_taken(compiled: Compiled, tmp_path: Path) -> None:
    out = Path(copytree(compiled[1], tmp_path / "out"))
    (out / PLAN).write_bytes((Path(__file__).parent / "planner" / "plans" / "v1.yaml").read_bytes())
    for told in uses(out):
        refused(told, 1, PLAN, MANIFEST)


def test_what_cannot_be_asked_of_an_artefact_is_told(compiled: Compiled, tmp_path: Path) -> None:
    out = compiled[1]
    (tmp_path / "short.txt").write_text("short")
    refused(planner("verify", out, "--text", tmp_path / "short.txt"), 1, "short.txt", "longer text")
    refused(planner("verify", out, "--text", tmp_path / "none.txt"), 1, "none.txt")
    refused(planner("run", out, "--prompt", "a b " * 3000), 1, "2048")
    refused(planner("verify", tmp_path), 1, MANIFEST)
    refused(planner("verify", tmp_path / "nowhere"), 1, "is not a directory")
    assert planner("verify", out, "--documents", 0).exit_code == 2


# --- signals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGKILL])
def test_a_run_killed_half_way_loses_nothing(
    kind: signal.Signals, compiled: Compiled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, undisturbed, _ = compiled
    out = Path(copytree(undisturbed, tmp_path / "work" / "out"))
    before, cache, scratch = files(out), tmp_path / "cache", tmp_path / "scratch"
    scratch.mkdir()
    environment = {**os.environ, "PLANNER_CACHE": str(cache), "TMPDIR": str(scratch)}
    command = [sys.executable, "-m", "planner", "compile", str(model), "--target", "laptop-cpu", "-o", str(out)]
    run = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not list(cache.rglob("kv-*.safetensors")) and run.poll() is None:
        time.sleep(0.005)
    run.send_signal(kind)
    printed, told = run.communicate(timeout=60)
    assert printed == ""
    if kind is signal.SIGINT:
        # A slow machine tells its progress before.
        assert run.returncode == 130 and "Traceback" not in told, told
        assert told.splitlines()[-1].startswith("Error: stopped") and told.count("Error") == 1
    assert files(out) == before
    assert [p.name for p in (tmp_path / "work").iterdir()] == ["out"]
    # ONNX Runtime leaves the name of its telemetry session, which is switched off, as soon as it is imported.
    assert {path.name for path in scratch.iterdir()} <= {".ses"}
    kept = {p: p.stat().st_mtime_ns for p in cache.rglob("*.safetensors")}
    assert kept

    monkeypatch.setenv("PLANNER_CACHE", str(cache))
    assert planner("compile", model, "--target", "laptop-cpu", "-o", out).exit_code == 0
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    assert len(list(cache.rglob("*.safetensors"))) > len(kept)
    one, two = (load_file(directory / PLAN, Plan) for directory in (undisturbed, out))
    assert dump(one.without_measurement()) == dump(two.without_measurement())
