"""Attention of one new token per sequence over ragged, coded caches.

Every KV head of every sequence has slots of its own: all tokens, protected sinks and a ring, a kept set, or selected
pages; to attention each is so many filled slots in some order, since positions are in the keys already. Programs take
equal shares of all slots (`ragged`), the query heads of a group share what is loaded, codes are used as they are in
their rotated space (`rotated`), and pairs that programs share are merged by their log-sum-exp in a second kernel
(Flash-Decoding, https://crfm.stanford.edu/2023/10/12/flashdecoding.html).
"""

from dataclasses import dataclass
from itertools import accumulate

import torch
import triton
from torch import Tensor

from . import ragged
from .contract import Check, Launch, Variant
from .decode_tiles import decode_kernel, merge_kernel
from .ragged import FIELDS, GRAIN, Schedule
from .rotated import Stored, empty, hostile_norms, row_bytes, strides_of

MERGE_TILE = 16


@dataclass(frozen=True, slots=True)
class Shape:
    """One launch: the KV heads of a layer that are stored at the same bits, in all sequences.

    sinks, slots      filled slots of each (sequence, head) pair, sequence by sequence
    heads             KV heads of a sequence
    group             query heads of a KV head
    page              slots of a page, 0 where each pair's slots are one run
    multiprocessors   of the target (108: A100)
    """

    head_dim: int
    group: int
    k_bits: int
    v_bits: int
    heads: int
    sinks: tuple[int, ...]
    slots: tuple[int, ...]
    page: int = 0
    multiprocessors: int = 108

    @property
    def slot_bytes(self) -> int:
        """Bytes of a slot, key and value."""
        return row_bytes(self.k_bits, self.head_dim) + row_bytes(self.v_bits, self.head_dim)

    @property
    def sink_bytes(self) -> int:
        """Bytes of a protected slot, key and value."""
        return 2 * self.head_dim * sum(2 if bits == 32 else 1 for bits in (self.k_bits, self.v_bits))

    @property
    def sink_weight(self) -> int:
        """Slots that a protected slot weighs as much as; 0 where there are none."""
        return ragged.sink_weight(self.sink_bytes, self.slot_bytes) if any(self.sinks) else 0

    @property
    def grains(self) -> int:
        """Grains of all pairs."""
        found = ragged.grains(torch.tensor(self.sinks), torch.tensor(self.slots), self.sink_weight)
        return int(found.sum())

    def programs(self, variant: Variant) -> int:
        """Programs that share the slots."""
        resident = self.multiprocessors * variant.tile("RESIDENT")
        each = ragged.partial_slots(self.group, self.head_dim, self.slot_bytes)
        return ragged.program_count(self.grains, len(self.slots), resident, variant.tile("LEAST_SLOTS"), each)


def variants(shape: Shape) -> tuple[Variant, ...]:
    """Slots of a tile, warps and stages make the kernel; how many programs share the work does not change it."""
    shares = ((2, 512), (1, 1024), (4, 256), (2, 64))
    kernels = ((64, 4, 2), (32, 4, 2), (128, 4, 2), (64, 4, 3), (32, 2, 2), (128, 8, 2), (32, 8, 2))
    return tuple(
        Variant((("BLOCK_N", block), ("RESIDENT", resident), ("LEAST_SLOTS", least)), warps, stages)
        for resident, least in shares
        for block, warps, stages in kernels
    )


DEFAULT = Variant((("BLOCK_N", 64), ("RESIDENT", 2), ("LEAST_SLOTS", 512)), 4, 2)


def constexprs(
    bits: tuple[int, int], strides: tuple[int, ...], sink_weight: int, page: int, group: int, dim: int, variant: Variant
) -> tuple[dict[str, int], dict[str, int]]:
    """What the kernel, and the merge, are specialised for."""
    block_d = triton.next_power_of_2(dim)
    names = ("K_STRIDE", "K_HIGH_STRIDE", "V_STRIDE", "V_HIGH_STRIDE")
    decode = {
        "K_BITS": bits[0],
        "V_BITS": bits[1],
        **dict(zip(names, strides, strict=True)),
        "SINK_WEIGHT": sink_weight,
        "PAGE": page,
        "GROUP": group,
        "DIM": dim,
        "BLOCK_M": max(16, triton.next_power_of_2(group)),
        "BLOCK_N": variant.tile("BLOCK_N"),
        "BLOCK_D": block_d,
    }
    merge = {"V_BITS": bits[1], "GROUP": group, "DIM": dim, "BLOCK_D": block_d, "BLOCK_S": MERGE_TILE}
    return decode, merge


