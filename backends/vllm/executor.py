"""A model planned for vLLM: its files, and plans of it run in its numbers by transformers.

vLLM itself runs in an interpreter of its own (backends/vllm/validate.py): it tells no distributions over a vocabulary
that a loss could be measured from, so plans are priced and verified on its numbers.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save

from backends.artefacts import json_bytes
from backends.transformers.oracle import Oracle, OracleSession
from backends.vllm import checkpoint, codes, serve, windows
from backends.vllm.capabilities import capabilities
from planner.errors import InputError
from planner.executor import Artifact, Capabilities, KvStatics, RuntimeProbe, Weights
from planner.formats import FP8
from planner.plan import Plan
from planner.space import FLOAT16, KvFormat, KvSite, WeightFormat
from planner.spec import ModelSpec

CODES = Path(codes.__file__)
CHECKPOINT = "model.safetensors"


@dataclass
class VllmExecutor:
    """vLLM for one model; what it opens is run in its numbers, not by it."""

    weights: Weights
    spec: ModelSpec
    _oracle: Oracle = field(init=False)

    def __post_init__(self) -> None:
        self._oracle = Oracle(self, self.weights, self.spec)

    @property
    def capabilities(self) -> Capabilities:
        return capabilities(self.weights.config)

    def use(self, statics: Mapping[KvSite, KvStatics]) -> None:
        """Nothing: no format here has factors that are measured."""

    def open(self, plan: Plan) -> OracleSession:
        """The plan in this runtime's numbers."""
        return self._oracle.open(plan, {})

    def load(self, directory: Path) -> OracleSession:
        raise InputError(NOT_HERE.format(directory))

    def emit(self, plan: Plan, spec: ModelSpec) -> tuple[Artifact, ...]:
        """What `vllm serve` is given: checkpoint, arguments, tokenizer, and a plugin where windows differ."""
        config = self.weights.config
        return (
            Artifact("config.json", json_bytes(checkpoint.config_json(plan, spec, config))),
            Artifact(CHECKPOINT, save(checkpoint.tensors(plan, self.weights), {"format": "pt"})),
            *serve.artifacts(plan, spec, config),
            *windows.plugin(windows.windows(plan, spec)),
            *self.weights.companions(),
        )

    def identity(self) -> str:
        return hashlib.sha256(CODES.read_bytes() + checkpoint.float_name(self.weights.config).encode()).hexdigest()

    def recode_kv(
        self, part: Literal["k", "v"], form: KvFormat, values: NDArray[np.float32], statics: KvStatics
    ) -> NDArray[np.float32]:
        """Keys ('k') or values ('v') [tokens, head_dim] of one head as they read back from a format."""
        numbers = torch.from_numpy(values)
        if form == FLOAT16:
            read = codes.rounded(numbers, checkpoint.float_name(self.weights.config)).float()
        elif form == FP8:
            read = codes.fp8(numbers)
        else:
            raise InputError(f"the {part} of a head: vllm stores no {form}")
        found: NDArray[np.float32] = read.numpy()
        return found

    def recode_input(self, form: WeightFormat, values: NDArray[np.float32]) -> NDArray[np.float32] | None:
        """Inputs of an eight-bit product, rounded token by token; None beside any other matrix."""
        if form.scheme != "ct" or form.bits != 8:
            return None
        read: NDArray[np.float32] = codes.inputs8(torch.from_numpy(values)).numpy()
        return read

    def recode_weight(self, name: str, form: WeightFormat) -> NDArray[np.float32]:
        """A matrix [rows, cols] as it reads back from a format."""
        read: NDArray[np.float32] = checkpoint.recoded(name, form, self.weights).numpy()
        return read


NOT_HERE = "{}: is run by vllm, not by this process: sh serve.sh there serves it"


def load(directory: Path) -> OracleSession:
    """Nothing: the artefact is vLLM's to run."""
    raise InputError(NOT_HERE.format(directory))


def reply(directory: Path, prompt: str, new_tokens: int, chunk_tokens: int) -> Iterator[str]:
    """Nothing: the artefact is vLLM's to run."""
    raise InputError(NOT_HERE.format(directory))


def probe() -> RuntimeProbe:
    """Nothing: how fast vLLM is on this machine is not measured."""
    raise InputError("--target local: how fast vllm is on this machine is not measured; name one of planner targets")
