"""Seven families give on ONNX Runtime what they give on transformers, whatever the plan keeps; others are refused."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from backends.onnxruntime.families import FAMILIES, family_of
from planner.errors import InputError
from planner.formats import block, static
from planner.space import FLOAT16, FLOAT32, Full, KvChoice, KvSite, Span, WeightFormat, Window
from tests.backends.oracle import DENSE, FULL32, choice, tokens_of
from tests.backends.ort import Pair, apart, mostly_apart, pair, read, stepped

CLOSE = 5e-4
WHOLE = 10**6
CONTEXT = 214
MODELS = (
    *("llama", "mistral", "qwen2", "qwen3", "gemma3_text", "phi", "phi3"),
    *("llama-three", "llama-16", "llama-48", "llama-80", "gemma3_text-three"),
    *("llama-llama3", "llama-yarn", "llama-linear"),
)
ACROSS = ("llama-three", "llama-16", "llama-48", "llama-80", "gemma3_text-three")
"""Models of three KV heads and more, so that one class can lie around another."""


@pytest.fixture(scope="module")
def opened(tiny: Callable[[str], Path]) -> Callable[[str], Pair]:
    return cache(lambda name: pair(tiny(name)))


@pytest.fixture(params=MODELS)
def both(request: pytest.FixtureRequest, opened: Callable[[str], Pair]) -> Pair:
    return opened(request.param)


def crossed(site: KvSite) -> KvChoice:
    """Heads 0 and 2 in one class and 1 in another: windows that stretch around a full head, then two of two lengths."""
    outer = site.kv_head % 2 == 0
    span: Span = (
        (Window(12, 0.05) if outer else Full()) if site.layer % 2 == 0 else (Window(5) if outer else Window(30))
    )
    return choice(span, FLOAT32, sinks=4 if site.layer % 2 else 0)


def test_every_family_is_tried() -> None:
    assert {name.partition("-")[0] for name in MODELS} == set(FAMILIES)


def test_keeping_everything_is_the_plain_model(both: Pair) -> None:
    tokens = tokens_of(90)
    wanted = both.other.plainly(tokens).numpy()
    model = both.open(both.other.plan(lambda _: FULL32))
    for chunk_tokens in (7, WHOLE):
        assert apart(read(model, tokens, CONTEXT, chunk_tokens), wanted) < CLOSE


def test_logits_are_those_of_the_other_runtime(both: Pair) -> None:
    """At contexts before, at and well past the smallest buffer, in chunks shorter and longer than it."""
    plan = both.other.plan(crossed)
    model = both.open(plan)
    tokens = tokens_of(150)
    wanted = both.wanted(plan, tokens, CONTEXT)
    for length in (3, 5, 9, 10, 150):
        for chunk_tokens in (1, 7, 64, WHOLE):
            found = read(model, tokens[:length], CONTEXT, chunk_tokens)
            assert apart(found, wanted[:length]) < CLOSE
    # Both sides would agree, too, if both kept everything.
    assert apart(wanted, both.other.plainly(tokens).numpy()) > 0.05


def test_decoding_is_reading(both: Pair) -> None:
    tokens, plan = tokens_of(150), both.other.plan(crossed)
    model = both.open(plan)
    cache = model.cache(1, CONTEXT)
    model.read(cache, 0, tokens[:60], 16)
    assert apart(stepped(model, cache, tokens[60:]), both.wanted(plan, tokens, CONTEXT)[60:]) < CLOSE


@pytest.mark.parametrize("name", [*FAMILIES, "llama-three"])
def test_greedy_tokens_are_those_of_the_other_runtime(opened: Callable[[str], Pair], name: str) -> None:
    both = opened(name)
    plan = both.other.plan(crossed)
    prompts = [tokens_of(4, seed=2), tokens_of(60, seed=3)]
    assert both.executor.open(plan).generate(prompts, 64) == both.other.executor.open(plan).generate(prompts, 64)


def test_a_softcap_bends_the_logits(opened: Callable[[str], Pair]) -> None:
    both, tokens = opened("gemma3_text-capped"), tokens_of(60)
    wanted = both.other.plainly(tokens).numpy()
    model = both.open(both.other.plan(lambda _: FULL32))
    assert apart(read(model, tokens, 60, 7), wanted) < CLOSE
    assert 2 < abs(wanted).max() < 3


# --- stored matrices ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ACROSS)
@pytest.mark.parametrize("form", [block(4), block(8)])
def test_coded_weights_follow_heads_that_move(opened: Callable[[str], Pair], name: str, form: WeightFormat) -> None:
    """The same numbers whether heads lie in the model's order or class by class, blocks that span heads included."""
    both, tokens = opened(name), tokens_of(20)
    together = both.open(both.other.plan(lambda _: FULL32, lambda _: form))
    # Wider than the context: two classes by name, which keep everything.
    apart_by_class = both.open(
        both.other.plan(lambda s: FULL32 if s.kv_head == 1 else choice(Window(60), FLOAT32), lambda _: form)
    )
    for chunk_tokens in (1, WHOLE):
        found, wanted = (read(model, tokens, 60, chunk_tokens) for model in (apart_by_class, together))
        assert mostly_apart(found, wanted) < CLOSE and apart(found, wanted) < 0.2
    assert mostly_apart(wanted, both.other.plainly(tokens).numpy()) > 1e-3


