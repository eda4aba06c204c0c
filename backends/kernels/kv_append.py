"""New tokens written into ragged, coded caches: rotary positions, coding, packing and the right slot in one kernel.

The first `sinks` tokens of a sequence are kept as floats. Token p after them goes to slot (p - sinks) mod ring, which
for a head that keeps every token is its own slot. Where a chunk is longer than a ring only the newest tokens are
written, so no two programs write one slot.
"""

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from .contract import Check, Launch, Variant
from .numerics import rounded
from .packing import reference as packed
from .packing import store_codes
from .rotated import FLOAT16_MAX, Stored, book, edges, empty, encode, rotation, row_bytes, strides_of, turn

FIELDS = 8
"""Fields of a region: row (or first entry of the page table), ring, sink row, sinks, static row, head of the input,
and slots given up before (a kept set that was compacted goes on behind what was kept), and one unused."""

REGION = tl.constexpr(FIELDS)


@triton.jit
def put_floats(at, live, x, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Float rows at pointers [rows]; what float16 cannot hold saturates."""
    d = tl.arange(0, BLOCK_D)
    if at.dtype.element_ty == tl.float16:
        x = tl.minimum(tl.maximum(x, -65504.0), 65504.0)
    mask = live[:, None] & (d < DIM)[None, :]
    tl.store(at[:, None] + d[None, :], rounded(x, at.dtype.element_ty), mask=mask)


@triton.jit
def put_vectors(
    x,
    low,
    high,
    norms,
    sinks,
    mean,
    scale,
    head,
    row,
    in_ring,
    sink_row,
    in_sinks,
    BITS: tl.constexpr,
    STRIDE: tl.constexpr,
    HIGH_STRIDE: tl.constexpr,
    SINKS: tl.constexpr,
    MEAN: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Plain vectors [rows, BLOCK_D] float32 stored where each belongs."""
    if SINKS:
        put_floats(sinks + sink_row * DIM, in_sinks, x, DIM, BLOCK_D)
    if BITS >= 16:
        put_floats(low + row * STRIDE, in_ring, x, DIM, BLOCK_D)
    else:
        d = tl.arange(0, BLOCK_D)
        inside = (in_ring[:, None]) & (d < DIM)[None, :]
        static = head[:, None] * DIM + d[None, :]
        if MEAN:
            x -= tl.load(mean + static, mask=inside, other=0.0).to(tl.float32)
        x *= tl.load(scale + static, mask=inside, other=0.0).to(tl.float32)
        codes, norm = encode(turn(x, DIM), BITS, DIM)
        store_codes(low + row * STRIDE, high + row * HIGH_STRIDE, in_ring, codes, BITS, DIM, BLOCK_D)
        tl.store(norms + row, norm, mask=in_ring)


@triton.jit
def append_kernel(
    k,
    v,
    cos,
    sin,
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
    regions,
    seen,
    counts,
    rows,
    tokens,
    heads,
    k_batch,
    k_head,
    k_token,
    v_batch,
    v_head,
    v_token,
    K_BITS: tl.constexpr,
    V_BITS: tl.constexpr,
    K_STRIDE: tl.constexpr,
    K_HIGH_STRIDE: tl.constexpr,
    V_STRIDE: tl.constexpr,
    V_HIGH_STRIDE: tl.constexpr,
    SINKS: tl.constexpr,
    ROPE: tl.constexpr,
    PAGE: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """A tile of (sequence, token, head) rows. ROPE numbers of a key turn with its position; 0 where they have already.

    k, v       [batch, heads, tokens, DIM] with any strides but 1 in the last place
    cos, sin   [batch, tokens, ROPE], the two halves of a row the same
    regions    [batch * heads, FIELDS] int32
    seen       [batch] int32, tokens of each sequence before these
    counts     [batch] int32, new tokens of each: the others of its row are padding
    """
    r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    live = r < rows
    member, token, sequence = r % heads, r // heads % tokens, r // heads // tokens
    before = tl.load(seen + sequence, mask=live, other=0)
    count = tl.load(counts + sequence, mask=live, other=0)
    live = live & (token < count)
    region = regions + (sequence * heads + member) * REGION
    first, ring = tl.load(region, mask=live, other=0), tl.load(region + 1, mask=live, other=1)
    sink_first, sinks = tl.load(region + 2, mask=live, other=0), tl.load(region + 3, mask=live, other=0)
    static, source = tl.load(region + 4, mask=live, other=0), tl.load(region + 5, mask=live, other=0)
    gone = tl.load(region + 6, mask=live, other=0)
    position = before + token
    in_sinks = live & (position < sinks)
    in_ring = live & (position >= sinks) & (position > before + count - 1 - ring)
    slot = (position - sinks - gone) % tl.maximum(ring, 1)
    if PAGE == 0:
        row = first.to(tl.int64) + slot
    else:
        page = tl.load(table + first + slot // PAGE, mask=in_ring, other=0)
        row = page.to(tl.int64) * PAGE + slot % PAGE
    sink_row = sink_first.to(tl.int64) + position

    d = tl.arange(0, BLOCK_D)
    wanted = (in_sinks | in_ring)[:, None]
    inside = wanted & (d < DIM)[None, :]
    batch = sequence.to(tl.int64)
    at = k + batch * k_batch + source * k_head + token * k_token
    x = tl.load(at[:, None] + d[None, :], mask=inside, other=0.0).to(tl.float32)
    if ROPE > 0:
        turning = wanted & (d < ROPE)[None, :]
        partner = tl.load(at[:, None] + ((d + ROPE // 2) % ROPE)[None, :], mask=turning, other=0.0).to(tl.float32)
        angle = ((batch * tokens + token) * ROPE)[:, None] + d[None, :]
        c = tl.load(cos + angle, mask=turning, other=1.0).to(tl.float32)
        s = tl.load(sin + angle, mask=turning, other=0.0).to(tl.float32)
        x = x * c + tl.where(d < ROPE // 2, -partner, partner) * s
    put_vectors(
        *(x, k_low, k_high, k_norms, k_sinks, k_mean, k_scale, static, row, in_ring, sink_row, in_sinks),
        *(K_BITS, K_STRIDE, K_HIGH_STRIDE, SINKS, True, DIM, BLOCK_D),
    )
    at = v + batch * v_batch + source * v_head + token * v_token
    x = tl.load(at[:, None] + d[None, :], mask=inside, other=0.0).to(tl.float32)
    put_vectors(
        *(x, v_low, v_high, v_norms, v_sinks, v_scale, v_scale, static, row, in_ring, sink_row, in_sinks),
        *(V_BITS, V_STRIDE, V_HIGH_STRIDE, SINKS, False, DIM, BLOCK_D),
    )


@dataclass(frozen=True, slots=True)
class Shape:
    """The KV heads of a layer that are stored at the same bits, in all sequences, and a chunk of new tokens.

    rings, sinks   slots and protected slots of each (sequence, head) pair, sequence by sequence
    seen, counts   tokens of each sequence before, and new ones
    rope           numbers of a key that turn with its position; 0 where keys come turned
    page           slots of a page, 0 where each pair's slots are one run
    """

    head_dim: int
    k_bits: int
    v_bits: int
    heads: int
    rings: tuple[int, ...]
    sinks: tuple[int, ...]
    seen: tuple[int, ...]
    counts: tuple[int, ...]
    rope: int
    page: int = 0

    @property
    def tokens(self) -> int:
        return max(self.counts)


DEFAULT = Variant((("BLOCK_R", 4),), 4, 1)


def variants(shape: Shape) -> tuple[Variant, ...]:
    """Rows of a program, and its warps: one row each is most parallel, many rows share a rotation's stages."""
    made = ((4, 4), (1, 1), (2, 2), (16, 4))
    return tuple(Variant((("BLOCK_R", rows),), warps, 1) for rows, warps in made)


def constexprs(
    bits: tuple[int, int],
    strides: tuple[int, ...],
    has_sinks: bool,
    rope: int,
    page: int,
    dim: int,
    variant: Variant,
) -> dict[str, object]:
    """What the kernel is specialised for."""
    names = ("K_STRIDE", "K_HIGH_STRIDE", "V_STRIDE", "V_HIGH_STRIDE")
    return {
        "K_BITS": bits[0],
        "V_BITS": bits[1],
        **dict(zip(names, strides, strict=True)),
        "SINKS": has_sinks,
        "ROPE": rope,
        "PAGE": page,
        "DIM": dim,
        "BLOCK_D": triton.next_power_of_2(dim),
        "BLOCK_R": variant.tile("BLOCK_R"),
    }


def kv_append(
    k: Tensor,
    v: Tensor,
    k_store: Stored,
    v_store: Stored,
    regions: Tensor,
    seen: Tensor,
    counts: Tensor,
    has_sinks: bool,
    angles: tuple[Tensor, Tensor] | None = None,
    table: Tensor | None = None,
    page: int = 0,
    variant: Variant | None = None,
) -> None:
    """Write the new tokens of every sequence.

    k, v            [batch, input heads, tokens, head_dim]
    regions         [batch * heads, FIELDS] int32: where each pair's slots are
    seen, counts    [batch] int32: tokens before, and new ones
    angles          cosines and sines [batch, tokens, rope] that keys are still to be turned by
    """
    k_store.check_keys()
    chosen = DEFAULT if variant is None else variant
    batch, _, tokens, dim = k.shape
    if k.stride(3) != 1 or v.stride(3) != 1:
        raise ValueError(f"the numbers of a vector are not side by side: strides {k.stride()} and {v.stride()}")
    heads, rope = len(regions) // batch, 0 if angles is None else angles[0].shape[-1]
    cos, sin = (k, k) if angles is None else (angles[0].contiguous(), angles[1].contiguous())
    rows = batch * tokens * heads
    sizes = constexprs(
        *((k_store.bits, v_store.bits), (*k_store.strides, *v_store.strides), has_sinks, rope, page, dim),
        chosen,
    )
    v_low, v_high, v_norms, v_sinks, _, v_scale = v_store.parts()
    append_kernel[(triton.cdiv(rows, chosen.tile("BLOCK_R")),)](
        *(k, v, cos, sin, *k_store.parts(), v_low, v_high, v_norms, v_sinks, v_scale),
        *(regions if table is None else table, regions, seen, counts, rows, tokens, heads),
        *(*k.stride()[:3], *v.stride()[:3]),
        **sizes,
        num_warps=chosen.num_warps,
        num_stages=chosen.num_stages,
    )


def roped(k: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Keys [batch, heads, tokens, head_dim] turned with their positions, as Llama turns them."""
    cos, sin = (each[:, None].to(k.dtype) for each in angles)
    rope = cos.shape[-1]
    low, high = k[..., : rope // 2], k[..., rope // 2 : rope]
    return torch.cat([k[..., :rope] * cos + torch.cat([-high, low], -1) * sin, k[..., rope:]], -1)


def encoded(z: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Codes and float16 norms of vectors in their rotated space, in plain torch and the numbers' own precision."""
    if bits == 8:
        norm = (z.abs().amax(-1) / 127).clamp(6e-8, FLOAT16_MAX).half()
        return ((z / norm.to(z.dtype)[..., None]).round().clamp(-127, 127) + 128).to(torch.uint8), norm
    unit = z / z.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-30)
    codes = torch.bucketize(unit, edges(bits).to(unit.dtype))
    values = book(bits, z.dtype)[codes]
    norm = (z * values).sum(-1) / values.square().sum(-1)
    return codes.to(torch.uint8), norm.clamp(max=FLOAT16_MAX).half()


def reference(
    k: Tensor,
    v: Tensor,
    k_store: Stored,
    v_store: Stored,
    regions: Tensor,
    seen: Tensor,
    counts: Tensor,
    angles: tuple[Tensor, Tensor] | None = None,
    table: Tensor | None = None,
    page: int = 0,
) -> None:
    """The same in plain torch: one token of one head after another, each over what was there."""
    keys = k.float() if angles is None else roped(k.float(), angles)
    heads = len(regions) // len(seen)
    for pair, (row, ring, sink_row, sinks, static, source, gone, _) in enumerate(regions.tolist()):
        sequence = pair // heads
        for token in range(int(counts[sequence])):
            position = int(seen[sequence]) + token
            for x, store in ((keys, k_store), (v.float(), v_store)):
                vector = x[sequence, source, token]
                if position < sinks:
                    store.sinks[sink_row + position] = floats(vector, store.sinks.dtype)
                elif ring:
                    slot = (position - sinks - gone) % ring
                    at = row + slot if table is None else int(table[row + slot // page]) * page + slot % page
                    put(store, at, vector, static)


def floats(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Numbers in a type of floats; what float16 cannot hold saturates."""
    return (x.clamp(-FLOAT16_MAX, FLOAT16_MAX) if dtype == torch.float16 else x).to(dtype)


def put(store: Stored, at: int, x: Tensor, head: int) -> None:
    """Store one plain vector in a row."""
    if store.scale is None or store.norms is None:
        store.low[at] = floats(x, store.low.dtype)
        return
    plain = x if store.mean is None else x - store.mean[head].float()
    codes, norm = encoded((plain * store.scale[head].float()) @ rotation(len(x)).float(), store.bits)
    if store.high is None:
        store.low[at] = packed(codes, store.bits)
    else:
        store.low[at], store.high[at] = packed(codes & 3, 2), packed(codes >> 2, 1)
    store.norms[at] = norm


# --- for the compiler, the search and the checks ------------------------------------------------


def launches(shape: Shape, variant: Variant) -> tuple[Launch, ...]:
    """One kernel, whatever the chunk."""
    dim, rows = shape.head_dim, len(shape.seen) * shape.tokens * shape.heads
    strides = (*strides_of(shape.k_bits, dim), *strides_of(shape.v_bits, dim))
    bits, has_sinks = (shape.k_bits, shape.v_bits), any(shape.sinks)
    sizes = constexprs(bits, strides, has_sinks, shape.rope, shape.page, dim, variant)
    types = {"k": "*fp16", "v": "*fp16", "cos": "*fp16", "sin": "*fp16"}
    for part, width in (("k", shape.k_bits), ("v", shape.v_bits)):
        float_type = "*fp32" if width == 32 else "*fp16"
        types |= {f"{part}_low": float_type if width >= 16 else "*u8", f"{part}_high": "*u8", f"{part}_norms": "*fp16"}
        types |= (
            {f"{part}_sinks": float_type} | ({"k_mean": "*fp16"} if part == "k" else {}) | {f"{part}_scale": "*fp16"}
        )
    types |= dict.fromkeys(("table", "regions", "seen", "counts"), "*i32")
    numbers = ("rows", "tokens", "heads", "k_batch", "k_head", "k_token", "v_batch", "v_head", "v_token")
    stored = sum(min(count, ring) for count, ring in zip(_each(shape, shape.counts), shape.rings, strict=True))
    statics = (shape.k_bits < 16) * 2 + (shape.v_bits < 16)
    read = 2 * stored * dim * 2 + sum(shape.counts) * 2 * shape.rope * 2 + statics * shape.heads * dim * 2
    return (
        Launch(
            append_kernel,
            types | dict.fromkeys(numbers, "i32") | dict.fromkeys(sizes, "constexpr"),
            dict(sizes),
            (*types, "k_batch", "k_head", "k_token", "v_batch", "v_head", "v_token"),
            triton.cdiv(rows, variant.tile("BLOCK_R")),
            read + len(shape.rings) * FIELDS * 4 + len(shape.seen) * 8,
            stored * (row_bytes(shape.k_bits, dim) + row_bytes(shape.v_bits, dim)),
            stored * dim * 2 * 12,
        ),
    )


def _each(shape: Shape, of_sequence: tuple[int, ...]) -> list[int]:
    """A number of each sequence, for each of its pairs."""
    return [number for number in of_sequence for _ in range(shape.heads)]


def hostile() -> tuple[Shape, ...]:
    """The first token; a chunk that ends at, and one past, the wrap of a ring; one longer than a ring; rings of one
    slot and of none; padding; every width of codes and size of heads."""
    two = {"heads": 2, "sinks": (4, 0, 4, 0)}
    return (
        Shape(64, 4, 4, **two, rings=(32, 1, 32, 1), seen=(0, 36), counts=(1, 1), rope=64),
        Shape(80, 3, 2, **two, rings=(8, 16, 8, 16), seen=(3, 12), counts=(9, 4), rope=80),
        Shape(96, 8, 3, **two, rings=(16, 16, 16, 16), seen=(0, 15), counts=(40, 2), rope=48, page=8),
        Shape(128, 16, 16, 1, (64,), (0,), (63,), (1,), 0),
        Shape(256, 2, 8, 1, (0, 5), (4, 0), (2, 5), (2, 0), 256),
        Shape(64, 32, 32, 1, (5,), (16,), (14,), (4,), 64),
        Shape(128, 16, 4, 1, (7,), (2,), (0,), (20,), 128, page=16),
    )


def pools(shape: Shape, generator: torch.Generator) -> tuple[Stored, Stored, Tensor, Tensor | None]:
    """Empty keys and values of a shape with random static factors, its regions and its page table."""
    dim, rings, page = shape.head_dim, shape.rings, shape.page
    rooms = [-(-ring // page) if page else -(-(ring + 1) // 16) * 16 for ring in rings]
    starts = [sum(rooms[:i]) for i in range(len(rings))]
    rows = sum(rooms) * (page or 1)
    table = torch.randperm(sum(rooms), generator=generator).int() if page else None
    sink_starts = [sum(shape.sinks[:i]) for i in range(len(rings))]
    columns = zip(starts, rings, sink_starts, shape.sinks, strict=True)
    regions = [[*column, i % shape.heads, shape.heads - 1 - i % shape.heads, 0, 0] for i, column in enumerate(columns)]

    def stored(bits: int, keys: bool) -> Stored:
        dtype = torch.float32 if bits == 32 else torch.float16
        low, high, norms = empty(bits, rows, dim, torch.device("cpu"), dtype)
        sinks = torch.zeros(sum(shape.sinks) + 1, dim, dtype=dtype)
        if bits >= 16:
            return Stored(bits, low, None, None, sinks, None, None)
        mean, scale = (torch.randn(shape.heads, dim, generator=generator) * 0.3 for _ in range(2))
        last = high if bits == 3 else None
        return Stored(bits, low, last, norms, sinks, mean.half() if keys else None, scale.exp().half())

    return stored(shape.k_bits, True), stored(shape.v_bits, False), torch.tensor(regions, dtype=torch.int32), table


def clear(x: Tensor, store: Stored, heads: Tensor) -> Tensor:
    """Which vectors [..., heads, tokens, head_dim] round the same whichever way float32 sums are ordered.

    An edge of a code cell, a middle between two integers, and one between two float16 are far enough: 1e-5 of a cell,
    2e-6 of a norm, 3e-7 of a number.
    """
    x = x.double()
    alone = (_from_tie(x) > 3e-7).all(-1)
    if store.scale is None:
        return alone
    plain = x if store.mean is None else x - store.mean[heads].double()[:, None]
    z = (plain * store.scale[heads].double()[:, None]) @ rotation(x.shape[-1])
    if store.bits == 8:
        norm = z.abs().amax(-1) / 127
        steps = z / norm.half().double()[..., None]
        near = (steps - steps.floor() - 0.5).abs().amin(-1) / 20
    else:
        unit = z / z.square().mean(-1, keepdim=True).sqrt()
        cells = edges(store.bits).double()
        near = (unit[..., None] - cells).abs().amin((-1, -2))
        values = book(store.bits)[torch.bucketize(unit, cells)]
        norm = (z * values).sum(-1) / values.square().sum(-1)
    return alone & (near > 1e-5) & (_from_tie(norm) > 2e-6)


def _from_tie(x: Tensor) -> Tensor:
    """How far numbers are from the middle of two float16, relative to the numbers."""
    nearest = x.half().double()
    step = 2.0 ** (torch.frexp(nearest)[1] - 11).clamp(min=-24)
    return (step / 2 - (x - nearest).abs()) / x.abs().clamp(min=1e-30)


def inputs(shape: Shape, dtype: torch.dtype, seed: int) -> tuple[Tensor, Tensor, Stored, Stored, Tensor, Tensor | None]:
    """Keys and values [batch, heads, tokens, head_dim], none near a tie; stores, regions and page table.

    Keys and values are outliers here and there, and a value is all zeros.
    """
    generator = torch.Generator().manual_seed(seed)
    k_store, v_store, regions, table = pools(shape, generator)
    heads = shape.heads - 1 - torch.arange(shape.heads)
    size = (len(shape.seen), shape.heads, shape.tokens, shape.head_dim)

    def drawn() -> Tensor:
        x = torch.randn(size, generator=generator)
        x[..., 3] *= 30
        return x.to(dtype)

    k, v = drawn(), drawn()
    while True:
        turned = roped(k.float(), rotary(shape)) if shape.rope else k
        pairs = ((k, turned, k_store), (v, v, v_store))
        unclear = [(x, ~clear(seen, store, heads)) for x, seen, store in pairs]
        if not any(bool(bad.any()) for _, bad in unclear):
            v[0, 0, 0] = 0
            return k, v, k_store, v_store, regions, table
        for x, bad in unclear:
            x[bad] = drawn()[bad]


def rotary(shape: Shape) -> tuple[Tensor, Tensor]:
    """Cosines and sines [batch, tokens, rope] of the positions of the new tokens, as Llama has them."""
    position = torch.tensor(shape.seen)[:, None] + torch.arange(shape.tokens)
    speed = 10000.0 ** -(torch.arange(0, shape.rope, 2) / shape.rope)
    angle = (position[..., None] * speed).repeat(1, 1, 2)
    return angle.cos(), angle.sin()


def check(shape: Shape, variant: Variant, dtype: torch.dtype, seed: int) -> tuple[Check, ...]:
    """Every byte of the caches is that of the reference; nothing else of them is touched."""
    k, v, k_store, v_store, regions, table = inputs(shape, dtype, seed)
    seen, counts = (torch.tensor(each, dtype=torch.int32) for each in (shape.seen, shape.counts))
    angles = rotary(shape) if shape.rope else None
    made: list[list[Tensor]] = []
    for run in (kv_append, reference):
        stores = [
            replace(each, **{part: x.clone() for part, x in each.written().items()}) for each in (k_store, v_store)
        ]
        if run is kv_append:
            kv_append(k, v, *stores, regions, seen, counts, any(shape.sinks), angles, table, shape.page, variant)
        else:
            reference(k, v, *stores, regions, seen, counts, angles, table, shape.page)
        made.append([x.view(torch.uint8) for store in stores for x in store.written().values()])
    return tuple(Check(got, wanted) for got, wanted in zip(*made, strict=True))
