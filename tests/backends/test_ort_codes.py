"""Blocks of weights keep the source's numbers or the nearest ones, products read them, and their bytes are counted."""

import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, quants
from torch import nn

from backends.onnxruntime import codes, layout
from backends.onnxruntime.executor import OnnxRuntimeExecutor
from planner.executor import NativeBlocks
from planner.formats import BLOCK_BITS, block, exact, head_bytes, static, static_bytes, unrounded, weight_bytes
from planner.goal import Workload
from planner.plan import Plan, trial
from planner.space import FLOAT32, Choice, Full, KvChoice, KvSite, Site, WeightChoice, WeightFormat, Window
from planner.spec import ModelSpec
from profiles.sources.load import load_model
from profiles.weights import CheckpointWeights
from tests.backends.oracle import DENSE, FULL32, HERE, choice, tokens_of
from tests.backends.ort import Floats, Pair, apart, mostly_apart, pair, read
from tests.profiles.test_sources_gguf import opened as open_gguf
from tests.profiles.test_sources_gguf import write

KINDS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
MODELS = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text", "phi", "phi3", "llama-three")


@pytest.fixture(scope="module")
def opened(tiny: Callable[[str], Path]) -> Callable[[str], Pair]:
    return cache(lambda name: pair(tiny(name)))


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], OnnxRuntimeExecutor]:
    """A GGUF file whose layers are stored in one kind of blocks. One kind more, as in `Q4_0+Q4_1`, is that of a matrix
    of keys, beside queries of the first kind, and of the embedding."""

    @cache
    def executor(kind: str) -> OnnxRuntimeExecutor:
        kind, _, odd = kind.partition("+")

        def others(writer: GGUFWriter) -> None:
            kind = GGMLQuantizationType[odd]
            for name, rows in (("blk.1.attn_k.weight", 32), ("token_embd.weight", 288)):
                del writer.tensors[0][name]
                values = np.random.default_rng(5).normal(size=(rows, 64)).astype(np.float32)
                writer.add_tensor(name, quants.quantize(values, kind), raw_dtype=kind)

        path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
        checkpoint = open_gguf(write(path, kind, change=others if odd else None))
        return OnnxRuntimeExecutor(CheckpointWeights(checkpoint), checkpoint.spec)

    return executor


