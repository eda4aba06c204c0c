"""How fast a file system's device reads and writes blocks of each size, at each queue depth, past the page cache.

Blocks go with O_DIRECT to and from page-aligned memory, at random places or one behind the other, of a file of random
bytes that was flushed to the device. As many threads as the queue is deep wait for a block each. A file system that
lives in memory, or refuses O_DIRECT, has no such rate: a page-cache read is no flash read.
"""

import mmap
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from random import Random
from tempfile import mkstemp
from typing import Literal

import psutil  # type: ignore[import-untyped,unused-ignore]

from planner.errors import InputError
from profiles.crew import paced
from profiles.record import Piece
from profiles.timing import Sample

Pattern = Literal["random", "sequential"]
Way = Literal["read", "write"]

BLOCKS_BYTES = tuple(4**power for power in range(6, 13))
DEPTHS: dict[tuple[Way, Pattern], tuple[int, ...]] = {
    ("read", "random"): (1, 2, 4, 8, 16, 32),
    ("read", "sequential"): (1, 4, 32),
    ("write", "random"): (1, 32),
    ("write", "sequential"): (1, 32),
}
QUICK_BLOCKS_BYTES, QUICK_DEPTHS = (4096, 2**18, 2**24), (1, 32)
IN_FLIGHT_BYTES = 64 * 2**20
"""Large blocks in deep queues would take longer than they tell: the device is busy with fewer."""

BLOCK_S = 0.1
FILE_BYTES, QUICK_FILE_BYTES = 256 * 2**20, 64 * 2**20
FEWEST_FILE_BYTES = 32 * 2**20
MOST_CAPACITY_BYTES = 10**12
IN_MEMORY = frozenset({"tmpfs", "ramfs", "devtmpfs", "hugetlbfs"})


@dataclass(frozen=True, slots=True)
class FlashFile:
    """A file on the device that nobody else sees: its name is gone, and closing it frees its space."""

    descriptor: int
    size: int
    capacity_bytes: int

    def close(self) -> None:
        os.close(self.descriptor)


@dataclass(frozen=True, slots=True)
class NoFlash:
    """Why a directory's device has no rate of its own."""

    reason: str


def flash_file(directory: Path, file_bytes: int = FILE_BYTES) -> FlashFile | NoFlash:
    """A file for measuring the device that holds a directory, filled and flushed."""
    if not directory.is_dir():
        raise InputError(f"{directory}: is not a directory; give one on the device to measure")
    kind = file_system(directory)
    if kind in IN_MEMORY:
        return NoFlash(f"{directory} is on {kind}, which lives in memory")
    if not hasattr(os, "O_DIRECT") or not hasattr(os, "preadv"):
        return NoFlash("this system has no O_DIRECT reads")
    free = shutil.disk_usage(directory).free
    size = min(file_bytes, free // 4) // BLOCKS_BYTES[-1] * BLOCKS_BYTES[-1]
    if size < FEWEST_FILE_BYTES:
        return NoFlash(f"{directory} has {free} bytes free, too few to read from")
    try:
        return _opened(directory, kind, size, min(free, MOST_CAPACITY_BYTES))
    except OSError as error:
        raise InputError(f"{directory}: cannot be measured: {error.strerror}; give a directory to write in") from error


def _opened(directory: Path, kind: str, size: int, capacity_bytes: int) -> FlashFile | NoFlash:
    plain, name = mkstemp(dir=directory, prefix=".planner-flash-")
    try:
        try:
            direct = os.open(name, os.O_RDWR | os.O_DIRECT)
        except OSError as error:
            return NoFlash(f"{directory} on {kind} refuses O_DIRECT: {error.strerror}")
        finally:
            os.unlink(name)  # first of all: whatever ends this process, nothing stays behind
        try:
            # Random bytes, so that no layer compresses them or finds them equal.
            for at in range(0, size, BLOCKS_BYTES[-1]):
                os.pwrite(plain, os.urandom(BLOCKS_BYTES[-1]), at)
            os.fsync(plain)
        except BaseException:
            os.close(direct)
            raise
        return FlashFile(direct, size, capacity_bytes)
    finally:
        os.close(plain)


def file_system(directory: Path) -> str:
    """The kind of file system a directory is on, '' where the system does not say."""
    where = directory.resolve()
    mounts = [m for m in psutil.disk_partitions(all=True) if where.is_relative_to(m.mountpoint)]
    return max(mounts, key=lambda mount: len(mount.mountpoint)).fstype if mounts else ""


def flashing(pattern: Pattern, way: Way, depth: int) -> str:
    """The name of a curve.

    >>> flashing("random", "read", 4)
    'flash random read, depth 4'
    """
    return f"flash {pattern} {way}, depth {depth}"


def flash_pieces(file: FlashFile, write: bool, quick: bool) -> Iterator[Piece]:
    """Blocks of each size by pattern and depth; written as well where that was asked for."""
    for (way, pattern), depths in DEPTHS.items():
        if way == "write" and not write:
            continue
        for depth in (d for d in depths if d in QUICK_DEPTHS or not quick):
            for block in QUICK_BLOCKS_BYTES if quick else BLOCKS_BYTES:
                if depth * block <= IN_FLIGHT_BYTES:
                    sample = partial(_paced, file, pattern, way, depth, block)
                    yield Piece(flashing(pattern, way, depth), "bytes/s", "bytes", block, block, BLOCK_S, sample)


def _paced(file: FlashFile, pattern: Pattern, way: Way, depth: int, block: int, budget_s: float) -> Sample:
    """Seconds for a block with so many under way."""
    onward = count()
    return paced([_moving(file, pattern, way, block, onward, seed) for seed in range(depth)], budget_s)


def _moving(
    file: FlashFile, pattern: Pattern, way: Way, block: int, onward: Iterator[int], seed: int
) -> Callable[[], int]:
    """A call that reads or writes one block: at a random place, or the next that no other thread took."""
    buffer = mmap.mmap(-1, block)
    if way == "write":
        buffer[:] = os.urandom(block)
    move = os.preadv if way == "read" else os.pwritev
    random, blocks = Random(seed), file.size // block

    def one() -> int:
        place = random.randrange(blocks) if pattern == "random" else next(onward) % blocks
        if move(file.descriptor, [buffer], place * block) != block:
            raise OSError(0, "a block came back short")
        return 1

    return one
