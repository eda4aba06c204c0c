"""Budgets of layers: exact totals, and PrefixKV's loop-free form against the bisection it replaces."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from passes import prefix_kv, pyramid_kv
from planner.errors import InputError


@given(
    layers=st.integers(1, 130),
    mean=st.floats(1, 5000),
    beta=st.floats(1, 60),
    room=st.floats(1, 3),
)
def test_pyramid_budgets_sum_to_the_total_and_never_rise(layers: int, mean: float, beta: float, room: float) -> None:
    total = max(int(layers * mean), layers)
    most = int(np.ceil(room * total / layers))
    found = pyramid_kv.budgets(total, layers, beta, most)
    assert sum(found) == total
    assert max(found) <= most and min(found) >= 0
    assert all(a >= b - 1 for a, b in pairwise(found))  # but for the rounding


def test_pyramid_is_uniform_at_beta_one() -> None:
    assert pyramid_kv.budgets(400, 4, beta=1) == (100, 100, 100, 100)


@pytest.mark.parametrize(("total", "most"), [(3, None), (401, 100)])
def test_pyramid_refuses_what_cannot_be_spread(total: int, most: int | None) -> None:
    with pytest.raises(InputError, match="give at least 4"):
        pyramid_kv.budgets(total, 4, most=most)


def bisected(curves: list[np.ndarray], total: int) -> tuple[int, ...] | None:
    """PrefixKV's search: the share p whose prefixes fill the budget; None where no p does."""
    low, high = 0.0, 1.0
    for _ in range(200):
        p = (low + high) / 2
        counts = [int(np.searchsorted(curve, p, side="left")) for curve in curves]
        if sum(counts) == total:
            return tuple(counts)
        low, high = (p, high) if sum(counts) < total else (low, p)
    return None


@given(seed=st.integers(0, 10_000), layers=st.integers(1, 12), steps=st.integers(2, 80), share=st.floats(0.05, 1))
def test_the_exact_form_is_what_bisection_converges_to(seed: int, layers: int, steps: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    curves = []
    for _ in range(layers):
        mass = rng.permutation(1 / np.arange(1, steps + 1) ** rng.uniform(0.5, 2))
        curves.append(np.concatenate([[0.0], np.cumsum(mass / mass.sum())[:-1]]))
    total = max(round(share * layers * steps), layers)
    found = prefix_kv.budgets(curves, total)
    assert sum(found) == total
    expected = bisected(curves, total)
    assert expected is None or found == expected


def test_the_exact_form_ends_where_no_share_fits() -> None:
    flat = np.array([0.0, 1.0, 1.0, 1.0])  # three steps of no mass: no p takes one of them without the others
    assert bisected([flat, flat], 3) is None
    assert prefix_kv.budgets([flat, flat], 3) == (2, 1)


@pytest.mark.parametrize("total", [0, 9])
def test_prefix_refuses_what_is_not_there(total: int) -> None:
    with pytest.raises(InputError, match="give 1 to 8"):
        prefix_kv.budgets([np.zeros(4), np.zeros(4)], total)
