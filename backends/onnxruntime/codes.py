"""How this runtime stores numbers: static codes of keys and values, and blocks of weights.

Keys and values are rounded channel by channel with static factors (`GroupQueryAttention`, PER_CHANNEL): code =
round(x / scale), a signed integer of 8 or 4 bits, and what lies outside the range saturates. Keys are coded as they are
cached, after the rotary embedding. Protected tokens are coded like all others.

Weights are stored in blocks along a row (`MatMulNBits`): value = scale * (code - 2**(bits - 1)), scale in float32. A
matrix that its source keeps on a grid of blocks keeps its codes; where the grid has a minimum, the product gets
minimum times the sum of the inputs of each block added, so that the result is that of the source's own numbers.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.executor import NativeBlocks

Floats = NDArray[np.float32]
Codes = NDArray[np.uint8]

BLOCK = 32

SHRINK = {8: (1.0,), 4: tuple(1 - 0.03 * i for i in range(10)), 2: tuple(1 - 0.05 * i for i in range(13))}
"""Shares of a block's full range that are tried for the least squared error."""


# --- keys and values ----------------------------------------------------------------------------


def kv_scale(peak: Floats, bits: int) -> Floats:
    """The step of each channel's code from the largest magnitude that was seen there: [head_dim]."""
    scale: Floats = np.maximum(peak, 1e-6).astype(np.float32) / np.float32(2 ** (bits - 1) - 1)
    return scale


def kv_recoded(values: Floats, scale: Floats, bits: int) -> Floats:
    """Keys or values [..., head_dim] as they read back.

    >>> kv_recoded(np.array([0.9, -3.0], np.float32), np.array([0.5, 0.01], np.float32), 8).tolist()
    [1.0, -1.2799999713897705]
    """
    top = 2 ** (bits - 1)
    read: Floats = np.clip(np.rint(values / scale), -top, top - 1).astype(np.float32) * scale
    return read


# --- weights ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Blocks:
    """A matrix in blocks: value = scale * (code - 2**(bits - 1)) + minimum.

    codes    [rows, cols]          below 2**bits
    scale    [rows, cols / block]
    minimum  [rows, cols / block], or None where it is nowhere needed

    Products round their inputs where `rounds_inputs`, and multiply floats where not.
    """

    bits: int
    codes: Codes
    scale: Floats
    minimum: Floats | None
    rounds_inputs: bool = True

    @property
    def block(self) -> int:
        return int(self.codes.shape[1] // self.scale.shape[1])

    def packed(self) -> Codes:
        """The codes as the node takes them: [rows, blocks, block * bits / 8], the first code in the lowest bits.

        >>> Blocks(4, np.array([[1, 2] * 8], np.uint8), np.ones((1, 1), np.float32), None).packed()[0, 0, 0]
        np.uint8(33)
        """
        rows, each = self.codes.shape[0], 8 // self.bits
        parts = self.codes.reshape(rows, -1, each)
        out = np.zeros(parts.shape[:2], np.uint8)
        for i in range(each):
            out |= parts[:, :, i] << (i * self.bits)
        return out.reshape(rows, self.scale.shape[1], self.block * self.bits // 8)

    def dense(self) -> Floats:
        """The matrix [rows, cols] that the blocks stand for."""
        centred = self.codes.astype(np.float32) - np.float32(2 ** (self.bits - 1))
        values = centred.reshape(*self.scale.shape, self.block) * self.scale[..., None]
        if self.minimum is not None:
            values += self.minimum[..., None]
        read: Floats = values.reshape(self.codes.shape)
        return read


def rounded(matrix: Floats, bits: int, block: int = BLOCK) -> Blocks:
    """A matrix rounded to symmetric blocks, the range of each searched for the least squared error."""
    rows, cols = matrix.shape
    x = matrix.reshape(rows, cols // block, block)
    half = 2 ** (bits - 1)
    # The range is lopsided (-half .. half - 1): the sign that puts the largest magnitude on its longer side is better.
    extreme = np.take_along_axis(x, np.abs(x).argmax(-1)[..., None], -1)[..., 0]
    best_error = np.full(extreme.shape, np.inf, np.float32)
    best = np.ones_like(extreme)
    for shrink in SHRINK[bits]:
        scale = -extreme * np.float32(shrink / half)
        scale = np.where(np.abs(scale) < 1e-12, np.float32(1e-12), scale)
        codes = np.clip(np.rint(x / scale[..., None]), -half, half - 1)
        error = np.square(codes * scale[..., None] - x).sum(-1)
        better = error < best_error
        best_error, best = np.where(better, error, best_error), np.where(better, scale, best)
    codes = np.clip(np.rint(x / best[..., None]), -half, half - 1) + half
    return Blocks(bits, codes.astype(np.uint8).reshape(rows, cols), best.astype(np.float32), None)


def input_recoded(x: Floats, bits: int, block: int = BLOCK) -> Floats:
    """The inputs [tokens, inputs] of a product as `MatMulNBits` reads them at accuracy_level 4.

    Each block of a token, as long as a block of the weights, becomes integers of its own scale, the largest magnitude
    over 127; halves go to the even one. That holds at 2, 4 and 8 bits and for any number of tokens; only blocks of 16
    at 2 bits are multiplied as floats. What a minimum of the weights is multiplied with is not rounded.

    >>> input_recoded(np.array([[127.0, 1.5, 0.4, 0.0] * 8], np.float32), 4)[0, :4].tolist()
    [127.0, 2.0, 0.0, 0.0]
    """
    if bits == 2 and block == 16:
        return x
    blocks = x.reshape(*x.shape[:-1], -1, block)
    peak = np.abs(blocks).max(-1, keepdims=True)
    steps = np.float32(127) / np.where(peak == 0, np.float32(1), peak)
    read: Floats = (np.rint(blocks * steps) * (peak / np.float32(127))).reshape(x.shape).astype(np.float32)
    return read


def exact_bits(code_bits: int) -> int | None:
    """The width that holds codes of so many bits as they are; None where no width does."""
    return next((bits for bits in (2, 4, 8) if code_bits <= bits), None)


def exact(native: NativeBlocks) -> Blocks:
    """The source's own blocks, number for number: its codes are kept, and shifted where there is a wider width's room.

    >>> grid = NativeBlocks(5, np.array([[0, 31] * 8], np.uint8), np.ones((1, 1), np.float16), None, -16)
    >>> exact(grid).dense()[0, :2].tolist(), exact(grid).minimum
    ([-16.0, 15.0], None)
    """
    bits = exact_bits(native.bits)
    if bits is None:
        raise ValueError(f"codes of {native.bits} bits have no width here")
    half, middle = 2 ** (bits - 1), 2 ** (native.bits - 1)
    scale = native.scale.astype(np.float32)
    if native.minimum is None:
        shift = half + (native.offset or 0)
        if shift >= 0 and shift + 2**native.bits <= 2**bits:
            return Blocks(bits, native.codes + np.uint8(shift), scale, None)
        minimum = scale * np.float32(native.offset or 0)
    else:
        minimum = native.minimum.astype(np.float32)
    # Codes lie around zero: what a product loses by rounding its input grows with them, and the minimum's part loses
    # nothing.
    return Blocks(bits, native.codes + np.uint8(half - middle), scale, minimum + scale * np.float32(middle))
