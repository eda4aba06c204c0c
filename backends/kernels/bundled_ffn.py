"""A gated feed-forward network on some of its neurons, all that belongs to a neuron lying together.

    out = sum over active neurons j of (act(x . gate_j) * (x . up_j)) * down_j

A neuron's gate and up rows and its down column are one bundle, so that bringing it from slow memory is one transfer and
reading it one run (row-column bundling, LLM in a flash, https://arxiv.org/abs/2312.11514; there with two rows, for
networks without a gate). A program has a few neurons and all three of their vectors: what it makes of them is a part of
the output in float32, and a second kernel sums the parts in a fixed order. The result is the dense network's where the
neurons left out are zero, as under ReLU.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from .contract import Check, Launch, Variant
from .dequant_matmul import SUM_BLOCK, sum_parts_kernel
from .numerics import dot, rounded

ACTIVATIONS = ("relu", "silu", "gelu_tanh")
TYPES = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32"}


@dataclass(frozen=True)
class Shape:
    """x of m rows; of `neurons`, `active` are computed, with `padding` places left in their list."""

    m: int
    hidden: int
    neurons: int
    active: int
    padding: int = 0
    activation: str = "relu"


@triton.jit
def activated(x, ACTIVATION: tl.constexpr):
    """An activation of float32 numbers."""
    if ACTIVATION == "relu":
        x = tl.maximum(x, 0.0)
    elif ACTIVATION == "silu":
        x = x * tl.sigmoid(x)
    else:  # gelu_tanh: 0.5 x (1 + tanh(y)) = x sigmoid(2 y), y = sqrt(2 / pi) (x + 0.044715 x^3)
        x = x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    return x


@triton.jit
def bundled_ffn_kernel(
    x,
    bundles,
    active,
    parts,
    m,
    count,
    HIDDEN: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """What BLOCK_J neurons add to BLOCK_M rows: parts [tiles of neurons, m, HIDDEN]."""
    tile = tl.program_id(0)
    place = tile * BLOCK_J + tl.arange(0, BLOCK_J)
    neuron = tl.load(active + place, place < count, -1)
    on = neuron >= 0
    rows = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    live, k = rows < m, tl.arange(0, BLOCK_K)
    x_rows = x + rows.to(tl.int64)[:, None] * HIDDEN
    bundle = bundles + neuron.to(tl.int64)[:, None] * (3 * HIDDEN)
    gate = tl.zeros([BLOCK_M, BLOCK_J], tl.float32)
    up = tl.zeros([BLOCK_M, BLOCK_J], tl.float32)
    for start in range(0, HIDDEN, BLOCK_K):
        inside = (start + k < HIDDEN)[None, :]
        some = tl.load(x_rows + start + k[None, :], live[:, None] & inside, 0.0)
        at = bundle + start + k[None, :]
        gate = dot(some, tl.trans(tl.load(at, on[:, None] & inside, 0.0)), gate)
        up = dot(some, tl.trans(tl.load(at + HIDDEN, on[:, None] & inside, 0.0)), up)
    # Places without a neuron have zeros here, and whatever they are multiplied with was never read.
    middle = rounded(activated(gate, ACTIVATION) * up, bundles.dtype.element_ty)
    out = parts + (tile.to(tl.int64) * m + rows)[:, None] * HIDDEN
    for start in range(0, HIDDEN, BLOCK_K):
        inside = (start + k < HIDDEN)[None, :]
        down = tl.load(bundle + 2 * HIDDEN + start + k[None, :], on[:, None] & inside, 0.0)
        part = dot(middle, down, tl.zeros([BLOCK_M, BLOCK_K], tl.float32))
        tl.store(out + start + k[None, :], part, live[:, None] & inside)


# --- running it ---------------------------------------------------------------------------------


def bundled(gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Bundles [neurons, 3, hidden] of gate and up [neurons, hidden] and down [hidden, neurons]."""
    return torch.stack([gate, up, down.T], 1).contiguous()


def bundled_ffn(
    x: Tensor, bundles: Tensor, active: Tensor, activation: str = "relu", variant: Variant | None = None
) -> Tensor:
    """The network on the active neurons, in the type of x, accumulated in float32.

    x        [..., hidden]         in the type of bundles
    bundles  [neurons, 3, hidden]  contiguous: gate, up, down
    active   [count] int32         neurons, each at most once; places below zero are left out
    returns  [..., hidden]
    """
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    neurons, three, hidden = bundles.shape
    if three != 3 or hidden != rows.shape[1] or not bundles.is_contiguous() or bundles.dtype != x.dtype:
        raise ValueError(
            f"bundles: found {tuple(bundles.shape)} {bundles.dtype}, strides {bundles.stride()};"
            f" needs [neurons, 3, {rows.shape[1]}] {x.dtype}, contiguous"
        )
    if activation not in ACTIVATIONS or active.dtype != torch.int32:
        raise ValueError(f"activation, active: found {activation!r}, {active.dtype}; needs {ACTIVATIONS}, torch.int32")
    shape = Shape(len(rows), hidden, neurons, len(active), 0, activation)
    if not shape.m or not shape.active:
        return torch.zeros_like(x)
    chosen = variants(shape)[0] if variant is None else variant
    tiles = triton.cdiv(shape.active, chosen.tile("BLOCK_J"))
    parts = torch.empty(tiles, *rows.shape, dtype=torch.float32, device=x.device)
    bundled_ffn_kernel[(tiles, triton.cdiv(shape.m, chosen.tile("BLOCK_M")))](
        *(rows, bundles, active, parts, shape.m, shape.active),
        **constexprs(shape, chosen),
        num_warps=chosen.num_warps,
        num_stages=chosen.num_stages,
    )
    out = torch.empty_like(rows)
    sum_parts_kernel[(triton.cdiv(out.numel(), SUM_BLOCK),)](parts, out, out.numel(), tiles, BLOCK=SUM_BLOCK)
    return out.view(x.shape)


