"""The rotated storage code of keys and values: what its vectors stand for, on the host and in kernels.

A vector is stored in a space of its own: less a static mean and times a static scale, channel by channel, then turned
by a Hadamard rotation, divided by its size (one float16 per token) and rounded to a Lloyd-Max codebook of the normal
distribution; 8 bits are uniform steps. Attention works in that space: queries are turned once instead of every key, and
the mean of keys adds the same to all scores of a query that meet codes, though not to those that meet float sinks.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .packing import expanded

# Lloyd-Max levels of the standard normal distribution (positive half; the codebooks are symmetric).
# J. Max, Quantizing for minimum distortion, IRE Trans. Inf. Theory 6 (1960); recomputed.
HALF_LEVELS = {
    2: (0.4527800346, 1.5104176085),
    3: (0.2450941789, 0.7560052812, 1.3439092785, 2.1519457045),
    4: (0.1283950299, 0.3880482995, 0.6567591185, 0.9423404565, 1.2562311973, 1.618046386, 2.0690172265, 2.732589571),
}
FLOAT16_MAX = 65504.0


def book(bits: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """The 2**bits levels of a codebook, ascending."""
    if bits == 8:
        return torch.arange(-128, 128, dtype=dtype)
    half = torch.tensor(HALF_LEVELS[bits], dtype=torch.float32).to(dtype)
    return torch.cat([-half.flip(0), half])


def edges(bits: int) -> Tensor:
    """What lies between the levels of a codebook, float32, as the runner rounds it."""
    levels = book(bits, torch.float32)
    return (levels[1:] + levels[:-1]) / 2


def rotation(dim: int) -> Tensor:
    """The orthogonal rotation [dim, dim] in float64: Hadamard blocks of the largest power of two that divides dim."""
    block = dim & -dim
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < block:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    turned: Tensor = torch.block_diag(*[matrix / block**0.5] * (dim // block))
    return turned


@dataclass(frozen=True, slots=True)
class Stored:
    """The keys, or the values, of the head class of a layer, as they lie in memory.

    bits          16 or 32 are floats; below that codes
    low           [rows, ...] codes uint8, a row for a slot, or floats [rows, head_dim]
    high          the last bit of 3-bit codes [rows, ...]; may lie in the same rows as `low`
    norms         [rows] float16, the sizes of coded vectors
    sinks         [sink rows, head_dim] float16 (float32 beside float32): protected slots
    mean, scale   [heads, head_dim] float32, static; `mean` is None for values
    """

    bits: int
    low: Tensor
    high: Tensor | None
    norms: Tensor | None
    sinks: Tensor
    mean: Tensor | None
    scale: Tensor | None

    @property
    def coded(self) -> bool:
        return self.bits < 16

    @property
    def strides(self) -> tuple[int, int]:
        """Elements from one row to the next, of `low` and of `high`."""
        return self.low.stride(0), 0 if self.high is None else self.high.stride(0)

    def parts(self) -> tuple[Tensor, ...]:
        """The tensors in the order in which kernels take them; where one is None, another that is never read."""
        mean = self.low if self.mean is None else self.mean
        return (
            self.low,
            self.low if self.high is None else self.high,
            self.low if self.norms is None else self.norms,
            self.sinks,
            mean,
            self.low if self.scale is None else self.scale,
        )

    def check_keys(self) -> None:
        """ValueError where these cannot be keys: the kernels read a mean wherever keys are coded."""
        if self.coded and self.mean is None:
            raise ValueError(f"keys of {self.bits} bits have no mean; give zeros where nothing was subtracted")

    def written(self) -> dict[str, Tensor]:
        """The tensors that new tokens are written to, by field."""
        parts = {"low": self.low, "high": self.high, "norms": self.norms, "sinks": self.sinks}
        return {name: part for name, part in parts.items() if part is not None}

    def vectors(self, rows: Tensor, head: int) -> Tensor:
        """What slots stand for, [n, head_dim] float64, in the plain space."""
        if not self.coded:
            return self.low[rows].double()
        dim = self.low.shape[1] * 8 // (2 if self.bits == 3 else self.bits)
        codes = self._codes(rows)
        if self.norms is None or self.scale is None:
            raise ValueError(f"{self.bits}-bit codes need norms and a scale")
        turned = book(self.bits).to(codes.device)[codes.long()] * self.norms[rows].double()[:, None]
        plain = (turned @ rotation(dim).to(codes.device)) / self.scale[head].double()
        return plain if self.mean is None else plain + self.mean[head].double()

    def _codes(self, rows: Tensor) -> Tensor:
        if self.high is None:
            return expanded(self.low[rows], self.bits)
        return expanded(self.low[rows], 2) | expanded(self.high[rows], 1) << 2


def empty(bits: int, rows: int, dim: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Zeroed (low, high, norms) for so many slots; parts a code does not have are left out as empty tensors.

    3-bit codes keep their last bit apart: then a tile of either part is one run of bytes.
    """
    none = torch.empty(0, dtype=torch.uint8, device=device)
    if bits >= 16:
        return torch.zeros(rows, dim, dtype=dtype, device=device), none, none
    width = 2 if bits == 3 else bits
    low = torch.zeros(rows, dim * width // 8, dtype=torch.uint8, device=device)
    high = torch.zeros(rows, dim // 8, dtype=torch.uint8, device=device) if bits == 3 else none
    return low, high, torch.zeros(rows, dtype=torch.float16, device=device)


def strides_of(bits: int, dim: int) -> tuple[int, int]:
    """The strides of what `empty` gives.

    >>> strides_of(16, 64), strides_of(4, 64), strides_of(3, 64)
    ((64, 0), (32, 0), (16, 8))
    """
    if bits >= 16:
        return dim, 0
    return (dim * 2 // 8, dim // 8) if bits == 3 else (dim * bits // 8, 0)


def row_bytes(bits: int, dim: int) -> int:
    """Bytes of one slot, its norm included.

    >>> row_bytes(16, 64), row_bytes(4, 64), row_bytes(3, 64)
    (128, 34, 26)
    """
    return dim * bits // 8 + (2 if bits < 16 else 0)


def hostile_norms(bits: int, rows: int, made: torch.Generator | None) -> Tensor:
    """Norms [rows] float16 that a check stores beside random codes: about 1 for what is coded, one in eleven of them 0,
    one in 29 fourfold and one in 97 tenfold."""
    size = torch.rand(rows, generator=made) + 0.5
    size[::11], size[5::29], size[7::97] = 0.0, 4.0, 10.0
    return (size / (74 if bits == 8 else 1)).half()  # uniform codes have a root mean square of 74


BOOK_2 = tl.constexpr(tuple(book(2, torch.float32).tolist()))
BOOK_3 = tl.constexpr(tuple(book(3, torch.float32).tolist()))
BOOK_4 = tl.constexpr(tuple(book(4, torch.float32).tolist()))
EDGES_2 = tl.constexpr(tuple(edges(2).tolist()))
EDGES_3 = tl.constexpr(tuple(edges(3).tolist()))
EDGES_4 = tl.constexpr(tuple(edges(4).tolist()))


@triton.jit
def level(code, BITS: tl.constexpr):
    """What codes uint8 stand for, float32, before their norm and times `spread`.

    The levels are an odd polynomial of the code: a look-up would load, and selecting among 16 takes as many
    operations. Exact for 2 and 3 bits; within 3.1e-5 of each 4-bit level.
    """
    x = code.to(tl.float32) - (128.0 if BITS == 8 else 2 ** (BITS - 1) - 0.5)
    s = x * x
    if BITS == 2:
        x *= 1.513673288 + s * 0.08593684347
    elif BITS == 3:
        x *= 0.5591306304 + s * (0.007510393823 + s * (0.0001143018714 + s * 1.925440867e-05))
    elif BITS == 4:
        y = 3.947633618e-07 + s * (-9.239199172e-09 + s * 1.324977463e-10)
        x *= 0.3232896407 + s * (0.001197655462 + s * (5.084656831e-06 + s * y))
    return x


@triton.jit
def spread(BITS: tl.constexpr):
    """What levels are multiplied by so that float16, in which products are taken, holds them five times and more as
    exactly as it would: of all factors from 1 to 2 the one with the least root mean square error over a normal vector.
    """
    return 1.6952575 if BITS == 2 else 1.14449 if BITS == 3 else 1.26017 if BITS == 4 else 1.0


@triton.jit
def turn(x, DIM: tl.constexpr):
    """Rows [rows, n] times the Hadamard rotation of heads of DIM; n >= DIM, zeros past it. It is its own inverse."""
    BLOCK: tl.constexpr = DIM & -DIM
    LOG: tl.constexpr = (
        (BLOCK > 1)
        + (BLOCK > 2)
        + (BLOCK > 4)
        + (BLOCK > 8)
        + (BLOCK > 16)
        + (BLOCK > 32)
        + (BLOCK > 64)
        + (BLOCK > 128)
        + (BLOCK > 256)
    )
    ROWS: tl.constexpr = x.shape[0] * x.shape[1] // BLOCK
    y = tl.reshape(x, [ROWS, BLOCK])
    for _ in tl.static_range(LOG):  # each stage takes the lowest bit of the index and puts it on top
        a, b = tl.split(tl.reshape(y, [ROWS, BLOCK // 2, 2]))
        y = tl.reshape(tl.permute(tl.join(a + b, a - b), (0, 2, 1)), [ROWS, BLOCK])
    return tl.reshape(y, [x.shape[0], x.shape[1]]) * (BLOCK**-0.5)


@triton.jit
def nearest(x):
    """float32 numbers below 2**22 rounded to whole ones, ties to even."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def encode(z, BITS: tl.constexpr, DIM: tl.constexpr):
    """Codes uint8 [rows, n] and norms float16 [rows] of vectors in their rotated space, float32 with zeros past DIM."""
    if BITS == 8:
        norm = tl.minimum(tl.maximum(tl.max(tl.abs(z), 1) / 127.0, 6e-8), 65504.0).to(tl.float16)
        steps = nearest(tl.div_rn(z, tl.zeros_like(z) + norm.to(tl.float32)[:, None]))
        code = tl.minimum(tl.maximum(steps, -127.0), 127.0) + 128.0
    else:
        size = tl.maximum(tl.sqrt_rn(tl.sum(z * z, 1) / DIM), 1e-30)
        unit = tl.div_rn(z, tl.zeros_like(z) + size[:, None])
        BOOK: tl.constexpr = BOOK_2 if BITS == 2 else BOOK_3 if BITS == 3 else BOOK_4
        EDGES: tl.constexpr = EDGES_2 if BITS == 2 else EDGES_3 if BITS == 3 else EDGES_4
        code = tl.zeros_like(z)
        value = tl.zeros_like(z) + BOOK[0]
        for i in tl.static_range(2**BITS - 1):
            above = unit > EDGES[i]
            code += tl.where(above, 1.0, 0.0)
            value = tl.where(above, BOOK[i + 1], value)
        value = tl.where((tl.arange(0, z.shape[1]) < DIM)[None, :], value, 0.0)
        norm = tl.minimum(tl.sum(z * value, 1) / tl.sum(value * value, 1), 65504.0).to(tl.float16)
    return code.to(tl.uint8), norm
