"""Which plan ships once all have run: the planned one, else the best uniform setting, else dense, else none."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from planner.errors import VerificationFailed
from planner.goal import Goal, Limits
from planner.plan import Interval, Plan
from planner.prices import dense_kv_bytes
from planner.report import Row
from planner.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Miss:
    """A limit that a plan does not keep, and what it takes instead."""

    limit: str
    most: float
    found: float

    def __str__(self) -> str:
        return f"{self.limit} of {self.found:,.6g} where at most {self.most:,.6g} was asked"


@dataclass(frozen=True, slots=True)
class Shipped:
    """The row to write, and why it is not the planned one where it is not."""

    row: Row
    why: str = ""


def shipped(rows: Sequence[Row], goal: Goal, spec: ModelSpec) -> Shipped:
    """The row to ship; a uniform setting that measured better than the plan goes in its place."""
    by_name = {row.name: row for row in rows}
    order = [by_name[name] for name in ("planned", "uniform", "dense") if name in by_name]
    missed = {row.name: tuple(misses(row.plan, goal.limits, spec)) for row in order}
    kept = [row for row in order if not missed[row.name]]
    first = ", ".join(map(str, missed["planned"]))
    if not kept:
        names = " or ".join(f"goal.limits.{miss.limit}" for miss in missed["planned"])
        raise VerificationFailed(f"no plan kept its limits when run: the planned one took a {first}; loosen {names}")
    if missed["planned"]:
        return Shipped(kept[0], f"the plan took a {first}")
    if "uniform" in by_name and not missed["uniform"]:
        uniform = by_name["uniform"]
        if objective(uniform.plan) < objective(by_name["planned"].plan):
            return Shipped(uniform, f"it measured a lower {goal.minimise} than the plan")
    return Shipped(kept[0])


def misses(plan: Plan, limits: Limits, spec: ModelSpec) -> Iterator[Miss]:
    """The limits a plan does not keep: bytes and loss as measured, seconds and memory as the target's figures say.

    Nothing is missed by a plan that was not run.
    """
    measured, expected = plan.measured, plan.predicted
    if measured is None or expected is None:
        return
    dense = dense_kv_bytes(spec, plan.workload)
    found: dict[str, float | Interval | None] = {
        "loss_nats": measured.loss_nats,
        "kv_bytes": measured.kv_bytes,
        "kv_share": measured.kv_bytes / dense,
        "weight_bytes": measured.weight_bytes,
        "memory_bytes": expected.memory_bytes,
        "decode_s": expected.decode_s,
        "ttft_s": expected.ttft_s,
    }
    for name, value in found.items():
        most = getattr(limits, name)
        if most is not None and value is not None and middle(value) > most:
            yield Miss(name, most, middle(value))


def objective(plan: Plan) -> float:
    """What the goal minimises: bytes and loss as measured, seconds and memory as the target's figures say."""
    name = plan.goal.minimise
    costs = plan.predicted if name in ("decode_s", "ttft_s", "memory_bytes") or plan.measured is None else plan.measured
    return middle(getattr(costs, name))


def middle(value: float | Interval) -> float:
    """The number itself, or the middle of an interval."""
    return value.value if isinstance(value, Interval) else value
