"""The pieces of llama.cpp whose speed decides a plan's seconds on a CPU, for the hardware profile.

llama.cpp lays weights out anew as it loads them, for the CPU it finds, so products are timed in models that it loads:
two layers whose matrices are so large that the rest takes no time. Attention is timed in layers of next to no weights.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from gguf import GGUFValueType
from numpy.typing import NDArray

from backends.llamacpp import codes, gguf_bytes
from backends.llamacpp.gguf_bytes import Entry, Field
from backends.llamacpp.layout import cache_type
from backends.llamacpp.library import installed
from backends.llamacpp.session import Context, Model, Run
from planner.executor import FEW_SLOTS, Probed, ProbedAttention, ProbedDecoder
from planner.formats import GGML, ggml, ggml_kv
from planner.space import FLOAT16, FLOAT32, KvFormat, WeightFormat

HIDDEN, FFN, VOCAB = 512, 24576, 64
Q_HEADS, KV_HEADS, HEAD_DIM = 9, 3, 64
HEAD_DIMS, SLOTS, CHUNK = (64, 128), (512, 2048, 8192), 256
CHUNK_SLOTS = CHUNK * 2048
"""A chunk times the slots it attends to: over longer caches it has fewer tokens, whose multiplications cost as much."""

PRODUCT_TOKENS = (1, 16, 64, 256)
LAYER_FORM = ggml("q4_0")
CACHED = 12_000_000
"""Numbers in the caches that one token attends to, layer after layer: more than the processor's own caches hold."""

MOST_LAYERS = 32
FILL = 256
"""Tokens of each of the short sequences that fill a cache, which costs less than one long one would."""

PROMPT, CONTEXT = 20, FEW_SLOTS

KV_KINDS: dict[int, KvFormat] = {
    32: FLOAT32, 16: FLOAT16, 8: ggml_kv("q8_0"), 5: ggml_kv("q5_1"), 4: ggml_kv("q4_1"),
}  # fmt: skip
"""Of each width the type that is timed."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama of random numbers. All its matrices are in one format, whose blocks divide every row."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    form: WeightFormat

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """[rows, cols] of a layer's."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "attn_q": (queries, self.hidden), "attn_k": (keys, self.hidden), "attn_v": (keys, self.hidden),
            "attn_output": (self.hidden, queries), "ffn_gate": (self.ffn, self.hidden),
            "ffn_up": (self.ffn, self.hidden), "ffn_down": (self.hidden, self.ffn),
        }  # fmt: skip

    @property
    def numbers(self) -> int:
        """Numbers of a layer's matrices."""
        return sum(rows * cols for rows, cols in self.matrices.values())


def random_model(shape: Shape) -> Model:
    """A model of a shape, its file gone once it is loaded."""
    counts = {
        "context_length": shape.context, "embedding_length": shape.hidden, "block_count": shape.layers,
        "feed_forward_length": shape.ffn, "attention.head_count": shape.heads,
        "attention.head_count_kv": shape.kv_heads, "attention.key_length": shape.head_dim,
        "attention.value_length": shape.head_dim, "rope.dimension_count": shape.head_dim, "vocab_size": VOCAB,
    }  # fmt: skip
    fields = [Field.of("general.architecture", GGUFValueType.STRING, "llama")]
    fields += [Field.of(f"llama.{key}", GGUFValueType.UINT32, value) for key, value in counts.items()]
    fields.append(Field.of("llama.attention.layer_norm_rms_epsilon", GGUFValueType.FLOAT32, 1e-5))
    fields.append(Field.of("tokenizer.ggml.model", GGUFValueType.STRING, "no_vocab"))
    made: dict[tuple[int, int], NDArray[np.generic]] = {}
    ones, table = np.ones(shape.hidden, np.float32), list[tuple[Entry, NDArray[np.generic]]]()

    def add(name: str, values: NDArray[np.generic], dims: tuple[int, ...], form: WeightFormat) -> None:
        table.append((Entry(name, dims, codes.ggml_type(form), values.nbytes), values))

    vocabulary = np.random.default_rng(0).standard_normal((VOCAB, shape.hidden), np.float32)
    add("token_embd.weight", vocabulary, vocabulary.shape, WeightFormat(32))
    add("output_norm.weight", ones, ones.shape, WeightFormat(32))
    for layer in range(shape.layers):
        for norm in ("attn_norm", "ffn_norm"):
            add(f"blk.{layer}.{norm}.weight", ones, ones.shape, WeightFormat(32))
        for name, dims in shape.matrices.items():
            stored = made[dims] = made[dims] if dims in made else _random(dims, shape.form)
            add(f"blk.{layer}.{name}.weight", stored, dims, shape.form)
    with tempfile.TemporaryDirectory(prefix="planner-probe-") as scratch:
        path = Path(scratch) / "model.gguf"
        with path.open("wb") as file:
            file.write(gguf_bytes.head(fields, [entry for entry, _ in table]))
            for entry, values in table:
                file.write(values.tobytes() + bytes(entry.padding_bytes))
        return Model(path)


