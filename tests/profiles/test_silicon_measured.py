"""A formula backed by measured shapes: it learns what the formula misses, and forgets it far away."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.errors import InputError
from profiles.silicon.baselines import ThreeConstants, gemm_roofline, roofline_s, three_constants
from profiles.silicon.measured import Covariance, misses

GRID = np.array([(2.0**m, 2.0**n) for m in range(12) for n in range(10, 15)])


def test_a_miss_that_all_shapes_share_is_made_good() -> None:
    found = misses(GRID, np.full(60, 1.3e-3), np.full(60, 1e-3))
    between = np.array([[24.0, 3000.0], [700.0, 6000.0]])
    assert found.factor(between) == pytest.approx(1.3, rel=0.03)


def test_far_from_every_shape_the_formula_stands() -> None:
    found = misses(GRID, np.full(60, 1.3e-3), np.full(60, 1e-3), Covariance((1.0, 1.0), 0.1))
    assert found.factor(np.array([[1e9, 1e9]])) == pytest.approx(1, abs=1e-3)


def test_what_varies_from_shape_to_shape_is_followed_where_it_is_smooth() -> None:
    truth = np.exp(0.2 * np.sin(np.log2(GRID[:, 0]) / 2))
    kept = np.arange(60) % 3 > 0
    found = misses(GRID[kept], truth[kept], np.ones(kept.sum()))
    missed = np.abs(np.log(found.factor(GRID[~kept]) / truth[~kept])).mean()
    assert missed < 0.3 * np.abs(np.log(truth[~kept])).mean()


@given(st.integers(0, 2**32 - 1))
def test_noise_is_not_believed(seed: int) -> None:
    """Where misses do not repeat, backing by them adds less than the noise itself."""
    noise = np.random.default_rng(seed).normal(0, 0.1, 60)
    found = misses(GRID, np.exp(noise), np.ones(60), Covariance((2.0, 2.0), 10.0))
    assert np.log(found.factor(GRID)).std() < noise.std()


def test_one_shape_is_enough_and_none_is_refused() -> None:
    assert misses(GRID[:1], np.array([2.0]), np.array([1.0])).factor(GRID[:1])[0] > 1.3
    with pytest.raises(InputError, match="no measured shape"):
        misses(GRID[:0], np.array([]), np.array([]))


def test_three_constants_are_found_again() -> None:
    flop_s, byte_s = (10.0 ** axis.ravel() for axis in np.meshgrid(np.arange(-7, -2.0), np.arange(-7, -2.0)))
    truth = ThreeConstants(launch_s=4e-6, flop_share=0.6, byte_share=0.8)
    found = three_constants(flop_s, byte_s, truth.latency_s(flop_s, byte_s))
    assert found.latency_s(flop_s, byte_s) == pytest.approx(truth.latency_s(flop_s, byte_s), rel=1e-3)


def test_the_roofline_of_a_product_turns_from_traffic_to_arithmetic() -> None:
    m = np.array([1.0, 4096.0])
    flop_s, byte_s = gemm_roofline(m, np.full(2, 4096.0), np.full(2, 4096.0), 16, 16, 312e12, 2.039e12)
    assert roofline_s(flop_s, byte_s).tolist() == [byte_s[0], flop_s[1]]
