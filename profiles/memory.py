"""How fast the CPU reads memory, by how much of it is read over and over, with one thread and with all."""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from profiles.crew import paced
from profiles.machine import available_bytes, last_cache_bytes
from profiles.record import Piece
from profiles.timing import Sample

CACHED_BYTES = tuple(2**power for power in range(16, 27, 2))
LEAST_BYTES = 256 * 2**20
READ_S = 0.2
CALL_BYTES = 4 * 2**20
"""A call reads at least so much, its working set again and again, or calling would count."""


def reading(threads: int) -> str:
    """The name of the curve."""
    return f"memory read, {threads} thread{'' if threads == 1 else 's'}"


def beyond_caches_bytes() -> int:
    """A working set that no cache holds, and an eighth of the free memory at most.

    >>> beyond_caches_bytes() > 0
    True
    """
    size = max(8 * last_cache_bytes(), LEAST_BYTES)
    while size > available_bytes() // 8:
        size //= 2
    return size


def memory_pieces(threads: int, quick: bool) -> Iterator[Piece]:
    """Reads of working sets from the first cache level's size on, the last beyond all caches.

    A set is divided among the threads; each sums its part in float32 at its own pace.
    """
    beyond = beyond_caches_bytes()
    cached = CACHED_BYTES[2::2] if quick else CACHED_BYTES
    for size in (*(size for size in cached if size < beyond), beyond):
        for count in dict.fromkeys((1, threads)):
            yield Piece(reading(count), "bytes/s", "bytes", size, 1, READ_S, partial(_read, size, count))


def _read(size: int, threads: int, budget_s: float) -> Sample:
    """Seconds for a byte read by all threads together."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # each of our threads is one of its own
    try:
        return paced([_summing(size // threads // 4) for _ in range(threads)], budget_s)
    finally:
        torch.set_num_threads(before)


def _summing(count: int) -> Callable[[], int]:
    """A call that reads so many numbers as often as makes `CALL_BYTES`, and says how many bytes that were."""
    again = max(1, CALL_BYTES // (4 * count))
    numbers = torch.ones(count).view(1, 1, count).expand(1, again, count)
    read_bytes = 4 * count * again

    def read() -> int:
        numbers.sum(dim=(1, 2))
        return read_bytes

    return read