def test_matrices_of_one_product_may_differ_in_format(both: Pair) -> None:
    """Queries at 8 bits beside dense keys: near the dense model, and the dense matrices untouched."""
    tokens = tokens_of(40)
    odd = ("q_proj.weight", "gate_proj.weight", "qkv_proj.weight", "fc1.weight")
    plan = both.other.plan(crossed, lambda name: block(8) if name.endswith(odd) else DENSE)
    dense = both.open(both.other.plan(crossed))
    found, wanted = (read(model, tokens, CONTEXT, 16) for model in (both.open(plan), dense))
    assert 1e-4 < apart(found, wanted) < 1.0


# --- refusals -----------------------------------------------------------------------------------


def refused(both: Pair, kv: Callable[[KvSite], KvChoice], form: WeightFormat, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        both.executor.open(both.other.plan(kv, lambda _: form))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("llama-24", "turns 24 numbers of a head; onnxruntime graphs need a multiple of 16"),
        ("phi-8", "turns 8 numbers of a head; onnxruntime graphs need a multiple of 16"),
        ("gpt2", "model_type: found 'gpt2'; onnxruntime graphs are written for gemma3_text, llama"),
        ("mixtral", "model_type: found 'mixtral'"),
        ("llama-dynamic", "found rope_type 'dynamic', whose table changes with the length"),
    ],
)
def test_models_that_no_graph_carries_are_refused(opened: Callable[[str], Pair], name: str, words: str) -> None:
    refused(opened(name), lambda _: FULL32, DENSE, words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_act": "relu2"}, "hidden_act: found 'relu2'"),
        ({"model_type": "phi", "qk_layernorm": True, "hidden_act": "gelu_new"}, "qk_layernorm: found true"),
    ],
)
def test_settings_that_no_graph_carries_are_refused(change: dict[str, object], words: str) -> None:
    import json

    with pytest.raises(InputError, match=words):
        family_of(json.dumps({"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4} | change))


@pytest.mark.parametrize(
    ("kv", "words"),
    [
        (choice(Full(), static(8), FLOAT32), "layer 0 kv head 0: keys of 8 bits with values of 32"),
        (choice(Full(), FLOAT16), "no KV format has 16 bits in scheme 'float'"),
        (choice(Full(), static(3)), "no KV format has 3 bits in scheme 'static'"),
    ],
)
def test_caches_that_no_node_stores_are_refused(opened: Callable[[str], Pair], kv: KvChoice, words: str) -> None:
    refused(opened("llama"), lambda _: kv, DENSE, words)


@pytest.mark.parametrize(
    ("form", "words"),
    [
        (block(3), "cannot be stored at 3 bits in blocks of 32"),
        (block(4, 48), "cannot be stored at 4 bits in blocks of 48"),
        (WeightFormat(16), "cannot be stored at 16 bits"),
        (WeightFormat(4, "exact", 32), "the source does not store it in blocks of up to 8 bits"),
        (WeightFormat(4, "grouped", 32), "cannot be stored at 4 bits"),
    ],
)
def test_weights_that_no_product_reads_are_refused(
    opened: Callable[[str], Pair], form: WeightFormat, words: str
) -> None:
    refused(opened("llama"), lambda _: FULL32, form, f"weight: .*{words}")
