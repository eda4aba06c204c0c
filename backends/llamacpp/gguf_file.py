"""A GGUF file of a plan: metadata, the table of tensors, and each tensor's blocks in the format that the plan gives it.

Its bytes are known before a number is rounded: the head by writing it, each tensor by its format.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO

import numpy as np
from gguf import GGUFValueType
from numpy.typing import NDArray

from backends.llamacpp import architecture as arch
from backends.llamacpp import codes, gguf_bytes, vocabulary
from backends.llamacpp.architecture import Architecture
from backends.llamacpp.gguf_bytes import Entry, Field, File
from planner.errors import InputError, VerificationFailed
from planner.executor import Weights
from planner.formats import weight_bytes
from planner.plan import Plan
from planner.space import WeightFormat
from planner.spec import ModelSpec

VECTORS = WeightFormat(32)
"""What norms and biases are stored as: ggml adds and multiplies with float32 alone."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of the file; `make` rounds its numbers when they are written."""

    name: str
    shape: tuple[int, ...]
    form: WeightFormat
    size_bytes: int
    make: Callable[[], NDArray[np.generic]]

    @property
    def entry(self) -> Entry:
        return Entry(self.name, self.shape, codes.ggml_type(self.form), self.size_bytes)


@dataclass(frozen=True, slots=True)
class FileBytes:
    """What a file's bytes are spent on. `weights` are the plan's matrices; `vectors` norms, biases, rotary factors and
    sink logits."""

    head: int
    weights: int
    vectors: int
    padding: int

    @property
    def total(self) -> int:
        return self.head + self.weights + self.vectors + self.padding


@dataclass(frozen=True)
class Source:
    """A model's numbers: rounded anew, or the blocks of the GGUF file it is read from where they are of the type."""

    weights: Weights
    layout: Architecture
    file: File | None

    def stored(self, name: str, form: WeightFormat) -> NDArray[np.uint8]:
        """A matrix in the file's order of rows: [rows, bytes of a row]."""
        heads = self.layout.rotary.get(arch.gguf_name(name).rpartition(".")[0].rpartition(".")[2], 0)
        kept = self.kept(name, form)
        rows = codes.packed(self.weights.dense(name), form) if kept is None else kept
        return np.ascontiguousarray(arch.in_file_order(rows, heads) if heads else rows).view(np.uint8)

    def kept(self, name: str, form: WeightFormat) -> NDArray[np.uint8] | None:
        """The source file's own blocks of a matrix, rows in transformers' order; None where it has another type."""
        ours = arch.gguf_name(name)
        if self.file is None or self.file.entries[ours][0].kind != codes.ggml_type(form):
            return None
        rows, family = self.file.rows(ours), self.file.field("general.architecture")
        in_llamas_order = family is not None and family.text == "llama"
        heads = self._rotary_of_llama(ours.rpartition(".")[0].rpartition(".")[2]) if in_llamas_order else 0
        return np.asarray(arch.in_model_order(rows, heads), np.uint8) if heads else rows

    def _rotary_of_llama(self, leaf: str) -> int:
        windows = [None] * len(self.layout.windows)
        return arch.architecture(self.weights.config, windows).rotary.get(leaf, 0)


def source(weights: Weights, layout: Architecture) -> Source:
    """The numbers of a model, for files of a layout."""
    path = weights.gguf()
    return Source(weights, layout, None if path is None else gguf_bytes.read(path))


def tensors(plan: Plan, spec: ModelSpec, numbers: Source) -> list[Tensor]:
    """Every tensor of a plan's file, in the order of the state dict; InputError where a matrix cannot take a format."""
    matrices = {tensor.name: tensor for tensor in spec.tensors}
    chosen = {site.tensor: choice.format for site, choice in plan.weights}
    found = []
    for name, values in arch.extra_vectors(numbers.weights.config, numbers.layout).items():
        found.append(Tensor(name, values.shape, VECTORS, values.nbytes, values.copy))
    for name in numbers.weights.names():
        tensor = matrices.get(name)
        if tensor is None:
            found.append(_vector(name, numbers))
            continue
        form = chosen[name]
        codes.ggml_type(form)
        if why := codes.refusal(form, tensor.cols):
            raise InputError(f"{name}: {why}")
        size, shape = weight_bytes(tensor, form), (tensor.rows, tensor.cols)
        found.append(Tensor(arch.gguf_name(name), shape, form, size, partial(numbers.stored, name, form)))
    return found


def _vector(name: str, numbers: Source) -> Tensor:
    values = numbers.weights.dense(name)
    ours, leaf = arch.gguf_name(name), arch.gguf_name(name).rpartition(".")[0].rpartition(".")[2]
    heads = numbers.layout.rotary.get(leaf, 0)
    if heads:  # a bias of queries or keys
        values = np.ascontiguousarray(arch.in_file_order(values, heads))
    return Tensor(ours, values.shape, VECTORS, values.nbytes, values.copy)


def metadata(spec: ModelSpec, numbers: Source) -> list[Field]:
    """All fields of the file."""
    if numbers.file is not None:
        carried = vocabulary.of_gguf(numbers.file)
    else:
        licence = Field.of("general.license", GGUFValueType.STRING, spec.licence)
        carried = [licence, *vocabulary.of_companions(numbers.weights.companions(), spec.vocab_size)]
    version = Field.of("general.quantization_version", GGUFValueType.UINT32, 2)
    return [*arch.fields(numbers.weights.config, numbers.layout), *carried, version]


def head(fields: Sequence[Field], table: Sequence[Tensor]) -> bytes:
    """The file up to its first tensor."""
    return gguf_bytes.head(fields, [tensor.entry for tensor in table])


def counted(written: bytes, table: Sequence[Tensor], spec: ModelSpec) -> FileBytes:
    """What each byte of the file is for, before its tensors are made."""
    matrices = {arch.gguf_name(tensor.name) for tensor in spec.tensors}
    weights = sum(tensor.size_bytes for tensor in table if tensor.name in matrices)
    vectors = sum(tensor.size_bytes for tensor in table if tensor.name not in matrices)
    return FileBytes(len(written), weights, vectors, sum(tensor.entry.padding_bytes for tensor in table))


def write(file: BinaryIO, written: bytes, table: Sequence[Tensor]) -> None:
    """Write the head and every tensor, one at a time."""
    file.write(written)
    for part in blocks(table):
        file.write(part)


def blocks(table: Sequence[Tensor]) -> Iterator[bytes]:
    """Each tensor's bytes with its padding; VerificationFailed where they are more or fewer than its format takes."""
    for tensor in table:
        content = tensor.make().tobytes()
        if len(content) != tensor.size_bytes:
            raise VerificationFailed(f"{tensor.name}: {len(content)} bytes where its format takes {tensor.size_bytes}")
        yield content + bytes(tensor.entry.padding_bytes)


def types(table: Sequence[Tensor]) -> Mapping[str, str]:
    """The ggml type of every tensor by its name in the file."""
    return {tensor.name: codes.ggml_type(tensor.form).name for tensor in table}
