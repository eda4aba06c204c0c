"""What the compiler asks of a runtime that can run here: open a model, apply a plan, score, generate, count.

Backends implement these protocols and the driver hands them to profiling and verification, so neither imports a
backend. Token ids, log-probabilities and bytes cross the line; tensors of a framework do not.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from planner.plan import Plan
from planner.space import AtMostDistinct, KvFormat, KvSite, Site, WeightFormat
from planner.spec import ModelSpec

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, of): the driver shows it with the time left."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What one runtime and version can carry: the formats it stores, how its heads may differ, and whether what lies
    in a slower tier than the fastest is fetched when it is needed (`offloads`)."""

    runtime: str
    version: str
    kv_formats: tuple[KvFormat, ...]
    weight_formats: tuple[WeightFormat, ...]
    window_page_tokens: int
    classes_per_layer: int | None
    executes_here: bool
    offloads: bool = False

    def constraints(self, sites: Iterable[Site]) -> tuple[AtMostDistinct, ...]:
        """The relations between sites that this runtime imposes."""
        if self.classes_per_layer is None:
            return ()
        layers: dict[int, list[Site]] = {}
        for site in sites:
            if isinstance(site, KvSite):
                layers.setdefault(site.layer, []).append(site)
        return tuple(
            AtMostDistinct(tuple(group), "kernel", self.classes_per_layer)
            for group in layers.values()
            if len(group) > self.classes_per_layer
        )


@dataclass(frozen=True, slots=True)
class Artifact:
    """One file of an artefact directory: a relative path and its bytes, or the existing file they are copied from."""

    path: str
    content: bytes | Path


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one prefill and of each decode step after it, with the memory counted while they ran."""

    ttft_s: float
    decode_s: tuple[float, ...]
    kv_bytes: int
    weight_bytes: int


@dataclass(frozen=True, slots=True)
class NativeBlocks:
    """A matrix as its source stores it: value = scale * code + minimum, in groups along a row.

    codes    [rows, cols]          uint8, below 2**bits
    scale    [rows, cols / group]  float16
    minimum  [rows, cols / group]  float16, or None where it is scale * offset
    """

    bits: int
    codes: NDArray[np.uint8]
    scale: NDArray[np.float16]
    minimum: NDArray[np.float16] | None
    offset: int | None


class Weights(Protocol):
    """An opened model's numbers, read when asked for. Matrices are [outputs, inputs] whatever the source's layout."""

    @property
    def config(self) -> str:
        """The content of the model's config.json."""
        ...

    def names(self) -> tuple[str, ...]:
        """Every tensor of the model, tied ones once, as transformers names them."""
        ...

    def dense(self, name: str) -> NDArray[np.float32]: ...

    def transposed(self, name: str) -> bool:
        """Whether transformers keeps this matrix as [inputs, outputs] (GPT-2's Conv1D)."""
        ...

    def native(self, name: str) -> NativeBlocks | None: ...

    def companions(self) -> tuple["Artifact", ...]:
        """Tokenizer, chat template and licence files that travel with the weights."""
        ...


@dataclass(frozen=True, slots=True)
class KvStatics:
    """Static factors of the rotated code of one head, [head_dim] each, measured on calibration text."""

    k_mean: NDArray[np.float32]
    k_scale: NDArray[np.float32]
    v_scale: NDArray[np.float32]


class Session(Protocol):
    """A model loaded into a runtime with one plan applied."""

    def score(self, tokens: Sequence[int], first: int, chunk_tokens: int) -> NDArray[np.float32]:
        """Log-probabilities [len(tokens) - first, vocab] of the token after each position from `first` on.

        The tokens are prefilled in chunks through the physical cache.
        """
        ...

    def generate(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[list[int]]:
        """Greedy continuations of a batch of prompts of any lengths."""
        ...

    def time(self, prompt: Sequence[int], new_tokens: int, chunk_tokens: int, batch: int = 1) -> Timing:
        """Prefill `batch` copies of a prompt and decode `new_tokens`, timed; bytes are counted from real tensors."""
        ...


class Executor(Protocol):
    """A runtime that executes plans on this machine."""

    @property
    def capabilities(self) -> Capabilities: ...

    def use(self, statics: Mapping[KvSite, KvStatics]) -> None:
        """Take these static factors for the plans opened and emitted from now on."""
        ...

    def recode_kv(
        self, part: Literal["k", "v"], form: KvFormat, values: NDArray[np.float32], statics: KvStatics
    ) -> NDArray[np.float32]:
        """Keys or values [tokens, head_dim] of one head as they read back from a format."""
        ...

    def recode_weight(self, name: str, form: WeightFormat) -> NDArray[np.float32]:
        """A matrix [outputs, inputs] as it reads back from a format."""
        ...

    def identity(self) -> str:
        """Sha256 of the code that defines the formats: prices hold for it and for no other."""
        ...

    def open(self, plan: Plan) -> Session:
        """The model with a plan applied, without writing an artefact (anchors, competing settings)."""
        ...

    def load(self, directory: Path) -> Session:
        """An emitted artefact, every file checked against its manifest."""
        ...

    def emit(self, plan: Plan, spec: ModelSpec) -> tuple[Artifact, ...]:
        """The files a serving machine needs to run the plan without this project."""
        ...


class RuntimeProbe(Protocol):
    """The pieces of a runtime whose speed on this machine a hardware profile records.

    Profiling times the calls; each must do the work the runtime does when it decodes, on data it holds already.
    """

    @property
    def name(self) -> str:
        """Runtime and version, for the profile's sources."""
        ...

    def expand_weights(self, bits: int) -> tuple[int, Callable[[], object]] | None:
        """(elements, a call that expands a matrix of so many once); None for a width the runtime does not store."""
        ...

    def expand_kv(self, bits: int) -> tuple[int, Callable[[], object]] | None:
        """(elements, a call that expands so many cached numbers once); None for a width it does not store."""
        ...

    def layer_overhead(self) -> Callable[[], object]:
        """A call that runs one decoder layer on one token, attention left out, too small for its size to matter."""
        ...

    def kernel_overhead(self) -> Callable[[], object]:
        """A call that attends over one class of heads with a cache too small for its size to matter."""
        ...

    def step_overhead(self) -> Callable[[], object]:
        """A call that does what a decode step does outside the layers: embed, pick a token, keep the books."""
        ...
