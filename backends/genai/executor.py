"""Open, run, time and emit plans with onnxruntime-genai."""

import hashlib
import json
import shutil
import tempfile
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from backends.artefacts import json_bytes
from backends.genai import layout
from backends.genai.capabilities import MODULE, VERSIONS
from backends.genai.uncompressed import rewritten
from backends.onnxruntime import runner
from backends.onnxruntime.chat import chat_json
from backends.onnxruntime.executor import CODES, OnnxRuntimeExecutor
from backends.transformers.oracle import Oracle
from planner.artefact import intact
from planner.errors import InputError
from planner.executor import Artifact, Capabilities, KvStatics, Session, Timing, Weights
from planner.files import read_text
from planner.plan import Plan
from planner.space import KvFormat, KvSite, WeightFormat
from planner.spec import ModelSpec

RING_CODES_MULTIPLE = 32

MADE = ("cos.", "sin.", "ones.")
"""Constants that are made from the config, not stored of the model."""


def genai() -> Any:
    """The runtime's module; InputError where it is not installed."""
    try:
        return import_module(MODULE)
    except ModuleNotFoundError as error:
        raise InputError(f"{MODULE} is not installed; pip install 'llm-planner[genai]'") from error


@dataclass
class GenaiSession:
    """A directory that onnxruntime-genai has loaded; a `scratch` one is removed with the session."""

    directory: Path
    weight_bytes: int
    static_bytes: int
    scratch: bool = False
    _model: Any = field(init=False)

    def __post_init__(self) -> None:
        if self.scratch:
            weakref.finalize(self, shutil.rmtree, self.directory, ignore_errors=True)
        module = genai()
        try:
            self._model = module.Model(str(self.directory))
        except RuntimeError as error:
            raise InputError(f"{self.directory}: onnxruntime-genai does not load it: {error}") from error

    def _generator(self, tokens: int, batch: int = 1) -> Any:
        module = genai()
        asked = module.GeneratorParams(self._model)
        asked.set_search_options(max_length=max(tokens, ring(self.directory)), batch_size=batch)
        return module.Generator(self._model, asked)

    def _read(self, generator: Any, prompts: NDArray[np.int64], chunk_tokens: int) -> Iterator[NDArray[np.float32]]:
        """Logits [batch, tokens, vocab] of prompts [batch, tokens], chunk by chunk."""
        for start in range(0, prompts.shape[1], chunk_tokens):
            generator.append_tokens(prompts[:, start : start + chunk_tokens])
            yield generator.get_output("logits")

    def score(self, tokens: Sequence[int], first: int, chunk_tokens: int) -> NDArray[np.float32]:
        generator = self._generator(len(tokens))
        rows, seen = [], 0
        for logits in self._read(generator, np.array([tokens], np.int64), chunk_tokens):
            rows.append(logits[0, max(first - seen, 0) :])
            seen += logits.shape[1]
        scored = np.concatenate(rows)
        scored = scored - scored.max(-1, keepdims=True)
        found: NDArray[np.float32] = scored - np.log(np.exp(scored).sum(-1, keepdims=True))
        return found

    def generate(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[list[int]]:
        return [self._continued(prompt, new_tokens) for prompt in prompts]

    def _continued(self, prompt: Sequence[int], new_tokens: int) -> list[int]:
        """Greedy tokens, the end of a text being a token like all others."""
        generator = self._generator(len(prompt) + new_tokens)
        (*_, logits) = self._read(generator, np.array([prompt], np.int64), len(prompt))
        found: list[int] = []
        while len(found) < new_tokens:
            found.append(int(logits[0, -1].argmax()))
            if len(found) < new_tokens:
                generator.append_tokens(np.array([found[-1:]], np.int64))
                logits = generator.get_output("logits")
        return found

    def time(self, prompt: Sequence[int], new_tokens: int, chunk_tokens: int, batch: int = 1) -> Timing:
        generator = self._generator(len(prompt) + new_tokens, batch)
        start = time.perf_counter()
        for logits in self._read(generator, np.array([list(prompt)] * batch, np.int64), chunk_tokens):
            last = logits[:, -1:]
        tokens = last.argmax(-1)
        ttft_s = time.perf_counter() - start
        decode_s = []
        for _ in range(new_tokens):
            start = time.perf_counter()
            generator.append_tokens(tokens)
            tokens = generator.get_output("logits").argmax(-1)
            decode_s.append(time.perf_counter() - start)
        return Timing(ttft_s, tuple(decode_s), self._kv_bytes(generator) + self.static_bytes, self.weight_bytes)

    def _kv_bytes(self, generator: Any) -> int:
        """Bytes of the caches that the generator has made."""
        layers = json.loads((self.directory / layout.CONFIG).read_text())["model"]["decoder"]["num_hidden_layers"]
        names = (f"present.{index}.{part}" for index in range(layers) for part in ("key", "value"))
        return sum(int(generator.get_output(name).nbytes) for name in names)


@dataclass
class GenaiExecutor:
    """onnxruntime-genai for one model.

    Plans that it carries run in it, from a directory that is removed afterwards; others, which only price settings, run
    in its numbers.
    """

    weights: Weights
    spec: ModelSpec
    statics: Mapping[KvSite, KvStatics] = field(default_factory=dict)
    codes: OnnxRuntimeExecutor = field(init=False)
    oracle: Oracle = field(init=False)

    def __post_init__(self) -> None:
        why = layout.refusal(self.spec)
        if why:
            raise InputError(f"{self.spec.source}: {why}; give --backend onnxruntime")
        self.codes = OnnxRuntimeExecutor(self.weights, self.spec)
        self.oracle = Oracle(self.codes, self.weights, self.spec)

    @property
    def capabilities(self) -> Capabilities:
        """What it carries of this model: rings of 4-bit codes need heads of a multiple of 32."""
        can = VERSIONS[-1]
        if self.spec.layers[0].head_dim % RING_CODES_MULTIPLE == 0:
            return can
        return replace(can, kv_formats=tuple(form for form in can.kv_formats if form.bits != 4))

    def use(self, statics: Mapping[KvSite, KvStatics]) -> None:
        self.statics = statics

    def identity(self) -> str:
        return hashlib.sha256(CODES.read_bytes()).hexdigest()

    def open(self, plan: Plan) -> Session:
        can = self.capabilities
        if not (can.executes_here and can.admits(plan.chosen)):
            return self.oracle.open(plan, self.statics)
        directory = scratch()
        for file in self.emit(plan, self.spec):
            path = directory / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file.content if isinstance(file.content, bytes) else file.content.read_bytes())
        return GenaiSession(directory, *counted(directory), scratch=True)

    def load(self, directory: Path) -> Session:
        return load(directory)

    def emit(self, plan: Plan, spec: ModelSpec) -> tuple[Artifact, ...]:
        graph = layout.graph(plan, spec, self.weights, self.statics)
        model = graph.model()
        companions = self.weights.companions()
        stop = chat_json(companions)["stop"]
        if not stop:
            raise InputError(
                f"{spec.source}: its tokenizer names no token that ends a text, which genai_config.json needs"
            )
        config = layout.genai_config(plan, spec, self.weights.config, stop)
        return (
            Artifact("config.json", self.weights.config.encode()),
            Artifact(layout.CONFIG, json_bytes(config)),
            Artifact(runner.GRAPH, model.SerializeToString()),
            Artifact(runner.GRAPH_DATA, graph.data()),
            *companions,
        )

    def recode_kv(
        self, part: Literal["k", "v"], form: KvFormat, values: NDArray[np.float32], statics: KvStatics
    ) -> NDArray[np.float32]:
        return self.codes.recode_kv(part, form, values, statics)

    def recode_input(self, form: WeightFormat, values: NDArray[np.float32]) -> NDArray[np.float32] | None:
        return self.codes.recode_input(form, values)

    def recode_weight(self, name: str, form: WeightFormat) -> NDArray[np.float32]:
        return self.codes.recode_weight(name, form)


