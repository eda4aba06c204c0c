"""What the compiler asks of a runtime that can run here: open a model, apply a plan, score, generate, count.

Backends implement these protocols and the driver hands them to profiling and verification, so neither imports a
backend. Token ids, log-probabilities and bytes cross the line; tensors of a framework do not.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from planner.errors import InputError
from planner.formats import as_ggml, exact, unrounded
from planner.plan import Plan
from planner.space import (
    AtMostDistinct,
    Attribute,
    Chosen,
    KvChoice,
    KvFormat,
    KvSite,
    Same,
    Site,
    WeightFormat,
    WeightSite,
    Window,
    violated,
)
from planner.spec import ModelSpec, TensorSpec

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, of): the driver shows it with the time left."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What one version of a runtime can carry: a filter on candidates, and how far sites may differ.

    `offloads`: what lies in a slower tier than the fastest is fetched when it is needed. `kv_alike`: a head's keys and
    values have one format. `native`: how a matrix that its source keeps on a grid is stored without rounding it again,
    if it can be: as it is, its codes at a width of the runtime, or as the ggml type that it is. `unrounded`: widths of
    such codes that are also multiplied with inputs as they are, where products round theirs otherwise. `spans`: whose
    windows are their own: any head's, any layer's, or one length for the model, each layer windowed or full; "full" has
    none. `elastic`: windows may grow with the context. `sinks`: protected tokens stay beside a window. `kv_one`: where
    formats of keys, and of values, are one: nowhere, or over the model, "model or float" where a layer may keep floats
    instead. `weight_sets`: matrices of a layer that share a format, by the names of their modules. `float_modules`:
    those whose matrices stay floats. `side_multiple`: what rows and inputs of a matrix in groups are a multiple of.
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
    native: Literal["native", "exact", "ggml", "none"] = "native"
    unrounded: tuple[int, ...] = ()
    spans: Literal["head", "layer", "model", "full"] = "head"
    elastic: bool = True
    sinks: bool = True
    kv_one: Literal["head", "model", "model or float"] = "head"
    weight_sets: tuple[tuple[str, ...], ...] = ()
    float_modules: tuple[str, ...] = ()
    side_multiple: int = 1

    def as_source(self, tensor: TensorSpec) -> WeightFormat | None:
        """The format that keeps a matrix's numbers as its source has them on a grid; None where it has no grid, or this
        runtime does not store it."""
        match self.native:
            case "native":
                return tensor.native
            case "exact":
                return exact(tensor)
            case "ggml":
                return as_ggml(tensor)
            case "none":
                return None

    def as_unrounded(self, tensor: TensorSpec) -> WeightFormat | None:
        """The format that also multiplies those numbers with inputs as they are; None where there is none."""
        form = unrounded(tensor)
        return form if form is not None and form.bits in self.unrounded else None

    def carries(self, choice: KvChoice) -> bool:
        """Whether a head's cache can be kept and stored so."""
        if self.kv_alike and choice.k != choice.v:
            return False
        span = choice.span
        if isinstance(span, Window) and (self.spans == "full" or (span.beta and not self.elastic)):
            return False
        if choice.sinks and not self.sinks:
            return False
        return choice.k in self.kv_formats and choice.v in self.kv_formats

    def stores(self, form: WeightFormat) -> bool:
        """Whether a matrix can be stored so; one that is kept as its source has it only where it lies on a grid."""
        kept = form.scheme == self.native or (form.scheme == "unrounded" and form.bits in self.unrounded)
        return kept or form in self.weight_formats

    def fits(self, tensor: TensorSpec, form: WeightFormat) -> bool:
        """Whether this very matrix can be stored in a format that this runtime has and that rounds matrices."""
        if form.scheme == "float":
            return True
        if _module(tensor.name) in self.float_modules:
            return False
        sides = tensor.rows % self.side_multiple == tensor.cols % self.side_multiple == 0
        return not form.group or (tensor.cols % form.group == 0 and sides)

    def admits(self, chosen: Chosen) -> bool:
        """Whether a choice for every site is one that this runtime carries."""
        one_by_one = all(
            self.carries(choice) if isinstance(choice, KvChoice) else self.stores(choice.format)
            for choice in chosen.values()
        )
        return one_by_one and violated(chosen, self.constraints(chosen)) is None

    def constraints(self, sites: Iterable[Site]) -> tuple[AtMostDistinct | Same, ...]:
        """The relations between sites that this runtime imposes."""
        layers: dict[int, list[Site]] = {}
        matrices: dict[tuple[int, int], list[Site]] = {}
        for site in sites:
            if isinstance(site, KvSite):
                layers.setdefault(site.layer, []).append(site)
            elif (number := self._weight_set(site)) is not None:
                matrices.setdefault((site.layer, number), []).append(site)
        heads = tuple(site for group in layers.values() for site in group)
        return (*self._kv_relations(layers.values(), heads), *_alike(matrices.values(), "format"))

    def _weight_set(self, site: WeightSite) -> int | None:
        """Which of the sets of matrices a matrix belongs to."""
        return next((i for i, names in enumerate(self.weight_sets) if _module(site.tensor) in names), None)

    def _kv_relations(
        self, layers: Iterable[Sequence[Site]], heads: tuple[Site, ...]
    ) -> Iterator[AtMostDistinct | Same]:
        most = self.classes_per_layer
        if most is not None:
            yield from (AtMostDistinct(tuple(group), "kernel", most) for group in layers if len(group) > most)
        if self.spans in ("layer", "model") and most != 1:  # one class has one span
            yield from _alike(layers, "span")
        if self.spans == "model" and len(heads) > 1:
            yield AtMostDistinct(heads, "window", 1)
        if self.kv_one == "model":
            yield from _alike((heads,), "k")
            if not self.kv_alike:
                yield from _alike((heads,), "v")
        if self.kv_one == "model or float":
            yield from _alike(layers, "k")
            if not self.kv_alike:
                yield from _alike(layers, "v")
            if len(heads) > 1:
                yield AtMostDistinct(heads, "coded", 1)


def _alike(groups: Iterable[Sequence[Site]], name: Attribute) -> Iterator[Same]:
    """Each group of more than one site with one value of an attribute."""
    return (Same(tuple(group), name) for group in groups if len(group) > 1)


def _module(tensor: str) -> str:
    """The last name of the module that a matrix belongs to.

    >>> _module("model.layers.0.self_attn.q_proj.weight")
    'q_proj'
    """
    return tensor.removesuffix(".weight").rpartition(".")[2]


def of_version(tables: Sequence[Capabilities], version: str | None) -> Capabilities:
    """The table of one version of a runtime, the newest, which is the last, where none is named.

    InputError for a version that nobody looked at: what it carries is not known.
    """
    if version is None:
        return tables[-1]
    known = {table.version: table for table in tables}
    if version not in known:
        raise InputError(
            f"{tables[-1].runtime} {version}: what this version carries is not known; give one of {', '.join(known)}"
        )
    return known[version]


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

    def gguf(self) -> Path | None:
        """The GGUF file that the model is read from, where it is read from one."""
        ...

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
