"""Which measured shapes a fit may see, and which are kept out to judge it."""

import numpy as np
from numpy.typing import NDArray

# Odd constants of splitmix64 (Steele, Lea and Flood, OOPSLA 2014).
_STEP = np.uint64(0x9E3779B97F4A7C15)
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def held_out(*sizes: NDArray[np.int64], share: float = 1 / 3) -> NDArray[np.bool_]:
    """Which rows are kept out of every fit, by a hash of their sizes alone; about `share` of the distinct shapes.

    The same sizes fall on the same side whatever the row, framework, type or GPU, so a shape that one table fits is
    never judged through another.

    >>> held_out(np.array([0, 1, 2, 0]), np.array([5, 5, 5, 5])).tolist()
    [True, False, False, True]
    """
    state = np.zeros(np.broadcast_shapes(*(size.shape for size in sizes)), np.uint64)
    with np.errstate(over="ignore"):
        for size in sizes:
            state = _mixed(state + size.astype(np.uint64) + _STEP)
    held: NDArray[np.bool_] = state.astype(np.float64) < share * 2.0**64
    return held


def _mixed(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = (state ^ (state >> np.uint64(30))) * _MIX[0]
    state = (state ^ (state >> np.uint64(27))) * _MIX[1]
    return state ^ (state >> np.uint64(31))
