"""Candidates that another one of their site matches or beats in everything are dropped.

Whole price vectors are compared, not only the rows of this goal, and only candidates that no relation between sites can
tell apart: a dearer candidate may be the one that lets its layer share a kernel. Of equals the earlier stays. Whatever
limits follow, an optimum is left: where it took a dropped candidate, the one that beat it fits as well.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from planner.pipeline import PassContext
from planner.space import Choice, Requires, Site, Space, attribute

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

BLOCK = 64


@dataclass(frozen=True, slots=True)
class PruneDominated:
    """Drops candidates that another one of their site matches or beats in every price."""

    name: ClassVar[str] = "prune-dominated"

    def run(self, space: Space, ctx: PassContext) -> Space:
        table = ctx.price(space)
        cells = told_apart(space)
        kept: dict[Site, tuple[Choice, ...]] = {}
        start = 0
        for site, choices in space.candidates.items():
            usage = table.usage[start : start + len(choices)]
            start += len(choices)
            keep = undominated(usage, cells[site])
            kept[site] = tuple(choice for choice, stays in zip(choices, keep.tolist(), strict=True) if stays)
        return Space(kept, space.constraints)


def told_apart(space: Space) -> dict[Site, Ints]:
    """For every candidate of every site a number: equal where no constraint tells two candidates apart."""
    marks: dict[Site, list[list[object]]] = {site: [] for site in space.sites}
    for constraint in space.constraints:
        if isinstance(constraint, Requires):
            for site, named in (
                (constraint.site, constraint.choices),
                (constraint.other, constraint.other_choices),
            ):
                marks[site].append([choice in named for choice in space.candidates[site]])
        else:
            for site in constraint.sites:
                marks[site].append([attribute(choice, constraint.attribute) for choice in space.candidates[site]])
    cells: dict[Site, Ints] = {}
    for site, choices in space.candidates.items():
        numbers: dict[tuple[object, ...], int] = {}
        signatures = zip(*marks[site], strict=True)
        found = [numbers.setdefault(signature, len(numbers)) for signature in signatures]
        cells[site] = np.array(found or [0] * len(choices))
    return cells


def undominated(usage: Floats, cell: Ints) -> Bools:
    """Which rows no other row of their cell matches or beats in every column; of equal rows the first.

    >>> usage = np.array([[1.0, 2.0], [2.0, 2.0], [1.0, 2.0], [0.0, 9.0]])
    >>> undominated(usage, np.array([0, 0, 0, 0])).tolist(), undominated(usage, np.array([0, 1, 2, 0])).tolist()
    ([True, False, False, True], [True, True, True, True])
    """
    columns = distinct(usage)
    # A row can only be dominated by one that comes before it in this order.
    order = np.lexsort((np.arange(len(usage)), *columns.T[::-1], cell))
    ordered, cells = columns[order], cell[order]
    alive = np.ones(len(order), dtype=bool)
    for start in range(0, len(order), BLOCK):
        block = start + np.flatnonzero(alive[start : start + BLOCK])
        later = start + np.flatnonzero(alive[start:])
        beats = cells[block, None] == cells[later]
        for column in ordered.T:
            beats &= column[block, None] <= column[later]
        beats &= block[:, None] < later
        alive[later[beats.any(axis=0)]] = False
    keep = np.zeros(len(order), dtype=bool)
    keep[order[alive]] = True
    return keep


def distinct(usage: Floats) -> Floats:
    """The columns without those that are equal to another, or the same for all rows: they decide nothing."""
    found: dict[bytes, Floats] = {}
    for column in usage.T:
        if column.min() < column.max():
            found.setdefault(column.tobytes(), column)
    return np.stack(list(found.values()), axis=1) if found else np.zeros((len(usage), 1))
