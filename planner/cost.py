"""Bytes and seconds of every candidate on a target, and of a whole choice.

A step is priced as rows that overlap: `core` is all that the compute units do, one operation after another, and each
slower tier has its link. How long an operation takes is said in planner.times; to that comes the expansion of packed
numbers where the runtime expands before it computes. What lies in a slower tier crosses that tier's link meanwhile.
Within a row the sites add, so a solver sees a linear programme; the step is the largest row.

What is approximated:

- where neither operators nor measurements are known, throughput is one number whatever the shape of a matrix, and
  `efficiency` one share of the data sheet's figures;
- expanded numbers are taken to stay in cache, and activations to cost no memory traffic;
- a mixture's router spreads tokens evenly and independently over the experts;
- matrices outside the layers (the head) run once a prefill, on the last token of each prompt;
- reading ahead over a link is perfect, its buffer is not counted, and writing the cache to a slower tier costs nothing;
- coding a new token's key and value costs nothing, and a prompt's chunks see the window as it is at full length.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import fsum

import numpy as np
from numpy.typing import NDArray

from planner.errors import InvalidSpace
from planner.formats import head_bytes, sink_bytes, slots, static_bytes, token_bytes, weight_bytes
from planner.goal import Workload
from planner.hardware import HardwareProfile
from planner.space import (
    Choice,
    KvChoice,
    KvSite,
    Site,
    Tier,
    WeightChoice,
    WeightSite,
    attribute,
)
from planner.spec import LayerSpec, ModelSpec, TensorSpec
from planner.times import attention_s, bytes_per_s, fused_rows, product_s, touched_share

SCRATCH_ELEMENTS = 4 * 2**20
"""A runtime that expands a packed matrix does it in blocks of rows of at most this many numbers."""


@dataclass(frozen=True, slots=True)
class Work:
    """Seconds of one operation: computing or reading whichever is longer, expanding, and on each slower tier's link."""

    busy_s: float
    expand_s: float
    links_s: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Price:
    """What one candidate takes: bytes in all and in each tier, work of a decode step and of a whole prefill."""

    stored_bytes: int
    tier_bytes: tuple[float, ...]
    decode: Work
    prefill: Work


@dataclass(frozen=True, slots=True)
class Totals:
    """A full choice at the longest context and the whole batch, and the items that each figure sums.

    `memory_bytes` is what the fastest tier holds. `decode_items` and `ttft_items` sum to the core row but for the items
    named `link ...`, which overlap with it.
    """

    kv_bytes: int
    weight_bytes: int
    memory_bytes: int
    tier_bytes: tuple[tuple[str, int], ...]
    decode_s: float
    ttft_s: float
    bytes_items: tuple[tuple[str, int], ...]
    decode_items: tuple[tuple[str, float], ...]
    ttft_items: tuple[tuple[str, float], ...]


def rows(hardware: HardwareProfile) -> tuple[str, ...]:
    """The resources that `usage` and `constant` count on a target, in their order.

    `memory_bytes` is the fastest tier's: what is placed in a slower one leaves it.
    """
    names = [tier.name for tier in hardware.tiers]
    links = [f"link.{name}" for name in names[1:]]
    return (
        *("kv_bytes", "weight_bytes", "memory_bytes"),
        *(f"bytes.{name}" for name in names),
        *(f"decode_s.{stage}" for stage in ("core", *links)),
        *(f"ttft_s.{stage}" for stage in ("core", *links)),
    )


