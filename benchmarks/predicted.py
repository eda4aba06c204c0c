"""Predicted against measured: seconds of a decode step and to the first token, on ONNX Runtime on this machine.

    python benchmarks/predicted.py examples/smollm2.yaml --contexts 512 2048 8192 --results out/predicted

Dense, the fastest uniform setting, and plans for several limits on the loss. In each round the machine is profiled
anew and every artefact timed, one after another; a figure is the median over the rounds. Each context is kept in the
results directory as it is done.
"""

import argparse
import json
import statistics
from dataclasses import replace
from pathlib import Path

from filled import step_seconds

from backends.onnxruntime.executor import OnnxRuntimeSession
from passes.uniform_settings import uniform_settings
from planner import cost
from planner.compile.machine import measured
from planner.compile.prepare import Prepared, prepare
from planner.compile.priced import baseline, planned, priced
from planner.compile.search import pipeline, search
from planner.config import load_request
from planner.errors import PlannerError
from planner.explain import table
from planner.files import write_text
from planner.goal import Goal, Limits
from planner.measured import Measuring
from planner.plan import Plan
from planner.progress import ProgressLine
from planner.request import Request

BACKEND = "onnxruntime"
FIGURES = ("decode_s", "ttft_s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--contexts", type=int, nargs="+", default=[512, 2048, 8192])
    parser.add_argument("--loss-nats", type=float, nargs="+", default=[0.02, 0.05, 0.15])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--calibration", type=int, nargs=2, default=None, metavar=("DOCUMENTS", "DRAWS"))
    parser.add_argument("--results", type=Path, default=Path("out/predicted"))
    options = parser.parse_args()
    request = load_request(options.model)
    # One document to read is enough: nothing is verified.
    request = replace(request, verification=replace(request.verification, documents=1, recall=0))
    if options.calibration is not None:
        documents, draws = options.calibration
        request = replace(request, calibration=replace(request.calibration, documents=documents, draws=draws))
    options.results.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    with ProgressLine() as progress:
        for context in options.contexts:
            kept = options.results / f"{context}.json"
            if not kept.is_file():
                workload = replace(request.workload, context_tokens=(context,), new_tokens=64)
                asked = replace(request, workload=workload)
                write_text(json.dumps(cell(asked, options.loss_nats, options.rounds, progress), indent=1), kept)
            found[str(context)] = json.loads(kept.read_text())
    report(found)


def cell(
    request: Request, losses: list[float], rounds: int, progress: ProgressLine
) -> dict[str, dict[str, list[float]]]:
    """Rounds of predicted and measured seconds of every artefact at one context: name -> figure -> seconds."""
    prepared, plans = artefacts(request, losses, progress)
    sessions = {name: prepared.executor.open(plan) for name, plan in plans.items()}
    assert prepared.exam is not None
    workload = request.workload
    prompt = prepared.exam.documents[0][: workload.longest_tokens - workload.new_tokens]
    out: dict[str, dict[str, list[float]]] = {name: {} for name in plans}
    for turn in range(rounds):
        hardware = measured(Measuring(BACKEND), progress)
        for number, (name, session) in enumerate(sessions.items()):
            progress("timing", turn * len(plans) + number, rounds * len(plans))
            if not isinstance(session, OnnxRuntimeSession):
                raise PlannerError("times ONNX Runtime sessions only")
            totals = cost.total(plans[name].chosen, prepared.context.spec, workload, hardware)
            step_s = step_seconds(session, workload.longest_tokens)
            first_s = session.time(prompt, 0, workload.prefill_chunk_tokens).ttft_s
            for key, value in (
                ("predicted.decode_s", totals.decode_s),
                ("predicted.ttft_s", totals.ttft_s),
                ("measured.decode_s", step_s),
                ("measured.ttft_s", first_s),
            ):
                out[name].setdefault(key, []).append(value)
    return out


def artefacts(request: Request, losses: list[float], progress: ProgressLine) -> tuple[Prepared, dict[str, Plan]]:
    """Dense, the fastest uniform setting within the middle limit, and a plan for each limit on the loss."""
    passes = pipeline(None)
    plans: dict[str, Plan] = {}
    middle = sorted(losses)[len(losses) // 2]
    for loss in losses:
        goal = Goal("decode_s", Limits(loss_nats=loss))
        prepared = prepare(replace(request, goal=goal), "local", 0, progress, BACKEND)
        if prepared.exam is None:
            raise PlannerError(f"{request.name}: has no weights to run")
        found = search(passes, prepared.context)
        plans["dense"] = baseline(prepared)
        if loss == middle:
            (setting,) = uniform_settings(found.widened, prepared.context, 1)
            plans["uniform"] = priced(prepared, "uniform", setting)
        plans[f"planned {loss:g}"] = planned(prepared, passes, found)
    return prepared, plans


def report(found: dict[str, dict[str, dict[str, list[float]]]]) -> None:
    """Every figure, then the median and the worst error."""
    rows = [["context", "", "figure", "predicted ms", "measured ms", "predicted / measured"]]
    errors: list[float] = []
    for context, artefact in found.items():
        for name, values in artefact.items():
            for figure in FIGURES:
                told = statistics.median(values[f"predicted.{figure}"])
                seen = statistics.median(values[f"measured.{figure}"])
                errors.append(abs(told / seen - 1))
                rows.append([context, name, figure, f"{told * 1e3:.1f}", f"{seen * 1e3:.1f}", f"{told / seen:.2f}"])
    print("\n".join(table(rows)))
    print(f"error: median {statistics.median(errors):.1%}, worst {max(errors):.1%}, of {len(errors)} figures")


if __name__ == "__main__":
    main()
