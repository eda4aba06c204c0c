"""The front of a model on a target: the plans of which none is better than another in everything, beside what is not
planned; as a document, a table and JSON."""

from dataclasses import dataclass
from typing import Literal, get_args

from planner.errors import InputError
from planner.explain import figure, table
from planner.goal import Goal, Limits, Objective
from planner.mismatch import did_you_mean
from planner.plan import Costs, Interval, SolverReport
from planner.serde import document
from planner.yaml_text import Plain

CURRENCIES: tuple[Objective, ...] = ("loss_nats", "decode_s", "ttft_s", "memory_bytes", "kv_bytes", "weight_bytes")
"""What a front can be over; the first of those that it is over is minimised under limits on the others."""

DEFAULT: tuple[Objective, ...] = ("loss_nats", "decode_s", "memory_bytes")

NO_MATTER_NATS = 1e-3
"""Losses below this hardly differ: as much comes and goes with rounding to 16 bits."""

UNITS: dict[str, tuple[float, str, str]] = {
    "loss_nats": (1.0, "loss", "nats per token"),
    "decode_s": (1e3, "decoding", "ms per token"),
    "ttft_s": (1.0, "first token", "s"),
    "memory_bytes": (1e-6, "memory", "MB"),
    "kv_bytes": (1e-6, "KV cache", "MB"),
    "weight_bytes": (1e-6, "weights", "MB"),
}
"""By currency: what a value is multiplied with to be shown, what it is of, and the unit it is then in."""

Kind = Literal["planned", "dense", "uniform"]


@dataclass(frozen=True, slots=True)
class Point:
    """A plan beside others. A planned one's `goal` is what it is the best plan for: compile finds it by that goal.

    Of `measured` the seconds count only where the target is this machine, the memory nowhere: see `Costs`.
    """

    name: str
    kind: Kind
    goal: Goal
    predicted: Costs
    measured: Costs | None = None
    solver: SolverReport | None = None

    def value(self, currency: Objective) -> float:
        """What it is predicted to cost; InputError for a currency that is not known of it."""
        found: float | Interval | None = getattr(self.predicted, currency)
        if found is None:
            raise InputError(f"point {self.name}: has no {currency}")
        return middle(found)


@dataclass(frozen=True, slots=True)
class Front:
    """Points by the first currency of `over`, named in that order; and what is not planned and not on the front: the
    dense model and the best uniform settings.

    `within` is what stays limited. `local`: the target is this machine, so that seconds measured here are its own.
    `candidates` and `solves` say how many choices the sites had in all and how many plans were solved for.
    """

    name: str
    target: str
    backend: str
    over: tuple[Objective, ...]
    within: Limits
    points: tuple[Point, ...]
    beside: tuple[Point, ...]
    candidates: int
    solves: int
    local: bool
    notes: tuple[str, ...] = ()

    @property
    def dense(self) -> Point:
        """The dense model, on the front or beside it."""
        return next(point for point in (*self.points, *self.beside) if point.kind == "dense")

    @property
    def verified(self) -> tuple[Point, ...]:
        return tuple(point for point in self.points if point.measured is not None)

    def measured(self, point: Point, currency: Objective) -> Interval | None:
        """What running a point showed of a currency, a count as an interval of no width; None where it did not show
        it: memory besides weights and cache is not measured, nor are seconds of another machine than this one."""
        if (
            point.measured is None
            or currency == "memory_bytes"
            or (currency in ("decode_s", "ttft_s") and not self.local)
        ):
            return None
        found: float | Interval | None = getattr(point.measured, currency)
        return found if found is None or isinstance(found, Interval) else Interval(found, found, found)

    def as_json(self) -> dict[str, Plain]:
        return document(self)

    def as_text(self) -> str:
        head = (
            f"{self.name}: {len(self.points)} points on the front over {', '.join(self.over)}; {self.solves} solves"
            f" of {self.candidates:,} candidates, on {self.target} by {self.backend}"
        )
        columns = self._columns()
        rows = [["", *map(heading, columns)]]
        for point in (*self.points, *self.beside):
            kind = "" if point.name == point.kind or point.kind == "planned" else f" {point.kind}"
            rows.append([f"{point.name}{kind}", *(shown(getattr(point.predicted, name), name) for name in columns)])
            if point.measured is not None:
                rows.append(["  measured", *(shown(self.measured(point, name), name) for name in columns)])
        lines = [head, "", *table(rows), "", f"- {self.dense.predicted.source}"]
        lines += [f"- {source}" for source in dict.fromkeys(p.measured.source for p in self.verified if p.measured)]
        return "\n".join([*lines, *(f"note: {note}" for note in (*self.notes, *self._loose()))])

    def _loose(self) -> list[str]:
        """That some points are not proved as well as the others, where the solver stopped."""
        gaps = [point.solver.gap for point in self.points if point.solver and point.solver.status == "stopped"]
        return [f"{len(gaps)} of the points are proved to within {max(gaps):.1%} only"] if gaps else []

    def _columns(self) -> tuple[Objective, ...]:
        """The currencies of the front first, then the others that are known."""
        known = [name for name in CURRENCIES if getattr(self.dense.predicted, name) is not None]
        return (*self.over, *(name for name in known if name not in self.over))


def currencies(asked: str) -> tuple[Objective, ...]:
    """The currencies of `--over`, in the order in which they are minimised and limited.

    >>> currencies("memory_bytes,loss_nats")
    ('loss_nats', 'memory_bytes')
    >>> currencies("loss_nats,decode")
    Traceback (most recent call last):
    planner.errors.InputError: --over: unknown currency 'decode'; did you mean 'decode_s'?
    """
    names = [name.strip() for name in asked.split(",")]
    for name in names:
        if name not in get_args(Objective):
            raise InputError(f"--over: unknown currency {name!r}{did_you_mean(name, CURRENCIES)}")
    if len(set(names)) != len(names):
        raise InputError(f"--over: found {asked!r}; name each currency once")
    if not 2 <= len(names) <= 3:
        raise InputError(f"--over: found {len(names)} of them; a front is over two or three of {', '.join(CURRENCIES)}")
    return tuple(name for name in CURRENCIES if name in names)


def middle(value: float | Interval) -> float:
    """The number itself, or the middle of an interval."""
    return value.value if isinstance(value, Interval) else float(value)


def heading(currency: Objective) -> str:
    """A currency and its unit.

    >>> heading("decode_s")
    'decoding, ms per token'
    """
    _, what, unit = UNITS[currency]
    return f"{what}, {unit}"


def shown(value: float | Interval | None, currency: Objective) -> str:
    """A value in the unit of its heading; of losses the interval too.

    >>> shown(Interval(0.0301, 0.0201, 0.0402), "loss_nats"), shown(Interval(0.012, 0.01, 0.02), "decode_s")
    ('0.0301 [0.0201, 0.0402]', '12')
    """
    scale = UNITS[currency][0]
    if value is None:
        return "-"
    if isinstance(value, Interval) and currency == "loss_nats" and value.low < value.high:
        return str(value)
    return figure(middle(value) * scale)
