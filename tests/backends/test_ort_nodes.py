"""Single nodes of a written graph do on their inputs what numpy says, coded caches and coded weights included."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from backends.onnxruntime import layout
from backends.onnxruntime.codes import Blocks, input_recoded, kv_recoded, kv_scale
from backends.onnxruntime.families import rotary_tables
from planner.formats import block, static
from planner.plan import Plan
from planner.space import FLOAT32, Full, KvFormat, Window
from tests.backends.oracle import FULL32, choice, tokens_of
from tests.backends.ort import Floats, Pair, apart, mostly_apart, node, pair, read, run

CLOSE = 1e-4
CAPACITY, PROMPT, MORE = 48, 20, 9
STORED = {32: np.float32, 8: np.int8, 4: np.uint8}


@pytest.fixture(scope="module")
def opened(tiny: Callable[[str], Path]) -> Callable[[str], Pair]:
    return cache(lambda name: pair(tiny(name)))


# --- attention ----------------------------------------------------------------------------------


class Attention:
    """The attention of one class in numpy: codes written once and read back, everything else in float64."""

    def __init__(self, both: Pair, bits: int, heads: list[int]) -> None:
        self.shape, self.bits, self.heads = both.other.spec.layers[0], bits, heads
        self.cos, self.sin = rotary_tables(both.other.executor.weights.config, 256)[0]
        peaks = [both.executor.statics[site] for site in both.other.spec.kv_sites if site.layer == 0]
        self.scales = [
            np.stack([kv_scale(getattr(peaks[h], f"{part}_peak"), bits) for h in heads]) if bits < 32 else None
            for part in "kv"
        ]

    def turned(self, x: Floats, positions: NDArray[np.int64], sign: int = 1) -> Floats:
        """Vectors [tokens, heads, head_dim] after the rotary embedding, or before it for sign -1."""
        cos, sin = self.cos[positions][:, None], self.sin[positions][:, None] * np.float32(sign)
        half = cos.shape[-1]
        a, b = x[..., :half], x[..., half : 2 * half]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin, x[..., 2 * half :]], -1)

    def drawn(self, part: int, positions: NDArray[np.int64], chance: np.random.Generator) -> Floats:
        """Keys (part 0, not yet turned) or values (1) that lie clear of the edges between codes; some beyond range."""
        size = (len(positions), len(self.heads), self.shape.head_dim)
        scale = self.scales[part]
        if scale is None:
            return chance.normal(size=size).astype(np.float32)
        top = 2 ** (self.bits - 1)
        steps = chance.integers(-top - 2, top + 2, size) + chance.uniform(-0.45, 0.45, size)
        values = (steps * scale).astype(np.float32)
        return self.turned(values, positions, -1) if part == 0 else values

    def read(self, part: int, values: Floats) -> Floats:
        scale = self.scales[part]
        return values if scale is None else kv_recoded(values, scale, self.bits)

    def attend(self, q: Floats, keys: Floats, values: Floats, sees: NDArray[np.bool_]) -> NDArray[np.float64]:
        """[tokens, heads * head_dim] of queries [tokens, heads, head_dim] over slots [slots, heads, head_dim]."""
        per = self.shape.group
        out = []
        for head in range(q.shape[1]):
            scores = q[:, head].astype(np.float64) @ keys[:, head // per].T * self.shape.head_dim**-0.5
            scores = np.where(sees, scores, -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            out.append(weights / weights.sum(-1, keepdims=True) @ values[:, head // per])
        return np.concatenate(out, -1)

    def unpacked(self, stored: NDArray[np.generic], part: int) -> Floats:
        """A buffer [heads, slots, width] as numbers [slots, heads, head_dim]."""
        codes = stored.astype(np.float32)
        if self.bits == 4:
            pairs = stored.astype(np.int64)
            codes = np.stack([pairs & 15, pairs >> 4], -1).reshape(*stored.shape[:2], -1).astype(np.float32) - 8
        scale, numbers = self.scales[part], codes.transpose(1, 0, 2)
        return numbers if scale is None else numbers * scale


@pytest.mark.parametrize("form", [FLOAT32, static(8), static(4)])
@pytest.mark.parametrize("name", ["llama-three", "phi"])
def test_attention_is_numpys(opened: Callable[[str], Pair], name: str, form: KvFormat) -> None:
    """A prompt, more of it under a bias, then a step whose window has left slots in disorder; codes to the bit."""
    both, bits, chance = opened(name), int(form.bits), np.random.default_rng(int(form.bits))
    heads = [0, 2]
    plan = both.other.plan(lambda site: choice(Window(12) if site.kv_head in heads else Full(), form))
    graph = layout.graph(plan, both.other.spec, both.executor.weights, both.executor.statics)
    session, said = node(graph, "heard.0.0"), Attention(both, bits, heads)
    width, dim = said.shape.head_dim * bits // 8 if bits == 4 else said.shape.head_dim, said.shape.head_dim
    held = [np.zeros((1, len(heads), CAPACITY, width), STORED[bits]) for _ in "kv"]
    kept = [np.zeros((0, len(heads), dim), np.float32) for _ in "kv"]
    for positions in (np.arange(PROMPT), np.arange(PROMPT, PROMPT + MORE), np.array([70]), np.array([71])):
        tokens, filled = len(positions), len(kept[0])
        q = chance.normal(size=(tokens, len(heads) * said.shape.group, dim)).astype(np.float32)
        k, v = (said.drawn(part, positions, chance) for part in (0, 1))
        kept[0] = np.concatenate([kept[0], said.read(0, said.turned(k, positions))])
        kept[1] = np.concatenate([kept[1], said.read(1, v)])
        seen = filled + tokens
        bias = np.where(chance.random((tokens, seen)) < 0.3, np.float32(-1e9), np.float32(0))
        bias[:, 0] = 0  # every token sees one at least
        fed = {
            "past.0.0.k": held[0],
            "past.0.0.v": held[1],
            "filled.0": np.array([seen - 1], np.int32),
            "slots.0": np.array(seen, np.int32),
            "positions": positions[None],
            "bias.0": bias[None, None],
        }
        (packed,) = {each.name for each in session.get_inputs()} - set(fed)
        fed[packed] = np.concatenate([x.reshape(tokens, -1) for x in (q, k, v)], -1)[None]
        out, *held = run(session, fed)
        causal = np.arange(seen) <= np.arange(filled, seen)[:, None]
        wanted = said.attend(said.turned(q, positions), kept[0], kept[1], causal & (bias == 0))
        assert np.abs(out[0] - wanted).max() < CLOSE
        for part in (0, 1):
            back = said.unpacked(held[part][0, :, :seen], part)
            assert apart(back, kept[part]) < (1e-5 if bits == 32 else 1e-7)
            assert not held[part][0, :, seen:].any()
        # Slots in another order are the same cache, since each carries its own position.
        order = chance.permutation(seen)
        for part in (0, 1):
            held[part][:, :, :seen], kept[part] = held[part][:, :, order], kept[part][order]


# --- products -----------------------------------------------------------------------------------


def plain(name: str, both: Pair, bits: int) -> Blocks:
    """A matrix as it is stored in blocks."""
    found = layout.stored(name, block(bits), both.executor.weights)
    assert isinstance(found, Blocks)
    return found


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("tokens", [1, 2, 40])
def test_a_product_of_codes_is_numpys(opened: Callable[[str], Pair], bits: int, tokens: int) -> None:
    both, name = opened("llama-three"), "model.layers.0.mlp.down_proj.weight"
    plan = both.other.plan(lambda _: FULL32, lambda _: block(bits))
    graph = layout.graph(plan, both.other.spec, both.executor.weights, {})
    session, blocks = node(graph, f"{name}.out"), plain(name, both, bits)
    x = np.random.default_rng(bits).normal(size=(tokens, blocks.codes.shape[1])).astype(np.float32)
    x[:, :32] = 0  # a block of nothing has no scale
    (found,) = run(session, {session.get_inputs()[0].name: x[None]})
    wanted = input_recoded(x, bits).astype(np.float64) @ blocks.dense().T
    size = float(np.abs(wanted).max())
    assert np.abs(found[0] - wanted).max() < CLOSE * size
    assert (
        np.abs(found[0] - x.astype(np.float64) @ blocks.dense().T).max() > CLOSE * size
    )  # and not of the input as it is


def test_queries_keys_and_values_are_one_product_in_the_order_of_the_classes(opened: Callable[[str], Pair]) -> None:
    both = opened("llama-three")
    plan = both.other.plan(lambda site: FULL32 if site.kv_head == 1 else choice(Window(8), FLOAT32), lambda _: block(8))
    graph = layout.graph(plan, both.other.spec, both.executor.weights, {})
    at = "model.layers.0.self_attn"
    session = node(graph, f"{at}.q_proj.weight.out")
    q, k, v = (plain(f"{at}.{part}_proj.weight", both, 8).dense().reshape(-1, 32, 96) for part in "qkv")
    rows = np.concatenate([q[[0, 1, 4, 5]], k[[0, 2]], v[[0, 2]], q[[2, 3]], k[[1]], v[[1]]]).reshape(-1, 96)
    x = np.random.default_rng(0).normal(size=(5, 96)).astype(np.float32)
    (found,) = run(session, {session.get_inputs()[0].name: x[None]})
    assert apart(found[0], input_recoded(x, 8) @ rows.T) < CLOSE


def test_a_node_reads_codes_from_their_lowest_bits_on() -> None:
    codes = np.arange(32, dtype=np.uint8)[None] % 4
    assert Blocks(2, codes, np.ones((1, 1), np.float32), None).packed().tolist() == [[[0b11100100] * 8]]
    codes = np.arange(32, dtype=np.uint8)[None] % 16
    low, high = codes[0, 0::2], codes[0, 1::2]
    assert Blocks(4, codes, np.ones((1, 1), np.float32), None).packed()[0, 0].tolist() == (low + 16 * high).tolist()


# --- end to end with coded caches ---------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral", "gemma3_text-three"])
@pytest.mark.parametrize("bits", [8, 4])
def test_coded_plans_run_end_to_end_as_the_oracle(opened: Callable[[str], Pair], name: str, bits: int) -> None:
    both, tokens = opened(name), tokens_of(100)
    plan = both.other.plan(lambda site: choice(Window(16) if (site.layer + site.kv_head) % 2 else Full(), static(bits)))
    model, wanted = both.open(plan), both.truly(plan, tokens, 120)
    uncoded = both.truly(replaced(plan, FLOAT32), tokens, 120)
    for chunk_tokens in (7, 1000):
        found = read(model, tokens, 120, chunk_tokens)
        assert mostly_apart(found, wanted) < 5e-3
        assert kl(wanted, found) < 0.01 * kl(uncoded, found)


def replaced(plan: Plan, form: KvFormat) -> Plan:
    """The plan with caches of another format."""
    return replace(plan, kv=tuple((site, replace(each, k=form, v=form)) for site, each in plan.kv))


def kl(a: Floats, b: Floats) -> float:
    """Nats a token between the distributions of two sets of logits."""
    p, q = (x.astype(np.float64) - np.log(np.exp(x.astype(np.float64)).sum(-1, keepdims=True)) for x in (a, b))
    return float((np.exp(p) * (p - q)).sum(-1).mean())
