"""Seconds of a compiled launch, predicted: what variants are ranked by where no GPU is there to time them."""

from dataclasses import dataclass
from math import ceil

from backends.triton.chips import chip
from backends.triton.report import Resources
from planner.errors import InputError
from planner.hardware import HardwareProfile

LATENCY_S = 7e-7
"""From a load's issue to its data under load; assumed: 300 to 500 ns idle on data-center GPUs, queues beside."""

LOAD_BYTES = 16
"""Widest load of a thread."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a launch must do at least, and its grid."""

    programs: int
    bytes_read: int
    bytes_written: int
    flop: int


@dataclass(frozen=True, slots=True)
class Gpu:
    """The figures of a target that rank variants; bandwidth and throughput as real kernels reach them."""

    name: str
    architecture: str
    multiprocessors: int
    bytes_per_s: float
    flop_per_s: float
    launch_s: float


def gpu(hardware: HardwareProfile) -> Gpu:
    """A target's figures; InputError where its chip is not described, or kernels are not compiled for it."""
    if hardware.operators is None:
        raise InputError(
            f"target {hardware.name}: describes no chip, so there is no architecture to compile kernels for"
        )
    sheet = hardware.operators.sheet
    chip(sheet.architecture)
    return Gpu(
        hardware.name,
        sheet.architecture,
        sheet.sm_count,
        hardware.fastest.read_bytes_per_s * hardware.efficiency,
        hardware.flop_per_s(hardware.float_bits) * hardware.efficiency,
        hardware.kernel_overhead_s,
    )


def waves(work: Work, resources: Resources, gpu: Gpu) -> int:
    """Rounds in which a grid runs, each as many programs as all multiprocessors hold at once."""
    return ceil(work.programs / (resources.occupancy.programs * gpu.multiprocessors))


def seconds(work: Work, resources: Resources, stages: int, warp_size: int, gpu: Gpu) -> float:
    """The launch's call and its rounds, each as long as the longer of its memory and its arithmetic.

    Bandwidth is reached where enough bytes are under way (Little's law, as in V. Volkov, Understanding latency hiding
    on GPUs, 2016): of each program the stages of its pipeline in shared memory but the one it computes on, or one load
    of 16 bytes a thread where that is more. Arithmetic takes what it takes the multiprocessor that has the most
    programs of a round.
    """
    at_once = resources.occupancy.programs * gpu.multiprocessors
    under_way = max(resources.warps * warp_size * LOAD_BYTES, resources.shared_bytes * (stages - 1) // stages)

    def round_s(programs: int) -> float:
        share = programs / work.programs
        bytes_per_s = min(gpu.bytes_per_s, programs * under_way / LATENCY_S)
        evenness = programs / (ceil(programs / gpu.multiprocessors) * gpu.multiprocessors)
        moved, computed = share * (work.bytes_read + work.bytes_written), share * work.flop
        return max(moved / bytes_per_s, computed / (gpu.flop_per_s * evenness))

    full, rest = divmod(work.programs, at_once)
    return gpu.launch_s + full * round_s(at_once) + (round_s(rest) if rest else 0.0)
