"""The matrices of a GGUF file: as floats, and as the codes, scales and minima of the grid they lie on.

    value = scale * code + minimum          per row, in blocks of 32 inputs

Rows are in Hugging Face order in both, and the two agree to the last bit.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from planner.errors import InputError
from planner.space import WeightFormat
from profiles.sources.checkpoint import Checkpoint, StoredTensor

BLOCK = 32


@dataclass(frozen=True, slots=True)
class Grid:
    """A ggml type whose blocks are affine: bits of a code, and the code of 0 where no minimum is stored."""

    bits: int
    symmetric_offset: int | None

    @property
    def format(self) -> WeightFormat:
        return WeightFormat(self.bits, "native", BLOCK)

    def size_bytes(self, rows: int, cols: int) -> int:
        """What packed codes and float16 scales (and minima where there are any) take.

        >>> GRIDS["Q4_1"].size_bytes(1, 64), GRIDS["Q8_0"].size_bytes(1, 64)
        (40, 68)
        """
        floats = 2 if self.symmetric_offset is None else 1
        return rows * cols * self.bits // 8 + rows * (cols // BLOCK) * 2 * floats


GRIDS = {"Q4_0": Grid(4, 8), "Q4_1": Grid(4, None), "Q5_0": Grid(5, 16), "Q5_1": Grid(5, None), "Q8_0": Grid(8, 128)}


@dataclass(frozen=True, slots=True)
class NativeBlocks:
    """One matrix on its grid.

    codes    [rows, cols]        uint8
    scale    [rows, cols / 32]   float16
    minimum  [rows, cols / 32]   float16 as stored; float32 and -symmetric_offset * scale where none is stored
    """

    codes: NDArray[np.uint8]
    scale: NDArray[np.float16]
    minimum: NDArray[np.float16] | NDArray[np.float32]
    bits: int
    symmetric_offset: int | None

    def dequantised(self) -> NDArray[np.float32]:
        """The matrix in float32, equal to the one `load_model` gives."""
        rows, cols = self.codes.shape
        codes = self.codes.reshape(rows, cols // BLOCK, BLOCK).astype(np.float32)
        with np.errstate(all="ignore"):  # a damaged scale gives values that loading refuses
            values = self.scale.astype(np.float32)[..., None] * codes + self.minimum.astype(np.float32)[..., None]
        return values.reshape(rows, cols)


def native_blocks(checkpoint: Checkpoint, tensor_name: str) -> NativeBlocks | None:
    """The grid a tensor of the checkpoint is stored on, or None where it has none; the name is the Hugging Face one."""
    stored = checkpoint.stored.get(tensor_name)
    return None if stored is None or not on_grid(stored) else _read_blocks(checkpoint.path, stored)


def on_grid(stored: StoredTensor) -> bool:
    """Whether a tensor of a GGUF file is a matrix on an affine grid."""
    return stored.ggml_type in GRIDS and len(stored.shape) == 2


def dequantised(path: Path, stored: StoredTensor) -> NDArray[np.float32]:
    """Any tensor of a GGUF file in float32, its rows in Hugging Face order."""
    if on_grid(stored):
        return _read_blocks(path, stored).dequantised()
    from gguf import GGMLQuantizationType, quants

    try:
        with np.errstate(all="ignore"):
            values = quants.dequantize(_bytes(path, stored), GGMLQuantizationType[stored.ggml_type])
    except NotImplementedError:
        raise InputError(
            f"{path}: tensor {stored.name} is {stored.ggml_type}, which the gguf package cannot read;"
            " give a Q4_0 to Q8_0, K-quant, F16 or F32 file"
        ) from None
    return np.require(values.reshape(stored.shape)[_row_order(stored)], np.float32, ["C", "W"])


def _read_blocks(path: Path, stored: StoredTensor) -> NativeBlocks:
    grid = GRIDS[stored.ggml_type]
    rows, cols = stored.shape
    raw = _bytes(path, stored)[_row_order(stored)].reshape(rows, cols // BLOCK, -1)
    scale = _float16(raw[..., :2])
    if grid.symmetric_offset is None:
        return NativeBlocks(_codes(raw[..., 4:], grid.bits), scale, _float16(raw[..., 2:4]), grid.bits, None)
    # In float32: -128 times a large scale overflows float16.
    with np.errstate(all="ignore"):
        derived = scale.astype(np.float32) * np.float32(-grid.symmetric_offset)
    return NativeBlocks(_codes(raw[..., 2:], grid.bits), scale, derived, grid.bits, grid.symmetric_offset)


def _bytes(path: Path, stored: StoredTensor) -> NDArray[np.uint8]:
    """The tensor's bytes, one line for each row."""
    with path.open("rb") as file:
        file.seek(stored.offset_bytes)
        raw = file.read(stored.size_bytes)
    if len(raw) != stored.size_bytes:
        raise InputError(f"{path}: tensor {stored.name} was cut short while the file was in use; fetch it again")
    rows = stored.shape[0] if len(stored.shape) > 1 else 1
    return np.frombuffer(raw, np.uint8).reshape(rows, -1)


def _row_order(stored: StoredTensor) -> NDArray[np.intp] | slice:
    """Which row of the file each Hugging Face row is.

    llama.cpp rotates neighbouring rows where transformers rotates the halves of a head.
    """
    if not stored.rotary_heads:
        return slice(None)
    rows = stored.shape[0]
    return np.arange(rows).reshape(stored.rotary_heads, -1, 2).swapaxes(1, 2).ravel()


def _float16(raw: NDArray[np.uint8]) -> NDArray[np.float16]:
    return np.ascontiguousarray(raw).view("<f2").astype(np.float16)[..., 0]


def _codes(packed: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Codes [rows, cols] of blocks whose scales are taken off: low nibbles first, fifth bits before them."""
    rows = packed.shape[0]
    if bits == 8:
        return (packed ^ np.uint8(128)).reshape(rows, -1)  # signed to offset: -128 is code 0
    nibbles = packed[..., -BLOCK // 2 :]
    codes = np.concatenate((nibbles & np.uint8(15), nibbles >> np.uint8(4)), axis=-1)
    if bits == 5:
        codes |= np.unpackbits(packed[..., :4], axis=-1, bitorder="little") << np.uint8(4)
    return codes.reshape(rows, -1)
