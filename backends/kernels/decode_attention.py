"""Attention of one new token per sequence over ragged, coded caches.

Every KV head of every sequence has slots of its own: all tokens, protected sinks and a ring, a kept set, or selected
pages; to attention each is so many filled slots in some order, since positions are in the keys already. Programs take
equal shares of all slots (`ragged`), the query heads of a group share what is loaded, codes are used as they are in
their rotated space (`rotated`), and pairs that programs share are merged by their log-sum-exp in a second kernel
(Flash-Decoding, https://crfm.stanford.edu/2023/10/12/flashdecoding.html).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
import triton
from torch import Tensor

from . import ragged
from .contract import Check, Launch, Variant
from .decode_tiles import decode_kernel, merge_kernel
from .ragged import FIELDS, GRAIN, Schedule
from .rotated import Stored, empty, row_bytes

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
        return ragged.program_count(self.grains, resident, variant.tile("LEAST_SLOTS"))


def variants(shape: Shape) -> tuple[Variant, ...]:
    """Slots of a tile, warps and stages make the kernel; how many programs share the work does not change it."""
    made = []
    for resident, least in ((2, 256), (1, 256), (4, 256), (2, 1024)):
        for block, warps, stages in ((64, 4, 2), (32, 4, 2), (128, 4, 2), (64, 4, 3), (64, 2, 2), (128, 8, 2)):
            made.append(Variant((("BLOCK_N", block), ("RESIDENT", resident), ("LEAST_SLOTS", least)), warps, stages))
    return tuple(made)


def constexprs(
    q: Tensor, k: Stored, v: Stored, sink_weight: int, page: int, variant: Variant
) -> tuple[dict[str, int], dict[str, int]]:
    """What the kernel, and the merge, are specialised for."""
    dim = q.shape[-1]
    block_d = triton.next_power_of_2(dim)
    decode = {
        "K_BITS": k.bits,
        "V_BITS": v.bits,
        "K_STRIDE": k.low.stride(0),
        "K_HIGH_STRIDE": 0 if k.high is None else k.high.stride(0),
        "V_STRIDE": v.low.stride(0),
        "V_HIGH_STRIDE": 0 if v.high is None else v.high.stride(0),
        "SINK_WEIGHT": sink_weight,
        "PAGE": page,
        "GROUP": q.shape[-2],
        "DIM": dim,
        "BLOCK_M": max(16, triton.next_power_of_2(q.shape[-2])),
        "BLOCK_N": variant.tile("BLOCK_N"),
        "BLOCK_D": block_d,
    }
    merge = {"V_BITS": v.bits, "GROUP": q.shape[-2], "DIM": dim, "BLOCK_D": block_d, "BLOCK_S": MERGE_TILE}
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
    chosen = DEFAULT if variant is None else variant
    queries, group, dim = q.shape
    out = torch.empty_like(q)
    partial = torch.empty(2 * work.programs, group, dim, dtype=torch.float32, device=q.device)
    stats = torch.empty(2 * work.programs, group, 2, dtype=torch.float32, device=q.device)
    decode, merge = constexprs(q, k, v, sink_weight, page, chosen)
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


DEFAULT = Variant((("BLOCK_N", 64), ("RESIDENT", 2), ("LEAST_SLOTS", 256)), 4, 2)


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
