"""Candidates of a site, and labels of a group of sites, that others match or beat in everything. Knows numbers only.

At one site a candidate can go if another of its cell (candidates that no relation tells apart) is as good in every
column. Where sites may use so many labels together nothing can go at one of them alone: a dearer candidate may be the
one that shares its label with another site. But a whole label can go if, wherever it is offered, another label has an
answer as good to each of its candidates: put in its place at every site, the other one never makes more labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

BLOCK = 64
# So few rows are compared all at once.
FEW = 16


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """One site of a group: what its candidates use, their labels, and their cells in all other relations."""

    usage: Floats
    label: Ints
    cell: Ints


def undominated(usage: Floats, cell: Ints) -> Bools:
    """Which rows no other row of their cell matches or beats in every column; of equal rows the first.

    >>> usage = np.array([[1.0, 2.0], [2.0, 2.0], [1.0, 2.0], [0.0, 9.0]])
    >>> undominated(usage, np.array([0, 0, 0, 0])).tolist(), undominated(usage, np.array([0, 1, 2, 0])).tolist()
    ([True, False, False, True], [True, True, True, True])
    """
    count = len(usage)
    if count <= FEW:
        return ~beaten(matched(usage, cell))
    if len(np.unique(cell)) == count:
        return np.ones(count, dtype=bool)
    columns = ranks(same_cell(usage, cell))
    # In this order a row can only be dominated by one before it, which is no worse in the first column.
    order = np.lexsort(columns[::-1]) if len(columns) else np.arange(count)
    left, compared = order, columns[1:, order]
    keep = np.zeros(count, dtype=bool)
    while len(left):
        size = min(BLOCK, len(left))
        beats = np.ones((size, len(left)), dtype=bool)
        beats[:, :size] = ~np.tri(size, dtype=bool)
        for column in compared:
            beats &= column[:size, None] <= column
        alive: Bools = np.logical_not(beats.any(axis=0))
        keep[left[:size][alive[:size]]] = True
        alive[:size] = False
        left, compared = left[alive], compared[:, alive]
    return keep


def same_cell(usage: Floats, cell: Ints) -> Floats:
    """The columns with two more, by which only rows of the same cell can match one another: no higher, and no lower."""
    found: Floats = np.column_stack((cell, -cell, usage))
    return found


def matched(usage: Floats, cell: Ints) -> Bools:
    """[a, b]: whether row a is of the same cell as row b and no worse in any column."""
    result: Bools = cell[:, None] == cell
    for column in usage.T:
        result &= column[:, None] <= column
    return result


def beaten(beats: Bools) -> Bools:
    """Which b have an a as good, of [a, b]; of two that are as good as one another, only the later."""
    result: Bools = (beats & ~(beats.T & np.tri(len(beats), dtype=bool))).any(axis=0)
    return result


def ranks(usage: Floats) -> NDArray[np.int16] | NDArray[np.int32]:
    """[columns, rows]: the columns as ranks, which compare faster, without those that repeat another or never differ.

    >>> ranks(np.array([[0.5, 7.0, 0.5], [0.1, 7.0, 0.1], [0.5, 7.0, 0.5]])).tolist()
    [[1, 0, 1]]
    """
    distinct = list({column.tobytes(): column for column in usage.T}.values())
    columns = np.stack(distinct) if distinct else np.zeros((0, len(usage)))
    order = np.argsort(columns, axis=1, kind="stable")
    ordered = np.take_along_axis(columns, order, axis=1)
    steps = np.cumsum(ordered[:, 1:] > ordered[:, :-1], axis=1)
    result = np.zeros(columns.shape, dtype=np.int16 if len(usage) < 2**15 else np.int32)
    np.put_along_axis(result, order[:, 1:], steps.astype(result.dtype), axis=1)
    differ: NDArray[np.int16] | NDArray[np.int32] = result[steps[:, -1:].any(axis=1)]
    return differ


def superfluous_labels(group: Sequence[Labelled]) -> Ints:
    """Labels that another one stands in for at every site that offers them, with nothing worse; of equals the first.

    At a site the first candidate of one label is compared with the first of the other, and so on: a label has few, one
    for each memory tier as a rule. A candidate that only one of the two has counts as endlessly dear.

    Label 1 costs both sites more than label 0; label 2 does so at the first site alone:

    >>> label, cell = np.array([0, 1, 2]), np.zeros(3, dtype=np.int64)
    >>> first, second = (Labelled(np.array(c)[:, None], label, cell) for c in ([1.0, 2.0, 3.0], [1.0, 2.0, 0.5]))
    >>> superfluous_labels((first, second)).tolist(), superfluous_labels((first,)).tolist()
    ([1], [1, 2])
    """
    names = np.unique(np.concatenate([site.label for site in group]))
    columns = []
    for site in group:
        order = np.argsort(site.label, kind="stable")
        label = site.label[order]
        place = np.arange(len(label)) - np.searchsorted(label, label)
        known = same_cell(site.usage, site.cell)[order]
        table = np.full((len(names), int(place.max(initial=0)) + 1, known.shape[1]), np.inf)
        table[np.searchsorted(names, label), place] = known
        columns.append(table.reshape(len(names), -1))
    superfluous: Ints = names[~undominated(np.hstack(columns), np.zeros(len(names), dtype=np.int64))]
    return superfluous
