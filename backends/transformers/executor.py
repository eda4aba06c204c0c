"""Open, run, time and emit plans with the transformers runner."""

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor
from transformers import PreTrainedModel

from backends.artefacts import beside_runner, json_bytes, opening, refusals
from backends.transformers import layout, runner
from backends.transformers.grouped import dequantise, quantise
from planner.executor import Artifact, Capabilities, KvStatics, Timing, Weights
from planner.formats import GROUPED_BITS, ROTATED_BITS, grouped, rotated
from planner.plan import Plan
from planner.space import FLOAT16, FLOAT32, KvFormat, KvSite, WeightFormat
from planner.spec import ModelSpec

RUNNER = Path(runner.__file__)
GROUPED = RUNNER.with_name("grouped.py")
GENERATION = RUNNER.with_name("modeling_plan.py")

CAPABILITIES = Capabilities(
    runtime="transformers",
    version="1",
    kv_formats=(FLOAT32, FLOAT16, *(rotated(bits) for bits in ROTATED_BITS)),
    weight_formats=(WeightFormat(32), WeightFormat(16), *(grouped(bits) for bits in GROUPED_BITS)),
    window_page_tokens=1,
    classes_per_layer=None,
    executes_here=True,
)


@dataclass
class TransformersSession:
    """A planned model in this process."""

    model: runner.PlannedModel

    def score(self, tokens: Sequence[int], first: int, chunk_tokens: int) -> NDArray[np.float32]:
        with refusals(runner.ArtefactError):
            cache = self.model.cache(1, len(tokens))
        ids = torch.tensor([list(tokens)])
        rows: list[Tensor] = []
        for start in range(0, len(tokens), chunk_tokens):
            hidden = self.model.step(cache, ids[:, start : start + chunk_tokens])[0]
            scored = hidden[max(first - start, 0) :]
            if len(scored):
                rows.append(torch.log_softmax(self.model.logits(scored), -1))
        result: NDArray[np.float32] = torch.cat(rows).numpy()
        return result

    def generate(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[list[int]]:
        longest = max((len(p) for p in prompts), default=0)
        with refusals(runner.ArtefactError):
            cache = self.model.cache(len(prompts), longest + new_tokens)
            logits = self.model.prefill(cache, prompts, 256)
        steps = torch.stack(list(self.model.generate(cache, logits, new_tokens)), 1)
        return [[int(t) for t in row] for row in steps]

    def time(self, prompt: Sequence[int], new_tokens: int, chunk_tokens: int, batch: int = 1) -> Timing:
        with refusals(runner.ArtefactError):
            cache = self.model.cache(batch, len(prompt) + new_tokens)
        start = time.perf_counter()
        logits = self.model.prefill(cache, [prompt] * batch, chunk_tokens)
        token = logits.argmax(-1)
        ttft_s = time.perf_counter() - start
        decode_s: list[float] = []
        for _ in range(new_tokens):
            start = time.perf_counter()
            token = self.model.logits(self.model.step(cache, token[:, None])[:, -1]).argmax(-1)
            decode_s.append(time.perf_counter() - start)
        return Timing(ttft_s, tuple(decode_s), cache.bytes + self.model.static_bytes, self.model.weight_bytes)


@dataclass
class TransformersExecutor:
    """The transformers runtime for one model.

    Weights in the formats of the last opened plan stay built, so plans that differ only in their cache open at once.
    """

    weights: Weights
    spec: ModelSpec
    statics: Mapping[KvSite, KvStatics] = field(default_factory=dict)
    _built: tuple[object, PreTrainedModel] | None = None

    @property
    def capabilities(self) -> Capabilities:
        return CAPABILITIES

    def use(self, statics: Mapping[KvSite, KvStatics]) -> None:
        self.statics = statics

    def identity(self) -> str:
        return hashlib.sha256(RUNNER.read_bytes() + GROUPED.read_bytes()).hexdigest()

    def open(self, plan: Plan) -> TransformersSession:
        key = tuple((site, choice.format) for site, choice in plan.weights)
        if self._built is None or self._built[0] != key:
            self._built = None  # frees the old weights before the new ones are built
            formats, tensors = layout.weight_tensors(plan, self.weights)
            with refusals(runner.ArtefactError):
                self._built = (key, runner.build(json.loads(self.weights.config), formats, tensors))
        kv = dict(layout.kv_tensors(plan, self.statics))
        return TransformersSession(runner.PlannedModel(self._built[1], layout.kv_layout(plan, self.spec), kv))

    def load(self, directory: Path) -> TransformersSession:
        return load(directory)

    def emit(self, plan: Plan, spec: ModelSpec) -> tuple[Artifact, ...]:
        formats, tensors = layout.weight_tensors(plan, self.weights)
        tensors |= dict(layout.kv_tensors(plan, self.statics))
        return (
            Artifact("config.json", self.weights.config.encode()),
            Artifact("kv.json", json_bytes(layout.kv_layout(plan, spec))),
            Artifact("weights.json", json_bytes(formats)),
            Artifact("weights.safetensors", save(tensors)),
            Artifact("runner.py", RUNNER.read_bytes()),
            Artifact(GENERATION.name, beside_runner(GENERATION.read_text())),
            *self.weights.companions(),
        )

    def recode_kv(
        self, part: Literal["k", "v"], form: KvFormat, values: NDArray[np.float32], statics: KvStatics
    ) -> NDArray[np.float32]:
        """Keys ('k') or values ('v') [tokens, head_dim] of one head as they read back from a format."""
        dim = values.shape[-1]
        layout.check_stored(f"the {part} of a head", form, dim)
        mean = statics.k_mean if part == "k" else np.zeros(dim, np.float32)
        scale = statics.k_scale if part == "k" else statics.v_scale
        half = [torch.from_numpy(np.asarray(x)).half().float()[None, None] for x in (mean, scale)]
        code = runner.Code(int(form.bits), dim, *half)
        back = code.restored(code.decode(code.encode(torch.from_numpy(values)[None, None])))[0, 0]
        read: NDArray[np.float32] = (back + half[0][0, 0] if form.scheme == "rotated" else back).numpy()
        return read

    def recode_input(self, form: WeightFormat, values: NDArray[np.float32]) -> NDArray[np.float32] | None:
        """None: the products take their inputs as they are."""
        return None

    def recode_weight(self, name: str, form: WeightFormat) -> NDArray[np.float32]:
        """A matrix [rows, cols] as it reads back from a format."""
        matrix = torch.from_numpy(self.weights.dense(name)).float()
        if form.scheme == "grouped":
            matrix = dequantise(*quantise(matrix, int(form.bits), form.group))
        elif form.scheme == "float" and form.bits == 16:
            matrix = matrix.half().float()
        read: NDArray[np.float32] = matrix.numpy()
        return read


def load(directory: Path) -> TransformersSession:
    """An emitted artefact, checked against its manifest."""
    with opening(directory, runner.ArtefactError):
        return TransformersSession(runner.load(directory))


def reply(directory: Path, prompt: str, new_tokens: int, chunk_tokens: int) -> Iterator[str]:
    """An artefact's reply to a prompt, piece by piece."""
    model = load(directory).model
    with refusals(runner.ArtefactError):
        yield from runner.answer(model, directory, prompt, new_tokens, chunk_tokens, raw=False)
