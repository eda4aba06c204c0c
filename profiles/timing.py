"""How long a call takes, by the clock of what computes it: the median of repeats, and how far they spread."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from time import perf_counter

FEWEST, MOST = 5, 1000
FEWEST_SLOW = 3
"""Repeats of a call so slow that five of them would take more than three times the time given."""

SHORT_S = 1e-4
"""Calls shorter than this are timed in runs of several: clocks are read, and threads wake, in microseconds."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Median seconds of a call, and the middle half of its repeats as a share of that."""

    seconds: float
    spread: float


Clock = Callable[[Callable[[], object], int], float]
"""Seconds that so many calls, one after the other, take until their results are there."""


def wall_clock(call: Callable[[], object], times: int) -> float:
    """Seconds by the wall: what a call returns is there when it returns."""
    start = perf_counter()
    for _ in range(times):
        call()
    return perf_counter() - start


def sample(durations_s: Sequence[float]) -> Sample:
    """The median and spread of repeats.

    >>> sample([1.0, 2.0, 2.0, 2.0, 3.0])
    Sample(seconds=2.0, spread=0.0)
    >>> sample([1.0, 1.0, 2.0, 3.0, 3.0])
    Sample(seconds=2.0, spread=1.0)
    """
    low, middle, high = quantiles(durations_s, n=4, method="inclusive")
    return Sample(median(durations_s), (high - low) / middle if middle else 0.0)


def timed(call: Callable[[], object], budget_s: float, clock: Clock = wall_clock) -> Sample:
    """Time a call over and over for about `budget_s` seconds, after a first one that does not count.

    A slow call is repeated five times whatever the budget, a very slow one three times.
    """
    clock(call, 1)
    once_s = max(clock(call, 1), 1e-9)
    run = max(1, round(SHORT_S / once_s))
    durations: list[float] = [once_s] if run == 1 else []
    begun = perf_counter()
    while len(durations) < MOST:
        spent = perf_counter() - begun
        if spent >= budget_s and len(durations) >= (FEWEST_SLOW if spent >= 3 * budget_s else FEWEST):
            break
        durations.append(clock(call, run) / run)
    return sample(durations)


def in_turns(calls: Sequence[Callable[[], object]], budget_s: float, clock: Clock = wall_clock) -> tuple[Sample, ...]:
    """Samples of calls that take a little more one after another, for their differences.

    In every turn each is timed once. The first is its median; each further one is what stands before it and the median
    of what it took more within a turn: what else the machine does moves all of a turn. Spreads are those of what is
    added, as shares of the whole.
    """
    for call in calls:
        clock(call, 1)
    turns: list[list[float]] = []
    begun = perf_counter()
    while len(turns) < FEWEST or (perf_counter() - begun < budget_s and len(turns) < MOST):
        turns.append([clock(call, 1) for call in calls])
    found = [sample([turn[0] for turn in turns])]
    for i in range(1, len(calls)):
        low, middle, high = quantiles([turn[i] - turn[i - 1] for turn in turns], n=4, method="inclusive")
        whole = found[-1].seconds + middle
        found.append(Sample(whole, (high - low) / whole if whole > 0 else 0.0))
    return tuple(found)
