"""The nodes of the runtime's graphs whose speed decides a plan's seconds on a CPU, for the hardware profile."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper

from backends.onnxruntime import codes, runner
from backends.onnxruntime.families import family_of
from backends.onnxruntime.graph import (
    CACHE_TYPES,
    IR_VERSION,
    MICROSOFT,
    OPSET,
    Graph,
    HeadClass,
    LayerShape,
    Matrix,
)
from backends.onnxruntime.sessions import with_constants
from planner.executor import FEW_SLOTS, Probed, ProbedAttention, ProbedDecoder

LLAMA = {
    "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9,
    "num_key_value_heads": 3, "num_hidden_layers": 1, "vocab_size": 64, "pad_token_id": 0, "bos_token_id": 0,
    "eos_token_id": 0,
}  # fmt: skip
"""A layer of ordinary sizes: small enough to be quick, large enough that its products are spread over the cores."""

COLS, ROWS, VOCAB = 576, 1536, 64
Q_HEADS, KV_HEADS, HEAD_DIM = 9, 3, 64
HEAD_DIMS, SLOTS, CHUNK = (64, 128), (512, 2048, 8192), 256
SHAPES = {
    "q_proj": (Q_HEADS * HEAD_DIM, COLS), "k_proj": (KV_HEADS * HEAD_DIM, COLS), "v_proj": (KV_HEADS * HEAD_DIM, COLS),
    "o_proj": (COLS, Q_HEADS * HEAD_DIM), "gate_proj": (ROWS, COLS), "up_proj": (ROWS, COLS), "down_proj": (COLS, ROWS),
    "embed_tokens": (VOCAB, COLS), "lm_head": (VOCAB, COLS), "wide": (ROWS, COLS), "narrow": (COLS, ROWS),
}  # fmt: skip
LAYER_NUMBERS = sum(rows * cols for name, (rows, cols) in SHAPES.items() if name.endswith("_proj"))

PRODUCT_TOKENS = (1, 16, 64, 512)
PRODUCT_KINDS = ("float32", "block8", "block4", "block2", "exact4", "exact8", "unrounded4")
LAYER_KIND = "block4"
"""What the layers are stored as whose overhead is measured: the quickest, so that little is subtracted."""

PRODUCTS = {1: 160, 16: 40, 64: 4, 512: 4}
"""Matrices that so many tokens are multiplied with, one behind the other. For one token: together the numbers of a
model of 140 million weights, which no cache holds in float32, while coded ones may lie in it as far as those of a model
do. Where more tokens come arithmetic decides, and few will do."""

CACHED = 50_000_000
"""Numbers in the caches that one token attends to, layer after layer, for the same reason: 200 MB in float32."""

MOST_LAYERS = 256
CHUNK_SLOTS = CHUNK * 2048
"""A chunk times the slots it attends to: over longer caches it has fewer tokens, whose multiplications cost as much."""

PROMPT, CONTEXT = 20, FEW_SLOTS
"""Positions of the decoders whose overhead is measured, filled at first and at last: too few to attend to for long."""


class Noise:
    """Random numbers as a model's, every matrix of one kind, no two alike: ONNX Runtime packs equal ones once, and a
    whole model of them would lie in the cache."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._made: dict[tuple[int, int], Matrix] = {}
        self._given = 0

    def matrix(self, name: str) -> Matrix:
        rows, cols = SHAPES[name.removesuffix(".weight").rpartition(".")[2]]
        if (rows, cols) not in self._made:
            self._made[rows, cols] = self._random(rows, cols)
        made, self._given = self._made[rows, cols], self._given + 1
        if isinstance(made, codes.Blocks):
            return replace(made, codes=np.roll(made.codes, self._given))
        return np.roll(made, self._given)

    def _random(self, rows: int, cols: int) -> Matrix:
        """A matrix that leaves numbers as large as they were: vanishing ones are slow to compute with."""
        random = np.random.default_rng(0)
        if self.kind == "float32":
            return random.standard_normal((rows, cols), np.float32) / np.float32(cols**0.5)
        bits = int(self.kind[-1])
        numbers = random.integers(0, 2**bits, (rows, cols), np.uint8)
        step = (12 / cols) ** 0.5 / 2**bits
        scale = np.full((rows, cols // codes.BLOCK), step, np.float32)
        minimum = None if self.kind.startswith("block") else scale * np.float32(0.5)
        return codes.Blocks(bits, numbers, scale, minimum, not self.kind.startswith("unrounded"))

    def vector(self, name: str) -> NDArray[np.float32] | None:
        return None if name.endswith(".bias") else np.ones(COLS, np.float32)

    def alike(self, names: object) -> bool:
        return True


@dataclass(frozen=True)
class GraphProbe:
    """Calls of the nodes themselves, chained as a decoder chains them."""

    runtime: str = "onnxruntime"
    name: str = f"onnxruntime {onnxruntime.__version__}, runner 2"

    def expand_weights(self, bits: int) -> tuple[int, Callable[[], object]] | None:
        return None

    def expand_kv(self, bits: int) -> tuple[int, Callable[[], object]] | None:
        return None

    def products(self) -> tuple[Probed, ...]:
        return tuple(self._product(kind, tokens) for kind in PRODUCT_KINDS for tokens in PRODUCT_TOKENS)

    def attention(self) -> tuple[ProbedAttention, ...]:
        return tuple(
            self._attention(bits, head_dim, slots, tokens)
            for bits in CACHE_TYPES
            for head_dim in HEAD_DIMS
            for slots in (FEW_SLOTS, *SLOTS)
            for tokens in ((1,) if slots == FEW_SLOTS else (1, min(CHUNK, CHUNK_SLOTS // slots)))
        )

    def _product(self, kind: str, tokens: int) -> Probed:
        count = PRODUCTS[tokens]
        return Probed(kind, tokens, count * ROWS * COLS, partial(self._multiplying, kind, tokens, count))

    @staticmethod
    def _multiplying(kind: str, tokens: int, count: int) -> Callable[[], object]:
        """Products with so many matrices, one behind the other."""
        graph = Graph(family_of(json.dumps(LLAMA)), (), (), Noise(kind), "lm_head.weight")
        last = "x"
        for i in range(count):
            last = graph.product(last, f"{i}.{'wide' if i % 2 == 0 else 'narrow'}")
        model = graph.alone({"x": (TensorProto.FLOAT, ["batch", "tokens", COLS])}, last)
        session = with_constants(model, graph.constants)
        x = np.random.default_rng(1).standard_normal((1, tokens, COLS), np.float32)
        return lambda: session.run(None, {"x": x})

    def _attention(self, bits: int, head_dim: int, slots: int, tokens: int) -> ProbedAttention:
        layers = min(CACHED // (2 * KV_HEADS * head_dim * slots), MOST_LAYERS) if tokens == 1 else 1
        work = 2 * tokens * Q_HEADS * head_dim * slots
        opened = partial(self._attending, bits, head_dim, slots, tokens, layers)
        return ProbedAttention(bits, head_dim, slots, tokens, layers, work, opened)

    @staticmethod
    def _attending(bits: int, head_dim: int, slots: int, tokens: int, layers: int) -> Callable[[], object]:
        """So many layers' attention, each over a cache of its own that is full once the tokens are in."""
        width = head_dim // 2 if bits == 4 else head_dim
        make = helper.make_tensor_value_info
        heads = (("q", Q_HEADS), ("k", KV_HEADS), ("v", KV_HEADS))
        inputs = [make(name, TensorProto.FLOAT, ["b", "n", each * head_dim]) for name, each in heads]
        inputs += [make("filled", TensorProto.INT32, ["b"]), make("slots", TensorProto.INT32, [])]
        inputs.append(make("positions", TensorProto.INT64, ["b", "n"]))
        turns = np.ones((slots, head_dim // 2), np.float32)
        constants = [helper.make_tensor(n, TensorProto.FLOAT, turns.shape, turns.ravel()) for n in ("cos", "sin")]
        scales, options = ["", ""], dict[str, str | int]()
        if bits != 32:
            scales = ["scale", "scale"]
            options = {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": bits}
            step = np.full((KV_HEADS, 1, head_dim), 0.05, np.float32)
            constants.append(helper.make_tensor("scale", TensorProto.FLOAT, step.shape, step.ravel()))
        nodes, outputs, query = list[onnx.NodeProto](), list[onnx.ValueInfoProto](), "q"
        for i in range(layers):
            for part in "kv":
                for where, to in (("past", inputs), ("present", outputs)):
                    to.append(make(f"{where}.{i}.{part}", CACHE_TYPES[bits], ["b", KV_HEADS, "c", width]))
            reads = [query, "k", "v", f"past.{i}.k", f"past.{i}.v", "filled", "slots", "cos", "sin", "positions"]
            query = f"heard.{i}"
            writes = [query, f"present.{i}.k", f"present.{i}.v"]
            node = helper.make_node("GroupQueryAttention", [*reads, "", "", *scales], writes, domain=MICROSOFT)
            options |= {"num_heads": Q_HEADS, "kv_num_heads": KV_HEADS, "do_rotary": 1}
            node.attribute.extend(helper.make_attribute(name, value) for name, value in options.items())
            nodes.append(node)
        outputs.append(make(query, TensorProto.FLOAT, ["b", "n", Q_HEADS * head_dim]))
        imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        graph = helper.make_graph(nodes, "attention", inputs, outputs, constants)
        session = with_constants(helper.make_model(graph, opset_imports=imports, ir_version=IR_VERSION), {})
        random, binding = np.random.default_rng(0), session.io_binding()
        for name, each in heads:
            binding.bind_cpu_input(name, random.standard_normal((1, tokens, each * head_dim), np.float32))
        binding.bind_cpu_input("filled", np.array([slots - 1], np.int32))
        binding.bind_cpu_input("slots", np.array(slots, np.int32))
        binding.bind_cpu_input("positions", np.arange(slots - tokens, slots, dtype=np.int64)[None])
        numbers = random.standard_normal((1, KV_HEADS, slots, width)) * (1 if bits == 32 else 20)
        filled = numbers.astype(runner.WIDTHS[bits])
        for i in range(layers):
            for part in "kv":
                value = onnxruntime.OrtValue.ortvalue_from_numpy(filled.copy())
                binding.bind_ortvalue_input(f"past.{i}.{part}", value)
                binding.bind_ortvalue_output(f"present.{i}.{part}", value)
        binding.bind_output(query)
        return lambda: session.run_with_iobinding(binding)

    def decoder(self, layers: int, classes: int) -> ProbedDecoder:
        heads = ((0, 1, 2),) if classes == 1 else ((0, 2), (1,))
        empty = np.zeros((0, 0), np.float32)
        kinds = tuple(HeadClass(each, i, i > 0, 32, empty, empty) for i, each in enumerate(heads))
        turns = np.ones((CONTEXT, HEAD_DIM // 2), np.float32)
        shape = LayerShape(Q_HEADS, KV_HEADS, HEAD_DIM, kinds, 0)
        family = family_of(json.dumps({**LLAMA, "num_hidden_layers": layers}))
        graph = Graph(family, [shape] * layers, [(turns, turns)], Noise(LAYER_KIND), "lm_head.weight")
        session = with_constants(graph.model(), graph.constants)
        entries: list[list[runner.ClassEntry]] = [
            [{"heads": len(k.heads), "group": k.group, "bits": 32, "head_dim": HEAD_DIM} for k in kinds]
        ] * layers
        groups: list[runner.GroupEntry] = [
            {"sinks": 0, "alpha": None if i == 0 else 16, "beta": 0.0, "reach": None} for i in range(classes)
        ]
        layout: runner.KvLayout = {"max_positions": CONTEXT, "vocab": VOCAB, "groups": groups, "layers": entries}
        planned = runner.PlannedModel(session, layout, 0, 0)
        cache = planned.cache(1, CONTEXT)
        planned.read(cache, 0, [1] * PROMPT, 32)
        full = cache.save(0)

        def step() -> object:
            if len(cache.tokens[0]) == CONTEXT:
                cache.restore(0, full)
            return planned.step(cache, [1]).argmax(-1)

        slots = (PROMPT + CONTEXT) // 2
        return ProbedDecoder(step, LAYER_KIND, LAYER_NUMBERS, 2 * Q_HEADS * HEAD_DIM * slots)
