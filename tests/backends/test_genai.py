"""onnxruntime-genai runs the graphs of a plan as the oracle does, from rings of the length that was planned."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from backends.genai.capabilities import MODULE, VERSIONS
from backends.genai.executor import GenaiExecutor, GenaiSession, counted
from backends.genai.layout import CONFIG, genai_config, windows
from planner.errors import InputError
from planner.formats import block, head_bytes, static, weight_bytes
from planner.goal import Workload
from planner.plan import Plan
from planner.space import FLOAT32, Full, KvChoice, KvFormat, KvSite, WeightFormat, Window
from tests.backends.oracle import Subject, choice, subject, tokens_of

CONTEXT = 96
FIRST = 24
here = pytest.mark.skipif(not VERSIONS[-1].executes_here, reason=f"{MODULE} is not installed (extra: genai)")


@pytest.fixture(scope="module")
def llama(tiny_llama: Path) -> Subject:
    return subject(tiny_llama)


@pytest.fixture(scope="module")
def wide(tiny: Callable[[str], Path]) -> Subject:
    """Three KV heads of 32."""
    return subject(tiny("llama-three"))


def executor_of(who: Subject) -> GenaiExecutor:
    executor = GenaiExecutor(who.executor.weights, who.spec)
    executor.use(who.statics)
    return executor


def planned(
    who: Subject, form: KvFormat, weights: Callable[[str], WeightFormat] | None = None, window: int = 16
) -> Plan:
    """Every other layer windowed, and the context of a small workload."""

    def kv(site: KvSite) -> KvChoice:
        return choice(Window(16) if site.layer % 2 else Full(), form, sinks=0)

    plan = who.plan(kv, weights or (lambda _: WeightFormat(32)))
    return replace(plan, workload=Workload((CONTEXT,), new_tokens=8, prefill_chunk_tokens=40))


@here
@pytest.mark.parametrize(("bits", "close"), [(32, 1e-4), (8, 0.1), (4, 0.5)])
def test_it_scores_as_the_oracle_does(wide: Subject, bits: int, close: float) -> None:
    executor, tokens = executor_of(wide), tokens_of(CONTEXT)
    form = FLOAT32 if bits == 32 else static(bits)
    plan = planned(wide, form, None if bits == 32 else lambda _: block(bits))
    session = executor.open(plan)
    assert isinstance(session, GenaiSession)
    found = session.score(tokens, FIRST, 40)
    wanted = executor.oracle.open(plan, wide.statics).score(tokens, FIRST, 40)
    assert np.abs(found - wanted).mean() < close
    told = np.array(tokens[FIRST + 1 :])
    likely = [scores[np.arange(len(told)), told].mean() for scores in (found, wanted)]
    assert abs(likely[0] - likely[1]) < 0.01


@here
def test_chunks_of_a_prompt_make_no_difference(llama: Subject) -> None:
    session, tokens = executor_of(llama).open(planned(llama, FLOAT32)), tokens_of(CONTEXT)
    scores = [session.score(tokens, FIRST, chunk) for chunk in (1, 7, 40)]
    assert max(np.abs(scores[0] - other).max() for other in scores[1:]) < 1e-4


@here
def test_bytes_are_those_that_were_planned(llama: Subject) -> None:
    executor = executor_of(llama)
    plan = planned(llama, static(8), lambda _: block(4))
    session, prompt = executor.open(plan), tokens_of(CONTEXT - 8)
    timing = session.time(prompt, 8, 40)
    assert len(timing.decode_s) == 8
    assert timing.kv_bytes - session.static_bytes == sum(
        head_bytes(choice, llama.spec.layers[site.layer], CONTEXT) for site, choice in plan.kv
    )
    sizes = {tensor.name: tensor for tensor in llama.spec.tensors}
    planned_bytes = sum(weight_bytes(sizes[site.tensor], choice.format) for site, choice in plan.weights)
    assert timing.weight_bytes == planned_bytes + llama.spec.other_bytes


@here
def test_its_own_generator_continues_as_the_session_does(llama: Subject, tmp_path: Path) -> None:
    import onnxruntime_genai as genai

    executor, prompt = executor_of(llama), tokens_of(30)
    plan = planned(llama, FLOAT32)
    for file in executor.emit(plan, llama.spec):
        (tmp_path / file.path).write_bytes(file.content if isinstance(file.content, bytes) else b"")
    model = genai.Model(str(tmp_path))
    asked = genai.GeneratorParams(model)
    asked.set_search_options(max_length=40)
    generator = genai.Generator(model, asked)
    generator.append_tokens(np.array([prompt], np.int64))
    while not generator.is_done():
        generator.generate_next_token()
    said = [int(token) for token in generator.get_sequence(0)][len(prompt) :]
    assert said == executor.open(plan).generate([prompt], 10)[0][: len(said)] and said


@here
def test_a_request_shorter_than_a_ring_is_read(llama: Subject) -> None:
    executor, plan = executor_of(llama), planned(llama, FLOAT32)
    scores = executor.open(plan).score(tokens_of(9), 2, 4)
    assert np.abs(scores - executor.oracle.open(plan, llama.statics).score(tokens_of(9), 2, 4)).max() < 1e-4


def test_a_plan_that_it_does_not_carry_runs_in_its_numbers(llama: Subject) -> None:
    executor = executor_of(llama)
    plan = llama.plan(lambda site: choice(Window(16) if site.kv_head else Full(), static(8), sinks=4))
    assert not executor.capabilities.admits(plan.chosen)
    assert executor.open(plan).score(tokens_of(40), 8, 16).shape == (32, llama.spec.vocab_size)


def test_the_config_names_what_the_graph_has_and_nothing_is_left_out(llama: Subject, tmp_path: Path) -> None:
    executor = executor_of(llama)
    plan = planned(llama, static(8), lambda _: block(4))
    files = {file.path: file.content for file in executor.emit(plan, llama.spec)}
    content = files["model.onnx"]
    assert isinstance(content, bytes)
    graph = onnx.load_from_string(content).graph
    told = json.loads(str(files[CONFIG], "utf-8"))  # type: ignore[arg-type]
    decoder, layers = told["model"]["decoder"], range(len(llama.spec.layers))
    names = {value.name for value in graph.input}
    assert names == {
        *(decoder["inputs"][name] for name in ("input_ids", "attention_mask")),
        *(decoder["inputs"][f"past_{part}_names"] % i for i in layers for part in ("key", "value")),
    }
    assert "None" not in json.dumps(told) and "null" not in json.dumps(told)
    assert decoder["sliding_window"] == {
        "window_size": 15,
        "slide_key_value_cache": False,
        "slide_inputs": False,
        "layers": [1],
        "cache_slack": 1,
    }
    assert told["search"] == {
        "do_sample": False,
        "max_length": CONTEXT,
        "past_present_share_buffer": True,
    }
    (tmp_path / "model.onnx").write_bytes(content)
    assert counted(tmp_path)[0] > 0


def test_codes_of_four_bits_need_wider_heads(llama: Subject, wide: Subject) -> None:
    assert static(4) in executor_of(wide).capabilities.kv_formats
    assert static(4) not in executor_of(llama).capabilities.kv_formats


def test_the_window_a_model_was_trained_with_is_a_ring(tiny_gemma3: Path) -> None:
    who = subject(tiny_gemma3)
    plan = who.plan(lambda _: choice(Full(), FLOAT32, sinks=0))
    assert windows(plan, who.spec) == (16, 0, 16, 0)


@pytest.mark.parametrize(
    ("kv", "part"),
    [
        (lambda s: choice(Window(8 + s.layer), FLOAT32, sinks=0), "windows: found 8, 9, 10 tokens"),
        (lambda s: choice(Window(8), FLOAT32, sinks=4), "layer 0: 4 protected tokens beside a window"),
        (lambda s: choice(Window(8 + s.kv_head), FLOAT32, sinks=0), "layer 0: its heads are cached in 2 ways"),
    ],
)
def test_what_has_no_place_in_its_caches_is_refused(
    llama: Subject, kv: Callable[[KvSite], KvChoice], part: str
) -> None:
    plan = llama.plan(kv)
    with pytest.raises(InputError, match=part):
        genai_config(plan, llama.spec, llama.executor.weights.config, [1])
