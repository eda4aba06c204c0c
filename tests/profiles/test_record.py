"""Taking figures: what is in doubt is taken again, the faster take stays, and progress is told to the end."""

from collections.abc import Callable, Iterator

import pytest

from planner.errors import InputError
from planner.measured import NOISY, Curve, Machine, Unit, complaints
from profiles.crew import paced
from profiles.machine import CpuSeconds, cpu_seconds
from profiles.record import Piece, hastened, take, unsteady
from profiles.timing import FEWEST, FEWEST_SLOW, Sample, in_turns, sample, timed, wall_clock


def piece(curve: str, at: int, *takes: Sample, unit: Unit = "s", work: float = 1) -> Piece:
    """A figure whose takes are known beforehand."""
    left: Iterator[Sample] = iter(takes)
    return Piece(curve, unit, "bytes", at, work, 1.0, lambda budget_s: next(left))


def silent(stage: str, done: int, of: int) -> None:
    """Nobody watches."""


STEADY, ROUGH = Sample(2.0, 0.0), Sample(2.0, 2 * NOISY)


def test_points_of_a_curve_come_together_in_order() -> None:
    pieces = (piece("b", 8, STEADY), piece("a", 1, STEADY, unit="bytes/s", work=8), piece("b", 4, Sample(1.0, 0.1)))
    assert take(pieces, silent) == (
        Curve("b", "s", "bytes", ((4, 1.0, 0.1), (8, 2.0, 0.0))),
        Curve("a", "bytes/s", "bytes", ((1, 4.0, 0.0),)),
    )


@pytest.mark.parametrize(("again", "kept"), [(Sample(1.0, 0.3), (1.0, 0.3)), (Sample(3.0, 0.0), (2.0, 2 * NOISY))])
def test_a_rough_figure_is_taken_again_and_the_faster_take_stays(again: Sample, kept: tuple[float, float]) -> None:
    (curve,) = take([piece("a", 1, ROUGH, again)], silent)
    assert curve.points == ((1, *kept),)


def test_a_steady_figure_is_taken_once() -> None:
    assert take([piece("a", 1, STEADY)], silent)  # a second take would find none left


def test_every_doubt_is_one_more_take() -> None:
    slow = [Sample(3.0, 0.0), Sample(2.5, 0.0), Sample(1.0, 0.0)]
    (curve,) = take([piece("a", 1, *slow)], silent, (lambda one, taken: taken.seconds > 2,) * 3)
    assert curve.points == ((1, 1.0, 0.0),)


def test_no_more_than_a_quarter_of_the_time_goes_on_taking_again() -> None:
    pieces = [piece("a", at, ROUGH, Sample(1.0, 0.0)) for at in range(8)]
    (curve,) = take(pieces, silent)
    assert sum(seconds == 1.0 for _, seconds, _ in curve.points) == 2


def test_progress_of_each_stage_only_goes_forward_and_ends() -> None:
    told: list[tuple[str, int, int]] = []
    take([piece("a", at, ROUGH, STEADY) for at in range(9)], lambda *at: told.append(at))
    for stage in dict.fromkeys(stage for stage, _, _ in told):
        done = [at for name, at, _ in told if name == stage]
        assert done == sorted(done)
        assert [of for name, at, of in told if name == stage and at == of]
    assert len({stage for stage, _, _ in told}) == 2


def test_quick_shortens_budgets_and_leaves_the_figures() -> None:
    pieces = [piece("a", at, STEADY) for at in range(3)]
    assert all(one.budget_s < 1 for one in hastened(pieces, True))
    assert [one.at for one in hastened(pieces, True)] == [0, 1, 2] and hastened(pieces, False) is pieces


# --- timing -------------------------------------------------------------------------------------


def test_the_spread_is_the_middle_half_and_an_outlier_leaves_it_alone() -> None:
    assert sample([1.0] * 9 + [100.0]) == Sample(1, 0)


