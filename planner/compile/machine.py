"""This machine measured as it was asked for, and compared with what it was."""

from pathlib import Path
from typing import TYPE_CHECKING

from planner.compile.prepare import cache_directory, kept_machine
from planner.compile.runtimes import runtime
from planner.drift import Drift, compare, refuse_unlike, slower_than
from planner.executor import Progress
from planner.files import write_text
from planner.hardware import HardwareProfile
from planner.measured import Measuring
from planner.serde import dump, load_file

if TYPE_CHECKING:
    from profiles.record import Doubt


def measured(how: Measuring, progress: Progress) -> HardwareProfile:
    """The profile of this machine; kept for `--target local` where nothing but the runtime was asked for."""
    from profiles.record import unsteady

    found = _measured(how, progress, (unsteady,))
    if how == Measuring(how.backend):
        write_text(dump(found), kept_machine(how.backend))
    return found


def checked(how: Measuring, baseline: Path, share: float, progress: Progress) -> tuple[HardwareProfile, Drift]:
    """The profile and what moved since a baseline; figures that look slower are timed twice more before they count.

    A baseline of something else is refused before anything is measured.
    """
    from profiles import gpu, hardware
    from profiles.record import Piece, unsteady
    from profiles.timing import Sample

    before = load_file(baseline, HardwareProfile)
    if how.device == "cuda":
        machine = gpu.this_gpu(how.quick)
    else:
        machine = hardware.this_cpu(runtime(how.backend).probe(), how.quick)
    refuse_unlike(before, machine, str(baseline))
    slower = slower_than(before, share)

    def doubted(piece: Piece, taken: Sample) -> bool:
        return slower(piece.curve, piece.at, piece.value(taken.seconds), taken.spread)

    now = _measured(how, progress, (lambda *one: unsteady(*one) or doubted(*one), doubted))
    return now, compare(before, now, share, str(baseline))


def _measured(how: Measuring, progress: Progress, doubts: "tuple[Doubt, ...]") -> HardwareProfile:
    from profiles import gpu, hardware
    from profiles.record import Order

    order = Order(cache_directory(), progress, how.flash, how.write, how.quick, doubts)
    return gpu.measure_gpu(order) if how.device == "cuda" else hardware.measure(order, runtime(how.backend).probe())
