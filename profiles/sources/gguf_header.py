"""A GGUF file's metadata and tensor table, every declared size checked against the file before it is believed.

The gguf package's own reader indexes past the end of a damaged file and spends seconds on a vocabulary; this one
reads a header in well under a second, keeps no array, and answers damage with one line.
"""

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

from planner.errors import InputError
from profiles.sources.checkpoint import StoredTensor

MAGIC = b"GGUF"
VERSIONS = (2, 3)
STRING, ARRAY = 8, 9
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
MOST_DIMENSIONS = 4
DEFAULT_ALIGNMENT_BYTES = 32

Field = str | int | float | bool


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What a GGUF file says about itself. Arrays are kept as their length in `array_lengths`."""

    path: Path
    fields: dict[str, Field]
    array_lengths: dict[str, int]
    tensors: dict[str, StoredTensor]

    def text(self, key: str, default: str | None = None) -> str:
        value = self.fields.get(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, "a string")
        return value

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.fields.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong(key, "an integer")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.fields.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(key, "a number")
        return float(value)

    def _wrong(self, key: str, wanted: str) -> InputError:
        if key in self.array_lengths:
            found = f"an array of {self.array_lengths[key]}"
        else:
            found = repr(self.fields[key]) if key in self.fields else "nothing"
        return InputError(f"{self.path}: metadata {key}: found {found}; needs {wanted}")


class _Cursor:
    """A position in the header that never leaves the file."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.size, self.at = path, data, len(data), 0

    def need(self, size: int, what: str) -> None:
        if size > self.size - self.at:
            raise InputError(
                f"{self.path}: {what} at byte {self.at} needs {size} bytes, and the file has {self.size - self.at}"
                " left; it is truncated or damaged: fetch it again"
            )

    def unpack(self, layout: str, what: str) -> tuple[int, ...]:
        size = struct.calcsize(layout)
        self.need(size, what)
        values: tuple[int, ...] = struct.unpack_from(layout, self.data, self.at)
        self.at += size
        return values

    def text(self, what: str) -> str:
        (size,) = self.unpack("<Q", what)
        self.need(size, what)
        self.at += size
        try:
            return self.data[self.at - size : self.at].decode("utf-8")
        except UnicodeDecodeError:
            raise InputError(
                f"{self.path}: {what} at byte {self.at - size} is not UTF-8 text; fetch it again"
            ) from None

    def name(self, what: str) -> str:
        """A string that messages may show: it cannot break a line or steer a terminal."""
        name = self.text(what)
        if not name.isprintable():
            raise InputError(f"{self.path}: {what} is {name!r}, which no name is; the file is damaged: fetch it again")
        return name

    def skip_strings(self, count: int, what: str) -> None:
        """Step over `count` strings; a vocabulary has a hundred thousand, so the loop is spelt out."""
        at, data, last, read = self.at, self.data, self.size - 8, struct.Struct("<Q").unpack_from
        for _ in range(count):
            if at > last:
                break
            at += 8 + read(data, at)[0]
        else:
            if at <= self.size:
                self.at = at
                return
        raise InputError(f"{self.path}: {what} runs past the end of the file; the file is truncated: fetch it again")


def read_header(path: Path) -> GgufHeader:
    """The header of a GGUF file; InputError where anything in it cannot be."""
    with path.open("rb") as file:
        start = file.read(len(MAGIC))
        if start != MAGIC:
            raise InputError(f"{path}: starts with {start!r}, not {MAGIC!r}; give a GGUF file")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _parse(_Cursor(path, data))


