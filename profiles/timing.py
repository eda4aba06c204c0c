"""How long a call takes: the median of repeats, and how far they spread."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from time import perf_counter

NOISY = 0.2
"""A spread above this is named in a profile's notes."""

FEWEST, MOST = 5, 1000


@dataclass(frozen=True, slots=True)
class Sample:
    """Median seconds of a call, and the middle half of its repeats as a share of that."""

    seconds: float
    spread: float


def sample(durations_s: Sequence[float]) -> Sample:
    """The median and spread of repeats.

    >>> sample([1.0, 2.0, 2.0, 2.0, 3.0])
    Sample(seconds=2.0, spread=0.0)
    >>> sample([1.0, 1.0, 2.0, 3.0, 3.0])
    Sample(seconds=2.0, spread=1.0)
    """
    low, middle, high = quantiles(durations_s, n=4, method="inclusive")
    return Sample(median(durations_s), (high - low) / middle if middle else 0.0)


def timed(call: Callable[[], object], budget_s: float) -> Sample:
    """Time a call over and over for about `budget_s` seconds, after a first one that does not count.

    A call too short for the clock is timed in runs of several.
    """
    call()
    start = perf_counter()
    call()
    once_s = max(perf_counter() - start, 1e-9)
    run = max(1, round(1e-4 / once_s))
    durations: list[float] = []
    end = perf_counter() + budget_s
    while len(durations) < FEWEST or (perf_counter() < end and len(durations) < MOST):
        start = perf_counter()
        for _ in range(run):
            call()
        durations.append((perf_counter() - start) / run)
    return sample(durations)
