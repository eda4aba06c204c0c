"""llama.cpp really running what plans say, beside the oracle that computes the same numbers."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from backends.llamacpp.library import missing

if missing():
    pytest.skip(f"llama.cpp is not here: {missing()}", allow_module_level=True)

from backends.llamacpp import executor as llamacpp
from backends.llamacpp import layout, probe
from backends.llamacpp.executor import LlamaCppExecutor
from backends.transformers.oracle import Oracle
from planner.artefact import Header, write
from planner.errors import InputError, TamperedArtifact
from planner.executor import FEW_SLOTS
from planner.formats import GGML_KV, ggml, ggml_kv
from planner.plan import Plan, sha256
from planner.serde import dump
from planner.space import FLOAT16, FLOAT32, Full, KvChoice, KvSite, WeightFormat, Window
from tests.backends.oracle import FULL32, Subject, choice, subject, tokens_of
from tests.backends.test_llamacpp_file import mixed

TOKENS = tokens_of(200, seed=3)
FIRST = 40


@pytest.fixture(scope="module")
def llama(tiny_llama: Path) -> Subject:
    return subject(tiny_llama)


@pytest.fixture(scope="module")
def three(tiny: Callable[[str], Path]) -> Subject:
    """Heads of 32, which ggml's blocks divide."""
    return subject(tiny("llama-three"))


def ours(who: Subject) -> LlamaCppExecutor:
    return LlamaCppExecutor(who.executor.weights, who.spec)


