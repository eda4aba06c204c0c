"""Which plan ships once all have run: the planned one, else the best uniform setting, else dense, else none."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from planner.errors import VerificationFailed
from planner.goal import Goal, Limits
from planner.plan import Costs, Interval, Plan
from planner.prices import dense_kv_bytes
from planner.report import Row
from planner.spec import ModelSpec

SECONDS = ("decode_s", "ttft_s")

NOISE = 0.03
"""Relative difference up to which two measured times count as equal: medians of a few turns, on a machine that does
other things too, tell no smaller one apart. Of equals the plan ships, which is also predicted to be the faster one."""


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
    """The row to ship: the best of those that keep their limits; of equals the plan, then the uniform one."""
    by_name = {row.name: row for row in rows}
    order = [by_name[name] for name in ("planned", "uniform", "dense") if name in by_name]
    missed = {row.name: tuple(misses(row.plan, goal.limits, spec)) for row in order}
    kept = [row for row in order if not missed[row.name]]
    first = ", ".join(map(str, missed["planned"]))
    if not kept:
        names = " or ".join(f"goal.limits.{miss.limit}" for miss in missed["planned"])
        raise VerificationFailed(f"no plan kept its limits when run: the planned one took a {first}; loosen {names}")
    best = kept[0]
    for row in kept[1:]:
        if better(row.plan, best.plan):
            best = row
    if missed["planned"]:
        return Shipped(best, f"the plan took a {first}")
    if best is not kept[0]:
        how = "measured" if judged(best.plan, goal.minimise) is best.plan.measured else "is predicted"
        return Shipped(best, f"it {how} a lower {goal.minimise} than the plan")
    return Shipped(best)


def misses(plan: Plan, limits: Limits, spec: ModelSpec) -> Iterator[Miss]:
    """The limits a plan does not keep, each by the figure that `judged` names; a median must keep its limit as it is.

    Nothing is missed by a plan that was not run.
    """
    measured = plan.measured
    if measured is None or plan.predicted is None:
        return
    found: dict[str, float | Interval | None] = {
        "loss_nats": measured.loss_nats,
        "kv_bytes": measured.kv_bytes,
        "kv_share": measured.kv_bytes / dense_kv_bytes(spec, plan.workload),
        "weight_bytes": measured.weight_bytes,
        **{name: getattr(judged(plan, name), name) for name in ("memory_bytes", *SECONDS)},
    }
    for name, value in found.items():
        most = getattr(limits, name)
        if most is not None and value is not None and middle(value) > most:
            yield Miss(name, most, middle(value))


def better(one: Plan, than: Plan) -> bool:
    """Whether a plan has less of what the goal minimises; measured seconds must differ by more than noise."""
    name = than.goal.minimise
    timed = name in SECONDS and one.speed_measured and than.speed_measured
    return objective(one) < objective(than) * (1.0 - NOISE if timed else 1.0)


def objective(plan: Plan) -> float:
    """What the goal minimises, by the figure that `judged` names."""
    name = plan.goal.minimise
    return middle(getattr(judged(plan, name), name))


def judged(plan: Plan, name: str) -> Costs | None:
    """The costs that a figure is judged by, where the plan has run: as measured, but for two things.

    Seconds are the target's own only where that is the machine the plan ran on; for another one they are as predicted.
    So is memory everywhere: what a run needs besides weights and cache is not measured.
    """
    predicted = name == "memory_bytes" or (name in SECONDS and not plan.speed_measured)
    return plan.predicted if predicted or plan.measured is None else plan.measured


def middle(value: float | Interval) -> float:
    """The number itself, or the middle of an interval."""
    return value.value if isinstance(value, Interval) else value
