"""What this machine can do, measured: memory, matrix products, flash, and the pieces of a runtime that runs here.

Takes about a minute. Every figure is the median of repeats and stands in the profile's curves beside its spread; what
the cost model reads is computed from them.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from datetime import date
from functools import partial

import torch

from planner.executor import FEW_SLOTS, ProbedAttention, ProbedDecoder, RuntimeProbe
from planner.hardware import AttentionTime, HardwareProfile, MemoryTier, ProductTime, Rates
from planner.measured import Curve, Machine, by_name, complaints, count
from profiles.findings import DECODERS, decoder_pieces, error, machine_notes, overheads, throughput
from profiles.flash import flash_pieces
from profiles.flash_tier import flash_directory, flash_tier, opened_flash
from profiles.machine import (
    available_bytes,
    cpu_flags,
    cpu_name,
    cpu_seconds,
    last_cache_bytes,
    load_average,
    usable_cpus,
)
from profiles.memory import memory_pieces, reading
from profiles.record import Order, Piece, calls, hastened, take
from profiles.tensor_ops import Ground, attention_pieces, product_pieces
from profiles.timing import wall_clock

EXPAND_BITS = (2, 3, 4, 5, 8, 16)
LEAST_ERROR = 0.25
"""What repeats of one call do not show (other shapes, another day) is at least so much."""

MATMUL_S, EXPAND_S, PRODUCT_S, ATTENTION_S = 0.4, 0.4, 0.35, 0.3
QUICK_TOKENS, QUICK_SLOTS, QUICK_HEAD_DIM = 64, 512, 64
"""Most tokens, longest caches and largest heads of a quick profile."""

TOKENS = (1, 16, 64, 512)
MATRIX = 2048
SDPA_SLOTS, SDPA_HEAD_DIMS = (512, 2048, 8192), (64, 128)
BF16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
INT8 = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "i8mm"})


def this_cpu(probe: RuntimeProbe, quick: bool) -> Machine:
    """This machine's CPU and the software that is timed, nothing measured yet."""
    software = (probe.name, f"torch {torch.__version__}")
    return Machine("cpu", cpu_name(), usable_cpus(), probe.runtime, software, "", quick, load_average(), 0.0, 0)


def measure(order: Order, probe: RuntimeProbe) -> HardwareProfile:
    """The profile of this machine's CPU and of a flash device, for the runtime behind `probe`."""
    machine = this_cpu(probe, order.quick)
    before = cpu_seconds()
    with ExitStack() as stack, torch.inference_mode():
        notes, flash = opened_flash(order, stack)
        decoders = {depth: probe.decoder(*depth) for depth in DECODERS}
        pieces = [*cpu_pieces(probe, order.quick, machine.threads)]
        pieces += decoder_pieces(lambda layers, classes: decoders[layers, classes].call)
        if flash is not None:
            pieces += flash_pieces(flash, order.write, order.quick)
        curves = take(hastened(pieces, order.quick), order.progress, order.doubts)
    named = by_name(curves)
    attention = _attention_times(named, probe)
    products = _product_times(named, probe)
    layer_s, kernel_s, step_s = overheads(named, _priced_s(decoders[DECODERS[1]], products, attention))
    rate = named[reading(machine.threads)].points[-1][1]
    machine = replace(
        machine,
        flash=flash_directory(order, flash),
        others_share=before.others_share(cpu_seconds()),
        figures=count(curves),
    )
    return HardwareProfile(
        name="local",
        kind="cpu",
        float_bits=32,
        tiers=(MemoryTier("dram", available_bytes(), rate), *flash_tier(flash, named)),
        matmul_flop_per_s=throughput(named),
        layer_overhead_s=layer_s,
        step_overhead_s=step_s,
        kernel_overhead_s=kernel_s,
        provenance="measured",
        error=error(curves, LEAST_ERROR),
        sources=(f"measured on {machine.processor}, {machine.threads} threads, {', '.join(machine.software)}",),
        date=date.today().isoformat(),
        expand_weights_per_s=_rates(named, "expand weights"),
        expand_kv_per_s=_rates(named, "expand KV"),
        product_times=products,
        attention_times=attention,
        notes=(*notes, *machine_notes(machine), *complaints(machine, curves)),
        machine=machine,
        curves=curves,
    )


