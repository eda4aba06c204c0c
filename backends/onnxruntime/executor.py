"""Open, run, time and emit plans with the ONNX Runtime runner."""

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from backends.artefacts import json_bytes, opening, refusals
from backends.onnxruntime import codes, layout, runner
from backends.onnxruntime.chat import chat_json
from backends.onnxruntime.graph import Graph
from backends.onnxruntime.sessions import with_constants
from planner.errors import InputError
from planner.executor import Artifact, Capabilities, KvStatics, Timing, Weights
from planner.formats import BLOCK_BITS, STATIC_BITS, block, static
from planner.plan import Plan
from planner.space import FLOAT32, KvFormat, KvSite, WeightFormat
from planner.spec import ModelSpec

RUNNER = Path(runner.__file__)
CODES = Path(codes.__file__)

CAPABILITIES = Capabilities(
    runtime="onnxruntime",
    version="1",
    kv_formats=(FLOAT32, *(static(bits) for bits in reversed(STATIC_BITS))),
    weight_formats=(WeightFormat(32), *(block(bits) for bits in reversed(BLOCK_BITS))),
    window_page_tokens=1,
    classes_per_layer=2,
    executes_here=True,
    kv_alike=True,
    native="exact",
    unrounded=(4,),
)


@dataclass
class OnnxRuntimeSession:
    """A planned model in this process."""

    model: runner.PlannedModel

    def score(self, tokens: Sequence[int], first: int, chunk_tokens: int) -> NDArray[np.float32]:
        with refusals(runner.ArtefactError):
            logits = self.model.read(self.model.cache(1, len(tokens)), 0, tokens, chunk_tokens, first)
        logits -= logits.max(-1, keepdims=True)
        scored: NDArray[np.float32] = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        return scored

    def generate(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[list[int]]:
        if not prompts:
            raise InputError("there are no prompts, and so no tokens; give at least one")
        longest = max(len(p) for p in prompts)
        with refusals(runner.ArtefactError):
            cache = self.model.cache(len(prompts), longest + new_tokens)
            logits = [self.model.read(cache, row, prompt, 256)[-1] for row, prompt in enumerate(prompts)]
        steps = list(self.model.generate(cache, np.stack(logits), new_tokens)) if new_tokens else []
        return [[step[row] for step in steps] for row in range(len(prompts))]

    def time(self, prompt: Sequence[int], new_tokens: int, chunk_tokens: int, batch: int = 1) -> Timing:
        with refusals(runner.ArtefactError):
            cache = self.model.cache(batch, len(prompt) + new_tokens)
        start = time.perf_counter()
        logits = np.stack([self.model.read(cache, row, prompt, chunk_tokens)[-1] for row in range(batch)])
        tokens = logits.argmax(-1).tolist()
        ttft_s = time.perf_counter() - start
        decode_s: list[float] = []
        for _ in range(new_tokens):
            start = time.perf_counter()
            tokens = self.model.step(cache, tokens).argmax(-1).tolist()
            decode_s.append(time.perf_counter() - start)
        return Timing(ttft_s, tuple(decode_s), cache.bytes + self.model.static_bytes, self.model.weight_bytes)


@dataclass
class OnnxRuntimeExecutor:
    """ONNX Runtime for one model."""

    weights: Weights
    spec: ModelSpec
    statics: Mapping[KvSite, KvStatics] = field(default_factory=dict)

    @property
    def capabilities(self) -> Capabilities:
        return CAPABILITIES

    def use(self, statics: Mapping[KvSite, KvStatics]) -> None:
        self.statics = statics

    def identity(self) -> str:
        return hashlib.sha256(CODES.read_bytes()).hexdigest()

    def open(self, plan: Plan) -> OnnxRuntimeSession:
        graph = layout.graph(plan, self.spec, self.weights, self.statics)
        session = with_constants(graph.model(), graph.constants)
        told = layout.kv_layout(plan, self.spec)
        return OnnxRuntimeSession(runner.PlannedModel(session, told, *counted(graph)))

    def load(self, directory: Path) -> OnnxRuntimeSession:
        return load(directory)

    def emit(self, plan: Plan, spec: ModelSpec) -> tuple[Artifact, ...]:
        graph = layout.graph(plan, spec, self.weights, self.statics)
        model = graph.model()
        weight_bytes, static_bytes = counted(graph)
        kv = {
            "layout": layout.kv_layout(plan, spec),
            "weight_bytes": weight_bytes,
            "static_bytes": static_bytes,
        }
        companions = self.weights.companions()
        return (
            Artifact("config.json", self.weights.config.encode()),
            Artifact(runner.KV, json_bytes(kv)),
            Artifact(runner.CHAT, json_bytes(chat_json(companions))),
            Artifact(runner.GRAPH, model.SerializeToString()),
            Artifact(runner.GRAPH_DATA, graph.data()),
            Artifact("runner.py", RUNNER.read_bytes()),
            *companions,
        )

    def recode_kv(
        self, part: Literal["k", "v"], form: KvFormat, values: NDArray[np.float32], statics: KvStatics
    ) -> NDArray[np.float32]:
        """Keys ('k') or values ('v') [tokens, head_dim] of one head as they read back from a format."""
        if form.scheme == "float":
            return values
        layout.check_format(f"the {part} of a head", form, values.shape[-1])
        peak = statics.k_peak if part == "k" else statics.v_peak
        return codes.kv_recoded(values, codes.kv_scale(peak, int(form.bits)), int(form.bits))

    def recode_input(self, form: WeightFormat, values: NDArray[np.float32]) -> NDArray[np.float32] | None:
        """Inputs of a product with blocks of codes, rounded as the node rounds them; None where they are not."""
        if form.scheme in ("float", "unrounded"):
            return None
        return codes.input_recoded(values, int(form.bits), form.group)

    def recode_weight(self, name: str, form: WeightFormat) -> NDArray[np.float32]:
        """A matrix [rows, cols] as it reads back from a format."""
        matrix = layout.stored(name, form, self.weights)
        return matrix.dense() if isinstance(matrix, codes.Blocks) else matrix


def load(directory: Path) -> OnnxRuntimeSession:
    """An emitted artefact, checked against its manifest."""
    with opening(directory, runner.ArtefactError):
        return OnnxRuntimeSession(runner.load(directory))


def reply(directory: Path, prompt: str, new_tokens: int, chunk_tokens: int) -> Iterator[str]:
    """An artefact's reply to a prompt, piece by piece."""
    model = load(directory).model
    with opening(directory, runner.ArtefactError):
        chat = runner.Chat.of(directory)
    with refusals(runner.ArtefactError):
        tokens = chat.ask(prompt)
        cache = model.cache(1, len(tokens) + new_tokens)
        yield from runner.answer(model, chat, cache, tokens, new_tokens, chunk_tokens)


def counted(graph: Graph) -> tuple[int, int]:
    """(bytes of the weights, bytes of the static factors) among a written graph's constants."""
    made = ("cos.", "sin.", "ones.")
    static_bytes = sum(v.nbytes for n, v in graph.constants.items() if n.startswith("scale."))
    others = sum(v.nbytes for n, v in graph.constants.items() if not n.startswith(("scale.", *made)))
    return others, static_bytes
