"""Check an artefact's kernels without a GPU: run in Triton's interpreter, compared with their references, counted."""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

from backends.triton.check import Checked, check_kernels, shape_text
from backends.triton.emit import FOLDER
from backends.triton.search import check_compiler
from planner import artefact
from planner.errors import InputError, TamperedArtifact
from planner.executor import Progress
from planner.explain import table


@dataclass(frozen=True, slots=True)
class CheckReport:
    """Every case of an artefact's kernels."""

    out: str
    cases: tuple[Checked, ...]

    @property
    def wrong(self) -> tuple[Checked, ...]:
        """The cases that do not agree with their reference, or did not run."""
        return tuple(case for case in self.cases if not case.right)

    def as_json(self) -> dict[str, object]:
        return {"out": self.out, "wrong": len(self.wrong), "cases": [_case(case) for case in self.cases]}

    def as_text(self) -> str:
        """A line for each module and type, then one for each launch of the plan, then what is wrong."""
        rows = [["kernels", "inputs", "cases", "largest error", "limit", "wrong bits", "wrong"]]
        groups: dict[tuple[str, str], list[Checked]] = {}
        for case in self.cases:
            groups.setdefault((case.module, case.dtype), []).append(case)
        for (module, dtype), cases in groups.items():
            worst, limit = max(case.error for case in cases), max(case.limit for case in cases)
            bits, wrong = sum(case.wrong_bits for case in cases), sum(not case.right for case in cases)
            rows.append([module, dtype, str(len(cases)), f"{worst:.1e}", f"{limit:.0e}", str(bits), str(wrong)])
        lines = [*table(rows), *self._counted()]
        for case in self.wrong:
            why = case.failed or f"error {case.error:.1e}, {case.wrong_bits} wrong bits"
            lines.append(f"wrong: {case.module} of {case.dtype} at {shape_text(case.shape)}: {why}")
        verdict = f"{len(self.wrong)} of {len(self.cases)} cases are wrong" if self.wrong else "all agree"
        return "\n".join([*lines, f"{self.out}: {len(self.cases)} cases in Triton's interpreter, {verdict}"])

    def _counted(self) -> list[str]:
        """Bytes of the plan's launches, counted in sectors of 32 beside what each must read at least."""
        rows = [["launches of the plan", "must read MB", "read", "by program", "requested", "max/mean"]]
        for case in self.cases:
            for launch in case.launches if case.planned else ():
                needed = max(launch.needed_read, 1)
                shares = (launch.read, launch.read_by_program, launch.read_requested)
                rows.append(
                    [
                        f"{launch.kernel} {shape_text(case.shape)}"[:100],
                        f"{launch.needed_read / 1e6:.3f}",
                        *(f"{share / needed:.3f}x" for share in shares),
                        f"{launch.balance:.3f}",
                    ]
                )
        return ["", *table(rows), ""] if len(rows) > 1 else [""]


def check_artefact(directory: Path, quick: bool, progress: Progress) -> CheckReport:
    """Run the kernels of an artefact; their files must be those that its manifest lists."""
    listed = artefact.manifest(directory).files
    ours = {name: digest for name, digest in listed.items() if name.startswith(f"{FOLDER}/")}
    if not ours:
        raise InputError(f"{directory}: holds no kernels; compile for a GPU target, such as --target a100")
    check_compiler()
    for name, digest in ours.items():
        path = directory / name
        if not path.is_file():
            raise TamperedArtifact(f"{path}: is missing; compile again")
        if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            raise TamperedArtifact(f"{path}: differs from the sha256 in {artefact.MANIFEST}; compile again")
    for path in sorted((directory / FOLDER).rglob("*.py")):
        if str(path.relative_to(directory)) not in ours:
            raise TamperedArtifact(f"{path}: is no part of the artefact, and would be run; remove it")
    return CheckReport(str(directory), check_kernels(directory.resolve(), quick, progress))


def _case(case: Checked) -> dict[str, object]:
    return {
        "module": case.module,
        "shape": dict(case.shape),
        "variant": dict(case.variant),
        "inputs": case.dtype,
        "planned": case.planned,
        "right": case.right,
        "error": case.error if math.isfinite(case.error) else None,
        "limit": case.limit,
        "wrong_bits": case.wrong_bits,
        "failed": case.failed or None,
        "launches": [
            {
                "kernel": launch.kernel,
                "programs": launch.programs,
                "needed_read_bytes": launch.needed_read,
                "read_bytes": launch.read,
                "read_by_program_bytes": launch.read_by_program,
                "read_requested_bytes": launch.read_requested,
                "needed_written_bytes": launch.needed_written,
                "written_bytes": launch.written,
                "balance": launch.balance,
            }
            for launch in case.launches
        ],
    }