def both(who: Subject, plan: Plan) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities [tokens, vocab] in llama.cpp and in the oracle."""
    run = ours(who)
    oracle = Oracle(run, who.executor.weights, who.spec).open(plan, {})
    return run.open(plan).score(TOKENS, FIRST, 64), oracle.score(TOKENS, FIRST, 64)


def likelihood(scores: np.ndarray) -> float:
    """Mean log-probability of the text itself."""
    return float(scores[np.arange(len(scores) - 1), TOKENS[FIRST + 1 :]].mean())


@pytest.mark.parametrize("name", ["llama", "llama-llama3", "llama-linear", "qwen2", "qwen3", "mistral"])
def test_floats_give_what_the_plain_model_does(tiny: Callable[[str], Path], name: str) -> None:
    who = subject(tiny(name))
    got = ours(who).open(who.plan(lambda _: FULL32)).score(TOKENS, FIRST, 64)
    wanted = who.plainly(TOKENS).log_softmax(-1)[FIRST:].numpy()
    assert np.abs(got - wanted).max() < 6e-2


def test_mixed_weights_give_what_their_numbers_give(llama: Subject) -> None:
    got, wanted = both(llama, llama.plan(lambda _: FULL32, mixed))
    assert abs(likelihood(got) - likelihood(wanted)) < 0.03
    assert np.median(np.abs(got - wanted).max(-1)) < 0.3


@pytest.mark.parametrize("window", [16, 100])
def test_windows_by_layer_hide_what_they_should(llama: Subject, window: int) -> None:
    def kv(site: KvSite) -> KvChoice:
        return choice(Full() if site.layer == 1 else Window(window), FLOAT32, sinks=0)

    got, wanted = both(llama, llama.plan(kv))
    assert np.abs(got - wanted).max() < 6e-2
    whole, _ = both(llama, llama.plan(lambda _: FULL32))
    assert np.abs(got - whole).max() > 0.1


@pytest.mark.parametrize("name", GGML_KV)
def test_caches_in_blocks_give_what_their_numbers_give(three: Subject, name: str) -> None:
    got, wanted = both(three, three.plan(lambda _: choice(Full(), ggml_kv("q8_0"), ggml_kv(name), sinks=0)))
    assert abs(likelihood(got) - likelihood(wanted)) < 0.03


def test_the_same_in_chunks_of_any_length(llama: Subject) -> None:
    session = ours(llama).open(llama.plan(lambda _: FULL32))
    whole = session.score(TOKENS, FIRST, 256)
    for chunk in (7, 64, 1000):
        # Attention sums in another order, and takes exponentials by a polynomial.
        assert np.abs(session.score(TOKENS, FIRST, chunk) - whole).mean() < 3e-3


def test_a_batch_of_unequal_prompts_continues_as_each_alone(llama: Subject) -> None:
    session = ours(llama).open(llama.plan(lambda _: FULL32))
    prompts = [TOKENS[:50], TOKENS[50:63], TOKENS[100:190]]
    together = session.generate(prompts, 6)
    assert together == [session.generate([prompt], 6)[0] for prompt in prompts]
    assert [session.score([*p, *t], len(p) - 1, 64)[0].argmax() for p, t in zip(prompts, together, strict=True)] == [
        t[0] for t in together
    ]


def test_bytes_are_of_the_cells_that_were_allocated(three: Subject) -> None:
    def kv(site: KvSite) -> KvChoice:
        return choice(Full() if site.layer else Window(16), FLOAT16, ggml_kv("q4_1"), sinks=0)

    timing = ours(three).open(three.plan(kv)).time(TOKENS * 5, 4, 64, batch=2)
    cells = layout.cells(16, 1004) + layout.cells(None, 1004)
    assert (layout.cells(16, 1004), layout.cells(None, 1004)) == (512, 1024)
    assert timing.kv_bytes == 2 * cells * 3 * 32 * (16 + 5) // 8
    assert len(timing.decode_s) == 4 and timing.ttft_s > 0


def test_bad_prompts_and_contexts_end_in_one_line(llama: Subject) -> None:
    session = ours(llama).open(llama.plan(lambda _: FULL32))
    for prompts in ([], [[]]):
        with pytest.raises(InputError, match="at least one token"):
            session.generate(prompts, 2)
    with pytest.raises(InputError, match="cannot decode"):
        session.score([5, 10_000_000], 0, 8)


def artefact_of(who: Subject, plan: Plan, out: Path) -> Path:
    text, executor = dump(plan), ours(who)
    write(out, executor.emit(plan, who.spec), Header("llamacpp", "1", sha256(text), plan.provenance.planner_version))
    return out


def test_an_artefact_runs_as_the_plan_that_was_opened(llama: Subject, tmp_path: Path) -> None:
    def kv(site: KvSite) -> KvChoice:
        return choice(Window(16) if site.layer else Full(), FLOAT16, sinks=0)

    plan = llama.plan(kv, mixed)
    out = artefact_of(llama, plan, tmp_path / "out")
    opened = ours(llama).open(plan)
    assert np.array_equal(llamacpp.load(out).score(TOKENS, FIRST, 64), opened.score(TOKENS, FIRST, 64))
    told = json.loads((out / "llama.json").read_text())
    assert (out / "model.gguf").stat().st_size == sum(told["file_bytes"].values())
    whole = ours(llama).open(llama.plan(lambda _: FULL32, mixed)).score(TOKENS, FIRST, 64)
    assert np.abs(llamacpp.uncompressed(out).score(TOKENS, FIRST, 64) - whole).max() < 1e-3
    said = "".join(llamacpp.reply(out, "Hello", 4, 64))
    assert isinstance(said, str)


def test_a_changed_file_is_refused(llama: Subject, tmp_path: Path) -> None:
    out = artefact_of(llama, llama.plan(lambda _: FULL32), tmp_path / "out")
    with (out / "model.gguf").open("r+b") as file:
        file.seek(-8, 2)
        file.write(b"\1")
    with pytest.raises(TamperedArtifact, match=r"model.gguf: differs from the sha256"):
        llamacpp.load(out)


def test_the_source_s_own_blocks_travel_as_they_are(llama: Subject, tmp_path: Path) -> None:
    from profiles.sources.gguf import open_gguf
    from profiles.weights import CheckpointWeights

    out = artefact_of(llama, llama.plan(lambda _: FULL32, mixed), tmp_path / "out")
    checkpoint = open_gguf(out / "model.gguf", "again")
    again = LlamaCppExecutor(CheckpointWeights(checkpoint), checkpoint.spec)
    for tensor in checkpoint.spec.tensors:
        form = mixed(tensor.name)
        wanted = ours(llama).recode_weight(tensor.name, form)
        assert np.array_equal(again.recode_weight(tensor.name, form), wanted)
    who = Subject(llama.executor, checkpoint.spec, llama.model, llama.statics)
    other = tmp_path / "other"
    text = dump(who.plan(lambda _: FULL32, mixed))
    write(
        other, again.emit(who.plan(lambda _: FULL32, mixed), checkpoint.spec), Header("llamacpp", "1", sha256(text), "")
    )
    first, second = ((each / "model.gguf").read_bytes() for each in (out, other))
    start = json.loads((out / "llama.json").read_text())["file_bytes"]["head"]
    begin = json.loads((other / "llama.json").read_text())["file_bytes"]["head"]
    assert first[start:] == second[begin:]


@pytest.mark.parametrize("form", [WeightFormat(32), ggml("q4_0"), ggml("q6_K")])
def test_products_and_attention_can_be_timed(form: WeightFormat) -> None:
    small = probe.Shape(1, 256, 256, 4, 2, 64, 64, form)
    assert probe.LlamaCppProbe._multiplying(small, 3)().shape == (1, probe.VOCAB)
    if form == WeightFormat(32):
        for one in probe.LlamaCppProbe().attention():
            if one.slots == FEW_SLOTS and one.head_dim == 64:
                assert one.open()().shape == (1, probe.VOCAB)
        step = probe.LlamaCppProbe().decoder(2, 1)
        assert all(step.call() is not None for _ in range(60))
