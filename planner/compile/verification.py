"""Verify an artefact: run it beside its own weights under a cache that keeps everything."""

from dataclasses import replace
from pathlib import Path

from planner import artefact
from planner.compile.contest import row
from planner.compile.exam import exam
from planner.compile.runtimes import Runtime, runtime
from planner.errors import InputError
from planner.executor import Progress
from planner.plan import Plan
from planner.report import VerifyReport
from planner.request import Verification
from planner.verify import Examiner, race
from profiles.documents import tokenizer


def verify_artefact(directory: Path, asked: Verification, progress: Progress) -> VerifyReport:
    """The artefact's loss, retrieval, bytes and seconds on a text, and whether it keeps its plan's loss limit there.

    The dense model is the artefact's own weights with a full cache; where they are stored in fewer bits than the
    source has, the loss is that of the cache alone.
    """
    plan, ran_by = runnable(directory)
    session = ran_by.load(directory)
    questions = exam(tokenizer(directory), plan.workload, asked)
    reference = ran_by.uncompressed(directory)
    with Examiner(questions, progress) as examiner:
        dense = examiner.take_dense(reference)
        planned = examiner.take("artefact", session)
    racing = {"dense": reference, "planned": session}
    timings = race(racing, questions.documents[0], plan.workload, progress)
    limit = plan.goal.limits.loss_nats
    missed = (
        "" if limit is None or planned.loss.value <= limit else f"a loss of {planned.loss} nats where {limit} was asked"
    )
    return VerifyReport(
        row("dense", replace(plan, predicted=None), dense, timings["dense"], local=True),
        row("planned", plan, planned, timings["planned"], local=True),
        missed,
    )


def runnable(directory: Path) -> tuple[Plan, Runtime]:
    """The plan of an artefact, and the runtime here that can carry it out."""
    plan, found = artefact.read_plan(directory), artefact.manifest(directory)
    if found.runtime == "none":
        raise InputError(
            f"{directory}: was planned without weights, so there is nothing to run; compile a model that has"
        )
    ran_by = runtime(found.runtime, f"{directory / artefact.MANIFEST}: runtime")
    here = ran_by.capabilities
    if found.runtime_version != here.version:
        raise InputError(
            f"{directory}: is for {found.runtime} {found.runtime_version}, and this planner runs"
            f" {here.runtime} {here.version}; compile again"
        )
    return plan, ran_by
