"""How much work threads do together in a second, each at its own pace: no thread waits for another.

What a queue of reads or all the cores of a processor can take is a rate of many at once. A barrier after each piece of
work would measure the slowest thread and the scheduler. A pass lasts from the moment when all are there until the last
has ended, so a rate is never above what was done.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
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
    begun = [0.0]

    def begin() -> None:
        begun[0] = perf_counter()

    together = Barrier(len(works), begin)

    def run(work: Callable[[], int], seconds: float) -> tuple[int, float]:
        """(units done by a thread that works until the pass is over and at least once, when it ended)"""
        together.wait()
        done = work()
        while perf_counter() < begun[0] + seconds:
            done += work()
        return done, perf_counter()

    with ThreadPoolExecutor(len(works)) as pool:

        def one_pass(seconds: float) -> float:
            ran = list(pool.map(partial(run, seconds=seconds), works))
            return (max(ended for _, ended in ran) - begun[0]) / sum(done for done, _ in ran)

        try:
            one_pass(0.0)  # what is done for the first time does not count
            return sample([one_pass(budget_s / PASSES) for _ in range(PASSES)])
        except BaseException:
            together.abort()  # or those who wait for one that never started would wait for ever
            raise