def ring(directory: Path) -> int:
    """Slots of the rings of a directory, 0 where it has none: a request needs room for at least as many."""
    rings = json.loads(read_text(directory / layout.CONFIG))["model"]["decoder"].get("sliding_window")
    return 0 if rings is None else int(rings["window_size"]) + int(rings["cache_slack"])


def counted(directory: Path) -> tuple[int, int]:
    """(bytes of the weights, bytes of the static factors) among a written graph's constants."""
    graph = onnx.load(str(directory / runner.GRAPH), load_external_data=False).graph
    weight_bytes = static_bytes = 0
    for tensor in graph.initializer:
        length = next((int(entry.value) for entry in tensor.external_data if entry.key == "length"), 0)
        if tensor.name.startswith("scale."):
            static_bytes += length
        elif not tensor.name.startswith(MADE):
            weight_bytes += length
    return weight_bytes, static_bytes


def load(directory: Path) -> GenaiSession:
    """An emitted artefact, every file checked against its manifest."""
    intact(directory)
    return GenaiSession(directory, *counted(directory))


def uncompressed(directory: Path) -> GenaiSession:
    """An artefact's own weights under a cache that keeps every token in float32."""
    new = scratch()
    rewritten(directory, new)
    return GenaiSession(new, *counted(new), scratch=True)


def scratch() -> Path:
    """A new directory of our own."""
    return Path(tempfile.mkdtemp(prefix="planner-genai-"))


def reply(directory: Path, prompt: str, new_tokens: int, chunk_tokens: int) -> Iterator[str]:
    """An artefact's reply to a prompt, piece by piece, by the generator's own search."""
    load(directory)
    module = genai()
    model = module.Model(str(directory))
    tokenizer = module.Tokenizer(model)
    template = directory / "chat_template.jinja"
    config = json.loads(read_text(directory / "tokenizer_config.json"))
    if template.is_file() or config.get("chat_template"):
        said = json.dumps([{"role": "user", "content": prompt}])
        prompt = tokenizer.apply_chat_template(said, add_generation_prompt=True)
    tokens = tokenizer.encode(prompt)
    asked = module.GeneratorParams(model)
    asked.set_search_options(max_length=max(len(tokens) + new_tokens, ring(directory)))
    generator = module.Generator(model, asked)
    for start in range(0, len(tokens), chunk_tokens):
        generator.append_tokens(tokens[start : start + chunk_tokens])
    pieces = tokenizer.create_stream()
    for _ in range(new_tokens):
        if generator.is_done():
            return
        generator.generate_next_token()
        yield pieces.decode(generator.get_next_tokens()[0])
