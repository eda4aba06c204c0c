"""The search of one compilation: which passes run, the space they leave, and the choice that assign makes of it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from passes.assign import Assign, assign
from passes.pipeline import PIPELINE, known
from passes.prune_dominated import PruneDominated
from planner.errors import InputError
from planner.files import write_text
from planner.pipeline import Pass, PassContext, Step, dense, run, spelled
from planner.pipeline_spec import parse_passes
from planner.plan import SolverReport
from planner.serde import dump
from planner.space import Space

Snapshot = Callable[[str, Space], None]


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Passes in order: those that widen, those that narrow, and the one that chooses."""

    widening: tuple[Pass, ...]
    narrowing: tuple[Pass, ...]
    last: Assign

    @property
    def spelled(self) -> tuple[str, ...]:
        """The passes as a plan names them."""
        return tuple(spelled(each) for each in (*self.widening, *self.narrowing, self.last))


@dataclass(frozen=True, slots=True)
class Search:
    """What the passes found: the space as widened, the choice, how it was proved, and what each pass did."""

    widened: Space
    chosen: Space
    report: SolverReport
    steps: tuple[Step, ...]


def pipeline(spec: str | None) -> Pipeline:
    """The passes of `--passes`, or all of them. Uniform settings are taken from what is there before the pruning."""
    passes: Sequence[Pass] = PIPELINE if spec is None else parse_passes(spec, known())
    *before, last = passes
    if not isinstance(last, Assign) or any(isinstance(each, Assign) for each in before):
        raise InputError("--passes: must end with assign, and name it once: it picks one candidate for every site")
    prunes = [i for i, each in enumerate(before) if isinstance(each, PruneDominated)]
    cut = prunes[0] if prunes else len(before)
    return Pipeline(tuple(before[:cut]), tuple(before[cut:]), last)


def unseen(name: str, space: Space) -> None:
    """A snapshot that nobody looks at."""


def search(passes: Pipeline, ctx: PassContext, snapshot: Snapshot = unseen) -> Search:
    """Run the passes; the last one, assign, also says how good its choice is proved to be."""
    widened, widening = run(passes.widening, dense(ctx), ctx, snapshot)
    space, narrowing = run(passes.narrowing, widened, ctx, snapshot)
    start = time.perf_counter()
    chosen, report = assign(space, ctx, passes.last.gap, passes.last.effort)
    snapshot(passes.last.name, chosen)
    solved = Step(passes.last.name, time.perf_counter() - start, space.size, chosen.size)
    return Search(widened, chosen, report, (*widening, *narrowing, solved))


def snapshots(directory: Path | None, out: Path) -> Snapshot:
    """What writes each space into a directory, one file per pass, numbered in their order."""
    if directory is None:
        return unseen
    if directory.resolve().is_relative_to(out.resolve()):
        raise InputError(f"--dump: {directory} lies in {out}, which holds nothing but the artefact; give another one")
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--dump: {directory}: cannot be written: {(error.strerror or str(error)).lower()}") from error
    written = 0

    def write(name: str, space: Space) -> None:
        nonlocal written
        write_text(dump(space), directory / f"{written:02}-{name}.yaml")
        written += 1

    return write
