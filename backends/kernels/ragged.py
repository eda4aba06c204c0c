"""Equal shares of ragged caches: which slots of which (sequence, head) pairs each program of a grid reads.

All slots of all pairs are laid end to end in grains of 16 (so that every part of a slot, one float16 norm included,
begins a 32-byte sector), and each program takes the same number of grains, wherever pairs begin and end: stream-K, or
LeanAttention (https://arxiv.org/abs/2405.10480). Float sinks beside codes weigh as many grains as they have bytes and
are read whole by the program that has a pair's first grain.

A pair is at most two partial segments of a program, its first and its last, so partial results need two places each.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

GRAIN = 16
PARTIAL_SHARE = 0.04
"""Of the bytes of a cache: what partial results of split pairs may take. A merge reads them after all else."""

FIELDS = 8
"""Fields of a record: first grain, end grain, sinks, slots, row, sink row, query, head."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """The work of one launch.

    records   [pairs, FIELDS] int32
    starts    [programs + 1, 2] int32: first grain, and the pair it is of
    """

    records: Tensor
    starts: Tensor

    @property
    def programs(self) -> int:
        return len(self.starts) - 1


def sink_weight(float_bytes: int, slot_bytes: int) -> int:
    """How many slots one protected slot weighs.

    >>> sink_weight(256, 256), sink_weight(256, 52)
    (1, 5)
    """
    return -(-float_bytes // slot_bytes)


def grains(sinks: Tensor, lengths: Tensor, weight: int) -> Tensor:
    """Grains of each pair; an empty one has one, for its program writes that there is nothing."""
    of = (sinks * weight + GRAIN - 1) // GRAIN + (lengths + GRAIN - 1) // GRAIN
    return of.clamp(min=1)


def partial_slots(group: int, head_dim: int, slot_bytes: int) -> int:
    """How many slots must be read for each partial result, so that results are a small share of what is read.

    >>> partial_slots(group=3, head_dim=64, slot_bytes=256), partial_slots(3, 64, 60)
    (78, 330)
    """
    return math.ceil(group * (head_dim + 2) * 4 / (PARTIAL_SHARE * slot_bytes))


def program_count(total_grains: int, pairs: int, resident: int, least_slots: int, slots_each: int) -> int:
    """How many programs share so many grains: all that run at once, unless one would get fewer slots than pay, or
    partial results would be more than one for `slots_each` slots.

    As many as have equally much: none is started for what the rounding leaves over. Programs that end within a pair
    leave two partial results each, or one each and one for every pair.

    >>> program_count(1000, 1, 100, 64, 16), program_count(101, 1, 100, 16, 16), program_count(3, 1, 100, 64, 16)
    (100, 51, 1)
    >>> program_count(128, 1, 100, 64, 330), program_count(128, 8, 100, 64, 330)
    (6, 4)
    """
    slots = total_grains * GRAIN
    partials = slots // slots_each
    most = max(partials // 2 + 1, partials - pairs + 1)
    programs = max(1, min(resident, slots // least_slots, most))
    return -(-total_grains // -(-total_grains // programs))


def schedule(
    sinks: Tensor, lengths: Tensor, rows: Tensor, sink_rows: Tensor, heads: Tensor, weight: int, programs: int
) -> Schedule:
    """The shares of `programs` programs, without a word to the host where the tensors are on a device.

    sinks, lengths    filled slots of each pair, in the order of the queries
    rows, sink_rows   where a pair's slots begin: in the pool, or its page table where there are pages
    heads             which row of the static factors a pair has
    """
    ends = grains(sinks, lengths, weight).cumsum(0)
    begins = torch.cat([torch.zeros_like(ends[:1]), ends[:-1]])
    queries = torch.arange(len(ends), device=ends.device)
    records = torch.stack([begins, ends, sinks, lengths, rows, sink_rows, queries, heads], 1).int()
    total = ends[-1]
    each = (total + programs - 1) // programs
    first = torch.minimum(torch.arange(programs + 1, device=ends.device) * each, total)
    pair = torch.searchsorted(ends, first, right=True).clamp(max=len(ends) - 1)
    return Schedule(records, torch.stack([first, pair], 1).int())


def balance(schedule: Schedule) -> float:
    """Largest over mean number of grains of a program."""
    shares = schedule.starts[:, 0].diff().double()
    return float(shares.max() / shares.mean())
