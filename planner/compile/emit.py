"""Write what was planned: an artefact that runs, or for a model without weights a plan and its report alone."""

from pathlib import Path
from typing import Protocol

from planner import artefact
from planner.compile.kernels import PlanKernels
from planner.compile.prepare import Prepared
from planner.errors import VerificationFailed
from planner.executor import Artifact
from planner.plan import Plan, sha256
from planner.serde import dump

SPOKEN_TOKENS = 8
REPORT_TEXT = "report.txt"


class Report(Protocol):
    """What a command tells of what it did, as it is written beside the plan."""

    def json_text(self) -> str: ...

    def as_text(self) -> str: ...


def emit(out: Path, prepared: Prepared, plan: Plan, report: Report, kernels: PlanKernels) -> None:
    """Write the directory; what runs here must speak, once written, as the plan that was verified did."""
    capabilities, text = prepared.context.capabilities, dump(plan)
    asked = prepared.exam
    files = (
        *(prepared.executor.emit(plan, prepared.checkpoint.spec) if asked is not None else ()),
        *kernels.files,
        Artifact(artefact.PLAN, text.encode()),
        Artifact(artefact.REPORT, report.json_text().encode()),
        Artifact(REPORT_TEXT, (report.as_text() + "\n").encode()),
    )
    header = artefact.Header(capabilities.runtime, capabilities.version, sha256(text), plan.provenance.planner_version)

    if asked is None or not capabilities.executes_here:
        artefact.write(out, files, header)
        return
    # As long as the plan's context, so that every window binds.
    prompt = asked.documents[0][:-SPOKEN_TOKENS]

    def speaks(new: Path) -> None:
        """Load what was written and let it speak: the same tokens as the plan that was verified."""
        written = prepared.executor.load(new).generate([prompt], SPOKEN_TOKENS)
        if written != prepared.executor.open(plan).generate([prompt], SPOKEN_TOKENS):
            raise VerificationFailed(f"{out}: was not written: it would generate other tokens than the verified plan")

    artefact.write(out, files, header, speaks)
