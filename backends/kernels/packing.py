"""Codes of 2, 3, 4, 5 and 8 bits in bytes and back, the same bytes on the host and in kernels.

A code is split into power-of-two widths, lowest bits first (3 = 2 + 1, 5 = 4 + 1). Each part of a row is packed by
itself, the first code in the lowest bits of the first byte, and the parts of a row follow one another. So a row of n
codes takes n * bits / 8 bytes, n is a multiple of 8, and a tile of rows expands in registers by halving bytes.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .contract import Check, Launch, Variant


def planes(bits: int) -> tuple[int, ...]:
    """The power-of-two widths a code is split into, lowest bits first.

    >>> planes(3), planes(4)
    ((2, 1), (4,))
    """
    return tuple(width for width in (8, 4, 2, 1) if bits & width)


@triton.jit
def expand(x, WIDTH: tl.constexpr):
    """Bytes [rows, n] as their codes of a power-of-two width, [rows, n * 8 / WIDTH]."""
    if WIDTH < 8:
        x = tl.interleave(x & 15, x >> 4)
    if WIDTH < 4:
        x = tl.interleave(x & 3, x >> 2)
    if WIDTH < 2:
        x = tl.interleave(x & 1, x >> 1)
    return x


@triton.jit
def squeeze(x, WIDTH: tl.constexpr):
    """Codes [rows, n] of a power-of-two width as bytes [rows, n * WIDTH / 8]: the inverse of `expand`."""
    if WIDTH < 2:
        low, high = tl.split(tl.reshape(x, [x.shape[0], x.shape[1] // 2, 2]))
        x = low | (high << 1)
    if WIDTH < 4:
        low, high = tl.split(tl.reshape(x, [x.shape[0], x.shape[1] // 2, 2]))
        x = low | (high << 2)
    if WIDTH < 8:
        low, high = tl.split(tl.reshape(x, [x.shape[0], x.shape[1] // 2, 2]))
        x = low | (high << 4)
    return x


@triton.jit
def load_plane(at, live, WIDTH: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """One part of the codes of rows: pointers `at` [rows] to its first bytes -> uint8 [rows, BLOCK_D]."""
    byte = tl.arange(0, BLOCK_D * WIDTH // 8)
    mask = live[:, None] & (byte < DIM * WIDTH // 8)[None, :]
    return expand(tl.load(at[:, None] + byte[None, :], mask=mask, other=0), WIDTH)


@triton.jit
def store_plane(at, live, x, WIDTH: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Write one part of the codes [rows, BLOCK_D] of rows."""
    byte = tl.arange(0, BLOCK_D * WIDTH // 8)
    mask = live[:, None] & (byte < DIM * WIDTH // 8)[None, :]
    tl.store(at[:, None] + byte[None, :], squeeze(x, WIDTH), mask=mask)


@triton.jit
def load_codes(low, high, live, BITS: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Codes uint8 [rows, BLOCK_D] of rows whose low and high parts begin at `low` and `high` [rows]."""
    LOW: tl.constexpr = 2 if BITS == 3 else 4 if BITS == 5 else BITS
    codes = load_plane(low, live, LOW, DIM, BLOCK_D)
    if BITS > LOW:
        codes |= load_plane(high, live, 1, DIM, BLOCK_D) << LOW
    return codes


@triton.jit
def store_codes(low, high, live, codes, BITS: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Write codes uint8 [rows, BLOCK_D]: the inverse of `load_codes`."""
    LOW: tl.constexpr = 2 if BITS == 3 else 4 if BITS == 5 else BITS
    store_plane(low, live, codes & (2**LOW - 1), LOW, DIM, BLOCK_D)
    if BITS > LOW:
        store_plane(high, live, codes >> LOW, 1, DIM, BLOCK_D)


@triton.jit
def pack_kernel(
    codes, packed, rows, BITS: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr
):
    row = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
    live = row < rows
    column = tl.arange(0, BLOCK_D)
    mask = live[:, None] & (column < DIM)[None, :]
    x = tl.load(codes + row[:, None] * DIM + column[None, :], mask=mask, other=0)
    low = packed + row * (DIM * BITS // 8)
    store_codes(low, low + DIM * (BITS // 2 * 2) // 8, live, x, BITS, DIM, BLOCK_D)


@triton.jit
def unpack_kernel(
    packed, codes, rows, BITS: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr
):
    row = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
    live = row < rows
    column = tl.arange(0, BLOCK_D)
    mask = live[:, None] & (column < DIM)[None, :]
    low = packed + row * (DIM * BITS // 8)
    x = load_codes(low, low + DIM * (BITS // 2 * 2) // 8, live, BITS, DIM, BLOCK_D)
    tl.store(codes + row[:, None] * DIM + column[None, :], x, mask=mask)


@dataclass(frozen=True, slots=True)
class Shape:
    """`rows` rows of `dim` codes of `bits` bits."""

    rows: int
    dim: int
    bits: int


def reference(codes: Tensor, bits: int) -> Tensor:
    """Codes [..., n] below 2**bits as bytes [..., n * bits / 8], in plain torch.

    >>> reference(torch.tensor([[1, 2, 3, 4, 5, 6, 7, 0]]), 4).tolist()
    [[33, 67, 101, 7]]
    """
    parts, shift = [], 0
    for width in planes(bits):
        each = 8 // width
        part = ((codes.to(torch.int32) >> shift) & (2**width - 1)).unflatten(-1, (-1, each))
        parts.append((part << (width * torch.arange(each, dtype=torch.int32, device=codes.device))).sum(-1))
        shift += width
    return torch.cat(parts, -1).to(torch.uint8)


def expanded(packed: Tensor, bits: int) -> Tensor:
    """Bytes [..., n * bits / 8] as codes uint8 [..., n], in plain torch: the inverse of `reference`."""
    n = packed.shape[-1] * 8 // bits
    codes, start, shift = torch.zeros(*packed.shape[:-1], n, dtype=torch.uint8, device=packed.device), 0, 0
    for width in planes(bits):
        part = packed[..., start : start + n * width // 8]
        steps = width * torch.arange(8 // width, dtype=torch.uint8, device=packed.device)
        codes |= ((part[..., None] >> steps) & (2**width - 1)).flatten(-2) << shift
        start, shift = start + n * width // 8, shift + width
    return codes


def pack(codes: Tensor, bits: int, variant: Variant | None = None) -> Tensor:
    """Codes uint8 [rows, n] below 2**bits as bytes [rows, n * bits / 8]."""
    rows, dim = codes.shape
    shape = Shape(rows, dim, bits)
    packed = torch.empty(rows, dim * bits // 8, dtype=torch.uint8, device=codes.device)
    _run(pack_kernel, codes.contiguous(), packed, shape, variant)
    return packed


def unpack(packed: Tensor, bits: int, variant: Variant | None = None) -> Tensor:
    """Bytes [rows, n * bits / 8] as codes uint8 [rows, n]."""
    rows, dim = packed.shape[0], packed.shape[1] * 8 // bits
    codes = torch.empty(rows, dim, dtype=torch.uint8, device=packed.device)
    _run(unpack_kernel, packed.contiguous(), codes, Shape(rows, dim, bits), variant)
    return codes


def _run(kernel, source: Tensor, made: Tensor, shape: Shape, variant: Variant | None) -> None:
    chosen = variants(shape)[0] if variant is None else variant
    block = chosen.tile("BLOCK_R")
    grid = (triton.cdiv(shape.rows, block),)
    sizes = (shape.bits, shape.dim, triton.next_power_of_2(shape.dim), block)
    kernel[grid](source, made, shape.rows, *sizes, num_warps=chosen.num_warps, num_stages=chosen.num_stages)


def variants(shape: Shape) -> tuple[Variant, ...]:
    """Rows of a program."""
    return tuple(Variant((("BLOCK_R", rows),), 4, 1) for rows in (32, 64))


def launches(shape: Shape, variant: Variant) -> tuple[Launch, ...]:
    """Packing, then unpacking."""
    block = variant.tile("BLOCK_R")
    sizes = {
        "BITS": shape.bits,
        "DIM": shape.dim,
        "BLOCK_D": triton.next_power_of_2(shape.dim),
        "BLOCK_R": block,
    }
    wide, narrow = shape.rows * shape.dim, shape.rows * shape.dim * shape.bits // 8

    def one(kernel, first: str, second: str, read: int, written: int) -> Launch:
        signature = {first: "*u8", second: "*u8", "rows": "i32"} | dict.fromkeys(sizes, "constexpr")
        return Launch(
            kernel,
            signature,
            dict(sizes),
            (first, second),
            triton.cdiv(shape.rows, block),
            -(-read // 32) * 32,
            written,
            0,
        )

    return (
        one(pack_kernel, "codes", "packed", wide, narrow),
        one(unpack_kernel, "packed", "codes", narrow, wide),
    )


def hostile() -> tuple[Shape, ...]:
    """Every width, head sizes that are no power of two, one row, and rows that no tile divides."""
    sizes = ((1, 64), (33, 80), (64, 96), (7, 128), (130, 256), (5, 8))
    return tuple(Shape(rows, dim, bits) for rows, dim in sizes for bits in (2, 3, 4, 5, 8))


def check(shape: Shape, variant: Variant, dtype: torch.dtype, seed: int) -> tuple[Check, ...]:
    """The bytes are those of the reference, and come back as the codes they were."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**shape.bits, (shape.rows, shape.dim), generator=generator, dtype=torch.uint8)
    packed = pack(codes, shape.bits, variant)
    return (
        Check(packed, reference(codes, shape.bits)),
        Check(unpack(packed, shape.bits, variant), codes),
        Check(expanded(packed, shape.bits), codes),
    )
