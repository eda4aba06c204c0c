"""The table dense / best uniform / planned: every plan run on the same positions and timed in turns."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from planner.compile.prepare import Prepared
from planner.executor import Progress, Timing
from planner.goal import Goal
from planner.plan import Plan
from planner.report import Row
from planner.verify import Exam, Examiner, Measured, race


def contest(
    prepared: Prepared, asked: Exam, dense: Plan, uniform: Sequence[Plan], planned: Plan, progress: Progress
) -> tuple[Row, ...]:
    """The rows of the table; of the uniform settings only the one that did best."""
    request = prepared.request
    candidates = {f"uniform {i + 1}": each for i, each in enumerate(uniform)}
    plans = {"dense": dense, **candidates, "planned": planned}
    with Examiner(asked, progress) as examiner:
        results = {"dense": examiner.take_dense(prepared.executor.open(dense))}
        for name in (*candidates, "planned"):
            results[name] = examiner.take(name, prepared.executor.open(plans[name]))
        best = best_uniform({name: results[name] for name in candidates}, request.goal)
        names = ("dense", *best, "planned")
        told = {name: "uniform" if name in best else name for name in names}
        if not prepared.context.capabilities.executes_here:
            return tuple(untimed(told[name], plans[name], results[name]) for name in names)
        # Opened again rather than kept: each may hold its own weights, and only these need to be there at once.
        racing = {name: prepared.executor.open(plans[name]) for name in names}
        timings = race(racing, asked.documents[0], request.workload, progress)
    local = prepared.local
    return tuple(row(told[name], plans[name], results[name], timings[name], local) for name in names)


def untimed(name: str, plan: Plan, result: Measured) -> Row:
    """A plan of a runtime that is not here: its loss in that runtime's numbers, its bytes as predicted, no seconds."""
    costs = result.costs("loss measured here in the runtime's numbers, bytes predicted, nothing timed")
    if plan.predicted is not None:
        kv_bytes, weight_bytes = plan.predicted.kv_bytes, plan.predicted.weight_bytes
        costs = replace(costs, kv_bytes=kv_bytes, weight_bytes=weight_bytes, memory_bytes=kv_bytes + weight_bytes)
    return Row(name, replace(plan, measured=costs, quality_verified=True, speed_measured=False), result)


def row(name: str, plan: Plan, result: Measured, timings: Sequence[Timing], local: bool) -> Row:
    """A plan with what running it showed; the seconds are the target's own only where that is this machine."""
    result = replace(result, timings=tuple(timings))
    costs = result.costs("measured on this machine" if local else "measured here, not on the target")
    return Row(name, replace(plan, measured=costs, quality_verified=True, speed_measured=local), result)


def best_uniform(results: Mapping[str, Measured], goal: Goal) -> tuple[str, ...]:
    """The name of the uniform setting that did best. They come best first by what the goal minimises, as predicted.

    Minimising the loss that is the least measured loss; otherwise the first that measures within the loss limit, and
    the least loss where none does.
    """
    by_loss = sorted(results, key=lambda name: results[name].loss.value)
    most = goal.limits.loss_nats
    kept = [name for name in results if most is None or results[name].loss.value <= most]
    order = by_loss if goal.minimise == "loss_nats" else [*kept, *by_loss]
    return tuple(order[:1])