def usage(
    site: Site,
    choice: Choice,
    spec: ModelSpec,
    workload: Workload,
    hardware: HardwareProfile,
    tolled: bool = False,
) -> dict[str, float]:
    """What one candidate adds to every row, bytes at the longest context and the whole batch.

    A layer pays `kernel_overhead_s` for each class of heads, which no single head decides. Where that is `tolled`, a
    head is charged its share of one class, and each further one takes `class_toll`; otherwise a head is charged a class
    of its own, the most that its layer can have.

    A matrix of 1000 x 1000 at batch 1: 4 MB at 1 GB/s is 4 ms a token; a prompt of 96 tokens read in three chunks of 32
    reads it three times, which takes longer than the 3 x 64 Mflop at 1 Tflop/s.

    >>> from planner.hardware import MemoryTier
    >>> from planner.space import WeightFormat, WeightSite
    >>> toy = HardwareProfile("toy", "cpu", 32, (MemoryTier("dram", 10**9, 1e9), MemoryTier("flash", 10**12, 1e8)),
    ...     (("fp32", 1e12),), 0, 0, 0, "datasheet", 0.4, (), "", expand_weights_per_s=((4, 1e9),))
    >>> model = ModelSpec("toy", "", "", 1000, 10, 128, (LayerSpec(1, 1, 64),), (TensorSpec("up", 0, 1000, 1000),), 0)
    >>> work = Workload((128,), new_tokens=32, prefill_chunk_tokens=32)
    >>> plain = WeightChoice(WeightFormat(32), (("dram", 1.0),))
    >>> use = usage(WeightSite(0, "up"), plain, model, work, toy)
    >>> use["memory_bytes"], use["decode_s.core"], round(use["ttft_s.core"], 9), use["decode_s.link.flash"]
    (4000000.0, 0.004, 0.012, 0.0)

    Half of it on flash: 2 ms from memory while 20 ms pass on the link.

    >>> split = WeightChoice(WeightFormat(32), (("dram", 0.5), ("flash", 0.5)))
    >>> use = usage(WeightSite(0, "up"), split, model, work, toy)
    >>> use["memory_bytes"], use["decode_s.core"], use["decode_s.link.flash"]
    (2000000.0, 0.002, 0.02)

    At 4 bits in groups of 40: 500 kB of codes and 100 kB of scales, and a million numbers to expand.

    >>> packed = WeightChoice(WeightFormat(4, "grouped", 40), (("dram", 1.0),))
    >>> use = usage(WeightSite(0, "up"), packed, model, work, toy)
    >>> use["weight_bytes"], round(use["decode_s.core"], 9)
    (600000.0, 0.0016)
    """
    price = _price(site, choice, spec, {t.name: t for t in spec.tensors}, workload, hardware)
    row = _row(site, price, spec, workload, hardware, tolled)
    return dict(zip(rows(hardware), row, strict=True))


def usages(
    candidates: Mapping[Site, Sequence[Choice]],
    spec: ModelSpec,
    workload: Workload,
    hardware: HardwareProfile,
    tolled: bool = False,
) -> NDArray[np.float64]:
    """The usage of every candidate of a space, [candidates, rows]: site after site, columns as `rows` names them.

    The same numbers as `usage`, with like sites priced once.
    """
    tensors = {tensor.name: tensor for tensor in spec.tensors}
    alike: dict[object, int] = {}
    known: dict[tuple[int, Choice], tuple[float, ...]] = {}
    out: list[tuple[float, ...]] = []
    for site, choices in candidates.items():
        like: object
        if isinstance(site, KvSite):
            like = spec.layers[site.layer]
        elif tensor := tensors.get(site.tensor):
            like = replace(tensor, name="", layer=min(tensor.layer, 0)), _fused(tensor, spec, hardware)
        else:
            like = None
        same = alike.setdefault(like, len(alike))
        for choice in choices:
            row = known.get((same, choice))
            if row is None:
                price = _price(site, choice, spec, tensors, workload, hardware)
                row = known[same, choice] = _row(site, price, spec, workload, hardware, tolled)
            out.append(row)
    return np.array(out, dtype=np.float64).reshape(len(out), len(rows(hardware)))


def class_toll(workload: Workload, hardware: HardwareProfile) -> dict[str, float]:
    """What each class of heads after a layer's first adds, by row: a call in every step and every prefill chunk."""
    used = dict.fromkeys(rows(hardware), 0.0)
    used["decode_s.core"] = hardware.kernel_overhead_s
    used["ttft_s.core"] = hardware.kernel_overhead_s * _chunks(workload)
    return used


def constant(spec: ModelSpec, workload: Workload, hardware: HardwareProfile) -> dict[str, float]:
    """What every choice uses, by row: uncompressed weights, the working memory of a chunk, the costs of being called.

    Uncompressed weights (norms, biases) count as weight bytes and are read once a step.
    """
    used = dict.fromkeys(rows(hardware), 0.0)
    resident = float(sum(count for _, count in _resident(spec, workload, hardware)))
    used["weight_bytes"] = float(spec.other_bytes)
    used["memory_bytes"] = used[f"bytes.{hardware.fastest.name}"] = resident
    each = sum(seconds for _, seconds in _overhead(spec, hardware))
    used["decode_s.core"] = each
    used["ttft_s.core"] = each * _chunks(workload)
    return used


