"""Bytes that kernels load and store, counted in Triton's interpreter in sectors of 32 bytes, as a GPU's memory is read.

Each load or store of a program moves the distinct sectors that its unmasked pointers touch: a warp's accesses are
coalesced so. `requested` adds them up over all operations, as if no cache held anything from one to the next;
`by_program` has a sector once for each program that touches it, as if a program's own cache held all it has touched;
`distinct` has every sector once for a whole launch. What a GPU moves lies between.
"""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod

import numpy as np
from numpy.typing import NDArray
from triton.runtime import interpreter

SECTOR_BYTES = 32

Sectors = NDArray[np.uint64]
Builder = interpreter.InterpreterBuilder
Handle = interpreter.TensorHandle


Program = tuple[int, int, int]


@dataclass
class Moved:
    """What loads, or stores, of one launch moved: sectors operation by operation, for each program."""

    sectors: dict[Program, list[Sectors]] = field(default_factory=lambda: defaultdict(list))

    @property
    def requested(self) -> int:
        """Bytes of all operations."""
        return SECTOR_BYTES * sum(len(each) for found in self.sectors.values() for each in found)

    @property
    def programs(self) -> dict[Program, int]:
        """Bytes of the distinct sectors of each program."""
        return {at: _distinct(found) for at, found in self.sectors.items()}

    @property
    def distinct(self) -> int:
        """Bytes of the distinct sectors of all."""
        return _distinct([each for found in self.sectors.values() for each in found])


@dataclass
class Traffic:
    """One launch: what it loaded and stored, and how evenly."""

    kernel: str
    programs: int
    read: Moved = field(default_factory=Moved)
    written: Moved = field(default_factory=Moved)

    @property
    def balance(self) -> float:
        """Largest over mean bytes that a program of the grid loads; 1 where all load equally much."""
        loaded = self.read.programs.values()
        return max(loaded) * self.programs / sum(loaded) if sum(loaded) else 1.0


def sectors(addresses: NDArray[np.uint64], mask: NDArray[np.bool_], element_bytes: int) -> Sectors:
    """The distinct sectors that the unmasked of some elements lie in.

    >>> sectors(np.array([0, 4, 62, 96], np.uint64), np.array([True, True, True, False]), 4)
    array([0, 1, 2], dtype=uint64)
    """
    live = addresses[np.broadcast_to(mask, addresses.shape)].astype(np.uint64)
    first = live // np.uint64(SECTOR_BYTES)
    last = (live + np.uint64(max(element_bytes, 1) - 1)) // np.uint64(SECTOR_BYTES)
    return np.unique(np.concatenate([first, last]))


@contextmanager
def counted() -> Iterator[list[Traffic]]:
    """The traffic of every launch inside, in order, each launch when it has ended."""
    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
    load, store, call = builder.create_masked_load, builder.create_masked_store, executor.__call__
    launches: list[Traffic] = []
    running: list[Traffic] = []

    def count(into: Moved, builder: Builder, ptrs: Handle, mask: Handle) -> None:
        element_bytes = max(1, ptrs.get_element_ty().primitive_bitwidth // 8)
        into.sectors[tuple(builder.grid_idx)].append(sectors(ptrs.data, mask.data, element_bytes))

    def counting_load(self: Builder, ptrs: Handle, mask: Handle, *rest: object, **named: object) -> object:
        count(running[-1].read, self, ptrs, mask)
        return load(self, ptrs, mask, *rest, **named)

    def counting_store(self: Builder, ptrs: Handle, value: Handle, mask: Handle, *rest: object) -> object:
        count(running[-1].written, self, ptrs, mask)
        return store(self, ptrs, value, mask, *rest)

    def counting_call(self: interpreter.GridExecutor, *args: object, **named: object) -> object:
        grid = self.grid(named) if callable(self.grid) else self.grid
        running.append(Traffic(self.fn.__name__, prod(grid)))
        result = call(self, *args, **named)
        launches.append(running.pop())
        return result

    builder.create_masked_load, builder.create_masked_store = counting_load, counting_store
    executor.__call__ = counting_call
    try:
        yield launches
    finally:
        builder.create_masked_load, builder.create_masked_store = load, store
        executor.__call__ = call


def _distinct(found: list[Sectors]) -> int:
    return SECTOR_BYTES * len(np.unique(np.concatenate(found))) if found else 0
