"""A matrix product that keeps the kernels' contract: small enough to compile, search, check and count in tests."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .contract import Check, Launch, Variant
from .numerics import dot


@dataclass(frozen=True)
class Shape:
    """[rows, inner] x [inner, cols]."""

    rows: int
    inner: int
    cols: int


def reference(a: Tensor, b: Tensor) -> Tensor:
    return a.double() @ b.double()


@triton.jit
def product_kernel(
    a_ptr, b_ptr, out_ptr, rows, inner, cols, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr
):
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, inner, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        a = tl.load(a_ptr + m[:, None] * inner + k, mask=(m[:, None] < rows) & (k < inner), other=0.0)
        b = tl.load(b_ptr + k[:, None] * cols + n, mask=(k[:, None] < inner) & (n < cols), other=0.0)
        total = dot(a, b, total)
    tl.store(out_ptr + m[:, None] * cols + n, total, mask=(m[:, None] < rows) & (n < cols))


SMALL = Variant((("BLOCK_M", 32), ("BLOCK_N", 32), ("BLOCK_K", 32)), num_warps=4, num_stages=2)
WIDE = Variant((("BLOCK_M", 64), ("BLOCK_N", 64), ("BLOCK_K", 32)), num_warps=4, num_stages=2)
SPILLS = Variant((("BLOCK_M", 128), ("BLOCK_N", 64), ("BLOCK_K", 32)), num_warps=1, num_stages=2)
TOO_LARGE = Variant((("BLOCK_M", 32), ("BLOCK_N", 32), ("BLOCK_K", 512)), num_warps=4, num_stages=4)
BROKEN = Variant((("BLOCK_M", 24), ("BLOCK_N", 32), ("BLOCK_K", 32)), num_warps=4, num_stages=2)


def product(a: Tensor, b: Tensor, variant: Variant = SMALL) -> Tensor:
    (rows, inner), cols = a.shape, b.shape[1]
    out = torch.empty(rows, cols, dtype=torch.float32, device=a.device)
    tiles = dict(variant.tiles)
    grid = (triton.cdiv(rows, tiles["BLOCK_M"]), triton.cdiv(cols, tiles["BLOCK_N"]))
    product_kernel[grid](
        a, b, out, rows, inner, cols, **tiles, num_warps=variant.num_warps, num_stages=variant.num_stages
    )
    return out


def variants(shape: Shape) -> tuple[Variant, ...]:
    """Of one row only the small one, so that a test of that compiles one kernel."""
    if shape.rows < 1:
        raise ValueError(f"rows: found {shape.rows}; needs one or more")
    return (SMALL,) if shape.rows == 1 else (SMALL, WIDE, SPILLS, TOO_LARGE, BROKEN)


def launches(shape: Shape, variant: Variant) -> tuple[Launch, ...]:
    tiles = dict(variant.tiles)
    down, across = -(-shape.rows // tiles["BLOCK_M"]), -(-shape.cols // tiles["BLOCK_N"])
    return (
        Launch(
            kernel=product_kernel,
            signature={
                **dict.fromkeys(("a_ptr", "b_ptr"), "*fp16"),
                "out_ptr": "*fp32",
                **dict.fromkeys(("rows", "inner", "cols"), "i32"),
                **dict.fromkeys(tiles, "constexpr"),
            },
            constexprs=dict(tiles),
            divisible=("a_ptr", "b_ptr", "out_ptr", *(("inner", "cols") if shape.inner % 16 == 0 else ())),
            programs=down * across,
            bytes_read=2 * shape.inner * (shape.rows * across + shape.cols * down),
            bytes_written=4 * shape.rows * shape.cols,
            flop=2 * shape.rows * shape.inner * shape.cols,
        ),
    )


def hostile() -> tuple[Shape, ...]:
    return Shape(1, 16, 1), Shape(33, 48, 31)


def check(shape: Shape, variant: Variant, dtype: torch.dtype, seed: int) -> tuple[Check, ...]:
    random = torch.Generator().manual_seed(seed)
    a = torch.randn(shape.rows, shape.inner, generator=random).to(dtype)
    b = torch.randn(shape.inner, shape.cols, generator=random).to(dtype)
    return (Check(product(a, b, variant), reference(a, b)),)