def total(chosen: Mapping[Site, Choice], spec: ModelSpec, workload: Workload, hardware: HardwareProfile) -> Totals:
    """The bytes and seconds of a full choice, kernel classes counted as they are.

    `constant`, every site's `usage` and the tolls of its classes together, row by row; never more than without tolls.
    """
    tensors = {tensor.name: tensor for tensor in spec.tensors}
    prices = {site: _price(site, choice, spec, tensors, workload, hardware) for site, choice in chosen.items()}
    kv = [price for site, price in prices.items() if isinstance(site, KvSite)]
    weights = [price for site, price in prices.items() if not isinstance(site, KvSite)]
    classes = len({(s.layer, attribute(c, "kernel")) for s, c in chosen.items() if isinstance(s, KvSite)})
    resident = _resident(spec, workload, hardware)
    tier_bytes = [fsum(price.tier_bytes[i] for price in prices.values()) for i in range(len(hardware.tiers))]
    tier_bytes[0] += sum(count for _, count in resident)
    kv_bytes, weight_sum = (sum(price.stored_bytes for price in group) for group in (kv, weights))
    decode_items, decode_s = _stages([p.decode for p in kv], [p.decode for p in weights], classes, 1, spec, hardware)
    ttft_items, ttft_s = _stages(
        [p.prefill for p in kv], [p.prefill for p in weights], classes, _chunks(workload), spec, hardware
    )
    return Totals(
        kv_bytes=kv_bytes,
        weight_bytes=weight_sum + spec.other_bytes,
        memory_bytes=round(tier_bytes[0]),
        tier_bytes=tuple((tier.name, round(n)) for tier, n in zip(hardware.tiers, tier_bytes, strict=True)),
        decode_s=decode_s,
        ttft_s=ttft_s,
        bytes_items=(("KV cache", kv_bytes), ("weights", weight_sum), *resident),
        decode_items=decode_items,
        ttft_items=ttft_items,
    )


# --- one site -----------------------------------------------------------------------------------


def _price(
    site: Site,
    choice: Choice,
    spec: ModelSpec,
    tensors: Mapping[str, TensorSpec],
    workload: Workload,
    hardware: HardwareProfile,
) -> Price:
    if isinstance(site, KvSite) and isinstance(choice, KvChoice):
        return _head(spec.layers[site.layer], choice, workload, hardware)
    if isinstance(site, WeightSite) and isinstance(choice, WeightChoice):
        if site.tensor in tensors:
            tensor = tensors[site.tensor]
            return _matrix(tensor, _fused(tensor, spec, hardware), choice, workload, hardware)
        raise InvalidSpace(f"{site} is no tensor of {spec.source or spec.family}")
    raise InvalidSpace(f"{site} cannot take {choice}")


def _fused(tensor: TensorSpec, spec: ModelSpec, hardware: HardwareProfile) -> int:
    """Rows of the call that a matrix is multiplied in; its own where calls are not priced."""
    return tensor.rows if hardware.operators is None else _fused_rows(spec)[tensor.name]


@lru_cache(maxsize=16)
def _fused_rows(spec: ModelSpec) -> Mapping[str, int]:
    layers: dict[int, list[TensorSpec]] = {}
    for tensor in spec.tensors:
        layers.setdefault(tensor.layer, []).append(tensor)
    return {tensor.name: fused_rows(tensor, layers[tensor.layer]) for tensor in spec.tensors}


def _row(
    site: Site,
    price: Price,
    spec: ModelSpec,
    workload: Workload,
    hardware: HardwareProfile,
    tolled: bool,
) -> tuple[float, ...]:
    """A price spread over `rows`."""
    kernel_s, kinds = 0.0, (0.0, float(price.stored_bytes))
    if isinstance(site, KvSite):
        share = 1 / spec.layers[site.layer].kv_heads if tolled else 1.0
        kernel_s, kinds = hardware.kernel_overhead_s * share, (float(price.stored_bytes), 0.0)
    decode, prefill = price.decode, price.prefill
    return (
        *(*kinds, price.tier_bytes[0], *price.tier_bytes),
        *(decode.busy_s + decode.expand_s + kernel_s, *decode.links_s),
        *(prefill.busy_s + prefill.expand_s + kernel_s * _chunks(workload), *prefill.links_s),
    )


