"""One axis of a plot: where a value lies along it, and which values to write beside it."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

LOG_FROM = 5.0
"""Values that differ by a larger factor are shown by their logarithms."""

MARGIN = 0.05
MOST_TICKS = 7


@dataclass(frozen=True, slots=True)
class Ruler:
    """An axis from `low` to `high`: by value, by logarithm, or by value up to `linear_to` and by logarithm after it.

    >>> Ruler("log", 1.0, 100.0).at(10.0), Ruler("linear", 0.0, 4.0).at(1.0)
    (0.5, 0.25)
    """

    kind: Literal["linear", "log", "from zero"]
    low: float
    high: float
    linear_to: float = 1.0

    def at(self, value: float) -> float:
        """Where a value lies, 0 at the low end and 1 at the high one."""
        low, high, own = (self._spread(v) for v in (self.low, self.high, value))
        return (own - low) / (high - low)

    def _spread(self, value: float) -> float:
        if self.kind == "log":
            return math.log(value)
        return value if self.kind == "linear" else math.log1p(max(value, 0.0) / self.linear_to)

    def ticks(self) -> tuple[float, ...]:
        """Round values along the axis, and not too many.

        >>> Ruler("log", 3.0, 700.0).ticks(), Ruler("linear", 3.1, 7.9).ticks()
        ((5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0), (4.0, 5.0, 6.0, 7.0))
        >>> Ruler("from zero", 0.0, 1.1, 0.01).ticks()
        (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)
        """
        if self.kind == "linear":
            return _even(self.low, self.high)
        first = self.low if self.kind == "log" else self.linear_to
        zero = (0.0,) if self.kind == "from zero" and self.low <= 0 else ()
        found: tuple[float, ...] = ()
        for digits in ((1, 2, 5), (1, 3), (1,)):
            found = tuple(_decades(first, self.high, digits))
            if len(found) + len(zero) <= MOST_TICKS:
                break
        # Of very many decades every second one, or every third.
        found = found[:: math.ceil((len(found) + len(zero)) / MOST_TICKS)]
        return (*zero, *found) if len(found) > 1 or zero else _even(self.low, self.high)


def ruler(values: Iterable[float], linear_to: float | None = None) -> Ruler:
    """An axis that shows some values with a margin; from zero with `linear_to`, where small values do not matter.

    >>> ruler([1.0, 100.0]).kind, ruler([3.0, 4.0]).kind, ruler([0.0, 0.2], 0.001).low
    ('log', 'linear', 0.0)
    """
    known = sorted(values)
    low, high = known[0], known[-1]
    if linear_to is not None:
        return Ruler("from zero", 0.0, max(high, linear_to) * 1.25, linear_to)
    if low > 0 and high / low > LOG_FROM:
        factor = (high / low) ** MARGIN
        return Ruler("log", low / factor, high * factor)
    margin = (high - low) * MARGIN or abs(high) * MARGIN or 1.0
    return Ruler("linear", low - margin, high + margin)


def label(value: float) -> str:
    """A tick as it is written.

    >>> label(0.005), label(1500.0), label(2e6), label(4.9e-8)
    ('0.005', '1,500', '2,000,000', '5e-08')
    """
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}" if value >= 1e-4 else f"{value:.1g}"


def _even(low: float, high: float) -> tuple[float, ...]:
    """Multiples of 1, 2 or 5 times a power of ten between two values, four to seven of them."""
    least = (high - low) / MOST_TICKS
    power = 10.0 ** math.floor(math.log10(least))
    step = next(power * digit for digit in (1, 2, 5, 10) if power * digit >= least)
    first, last = math.ceil(low / step), math.floor(high / step)
    return tuple(float(f"{i * step:.12g}") for i in range(first, last + 1))


def _decades(low: float, high: float, digits: tuple[int, ...]) -> Iterable[float]:
    """Digits times powers of ten between two values."""
    for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1):
        for digit in digits:
            value = float(f"{digit}e{power}")
            if low * (1 - 1e-9) <= value <= high:
                yield value
