"""A formula backed by a table: what the formula misses, interpolated between the measured shapes around.

The logarithm of measured over predicted is taken as a Gaussian process over the logarithms of the sizes, with an
exponential covariance and a nugget for what does not repeat: simple kriging (Matheron 1963) from the nearest shapes.
Far from every measured shape it falls back to the formula.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from planner.errors import InputError

Floats = NDArray[np.float64]

_NEIGHBOURS = 16
# Rows that a covariance is chosen on, by how well it predicts each from the others.
_JUDGED = 800
_CHUNK = 512


@dataclass(frozen=True, slots=True)
class Covariance:
    """How alike two shapes' misses are: exp(-distance), in doublings of each size over its `reach`.

    `nugget` is the variance that does not repeat from shape to shape, over the variance that does.
    """

    reach: tuple[float, ...]
    nugget: float


@dataclass(frozen=True, slots=True, eq=False)
class Misses:
    """Measured over predicted at the shapes that a fit may see.

    places     [shapes, sizes]   logarithms to base 2 of the sizes
    log_ratio  [shapes]          natural logarithm of measured over predicted
    """

    places: Floats
    log_ratio: Floats
    covariance: Covariance

    def factor(self, sizes: Floats) -> Floats:
        """What to multiply the formula by at each shape.  sizes [queries, sizes], all of at least 1"""
        places = np.log2(sizes) / self.covariance.reach
        tree = KDTree(self.places / self.covariance.reach)
        near = min(_NEIGHBOURS, len(self.log_ratio))
        found = np.empty(len(places))
        for start in range(0, len(places), _CHUNK):
            rows = slice(start, start + _CHUNK)
            index = tree.query(places[rows], k=[*range(1, near + 1)])[1]
            found[rows] = _kriged(tree.data[index], self.log_ratio[index], places[rows], self.covariance.nugget)
        return np.exp(found)


def misses(sizes: Floats, measured_s: Floats, predicted_s: Floats, covariance: Covariance | None = None) -> Misses:
    """What a formula misses at measured shapes; without a covariance, by the one they themselves follow best.

    sizes  [shapes, sizes]  of at least 1 each; the same rows as both latencies
    """
    if not len(sizes):
        raise InputError("no measured shape to interpolate from")
    places, log_ratio = np.log2(sizes), np.log(measured_s / predicted_s)
    return Misses(places, log_ratio, covariance or _searched(places, log_ratio))


def _searched(places: Floats, log_ratio: Floats) -> Covariance:
    """The covariance under which each shape's miss best follows from the others'."""
    best = Covariance((2.0,) * places.shape[1], 0.3)
    if len(places) <= 2 * _NEIGHBOURS:
        return best
    loss = _loss(places, log_ratio, best)
    for change in _neighbourhood(best):
        if (found := _loss(places, log_ratio, change(best))) < loss:
            best, loss = change(best), found
    return best


@dataclass(frozen=True, slots=True)
class _Change:
    """One step of the search for a covariance: a reach or the nugget times a factor."""

    size: int | None
    times: float

    def __call__(self, one: Covariance) -> Covariance:
        if self.size is None:
            return Covariance(one.reach, one.nugget * self.times)
        reach = tuple(r * self.times if i == self.size else r for i, r in enumerate(one.reach))
        return Covariance(reach, one.nugget)


def _neighbourhood(start: Covariance) -> Iterator[_Change]:
    """Changes to try in turn, each kept where it helps: two rounds over every reach and the nugget."""
    for _ in range(2):
        for size in (*range(len(start.reach)), None):
            for times in (2.0, 2.0, 0.5, 0.5):
                yield _Change(size, times)


def _loss(places: Floats, log_ratio: Floats, covariance: Covariance) -> float:
    """Mean absolute error of every judged shape's miss, predicted from its neighbours without it."""
    judged = np.random.default_rng(0).permutation(len(places))[:_JUDGED]
    scaled = places / covariance.reach
    index = KDTree(scaled).query(scaled[judged], k=_NEIGHBOURS + 1)[1]
    # Of shapes measured twice either may come first; what is left out is the shape itself.
    itself = (index == judged[:, None]).argmax(1)
    index = np.array([np.delete(row, at) for row, at in zip(index, itself, strict=True)])
    kriged = _kriged(scaled[index], log_ratio[index], scaled[judged], covariance.nugget)
    return float(np.abs(kriged - log_ratio[judged]).mean())


def _kriged(near: Floats, log_ratio: Floats, places: Floats, nugget: float) -> Floats:
    """The miss at each place from those near.

    near [queries, neighbours, sizes]; log_ratio [queries, neighbours]; places [queries, sizes]
    """
    among = np.exp(-_distance(near[:, :, None], near[:, None]))
    among += nugget * np.eye(near.shape[1])
    towards = np.exp(-_distance(near, places[:, None]))
    weights = np.linalg.solve(among, towards[..., None])[..., 0]
    kriged: Floats = (weights * log_ratio).sum(1)
    return kriged


def _distance(one: Floats, other: Floats) -> Floats:
    """Between places, size by size: an array of every difference at once would not stay in a cache."""
    squared = np.square(one[..., 0] - other[..., 0])
    for size in range(1, one.shape[-1]):
        squared += np.square(one[..., size] - other[..., size])
    distance: Floats = np.sqrt(squared)
    return distance