@lru_cache(maxsize=2**17)
def _head(layer: LayerSpec, choice: KvChoice, workload: Workload, hardware: HardwareProfile) -> Price:
    """One KV head's cache and the attention of its query heads.

    Each decode step reads the whole cache and expands its coded slots. Each prefill chunk does so with what the chunks
    before it left, and its tokens attend to that and to one another.
    """
    context, batch = workload.longest_tokens, workload.batch
    each = head_bytes(choice, layer, context)
    sinks, coded = slots(choice, layer, context)
    sink_each = sink_bytes(choice, layer.head_dim)
    slot_each = token_bytes(choice.k, layer.head_dim) + token_bytes(choice.v, layer.head_dim)
    shares = _shares(choice.tier, hardware)
    links = _link_s_per_byte(shares, each, hardware)
    prompt, chunk = context - workload.new_tokens, workload.prefill_chunk_tokens
    start = np.arange(0, prompt, chunk, dtype=np.float64)
    tokens = np.minimum(chunk, prompt - start)
    held_sinks = np.minimum(start, sinks)
    held = np.minimum(start - held_sinks, coded)
    read = (held * slot_each + held_sinks * sink_each) * batch
    one, seen, whole = np.ones(1), np.array([float(sinks + coded)]), np.array([each * batch * shares[0]])
    bits = max(choice.k.bits, choice.v.bits)
    decode_s = float(attention_s(layer, bits, batch, one, seen, whole, True, hardware)[0])
    prefill_s = attention_s(layer, bits, batch, tokens, held + held_sinks, read * shares[0], False, hardware)
    # What was measured whole expands within.
    expands = not hardware.attention_times
    expand_slot_s = expands * batch * sum(hardware.expand_kv_s(layer.head_dim, f.bits) for f in (choice.k, choice.v))
    read_bytes = fsum(read.tolist())
    decode = Work(decode_s, coded * expand_slot_s, tuple(each * batch * s for s in links))
    prefill = Work(fsum(prefill_s.tolist()), fsum(held.tolist()) * expand_slot_s, tuple(read_bytes * s for s in links))
    stored = each * batch + static_bytes(choice, layer)
    return Price(stored, tuple(stored * share for share in shares), decode, prefill)


@lru_cache(maxsize=2**17)
def _matrix(
    tensor: TensorSpec, fused: int, choice: WeightChoice, workload: Workload, hardware: HardwareProfile
) -> Price:
    """One matrix and its products: read and expanded once for each decode step and each prefill chunk.

    Of a mixture, a step touches some of the experts. A table that is only looked up costs its bytes and no time.
    """
    stored = weight_bytes(tensor, choice.format)
    shares = _shares(choice.tier, hardware)
    expand_s = 0.0 if hardware.product_times else hardware.expand_weights_s(tensor.elements, choice.format.bits)
    # An expert is read by itself; a dense matrix is one.
    links = _link_s_per_byte(shares, stored / tensor.count, hardware)

    def step(tokens: int, times: int) -> Work:
        touched = touched_share(tensor, tokens) * times
        busy_s = product_s(tensor, choice.format, tokens, stored * touched / max(times, 1) * shares[0], fused, hardware)
        return Work(busy_s * times, expand_s * touched, tuple(stored * touched * s for s in links))

    batch = workload.batch
    if tensor.layer < 0:
        prefill = step(batch, 1)
    else:
        full, rest = divmod(workload.longest_tokens - workload.new_tokens, workload.prefill_chunk_tokens)
        prefill = _sum([step(batch * workload.prefill_chunk_tokens, full), step(batch * rest, min(rest, 1))], hardware)
    return Price(stored, tuple(stored * share for share in shares), step(batch, 1), prefill)


def _shares(tier: Tier, hardware: HardwareProfile) -> tuple[float, ...]:
    """The share of the bytes in each tier of the target, fastest first; InputError for a tier it does not have."""
    for name, _ in tier:
        hardware.tier(name)
    placed = dict(tier)
    return tuple(placed.get(t.name, 0.0) for t in hardware.tiers)


def _link_s_per_byte(shares: tuple[float, ...], block_bytes: float, hardware: HardwareProfile) -> tuple[float, ...]:
    """Seconds on each slower tier's link for a byte of the whole, read in blocks of what one tier holds of a block."""
    return tuple(
        share / (tier.bytes_per_s(share * block_bytes) * hardware.efficiency) if share else 0.0
        for share, tier in zip(shares[1:], hardware.tiers[1:], strict=True)
    )


