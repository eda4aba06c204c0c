"""Attention of many new tokens over what is cached and over themselves, each KV head with a span of its own.

A head keeps its first `sinks` tokens as floats and the newest `slots` others in a ring, coded or not; a query sees the
sinks, and of the others those that are among the newest `slots` at its own position. So a prompt may be read in chunks
of any sizes. A program has a tile of queries, all query heads of a group side by side, and visits only the sinks and
the tiles between its first query's oldest key and its last query's own: nothing outside is loaded. Only tiles on the
two edges of the span are masked.

New tokens that are not sinks are read from `fresh` rows, coded as the ring is, for the ring may still hold tokens that
early queries of the chunk see and late ones have pushed out. They go into the ring afterwards, or before where it has
room for all of them; then `fresh` are rows of the ring. All is computed in the space of the codes (`rotated`), so
queries and sinks are turned before the kernel and outputs after it. A turned query is multiplied with codes in two
float16 parts, the second what rounding the first left: rounded alone it would be the largest error there is.

FlashAttention-2, https://arxiv.org/abs/2307.08691; windows with sinks: StreamingLLM, https://arxiv.org/abs/2309.17453.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import triton
from torch import Tensor

from .contract import Check, Launch, Variant
from .operators import store_of
from .prefill_tiles import FIELDS, prefill_kernel
from .rotated import Stored, hostile_norms, rotation, row_bytes

TYPES = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32"}


@dataclass(frozen=True)
class Shape:
    """One launch: the KV heads of a layer that are stored at the same bits, in all sequences.

    sinks, slots   of each KV head
    past, lengths  tokens that each sequence has seen, and new ones
    page           slots of a page, 0 where a ring is one run of rows
    """

    head_dim: int
    group: int
    k_bits: int
    v_bits: int
    sinks: tuple[int, ...]
    slots: tuple[int, ...]
    past: tuple[int, ...]
    lengths: tuple[int, ...]
    page: int = 0

    @property
    def tokens(self) -> int:
        """Places for new tokens of each sequence."""
        return max(self.lengths)


# --- running it ---------------------------------------------------------------------------------


def turned(x: Tensor, stored: Stored) -> Tensor:
    """Vectors [batch, heads, n, head_dim] in the space that `stored` keeps vectors of those heads in, in float32."""
    if not stored.coded or stored.scale is None:
        return x
    x = x.float() if stored.mean is None else x.float() - stored.mean[:, None].float()
    return (x * stored.scale[:, None].float()) @ rotation(x.shape[-1]).to(x.device, torch.float32)


def coded_type(dtype: torch.dtype) -> torch.dtype:
    """What is multiplied with codes: float16 holds their levels better than bfloat16."""
    return torch.float32 if dtype == torch.float32 else torch.float16


def sinks_of(stored: Stored, records: Tensor, most: int, dtype: torch.dtype) -> Tensor:
    """Protected vectors [batch, heads, most, head_dim] as the kernel reads them beside queries of that type.

    Past a head's own they are anything.
    """
    rows = records[..., 5, None].long() + torch.arange(most, device=records.device)
    held = stored.sinks[rows.clamp(max=len(stored.sinks) - 1)] if most else stored.sinks.new_empty(*rows.shape, 1)
    return turned(held, stored).to(coded_type(dtype) if stored.coded else stored.sinks.dtype).contiguous()


def prefill_attention(
    q: Tensor,
    k: Stored,
    v: Stored,
    records: Tensor,
    scale: float,
    most_sinks: int,
    table: Tensor | None = None,
    page: int = 0,
    variant: Variant | None = None,
) -> Tensor:
    """Outputs of that shape of queries [batch, heads, group, tokens, head_dim]; zeros where a row has no token.

    k, v        the sinks hold the new tokens that are sinks; slots hold none of the new tokens, or all in `fresh` rows
    records     [batch, heads, FIELDS] int32, `prefill_tiles` says of what
    most_sinks  the most sinks of a head
    table       int32: where `page` slots make a page, the pages of all rings; a ring's first row is then its place here
    """
    batch, heads, group, tokens, dim = q.shape
    if records.shape != (batch, heads, FIELDS) or records.dtype != torch.int32:
        raise ValueError(
            f"records: found {tuple(records.shape)} {records.dtype}, needs {(batch, heads, FIELDS)} torch.int32"
        )
    chosen = ways(dim)[0] if variant is None else variant
    turned_q = q
    if k.coded and k.scale is not None:
        turns = rotation(dim).to(q.device, torch.float32)
        turned_q = (q.float() / k.scale[:, None, None].float()) @ turns
    turned_q = turned_q if turned_q.stride(-1) == 1 else turned_q.contiguous()
    out = torch.empty(q.shape, dtype=torch.float32 if v.coded else q.dtype, device=q.device)
    k_low, k_high, k_norms, *_ = k.parts()
    v_low, v_high, v_norms, *_ = v.parts()
    prefill_kernel[(triton.cdiv(tokens * group, chosen.tile("BLOCK_M")), heads, batch)](
        *(turned_q, k_low, k_high, k_norms, sinks_of(k, records, most_sinks, q.dtype)),
        *(v_low, v_high, v_norms, sinks_of(v, records, most_sinks, q.dtype)),
        *(records if table is None else table, records.contiguous(), out, scale, tokens, *turned_q.stride()[:4]),
        **constexprs(k, v, (group, dim), q.dtype, most_sinks, page, chosen),
        num_warps=chosen.num_warps,
        num_stages=chosen.num_stages,
    )
    if v.coded and v.scale is not None:
        turns = rotation(dim).to(q.device, torch.float32)
        out = (out @ turns.T / v.scale[:, None, None].float()).to(q.dtype)
    return out


@torch.library.custom_op("planned::prefill_attention", mutates_args=())
def prefill_attention_op(
    q: Tensor,
    k_written: list[Tensor],
    v_written: list[Tensor],
    k_statics: list[Tensor],
    v_statics: list[Tensor],
    records: Tensor,
    table: Tensor | None,
    scale: float,
    k_bits: int,
    v_bits: int,
    most_sinks: int,
    page: int,
) -> Tensor:
    """`prefill_attention` as an operator that torch.compile and torch.export trace; stores are as in `operators`."""
    k, v = store_of(k_bits, k_written, k_statics), store_of(v_bits, v_written, v_statics)
    return prefill_attention(q, k, v, records, scale, most_sinks, table, page)


@prefill_attention_op.register_fake
def _(q: Tensor, *rest: object) -> Tensor:
    return q.new_empty(q.shape)


def constexprs(
    k: Stored, v: Stored, sizes: tuple[int, int], dtype: torch.dtype, most_sinks: int, page: int, variant: Variant
) -> dict[str, int]:
    """What the kernel is specialised by; sizes are query heads of a KV head, and head size; queries are of the type."""
    group, dim = sizes
    return {
        "EXACT": int(dtype == torch.float32),
        "MOST_SINKS": most_sinks,
        "K_BITS": k.bits,
        "V_BITS": v.bits,
        "K_STRIDE": k.low.stride(0),
        "K_HIGH_STRIDE": 0 if k.high is None else k.high.stride(0),
        "V_STRIDE": v.low.stride(0),
        "V_HIGH_STRIDE": 0 if v.high is None else v.high.stride(0),
        "PAGE": page,
        "GROUP": group,
        "DIM": dim,
        "BLOCK_M": variant.tile("BLOCK_M"),
        "BLOCK_N": variant.tile("BLOCK_N"),
        "BLOCK_D": triton.next_power_of_2(dim),
    }


# --- the search space, and what is compiled -----------------------------------------------------


def variants(shape: Shape) -> tuple[Variant, ...]:
    """Queries and keys of a tile."""
    return ways(shape.head_dim)


def ways(head_dim: int) -> tuple[Variant, ...]:
    """Larger heads take more registers and shared memory, so their tiles are smaller."""
    if head_dim > 128:
        tried = ((64, 64, 8, 2), (64, 32, 8, 2), (32, 32, 8, 2), (32, 32, 4, 2), (16, 32, 4, 2))
    elif head_dim > 64:
        tried = ((128, 64, 8, 2), (128, 32, 8, 3), (64, 64, 8, 2), (64, 32, 8, 2), (64, 32, 4, 3))
    else:
        tried = ((128, 64, 8, 2), (128, 32, 8, 3), (64, 64, 8, 2), (64, 64, 4, 2), (64, 32, 4, 3))
    return tuple(Variant((("BLOCK_M", m), ("BLOCK_N", n)), warps, stages) for m, n, warps, stages in tried)


def tiles_of(shape: Shape, block_m: int) -> Iterator[tuple[int, int]]:
    """For each tile of each head of each sequence: sinks and slots that one of its queries sees.

    >>> list(tiles_of(Shape(64, 1, 16, 16, sinks=(2,), slots=(4,), past=(8,), lengths=(3,)), block_m=2))
    [(2, 5), (2, 4)]
    """
    for past, length in zip(shape.past, shape.lengths, strict=True):
        for sinks, slots in zip(shape.sinks, shape.slots, strict=True):
            for place in range(0, length * shape.group, block_m):
                first = past + place // shape.group
                last = past + min((place + block_m - 1) // shape.group, length - 1)
                oldest = max(sinks, first - slots + 1)
                yield min(sinks, last + 1), max(0, last + 1 - oldest)


def pairs(shape: Shape) -> int:
    """Pairs of a query and a key that it sees, all query heads counted."""
    return shape.group * sum(
        min(sinks, now + 1) + min(slots, max(0, now + 1 - sinks))
        for past, length in zip(shape.past, shape.lengths, strict=True)
        for now in range(past, past + length)
        for sinks, slots in zip(shape.sinks, shape.slots, strict=True)
    )


def launches(shape: Shape, variant: Variant, dtype: torch.dtype = torch.float16) -> tuple[Launch, ...]:
    """The one kernel; `bytes_read` has a key once for each tile that sees it."""
    k, v = (example(bits, 1, 1, shape, dtype, None) for bits in (shape.k_bits, shape.v_bits))
    fixed = constexprs(k, v, (shape.group, shape.head_dim), dtype, max(shape.sinks), shape.page, variant)
    q_type = torch.float32 if k.coded else dtype
    pointers = {"q": TYPES[q_type]}
    for name, one in (("k", k), ("v", v)):
        low = "*u8" if one.coded else TYPES[dtype]
        pointers |= {f"{name}_low": low, f"{name}_high": low, f"{name}_norms": "*fp16" if one.coded else low}
        pointers[f"{name}_sinks"] = TYPES[one.sinks.dtype]
    pointers |= {"table": "*i32", "records": "*i32", "out": "*fp32" if v.coded else TYPES[dtype]}
    strides = ("q_batch", "q_head", "q_member", "q_token")
    heads, batch = len(shape.sinks), len(shape.past)
    seen = list(tiles_of(shape, variant.tile("BLOCK_M")))
    slot = sum(row_bytes(one.bits, shape.head_dim) if one.coded else shape.head_dim * dtype.itemsize for one in (k, v))
    sink = shape.head_dim * (k.sinks.itemsize + v.sinks.itemsize)
    queries = sum(shape.lengths) * heads * shape.group
    read = sum(sinks * sink + slots * slot for sinks, slots in seen) + queries * shape.head_dim * q_type.itemsize
    stored_queries = batch * shape.tokens * heads * shape.group
    launch = Launch(
        kernel=prefill_kernel,
        signature={
            **pointers,
            "scale": "fp32",
            "tokens": "i32",
            **dict.fromkeys(strides, "i32"),
            **dict.fromkeys(fixed, "constexpr"),
        },
        constexprs=dict(fixed),
        # Fresh tensors are, slices of them need not be: what the launcher makes itself.
        divisible=(*pointers, *(() if shape.head_dim % 16 else strides)),
        programs=triton.cdiv(shape.tokens * shape.group, variant.tile("BLOCK_M")) * heads * batch,
        bytes_read=read,
        bytes_written=stored_queries * shape.head_dim * (4 if v.coded else dtype.itemsize),
        flop=(6 if k.coded and dtype != torch.float32 else 4) * shape.head_dim * pairs(shape),
    )
    return (launch,)


# --- checking it --------------------------------------------------------------------------------


def reference(
    q: Tensor, k: Stored, v: Stored, records: Tensor, scale: float, table: Tensor | None = None, page: int = 0
) -> Tensor:
    """The same in plain torch and float64: each head alone, over what its slots stand for."""
    out = torch.zeros(q.shape, dtype=torch.float64, device=q.device)
    for sequence, of_heads in enumerate(records.tolist()):
        for head, (past, length, sinks, slots, ring, sink_row, fresh) in enumerate(of_heads):
            protected = torch.arange(min(sinks, past + length))
            position = torch.arange(max(sinks, past - slots), past + length)
            slot = (position - sinks) % slots
            held = ring + slot
            if table is not None:  # new tokens have no page yet
                held = table[(ring + slot // page).clamp(max=len(table) - 1)].long() * page + slot % page
            row = torch.where(position < past, held, fresh + position - past)
            keys, values = (
                torch.cat([one.sinks[sink_row + protected].double(), one.vectors(row, head)]) for one in (k, v)
            )
            now = past + torch.arange(length)[:, None]
            at = torch.cat([protected, position])
            seen = (at <= now) & ((at < sinks) | (at > now - slots))
            scores = q[sequence, head, :, :length].double() @ keys.T * scale
            out[sequence, head, :, :length] = scores.masked_fill(~seen, -torch.inf).softmax(-1) @ values
    return out


def hostile() -> tuple[Shape, ...]:
    """One token; rings before, at and past their wrap; chunks longer than a window; rows without tokens; odd sizes."""
    return (
        Shape(64, 3, 16, 16, sinks=(4, 4, 0), slots=(400, 8, 16), past=(0,), lengths=(70,)),
        Shape(64, 1, 16, 16, sinks=(4, 0), slots=(13, 64), past=(17, 16, 18), lengths=(1, 40, 0)),
        Shape(80, 2, 4, 4, sinks=(16, 4), slots=(200, 31), past=(3, 150), lengths=(40, 9)),
        Shape(96, 3, 3, 2, sinks=(4,), slots=(32,), past=(36,), lengths=(33,)),
        Shape(128, 4, 8, 4, sinks=(0, 4), slots=(300, 64), past=(100,), lengths=(65,)),
        Shape(256, 2, 16, 4, sinks=(4,), slots=(48,), past=(60,), lengths=(20,)),
        Shape(64, 4, 4, 16, sinks=(4, 4), slots=(128, 16), past=(50, 7), lengths=(12, 30), page=16),
        Shape(64, 2, 16, 16, sinks=(20,), slots=(1,), past=(0, 30), lengths=(25, 5)),
    )


def example(
    bits: int, rows: int, sink_rows: int, shape: Shape, dtype: torch.dtype, made: torch.Generator | None
) -> Stored:
    """Random storage: every code equally likely, norms that are 0 and outliers among them."""
    dim, heads, none = shape.head_dim, len(shape.sinks), None
    if bits >= 16:
        numbers, sinks = (torch.randn(n, dim, generator=made).to(dtype) for n in (rows, sink_rows))
        return Stored(bits, numbers, none, none, sinks, none, none)
    low = torch.randint(0, 256, (rows, dim * (bits - bits % 2) // 8), dtype=torch.uint8, generator=made)
    high = torch.randint(0, 256, (rows, dim // 8), dtype=torch.uint8, generator=made) if bits % 2 else none
    norms = hostile_norms(bits, rows, made)
    mean = torch.randn(heads, dim, generator=made)
    scale = 0.5 + torch.rand(heads, dim, generator=made)
    sinks = torch.randn(sink_rows, dim, generator=made).to(coded_type(dtype))
    return Stored(bits, low, high, norms, sinks, mean, scale)


def records_of(shape: Shape) -> tuple[Tensor, int, int]:
    """Records with rings one after the other and rows for new tokens after all; rows, and pages of rings, in all.

    A ring that has room for the new tokens takes them at once.
    """
    found, row = [], 0
    unit = max(1, shape.page)
    reach = max(past + length for past, length in zip(shape.past, shape.lengths, strict=True))
    held = [-(-min(slots, reach) // unit) * unit for slots in shape.slots]
    fresh = len(shape.past) * sum(held)
    for sequence, (past, length) in enumerate(zip(shape.past, shape.lengths, strict=True)):
        for head, (sinks, slots) in enumerate(zip(shape.sinks, shape.slots, strict=True)):
            place = sequence * len(shape.sinks) + head
            fits = past + length - sinks <= slots and not shape.page
            new = row + past - sinks if fits else fresh + place * shape.tokens
            found.append((past, length, sinks, slots, row // unit, place * max(shape.sinks), new))
            row += held[head]
    table = torch.tensor(found, dtype=torch.int32).view(len(shape.past), len(shape.sinks), FIELDS)
    return table, fresh + len(found) * shape.tokens, fresh // unit


def check(shape: Shape, variant: Variant, dtype: torch.dtype, seed: int) -> tuple[Check, ...]:
    """Attention over random storage, its pages in random order, against the reference."""
    made = torch.Generator().manual_seed(seed)
    records, rows, pages = records_of(shape)
    sink_rows = max(1, len(shape.past) * len(shape.sinks) * max(shape.sinks))
    k, v = (example(bits, rows, sink_rows, shape, dtype, made) for bits in (shape.k_bits, shape.v_bits))
    v = replace(v, mean=None)
    table = torch.randperm(pages, generator=made).int() if shape.page else None
    sizes = (len(shape.past), len(shape.sinks), shape.group, shape.tokens, shape.head_dim)
    q = torch.randn(sizes, generator=made).to(dtype)
    scale = shape.head_dim**-0.5
    got = prefill_attention(q, k, v, records, scale, max(shape.sinks), table, shape.page, variant)
    return (Check(got, reference(q, k, v, records, scale, table, shape.page)),)
