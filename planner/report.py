"""What compile and verify tell: the table dense / uniform / planned, predicted and measured, as text and as JSON."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from planner.explain import table
from planner.pipeline import Step
from planner.plan import Costs, Interval, Plan
from planner.verify import Measured, share

ROWS = ("dense", "uniform", "planned")
COLUMNS = ("kv_bytes", "weight_bytes", "decode_s", "ttft_s", "loss_nats", "perplexity", "passkey")


@dataclass(frozen=True, slots=True)
class Row:
    """One plan of the table, with the scores of its documents where it ran."""

    name: str
    plan: Plan
    result: Measured | None = None

    @property
    def pairs(self) -> float | None:
        """The share of key-value pairs that it recalled; None where none was asked for."""
        return None if self.result is None else share(self.result.pairs)


@dataclass(frozen=True, slots=True)
class CompileReport:
    """The outcome of compile. `shipped` names the row that was written, and `why` it is not the planned one.

    `notes` say what differs from what a user may expect of this source.
    """

    rows: tuple[Row, ...]
    steps: tuple[Step, ...]
    out: str
    target: str
    shipped: str = "planned"
    why: str = ""
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, object]:
        rows = {row.name: row for row in self.rows}
        told = {name: row_json(rows.get(name)) for name in ROWS}
        steps = [
            {"pass": s.name, "seconds": s.seconds, "before": s.candidates_before, "after": s.candidates_after}
            for s in self.steps
        ]
        return {
            "target": self.target,
            "out": self.out,
            "shipped": self.shipped,
            "why": self.why,
            "notes": list(self.notes),
            **told,
            "passes": steps,
        }

    def json_text(self) -> str:
        return json.dumps(self.as_json(), indent=1, allow_nan=False) + "\n"

    def as_text(self) -> str:
        funnel = ", ".join(f"{s.name} {s.candidates_after:,}" for s in self.steps)
        solver = self.rows[-1].plan.solver
        proved = "" if solver is None else f"; solver: {solver.status}, gap {solver.gap:.2%}"
        offered = f"candidates: {funnel}{proved}" if self.steps else "the plan was given"
        lines = [offered, "", *costs_table(self.rows), ""]
        lines += [f"note: {note}" for note in self.notes]
        if self.why:
            lines.append(f"the {self.shipped} setting ships: {self.why}")
        ran = self.rows[-1].plan.quality_verified
        use = f"run it with: planner run {self.out} --prompt TEXT" if ran else "a plan and its report, nothing to run"
        return "\n".join([*lines, f"wrote {self.out}: the {self.shipped} row; {use}"])


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """An artefact run beside its dense model. `missed` is the limit that it does not keep, in words, or empty."""

    dense: Row
    planned: Row
    missed: str = ""

    def as_json(self) -> dict[str, object]:
        return {
            "dense": row_json(self.dense),
            "uniform": None,
            "planned": row_json(self.planned),
            "missed": self.missed or None,
        }

    def as_text(self) -> str:
        return "\n".join(costs_table((self.dense, self.planned)))


def costs_table(rows: Sequence[Row]) -> list[str]:
    """Predicted and measured of every row, in megabytes, milliseconds and nats per token."""
    head = ["", "KV MB", "weights MB", "ms/token", "first token s", "loss nats", "perplexity", "passkey", "pairs"]
    lines = [head]
    for row in rows:
        for name, costs, pairs in (("predicted", row.plan.predicted, None), ("measured", row.plan.measured, row.pairs)):
            if costs is not None:
                lines.append([f"{row.name} {name}", *_cells(costs, pairs)])
    sources = dict.fromkeys(
        costs.source for row in rows for costs in (row.plan.predicted, row.plan.measured) if costs is not None
    )
    return [*table(lines), "", *(f"- {source}" for source in sources)]


def _cells(costs: Costs, pairs: float | None) -> list[str]:
    return [
        f"{costs.kv_bytes / 1e6:.2f}",
        f"{costs.weight_bytes / 1e6:.1f}",
        _interval(costs.decode_s, 1e3, 1),
        _interval(costs.ttft_s, 1.0, 2),
        _interval(costs.loss_nats, 1.0, 4),
        _interval(costs.perplexity, 1.0, 2),
        *("-" if found is None else f"{found:.0%}" for found in (costs.passkey, pairs)),
    ]


def _interval(value: Interval | None, scale: float, digits: int) -> str:
    if value is None:
        return "-"
    middle, low, high = (f"{x * scale:.{digits}f}" for x in (value.value, value.low, value.high))
    return f"{middle} [{low}, {high}]"


def row_json(row: Row | None) -> dict[str, object] | None:
    """A row of the table, and the pairs it recalled where it ran; None where there is no such plan."""
    told = None if row is None else plan_json(row.plan)
    if row is None or told is None or row.result is None:
        return told
    return {**told, "measured": {**(costs_json(row.plan.measured) or {}), "pairs": row.pairs}}


def plan_json(plan: Plan | None) -> dict[str, object] | None:
    """What is predicted and measured of a plan; None where there is no such plan."""
    if plan is None:
        return None
    return {"predicted": costs_json(plan.predicted), "measured": costs_json(plan.measured)}


def costs_json(costs: Costs | None) -> dict[str, object] | None:
    """Costs by the documented names; an interval is {value, low, high}."""
    if costs is None:
        return None
    told: dict[str, object] = {"source": costs.source, "memory_bytes": costs.memory_bytes}
    for name in COLUMNS:
        value = getattr(costs, name)
        told[name] = (
            {"value": value.value, "low": value.low, "high": value.high} if isinstance(value, Interval) else value
        )
    return told