def _parse(cursor: _Cursor) -> GgufHeader:
    cursor.at = len(MAGIC)
    (version,) = cursor.unpack("<I", "the version")
    if version not in VERSIONS:
        raise InputError(f"{cursor.path}: GGUF version {version}; this reads little-endian versions 2 and 3")
    tensor_count, field_count = cursor.unpack("<QQ", "the counts")
    # The smallest field is 13 bytes and the smallest tensor entry 32: counts that cannot fit end here.
    cursor.need(13 * field_count + 32 * tensor_count, f"a header of {field_count} fields and {tensor_count} tensors")
    fields: dict[str, Field] = {}
    array_lengths: dict[str, int] = {}
    for i in range(field_count):
        key = cursor.name(f"the name of metadata field {i}")
        if key in fields or key in array_lengths:
            raise InputError(f"{cursor.path}: metadata {key} is there twice; the file is damaged: fetch it again")
        (kind,) = cursor.unpack("<I", f"the type of metadata {key}")
        if kind == ARRAY:
            array_lengths[key] = _skip_array(cursor, key)
        else:
            fields[key] = _scalar(cursor, kind, key)
    header = GgufHeader(cursor.path, fields, array_lengths, {})
    entries = [_entry(cursor, i) for i in range(tensor_count)]
    alignment = header.integer("general.alignment", DEFAULT_ALIGNMENT_BYTES)
    if alignment < 1 or alignment & (alignment - 1):
        raise InputError(f"{cursor.path}: metadata general.alignment: found {alignment}; needs a power of two")
    start = -(-cursor.at // alignment) * alignment
    for tensor in entries:
        if tensor.name in header.tensors:
            raise InputError(f"{cursor.path}: tensor {tensor.name} is there twice; the file is damaged: fetch it again")
        header.tensors[tensor.name] = _placed(tensor, start, alignment, cursor)
    return header


def _scalar(cursor: _Cursor, kind: int, key: str) -> Field:
    if kind == STRING:
        return cursor.text(f"metadata {key}")
    if kind not in SCALARS:
        raise InputError(f"{cursor.path}: metadata {key} has type {kind}, which GGUF does not define; fetch it again")
    return cursor.unpack(SCALARS[kind], f"metadata {key}")[0]


def _skip_array(cursor: _Cursor, key: str) -> int:
    kind, count = cursor.unpack("<IQ", f"metadata {key}")
    if kind == STRING:
        cursor.need(8 * count, f"metadata {key}, {count} strings,")
        cursor.skip_strings(count, f"metadata {key}")
    elif kind in SCALARS:
        size = count * struct.calcsize(SCALARS[kind])
        cursor.need(size, f"metadata {key}, {count} values,")
        cursor.at += size
    else:
        raise InputError(f"{cursor.path}: metadata {key} is an array of type {kind}; strings and numbers can be read")
    return count


def _entry(cursor: _Cursor, index: int) -> StoredTensor:
    """One line of the tensor table, its offset still relative to the data section."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    name = cursor.name(f"the name of tensor {index}")
    (dimensions,) = cursor.unpack("<I", f"tensor {name}")
    if not 1 <= dimensions <= MOST_DIMENSIONS:
        raise InputError(f"{cursor.path}: tensor {name} has {dimensions} dimensions; 1 to {MOST_DIMENSIONS} can be")
    shape = tuple(reversed(cursor.unpack(f"<{dimensions}Q", f"tensor {name}")))
    kind, offset = cursor.unpack("<IQ", f"tensor {name}")
    try:
        ggml_type = GGMLQuantizationType(kind)
    except ValueError:
        raise InputError(
            f"{cursor.path}: tensor {name} has ggml type {kind}, which this gguf package does not know"
        ) from None
    block, block_bytes = GGML_QUANT_SIZES[ggml_type]
    elements = 1
    for extent in shape:
        elements *= extent
    if not elements or shape[-1] % block:
        raise InputError(f"{cursor.path}: tensor {name} is {list(shape)}; {ggml_type.name} needs rows of {block}s")
    return StoredTensor(name, ggml_type.name, shape, offset, elements // block * block_bytes)


def _placed(tensor: StoredTensor, start: int, alignment: int, cursor: _Cursor) -> StoredTensor:
    """The tensor with its offset in the file, which holds all of it."""
    offset = start + tensor.offset_bytes
    if tensor.offset_bytes % alignment:
        raise InputError(
            f"{cursor.path}: tensor {tensor.name} is at offset {tensor.offset_bytes}, no multiple of {alignment}"
        )
    if offset + tensor.size_bytes > cursor.size:
        raise InputError(
            f"{cursor.path}: tensor {tensor.name} ends at byte {offset + tensor.size_bytes}, and the file has"
            f" {cursor.size}; the file is truncated or damaged: fetch it again"
        )
    return StoredTensor(tensor.name, tensor.ggml_type, tensor.shape, offset, tensor.size_bytes)
