"""What was timed on a machine: curves, each point with the spread of its repeats, and which machine it was."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite
from pathlib import Path
from typing import Literal

from planner.errors import InputError

NOISY = 0.2
"""A spread above this is told: the figure is not steady."""

BUSY = 0.1
"""A share of the CPUs taken by others above this is told: figures may be far too low."""

Unit = Literal["s", "bytes/s", "flop/s", "elements/s"]
Device = Literal["cpu", "cuda"]


@dataclass(frozen=True, slots=True)
class Curve:
    """One kind of figure over one size: `flash random read, depth 4` in bytes/s by bytes of a block.

    points  (size, median, spread): the middle half of the repeats as a share of the median; sizes rising
    """

    name: str
    unit: Unit
    by: str
    points: tuple[tuple[int, float, float], ...]

    def __post_init__(self) -> None:
        if not self.points or any(a >= b for (a, *_), (b, *_) in pairwise(self.points)):
            raise InputError(f"curve {self.name}: points need their {self.by} in rising order, each once")
        for size, median, spread in self.points:
            if not (isfinite(median) and median > 0):
                raise InputError(f"curve {self.name}: {size} {self.by}: found {median}; must be a positive number")
            if not (isfinite(spread) and spread >= 0):
                raise InputError(f"curve {self.name}: {size} {self.by}: found a spread of {spread}; must be 0 or more")

    def value(self, size: int) -> float | None:
        """The median at a size; None where there is no such point.

        >>> Curve("memory read, 1 thread", "bytes/s", "bytes", ((4096, 2e10, 0.1),)).value(4096)
        20000000000.0
        """
        return next((median for at, median, _ in self.points if at == size), None)


@dataclass(frozen=True, slots=True)
class Machine:
    """Where and under what load figures were taken.

    runtime       what was timed: a runtime of 'planner backends', or torch on a GPU
    software      names with their versions
    flash         the directory whose device was read, '' where none was
    quick         whether short budgets were asked for
    load_average  of one minute, when measuring began
    others_share  of all the CPUs' time, what other processes and other virtual machines took meanwhile
    figures       how many were taken: a file that was cut short holds fewer
    """

    device: Device
    processor: str
    threads: int
    runtime: str
    software: tuple[str, ...]
    flash: str
    quick: bool
    load_average: float
    others_share: float
    figures: int


@dataclass(frozen=True, slots=True)
class Measuring:
    """How a machine is to be measured: for which runtime, on which device, and whether briefly.

    `flash` is a directory on the device to read; without one, that of the cache directory is read where it can be.
    `write` measures writing to it as well.
    """

    backend: str = "onnxruntime"
    device: Device = "cpu"
    flash: Path | None = None
    write: bool = False
    quick: bool = False


def count(curves: tuple[Curve, ...]) -> int:
    """How many figures curves hold."""
    return sum(len(curve.points) for curve in curves)


def by_name(curves: tuple[Curve, ...]) -> Mapping[str, Curve]:
    """Curves by name; InputError where a name comes twice."""
    named = {curve.name: curve for curve in curves}
    if len(named) < len(curves):
        names = [curve.name for curve in curves]
        raise InputError(f"curve {next(n for n in names if names.count(n) > 1)}: is given twice")
    return named


def complaints(machine: Machine, curves: tuple[Curve, ...]) -> tuple[str, ...]:
    """What makes figures doubtful, a line each: other work on the machine, and repeats that disagreed.

    >>> quiet = Machine("cpu", "a CPU", 2, "onnxruntime", (), "", False, 0.1, 0.02, 2)
    >>> complaints(quiet, (Curve("step", "s", "layers", ((1, 1e-3, 0.5), (17, 1e-2, 0.1))),))
    ('1 of 2 figures spread by more than 20%; the widest: step at 1 layers, by 50%',)
    """
    said = []
    if machine.others_share > BUSY:
        said.append(
            f"the machine was busy: others took {machine.others_share:.0%} of the CPUs while it was measured,"
            " and figures may be far too low"
        )
    wide = [(spread, c, at) for c in curves for at, _, spread in c.points if spread > NOISY]
    if wide:
        spread, curve, at = max(wide, key=lambda each: each[0])
        said.append(
            f"{len(wide)} of {count(curves)} figures spread by more than {NOISY:.0%};"
            f" the widest: {curve.name} at {at} {curve.by}, by {spread:.0%}"
        )
    return tuple(said)
