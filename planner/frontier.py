"""A Pareto front from a solver that minimises one number under limits on the others.

The epsilon-constraint method (Haimes, Lasdon, Wismer 1971) on a grid of limits that is refined where it pays, as the
box algorithm does for two numbers (Hamacher, Pedersen, Ruzika 2007, doi:10.1016/j.orl.2006.12.006). A cell of limits
lies between a low corner and a high one. Its high corner is solved, so nothing in the cell is below that; at its low
corner what is known to be possible bounds it from above. The cell in which most is unknown, by its logarithmic volume
times the distance of these bounds, is halved next: flat stretches cost nothing, and solves gather where the front
bends.

Knows numbers only. The cells do not depend on how many points are asked for: asking for more adds to the same points.
"""

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from planner.dominance import undominated

T = TypeVar("T")
Values = tuple[float, ...]
Floats = NDArray[np.float64]

RESOLUTION = 1e-3
"""Relative difference below which two values count as equal: a solver's gap."""

FINEST = 1e-4
"""A cell with less than this share of the whole volume is not halved any more."""

BEYOND = 0.125
"""How far above its least the first currency may lie where nothing possible bounds it, as a share of its known range:
limits that only bind together can cost more than each of them does alone."""


@dataclass(frozen=True, slots=True)
class Found(Generic[T]):
    """What a solve gave: what the choice takes of every currency, and the choice."""

    values: Values
    choice: T


@dataclass(frozen=True, slots=True)
class Solved(Generic[T]):
    """A solve for the first currency under limits on the others; nothing was `found` where none keeps them."""

    limits: Values
    found: Found[T] | None

    def answers(self, limits: Values) -> bool:
        """Whether a solve under these limits could give nothing else."""
        looser = all(own >= other for own, other in zip(self.limits, limits, strict=True))
        return looser and (self.found is None or within(self.found.values, limits))


@dataclass(frozen=True, slots=True)
class Cell:
    """Limits on the currencies after the first between two corners, and what was `found` at the high one."""

    low: Values
    high: Values
    found: Values

    @property
    def widest(self) -> int:
        """The currency whose limits differ by the largest factor."""
        factors = [high / low for low, high in zip(self.low, self.high, strict=True)]
        return factors.index(max(factors))

    @property
    def middle(self) -> Values:
        """The high corner with its widest currency's limit half way down, by its logarithm."""
        at = self.widest
        return put(self.high, at, math.sqrt(self.low[at] * self.high[at]))

    def loosened(self, free: Values) -> Values:
        """The middle without the limits that what was found at the high corner does not need."""
        limits = zip(self.middle, free, self.high, self.found[1:], strict=True)
        spare = [most if taken * (1 + RESOLUTION) < high else own for own, most, high, taken in limits]
        return put(tuple(spare), self.widest, self.middle[self.widest])

    def halves(self, found: Values | None) -> tuple["Cell", ...]:
        """The two halves, `found` being that of the one with lower limits; None where nothing is possible in it."""
        at = self.widest
        upper = replace(self, low=put(self.low, at, self.middle[at]))
        return (upper,) if found is None else (Cell(self.low, self.middle, found), upper)


def put(values: Values, at: int, value: float) -> Values:
    """The same values but one.

    >>> put((1.0, 2.0), 1, 5.0)
    (1.0, 5.0)
    """
    return (*values[:at], value, *values[at + 1 :])


Solve = Callable[[int, Values], Found[T] | None]
"""(currency to minimise, limits on the currencies after the first, inf for none) to what was found."""