# --- rounding -----------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", BLOCK_BITS)
@pytest.mark.parametrize("size", [16, 32, 64])
def test_rounding_is_no_worse_than_to_the_full_range(bits: int, size: int) -> None:
    matrix = np.random.default_rng(0).standard_t(3, (24, 192)).astype(np.float32)
    found = codes.rounded(matrix, bits, size)
    assert found.block == size and found.minimum is None and int(found.codes.max()) < 2**bits
    peak = np.abs(matrix.reshape(24, -1, size)).max(-1, keepdims=True)
    step = peak / 2 ** (bits - 1)
    plain = np.clip(np.rint(matrix.reshape(24, -1, size) / step), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * step
    error, worst = (
        np.square(x.reshape(24, -1, size) - matrix.reshape(24, -1, size)).sum(-1) for x in (found.dense(), plain)
    )
    # The sign of a scale may be turned, which is never worse but for the last bit.
    assert (error.sum() <= worst.sum() * 1.0001) and (bits == 8 or error.sum() < worst.sum() * 0.99)


@pytest.mark.parametrize("bits", BLOCK_BITS)
def test_what_lies_on_a_grid_stays_there(bits: int) -> None:
    half = 2 ** (bits - 1)
    numbers = np.random.default_rng(0).integers(-half, half, (8, 64))
    numbers[:, ::32] = -half
    matrix = (numbers * 0.25).astype(np.float32)
    assert np.array_equal(codes.rounded(matrix, bits).dense(), matrix)
    assert np.array_equal(codes.rounded(np.zeros((2, 64), np.float32), bits).dense(), np.zeros((2, 64), np.float32))


@pytest.mark.parametrize("bits", [4, 8])
def test_cached_numbers_saturate_and_round_to_the_even_code(bits: int) -> None:
    top = 2 ** (bits - 1)
    scale = codes.kv_scale(np.array([1.0, 2.0, 0.0], np.float32), bits)
    assert np.allclose(scale[:2] * (top - 1), [1, 2]) and scale[2] > 0
    one = np.ones(5, np.float32)
    values = np.array([0.5, 1.5, -2.5, 1000, -1000], np.float32)
    assert codes.kv_recoded(values, one, bits).tolist() == [0, 2, -2, top - 1, -top]


# --- the source's own blocks --------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_exact_blocks_are_the_sources_numbers(gguf: Callable[[str], OnnxRuntimeExecutor], kind: str) -> None:
    executor = gguf(kind)
    for tensor in executor.spec.tensors:
        form = exact(tensor)
        assert form is not None
        blocks = layout.stored(tensor.name, form, executor.weights)
        assert isinstance(blocks, codes.Blocks) and blocks.bits == form.bits
        assert np.array_equal(blocks.dense(), executor.weights.dense(tensor.name))
        assert np.array_equal(executor.recode_weight(tensor.name, form), executor.weights.dense(tensor.name))
        assert (blocks.minimum is not None) == (kind.endswith("1") and tensor.layer >= 0)


def test_codes_without_room_to_shift_get_a_minimum() -> None:
    grid = NativeBlocks(4, np.arange(32, dtype=np.uint8)[None] % 16, np.full((1, 1), 0.5, np.float16), None, -3)
    found = codes.exact(grid)
    assert found.minimum is not None
    assert np.array_equal(found.dense()[0], (np.arange(32) % 16 - 3) * np.float32(0.5))


@pytest.mark.parametrize("bits", [9, 16])
def test_codes_too_wide_for_a_node_are_refused(bits: int) -> None:
    grid = NativeBlocks(bits, np.zeros((1, 32), np.uint8), np.ones((1, 1), np.float16), None, 0)
    with pytest.raises(ValueError, match=f"codes of {bits} bits have no width here"):
        codes.exact(grid)


# --- whole models -------------------------------------------------------------------------------


def product(blocks: codes.Blocks, x: Floats) -> Floats:
    """x times the transposed matrix, its inputs rounded as the node rounds them, if it does; its minimum's are not."""
    centred = codes.Blocks(blocks.bits, blocks.codes, blocks.scale, None).dense()
    out: Floats = (codes.input_recoded(x, blocks.bits, blocks.block) if blocks.rounds_inputs else x) @ centred.T
    if blocks.minimum is not None:
        out += x.reshape(*x.shape[:-1], -1, blocks.block).sum(-1) @ blocks.minimum.T
    return out


def multiplied(blocks: codes.Blocks, module: nn.Linear, x: tuple[torch.Tensor], out: torch.Tensor) -> torch.Tensor:
    """What a linear module gives whose matrix is stored in blocks."""
    read = torch.from_numpy(product(blocks, x[0].numpy()))
    return read if module.bias is None else read + module.bias


@torch.no_grad()
def truly(executor: OnnxRuntimeExecutor, model: nn.Module, plan: Plan, tokens: list[int]) -> Floats:
    """Logits of transformers, every coded matrix read and every input of one rounded as the nodes do."""
    stored = {site.tensor: layout.stored(site.tensor, each.format, executor.weights) for site, each in plan.weights}
    coded = {name: matrix for name, matrix in stored.items() if isinstance(matrix, codes.Blocks)}
    kept = {name: model.get_parameter(name).clone() for name in coded}
    by_parameter = {id(model.get_parameter(name)): blocks for name, blocks in coded.items()}
    linear = [
        module for module in model.modules() if isinstance(module, nn.Linear) and id(module.weight) in by_parameter
    ]
    hooks = [each.register_forward_hook(partial(multiplied, by_parameter[id(each.weight)])) for each in linear]
    try:
        for name, blocks in coded.items():
            model.get_parameter(name).copy_(torch.from_numpy(blocks.dense()))
        logits: Floats = model(torch.tensor([tokens]), use_cache=False).logits[0].numpy()
    finally:
        for hook in hooks:
            hook.remove()
        for name, value in kept.items():
            model.get_parameter(name).copy_(value)
    return logits


def plan_of(spec: ModelSpec, weights: Callable[[str], WeightFormat], kv: Callable[[KvSite], KvChoice]) -> Plan:
    chosen: dict[Site, Choice] = {site: kv(site) for site in spec.kv_sites}
    chosen |= {site: WeightChoice(weights(site.tensor), HERE) for site in spec.weight_sites}
    return trial("test", Workload(), chosen)


def differences(executor: OnnxRuntimeExecutor, model: nn.Module, plan: Plan) -> Floats:
    """How far short prompts' logits lie from those of transformers on the same codes, as a share of the largest.

    Short, since a sum that differs in its last bit may round to the next integer, and all later tokens see that one.
    """
    opened, found = executor.open(plan).model, []
    for seed in range(7):
        tokens = tokens_of(3, 288, seed)
        wanted = truly(executor, model, plan, tokens)
        found.append(apart(read(opened, tokens, 3, 1 + seed % 3), wanted) / np.abs(wanted).max())
    return np.array(found, np.float32)


@pytest.mark.parametrize("bits", BLOCK_BITS)
@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma3_text", "phi", "phi3"])
def test_coded_models_run_as_transformers_on_the_same_codes(
    opened: Callable[[str], Pair], name: str, bits: int
) -> None:
    """Embeddings that are looked up in codes, tied and untied heads, fused and separate matrices."""
    both = opened(name)
    both.other.model.set_attn_implementation("sdpa")
    plan = both.other.plan(lambda _: FULL32, lambda _: block(bits))
    assert np.median(differences(both.executor, both.other.model, plan)) < 1e-4
    tokens = tokens_of(40)
    coded, dense = truly(both.executor, both.other.model, plan, tokens), both.other.plainly(tokens).numpy()
    assert mostly_apart(read(both.open(plan), tokens, 40, 16), coded) < 0.5 * mostly_apart(coded, dense)


@pytest.mark.parametrize("kind", [*KINDS, "Q4_0+Q4_1", "Q8_0+Q5_1", "Q5_1+Q5_0"])
def test_exact_models_run_as_transformers_on_the_sources_numbers(
    gguf: Callable[[str], OnnxRuntimeExecutor], kind: str
) -> None:
    executor = gguf(kind)
    formats = {tensor.name: exact(tensor) or DENSE for tensor in executor.spec.tensors}
    plan = plan_of(executor.spec, formats.__getitem__, lambda _: FULL32)
    assert isinstance(executor.weights, CheckpointWeights)
    assert np.median(differences(executor, load_model(executor.weights.checkpoint), plan)) < 1e-4


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q4_0+Q4_1"])
def test_unrounded_models_are_the_source_itself(gguf: Callable[[str], OnnxRuntimeExecutor], kind: str) -> None:
    """Logits of float32 matrices, at the bytes of codes; beside products that round their inputs as well."""
    executor, tokens = gguf(kind), tokens_of(24, 288)
    spec, can = executor.spec, executor.capabilities
    forms = {tensor.name: can.as_unrounded(tensor) or DENSE for tensor in spec.tensors}
    assert sum(form.scheme == "unrounded" for form in forms.values()) > 5
    plan = plan_of(spec, forms.__getitem__, lambda _: FULL32)
    dense = plan_of(spec, lambda _: DENSE, lambda _: FULL32)
    assert can.admits(plan.chosen)
    opened = executor.open(plan).model
    wanted = read(executor.open(dense).model, tokens, 24, 24)
    for chunk_tokens in (1, 7, 24):
        assert apart(read(opened, tokens, 24, chunk_tokens), wanted) < 1e-5 * np.abs(wanted).max()
    assert opened.weight_bytes == predicted(plan, spec)
    rounded = {
        t.name: exact(t) or DENSE if t.name.endswith(("k_proj.weight", "up_proj.weight")) else forms[t.name]
        for t in spec.tensors
    }
    mixed = plan_of(spec, rounded.__getitem__, lambda _: FULL32)
    assert isinstance(executor.weights, CheckpointWeights)
    assert np.median(differences(executor, load_model(executor.weights.checkpoint), mixed)) < 1e-4
    assert executor.open(mixed).model.weight_bytes == predicted(mixed, spec)


def test_unrounded_matrices_read_their_inputs_as_they_are(gguf: Callable[[str], OnnxRuntimeExecutor]) -> None:
    executor = gguf("Q4_1")
    form, x = unrounded(executor.spec.tensors[-1]), np.ones((1, 64), np.float32)
    assert form is not None and executor.recode_input(form, x) is None
    assert executor.recode_input(replace(form, scheme="exact"), x) is not None


@pytest.mark.parametrize("kind", KINDS)
def test_rounded_inputs_cost_no_more_than_the_codes_are_wide(
    gguf: Callable[[str], OnnxRuntimeExecutor], kind: str
) -> None:
    """A product of the source's numbers is near the exact one: its codes lie around zero and its minimum is exact."""
    executor = gguf(kind)
    tensor = next(t for t in executor.spec.tensors if t.layer == 1 and t.name.endswith("down_proj.weight"))
    form = exact(tensor)
    assert form is not None
    blocks, dense = layout.stored(tensor.name, form, executor.weights), executor.weights.dense(tensor.name)
    assert isinstance(blocks, codes.Blocks)
    x = np.random.default_rng(0).normal(size=(50, tensor.cols)).astype(np.float32)
    wanted = x @ dense.T
    assert np.linalg.norm(product(blocks, x) - wanted) < 0.01 * np.linalg.norm(wanted)


# --- bytes --------------------------------------------------------------------------------------


def predicted(plan: Plan, spec: ModelSpec) -> int:
    formats = {site.tensor: each.format for site, each in plan.weights}
    return spec.other_bytes + sum(weight_bytes(tensor, formats[tensor.name]) for tensor in spec.tensors)


def random_choice(chance: random.Random) -> KvChoice:
    spans = (Full(), Window(1), Window(chance.randint(1, 200)), Window(chance.randint(1, 50), chance.random()))
    return choice(
        chance.choice(spans), chance.choice((FLOAT32, static(8), static(4))), sinks=chance.choice((0, 1, 4, 16))
    )


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("seed", range(4))
def test_counted_bytes_are_the_predicted_ones(opened: Callable[[str], Pair], name: str, seed: int) -> None:
    both, chance = opened(name), random.Random(seed)
    spec, context, batch = both.other.spec, chance.choice((32, 33, 100, 257)), chance.choice((1, 3))
    kv = {site: random_choice(chance) for site in spec.kv_sites}
    forms = (DENSE,) if seed == 0 else (DENSE, *(block(bits) for bits in BLOCK_BITS))
    plan = both.other.plan(kv.__getitem__, {t.name: chance.choice(forms) for t in spec.tensors}.__getitem__)
    model = both.open(plan)
    cache = model.cache(batch, context)
    assert cache.bytes == batch * sum(head_bytes(c, spec.layers[s.layer], context) for s, c in kv.items())
    assert model.static_bytes == sum(static_bytes(c, spec.layers[s.layer]) for s, c in kv.items())
    assert model.weight_bytes == predicted(plan, spec)


@pytest.mark.parametrize("kind", [*KINDS, "Q4_0+Q4_1", "Q5_1+Q5_0"])
def test_counted_bytes_of_exact_blocks_are_the_predicted_ones(
    gguf: Callable[[str], OnnxRuntimeExecutor], kind: str
) -> None:
    executor = gguf(kind)
    formats = {tensor.name: exact(tensor) or DENSE for tensor in executor.spec.tensors}
    plan = plan_of(executor.spec, formats.__getitem__, lambda _: FULL32)
    assert executor.open(plan).model.weight_bytes == predicted(plan, executor.spec)


def test_bytes_do_not_grow_with_what_was_read(opened: Callable[[str], Pair]) -> None:
    both = opened("llama")
    plan = both.other.plan(lambda _: choice(Window(16), static(8)))
    session = both.executor.open(plan)
    cache = session.model.cache(1, 120)
    before = cache.bytes
    session.model.read(cache, 0, tokens_of(110), 33)
    assert cache.bytes == before
    timing = session.time(tokens_of(100), 20, 33)
    assert timing.kv_bytes == before + session.model.static_bytes
    assert timing.weight_bytes == session.model.weight_bytes and len(timing.decode_s) == 20
