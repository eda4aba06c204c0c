"""Taking figures one after another: with progress, and again where they were not steady."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from pathlib import Path

from planner.executor import Progress
from planner.measured import NOISY, Curve, Unit
from profiles.timing import Clock, Sample, timed, wall_clock

AGAIN_SHARE = 0.25
"""Share of the time planned that may be spent on timing again, for each attempt."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One figure to take: the point `at` of a curve.

    `work` is the units of one sampled call (1 for a time). `sample` takes the seconds it may spend, and prepares what
    it needs itself, so that memory is held for one figure at a time.
    """

    curve: str
    unit: Unit
    by: str
    at: int
    work: float
    budget_s: float
    sample: Callable[[float], Sample]

    def value(self, seconds: float) -> float:
        """The figure, in its unit.

        >>> Piece("reads", "bytes/s", "bytes", 8, 8, 1.0, lambda budget_s: Sample(2.0, 0.0)).value(2.0)
        4.0
        >>> Piece("step", "s", "layers", 1, 1, 1.0, lambda budget_s: Sample(2.0, 0.0)).value(2.0)
        2.0
        """
        return seconds / self.work if self.unit == "s" else self.work / seconds


def calls(open_call: Callable[[], Callable[[], object]], clock: Clock = wall_clock) -> Callable[[float], Sample]:
    """The sampling of a call that is made when its turn has come."""
    return lambda budget_s: timed(open_call(), budget_s, clock)


Doubt = Callable[[Piece, Sample], bool]
"""Whether a figure is to be taken again before it is believed."""


def unsteady(piece: Piece, taken: Sample) -> bool:
    """The doubt that every figure meets: repeats that disagree."""
    return taken.spread > NOISY


@dataclass(frozen=True, slots=True)
class Order:
    """How a machine is to be measured.

    `flash` is the directory whose device the user asked for; without one that of `scratch` is measured where it can be.
    `quick` shortens every budget and leaves out what takes longest; `write` measures writes to flash as well.
    """

    scratch: Path
    progress: Progress
    flash: Path | None = None
    write: bool = False
    quick: bool = False
    doubts: Sequence[Doubt] = (unsteady,)


QUICK_SHARE = 0.2
"""Of every budget, where a quick profile is asked for."""


def hastened(pieces: Sequence[Piece], quick: bool) -> Sequence[Piece]:
    """The pieces, with a share of their budgets where a quick profile is asked for."""
    return [replace(each, budget_s=each.budget_s * QUICK_SHARE) for each in pieces] if quick else pieces


def take(pieces: Sequence[Piece], progress: Progress, doubts: Sequence[Doubt] = (unsteady,)) -> tuple[Curve, ...]:
    """The curves of all pieces, in their order.

    After all were taken, those in doubt are taken again, once for each of `doubts`, the least steady first and as far
    as a quarter of the time goes. Of two takes the faster stays: what disturbs a call only ever adds to its time.
    """
    planned_s = sum(piece.budget_s for piece in pieces)
    taken = dict(zip(range(len(pieces)), _samples(pieces, partial(progress, "measuring")), strict=True))
    for doubt in doubts:
        again: list[int] = []
        left_s = AGAIN_SHARE * planned_s
        for i in sorted(taken, key=lambda i: -taken[i].spread):
            left_s -= pieces[i].budget_s if doubt(pieces[i], taken[i]) else 0.0
            if doubt(pieces[i], taken[i]) and (left_s >= 0 or not again):
                again.append(i)
        found = _samples([pieces[i] for i in again], partial(progress, "measuring again what was in doubt"))
        taken |= {i: min(taken[i], new, key=lambda each: each.seconds) for i, new in zip(again, found, strict=True)}
    return _curves([(piece, taken[i]) for i, piece in enumerate(pieces)])


def _samples(pieces: Sequence[Piece], told: Callable[[int, int], None]) -> list[Sample]:
    """Samples of pieces; `told` hears how many of the planned seconds are over."""
    planned = [sum(piece.budget_s for piece in pieces[:i]) for i in range(len(pieces) + 1)]
    of = max(1, ceil(planned[-1]))
    found = []
    for piece, over_s in zip(pieces, planned[1:], strict=True):
        found.append(piece.sample(piece.budget_s))
        told(min(int(over_s), of - 1), of)
    if pieces:
        told(of, of)
    return found


def _curves(taken: Sequence[tuple[Piece, Sample]]) -> tuple[Curve, ...]:
    by_name: dict[str, list[tuple[Piece, Sample]]] = {}
    for piece, one in taken:
        by_name.setdefault(piece.curve, []).append((piece, one))
    return tuple(
        Curve(
            name,
            points[0][0].unit,
            points[0][0].by,
            tuple(sorted((piece.at, piece.value(one.seconds), one.spread) for piece, one in points)),
        )
        for name, points in by_name.items()
    )
