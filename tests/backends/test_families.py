"""Six families run as transformers does: in full, with windows and coded caches, with packed weights; their bytes."""

import random
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

from planner.cost import total
from planner.errors import InputError
from planner.executor import NativeBlocks
from planner.formats import GROUPED_BITS, ROTATED_BITS, grouped, head_bytes, rotated, static_bytes
from planner.goal import Workload
from planner.hardware import HardwareProfile, MemoryTier
from planner.plan import trial
from planner.space import (
    FLOAT16,
    FLOAT32,
    Choice,
    Full,
    KvChoice,
    KvSite,
    Site,
    WeightChoice,
    WeightFormat,
    WeightSite,
    Window,
)
from tests.backends.oracle import DENSE, FULL32, HERE, Subject, choice, farthest, physically, subject, tokens_of

FAMILIES = ("llama", "qwen3", "mistral", "gemma3_text", "gpt2", "mixtral")
FORMATS = (WeightFormat(16), *(grouped(bits) for bits in GROUPED_BITS))
CLOSE = 5e-4
WHOLE = 10**6
MACHINE = HardwareProfile(
    "toy", "cpu", 32, (MemoryTier("dram", 10**12, 1e10),), (("fp32", 1e12),), 0, 0, 0, "datasheet", 0.4, (), ""
)


@pytest.fixture(scope="module")
def opened(tiny: Callable[[str], Path]) -> Callable[[str], Subject]:
    return cache(lambda family: subject(tiny(family)))


@pytest.fixture(params=FAMILIES)
def model_of(request: pytest.FixtureRequest, opened: Callable[[str], Subject]) -> Subject:
    return opened(request.param)


# --- the model itself ---------------------------------------------------------------------------


def test_full_precision_is_transformers(model_of: Subject) -> None:
    tokens = tokens_of(60)
    model, wanted = model_of.open(model_of.plan(lambda _: FULL32)), model_of.plainly(tokens)
    for chunk_tokens in (1, 7, WHOLE):
        assert farthest(physically(model, tokens, 60, chunk_tokens), wanted) < CLOSE


def test_windows_are_those_of_the_oracle(model_of: Subject) -> None:
    tokens = tokens_of(60)
    plan = model_of.plan(lambda site: choice(Window(9) if (site.layer + site.kv_head) % 2 else Full(), FLOAT32))
    model, wanted = model_of.open(plan), model_of.truly(plan, tokens, 64)
    for chunk_tokens in (5, WHOLE):
        assert farthest(physically(model, tokens, 64, chunk_tokens), wanted) < CLOSE
    assert farthest(wanted, model_of.plainly(tokens)) > 0.01


def test_a_windowed_coded_cache_runs(model_of: Subject) -> None:
    plan = model_of.plan(lambda site: choice(Window(20), rotated(4)))
    session = model_of.executor.open(plan)
    prompts = [tokens_of(50), tokens_of(11, seed=1)]
    replies = session.generate(prompts, 12)
    assert [len(reply) for reply in replies] == [12, 12]
    logits = physically(session.model, prompts[0], 64, 16)
    assert torch.isfinite(logits).all()
    wanted = model_of.truly(plan, prompts[0], 64)
    assert float((logits - wanted).abs().amax(-1).median()) < 1e-3
    scored = session.score(prompts[0], 30, 16)
    assert scored.shape == (20, model_of.spec.vocab_size)
    assert farthest(torch.from_numpy(scored).exp().sum(-1), torch.ones(20)) < 1e-4


@pytest.mark.parametrize("form", FORMATS)
def test_packed_weights_are_the_dequantised_ones(model_of: Subject, form: WeightFormat) -> None:
    tokens = tokens_of(40)
    packed = model_of.open(model_of.plan(lambda _: FULL32, lambda _: form))
    kept = {name: parameter.clone() for name, parameter in model_of.model.named_parameters()}
    try:
        for tensor in model_of.spec.tensors:
            read = torch.from_numpy(model_of.executor.recode_weight(tensor.name, form))
            transposed = model_of.executor.weights.transposed(tensor.name)
            model_of.model.get_parameter(tensor.name).copy_(read.T if transposed else read)
        wanted = model_of.plainly(tokens)
    finally:
        for name, parameter in kept.items():
            model_of.model.get_parameter(name).copy_(parameter)
    assert farthest(physically(packed, tokens, 40, 16), wanted) < CLOSE
    assert farthest(wanted, model_of.plainly(tokens)) > 1e-3


def test_a_plan_may_leave_matrices_alone(model_of: Subject) -> None:
    """Only one matrix has a site; the others are stored as they are, GPT-2's transposed ones too."""
    first = model_of.spec.weight_sites[-1]
    chosen: dict[Site, Choice] = dict.fromkeys(model_of.spec.kv_sites, FULL32)
    chosen[first] = WeightChoice(DENSE, HERE)
    tokens = tokens_of(20)
    model = model_of.open(trial("test", Workload(), chosen))
    assert farthest(physically(model, tokens, 20, WHOLE), model_of.plainly(tokens)) < CLOSE


def test_turns_of_unequal_lengths_fit_learnt_positions(opened: Callable[[str], Subject]) -> None:
    """Beside a long second turn the padding of a short one would lie beyond the last position there is."""
    model = opened("gpt2").open(opened("gpt2").plan(lambda _: choice(Window(32), FLOAT32)))
    first, second = [tokens_of(1000), tokens_of(10)], [tokens_of(5), tokens_of(100)]
    cache = model.cache(2, 1024)
    model.prefill(cache, first, 256)
    found = model.prefill(cache, second, 256)
    for row, (a, b) in enumerate(zip(first, second, strict=True)):
        assert farthest(found[row], model.prefill(model.cache(1, 1024), [a + b], 256)[0]) < CLOSE


