"""What this machine can do, measured: memory, matrix products, flash, and the pieces of a runtime that runs here.

Takes about a minute. Every figure is the median of repeats and stands in the profile's curves beside its spread; what
the cost model reads is computed from them.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from datetime import date
from functools import partial
from os import cpu_count
from pathlib import Path
from statistics import quantiles

import torch

from planner.errors import InputError
from planner.executor import FEW_SLOTS, ProbedAttention, ProbedDecoder, RuntimeProbe
from planner.hardware import AttentionTime, HardwareProfile, MemoryTier, ProductTime, Rates
from planner.measured import Curve, Machine, by_name, complaints
from profiles.flash import FILE_BYTES, QUICK_FILE_BYTES, FlashFile, NoFlash, flash_file, flash_pieces, flashing
from profiles.machine import available_bytes, cpu_flags, cpu_name, cpu_seconds, last_cache_bytes, load_average
from profiles.memory import memory_pieces, reading
from profiles.record import Order, Piece, calls, take
from profiles.tensor_ops import Ground, attention_pieces, product_pieces
from profiles.timing import wall_clock

EXPAND_BITS = (2, 3, 4, 5, 8, 16)
LEAST_ERROR, MOST_ERROR = 0.25, 1.0
"""What repeats of one call do not show (other shapes, another day) is at least 0.25; beyond 1 nothing is known."""

MATMUL_S, EXPAND_S, OVERHEAD_S, PRODUCT_S, ATTENTION_S = 0.4, 0.4, 1.5, 0.35, 0.3
QUICK_SHARE = 0.2
"""Of every budget, where a quick profile is asked for."""

QUICK_SLOTS, QUICK_HEAD_DIM = 2048, 64
"""Longest caches and largest heads of a quick profile."""

DEEP_LAYERS = 16
TOKENS = (1, 16, 64, 512)
MATRIX = 2048
SDPA_SLOTS, SDPA_HEAD_DIMS = (512, 2048, 8192), (64, 128)
BF16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
INT8 = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "i8mm"})


def this_machine(runtime: str, software: tuple[str, ...]) -> Machine:
    """This machine's CPU, nothing measured yet."""
    return Machine("cpu", cpu_name(), cpu_count() or 1, runtime, software, "", False, load_average(), 0.0)


def software(probe: RuntimeProbe) -> tuple[str, ...]:
    """What a CPU profile's figures depend on, with versions."""
    return probe.name, f"torch {torch.__version__}"


