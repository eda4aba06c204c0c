"""What compile and verify tell: the table dense / uniform / planned, predicted and measured, as text and as JSON."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from planner.explain import table
from planner.pipeline import Step
from planner.plan import Costs, Interval, Plan
from planner.verify import Measured

COLUMNS = ("kv_bytes", "weight_bytes", "decode_s", "ttft_s", "loss_nats", "perplexity", "passkey")


@dataclass(frozen=True, slots=True)
class Row:
    """One plan of the table, with the scores of its documents where it ran."""

    name: str
    plan: Plan
    result: Measured | None = None


@dataclass(frozen=True, slots=True)
class CompileReport:
    """The outcome of compile. `shipped` names the row that was written."""

    rows: tuple[Row, ...]
    steps: tuple[Step, ...]
    out: str
    target: str
    shipped: str = "planned"

    def as_json(self) -> dict[str, object]:
        told: dict[str, object] = {
            row.name: {"predicted": costs_json(row.plan.predicted), "measured": costs_json(row.plan.measured)}
            for row in self.rows
        }
        steps = [
            {"pass": s.name, "seconds": s.seconds, "before": s.candidates_before, "after": s.candidates_after}
            for s in self.steps
        ]
        return {"target": self.target, "out": self.out, "shipped": self.shipped, **told, "passes": steps}

    def json_text(self) -> str:
        return json.dumps(self.as_json(), indent=1, allow_nan=False) + "\n"

    def as_text(self) -> str:
        funnel = ", ".join(f"{s.name} {s.candidates_after:,}" for s in self.steps)
        solver = self.rows[-1].plan.solver
        proved = "" if solver is None else f"; solver: {solver.status}, gap {solver.gap:.2%}"
        lines = [f"candidates: {funnel}{proved}", "", *costs_table(self.rows), ""]
        if self.shipped != "planned":
            lines.append(f"the {self.shipped} setting measured better than the plan, or the plan missed a limit: it ships")
        lines.append(f"wrote {self.out}: the {self.shipped} row; run it with: planner run {self.out} --prompt TEXT")
        return "\n".join(lines)


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
