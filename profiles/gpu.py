"""What a GPU can do, measured with the tensor library's own operations: memory, products, attention, links, launches.

CUDA and ROCm builds of torch alike. Times are the device's own, by events. The profile's rates are measured ones; that
a step is a roofline of them is not, and its error says so.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from datetime import date
from functools import partial

import torch

from planner.errors import InputError
from planner.hardware import HardwareProfile, MemoryTier
from planner.measured import Curve, Machine, by_name, complaints, count
from profiles.findings import decoder_pieces, error, machine_notes, overheads, throughput
from profiles.flash import flash_pieces
from profiles.flash_tier import flash_directory, flash_tier, opened_flash
from profiles.machine import available_bytes, cpu_seconds, load_average
from profiles.record import Order, Piece, hastened, take
from profiles.tensor_ops import (
    Ground,
    attention_pieces,
    copy_pieces,
    decoder_step,
    launch_pieces,
    link_pieces,
    product_pieces,
)

LEAST_ERROR = 0.4
"""Rooflines of a GPU's rates miss its kernels by about so much, however well the rates are known."""

COPY_S, PRODUCT_S, ATTENTION_S, LINK_S, LAUNCH_S = 0.5, 0.4, 0.4, 0.3, 0.5
COPIED_BYTES = tuple(2**power for power in (20, 24, 28, 30))
CROSSING_BYTES = tuple(4**power for power in range(6, 14))
TOKENS, MATRIX = (1, 16, 64, 512, 4096), 8192
SLOTS, HEAD_DIMS = (512, 2048, 8192, 32768), (64, 128)
LAUNCHES = 256
OTHERS_HOLD = 0.05
"""A share of the GPU's memory that others hold above this is told."""


def refusal() -> str:
    """Why no GPU can be measured here, or nothing."""
    if torch.cuda.is_available():
        return ""
    if torch.version.cuda is None and torch.version.hip is None:
        return f"torch {torch.__version__} was built for CPUs only; install a build for CUDA or ROCm"
    return f"torch {torch.__version__} finds no GPU; nvidia-smi or rocm-smi says whether its driver runs"


def this_gpu(quick: bool) -> Machine:
    """The GPU that torch uses, nothing measured yet; InputError where there is none."""
    why = refusal()
    if why:
        raise InputError(f"--device cuda: {why}; leave --device out to measure the CPU")
    found = torch.cuda.get_device_properties(torch.cuda.current_device())
    driver = f"CUDA {torch.version.cuda}" if torch.version.hip is None else f"ROCm {torch.version.hip}"
    software = (f"torch {torch.__version__}", driver)
    return Machine(
        "cuda", found.name, found.multi_processor_count, "torch", software, "", quick, load_average(), 0.0, 0
    )


def event_clock(call: Callable[[], object], times: int) -> float:
    """Seconds of the device's own time from the first call's start until the last one's end."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    begin.record()
    for _ in range(times):
        call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


def measure_gpu(order: Order) -> HardwareProfile:
    """The profile of the GPU that torch uses, of its link to the host, and of a flash device."""
    machine = this_gpu(order.quick)
    before = cpu_seconds()
    found = torch.cuda.get_device_properties(torch.cuda.current_device())
    free, whole = torch.cuda.mem_get_info()
    ground = Ground(torch.device("cuda"), event_clock, found.L2_cache_size)
    with ExitStack() as stack, torch.inference_mode():
        notes, flash = opened_flash(order, stack)
        types = kinds(torch.version.hip is not None, torch.cuda.get_device_capability())
        pieces = list(gpu_pieces(ground, types, free, order.quick))
        if flash is not None:
            pieces += flash_pieces(flash, order.write, order.quick)
        curves = take(hastened(pieces, order.quick), order.progress, order.doubts)
        slower = (MemoryTier("dram", available_bytes(), *link(by_name(curves))), *flash_tier(flash, by_name(curves)))
    held = whole - free - torch.cuda.memory_reserved()
    if held > OTHERS_HOLD * whole:
        notes.append(f"others hold {held / whole:.0%} of the GPU's memory, and may have used it meanwhile")
    machine = replace(
        machine,
        flash=flash_directory(order, flash),
        others_share=before.others_share(cpu_seconds()),
        figures=count(curves),
    )
    return gpu_profile(machine, curves, free, slower, tuple(notes))


def gpu_profile(
    machine: Machine, curves: tuple[Curve, ...], free_bytes: int, slower: tuple[MemoryTier, ...], notes: tuple[str, ...]
) -> HardwareProfile:
    """The profile that follows from curves, with the tiers behind the GPU's own memory."""
    named = by_name(curves)
    layer_s, kernel_s, step_s = overheads(named, 0.0)
    return HardwareProfile(
        name="local-gpu",
        kind="gpu",
        float_bits=16,
        tiers=(MemoryTier("hbm", free_bytes, named["memory copy"].points[-1][1]), *slower),
        matmul_flop_per_s=throughput(named),
        layer_overhead_s=layer_s,
        step_overhead_s=step_s,
        kernel_overhead_s=kernel_s,
        provenance="measured",
        error=error(curves, LEAST_ERROR),
        sources=(f"measured on {machine.processor}, {', '.join(machine.software)}",),
        date=date.today().isoformat(),
        notes=(*notes, *machine_notes(machine), *complaints(machine, curves)),
        machine=machine,
        curves=curves,
    )


def link(named: Mapping[str, Curve]) -> tuple[float, tuple[tuple[int, float], ...]]:
    """(bytes per second of the largest block, the curve by block size) from the host to the device."""
    points = named["host to device"].points
    return points[-1][1], tuple((size, rate) for size, rate, _ in points)


def kinds(rocm: bool, capability: tuple[int, int]) -> tuple[str, ...]:
    """The types whose products the library has for a device: on ROCm only those that need no kernel of their own.

    >>> kinds(False, (8, 0)), kinds(False, (9, 0))[-1], kinds(True, (9, 4))
    (('fp32', 'fp16', 'bf16', 'int8'), 'fp8', ('fp32', 'fp16', 'bf16'))
    """
    since = {"fp32": (0, 0), "fp16": (0, 0), "bf16": (8, 0), "int8": (8, 0), "fp8": (8, 9)}
    return tuple(
        kind for kind, first in since.items() if capability >= first and not (rocm and kind in ("int8", "fp8"))
    )


def gpu_pieces(ground: Ground, types: tuple[str, ...], free_bytes: int, quick: bool) -> Iterator[Piece]:
    """Everything but flash, in memory of which so much is free."""
    half = torch.bfloat16 if "bf16" in types else torch.float16
    copied = [size for size in COPIED_BYTES if 8 * size <= free_bytes]
    yield from copy_pieces(ground, copied[-1:] if quick else copied, COPY_S)
    yield from product_pieces(ground, types, TOKENS[::2] if quick else TOKENS, MATRIX, PRODUCT_S)
    slots, head_dims = (SLOTS[:1], HEAD_DIMS[1:]) if quick else (SLOTS, HEAD_DIMS)
    yield from attention_pieces(ground, half, slots, head_dims, ATTENTION_S)
    yield from link_pieces(ground, CROSSING_BYTES[::3] if quick else CROSSING_BYTES, LINK_S)
    yield from launch_pieces(ground, LAUNCHES, LAUNCH_S)
    yield from decoder_pieces(partial(decoder_step, ground), ground.clock)
