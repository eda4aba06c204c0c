"""What compile and verify tell: the table dense / uniform / planned, predicted and measured, as text and as JSON."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from planner.explain import table
from planner.pipeline import Step
from planner.plan import Costs, Interval, Plan
from planner.verify import Measured

ROWS = ("dense", "uniform", "planned")
COLUMNS = ("kv_bytes", "weight_bytes", "decode_s", "ttft_s", "loss_nats", "perplexity", "passkey")


@dataclass(frozen=True, slots=True)
class Row:
    """One plan of the table, with the scores of its documents where it ran."""

    name: str
    plan: Plan
    result: Measured | None = None


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
        plans = {row.name: row.plan for row in self.rows}
        told = {name: plan_json(plans.get(name)) for name in ROWS}
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
            "dense": plan_json(self.dense.plan),
            "uniform": None,
            "planned": plan_json(self.planned.plan),
            "missed": self.missed or None,
        }

    def as_text(self) -> str:
        return "\n".join(costs_table((self.dense, self.planned)))


def costs_table(rows: Sequence[Row]) -> list[str]:
    """Predicted and measured of every row, in megabytes, milliseconds and nats per token."""
    head = ["", "KV MB", "weights MB", "ms/token", "first token s", "loss nats", "perplexity", "passkey"]
    lines = [head]
    for row in rows:
        for name, costs in (("predicted", row.plan.predicted), ("measured", row.plan.measured)):
            if costs is not None:
                lines.append([f"{row.name} {name}", *_cells(costs)])
    sources = dict.fromkeys(
        costs.source for row in rows for costs in (row.plan.predicted, row.plan.measured) if costs is not None
    )
    return [*table(lines), "", *(f"- {source}" for source in sources)]


def _cells(costs: Costs) -> list[str]:
    return [
        f"{costs.kv_bytes / 1e6:.2f}",
        f"{costs.weight_bytes / 1e6:.1f}",
        _interval(costs.decode_s, 1e3, 1),
        _interval(costs.ttft_s, 1.0, 2),
        _interval(costs.loss_nats, 1.0, 4),
        _interval(costs.perplexity, 1.0, 2),
        "-" if costs.passkey is None else f"{costs.passkey:.0%}",
    ]


def _interval(value: Interval | None, scale: float, digits: int) -> str:
    if value is None:
        return "-"
    middle, low, high = (f"{x * scale:.{digits}f}" for x in (value.value, value.low, value.high))
    return f"{middle} [{low}, {high}]"


def plan_json(plan: Plan | None) -> dict[str, object] | None:
    """A row of the table; None where there is no such plan."""
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