def test_timing_repeats_a_call_however_little_time_is_given() -> None:
    calls: list[int] = []
    assert timed(lambda: calls.append(1), 0.0).seconds > 0
    assert len(calls) > FEWEST_SLOW


@pytest.mark.parametrize(("budget_s", "fewest"), [(0.1, FEWEST_SLOW), (1.0, FEWEST)])
def test_slow_calls_are_repeated_less(budget_s: float, fewest: int) -> None:
    takes: list[int] = []

    def clock(call: object, times: int) -> float:
        takes.append(times)
        return 10.0 if budget_s == 0.1 else wall_clock(lambda: None, times)

    assert timed(lambda: None, 0.0, clock).seconds > 0
    assert len(takes) >= fewest


def test_threads_together_do_what_each_does() -> None:
    one, both = paced((lambda: 10,), 0.02), paced((lambda: 10, lambda: 0), 0.02)
    assert one.seconds > 0 and both.seconds > 0 and one.spread >= 0


def test_a_thread_that_fails_ends_them_all() -> None:
    def fails() -> int:
        raise OSError(5, "no device")

    with pytest.raises(OSError, match="no device"):
        paced((lambda: 1, fails), 0.01)


def test_what_others_took_is_a_share_whatever_the_counters_say() -> None:
    before, after = CpuSeconds(10, 5, 1), CpuSeconds(20, 15, 2)
    assert before.others_share(after) == 0.9
    assert before.others_share(before) == 0.0
    assert CpuSeconds(0, 0, 0).others_share(CpuSeconds(1, 0, 9)) == 0.0  # counters of a process run ahead
    now = cpu_seconds()
    assert now.passed_s >= now.busy_s >= 0 and now.own_s > 0


# --- what figures are told with -----------------------------------------------------------------


def test_noise_and_others_at_work_are_told() -> None:
    quiet = Machine("cpu", "a CPU", 2, "onnxruntime", (), "", False, 0.1, 0.02, 1)
    busy = Machine("cpu", "a CPU", 2, "onnxruntime", (), "", False, 9.0, 0.7, 1)
    steady, rough = (Curve("a", "s", "bytes", ((1, 2.0, spread),)) for spread in (0.1, 0.7))
    assert complaints(quiet, (steady,)) == ()
    assert "others took 70% of the CPUs" in complaints(busy, (steady,))[0]
    assert complaints(quiet, (rough,)) == ("1 of 1 figures spread by more than 20%; the widest: a at 1 bytes, by 70%",)
    assert unsteady(piece("a", 1), Sample(2.0, 0.7)) and not unsteady(piece("a", 1), Sample(2.0, 0.1))


@pytest.mark.parametrize(
    ("points", "said"),
    [
        ((), "rising order"),
        (((2, 1.0, 0.0), (1, 1.0, 0.0)), "rising order"),
        (((1, 0.0, 0.0),), "must be a positive number"),
        (((1, float("nan"), 0.0),), "must be a positive number"),
        (((1, 1.0, -0.1),), "a spread of -0.1; must be 0 or more"),
    ],
)
def test_a_curve_that_is_none_is_refused(points: tuple[tuple[int, float, float], ...], said: str) -> None:
    with pytest.raises(InputError, match=f"^curve reads: .*{said}"):
        Curve("reads", "bytes/s", "bytes", points)


def test_calls_in_turns_differ_by_what_each_adds_within_a_turn() -> None:
    passing = iter(range(1000))

    def clock(call: Callable[[], object], times: int) -> float:
        # The machine gets slower from turn to turn by far more than the calls differ.
        taken = call()
        assert isinstance(taken, float)
        return taken + next(passing) // 3

    first, second, third = in_turns([lambda: 1.0, lambda: 1.25, lambda: 1.75], 0.0, clock)
    assert (second.seconds - first.seconds, third.seconds - second.seconds) == (0.25, 0.5)
    assert first.spread > 0 == second.spread == third.spread
