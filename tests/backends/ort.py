"""A model directory opened on ONNX Runtime, beside the transformers runtime and the oracle on the same plan."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from backends.onnxruntime.codes import kv_recoded, kv_scale
from backends.onnxruntime.executor import OnnxRuntimeExecutor
from backends.onnxruntime.graph import Graph
from backends.onnxruntime.runner import Cache, PlannedModel
from planner.formats import slots
from planner.plan import Plan
from planner.space import KvFormat, KvSite
from tests.backends.oracle import FULL32, Oracle, Subject, physically, subject, tokens_of, visible

Floats = NDArray[np.float32]


@dataclass
class Pair:
    """A model that both runtimes open."""

    other: Subject
    executor: OnnxRuntimeExecutor

    def open(self, plan: Plan) -> PlannedModel:
        """The plan on ONNX Runtime."""
        return self.executor.open(plan).model

    @torch.no_grad()
    def truly(self, plan: Plan, tokens: Sequence[int], context_tokens: int) -> Floats:
        """Logits [tokens, vocab] that a plan with static codes is to give."""
        self.other.model.set_attn_implementation("oracle")
        oracle = StaticOracle(plan, self.other.spec, context_tokens, self.executor.statics)
        logits: Floats = (
            self.other.model(torch.tensor([list(tokens)]), use_cache=False, oracle=oracle).logits[0].numpy()
        )
        return logits

    def wanted(self, plan: Plan, tokens: Sequence[int], context_tokens: int) -> Floats:
        """Logits [tokens, vocab] of the transformers runtime."""
        logits: Floats = physically(self.other.open(plan), tokens, context_tokens, 64).numpy()
        return logits


def pair(path: Path) -> Pair:
    """A Hugging Face directory opened for both, the peaks of its keys and values measured on a text of tokens."""
    other = subject(path)
    recorder = Recorder(other.plan(lambda _: FULL32), other.spec, 200, {})
    other.model.set_attn_implementation("oracle")
    with torch.no_grad():
        other.model(torch.tensor([tokens_of(200, seed=9)]), use_cache=False, oracle=recorder)
    statics = {site: replace(other.statics[site], k_peak=k, v_peak=v) for site, (k, v) in recorder.peaks.items()}
    return Pair(other, OnnxRuntimeExecutor(other.executor.weights, other.spec, statics))


@dataclass
class StaticOracle(Oracle):
    """Keys and values recoded by static factors, the protected ones like all others."""

    def seen(self, site: KvSite, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        choice, layer = dict(self.plan.kv)[site], self.spec.layers[site.layer]
        sinks, window = slots(choice, layer, self.context_tokens)
        keys, values = self._read(site, choice.k, "k", k), self._read(site, choice.v, "v", v)
        return keys, values, visible(len(k), sinks, window)

    def _read(self, site: KvSite, form: KvFormat, part: str, x: Tensor) -> Tensor:
        if form.scheme == "float":
            return x
        static, bits = self.statics[site], int(form.bits)
        scale = kv_scale(static.k_peak if part == "k" else static.v_peak, bits)
        return torch.from_numpy(kv_recoded(x.numpy(), scale, bits))


@dataclass
class Recorder(Oracle):
    """Notes the largest keys and values on the way."""

    peaks: dict[KvSite, tuple[Floats, Floats]] = field(default_factory=dict)

    def seen(self, site: KvSite, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.peaks[site] = k.abs().amax(0).numpy(), v.abs().amax(0).numpy()
        return k, v, visible(len(k), 0, len(k))


def node(graph: Graph, out: str) -> onnxruntime.InferenceSession:
    """One node of a written graph by itself: constants as they are, all else that it reads to be fed."""
    model = graph.model()
    told = {value.name: value for value in (*model.graph.input, *model.graph.output)}
    (found,) = (each for each in model.graph.node if out in each.output)
    constants = [numpy_helper.from_array(graph.constants[n], n) for n in found.input if n in graph.constants]
    fed = [name for name in found.input if name and name not in graph.constants]

    def value(name: str) -> onnx.ValueInfoProto:
        return told.get(name) or helper.make_tensor_value_info(name, TensorProto.FLOAT, None)

    alone = helper.make_graph([found], "alone", [value(n) for n in fed], [value(n) for n in found.output], constants)
    opsets, version = model.opset_import, model.ir_version
    made = helper.make_model(alone, opset_imports=opsets, ir_version=version)
    return onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])


def run(session: onnxruntime.InferenceSession, fed: Mapping[str, NDArray[np.generic]]) -> list[NDArray[np.generic]]:
    """All outputs of a session."""
    return [np.asarray(each) for each in session.run(None, dict(fed))]


def read(model: PlannedModel, tokens: Sequence[int], context_tokens: int, chunk_tokens: int) -> Floats:
    """Logits [tokens, vocab] of a prompt read in chunks into a fresh cache."""
    return model.read(model.cache(1, context_tokens), 0, tokens, chunk_tokens, 0)


def stepped(model: PlannedModel, cache: Cache, tokens: Sequence[int]) -> Floats:
    """Logits [tokens, vocab] of tokens that are decoded one by one in the cache's only row."""
    return np.concatenate([model.step(cache, [token]).copy() for token in tokens])


def apart(a: Floats, b: Floats) -> float:
    """The largest absolute difference."""
    return float(np.abs(a - b).max())


def mostly_apart(a: Floats, b: Floats) -> float:
    """The largest difference at the median token: where inputs are rounded, a sum that differs in its last bit may go
    to the next integer, so most tokens are compared and not all."""
    return float(np.median(np.abs(a - b).max(-1)))
