"""What moved between two profiles of one machine: figures beyond a tolerance that their own spread widens."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from planner.errors import InputError
from planner.explain import table
from planner.hardware import HardwareProfile
from planner.measured import Machine, Unit

MOST_TOLERANCE = 100.0
_PERCENT = re.compile(r"([0-9]{1,5}(?:\.[0-9]{1,6})?)\s*%")
PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "u"), (1e-9, "n"))


def tolerance(text: str) -> float:
    """A share from a percentage.

    >>> tolerance("10%"), tolerance("2.5 %")
    (0.1, 0.025)
    >>> tolerance("0.1")
    Traceback (most recent call last):
    planner.errors.InputError: --tolerance: expected a percentage above 0% and at most 10000%, such as 10%; found '0.1'
    """
    found = _PERCENT.fullmatch(text.strip())
    share = float(found[1]) / 100 if found else 0.0
    if not 0 < share <= MOST_TOLERANCE:
        raise InputError(
            f"--tolerance: expected a percentage above 0% and at most {MOST_TOLERANCE:.0%}, such as 10%; found {text!r}"
        )
    return share


def slowdown(unit: Unit, baseline: float, now: float) -> float:
    """How many times as long it takes now, whether the figure is a time or a rate.

    >>> slowdown("s", 2.0, 3.0), slowdown("bytes/s", 3.0, 2.0)
    (1.5, 1.5)
    """
    return now / baseline if unit == "s" else baseline / now


@dataclass(frozen=True, slots=True)
class Move:
    """One figure then and now. It may take `allowed` times as long before it counts as slower."""

    curve: str
    at: int
    by: str
    unit: Unit
    baseline: float
    now: float
    spread: float
    tolerance: float

    @property
    def name(self) -> str:
        return f"{self.curve} at {self.at} {self.by}"

    @property
    def allowed(self) -> float:
        return 1 + self.tolerance + self.spread

    @property
    def ratio(self) -> float:
        return slowdown(self.unit, self.baseline, self.now)

    @property
    def verdict(self) -> str:
        return "slower" if self.ratio > self.allowed else "faster" if self.ratio < 1 / self.allowed else "same"


@dataclass(frozen=True, slots=True)
class Drift:
    """Every figure that both profiles hold, the figures that only one does, and what else changed."""

    moves: tuple[Move, ...]
    left_out: tuple[str, ...]
    changed: tuple[str, ...]
    tolerance: float

    @property
    def slower(self) -> tuple[Move, ...]:
        return self._worst_first("slower")

    @property
    def faster(self) -> tuple[Move, ...]:
        return self._worst_first("faster")

    def _worst_first(self, verdict: str) -> tuple[Move, ...]:
        return tuple(sorted((m for m in self.moves if m.verdict == verdict), key=lambda m: -m.ratio))

    def as_json(self) -> dict[str, object]:
        return {
            "tolerance": self.tolerance,
            "compared": len(self.moves),
            "moved": [
                {
                    "name": move.name,
                    "unit": move.unit,
                    "baseline": move.baseline,
                    "now": move.now,
                    "ratio": move.ratio,
                    "allowed": move.allowed,
                    "spread": move.spread,
                    "verdict": move.verdict,
                }
                for move in (*self.slower, *self.faster)
            ],
            "left_out": list(self.left_out),
            "changed": list(self.changed),
        }

    def as_text(self) -> str:
        moved = (*self.slower, *self.faster)
        rows = [
            [m.name, shown(m.baseline, m.unit), shown(m.now, m.unit), f"{m.ratio:.2f}", f"{m.allowed:.2f}", m.verdict]
            for m in moved
        ]
        lines = table([["moved", "baseline", "now", "ratio of times", "allowed", ""], *rows]) if rows else []
        lines.append(
            f"{len(self.moves)} figures compared: {len(self.slower)} slower, {len(self.faster)} faster, the others"
            f" within {self.tolerance:.3g} and their own spread, which widens each figure's tolerance"
        )
        if self.faster and not self.slower:
            lines.append("what is faster fails nothing; write a new baseline to hold it")
        if self.left_out:
            lines.append(
                f"{len(self.left_out)} figures not compared, for one profile lacks them: {self.left_out[0]} ..."
            )
        return "\n".join([*lines, *self.changed])


def refuse_unlike(baseline: HardwareProfile, machine: Machine, where: str) -> Machine:
    """The machine of a baseline; InputError unless its figures are of this one, this runtime and this way of measuring.

    Versions may differ: that is what one wants to compare.
    """
    then = baseline.machine
    if then is None or not baseline.curves:
        raise InputError(
            f"{where}: holds no timed figures to compare with; write a baseline: planner profile hardware --out FILE"
        )
    for name in ("device", "processor", "threads", "runtime", "quick"):
        was, now = getattr(then, name), getattr(machine, name)
        if was != now:
            would = "give --quick to both or to neither" if name == "quick" else "take a baseline of this one"
            raise InputError(f"{where}: $.machine.{name}: the baseline's is {was!r}, here it is {now!r}; {would}")
    return then


def compare(baseline: HardwareProfile, now: HardwareProfile, share: float, where: str) -> Drift:
    """Every figure of a baseline beside what it is now, to within a share."""
    if now.machine is None:
        raise InputError("the new profile holds no timed figures to compare")
    then = refuse_unlike(baseline, now.machine, where)
    changed = []
    if then.software != now.machine.software:
        changed.append(f"software: {', '.join(then.software)} -> {', '.join(now.machine.software)}")
    elsewhere = then.flash != now.machine.flash
    if elsewhere:
        changed.append(f"flash: {then.flash or 'none'} -> {now.machine.flash or 'none'}, not compared")
    before, after = _points(baseline, elsewhere), _points(now, elsewhere)
    moves = tuple(
        Move(*key, before[key][0], after[key][0], max(before[key][1], after[key][1]), share)
        for key in before
        if key in after
    )
    alone = tuple(f"{curve} at {at} {by}" for curve, at, by, _ in sorted(before.keys() ^ after.keys()))
    return Drift(moves, alone, tuple(changed), share)


Key = tuple[str, int, str, Unit]


def _points(profile: HardwareProfile, without_flash: bool) -> dict[Key, tuple[float, float]]:
    """(median, spread) by what was measured."""
    curves = (c for c in profile.curves if not (without_flash and c.name.startswith("flash ")))
    return {(c.name, at, c.by, c.unit): (median, spread) for c in curves for at, median, spread in c.points}


def slower_than(baseline: HardwareProfile, share: float) -> Callable[[str, int, float, float], bool]:
    """Whether a figure (curve, size, median, spread) is slower than a baseline allows."""
    points = {(c.name, at): (c, median, spread) for c in baseline.curves for at, median, spread in c.points}

    def slower(name: str, at: int, now: float, spread: float) -> bool:
        if (name, at) not in points:
            return False
        curve, before, was = points[name, at]
        return Move(name, at, curve.by, curve.unit, before, now, max(was, spread), share).verdict == "slower"

    return slower


def shown(value: float, unit: Unit) -> str:
    """A figure as people read it.

    >>> shown(1.234e10, "bytes/s"), shown(4.5e-5, "s"), shown(3.1e-10, "s")
    ('12.3 GB/s', '45 us', '0.31 ns')
    """
    scale, prefix = next((pair for pair in PREFIXES if value >= pair[0]), PREFIXES[-1])
    return f"{value / scale:.3g} {prefix}{unit.replace('bytes', 'B')}"
