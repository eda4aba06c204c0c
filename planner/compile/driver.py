"""Compile: search, run what was found, correct the loss model, and write the best plan that keeps its limits.

Order of retreat: best feasible plan, one solved again by what the first lost, best uniform setting, dense, refusal. A
uniform setting that measures better than the plan ships in its place.
"""

from pathlib import Path

from planner import artefact
from planner.compile.correct import correct
from planner.compile.emit import emit
from planner.compile.kernels import plan_kernels
from planner.compile.prepare import prepare
from planner.compile.priced import baseline, planned
from planner.compile.prove import prove
from planner.compile.retreat import Shipped
from planner.compile.runtimes import runtime
from planner.compile.search import pipeline, search, snapshots
from planner.errors import Infeasible
from planner.executor import Progress
from planner.report import CompileReport, Row
from planner.request import Request

NO_LOSS = "without weights no loss can be measured, so windows and fewer bits are not offered"


def compile_request(
    request: Request,
    *,
    target: str,
    out: Path,
    passes: str | None,
    dump_to: Path | None,
    backend: str | None,
    seed: int,
    progress: Progress,
) -> CompileReport:
    """Plan a request for a target, prove the plan by running it here, and write the artefact."""
    if backend is not None:
        runtime(backend)
    artefact.writable(out)
    steps, snapshot = pipeline(passes), snapshots(dump_to, out)
    prepared = prepare(request, target, seed, progress, backend)
    try:
        found = search(steps, prepared.context, snapshot)
    except Infeasible as error:
        if prepared.context.loss is not None:
            raise
        raise Infeasible(f"{error}; {NO_LOSS}; name a source that has them") from error
    plan = planned(prepared, steps, found)
    notes = (*prepared.checkpoint.notes, *prepared.notes)
    asked = prepared.exam
    if asked is None:
        rows: tuple[Row, ...] = (Row("dense", baseline(prepared)), Row("planned", plan))
        ships, notes = Shipped(rows[-1]), (*notes, NO_LOSS)
    else:
        plan, prepared = correct(plan, prepared, steps, progress)
        proof = prove(prepared, asked, found.widened, plan, steps, progress)
        rows, ships, notes = proof.rows, proof.ships, (*notes, *proof.notes)
    kernels = plan_kernels(prepared, ships.row.plan, progress)
    notes = (*notes, *kernels.notes)
    report = CompileReport(
        rows, found.steps, str(out), prepared.context.hardware.name, ships.row.name, ships.why, notes
    )
    emit(out, prepared, ships.row.plan, report, kernels)
    return report
