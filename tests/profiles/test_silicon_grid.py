"""Interpolation between measured shapes: exact at them, within them between, whatever is missing."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from profiles.silicon.grid import Grid

SIZES = st.lists(st.integers(1, 4096), min_size=1, max_size=12, unique=True)


def grid(rows: np.ndarray, columns: np.ndarray, values: np.ndarray) -> Grid:
    return Grid.of((np.repeat(rows, len(columns)), np.tile(columns, len(rows))), values)


@given(rows=SIZES, columns=SIZES, seed=st.integers(0, 99))
def test_measured_shapes_keep_their_values_and_others_stay_among_them(
    rows: list[int], columns: list[int], seed: int
) -> None:
    x, y = np.sort(rows), np.sort(columns)
    values = np.random.default_rng(seed).normal(size=len(x) * len(y))
    found = grid(x, y, values)
    assert np.allclose(found.at(np.repeat(x, len(y)), np.tile(y, len(x))), values)
    between = found.at(np.array([1, 7, 100, 9999])[:, None], np.array([1, 9, 4096]))
    assert between.shape == (4, 3)
    assert (between >= values.min() - 1e-9).all() and (between <= values.max() + 1e-9).all()


def test_a_power_law_is_found_again_from_its_logarithm() -> None:
    x, y = np.array([1, 8, 64]), np.array([2, 32])
    log = (0.5 * np.log(x)[:, None] - 2 * np.log(y)).ravel()
    assert np.allclose(grid(x, y, log).at(20, [3.0, 17.0]), 0.5 * np.log(20) - 2 * np.log([3.0, 17.0]))


def test_a_missing_neighbour_leaves_its_weight_to_the_others() -> None:
    found = Grid.of((np.array([1, 1, 4]), np.array([1, 4, 1])), np.array([1.0, 2.0, 3.0]))
    assert np.isnan(found.at(4, 4))
    assert 1.0 < found.at(2, 2) < 3.0


def test_repeated_shapes_count_as_their_mean() -> None:
    assert Grid.of((np.array([5, 5]),), np.array([1.0, 3.0])).at(5) == 2.0
