"""How fast a file system's device reads blocks of each size, past the page cache.

Reads go with O_DIRECT into page-aligned memory, one at a time, at random places of a file that was flushed to the
device. A file system that lives in memory, or refuses O_DIRECT, has no such rate: a page-cache read is no flash read.
"""

import mmap
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from tempfile import NamedTemporaryFile
from time import perf_counter

import psutil  # type: ignore[import-untyped,unused-ignore]

from planner.errors import InputError
from profiles.timing import NOISY, Sample, sample

BLOCKS_BYTES = tuple(2**power for power in range(12, 23))
FILE_BYTES = 256 * 2**20
FEWEST_FILE_BYTES = 16 * 2**20
PASS_S = 0.12
PASSES = 4
MOST_CAPACITY_BYTES = 10**12
IN_MEMORY = frozenset({"tmpfs", "ramfs", "devtmpfs", "hugetlbfs"})


@dataclass(frozen=True, slots=True)
class Flash:
    """The read curve of random blocks, (block bytes, bytes per second); the rate of reading on; the widest spread."""

    capacity_bytes: int
    curve: tuple[tuple[int, float], ...]
    sequential_bytes_per_s: float
    spread: float
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class NoFlash:
    """Why a directory's device has no read rate of its own."""

    reason: str


def measure_flash(scratch: Path, done: Callable[[int, int], None], file_bytes: int = FILE_BYTES) -> Flash | NoFlash:
    """Read rates of the device that holds `scratch`, by a temporary file there; `done` hears of each block size."""
    if not scratch.is_dir():
        raise InputError(f"{scratch}: is not a directory; give one on the device to measure")
    kind = file_system(scratch)
    if kind in IN_MEMORY:
        return NoFlash(f"{scratch} is on {kind}, which lives in memory")
    if not hasattr(os, "O_DIRECT") or not hasattr(os, "preadv"):
        return NoFlash("this system has no O_DIRECT reads")
    free = shutil.disk_usage(scratch).free
    size = min(file_bytes, free // 4) // BLOCKS_BYTES[-1] * BLOCKS_BYTES[-1]
    if size < FEWEST_FILE_BYTES:
        return NoFlash(f"{scratch} has {free} bytes free, too few to read from")
    try:
        with NamedTemporaryFile(dir=scratch, prefix=".planner-flash-") as file:
            _fill(file.fileno(), size)
            try:
                direct = os.open(file.name, os.O_RDONLY | os.O_DIRECT)
            except OSError as error:
                return NoFlash(f"{scratch} on {kind} refuses O_DIRECT: {error.strerror}")
            try:
                return _read(direct, size, free, done)
            finally:
                os.close(direct)
    except OSError as error:
        raise InputError(f"{scratch}: cannot be measured: {error.strerror}; give a directory to write in") from error


def file_system(directory: Path) -> str:
    """The kind of file system a directory is on, '' where the system does not say."""
    where = directory.resolve()
    mounts = [m for m in psutil.disk_partitions(all=True) if where.is_relative_to(m.mountpoint)]
    return max(mounts, key=lambda mount: len(mount.mountpoint)).fstype if mounts else ""


def _fill(descriptor: int, size: int) -> None:
    # Random bytes, so that no layer compresses them or finds them equal.
    block = os.urandom(BLOCKS_BYTES[-1])
    for at in range(0, size, len(block)):
        os.pwrite(descriptor, (at.to_bytes(8, "little") + block)[: len(block)], at)
    os.fsync(descriptor)


def _read(descriptor: int, size: int, free: int, done: Callable[[int, int], None]) -> Flash:
    random = Random(0)
    curve: list[tuple[int, float]] = []
    notes: list[str] = []
    worst = 0.0
    with mmap.mmap(-1, BLOCKS_BYTES[-1]) as buffer, memoryview(buffer) as memory:
        # The device's own cache and clock settle first.
        _pass(descriptor, memory, list(range(0, min(size, 64 * 2**20), len(memory))))
        for block in BLOCKS_BYTES:
            with memory[:block] as view:
                passes = [
                    _pass(descriptor, view, [random.randrange(size // block) * block for _ in range(4096)])
                    for _ in range(PASSES)
                ]
            each = sample(passes)
            curve.append((block, block / each.seconds))
            worst = max(worst, each.spread)
            if each.spread > NOISY:
                notes.append(f"flash reads of {block} bytes spread by {each.spread:.0%}")
            done(len(curve), len(BLOCKS_BYTES) + 1)
        onward = _sequential(descriptor, memory, size)
        done(len(BLOCKS_BYTES) + 1, len(BLOCKS_BYTES) + 1)
    worst = max(worst, onward.spread)
    capacity = min(free, MOST_CAPACITY_BYTES)
    return Flash(capacity, tuple(curve), BLOCKS_BYTES[-1] / onward.seconds, worst, tuple(notes))


def _sequential(descriptor: int, memory: memoryview, size: int) -> Sample:
    blocks = list(range(0, size, len(memory)))
    quarter = max(1, len(blocks) // PASSES)
    return sample([_pass(descriptor, memory, blocks[at : at + quarter]) for at in range(0, len(blocks), quarter)])


def _pass(descriptor: int, view: memoryview, places: list[int]) -> float:
    """Seconds a read takes, on average over the places reached within `PASS_S`."""
    reads, spent = 0, 0.0
    start = perf_counter()
    while reads < len(places) and spent < PASS_S:
        if os.preadv(descriptor, [view], places[reads]) != len(view):
            raise OSError(0, "a read came back short")
        reads += 1
        spent = perf_counter() - start
    return spent / reads
