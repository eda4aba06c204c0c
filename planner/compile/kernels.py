"""The kernels of a plan for a GPU: searched, compiled and written beside it; why, where there are none."""

from dataclasses import dataclass

from planner.compile.prepare import Prepared, cache_directory
from planner.errors import InputError
from planner.executor import Artifact, Progress
from planner.plan import Plan

RUNTIMES = ("transformers", "none")
"""Whose formats the kernels read; a plan for a bare config has transformers' and no runtime."""


@dataclass(frozen=True, slots=True)
class PlanKernels:
    """The files of an artefact's kernels, and what to tell of them."""

    files: tuple[Artifact, ...] = ()
    notes: tuple[str, ...] = ()


def plan_kernels(prepared: Prepared, plan: Plan, progress: Progress) -> PlanKernels:
    """The kernels of a plan whose target is a GPU; none for a CPU, which runs no Triton, nor for a runtime that has its
    own."""
    hardware = prepared.context.hardware
    if hardware.kind != "gpu" or prepared.context.capabilities.runtime not in RUNTIMES:
        return PlanKernels()
    from backends.triton.emit import kernel_files, run_files, summary
    from backends.triton.predicted import gpu
    from backends.triton.search import Search, check_compiler
    from backends.triton.uses import planned_uses

    try:
        target = gpu(hardware)
        check_compiler()
    except InputError as error:
        return PlanKernels(notes=(f"kernels: none; {error}",))
    uses = planned_uses(plan, prepared.checkpoint.spec, target.multiprocessors)
    search = Search(target, cache_directory() / "kernels")
    found = search.run([each.use for each in uses], progress)
    runs = run_files() if prepared.context.capabilities.runtime == "transformers" else ()
    return PlanKernels((*kernel_files(search, uses, found), *runs), summary(found))
