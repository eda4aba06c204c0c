"""Round a matrix to groups of codes with a scale and a minimum, the clipping range searched for least squared error."""

import torch
from torch import Tensor

TRIED = {8: 1, 4: 5, 3: 7, 2: 9}
"""How many clipping ranges are tried by bits: the full range of a group, then 5 % less each time."""


def quantise(matrix: Tensor, bits: int, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [rows, cols] uint8, scale and minimum [rows, cols / group] float16 with least squared error per group.

    The range is shrunk about its centre, and the rounding error of scale and minimum to float16 is part of the error.

    >>> codes, scale, minimum = quantise(torch.tensor([[0.0, 1.0, 2.0, 3.0]]), bits=2, group=4)
    >>> codes.tolist(), scale.tolist(), minimum.tolist()
    ([[0, 1, 2, 3]], [[1.0]], [[0.0]])
    """
    top = 2**bits - 1
    x = matrix.reshape(*matrix.shape[:-1], -1, group)
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    centre, half = (low + high) / 2, (high - low) / 2
    best_error = torch.full_like(low, float("inf"))
    best_scale, best_minimum = torch.ones_like(low), low.clone()
    for i in range(TRIED[bits]):
        shrink = 1 - 0.05 * i
        minimum = (centre - half * shrink).half().float()
        scale = ((centre + half * shrink - minimum) / top).half().float().clamp_min(6e-8)
        codes = ((x - minimum) / scale).round_().clamp_(0, top)
        error = (codes * scale + minimum - x).square_().sum(-1, keepdim=True)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_scale = torch.where(better, scale, best_scale)
        best_minimum = torch.where(better, minimum, best_minimum)
    codes = ((x - best_minimum) / best_scale).round_().clamp_(0, top).to(torch.uint8)
    return codes.reshape(matrix.shape), best_scale.squeeze(-1).half(), best_minimum.squeeze(-1).half()


def dequantise(codes: Tensor, scale: Tensor, minimum: Tensor) -> Tensor:
    """The float32 matrix that `quantise` approximates with."""
    x = codes.float().reshape(*scale.shape, -1)
    return torch.addcmul(minimum.float()[..., None], x, scale.float()[..., None]).reshape(codes.shape)