def _random(dims: tuple[int, int], form: WeightFormat) -> NDArray[np.generic]:
    """A matrix that leaves numbers as large as they were; a few of its rows over and over, for rounding takes time."""
    rows, cols = dims
    few = np.random.default_rng(1).standard_normal((min(rows, 64), cols), np.float32) / np.float32(cols**0.5)
    packed = few.view(np.uint8) if form == WeightFormat(32) else codes.packed(few, form)
    return np.ascontiguousarray(np.tile(packed, (-(-rows // len(few)), 1))[:rows])


@dataclass(frozen=True)
class LlamaCppProbe:
    """Calls of llama.cpp itself."""

    runtime: str = "llamacpp"
    name: str = f"xllamacpp {installed() or 'not installed'}, session 1"

    def expand_weights(self, bits: int) -> tuple[int, Callable[[], object]] | None:
        return None

    def expand_kv(self, bits: int) -> tuple[int, Callable[[], object]] | None:
        return None

    def products(self) -> tuple[Probed, ...]:
        forms = (WeightFormat(32), WeightFormat(16), *(ggml(name) for name in GGML))
        return tuple(self._product(form, tokens) for form in forms for tokens in PRODUCT_TOKENS)

    def attention(self) -> tuple[ProbedAttention, ...]:
        return tuple(
            self._attention(bits, head_dim, slots, tokens)
            for bits in KV_KINDS
            for head_dim in HEAD_DIMS
            for slots in (FEW_SLOTS, *SLOTS)
            for tokens in ((1,) if slots == FEW_SLOTS else (1, min(CHUNK, CHUNK_SLOTS // slots)))
        )

    @staticmethod
    def _product(form: WeightFormat, tokens: int) -> Probed:
        shape = Shape(2, HIDDEN, FFN, 8, 2, 64, CHUNK, form)
        kind = f"float{form.bits:g}" if form.scheme == "float" else form.scheme
        return Probed(kind, tokens, 2 * shape.numbers, partial(LlamaCppProbe._multiplying, shape, tokens))

    @staticmethod
    def _multiplying(shape: Shape, tokens: int) -> Callable[[], object]:
        context = Context(random_model(shape), Run(), tokens)

        def call() -> object:
            context.forget(0)
            return context.step([1] * tokens, 0)

        return call

    def _attention(self, bits: int, head_dim: int, slots: int, tokens: int) -> ProbedAttention:
        wanted = CACHED // (2 * KV_HEADS * head_dim * slots) if tokens == 1 else 1
        layers = max(1, min(wanted, MOST_LAYERS))
        work = 2 * tokens * Q_HEADS * head_dim * slots
        opened = partial(self._attending, bits, head_dim, slots, tokens, layers)
        return ProbedAttention(bits, head_dim, slots, tokens, layers, work, opened)

    @staticmethod
    def _attending(bits: int, head_dim: int, slots: int, tokens: int, layers: int) -> Callable[[], object]:
        """So many layers' attention of tokens over a cache that is full once they are in."""
        shape = Shape(layers, 32, 32, Q_HEADS, KV_HEADS, head_dim, slots, ggml("q8_0"))
        name = cache_type(KV_KINDS[bits])
        held = slots - tokens
        sequences = -(-held // FILL)
        context = Context(random_model(shape), Run(name, name), slots, sequences, shared=True)
        for number in range(sequences):
            start = number * FILL
            context.step([1] * min(FILL, held - start), start, number)
            context.adopt(number, 0)

        def call() -> object:
            context.forget(held)
            return context.step([1] * tokens, held)

        return call

    def decoder(self, layers: int, classes: int) -> ProbedDecoder:
        """Heads of a layer are of one class: a second one costs nothing, for there is none."""
        shape = Shape(layers, 512, 1536, Q_HEADS, KV_HEADS, HEAD_DIM, CONTEXT, LAYER_FORM)
        context = Context(random_model(shape), Run(), CONTEXT)
        context.read([1] * PROMPT, PROMPT)
        filled = [PROMPT]

        def step() -> object:
            if filled[0] == CONTEXT:
                context.forget(PROMPT)
                filled[0] = PROMPT
            filled[0] += 1
            return context.step([1], filled[0] - 1).argmax(-1)

        slots = (PROMPT + CONTEXT) // 2
        return ProbedDecoder(step, LAYER_FORM.scheme, shape.numbers, 2 * Q_HEADS * HEAD_DIM * slots)
