"""GGUF's bytes: the metadata and the table of tensors of a file, read and written.

    magic, version, counts | key, type, value ... | name, shape, type, offset ... | padding | tensors

Fields that travel from one file to another are kept as the bytes they are: a vocabulary is never taken apart. (The gguf
package's reader and writer take seconds to do so.)
"""

import mmap
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType
from numpy.typing import NDArray

from planner.errors import InputError

ALIGNMENT_BYTES = 32
MAGIC, VERSION = b"GGUF", 3

_KINDS = GGUFValueType
SCALARS = {
    _KINDS.UINT8: "<B", _KINDS.INT8: "<b", _KINDS.UINT16: "<H", _KINDS.INT16: "<h", _KINDS.UINT32: "<I",
    _KINDS.INT32: "<i", _KINDS.FLOAT32: "<f", _KINDS.BOOL: "<?", _KINDS.UINT64: "<Q", _KINDS.INT64: "<q",
    _KINDS.FLOAT64: "<d",
}  # fmt: skip

Value = str | int | float | bool | Sequence[str] | Sequence[int] | Sequence[bool]


@dataclass(frozen=True, slots=True)
class Field:
    """One entry of the metadata: its key, and its type and value as they lie in a file."""

    key: str
    content: bytes

    @staticmethod
    def of(key: str, kind: GGUFValueType, value: Value) -> "Field":
        """An entry of a value; of a list the type is that of its elements.

        >>> Field.of("n", GGUFValueType.UINT32, 7).content.hex()
        '0400000007000000'
        """
        if isinstance(value, str) or not isinstance(value, Sequence):
            return Field(key, struct.pack("<I", kind) + _packed(kind, value))
        packed = b"".join(_packed(kind, each) for each in value)
        return Field(key, struct.pack("<IIQ", GGUFValueType.ARRAY, kind, len(value)) + packed)

    @property
    def text(self) -> str:
        """The value of an entry that is a string."""
        return self.content[12:].decode()


def _packed(kind: GGUFValueType, value: str | int | float | bool) -> bytes:
    if kind == GGUFValueType.STRING:
        text = str(value).encode()
        return struct.pack("<Q", len(text)) + text
    return struct.pack(SCALARS[kind], value)


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the table: a tensor's name, [rows, cols] or [size], type and size."""

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    size_bytes: int

    @property
    def padding_bytes(self) -> int:
        return -self.size_bytes % ALIGNMENT_BYTES


def head(fields: Sequence[Field], table: Sequence[Entry]) -> bytes:
    """A file up to its first tensor."""
    parts = [MAGIC, struct.pack("<IQQ", VERSION, len(table), len(fields))]
    parts += [_packed(GGUFValueType.STRING, field.key) + field.content for field in fields]
    at = 0
    for entry in table:
        dims = entry.shape[::-1]  # ggml counts the innermost first
        parts.append(_packed(GGUFValueType.STRING, entry.name))
        parts.append(struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, entry.kind, at))
        at += entry.size_bytes + entry.padding_bytes
    content = b"".join(parts)
    return content + bytes(-len(content) % ALIGNMENT_BYTES)


@dataclass(frozen=True, slots=True)
class File:
    """A GGUF file that was read: its metadata, and where each tensor lies."""

    path: Path
    fields: tuple[Field, ...]
    entries: dict[str, tuple[Entry, int]]

    def field(self, key: str) -> Field | None:
        return next((field for field in self.fields if field.key == key), None)

    def rows(self, name: str) -> NDArray[np.uint8]:
        """A tensor's bytes, [rows, bytes of a row]."""
        entry, at = self.entries[name]
        with self.path.open("rb") as file:
            file.seek(at)
            content = file.read(entry.size_bytes)
        if len(content) != entry.size_bytes:
            raise InputError(f"{self.path}: tensor {name} is cut short; fetch the file again")
        rows = entry.shape[0] if len(entry.shape) > 1 else 1
        return np.frombuffer(content, np.uint8).reshape(rows, -1)


def read(path: Path) -> File:
    """A little-endian GGUF file of version 2 or 3; InputError where it is none, or cut short."""
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise InputError(f"{path}: is no GGUF file")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return _read(path, data)
            except (struct.error, ValueError, KeyError, IndexError) as error:
                raise InputError(f"{path}: its metadata cannot be read ({error}); fetch the file again") from error


def _read(path: Path, data: mmap.mmap) -> File:
    version, tensors, count = struct.unpack_from("<IQQ", data, len(MAGIC))
    if version not in (2, VERSION):
        raise ValueError(f"version {version}")
    at, fields, alignment = len(MAGIC) + 20, [], ALIGNMENT_BYTES
    for _ in range(count):
        key, start = _text(data, at)
        (kind,) = struct.unpack_from("<I", data, start)
        at = _end(data, start + 4, GGUFValueType(kind))
        fields.append(Field(key, bytes(data[start:at])))
        if key == "general.alignment":
            (alignment,) = struct.unpack_from("<I", data, start + 4)
    table = []
    for _ in range(tensors):
        name, at = _text(data, at)
        (dims,) = struct.unpack_from("<I", data, at)
        *shape, kind, offset = struct.unpack_from(f"<{dims}QIQ", data, at + 4)
        at += 4 + 8 * dims + 12
        table.append((Entry(name, tuple(shape[::-1]), *_sized(shape, kind)), offset))
    start = -(-at // alignment) * alignment
    return File(path, tuple(fields), {entry.name: (entry, start + offset) for entry, offset in table})


def _sized(shape: Sequence[int], kind: int) -> tuple[GGMLQuantizationType, int]:
    block, each = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    return GGMLQuantizationType(kind), int(np.prod(shape)) // block * each


def _text(data: mmap.mmap, at: int) -> tuple[str, int]:
    (size,) = struct.unpack_from("<Q", data, at)
    return data[at + 8 : at + 8 + size].decode(), at + 8 + size


def _end(data: mmap.mmap, at: int, kind: GGUFValueType) -> int:
    """Where a value that begins at `at` ends."""
    if kind == GGUFValueType.STRING:
        return at + 8 + int(struct.unpack_from("<Q", data, at)[0])
    if kind != GGUFValueType.ARRAY:
        return at + struct.calcsize(SCALARS[kind])
    each, count = struct.unpack_from("<IQ", data, at)
    at += 12
    if GGUFValueType(each) not in (GGUFValueType.STRING, GGUFValueType.ARRAY):
        return at + int(count) * struct.calcsize(SCALARS[GGUFValueType(each)])
    for _ in range(count):
        at = _end(data, at, GGUFValueType(each))
    return at
