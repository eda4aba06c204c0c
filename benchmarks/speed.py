"""Dense, the fastest uniform setting and the plan on ONNX Runtime at several contexts: measured loss and seconds.

    python benchmarks/speed.py examples/smollm2.yaml --contexts 512 2048 8192 --loss-nats 0.05 --results out/speed

All minimise the seconds of a decode step within one limit on the loss, weights included. Each context is kept in the
results directory as it is done, so that a killed run goes on with the next one. With --neighbours N, the plan is also
timed beside N random plans that differ from it at a few sites and keep the limit as predicted: their caches are filled
without reading a prompt, since only the time of a step is asked.
"""

import argparse
import json
import random
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from filled import step_seconds

from backends.onnxruntime.executor import OnnxRuntimeSession
from passes.uniform_settings import uniform_settings
from planner.compile.contest import contest
from planner.compile.correct import correct
from planner.compile.prepare import Prepared, prepare
from planner.compile.priced import baseline, planned, priced
from planner.compile.search import pipeline, search
from planner.config import load_request
from planner.errors import PlannerError
from planner.explain import table
from planner.files import write_text
from planner.goal import Goal, Limits
from planner.plan import Plan
from planner.progress import ProgressLine
from planner.report import costs_json, costs_table
from planner.request import Request
from planner.space import Space, violated

UNIFORMS = 2
"""Fastest uniform settings, as predicted, that are run; of these the first that keeps the limit is the row."""

TURNS, TURNS_AGAIN, OPEN = 7, 41, 4
CHANGED_SITES = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--contexts", type=int, nargs="+", default=[512, 2048, 8192])
    parser.add_argument("--loss-nats", type=float, default=0.05)
    parser.add_argument("--documents", type=int, default=8, help="documents of the verification text")
    parser.add_argument("--calibration", type=int, nargs=2, default=None, metavar=("DOCUMENTS", "DRAWS"))
    parser.add_argument("--text", type=Path, help="UTF-8 text no calibration saw; the shipped one if left out")
    parser.add_argument("--neighbours", type=int, default=0)
    parser.add_argument("--results", type=Path, default=Path("out/speed"))
    options = parser.parse_args()
    request = load_request(options.model)
    request = replace(request, verification=replace(request.verification, documents=options.documents, recall=0))
    if options.text is not None:
        request = replace(request, verification=replace(request.verification, text=options.text))
    if options.calibration is not None:
        documents, draws = options.calibration
        request = replace(request, calibration=replace(request.calibration, documents=documents, draws=draws))
    goal = Goal("decode_s", Limits(loss_nats=options.loss_nats))
    rows = [["context", "", "ms/token", "first token s", "loss nats", "KV MB", "weights MB", "dense / row"]]
    options.results.mkdir(parents=True, exist_ok=True)
    with ProgressLine() as progress:
        for context in options.contexts:
            kept = options.results / f"{context}.json"
            if not kept.is_file():
                workload = replace(request.workload, context_tokens=(context,), new_tokens=64)
                found = cell(replace(request, workload=workload, goal=goal), options.neighbours, progress)
                write_text(json.dumps(found, indent=1), kept)
            rows += told(context, json.loads(kept.read_text()))
    print("\n".join(table(rows)))


def cell(request: Request, neighbours: int, progress: ProgressLine) -> dict[str, object]:
    """One context: the rows of the table, and how the plan does among its neighbours."""
    prepared, passes = prepare(request, "local", 0, progress, "onnxruntime"), pipeline(None)
    if prepared.exam is None:
        raise PlannerError(f"{request.name}: has no weights to run")
    found = search(passes, prepared.context)
    plan, prepared = correct(planned(prepared, passes, found), prepared, passes, progress)
    settings = uniform_settings(found.widened, prepared.context, UNIFORMS)
    uniform = [priced(prepared, "uniform", space) for space in settings]
    asked = prepared.exam
    rows = contest(prepared, asked, baseline(prepared), uniform, plan, progress)
    print("\n".join(costs_table(rows)))
    result: dict[str, object] = {
        row.name: {"predicted": costs_json(row.plan.predicted), "measured": costs_json(row.plan.measured)}
        for row in rows
    }
    if neighbours:
        result["neighbours"] = among_neighbours(prepared, found.widened, plan, neighbours, progress)
    return result


