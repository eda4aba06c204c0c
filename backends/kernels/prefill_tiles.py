"""The kernel of prefill attention: a tile of queries over the sinks and the span it sees, with an online softmax."""

import triton
import triton.language as tl

from .decode_tiles import load_slots, scored, slot_rows, weigh
from .numerics import dot, rounded

FIELDS = 7
"""Fields of a record: past tokens, new tokens, sinks, slots, first row of the ring, of the sinks, of new tokens."""
RECORD = tl.constexpr(FIELDS)
SINK_TILE = tl.constexpr(16)
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def prefill_kernel(
    q,
    k_low,
    k_high,
    k_norms,
    k_sinks,
    v_low,
    v_high,
    v_norms,
    v_sinks,
    table,
    records,
    out,
    scale,
    tokens,
    q_batch,
    q_head,
    q_member,
    q_token,
    EXACT: tl.constexpr,
    MOST_SINKS: tl.constexpr,
    K_BITS: tl.constexpr,
    V_BITS: tl.constexpr,
    K_STRIDE: tl.constexpr,
    K_HIGH_STRIDE: tl.constexpr,
    V_STRIDE: tl.constexpr,
    V_HIGH_STRIDE: tl.constexpr,
    PAGE: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """A tile of queries of one KV head of one sequence. EXACT multiplies in float32, else coded keys in float16.

    q                 strides given; DIM is contiguous, in the space of the keys, float32 where they are coded
    k_sinks, v_sinks  [batch, heads, MOST_SINKS, DIM], in the space of the keys, of the values
    out               [batch, heads, GROUP, tokens, DIM], in the space of the values
    """
    # The last tiles see most: first come, first served, so the longest begin first.
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    head, sequence = tl.program_id(1), tl.program_id(2)
    pair = sequence * tl.num_programs(1) + head
    record = records + pair * RECORD
    past, length = tl.load(record), tl.load(record + 1)
    sinks, slots = tl.load(record + 2), tl.load(record + 3)
    ring, fresh = tl.load(record + 4), tl.load(record + 6)
    CODED: tl.constexpr = tl.float32 if EXACT else tl.float16
    K_DOT: tl.constexpr = CODED if (EXACT or K_BITS < 16) else k_low.dtype.element_ty
    V_DOT: tl.constexpr = CODED if (EXACT or V_BITS < 16) else v_low.dtype.element_ty
    SPLIT: tl.constexpr = K_BITS < 16 and not EXACT
    n, d = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    place = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    token, member = place // GROUP, place % GROUP
    live = token < length
    now = past + token

    at = q + sequence.to(tl.int64) * q_batch + head * q_head + member[:, None] * q_member
    x = tl.load(at + token[:, None].to(tl.int64) * q_token + d[None, :], live[:, None] & (d < DIM)[None, :], 0.0)
    rest = (x.to(tl.float32) - x.to(K_DOT).to(tl.float32)).to(K_DOT)
    x = x.to(K_DOT)
    by = scale * LOG2_E
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    mass = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)

    first_now = past + tile * BLOCK_M // GROUP
    last_now = past + tl.minimum((tile * BLOCK_M + BLOCK_M - 1) // GROUP, length - 1)
    end = tl.where(first_now < past + length, last_now + 1, 0)  # no keys for a tile of padding

    sink_rows = pair.to(tl.int64) * MOST_SINKS
    for start in range(0, tl.minimum(sinks, end), SINK_TILE):
        s = start + tl.arange(0, SINK_TILE)
        mask = (s < tl.minimum(sinks, end))[:, None] & (d < DIM)[None, :]
        key = tl.load(k_sinks + (sink_rows + s)[:, None] * DIM + d[None, :], mask, 0.0)
        scores = scored(x, rest, key.to(K_DOT), SPLIT) * by
        scores = tl.where((s < sinks)[None, :] & (s[None, :] <= now[:, None]), scores, float("-inf"))
        p, keep, top, mass = weigh(scores, top, mass)
        value = tl.load(v_sinks + (sink_rows + s)[:, None] * DIM + d[None, :], mask, 0.0)
        acc = dot(rounded(p, V_DOT), value.to(V_DOT), acc * keep[:, None])

    # Tiles before `inner` hold keys that the last query no longer sees, tiles from `outer` on keys that the first does
    # not see yet. Those between need no mask.
    begin = tl.maximum(sinks, first_now - slots + 1)
    tiles = tl.cdiv(tl.maximum(end - begin, 0), BLOCK_N)
    inner = tl.minimum(tl.cdiv(tl.maximum(last_now - slots + 1 - begin, 0), BLOCK_N), tiles)
    outer = tl.minimum(tl.maximum(tl.maximum(first_now + 1 - begin, 0) // BLOCK_N, inner), tiles)
    for i in range(inner, outer):
        position = begin + i * BLOCK_N + n
        inside = n < BLOCK_N
        row = row_of(position, inside, past, sinks, slots, ring, fresh, table, PAGE)
        key, norm = load_slots(k_low, k_high, k_norms, row, inside, K_BITS, K_STRIDE, K_HIGH_STRIDE, DIM, BLOCK_D)
        scores = scored(x, rest, key.to(K_DOT), SPLIT) * (norm * by)[None, :]
        p, keep, top, mass = weigh(scores, top, mass)
        value, norm = load_slots(v_low, v_high, v_norms, row, inside, V_BITS, V_STRIDE, V_HIGH_STRIDE, DIM, BLOCK_D)
        acc = dot(rounded(p * norm[None, :], V_DOT), value.to(V_DOT), acc * keep[:, None])
    for edge in range(0, inner + tiles - outer):
        position = begin + tl.where(edge < inner, edge, edge - inner + outer) * BLOCK_N + n
        inside = position < end
        row = row_of(position, inside, past, sinks, slots, ring, fresh, table, PAGE)
        key, norm = load_slots(k_low, k_high, k_norms, row, inside, K_BITS, K_STRIDE, K_HIGH_STRIDE, DIM, BLOCK_D)
        scores = scored(x, rest, key.to(K_DOT), SPLIT) * (norm * by)[None, :]
        seen = (position[None, :] <= now[:, None]) & (position[None, :] > now[:, None] - slots) & inside[None, :]
        p, keep, top, mass = weigh(tl.where(seen, scores, float("-inf")), top, mass)
        value, norm = load_slots(v_low, v_high, v_norms, row, inside, V_BITS, V_STRIDE, V_HIGH_STRIDE, DIM, BLOCK_D)
        acc = dot(rounded(p * norm[None, :], V_DOT), value.to(V_DOT), acc * keep[:, None])

    acc = tl.where(live[:, None], acc / tl.where(mass > 0, mass, 1.0)[:, None], 0.0)
    there = (pair.to(tl.int64) * GROUP + member) * tokens + token
    mask = (token < tokens)[:, None] & (d < DIM)[None, :]
    tl.store(out + there[:, None] * DIM + d[None, :], rounded(acc, out.dtype.element_ty), mask)


@triton.jit
def row_of(position, inside, past, sinks, slots, ring, fresh, table, PAGE: tl.constexpr):
    """Rows that hold the tokens at these positions: of the ring, or for new tokens the `fresh` ones."""
    old = position < past
    held = slot_rows(table, ring, (position - sinks) % slots, inside & old, PAGE)
    return tl.where(old, held, fresh.to(tl.int64) + position - past)