def decode_attention(
    q: Tensor,
    k: Stored,
    v: Stored,
    work: Schedule,
    scale: float,
    sink_weight: int,
    table: Tensor | None = None,
    page: int = 0,
    variant: Variant | None = None,
) -> Tensor:
    """Outputs [queries, group, head_dim] of queries of that shape, a query for every pair of the schedule.

    sink_weight   what the schedule was made with; 0 where no pair has protected slots
    table         int32, the pages of all pairs, where `page` slots make one
    """
    k.check_keys()
    chosen = DEFAULT if variant is None else variant
    _, group, dim = q.shape
    out = torch.empty_like(q)
    partial = torch.empty(2 * work.programs, group, dim, dtype=torch.float32, device=q.device)
    stats = torch.empty(2 * work.programs, group, 2, dtype=torch.float32, device=q.device)
    decode, merge = constexprs((k.bits, v.bits), (*k.strides, *v.strides), sink_weight, page, group, dim, chosen)
    v_low, v_high, v_norms, v_sinks, _, v_scale = v.parts()
    pages = work.records if table is None else table
    decode_kernel[(work.programs,)](
        *(q.contiguous(), *k.parts(), v_low, v_high, v_norms, v_sinks, v_scale, pages, work.records, work.starts),
        *(out, partial, stats, scale),
        **decode,
        num_warps=chosen.num_warps,
        num_stages=chosen.num_stages,
    )
    if work.programs > 1:
        merge_kernel[(len(work.records), group)](
            *(v_scale, work.records, work.starts, out, partial, stats), **merge, num_warps=1, num_stages=1
        )
    return out