def cpu_pieces(probe: RuntimeProbe, quick: bool, threads: int) -> Iterator[Piece]:
    """Everything but decoders and flash: memory, the library's own products, and the runtime's pieces."""
    flags = cpu_flags()
    ground = Ground(torch.device("cpu"), wall_clock, last_cache_bytes())
    types = ["fp32", *(["bf16"] if flags & BF16 else []), *(["int8"] if flags & INT8 else [])]
    yield from memory_pieces(threads, quick)
    tokens = [n for n in TOKENS if n <= QUICK_TOKENS or not quick]
    yield from product_pieces(ground, types, tokens, MATRIX, MATMUL_S)
    yield from _expanding("expand weights", probe.expand_weights)
    yield from _expanding("expand KV", probe.expand_kv)
    for each in (each for each in probe.products() if each.tokens <= QUICK_TOKENS or not quick):
        yield Piece(f"{each.kind} product", "s", "tokens", each.tokens, each.work, PRODUCT_S, calls(each.open))
    attention = probe.attention()
    for one in attention:
        if not quick or (one.slots <= QUICK_SLOTS and one.head_dim <= QUICK_HEAD_DIM):
            yield Piece(attending(one), "s", "slots", one.slots, one.layers, ATTENTION_S, calls(one.open))
    if not attention:
        # The runtime expands its cache and calls the library's attention.
        slots, head_dims = (SDPA_SLOTS[:1], SDPA_HEAD_DIMS[:1]) if quick else (SDPA_SLOTS, SDPA_HEAD_DIMS)
        yield from attention_pieces(ground, torch.float32, slots, head_dims, ATTENTION_S)


def attending(one: ProbedAttention) -> str:
    """The name of a curve of attention."""
    phase = "decode" if one.tokens == 1 else "prefill"
    return f"attention {phase}, {one.bits} bits, head {one.head_dim}"


def _expanding(what: str, probe: Callable[[int], tuple[int, Callable[[], object]] | None]) -> Iterator[Piece]:
    """Expansion of the widths that the runtime stores."""
    for bits in EXPAND_BITS:
        work = probe(bits)
        if work is not None:
            elements, call = work
            yield Piece(what, "elements/s", "bits", bits, elements, EXPAND_S, calls(partial(_held, call)))


def _held(call: Callable[[], object]) -> Callable[[], object]:
    """A call that is there already."""
    return call


# --- what the cost model reads ------------------------------------------------------------------


def _rates(named: Mapping[str, Curve], name: str) -> Rates:
    return tuple((float(bits), rate) for bits, rate, _ in named[name].points) if name in named else ()


def _product_times(named: Mapping[str, Curve], probe: RuntimeProbe) -> tuple[ProductTime, ...]:
    """Seconds for each number of a matrix, by kind and tokens."""
    kinds = dict.fromkeys(each.kind for each in probe.products())
    points = ((kind, named[f"{kind} product"].points) for kind in kinds)
    return tuple(ProductTime(kind, tuple((at, seconds) for at, seconds, _ in found)) for kind, found in points)


def _attention_times(named: Mapping[str, Curve], probe: RuntimeProbe) -> tuple[AttentionTime, ...]:
    """Seconds for a multiplication with a cached number, by width, head size and slots."""
    times: dict[tuple[int, int], dict[bool, list[tuple[int, float]]]] = {}
    for one in probe.attention():
        curve = named.get(attending(one))
        seconds = None if curve is None else curve.value(one.slots)
        if curve is not None and seconds is not None and (one.tokens > 1 or one.slots > FEW_SLOTS):
            once = _call_s(curve) if one.tokens == 1 else 0.0
            # Never more than half is the call's, however far the repeats spread.
            each = max(seconds - once, seconds / 2) / one.work
            times.setdefault((one.bits, one.head_dim), {}).setdefault(one.tokens == 1, []).append((one.slots, each))
    return tuple(
        AttentionTime(bits, head_dim, tuple(sorted(by[True])), tuple(sorted(by[False])))
        for (bits, head_dim), by in times.items()
    )


def _call_s(curve: Curve) -> float:
    """What attention over no slots at all would take: the line through the first two points, where there are two.

    >>> round(_call_s(Curve("decode", "s", "slots", ((64, 3e-5, 0.0), (512, 1e-4, 0.0)))) * 1e6, 3)
    20.0
    """
    (few, least, _), *more = curve.points
    if few > FEW_SLOTS or not more:
        return 0.0
    many, most, _ = more[0]
    return max(least - few * (most - least) / (many - few), 0.0)


def _priced_s(decoder: ProbedDecoder, products: tuple[ProductTime, ...], attention: tuple[AttentionTime, ...]) -> float:
    """Seconds of a decoder's layer that products and attention are priced at."""
    priced = sum(each.seconds(1) * decoder.numbers for each in products if each.kind == decoder.kind)
    if attention:
        widest = max(attention, key=lambda each: (each.bits, -each.head_dim))
        priced += widest.decode[0][1] * decoder.attended
    return priced
