"""Interpolation over a grid of measured shapes, some of which may be missing."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """Values at sizes, linear between them in the logarithm of each size; NaN where nothing was measured.

    axes    one ascending array of sizes a dimension
    values  [sizes of axis 0, sizes of axis 1, ...]
    """

    axes: tuple[Floats, ...]
    values: Floats

    @staticmethod
    def of(sizes: Sequence[Ints], values: Floats) -> "Grid":
        """A grid through rows of (sizes, value); of rows with the same sizes the mean.

        sizes   a column a dimension, [rows] each
        values  [rows]
        """
        axes, where = zip(*(np.unique(column, return_inverse=True) for column in sizes), strict=True)
        shape = tuple(len(axis) for axis in axes)
        total, count = np.zeros(shape), np.zeros(shape)
        np.add.at(total, where, values)
        np.add.at(count, where, 1)
        with np.errstate(invalid="ignore"):
            return Grid(tuple(axis.astype(np.float64) for axis in axes), total / count)

    def at(self, *sizes: ArrayLike) -> Floats:
        """The value at sizes that broadcast; the nearest edge's outside the grid, NaN where no neighbour was measured.

        Where some neighbours are missing the others share their weight.

        >>> grid = Grid.of([np.array([1, 4, 4])], np.array([10.0, 30.0, 50.0]))
        >>> grid.at([1, 2, 4, 99]).tolist()
        [10.0, 25.0, 40.0, 40.0]
        """
        points = np.broadcast_arrays(*(np.asarray(size, np.float64) for size in sizes))
        cells = [_cell(axis, point) for axis, point in zip(self.axes, points, strict=True)]
        total, weight = np.zeros(points[0].shape), np.zeros(points[0].shape)
        for corner in product((0, 1), repeat=len(cells)):
            share = np.ones(points[0].shape)
            for side, (_, _, upper) in zip(corner, cells, strict=True):
                share = share * (upper if side else 1 - upper)
            value = self.values[tuple(cell[side] for side, cell in zip(corner, cells, strict=True))]
            measured = ~np.isnan(value)
            total += np.where(measured, share * np.where(measured, value, 0), 0)
            weight += np.where(measured, share, 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            found: Floats = np.where(weight > 1e-9, total / weight, np.nan)
        return found


def _cell(axis: Floats, point: Floats) -> tuple[NDArray[np.intp], NDArray[np.intp], Floats]:
    """The indices below and above each point, and the share of the one above."""
    above = np.clip(np.searchsorted(axis, point), 1, max(len(axis) - 1, 1))
    below, above = above - 1, np.minimum(above, len(axis) - 1)
    x, low, high = np.log(np.clip(point, axis[0], axis[-1])), np.log(axis[below]), np.log(axis[above])
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(high > low, (x - low) / (high - low), 0.0)
    return below, above, share