def reference(
    q: Tensor, k: Stored, v: Stored, work: Schedule, scale: float, table: Tensor | None = None, page: int = 0
) -> Tensor:
    """The same in plain torch and float64: each pair alone, over what its slots stand for."""
    out = torch.zeros(q.shape, dtype=torch.float64, device=q.device)
    for _, _, sinks, slots, row, sink_row, query, head in work.records.tolist():
        slot = torch.arange(slots, device=q.device)
        rows = row + slot if table is None else table[row + slot // page].long() * page + slot % page
        keys = torch.cat([k.sinks[sink_row : sink_row + sinks].double(), k.vectors(rows, head)])
        values = torch.cat([v.sinks[sink_row : sink_row + sinks].double(), v.vectors(rows, head)])
        if len(keys):
            out[query] = (q[query].double() @ keys.T * scale).softmax(-1) @ values
    return out


# --- for the compiler, the search and the checks ------------------------------------------------


def launches(shape: Shape, variant: Variant) -> tuple[Launch, ...]:
    """The shares, and the merge where there is more than one."""
    programs, dim, pairs = shape.programs(variant), shape.head_dim, len(shape.slots)
    bits, strides = (shape.k_bits, shape.v_bits), (*strides_of(shape.k_bits, dim), *strides_of(shape.v_bits, dim))
    decode, merge = constexprs(bits, strides, shape.sink_weight, shape.page, shape.group, dim, variant)
    types = {"q": "*fp16", "k_low": _type(shape.k_bits), "k_high": "*u8", "k_norms": "*fp16"}
    types |= {"k_sinks": _float(shape.k_bits), "k_mean": "*fp16", "k_scale": "*fp16"}
    types |= {"v_low": _type(shape.v_bits), "v_high": "*u8", "v_norms": "*fp16"}
    types |= {"v_sinks": _float(shape.v_bits), "v_scale": "*fp16", "table": "*i32", "records": "*i32"}
    types |= {"starts": "*i32", "out": "*fp16", "partial": "*fp32", "stats": "*fp32"}
    split = split_parts(shape, programs)
    part_bytes = split * shape.group * (dim + 2) * 4
    query_bytes = pairs * shape.group * dim * 2
    decoding = Launch(
        decode_kernel,
        {**types, "scale": "fp32"} | dict.fromkeys(decode, "constexpr"),
        dict(decode),
        tuple(types),
        programs,
        cache_bytes(shape) + query_bytes + 4 * (pairs * FIELDS + 2 * programs + 2),
        query_bytes + part_bytes,
        4 * (sum(shape.slots) + sum(shape.sinks)) * shape.group * dim,
    )
    if programs == 1:
        return (decoding,)
    names = ("v_scale", "records", "starts", "out", "partial", "stats")
    merging = Launch(
        merge_kernel,
        {name: types[name] for name in names} | dict.fromkeys(merge, "constexpr"),
        dict(merge),
        names,
        pairs * shape.group,
        part_bytes + pairs * FIELDS * 4,
        0 if split == 0 else query_bytes,
        2 * split * shape.group * dim,
    )
    return decoding, merging


def cache_bytes(shape: Shape) -> int:
    """Bytes that the plan says must be read, in sectors of 32: filled slots, protected ones, static factors, pages."""
    read = 0
    for sinks, slots in zip(shape.sinks, shape.slots, strict=True):
        for bits in (shape.k_bits, shape.v_bits):
            widths = (bits,) if bits != 3 else (2, 1)
            runs = [slots * shape.head_dim * width // 8 for width in widths] + [slots * 2 * (bits < 16)]
            runs.append(sinks * shape.head_dim * (4 if bits == 32 else 2))
            read += sum(-(-run // 32) * 32 for run in runs)
        read += 0 if not shape.page else -(-(-(-slots // shape.page) * 4) // 32) * 32
    statics = (shape.k_bits < 16) * (1 + (shape.sink_weight > 0)) + (shape.v_bits < 16)
    return read + statics * shape.heads * shape.head_dim * 2


def split_parts(shape: Shape, programs: int) -> int:
    """Partial results that a number of programs leaves: one for each segment of a pair that several share."""
    of = ragged.grains(torch.tensor(shape.sinks), torch.tensor(shape.slots), shape.sink_weight).tolist()
    ends = list(accumulate(of))
    share = -(-ends[-1] // programs)
    parts = 0
    for end, own in zip(ends, of, strict=True):
        segments = (end - 1) // share - (end - own) // share + 1
        parts += segments if segments > 1 else 0
    return parts


def _type(bits: int) -> str:
    return _float(bits) if bits >= 16 else "*u8"


def _float(bits: int) -> str:
    return "*fp32" if bits == 32 else "*fp16"


def hostile() -> tuple[Shape, ...]:
    """One slot, empty pairs and pages, rings at and past their wrap, shares that see nothing, groups and heads of
    every size, sequences of different lengths; every width of codes."""
    ragged_slots = (1, 0, 130, 17, 64, 65)
    few = {"heads": 2, "sinks": (4, 0, 16, 4, 0, 16), "slots": ragged_slots}
    return (
        Shape(64, 3, 4, 4, **few, multiprocessors=4),
        Shape(80, 1, 3, 2, **few, multiprocessors=3),
        Shape(96, 8, 8, 3, **few, page=16, multiprocessors=5),
        Shape(128, 4, 16, 16, 1, (0,), (1,)),
        Shape(128, 7, 2, 8, 1, (64,), (1,), multiprocessors=8),  # shares that hold the weight of sinks and no slot
        Shape(256, 2, 16, 4, 1, (0, 0), (127, 128), page=32, multiprocessors=2),
        Shape(64, 3, 32, 32, 1, (4, 4), (16, 0), multiprocessors=2),
        Shape(64, 1, 4, 4, 1, (0,), (0,)),
    )


def schedule(shape: Shape, programs: int) -> Schedule:
    """The shares of a shape; its pairs lie in the pool in another order than in the batch, with room between them."""
    pairs, pages = len(shape.slots), page_counts(shape)
    if shape.page:
        rows = [sum(pages[:i]) for i in range(pairs)]
    else:
        rooms = [(slots // GRAIN + 2) * GRAIN for slots in shape.slots]
        rows = [sum(rooms[i + 1 :]) for i in range(pairs)]
    sink_rows = [sum(shape.sinks[:i]) for i in range(pairs)]
    heads = [i % shape.heads for i in range(pairs)]
    columns = (torch.tensor(each) for each in (shape.sinks, shape.slots, rows, sink_rows, heads))
    return ragged.schedule(*columns, shape.sink_weight, programs)


def page_counts(shape: Shape) -> list[int]:
    """Pages of each pair."""
    return [-(-slots // shape.page) if shape.page else 0 for slots in shape.slots]


def inputs(shape: Shape, dtype: torch.dtype, seed: int) -> tuple[Tensor, Stored, Stored, Tensor | None]:
    """Queries, keys, values and page table of a shape; norms that are 0 and outliers among what is coded."""
    generator = torch.Generator().manual_seed(seed)
    pairs, dim, pages = len(shape.slots), shape.head_dim, sum(page_counts(shape))
    rows = (pages + 2) * shape.page if shape.page else sum(slots + 2 * GRAIN for slots in shape.slots)

    def random(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    def stored(bits: int, keys: bool) -> Stored:
        floats = torch.float32 if bits == 32 else dtype if bits == 16 else torch.float16
        low, high, norms = empty(bits, rows, dim, torch.device("cpu"), floats)
        sinks = random(max(1, sum(shape.sinks)), dim).to(floats)
        if bits >= 16:
            return Stored(bits, low.copy_(random(rows, dim)), None, None, sinks, None, None)
        for plane in (low, high):
            plane.copy_(torch.randint(0, 256, plane.shape, generator=generator, dtype=torch.uint8))
        norms.copy_(hostile_norms(bits, rows, generator))
        mean, scale = random(shape.heads, dim).half() if keys else None, (random(shape.heads, dim) * 0.3).exp().half()
        return Stored(bits, low, high if bits == 3 else None, norms, sinks, mean, scale)

    q = random(pairs, shape.group, dim).to(torch.float32 if shape.k_bits == 32 else dtype)
    table = torch.randperm(pages + 2, generator=generator)[:pages].int() if shape.page else None
    return q, stored(shape.k_bits, True), stored(shape.v_bits, False), table


def check(shape: Shape, variant: Variant, dtype: torch.dtype, seed: int) -> tuple[Check, ...]:
    """The outputs are those of the reference."""
    q, k, v, table = inputs(shape, dtype, seed)
    work = schedule(shape, shape.programs(variant))
    scale = shape.head_dim**-0.5
    got = decode_attention(q, k, v, work, scale, shape.sink_weight, table, shape.page, variant)
    return (Check(got, reference(q, k, v, work, scale, table, shape.page)),)