def _chunks(workload: Workload) -> int:
    """Chunks in which the longest prompt is read."""
    return -(-(workload.longest_tokens - workload.new_tokens) // workload.prefill_chunk_tokens)


# --- what no site decides -----------------------------------------------------------------------


def _overhead(spec: ModelSpec, hardware: HardwareProfile) -> tuple[tuple[str, float], ...]:
    """(name, seconds) that every step and every prefill chunk costs whatever is chosen."""
    return (
        ("uncompressed weights", spec.other_bytes / bytes_per_s(hardware)),
        ("layers being called", len(spec.layers) * hardware.layer_overhead_s),
        ("step being called", hardware.step_overhead_s),
    )


def _resident(spec: ModelSpec, workload: Workload, hardware: HardwareProfile) -> tuple[tuple[str, int], ...]:
    """(name, bytes) that the fastest tier holds whatever is chosen, at the peak of a prefill chunk.

    The chunk's hidden states and the widest product's input and output; a chunk's keys and values before the cache
    takes them; the scores of one KV head's queries where no kernel fuses them away (CPU); the numbers being expanded.
    """
    width, batch = hardware.float_bits // 8, workload.batch
    chunk = min(workload.prefill_chunk_tokens, workload.longest_tokens - workload.new_tokens)
    widest = max((max(t.rows, t.cols) for t in spec.tensors if t.layer >= 0), default=spec.hidden_size)
    items = [
        ("uncompressed weights", spec.other_bytes),
        ("activations", batch * chunk * (4 * spec.hidden_size + 2 * widest) * width),
        ("logits", batch * spec.vocab_size * 4),
        ("chunk before the cache", batch * chunk * max(la.kv_bytes_per_token(8 * width) for la in spec.layers)),
    ]
    reach = [min(workload.longest_tokens, layer.window or workload.longest_tokens) for layer in spec.layers]
    if hardware.kind == "cpu":
        # A kernel measured whole works on all heads at once, the others on one KV head's after another.
        heads = [la.q_heads if hardware.attention_times else la.group for la in spec.layers]
        scores = max(n * (seen + chunk) for n, seen in zip(heads, reach, strict=True))
        items.append(("attention scores", batch * chunk * scores * width))
    if hardware.attention_times:
        items.append(("room for a chunk in the windows", chunk * spec.kv_bytes_per_token(8 * width)))
    if hardware.expand_weights_per_s:
        largest = max((t.rows * t.cols for t in spec.tensors if t.active), default=0)
        items.append(("expanded weights", min(SCRATCH_ELEMENTS, largest) * width))
    if hardware.expand_kv_per_s:
        cached = max(la.kv_bytes_per_token(8 * width) * seen for la, seen in zip(spec.layers, reach, strict=True))
        items.append(("expanded cache of a layer", batch * cached))
    return tuple(items)


def _sum(works: list[Work], hardware: HardwareProfile) -> Work:
    return Work(
        fsum(work.busy_s for work in works),
        fsum(work.expand_s for work in works),
        tuple(fsum(work.links_s[i] for work in works) for i in range(len(hardware.tiers) - 1)),
    )


def _stages(
    kv: list[Work], weights: list[Work], classes: int, times: int, spec: ModelSpec, hardware: HardwareProfile
) -> tuple[tuple[tuple[str, float], ...], float]:
    """(items, seconds) of a step, or of a prefill in `times` chunks: the largest of the core and the links."""
    attention, matrices = _sum(kv, hardware), _sum(weights, hardware)
    core = (
        ("matrices", matrices.busy_s),
        ("expanding weights", matrices.expand_s),
        ("attention", attention.busy_s),
        ("expanding the cache", attention.expand_s),
        ("head classes being called", classes * hardware.kernel_overhead_s * times),
        *((name, seconds * times) for name, seconds in _overhead(spec, hardware)),
    )
    links = tuple(fsum(pair) for pair in zip(attention.links_s, matrices.links_s, strict=True))
    named = tuple((f"link {tier.name}", s) for tier, s in zip(hardware.tiers[1:], links, strict=True))
    return (*core, *named), max(fsum(seconds for _, seconds in core), *links, 0.0)
