"""The folder `kernels/` of an artefact: modules verbatim, binaries for the target, numbers of the plan, resources.

kernels/*.py            as they are tested, importing torch and triton only
kernels/layers.json     which kernel at which shape serves what, with the variants kept, best first
kernels/resources.json  registers, spills, shared memory and occupancy of every launch kept; what was dropped, why
kernels/CHIP/           the binary and the assembly of every launch of the best variants
run_kernels.py          beside runner.py: the planned model on these kernels, by integration.py
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from json import loads
from pathlib import Path

from backends.artefacts import beside_runner, json_bytes
from backends.triton.chips import chip
from backends.triton.search import FoundKernel, KeptLaunch, Search, Use
from backends.triton.uses import PlannedUse
from planner.errors import InputError
from planner.executor import Artifact

FOLDER = "kernels"
RUN = "run_kernels.py"
RUNNING = tuple(Path(__file__).with_name(name) for name in (RUN, "integration.py"))
ENDINGS = {"cuda": ("cubin", "ptx"), "hip": ("hsaco", "amdgcn")}
NAMED = 16
"""Digits of a compilation's key in the names of its files."""


def kernel_files(search: Search, uses: Sequence[PlannedUse], found: Mapping[Use, FoundKernel]) -> tuple[Artifact, ...]:
    """The files of the folder."""
    head = {"target": search.gpu.name, "chip": search.gpu.architecture, "triton": version("triton")}
    layers = head | {"dtype": "float16", "uses": [_planned(each, found[each.use]) for each in uses]}
    resources = head | {
        "predicted_by": "data-sheet bandwidth and throughput, occupancy and waves; not measured",
        "kernels": [_resources(search, kernel) for kernel in found.values()],
    }
    return (
        Artifact(f"{FOLDER}/__init__.py", b""),
        *(Artifact(f"{FOLDER}/{path.name}", path) for path in sorted(search.folder.glob("*.py"))),
        Artifact(f"{FOLDER}/layers.json", json_bytes(layers)),
        Artifact(f"{FOLDER}/resources.json", json_bytes(resources)),
        *_binaries(search, found.values()),
    )


def run_files() -> tuple[Artifact, ...]:
    """What runs the planned model on the kernels beside it, where the transformers runner's files are too."""
    return tuple(Artifact(path.name, beside_runner(path.read_text(encoding="utf-8"))) for path in RUNNING)


def summary(found: Mapping[Use, FoundKernel]) -> tuple[str, ...]:
    """What the kernels of a plan take, and which uses have none and why, in lines."""
    launches = [launch for kernel in found.values() for each in kernel.kept[:1] for launch in each.launches]
    lines = []
    if launches:
        distinct = {launch.key: launch.resources for launch in launches}.values()
        lines.append(
            f"kernels: {len(distinct)} compiled for {next(iter(found.values())).chip}, at most"
            f" {max(each.registers for each in distinct)} registers and"
            f" {max(each.shared_bytes for each in distinct) / 1024:.0f} KiB of shared memory, no spills; their speed is"
            " predicted; check them with: planner check"
        )
    for kernel in found.values():
        if kernel.without:
            lines.append(f"kernels: none of {kernel.module} for {kernel.shape}: {kernel.without}")
    return tuple(lines)


def _planned(each: PlannedUse, found: FoundKernel) -> dict[str, object]:
    return {
        "module": each.use.module,
        "phase": each.phase,
        "serves": list(each.serves),
        "shape": loads(each.use.shape),
        "variants": [asdict(kept.variant) for kept in found.kept],
    }


def _resources(search: Search, found: FoundKernel) -> dict[str, object]:
    kept = [
        {
            "variant": asdict(each.variant),
            "predicted_s": each.predicted_s,
            "launches": [_launch(search, launch, best=number == 0) for launch in each.launches],
        }
        for number, each in enumerate(found.kept)
    ]
    return {
        "module": found.module,
        "shape": loads(found.shape),
        "ranked": found.ranked,
        "kept": kept,
        "dropped": [
            {"variant": str(each.variant), "kernel": each.kernel, "reason": each.reason} for each in found.dropped
        ],
        "refused": found.refused or None,
    }


def _launch(search: Search, launch: KeptLaunch, best: bool) -> dict[str, object]:
    told = asdict(launch)
    del told["key"]
    binary, assembly = _paths(search, launch)
    return told | ({"binary": binary, "assembly": assembly} if best else {})


def _paths(search: Search, launch: KeptLaunch) -> tuple[str, str]:
    """Where the binary and the assembly of a launch lie in the folder."""
    target = chip(search.gpu.architecture)
    binary, assembly = ENDINGS[target.backend]
    stem = f"{target.name}/{launch.kernel}-{launch.key[:NAMED]}"
    return f"{stem}.{binary}", f"{stem}.{assembly}"


def _binaries(search: Search, found: Iterable[FoundKernel]) -> Iterator[Artifact]:
    """The binary and the assembly of every launch of the best variants, each once."""
    launches = {launch.key: launch for kernel in found for each in kernel.kept[:1] for launch in each.launches}
    for launch in launches.values():
        content = search.store.binary(launch.key)
        if content is None:
            raise InputError(f"{search.directory}: a compiled kernel vanished while it was used; run again")
        for path, data in zip(_paths(search, launch), content, strict=True):
            yield Artifact(f"{FOLDER}/{path}", data)
