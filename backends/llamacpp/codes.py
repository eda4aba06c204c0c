"""ggml's numbers: blocks of weights, keys and values as the cache holds them, and the inputs of products.

The simple types are rounded by the gguf package, which repeats ggml's reference to the bit; K-quants and the non-linear
4-bit types by ggml itself, out of the same library that runs the file, without an importance matrix.
"""

import ctypes
from typing import Literal

import numpy as np
from gguf import GGMLQuantizationType, quants
from numpy.typing import NDArray

from backends.llamacpp.library import library, missing
from planner.errors import InputError
from planner.formats import GGML, GGML_KV, ggml, ggml_kv
from planner.space import GgmlScheme, KvFormat, WeightFormat

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

BY_GGUF: tuple[GgmlScheme, ...] = ("bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
BY_GGML: tuple[GgmlScheme, ...] = tuple(name for name in GGML if name not in BY_GGUF)

INPUT_TYPES: dict[GgmlScheme, Literal["q8_0", "q8_1", "q8_K", "bf16"]] = {
    "bf16": "bf16", "q8_0": "q8_0", "q5_0": "q8_0", "q4_0": "q8_0", "iq4_nl": "q8_0", "q5_1": "q8_1", "q4_1": "q8_1",
    "q6_K": "q8_K", "q5_K": "q8_K", "q4_K": "q8_K", "iq4_xs": "q8_K", "q3_K": "q8_K", "q2_K": "q8_K",
}  # fmt: skip
"""What the inputs of a product are rounded to (vec_dot_type in ggml/src/ggml-cpu/ggml-cpu.c)."""

ROTATION = 64
"""Heads of a multiple of this are turned by a Hadamard matrix before they are cached in blocks, values in parts of it
(src/llama-kv-cache.cpp)."""


# --- weights ------------------------------------------------------------------------------------


def ggml_type(form: WeightFormat) -> GGMLQuantizationType:
    """The type of a format's blocks; InputError where ggml has none.

    >>> ggml_type(WeightFormat(16)).name, ggml_type(WeightFormat(4, "q4_K", 256)).name
    ('F16', 'Q4_K')
    """
    if form.scheme == "float" and form.bits in (16, 32):
        return GGMLQuantizationType[f"F{form.bits:g}"]
    if form.scheme not in GGML:
        raise InputError(f"no ggml type stores {form.bits:g} bits in scheme {form.scheme!r}; known: {', '.join(GGML)}")
    return GGMLQuantizationType[form.scheme.upper()]


def refusal(form: WeightFormat, cols: int) -> str:
    """Why rows of so many numbers cannot be stored in a format here, or nothing."""
    if form.scheme in GGML and cols % form.group:
        return f"rows of {cols} are no multiple of a block of {form.group}, which {form.scheme} has"
    if form.scheme in BY_GGML and (why := missing()):
        return f"{form.scheme} is rounded by ggml itself: {why}"
    return ""


def packed(matrix: Floats, form: WeightFormat) -> Bytes:
    """A matrix [rows, cols] as bytes [rows, bytes of a row]."""
    kind = ggml_type(form)
    if why := refusal(form, matrix.shape[-1]):
        raise InputError(why)
    if form.scheme not in BY_GGML:
        with np.errstate(over="ignore"):  # what float16 cannot hold becomes infinite, as in ggml
            found: Bytes = quants.quantize(np.ascontiguousarray(matrix, np.float32), kind).view(np.uint8)
        return found
    rows, cols = matrix.shape
    values = np.ascontiguousarray(matrix, np.float32)
    out = np.empty((rows, library().ggml_row_size(int(kind), cols)), np.uint8)
    numbers = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    library().ggml_quantize_chunk(int(kind), numbers, out.ctypes.data, 0, rows, cols, None)
    return out


def unpacked(stored: Bytes, form: WeightFormat) -> Floats:
    """The matrix [rows, cols] that bytes [rows, bytes of a row] stand for."""
    read: Floats = np.asarray(quants.dequantize(stored, ggml_type(form)), np.float32)
    return read


def recoded(matrix: Floats, form: WeightFormat) -> Floats:
    """A matrix as it reads back.

    >>> recoded(np.array([[1.0, 0.1] * 16], np.float32), WeightFormat(4, "q4_0", 32))[0, :2].tolist()
    [1.0, 0.125]
    """
    return matrix if form == WeightFormat(32) else unpacked(packed(matrix, form), form)


# --- the inputs of products ---------------------------------------------------------------------


def input_recoded(x: Floats, form: WeightFormat) -> Floats | None:
    """The inputs [tokens, inputs] of a product as llama.cpp's CPU kernels read them; None beside a float matrix.

    Beside float16 they are rounded to float16, which changes nothing that could be priced. Where a row is no whole
    number of blocks no matrix has the format, and nothing is rounded.

    >>> input_recoded(np.array([[127.0, 1.4] * 16], np.float32), WeightFormat(4, "q4_0", 32))[0, :2].tolist()
    [127.0, 1.0]
    """
    if form.scheme not in INPUT_TYPES or x.shape[-1] % form.group:
        return None
    kind = INPUT_TYPES[form.scheme]
    if kind == "bf16":
        return recoded(x.reshape(-1, x.shape[-1]), form).reshape(x.shape)
    blocks = x.reshape(*x.shape[:-1], -1, form.group)
    extreme = np.take_along_axis(blocks, np.abs(blocks).argmax(-1)[..., None], -1)
    safe = np.where(extreme == 0, np.float32(1), extreme)
    if kind == "q8_K":
        steps = np.float32(-127) / safe
        codes, scale = np.minimum(np.rint(blocks * steps), 127), np.float32(1) / steps
    else:
        step = np.abs(safe) / np.float32(127)
        # Codes come of the step in float32; what they are multiplied with is kept in float16.
        codes, scale = np.rint(blocks * (np.float32(1) / step)), step.astype(np.float16).astype(np.float32)
    read: Floats = np.where(extreme == 0, np.float32(0), codes * scale).astype(np.float32).reshape(x.shape)
    return read


# --- keys and values ----------------------------------------------------------------------------


def kv_recoded(part: Literal["k", "v"], values: Floats, form: KvFormat) -> Floats:
    """Keys, already rotated by position, or values [tokens, head_dim] of one head as they read back from the cache.

    Blocks lie along a head; heads of a multiple of 64 are turned by a Hadamard matrix before and after: keys by the
    largest that fits, values in parts of 64. (Queries are rounded as well, beside keys in blocks; that is not here.)
    """
    if form.scheme == "float":
        return values.astype(np.float16).astype(np.float32) if form.bits == 16 else values
    name = next((each for each in GGML_KV if form == ggml_kv(each)), None)
    if name is None:
        raise InputError(f"no KV format has {form.bits:g} bits in scheme {form.scheme!r}")
    stored = ggml(name)
    if why := refusal(stored, values.shape[-1]):
        raise InputError(f"the {part} of a head: {why}")
    turned = hadamard(values, rotation(part, values.shape[-1]))
    return hadamard(recoded(turned, stored), rotation(part, values.shape[-1]))


def rotation(part: Literal["k", "v"], head_dim: int) -> int:
    """The size of the Hadamard matrix that turns a head; 1 where none does.

    >>> rotation("k", 128), rotation("v", 128), rotation("k", 192), rotation("k", 80)
    (128, 64, 64, 1)
    """
    if head_dim % ROTATION:
        return 1
    size = ROTATION
    while part == "k" and head_dim % (2 * size) == 0:
        size *= 2
    return size


def hadamard(values: Floats, size: int) -> Floats:
    """Vectors [..., dim] turned in parts of `size` by the orthonormal Walsh-Hadamard matrix, its own inverse.

    >>> hadamard(np.ones(4, np.float32), 4).tolist(), hadamard(np.array([1, -1, 1, -1], np.float32), 4).tolist()
    ([2.0, 0.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0])
    """
    x = values.reshape(*values.shape[:-1], -1, size)
    step = 1
    while step < size:
        pairs = x.reshape(*x.shape[:-1], -1, 2, step)
        sums, differences = pairs[..., 0, :] + pairs[..., 1, :], pairs[..., 0, :] - pairs[..., 1, :]
        x = np.stack((sums, differences), -2).reshape(x.shape)
        step *= 2
    turned: Floats = (x / np.float32(size**0.5)).astype(np.float32).reshape(values.shape)
    return turned
