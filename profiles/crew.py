"""How much work threads do together in a second, each at its own pace: no thread waits for another.

What a queue of reads or all the cores of a processor can take is a rate of many at once. A barrier after each piece of
work would measure the slowest thread and the scheduler.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from time import perf_counter

from profiles.timing import Sample, sample

PASSES = 5


def paced(works: Sequence[Callable[[], int]], budget_s: float) -> Sample:
    """Seconds for a unit of work, all threads together, over passes that take about `budget_s` seconds in all.

    Each of `works` is run over and over by a thread of its own and returns the units it did.

    >>> 0 < paced((lambda: 1, lambda: 2), 0.01).seconds < 1
    True
    """
    together = Barrier(len(works))
    with ThreadPoolExecutor(len(works)) as pool:

        def one_pass(seconds: float) -> float:
            return 1 / sum(pool.map(lambda work: _rate(work, together, seconds), works))

        try:
            one_pass(0.0)  # what is done for the first time does not count
            return sample([one_pass(budget_s / PASSES) for _ in range(PASSES)])
        except BaseException:
            together.abort()  # or those who wait for one that never started would wait for ever
            raise


def _rate(work: Callable[[], int], together: Barrier, seconds: float) -> float:
    """Units a second of one thread, which works at least once and until the pass is over."""
    together.wait()
    start, done = perf_counter(), 0
    while True:
        done += work()
        spent = perf_counter() - start
        if spent >= seconds:
            return done / spent
