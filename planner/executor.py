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

from planner.formats import exact
from planner.plan import Plan
from planner.space import AtMostDistinct, KvChoice, KvFormat, KvSite, Site, WeightFormat
from planner.spec import ModelSpec, TensorSpec

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, of): the driver shows it with the time left."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What one runtime and version can carry: the formats it stores, how its heads may differ, and whether what lies
    in a slower tier than the fastest is fetched when it is needed (`offloads`).

    `kv_alike`: a head's keys and values have one format. `native`: how a matrix that its source keeps on a grid is
    stored without rounding it again.
    """

    runtime: str
    version: str
    kv_formats: tuple[KvFormat, ...]
    weight_formats: tuple[WeightFormat, ...]
    window_page_tokens: int
    classes_per_layer: int | None
    executes_here: bool
    offloads: bool = False
    kv_alike: bool = False
    native: Literal["native", "exact"] = "native"

    def as_source(self, tensor: TensorSpec) -> WeightFormat | None:
        """The format that keeps a matrix's numbers as its source has them on a grid; None where it has no grid."""
        return tensor.native if self.native == "native" else exact(tensor)

    def carries(self, choice: KvChoice) -> bool:
        """Whether a head's cache can be stored so."""
        alike = choice.k == choice.v or not self.kv_alike
        return alike and choice.k in self.kv_formats and choice.v in self.kv_formats

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
    """Static factors of the codes of one head, [head_dim] each, measured on calibration text.

    The mean and the balancing factors are of the tokens that are not protected; the peaks, the largest magnitudes, are
    of all tokens.
    """

    k_mean: NDArray[np.float32]
    k_scale: NDArray[np.float32]
    v_scale: NDArray[np.float32]
    k_peak: NDArray[np.float32]
    v_peak: NDArray[np.float32]


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

    def recode_input(self, form: WeightFormat, values: NDArray[np.float32]) -> NDArray[np.float32] | None:
        """The inputs [tokens, inputs] of a product as it reads them where the matrix is in a format; None where it
        takes them as they are."""
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
    def runtime(self) -> str:
        """Its name, as 'planner backends' has it."""
        ...

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

    def products(self) -> Sequence["Probed"]:
        """Products of tokens with a matrix in every format, measured whole; none where a runtime expands matrices
        before it multiplies, whose speed `expand_weights` and the machine's own products tell."""
        ...

    def attention(self) -> Sequence["ProbedAttention"]:
        """Attention over caches of every width, head size and length, measured whole: one token, and a prompt's chunk.

        Of one token also over next to nothing, `FEW_SLOTS`: that tells what the call takes, which the decoders of
        `decoder` take as well and attention is not priced at twice.
        """
        ...

    def decoder(self, layers: int, classes: int) -> "ProbedDecoder":
        """A decoder of so many layers, the heads of each in so many classes (1 or 2), with next to nothing cached."""
        ...


@dataclass(frozen=True, slots=True)
class Probed:
    """One measured piece: products of a `kind` for so many tokens.

    `work` is the numbers of the matrices that one call multiplies with. `open` makes the data and gives the call.
    """

    kind: str
    tokens: int
    work: int
    open: Callable[[], Callable[[], object]]


FEW_SLOTS = 64
"""Slots of a cache over which attention takes hardly longer than its call."""


@dataclass(frozen=True, slots=True)
class ProbedAttention:
    """One measured piece: `layers` layers' attention of so many tokens over caches of so many slots.

    `work` is what one layer's does: multiplications of a query's number with a cached one.
    """

    bits: int
    head_dim: int
    slots: int
    tokens: int
    layers: int
    work: int
    open: Callable[[], Callable[[], object]]


@dataclass(frozen=True, slots=True)
class ProbedDecoder:
    """A call that decodes one token, and what of it is priced already in each layer: products with so many `numbers` in
    matrices of a `kind`, and attention over a float cache that does so many multiplications (`attended`); none where
    they are too few to count."""

    call: Callable[[], object]
    kind: str = ""
    numbers: int = 0
    attended: int = 0
