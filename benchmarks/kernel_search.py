"""How long the kernels of a plan take to search, to compile once they are chosen, and to read back, by target.

    python benchmarks/kernel_search.py OUT examples/smollm2.yaml --results out/kernel_search

OUT is what `planner compile examples/smollm2.yaml --target a100 -o OUT` wrote. Each target begins with nothing compiled
and a Triton cache of its own; the second time is that of the chosen kernels alone, their binaries gone but not what
was found, the third with everything there. No GPU is needed. A target is kept in the results directory as it is done.
"""

import argparse
import json
import os
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from backends.triton.emit import kernel_files
from backends.triton.predicted import gpu
from backends.triton.search import Search
from backends.triton.uses import planned_uses
from planner import artefact
from planner.compile.prepare import opened
from planner.config import load_request
from planner.errors import PlannerError
from planner.explain import table
from planner.files import write_text
from planner.progress import ProgressLine
from profiles.targets import target

TARGETS = ("a100", "h100", "b200", "rtx4090", "mi300x")


@dataclass(frozen=True)
class Cell:
    """One target: launches that were compiled and dropped, those chosen, seconds of the three runs, what they take."""

    target: str
    compiled: int
    dropped: int
    without: int
    chosen: int
    search_s: float
    chosen_s: float
    cached_s: float
    most_registers: int
    spilled_bytes: int
    most_shared_bytes: int
    least_occupancy: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artefact", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--targets", nargs="+", default=TARGETS)
    parser.add_argument("--results", type=Path, default=Path("out/kernel_search"))
    options = parser.parse_args()
    options.results.mkdir(parents=True, exist_ok=True)
    try:
        cells = [measured(options, name) for name in options.targets]
    except PlannerError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    head = ["target", "compiled", "dropped", "no variant", "chosen", "search s", "chosen s", "cached s"]
    lines = [[*head, "registers", "spilled", "shared KiB", "occupancy"]]
    for cell in cells:
        seconds = (f"{each:.1f}" for each in (cell.search_s, cell.chosen_s, cell.cached_s))
        taken = (cell.most_registers, cell.spilled_bytes, round(cell.most_shared_bytes / 1024), cell.least_occupancy)
        counts = (cell.compiled, cell.dropped, cell.without, cell.chosen)
        lines.append([cell.target, *map(str, counts), *seconds, *map(str, taken)])
    print("\n".join(table(lines)))
    return 0


def measured(options: argparse.Namespace, name: str) -> Cell:
    """A target's cell, read back where it was measured before."""
    path, store = options.results / f"{name}.json", options.results / name
    if path.is_file():
        return Cell(**json.loads(path.read_text()))
    shutil.rmtree(store, ignore_errors=True)
    os.environ["TRITON_CACHE_DIR"] = str((store / "triton").resolve())
    plan, spec, chip = artefact.read_plan(options.artefact), opened(load_request(options.model)).spec, gpu(target(name))
    search, seconds = Search(chip, store / "kernels"), list[float]()
    with ProgressLine() as progress:
        for part in (store, search.store.directory, None):
            if part is not None:
                shutil.rmtree(part, ignore_errors=True)
                shutil.rmtree(store / "triton", ignore_errors=True)
            began = time.perf_counter()
            uses = planned_uses(plan, spec, chip.multiprocessors)
            found = search.run([each.use for each in uses], progress)
            kernel_files(search, uses, found)
            seconds.append(time.perf_counter() - began)
            if part is store:
                records = [json.loads(each.read_text()) for each in search.store.directory.rglob("*.json")]
    launches = {launch.key: launch for kernel in found.values() for each in kernel.kept[:1] for launch in each.launches}
    taken = [launch.resources for launch in launches.values()]
    cell = Cell(
        target=name,
        compiled=len(records),
        dropped=sum(record["dropped"] is not None for record in records),
        without=sum(bool(kernel.without) for kernel in found.values()),
        chosen=len(launches),
        search_s=seconds[0],
        chosen_s=seconds[1],
        cached_s=seconds[2],
        most_registers=max(each.registers for each in taken),
        spilled_bytes=max(each.spilled_bytes for each in taken),
        most_shared_bytes=max(each.shared_bytes for each in taken),
        least_occupancy=min(each.occupancy.share for each in taken),
    )
    write_text(json.dumps(asdict(cell), indent=1), path)
    return cell


if __name__ == "__main__":
    sys.exit(main())
