"""Multiply by a matrix of 2-, 3-, 4-, 5- or 8-bit codes with a float16 scale and minimum for each group of inputs.

    out[i, r] = sum over j of x[i, j] * (scale[r, j / group] * code[r, j] + minimum[r, j / group])

A row of codes is packed as `packing` tells, none of its bits wasted. GGUF's symmetric grids store no minimum: it is
scale * offset.

For few rows of x the matrix is all there is to read, so the work is also split along its inputs; the parts are summed
by a second kernel in a fixed order, so that results repeat. Where a step covers one group, codes go into the product as
they are, exact in 16 bits, and the group's scale and minimum are applied to its sums (x . code and the sum of x).
Otherwise weights are rounded once, to the type of x, before the product.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .contract import Check, Launch, Variant
from .numerics import dot, rounded
from .packing import expand, expanded

BITS = (2, 3, 4, 5, 8)
GROUPS = (16, 32, 64, 128, 256)
TYPES = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32"}
SUM_BLOCK = 512


@dataclass(frozen=True)
class Shape:
    """One product: x [m, k] times a matrix of n rows of k codes.

    `offset` is None where minima are stored. `zeros` makes a share of the scales of `check` zero.
    """

    m: int
    n: int
    k: int
    bits: int
    group: int
    offset: int | None = None
    zeros: float = 0.0


# --- what it computes ---------------------------------------------------------------------------


def reference(x: Tensor, codes: Tensor, scale: Tensor, minimum: Tensor | None = None, offset: int = 0) -> Tensor:
    """The product [m, n] in float64; arguments as `dequant_matmul` takes them."""
    values = expanded(codes, codes.shape[-1] * 8 // x.shape[-1]).double()
    by_group = values.view(*scale.shape, -1)
    low = scale.double() * offset if minimum is None else minimum.double()
    matrix = (by_group * scale.double()[..., None] + low[..., None]).view(values.shape)
    return x.double() @ matrix.T


# --- kernels ------------------------------------------------------------------------------------


@triton.jit
def load_plane(row_ptrs, live, start, end, WIDTH: tl.constexpr, BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr):
    """One plane's bits of BLOCK_K codes of each row, from byte `start`; 0 from byte `end` on."""
    at = start + tl.arange(0, BLOCK_K * WIDTH // 8)
    mask = live[:, None] if EVEN_K else live[:, None] & (at < end)[None, :]
    return expand(tl.load(row_ptrs[:, None] + at[None, :], mask=mask, other=0), WIDTH)


@triton.jit
def load_codes(row_ptrs, live, k_start, BITS: tl.constexpr, K: tl.constexpr, BLOCK_K: tl.constexpr):
    """Codes [rows, BLOCK_K] uint8 from input `k_start` on."""
    LOW: tl.constexpr = BITS - BITS % 2
    EVEN: tl.constexpr = K % BLOCK_K == 0
    codes = load_plane(row_ptrs, live, k_start * LOW // 8, K * LOW // 8, LOW, BLOCK_K, EVEN)
    if BITS != LOW:
        high = load_plane(row_ptrs, live, K * LOW // 8 + k_start // 8, K * BITS // 8, 1, BLOCK_K, EVEN)
        codes = codes | (high << LOW)
    return codes


@triton.jit
def exact_float(codes, dtype: tl.constexpr, BITS: tl.constexpr):
    """Codes as floats of a type that holds them exactly.

    A code is put into the last bits of a power of two, which is then subtracted: 16-bit logic and arithmetic run at
    full rate, conversions at an eighth or a quarter of it.
    """
    if dtype == tl.float16:
        return (codes.to(tl.uint16) | 0x6400).to(tl.float16, bitcast=True) - 1024
    elif dtype == tl.bfloat16 and BITS < 8:
        biased = (codes.to(tl.uint16) | 0x4300).to(tl.bfloat16, bitcast=True)
        return rounded(biased.to(tl.float32) - 128, tl.bfloat16)
    else:
        return rounded(codes.to(tl.float32), dtype)


@triton.jit
def dequant_matmul_kernel(
    x_ptr,
    codes_ptr,
    scale_ptr,
    minimum_ptr,
    out_ptr,
    m,
    splits,
    N: tl.constexpr,
    K: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    HAS_MINIMUM: tl.constexpr,
    OFFSET: tl.constexpr,
    PARTIAL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One tile [BLOCK_M, BLOCK_N] of the product, or where PARTIAL of one split's share of it, in float32."""
    tiles_n = tl.cdiv(N, BLOCK_N)
    tile, split = tl.program_id(0), tl.program_id(1)
    # Neighbours share rows of x or of the matrix, so that both are found in L2.
    tile_m, tile_n = tl.swizzle2d(tile // tiles_n, tile % tiles_n, tl.cdiv(m, BLOCK_M), tiles_n, 8)
    rows_m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    rows_n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    live_m, live_n = rows_m < m, rows_n < N
    x_ptrs = x_ptr + rows_m.to(tl.int64)[:, None] * K + tl.arange(0, BLOCK_K)[None, :]
    row_ptrs = codes_ptr + rows_n.to(tl.int64) * (K * BITS // 8)
    # Groups of a step side by side, or one group that spans steps.
    STEP_GROUPS: tl.constexpr = BLOCK_K // GROUP if BLOCK_K > GROUP else 1
    group_at = rows_n[:, None] * (K // GROUP) + tl.arange(0, STEP_GROUPS)[None, :]

    steps = tl.cdiv(K, BLOCK_K)
    each = tl.cdiv(steps, splits)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for step in range(split * each, tl.minimum(split * each + each, steps)):
        k_start = step * BLOCK_K
        left = K - k_start
        mask_x = live_m[:, None] if K % BLOCK_K == 0 else live_m[:, None] & (tl.arange(0, BLOCK_K) < left)[None, :]
        x = tl.load(x_ptrs + k_start, mask=mask_x, other=0)
        codes = load_codes(row_ptrs, live_n, k_start, BITS, K, BLOCK_K)
        mask_g = live_n[:, None] & (tl.arange(0, STEP_GROUPS) * GROUP < left)[None, :]
        scale = tl.load(scale_ptr + group_at + k_start // GROUP, mask=mask_g, other=0).to(tl.float32)
        if HAS_MINIMUM:
            minimum = tl.load(minimum_ptr + group_at + k_start // GROUP, mask=mask_g, other=0).to(tl.float32)
        else:
            minimum = scale * OFFSET
        if BLOCK_K == GROUP and BLOCK_M <= 32:
            nothing = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
            product = dot(x, tl.trans(exact_float(codes, x.dtype, BITS)), nothing)
            sums = tl.sum(x.to(tl.float32), 1)
            acc += product * tl.trans(scale) + sums[:, None] * tl.trans(minimum)
        else:
            by_group = tl.reshape(codes, [BLOCK_N, STEP_GROUPS, BLOCK_K // STEP_GROUPS])
            weight = exact_float(by_group, tl.float16, BITS).to(tl.float32) * scale[:, :, None] + minimum[:, :, None]
            weight = rounded(tl.reshape(weight, [BLOCK_N, BLOCK_K]), x.dtype)
            acc = dot(x, tl.trans(weight), acc)

    at = rows_m.to(tl.int64)[:, None] * N + rows_n[None, :]
    if PARTIAL:
        at += split.to(tl.int64) * m * N
    tl.store(out_ptr + at, rounded(acc, out_ptr.dtype.element_ty), mask=live_m[:, None] & live_n[None, :])


@triton.jit
def sum_parts_kernel(parts_ptr, out_ptr, elements, splits, BLOCK: tl.constexpr):
    """The sum of `splits` float32 arrays that lie one after the other, in that order."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = at < elements
    total = tl.zeros([BLOCK], tl.float32)
    for _ in range(splits):
        total += tl.load(parts_ptr + at, mask=live, other=0)
        parts_ptr += elements
    tl.store(out_ptr + at, rounded(total, out_ptr.dtype.element_ty), mask=live)


# --- running it ---------------------------------------------------------------------------------


def multiplies(bits: int, inputs: int, group: int) -> bool:
    """Whether there is a kernel for rows of so many inputs.

    >>> multiplies(4, 576, 32), multiplies(4, 576, 48)
    (True, False)
    """
    return bits in BITS and inputs % 8 == 0 and group in GROUPS and inputs % group == 0


def shape_of(x: Tensor, codes: Tensor, scale: Tensor, minimum: Tensor | None, offset: int) -> Shape:
    """The sizes that arguments have; ValueError where they do not fit one another or no kernel is for them."""
    (m, k), (n, row_bytes), groups = x.shape, codes.shape, scale.shape[-1]
    shape = Shape(m, n, k, row_bytes * 8 // k, k // groups, None if minimum is not None else offset)
    if shape.bits not in BITS or k % 8 or k * shape.bits != row_bytes * 8:
        raise ValueError(
            f"codes: found rows of {row_bytes} bytes for {k} inputs; needs {BITS} bits for each of a multiple of 8"
        )
    if shape.group not in GROUPS or k % shape.group:
        raise ValueError(f"scale: found {groups} groups for {k} inputs; a group must be one of {GROUPS} inputs")
    for name, beside in (("scale", scale), ("minimum", minimum)):
        if beside is not None and beside.shape != (n, groups):
            raise ValueError(f"{name}: found shape {tuple(beside.shape)}, needs {(n, groups)}")
    if x.dtype not in TYPES or codes.dtype != torch.uint8:
        raise ValueError(f"x, codes: found {x.dtype} and {codes.dtype}; needs one of {list(TYPES)} and torch.uint8")
    return shape


def dequant_matmul(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    minimum: Tensor | None = None,
    offset: int = 0,
    variant: Variant | None = None,
) -> Tensor:
    """x times the transposed matrix, in the type of x, accumulated in float32.

    x               [..., k]                float16, bfloat16 or float32
    codes           [n, k * bits / 8]       uint8
    scale, minimum  [n, k / group]          float16; without minimum it is scale * offset
    returns         [..., n]
    """
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    shape = shape_of(rows, codes, scale, minimum, offset)
    out = torch.empty(shape.m, shape.n, dtype=x.dtype, device=x.device)
    if shape.m:
        chosen = variants(shape)[0] if variant is None else variant
        splits, tiles = chosen.tile("SPLIT_K"), tiles_of(shape, chosen)
        parts = torch.empty(splits, shape.m, shape.n, dtype=torch.float32, device=x.device) if splits > 1 else out
        low = scale if minimum is None else minimum.contiguous()
        dequant_matmul_kernel[(tiles, splits)](
            rows,
            codes.contiguous(),
            scale.contiguous(),
            low,
            parts,
            shape.m,
            splits,
            **constexprs(shape, chosen),
            num_warps=chosen.num_warps,
            num_stages=chosen.num_stages,
        )
        if splits > 1:
            sum_parts_kernel[(triton.cdiv(out.numel(), SUM_BLOCK),)](parts, out, out.numel(), splits, BLOCK=SUM_BLOCK)
    return out.view(*x.shape[:-1], shape.n)


@torch.library.custom_op("planned::dequant_matmul", mutates_args=())
def dequant_matmul_op(x: Tensor, codes: Tensor, scale: Tensor, minimum: Tensor | None, offset: int) -> Tensor:
    """`dequant_matmul` as an operator that torch.compile and torch.export trace."""
    return dequant_matmul(x, codes, scale, minimum, offset)


@dequant_matmul_op.register_fake
def _(x: Tensor, codes: Tensor, scale: Tensor, minimum: Tensor | None, offset: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], codes.shape[0])


def tiles_of(shape: Shape, variant: Variant) -> int:
    """Tiles of the product."""
    return triton.cdiv(shape.m, variant.tile("BLOCK_M")) * triton.cdiv(shape.n, variant.tile("BLOCK_N"))


def constexprs(shape: Shape, variant: Variant) -> dict[str, object]:
    """What the product's kernel is specialised by."""
    return {
        "N": shape.n,
        "K": shape.k,
        "BITS": shape.bits,
        "GROUP": shape.group,
        "HAS_MINIMUM": shape.offset is None,
        "OFFSET": shape.offset or 0,
        "PARTIAL": variant.tile("SPLIT_K") > 1,
        **{name: variant.tile(name) for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K")},
    }


# --- the search space, and what is compiled -----------------------------------------------------


def variants(shape: Shape) -> tuple[Variant, ...]:
    """For few rows: narrow tiles, steps of one group or of more, the inputs split. For many: square tiles."""
    found = []
    if shape.m <= 64:
        block_m = max(16, triton.next_power_of_2(shape.m))
        blocks_k = [b for b in dict.fromkeys((128, shape.group, 256)) if b <= max(128, shape.group)]
        for block_k in blocks_k:
            steps = triton.cdiv(shape.k, block_k)
            for block_n, warps, stages in ((64, 4, 3), (32, 4, 4), (128, 8, 3)):
                # Two steps or more to a split, or the loads of one never overlap the products of another.
                for splits in (s for s in (8, 4, 16, 1) if s == 1 or 2 * s <= steps):
                    found.append(variant(block_m, block_n, block_k, splits, warps, stages))
    else:
        for block_m, block_n, block_k, warps, stages in (
            (128, 128, 64, 8, 3),
            (64, 128, 64, 4, 3),
            (128, 64, 64, 4, 3),
            (64, 64, 128, 4, 3),
            (128, 128, 32, 8, 4),
            (64, 64, 64, 4, 4),
        ):
            found.append(variant(block_m, block_n, block_k, 1, warps, stages))
    return tuple(found)


def variant(block_m: int, block_n: int, block_k: int, splits: int, warps: int, stages: int) -> Variant:
    """A Variant with this kernel's names of tiles."""
    tiles = (("BLOCK_M", block_m), ("BLOCK_N", block_n), ("BLOCK_K", block_k), ("SPLIT_K", splits))
    return Variant(tiles, warps, stages)


def launches(shape: Shape, variant: Variant, dtype: torch.dtype = torch.float16) -> tuple[Launch, ...]:
    """The product, and where it is split the sum of the parts."""
    splits, outputs = variant.tile("SPLIT_K"), shape.m * shape.n
    pointers = {"x_ptr": TYPES[dtype], "codes_ptr": "*u8", "scale_ptr": "*fp16", "minimum_ptr": "*fp16"}
    pointers["out_ptr"] = "*fp32" if splits > 1 else TYPES[dtype]
    fixed = constexprs(shape, variant)
    floats = 2 if shape.offset is None else 1
    product = Launch(
        kernel=dequant_matmul_kernel,
        signature={**pointers, "m": "i32", "splits": "i32", **dict.fromkeys(fixed, "constexpr")},
        constexprs=fixed,
        divisible=tuple(pointers),
        programs=tiles_of(shape, variant) * splits,
        bytes_read=shape.m * shape.k * dtype.itemsize
        + shape.n * shape.k * shape.bits // 8
        + shape.n * (shape.k // shape.group) * 2 * floats,
        bytes_written=outputs * 4 * splits if splits > 1 else outputs * dtype.itemsize,
        flop=2 * outputs * shape.k,
    )
    if splits == 1:
        return (product,)
    total = Launch(
        kernel=sum_parts_kernel,
        signature={
            "parts_ptr": "*fp32",
            "out_ptr": TYPES[dtype],
            "elements": "i32",
            "splits": "i32",
            "BLOCK": "constexpr",
        },
        constexprs={"BLOCK": SUM_BLOCK},
        divisible=("parts_ptr", "out_ptr"),
        programs=triton.cdiv(outputs, SUM_BLOCK),
        bytes_read=outputs * 4 * splits,
        bytes_written=outputs * dtype.itemsize,
        flop=outputs * splits,
    )
    return product, total


# --- checking it --------------------------------------------------------------------------------


def hostile() -> tuple[Shape, ...]:
    """One row; rows and outputs that fill no tile; inputs that fill no step; every width; zero scales; GGUF's grids."""
    return (
        Shape(m=1, n=48, k=576, bits=4, group=32),
        Shape(m=1, n=33, k=160, bits=3, group=32, zeros=0.5),
        Shape(m=3, n=17, k=192, bits=2, group=64),
        Shape(m=17, n=40, k=384, bits=8, group=128),
        Shape(m=65, n=72, k=160, bits=3, group=32),
        Shape(m=70, n=130, k=192, bits=4, group=64, zeros=1.0),
        Shape(m=5, n=32, k=96, bits=8, group=32, offset=-128),
        Shape(m=66, n=24, k=96, bits=5, group=32, offset=-16),
        Shape(m=2, n=100, k=96, bits=5, group=32),
        Shape(m=1, n=8, k=32, bits=4, group=32, offset=-8),
    )


def inputs(shape: Shape, dtype: torch.dtype, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None, int]:
    """Arguments of `dequant_matmul` for a shape: random codes, one group of a hundred with a tenfold scale."""
    made = torch.Generator().manual_seed(seed)
    groups = (shape.n, shape.k // shape.group)
    x = torch.randn(shape.m, shape.k, generator=made).to(dtype)
    codes = torch.randint(0, 256, (shape.n, shape.k * shape.bits // 8), dtype=torch.uint8, generator=made)
    scale = (torch.rand(groups, generator=made) + 0.5) / 2**shape.bits
    scale = torch.where(torch.rand(groups, generator=made) < 0.01, scale * 10, scale)
    scale = torch.where(torch.rand(groups, generator=made) < shape.zeros, 0.0, scale).half()
    minimum = -scale * 2**shape.bits * torch.rand(groups, generator=made).half()
    minimum = torch.where(scale == 0, torch.randn(groups, generator=made).half(), minimum)
    return x, codes, scale, minimum if shape.offset is None else None, shape.offset or 0


def check(shape: Shape, variant: Variant, dtype: torch.dtype, seed: int) -> tuple[Check, ...]:
    """The product against the reference."""
    made = inputs(shape, dtype, seed)
    return (Check(dequant_matmul(*made, variant=variant), reference(*made)),)