def among_neighbours(
    prepared: Prepared, space: Space, plan: Plan, count: int, progress: ProgressLine
) -> dict[str, object]:
    """How much longer a step of random feasible neighbours takes than the plan's, by medians over turns in which the
    plan was timed beside them: what else the machine does moves all of a turn."""
    chance, limit = random.Random(0), prepared.context.goal.limits.loss_nats
    loss = prepared.context.loss
    plans = [plan]
    while len(plans) <= count:
        chosen = dict(plan.chosen)
        for site in chance.sample(sorted(chosen, key=str), CHANGED_SITES):
            chosen[site] = chance.choice(space.candidates[site])
        good = loss is None or limit is None or loss.predicted(chosen, True).value <= limit
        if good and violated(chosen, space.constraints) is None:
            plans.append(priced(prepared, f"neighbour {len(plans)}", space.choose(chosen)))
    # A few are open at a time, the plan among them each time: all at once would not fit.
    medians = dict[int, float]()
    for start in range(1, len(plans), OPEN):
        numbers = range(start, min(start + OPEN, len(plans)))
        progress("neighbours in turns", start - 1, count)
        medians |= over_plan(prepared, plans, numbers, TURNS)
    # What came out fastest of so many is so by chance in part, and is timed again for longer.
    again = over_plan(prepared, plans, sorted(medians, key=lambda i: medians[i])[:OPEN], TURNS_AGAIN)
    progress("neighbours in turns", count, count)
    return {
        "faster": sum(each < 1 for each in again.values()),
        "of": count,
        "seconds_over_plan": sorted(medians.values()),
        "fastest_timed_again": sorted(again.values()),
    }


def over_plan(prepared: Prepared, plans: Sequence[Plan], numbers: Sequence[int], turns: int) -> dict[int, float]:
    """Median over turns of the seconds of a step over those of the first plan, of the plans by number."""
    sessions = {i: prepared.executor.open(plans[i]) for i in (0, *numbers)}
    ratios: dict[int, list[float]] = {i: [] for i in numbers}
    for turn in range(turns):
        # None is always the first after the same one.
        order = sorted(sessions, key=lambda i: (i + turn) % (max(sessions) + 1))
        taken = dict[int, float]()
        for i in order:
            session = sessions[i]
            if isinstance(session, OnnxRuntimeSession):
                taken[i] = step_seconds(session, plans[0].workload.longest_tokens)
        for i in numbers:
            ratios[i].append(taken[i] / taken[0])
    return {i: statistics.median(each) for i, each in ratios.items()}


def told(context: int, found: dict[str, dict[str, dict[str, object]]]) -> list[list[str]]:
    """The lines of one context."""
    lines = []
    dense = number(found["dense"], "decode_s")
    for name in ("dense", "uniform", "planned"):
        if name not in found:
            continue
        row = found[name]
        lines.append(
            [
                str(context),
                name,
                f"{number(row, 'decode_s') * 1e3:.1f}",
                f"{number(row, 'ttft_s'):.2f}",
                f"{number(row, 'loss_nats'):.4f}",
                f"{number(row, 'kv_bytes') / 1e6:.1f}",
                f"{number(row, 'weight_bytes') / 1e6:.1f}",
                f"{dense / number(row, 'decode_s'):.2f}",
            ]
        )
    return lines


def number(row: dict[str, dict[str, object]], name: str) -> float:
    """A measured figure."""
    value = row["measured"][name]
    return float(np.asarray(value["value"] if isinstance(value, dict) else value))


if __name__ == "__main__":
    main()
