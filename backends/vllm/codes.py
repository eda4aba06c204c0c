"""How vLLM stores numbers: compressed-tensors integers, one float type for all the rest, fp8 keys and values.

Four-bit matrices have a symmetric scale for each group of a row, in the model's float type, as vLLM keeps it (`WNA16`:
code - 8 times scale). Eight-bit matrices have a float32 scale for each row, and their products round each token's
inputs to eight bits by its own largest magnitude (`W8A8`). Keys and values in fp8 are e4m3 with a factor of 1: what
float8 cannot hold saturates.
"""

from typing import Literal

import torch
from torch import Tensor

FloatName = Literal["float16", "bfloat16"]
FLOATS = {"float16": torch.float16, "bfloat16": torch.bfloat16}

NIBBLES = 8
"""Four-bit codes of one int32."""

OFFSET = 8
"""What is added to a four-bit code to store it."""

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0

TRIED = tuple(1 - 0.04 * i for i in range(10))
"""Clipping ranges tried for a group, as shares of its full range."""


def rounded(values: Tensor, float_name: FloatName) -> Tensor:
    """Numbers in the model's float type; what float16 cannot hold saturates."""
    kind = FLOATS[float_name]
    most = torch.finfo(kind).max
    return values.float().clamp(-most, most).to(kind)


def quantise4(matrix: Tensor, group: int, float_name: FloatName) -> tuple[Tensor, Tensor]:
    """Codes [rows, cols] int8 in -8..7 and scales [rows, cols / group] of least squared error among those tried.

    A scale may be negative, so that the code -8, which has no counterpart, falls to the side where it is of use.

    >>> codes, scale = quantise4(torch.tensor([[-8.0, 7.0, 1.0, 0.0], [8.0, -7.0, -1.0, 0.0]]), 4, "float16")
    >>> codes.tolist(), scale.tolist()
    ([[-8, 7, 1, 0], [-8, 7, 1, 0]], [[1.0], [-1.0]])
    """
    x = matrix.float().reshape(len(matrix), -1, group)
    largest = x.gather(-1, x.abs().argmax(-1, keepdim=True))
    best_error = torch.full_like(largest, float("inf"))
    best_scale = torch.zeros_like(largest)
    for full in (largest / -8, largest.abs() / 7):
        for share in TRIED:
            scale = rounded(full * share, float_name).float()
            codes = _codes4(x, scale)
            error = (codes * scale - x).square_().sum(-1, keepdim=True)
            better = error < best_error
            best_error = torch.where(better, error, best_error)
            best_scale = torch.where(better, scale, best_scale)
    codes = _codes4(x, best_scale).to(torch.int8)
    return codes.reshape(matrix.shape), best_scale.squeeze(-1).to(FLOATS[float_name])


def _codes4(x: Tensor, scale: Tensor) -> Tensor:
    """Codes of groups by their scales; a group of zeros has a scale of 0, and codes that do not matter."""
    return (x / torch.where(scale == 0, 1.0, scale)).round_().clamp_(-8, 7)


def dequantise4(codes: Tensor, scale: Tensor) -> Tensor:
    """The float32 matrix that `quantise4` stands for."""
    grouped = codes.float().reshape(*scale.shape, -1)
    return (grouped * scale.float()[..., None]).reshape(codes.shape)


def packed4(codes: Tensor) -> Tensor:
    """Codes [rows, cols] of -8..7 as int32 [rows, cols / 8], the first in the lowest bits.

    >>> [hex(word) for word in packed4(torch.tensor([[-8, -7, -6, 0, 0, 0, 0, -1]], dtype=torch.int8))[0].tolist()]
    ['0x78888210']
    """
    nibbles = (codes.long() + OFFSET).reshape(len(codes), -1, NIBBLES)
    words = (nibbles << torch.arange(0, 32, 4)).sum(-1)
    return words.to(torch.int32)


def quantise8(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Codes [rows, cols] int8 in -127..127 and float32 scales [rows, 1]."""
    scale = matrix.float().abs().amax(-1, keepdim=True) / 127
    codes = (matrix.float() / torch.where(scale == 0, 1.0, scale)).round_().clamp_(-127, 127)
    return codes.to(torch.int8), scale


def dequantise8(codes: Tensor, scale: Tensor) -> Tensor:
    """The float32 matrix that `quantise8` stands for."""
    return codes.float() * scale


def inputs8(values: Tensor) -> Tensor:
    """Inputs [tokens, inputs] of an eight-bit product as it reads them.

    >>> inputs8(torch.tensor([[127.0, 0.6, -3.4], [0.0, 0.0, 0.0]])).tolist()
    [[127.0, 1.0, -3.0], [0.0, 0.0, 0.0]]
    """
    return dequantise8(*quantise8(values))


def fp8(values: Tensor) -> Tensor:
    """Keys or values as they read back from an fp8 cache.

    >>> fp8(torch.tensor([1.0, 1.06, 1.07, 500.0])).tolist()
    [1.0, 1.0, 1.125, 448.0]
    """
    return values.float().clamp(-FP8_MAX, FP8_MAX).to(FP8).float()