def measure(order: Order, probe: RuntimeProbe) -> HardwareProfile:
    """The profile of this machine's CPU and of a flash device, for the runtime behind `probe`."""
    machine = replace(this_machine(probe.runtime, software(probe)), quick=order.quick)
    before = cpu_seconds()
    with ExitStack() as stack, torch.inference_mode():
        notes, flash = opened_flash(order, stack)
        decoders = _decoders(probe)
        pieces = [*cpu_pieces(probe, order.quick, machine.threads), *(piece for _, _, piece in decoders)]
        if flash is not None:
            pieces += flash_pieces(flash, order.write, order.quick)
        curves = take(hastened(pieces, order.quick), order.progress, order.doubts)
    named = by_name(curves)
    attention = _attention_times(named, probe)
    products = _product_times(named, probe)
    layer_s, kernel_s, step_s = _overheads(named, decoders, products, attention)
    rate = named[reading(machine.threads)].points[-1][1]
    machine = replace(
        machine, others_share=before.others_share(cpu_seconds()), flash=str(flash_directory(order, flash))
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
    yield from product_pieces(ground, types, TOKENS, MATRIX, MATMUL_S)
    yield from _expanding("expand weights", probe.expand_weights)
    yield from _expanding("expand KV", probe.expand_kv)
    for each in probe.products():
        yield Piece(f"{each.kind} product", "s", "tokens", each.tokens, each.work, PRODUCT_S, calls(each.open))
    attention = probe.attention()
    for one in attention:
        if not quick or (one.slots <= QUICK_SLOTS and one.head_dim <= QUICK_HEAD_DIM):
            yield Piece(attending(one), "s", "slots", one.slots, one.layers, ATTENTION_S, calls(one.open))
    if not attention:
        # The runtime expands its cache and calls the library's attention.
        slots, head_dims = (SDPA_SLOTS[:2], SDPA_HEAD_DIMS[:1]) if quick else (SDPA_SLOTS, SDPA_HEAD_DIMS)
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


Decoders = tuple[tuple[int, ProbedDecoder, Piece], ...]


def _decoders(probe: RuntimeProbe) -> Decoders:
    """Short decoders: one layer, many, and many whose heads are of two classes."""
    made = []
    for layers, classes in ((1, 1), (1 + DEEP_LAYERS, 1), (1 + DEEP_LAYERS, 2)):
        one = probe.decoder(layers, classes)
        curve = f"decoder step, {classes} class{'es' if classes > 1 else ''}"
        made.append((layers, one, Piece(curve, "s", "layers", layers, 1, OVERHEAD_S, calls(partial(_held, one.call)))))
    return tuple(made)


def hastened(pieces: list[Piece], quick: bool) -> list[Piece]:
    """The pieces, with a share of their budgets where a quick profile is asked for."""
    return [replace(each, budget_s=each.budget_s * QUICK_SHARE) for each in pieces] if quick else pieces


# --- what the cost model reads ------------------------------------------------------------------


def throughput(named: Mapping[str, Curve]) -> tuple[tuple[str, float], ...]:
    """Of the library's products with the most tokens, by type."""
    types = (name.split()[1] for name in named if name.startswith("torch ") and name.endswith(" product"))
    return tuple((kind, named[f"torch {kind} product"].points[-1][1]) for kind in types)


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


def _overheads(
    named: Mapping[str, Curve],
    decoders: Decoders,
    products: tuple[ProductTime, ...],
    attention: tuple[AttentionTime, ...],
) -> tuple[float, float, float]:
    """Seconds that a layer, a class of heads and a step take beside what is priced: differences of short decoders."""
    one_s, deep_s, parted_s = (named[piece.curve].value(layers) or 0.0 for layers, _, piece in decoders)
    (_, deep, _) = decoders[1]
    each_class = max(parted_s - deep_s, 0.0) / (1 + DEEP_LAYERS)
    each_layer = max(deep_s - one_s, 0.0) / DEEP_LAYERS
    priced = sum(each.seconds(1) * deep.numbers for each in products if each.kind == deep.kind)
    floats = [each.decode[0][1] for each in attention if each.bits == max(other.bits for other in attention)]
    priced += floats[0] * deep.attended if floats else 0.0
    return max(each_layer - each_class - priced, 0.0), each_class, max(one_s - each_layer, 0.0)


def error(curves: tuple[Curve, ...], least: float) -> float:
    """The relative half-width of a prediction: what nine in ten figures spread by, and `least` at the least."""
    spreads = [spread for curve in curves for _, _, spread in curve.points]
    ninth = quantiles(spreads, n=10, method="inclusive")[-1] if len(spreads) > 1 else spreads[0]
    return min(max(least, ninth), MOST_ERROR)


# --- flash and notes ----------------------------------------------------------------------------


def opened_flash(order: Order, stack: ExitStack) -> tuple[list[str], FlashFile | None]:
    """(notes, the file to measure by, closed with `stack`); InputError where a directory asked for will not do."""
    found = flash_file(order.flash or order.scratch, QUICK_FILE_BYTES if order.quick else FILE_BYTES)
    if isinstance(found, NoFlash):
        if order.flash is not None:
            raise InputError(f"--flash {order.flash}: {found.reason}; give a directory on the device to measure")
        return [f"no flash tier: {found.reason}"], None
    stack.callback(found.close)
    return ["flash tier: random blocks one at a time; its rate: the largest blocks in order"], found


def flash_directory(order: Order, flash: FlashFile | None) -> Path | str:
    return (order.flash or order.scratch).resolve() if flash is not None else ""


def flash_tier(flash: FlashFile | None, named: Mapping[str, Curve]) -> tuple[MemoryTier, ...]:
    """The tier a runtime would read from, one block at a time."""
    if flash is None:
        return ()
    curve = tuple((block, rate) for block, rate, _ in named[flashing("random", "read", 1)].points)
    return (MemoryTier("flash", flash.capacity_bytes, named[flashing("sequential", "read", 1)].points[-1][1], curve),)


def machine_notes(machine: Machine) -> tuple[str, ...]:
    """The load under which figures were taken, and what makes them differ from others'."""
    notes = [
        f"load average {machine.load_average:.2f} on {machine.threads} CPUs when measuring began; others took"
        f" {machine.others_share:.0%} of them meanwhile"
    ]
    if "hypervisor" in cpu_flags():
        notes.append("virtual machine: its host may cache flash reads and share the cores")
    if machine.quick:
        notes.append("quick: short budgets, no long caches; for comparing, not for planning")
    return tuple(notes)
