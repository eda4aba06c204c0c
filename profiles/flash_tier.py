"""The flash tier of a profile: the file it is measured by, and what a runtime would read from it."""

from collections.abc import Mapping
from contextlib import ExitStack

from planner.errors import InputError
from planner.hardware import MemoryTier
from planner.measured import Curve
from profiles.flash import FILE_BYTES, QUICK_FILE_BYTES, FlashFile, NoFlash, flash_file, flashing
from profiles.record import Order


def opened_flash(order: Order, stack: ExitStack) -> tuple[list[str], FlashFile | None]:
    """(notes, the file to measure by, closed with `stack`); InputError where a directory asked for will not do."""
    found = flash_file(order.flash or order.scratch, QUICK_FILE_BYTES if order.quick else FILE_BYTES)
    if isinstance(found, NoFlash):
        if order.flash is not None:
            raise InputError(f"--flash {order.flash}: {found.reason}; give a directory on the device to measure")
        return [f"no flash tier: {found.reason}"], None
    stack.callback(found.close)
    of = f"of a file of {found.size >> 20} MiB, which a device's own cache may hold in part"
    return [f"flash tier: random blocks one at a time, its rate the largest blocks in order, {of}"], found


def flash_directory(order: Order, flash: FlashFile | None) -> str:
    """The directory whose device was measured, '' where none was."""
    return str((order.flash or order.scratch).resolve()) if flash is not None else ""


def flash_tier(flash: FlashFile | None, named: Mapping[str, Curve]) -> tuple[MemoryTier, ...]:
    """The tier as a runtime reads it that waits for each block; none where no device was measured."""
    if flash is None:
        return ()
    curve = tuple((block, rate) for block, rate, _ in named[flashing("random", "read", 1)].points)
    return (MemoryTier("flash", flash.capacity_bytes, named[flashing("sequential", "read", 1)].points[-1][1], curve),)
