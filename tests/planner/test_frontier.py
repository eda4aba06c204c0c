"""Fronts of small made-up sets of plans, searched exhaustively: what is solved is best, and nothing is missed."""

import math
from itertools import pairwise

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from planner.frontier import RESOLUTION, Found, Solved, Values, front, trace, within

# Powers of two: far apart for the resolution.
POWERS = st.integers(0, 9).map(lambda power: 2.0**power)
QUICK = settings(max_examples=60, deadline=None)


def plans(currencies: int, most: int = 25) -> st.SearchStrategy[list[Values]]:
    return st.lists(st.tuples(*[POWERS] * currencies), min_size=1, max_size=most)


def traced(offered: list[Values], most: int) -> tuple[Solved[int], ...]:
    def solve(minimise: int, limits: Values) -> Found[int] | None:
        kept = [i for i, plan in enumerate(offered) if within(plan, limits)]
        if not kept:
            return None
        best = min(kept, key=lambda i: (offered[i][minimise], offered[i]))
        return Found(offered[best], best)

    return trace(solve, len(offered[0]), most)


def values(solves: tuple[Solved[int], ...]) -> list[Values]:
    return [solved.found.values for solved in solves if solved.found is not None]


def beats(one: Values, other: Values) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


@QUICK
@given(st.one_of(plans(2), plans(3)), st.integers(2, 12))
def test_every_solve_keeps_its_limits_and_is_the_least_within_them(offered: list[Values], most: int) -> None:
    solves = traced(offered, most)
    assert 1 <= len(solves) <= most
    for solved in solves:
        kept = [plan for plan in offered if within(plan, solved.limits)]
        assert (solved.found is None) == (not kept)
        if solved.found is not None:
            assert within(solved.found.values, solved.limits)
            assert solved.found.values[0] == min(plan[0] for plan in kept)


@settings(max_examples=20, deadline=None)
@example([(128.0, 64.0, 8.0), (64.0, 128.0, 32.0), (128.0, 8.0, 1.0), (256.0, 4.0, 4.0), (128.0, 4.0, 512.0)])
@given(st.one_of(plans(2), plans(3, 6)))
def test_with_solves_enough_no_plan_of_the_front_is_missed(offered: list[Values]) -> None:
    """Of those that take no more of a currency than the best plans for the other ones alone."""
    found = values(traced(offered, 2000))
    most = [max(plan[i] for plan in found[: len(offered[0])]) for i in range(1, len(offered[0]))]
    best = {plan for plan in offered if not any(beats(other, plan) for other in offered)}
    assert {plan for plan in best if all(a <= b for a, b in zip(plan[1:], most, strict=True))} <= set(found)


@QUICK
@given(st.one_of(plans(2), plans(3)), st.integers(2, 12), st.integers(0, 20))
def test_asking_for_more_adds_to_the_same_points(offered: list[Values], few: int, more: int) -> None:
    assert traced(offered, few + more)[:few] == traced(offered, few)[:few]


@QUICK
@given(st.one_of(plans(2), plans(3)))
def test_no_plan_is_solved_for_twice_under_limits_that_a_solve_answers(offered: list[Values]) -> None:
    solves = traced(offered, 40)
    for i, solved in enumerate(solves):
        assert not any(before.answers(solved.limits) for before in solves[:i])


def test_solves_gather_where_the_front_bends() -> None:
    """On log x * log y = 1/4 between two long arms; a grid of even steps would have 3 of 16 limits at the bend."""
    along = np.geomspace(0.05, 5.0, 400)
    offered = [(math.exp(x), math.exp(0.25 / x)) for x in along.tolist()]
    bend = [point for point in values(traced(offered, 16)) if 0.2 <= math.log(point[0]) <= 1.25]
    assert len(bend) >= 6


def test_nothing_possible_gives_nothing() -> None:
    assert trace(lambda minimise, limits: None, 3, 9) == ()


ROWS = st.integers(2, 4).flatmap(
    lambda width: st.lists(st.tuples(*[st.floats(0.0, 10.0)] * width), min_size=1, max_size=30)
)


@QUICK
@given(ROWS)
def test_a_front_has_no_point_that_another_beats_and_answers_all_that_is_left_out(rows: list[Values]) -> None:
    found = np.array(rows)
    kept = front(found)
    assert [rows[i][0] for i in kept] == sorted(rows[i][0] for i in kept)
    for i in kept:
        assert not any(i != j and (found[j] <= found[i]).all() for j in kept)
    for row in found:
        assert any((found[i] <= row * (1 + RESOLUTION)).all() for i in kept)


@QUICK
@given(st.lists(st.tuples(st.floats(0.1, 10.0), st.floats(0.1, 10.0)), min_size=1, max_size=30))
def test_a_front_of_two_currencies_falls(rows: list[Values]) -> None:
    kept = [rows[i] for i in front(np.array(rows))]
    assert all(a[0] < b[0] and a[1] > b[1] for a, b in pairwise(kept))