@torch.library.custom_op("planned::bundled_ffn", mutates_args=())
def bundled_ffn_op(x: Tensor, bundles: Tensor, active: Tensor, activation: str) -> Tensor:
    """`bundled_ffn` as an operator that torch.compile and torch.export trace."""
    return bundled_ffn(x, bundles, active, activation)


@bundled_ffn_op.register_fake
def _(x: Tensor, bundles: Tensor, active: Tensor, activation: str) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def constexprs(shape: Shape, variant: Variant) -> dict[str, object]:
    """What the kernel is specialised by."""
    return {"HIDDEN": shape.hidden, "ACTIVATION": shape.activation, **dict(variant.tiles)}


# --- the search space, and what is compiled -----------------------------------------------------


def variants(shape: Shape) -> tuple[Variant, ...]:
    """Neurons of a program, and inputs of a step: more neurons write fewer parts and start fewer programs."""
    block_m = min(64, max(16, triton.next_power_of_2(shape.m)))
    tried = ((32, 128, 4, 3), (16, 128, 4, 3), (16, 256, 4, 2), (64, 64, 4, 3), (32, 64, 2, 4), (64, 128, 8, 3))
    return tuple(Variant((("BLOCK_M", block_m), ("BLOCK_J", j), ("BLOCK_K", k)), w, s) for j, k, w, s in tried)


def launches(shape: Shape, variant: Variant, dtype: torch.dtype = torch.float16) -> tuple[Launch, ...]:
    """The network by parts, and their sum."""
    listed, outputs = shape.active + shape.padding, shape.m * shape.hidden
    tiles = triton.cdiv(listed, variant.tile("BLOCK_J"))
    fixed = constexprs(shape, variant)
    pointers = {"x": TYPES[dtype], "bundles": TYPES[dtype], "active": "*i32", "parts": "*fp32"}
    network = Launch(
        kernel=bundled_ffn_kernel,
        signature={**pointers, "m": "i32", "count": "i32", **dict.fromkeys(fixed, "constexpr")},
        constexprs=fixed,
        divisible=tuple(pointers),
        programs=tiles * triton.cdiv(shape.m, variant.tile("BLOCK_M")),
        bytes_read=(3 * shape.active * shape.hidden + outputs) * dtype.itemsize + listed * 4,
        bytes_written=tiles * outputs * 4,
        flop=6 * shape.active * outputs,
    )
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
        bytes_read=tiles * outputs * 4,
        bytes_written=outputs * dtype.itemsize,
        flop=tiles * outputs,
    )
    return network, total


# --- checking it --------------------------------------------------------------------------------


def reference(x: Tensor, bundles: Tensor, active: Tensor, activation: str = "relu") -> Tensor:
    """The same in plain torch and float64."""
    gate, up, down = bundles[active[active >= 0].long()].double().unbind(1)
    x = x.double()
    inner = x @ gate.T
    if activation == "relu":
        inner = inner.relu()
    elif activation == "silu":
        inner = functional.silu(inner)
    else:
        inner = functional.gelu(inner, approximate="tanh")
    return (inner * (x @ up.T)) @ down


def hostile() -> tuple[Shape, ...]:
    """One row and one neuron; lists that fill no tile, with places left; widths no tile divides; every activation."""
    return (
        Shape(m=1, hidden=576, neurons=100, active=37),
        Shape(m=1, hidden=72, neurons=5, active=1, padding=6),
        Shape(m=3, hidden=200, neurons=90, active=90, activation="silu"),
        Shape(m=17, hidden=96, neurons=64, active=20, padding=70, activation="gelu_tanh"),
        Shape(m=70, hidden=136, neurons=40, active=33, activation="silu"),
        Shape(m=2, hidden=64, neurons=8, active=0, padding=3),
    )


def check(shape: Shape, variant: Variant, dtype: torch.dtype, seed: int) -> tuple[Check, ...]:
    """The network on random neurons, padding among them, against the reference."""
    made = torch.Generator().manual_seed(seed)
    x = torch.randn(shape.m, shape.hidden, generator=made).to(dtype)
    bundles = (torch.randn(shape.neurons, 3, shape.hidden, generator=made) * shape.hidden**-0.5).to(dtype)
    some = torch.randperm(shape.neurons, generator=made)[: shape.active]
    listed = torch.cat([some, torch.full((shape.padding,), -1)])
    active = listed[torch.randperm(len(listed), generator=made)].int()
    got = bundled_ffn(x, bundles, active, shape.activation, variant)
    return (Check(got, reference(x, bundles, active, shape.activation)),)