def trace(
    solve: Solve[T],
    currencies: int,
    most: int,
    scale: Callable[[float], float] = math.log,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[Solved[T], ...]:
    """At most `most` solves for the first of so many currencies, spread along its front against the others; none where
    nothing is possible at all.

    `scale` says how far apart values of the first currency are; the others are positive and compared by their ratios.
    `progress` is told how many solves are done. Finding where the front begins takes a solve more for each currency
    after the first.

    >>> plans = [(1.0, 64.0), (4.0, 16.0), (5.0, 17.0), (16.0, 4.0), (64.0, 1.0)]
    >>> def solve(minimise, limits):
    ...     kept = [plan for plan in plans if plan[1] <= limits[0]]
    ...     return Found(min(kept, key=lambda plan: plan[minimise]), "") if kept else None
    >>> sorted({solved.found.values for solved in trace(solve, 2, 9)})
    [(1.0, 64.0), (4.0, 16.0), (16.0, 4.0), (64.0, 1.0)]
    """
    free = (math.inf,) * (currencies - 1)
    first = solve(0, free)
    if first is None:
        return ()
    done: list[Solved[T]] = [Solved(free, first)]
    progress(1)
    low = least_of_each(solve, free, first)

    def at(limits: Values) -> Found[T] | None:
        for solved in done:
            if solved.answers(limits):
                return solved.found
        done.append(Solved(limits, solve(0, limits)))
        progress(len(done))
        return done[-1].found

    for number, least in enumerate(low):
        if len(done) < most:
            at(put(free, number, least))
    # As far as the best plans for one currency alone take the others.
    high = tuple(max(column) for column in zip(*(values[1:] for values in known(done)), strict=True))
    top = scale(max(values[0] for values in known(done)))
    bound = Bound(top, max(BEYOND * (top - scale(first.values[0])), RESOLUTION), scale)
    made = 0
    root = Cell(low, high, first.values)
    whole = volume(root, known(done), bound)
    # Sorted by volumes as they were: what is known since then can only have made them smaller.
    cells = [(-whole, 0, root)]
    while cells and len(done) < most:
        before, place, cell = heapq.heappop(cells)
        unknown = volume(cell, known(done), bound)
        if unknown <= FINEST * whole:
            continue
        if unknown < -before:
            heapq.heappush(cells, (-unknown, place, cell))
            continue
        # What is found without the limits that do not bind mostly keeps them, and then answers for all like these.
        loose = at(cell.loosened(high))
        if loose is not None and not within(loose.values, cell.middle) and len(done) == most:
            break
        found = at(cell.middle) if loose is not None else None
        for half in cell.halves(None if found is None else found.values):
            made += 1
            heapq.heappush(cells, (-volume(half, known(done), bound), made, half))
    return tuple(done)


def least_of_each(solve: Solve[T], free: Values, first: Found[T]) -> Values:
    """The least of every currency after the first, whatever the others."""
    least = []
    for number, value in enumerate(first.values[1:], start=1):
        found = solve(number, free)
        least.append(value if found is None else min(found.values[number], value))
    return tuple(least)


def known(done: Sequence[Solved[T]]) -> list[Values]:
    """What is known to be possible."""
    return [solved.found.values for solved in done if solved.found is not None]


@dataclass(frozen=True, slots=True)
class Bound:
    """What the first currency is taken to be at most where nothing possible tells: `top`, or `beyond` more than its
    least, both on its `scale`."""

    top: float
    beyond: float
    scale: Callable[[float], float]


def volume(cell: Cell, possible: Sequence[Values], bound: Bound) -> float:
    """How much of a cell is unknown: the product of its logarithmic sides and of the range left to the first currency.

    0 where the sides are within the resolution.

    >>> round(volume(Cell((1.0,), (math.e,), (2.0, 2.5)), [(4.0, 0.5), (3.0, 2.0)], Bound(9.0, 0.1, float)), 9)
    2.0

    Where nothing possible keeps the limits of the low corner:

    >>> round(volume(Cell((1.0,), (math.e,), (2.0, 2.5)), [(4.0, 1.5)], Bound(9.0, 0.1, float)), 9)
    7.0
    >>> round(volume(Cell((1.0,), (math.e,), (9.0, 2.5)), [(10.0, 1.5)], Bound(9.0, 0.1, float)), 9)
    0.1
    """
    sides = [math.log(high / low) for low, high in zip(cell.low, cell.high, strict=True)]
    if max(sides) <= RESOLUTION:
        return 0.0
    least = bound.scale(cell.found[0])
    worst = min(
        (bound.scale(values[0]) for values in possible if within(values, cell.low)),
        default=max(bound.top, least + bound.beyond),
    )
    # A side without length is a limit that the front does not depend on: it must not hide the others.
    return max(worst - least, 0.0) * math.prod(side for side in sides if side > 0.0)


def within(values: Values, limits: Values) -> bool:
    """Whether what a choice takes of the currencies after the first keeps limits on them."""
    return all(value <= limit for value, limit in zip(values[1:], limits, strict=True))


def front(values: Floats) -> list[int]:
    """Numbers of the rows that make a front, in the order of the first column: rows that others match or beat are left
    out, and those that one before matches or beats but for the resolution.

    >>> front(np.array([[3.0, 1.0], [1.0, 3.0], [1.0, 4.0], [1.0001, 2.999], [2.0, 2.0]]))
    [1, 4, 0]
    """
    order = np.lexsort(values.T[::-1])
    left = order[undominated(values[order], np.zeros(len(values), dtype=np.int64))]
    kept: list[int] = []
    for row in left.tolist():
        if not any((values[other] <= values[row] * (1 + RESOLUTION)).all() for other in kept):
            kept.append(row)
    return kept


def evenly(count: int, of: int) -> list[int]:
    """`count` places spread over a row of so many, its ends last to be taken.

    >>> evenly(3, 9), evenly(1, 5), evenly(4, 2)
    ([2, 4, 6], [2], [0, 1])
    """
    if count >= of:
        return list(range(of))
    return sorted({round((i + 1) * (of - 1) / (count + 1)) for i in range(count)})
