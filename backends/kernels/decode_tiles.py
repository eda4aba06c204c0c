"""The two kernels of decode attention: shares of slots with an online softmax, and the merge of what shares split."""

import triton
import triton.language as tl

from .numerics import dot, rounded
from .packing import load_codes
from .ragged import FIELDS as _FIELDS
from .ragged import GRAIN as _GRAIN
from .rotated import level, spread, turn

GRAIN = tl.constexpr(_GRAIN)
FIELDS = tl.constexpr(_FIELDS)
SINK_TILE = tl.constexpr(16)
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def load_floats(at, live, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Float rows [n, BLOCK_D] at pointers [n]."""
    d = tl.arange(0, BLOCK_D)
    return tl.load(at[:, None] + d[None, :], mask=live[:, None] & (d < DIM)[None, :], other=0.0)


@triton.jit
def load_slots(
    low,
    high,
    norms,
    row,
    live,
    BITS: tl.constexpr,
    STRIDE: tl.constexpr,
    HIGH_STRIDE: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Slots as numbers [n, BLOCK_D] in the space they are stored in, and their norms [n] (1 for floats)."""
    if BITS >= 16:
        numbers = load_floats(low + row * STRIDE, live, DIM, BLOCK_D)
        sizes = tl.where(live, 1.0, 0.0)
    else:
        numbers = level(load_codes(low + row * STRIDE, high + row * HIGH_STRIDE, live, BITS, DIM, BLOCK_D), BITS)
        sizes = tl.load(norms + row, mask=live, other=0.0).to(tl.float32) * (1.0 / spread(BITS))
    return numbers, sizes


@triton.jit
def slot_rows(table, row, slot, live, PAGE: tl.constexpr):
    """Rows of the pool that hold the slots of a pair: a run from `row`, or through its page table there."""
    if PAGE == 0:
        rows = row.to(tl.int64) + slot
    else:
        page = tl.load(table + row + slot // PAGE, mask=live, other=0)
        rows = page.to(tl.int64) * PAGE + slot % PAGE
    return rows


@triton.jit
def scored(x, rest, keys, SPLIT: tl.constexpr):
    """Products [m, n] of queries [m, d] with keys [n, d]. A query that was turned is no float16: with SPLIT, what its
    rounding left (`rest`) is multiplied as well."""
    scores = dot(x, tl.trans(keys), tl.zeros([x.shape[0], keys.shape[0]], tl.float32))
    if SPLIT:
        scores = dot(rest, tl.trans(keys), scores)
    return scores


@triton.jit
def weigh(scores, top, mass):
    """A tile's scores [m, n], in powers of two, in an online softmax: weights, what is left of earlier ones, sums."""
    higher = tl.maximum(top, tl.max(scores, 1))
    base = tl.where(higher == float("-inf"), 0.0, higher)  # nothing seen yet: -inf less -inf would be NaN
    p = tl.exp2(scores - base[:, None])
    keep = tl.exp2(top - base)
    return p, keep, higher, mass * keep + tl.sum(p, 1)


@triton.jit
def absorb(scores, values, norms, top, mass, acc, DOT: tl.constexpr):
    """One tile taken into an online softmax: scores [m, n] in powers of two, values [n, d] times norms [n]."""
    p, keep, top, mass = weigh(scores, top, mass)
    acc = dot(rounded(p * norms[None, :], DOT), values.to(DOT), acc * keep[:, None])
    return top, mass, acc


@triton.jit
def finished(acc, mass, v_scale, head, V_BITS: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Outputs [m, BLOCK_D] in the plain space; zeros where nothing was seen."""
    x = acc / tl.where(mass > 0, mass, 1.0)[:, None]
    if V_BITS < 16:
        d = tl.arange(0, BLOCK_D)
        x = turn(x, DIM) / tl.load(v_scale + head * DIM + d, mask=d < DIM, other=1.0).to(tl.float32)[None, :]
    return x


@triton.jit
def decode_kernel(
    q,
    k_low,
    k_high,
    k_norms,
    k_sinks,
    k_mean,
    k_scale,
    v_low,
    v_high,
    v_norms,
    v_sinks,
    v_scale,
    table,
    records,
    starts,
    out,
    partial,
    stats,
    scale,
    K_BITS: tl.constexpr,
    V_BITS: tl.constexpr,
    K_STRIDE: tl.constexpr,
    K_HIGH_STRIDE: tl.constexpr,
    V_STRIDE: tl.constexpr,
    V_HIGH_STRIDE: tl.constexpr,
    SINK_WEIGHT: tl.constexpr,
    PAGE: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program's share. SINK_WEIGHT is 0 where no pair has protected slots, PAGE 0 where slots are in runs.

    q, out    [queries, GROUP, DIM]
    partial   [2 * programs, GROUP, DIM] float32: not yet divided by their mass, in the space of the values
    stats     [2 * programs, GROUP, 2] float32: highest score, mass
    """
    program = tl.program_id(0)
    start = tl.load(starts + 2 * program)
    pair = tl.load(starts + 2 * program + 1)
    stop = tl.load(starts + 2 * program + 2)
    EXACT: tl.constexpr = q.dtype.element_ty == tl.float32
    CODED: tl.constexpr = tl.float32 if EXACT else tl.float16
    K_DOT: tl.constexpr = CODED if (EXACT or K_BITS < 16) else k_low.dtype.element_ty
    V_DOT: tl.constexpr = CODED if (EXACT or V_BITS < 16) else v_low.dtype.element_ty
    SPLIT: tl.constexpr = K_BITS < 16 and not EXACT
    m, n, d = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    inside = (m < GROUP)[:, None] & (d < DIM)[None, :]
    by = scale * LOG2_E
    at = start
    while at < stop:
        record = records + pair * FIELDS
        begin, end = tl.load(record), tl.load(record + 1)
        sinks, slots = tl.load(record + 2), tl.load(record + 3)
        row, sink_row = tl.load(record + 4), tl.load(record + 5)
        query, head = tl.load(record + 6), tl.load(record + 7)
        until = tl.minimum(end, stop)

        place = query.to(tl.int64) * GROUP * DIM + m[:, None] * DIM + d[None, :]
        x = tl.load(q + place, mask=inside, other=0.0)
        turned, shift = x, tl.zeros([BLOCK_M], tl.float32)
        if K_BITS < 16:
            plain = x.to(tl.float32) * by
            factor = tl.load(k_scale + head * DIM + d, mask=d < DIM, other=1.0).to(tl.float32)
            turned = turn(plain / factor[None, :], DIM)
            if SINK_WEIGHT > 0:  # without sinks it is the same for all scores of a query
                mean = tl.load(k_mean + head * DIM + d, mask=d < DIM, other=0.0).to(tl.float32)
                shift = tl.sum(plain * mean[None, :], 1)
        rest = (turned.to(tl.float32) - turned.to(K_DOT).to(tl.float32)).to(K_DOT)
        turned = turned.to(K_DOT)
        top = tl.full([BLOCK_M], float("-inf"), tl.float32)
        mass = tl.zeros([BLOCK_M], tl.float32)
        acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)

        weight = 0
        if SINK_WEIGHT > 0:
            weight = (sinks * SINK_WEIGHT + GRAIN - 1) // GRAIN
            s = tl.arange(0, SINK_TILE)
            for first in range(0, tl.where(at == begin, sinks, 0), SINK_TILE):
                live = first + s < sinks
                there = (sink_row + first + s).to(tl.int64) * DIM
                key = load_floats(k_sinks + there, live, DIM, BLOCK_D)
                value = load_floats(v_sinks + there, live, DIM, BLOCK_D)
                S_DOT: tl.constexpr = tl.float32 if EXACT else k_sinks.dtype.element_ty
                scores = dot(x.to(S_DOT), tl.trans(key.to(S_DOT)), tl.zeros([BLOCK_M, SINK_TILE], tl.float32))
                scores = tl.where(live[None, :], scores * by, float("-inf"))
                if V_BITS < 16:
                    factor = tl.load(v_scale + head * DIM + d, mask=d < DIM, other=1.0).to(tl.float32)
                    value = turn(value.to(tl.float32) * factor[None, :], DIM)
                one = tl.where(live, 1.0, 0.0)
                top, mass, acc = absorb(scores, value, one, top, mass, acc, V_DOT)

        last = tl.minimum((until - begin - weight) * GRAIN, slots)
        for first in range(tl.maximum(at - begin - weight, 0) * GRAIN, last, BLOCK_N):
            slot = first + n
            live = slot < last
            there = slot_rows(table, row, slot, live, PAGE)
            key, k_norm = load_slots(k_low, k_high, k_norms, there, live, K_BITS, K_STRIDE, K_HIGH_STRIDE, DIM, BLOCK_D)
            scores = scored(turned, rest, key.to(K_DOT), SPLIT)
            scores = scores * (by if K_BITS >= 16 else k_norm[None, :]) + shift[:, None]
            scores = tl.where(live[None, :], scores, float("-inf"))
            value, v_norm = load_slots(
                v_low, v_high, v_norms, there, live, V_BITS, V_STRIDE, V_HIGH_STRIDE, DIM, BLOCK_D
            )
            top, mass, acc = absorb(scores, value, v_norm, top, mass, acc, V_DOT)

        if (at == begin) & (until == end):
            made = finished(acc, mass, v_scale, head, V_BITS, DIM, BLOCK_D)
            tl.store(out + place, rounded(made, out.dtype.element_ty), mask=inside)
        else:
            part = 2 * program + tl.where(at == start, 0, 1)
            left = part * GROUP + m
            tl.store(partial + left[:, None] * DIM + d[None, :], acc, mask=inside)
            tl.store(stats + 2 * left, top, mask=m < GROUP)
            tl.store(stats + 2 * left + 1, mass, mask=m < GROUP)
        at = until
        pair += 1


@triton.jit
def merge_kernel(
    v_scale,
    records,
    starts,
    out,
    partial,
    stats,
    V_BITS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """The output of one query head of one pair, where several programs shared the pair; else nothing."""
    record = records + tl.program_id(0) * FIELDS
    member = tl.program_id(1)
    begin, end = tl.load(record), tl.load(record + 1)
    share = tl.load(starts + 2)
    first, last = begin // share, (end - 1) // share
    if first == last:
        return
    query, head = tl.load(record + 6), tl.load(record + 7)
    d, s = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_S)
    top = tl.full([1], float("-inf"), tl.float32)
    mass = tl.zeros([1], tl.float32)
    acc = tl.zeros([BLOCK_D], tl.float32)
    for some in range(first, last + 1, BLOCK_S):
        program = some + s
        live = program <= last
        # A pair that began inside its first program's share is that program's last segment; elsewhere it is the first.
        part = 2 * program + tl.where((program == first) & (begin > first * share), 1, 0)
        there = part * GROUP + member
        tops = tl.load(stats + 2 * there, mask=live, other=float("-inf"))
        masses = tl.load(stats + 2 * there + 1, mask=live, other=0.0)
        higher = tl.maximum(top, tl.max(tops, 0))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        keep, weight = tl.exp2(top - base), tl.exp2(tops - tl.max(base, 0))
        rows = tl.load(partial + there[:, None] * DIM + d[None, :], mask=live[:, None] & (d < DIM)[None, :], other=0.0)
        acc = acc * keep + tl.sum(rows * weight[:, None], 0)
        mass = mass * keep + tl.sum(masses * weight, 0)
        top = higher
    x = finished(acc[None, :], mass, v_scale, head, V_BITS, DIM, BLOCK_D)
    place = (query.to(tl.int64) * GROUP + member) * DIM + d
    tl.store(out + place[None, :], rounded(x, out.dtype.element_ty), mask=(d < DIM)[None, :])