# --- what cannot be carried ---------------------------------------------------------------------


def with_weight(model_of: Subject, tensor: str, form: WeightFormat) -> None:
    chosen: dict[Site, Choice] = dict.fromkeys(model_of.spec.kv_sites, FULL32)
    chosen[WeightSite(0, tensor)] = WeightChoice(form, HERE)
    model_of.executor.open(trial("test", Workload(), chosen))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("form", [WeightFormat(4, "grouped", 48), WeightFormat(4, "grouped", 0), grouped(5)])
def test_groups_that_do_not_fit_are_refused(opened: Callable[[str], Subject], family: str, form: WeightFormat) -> None:
    name = opened(family).spec.tensors[-1].name
    with pytest.raises(InputError, match=f"{name}: rows of .* cannot be stored at {form.bits:g} bits in groups of"):
        with_weight(opened(family), name, form)


def test_weights_that_no_layer_can_expand_are_refused(opened: Callable[[str], Subject]) -> None:
    for family, name in (
        ("mixtral", "model.layers.0.mlp.gate.weight"),
        ("llama", "model.layers.0.input_layernorm.weight"),
        ("gpt2", "transformer.wpe.weight"),
    ):
        with pytest.raises(InputError, match=f"{name}: is part of a .*, whose weights cannot be stored packed"):
            with_weight(opened(family), name, WeightFormat(16))


def test_a_float_model_has_no_native_blocks(model_of: Subject) -> None:
    name = model_of.spec.tensors[0].name
    blocks: NativeBlocks | None = model_of.executor.weights.native(name)
    assert blocks is None
    with pytest.raises(InputError, match=f"{name}: the source does not store it in blocks"):
        with_weight(model_of, name, WeightFormat(4.5, "native", 32))


# --- bytes --------------------------------------------------------------------------------------


def random_choice(chance: random.Random) -> KvChoice:
    forms = (FLOAT16, FLOAT32, *(rotated(bits) for bits in ROTATED_BITS))
    spans = (Full(), Window(1), Window(chance.randint(1, 200)), Window(chance.randint(1, 50), chance.random()))
    return choice(chance.choice(spans), chance.choice(forms), chance.choice(forms), chance.choice((0, 1, 4, 16)))


@pytest.mark.parametrize("seed", range(6))
def test_counted_bytes_are_the_predicted_ones(model_of: Subject, seed: int) -> None:
    chance = random.Random(seed)
    spec, context, batch = model_of.spec, chance.choice((32, 33, 100, 257)), chance.choice((1, 3))
    kv: dict[KvSite, KvChoice] = {site: random_choice(chance) for site in spec.kv_sites}
    forms = (DENSE, *FORMATS)
    plan = model_of.plan(kv.__getitem__, {t.name: chance.choice(forms) for t in spec.tensors}.__getitem__)
    model = model_of.open(plan)
    cache = model.cache(batch, context)
    assert cache.bytes == batch * sum(head_bytes(c, spec.layers[s.layer], context) for s, c in kv.items())
    assert model.static_bytes == sum(static_bytes(c, spec.layers[s.layer]) for s, c in kv.items())
    workload = Workload((context,), new_tokens=8, batch=batch)
    predicted = total(plan.chosen, spec, workload, MACHINE)
    assert cache.bytes + model.static_bytes == predicted.kv_bytes
    assert model.weight_bytes == predicted.weight_bytes


def test_bytes_do_not_grow_with_what_was_read(model_of: Subject) -> None:
    plan = model_of.plan(lambda _: choice(Window(16), rotated(3)))
    session = model_of.executor.open(plan)
    model = session.model
    cache = model.cache(1, 120)
    before = cache.bytes
    model.prefill(cache, [tokens_of(110)], 33)
    assert cache.bytes == before
    timing = session.time(tokens_of(100), 20, 33)
    assert timing.kv_bytes == before + model.static_bytes
    assert timing.weight_bytes == model.weight_bytes
    assert len(timing.decode_s) == 20


def test_an_emitted_file_holds_what_is_counted(model_of: Subject) -> None:
    plan = model_of.plan(lambda _: choice(Full(), rotated(4)), lambda _: grouped(4))
    files = {file.path: file.content for file in model_of.executor.emit(plan, model_of.spec)}
    model, content = model_of.open(plan), files["weights.safetensors"]
    assert isinstance(content, bytes)
    header = 8 + int.from_bytes(content[:8], "little")
    assert len(content) - header == model.weight_bytes + model.static_bytes


def test_a_tied_head_is_stored_once(opened: Callable[[str], Subject]) -> None:
    llama = opened("llama")
    embedding = next(t for t in llama.spec.tensors if t.layer == -1)
    plan = llama.plan(lambda _: FULL32, lambda name: grouped(2) if name == embedding.name else DENSE)
    untouched = llama.open(llama.plan(lambda _: FULL32)).weight_bytes
    freed = embedding.elements * 4 - embedding.elements * 2 // 8 - embedding.elements // 32 * 4
    assert llama.open(plan).weight_bytes == untouched - freed
    assert total(plan.chosen, llama.spec, Workload(), MACHINE).weight_bytes == untouched - freed
