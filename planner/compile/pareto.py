"""The front of a request: passes once, a solve for every point, a few of them run, and all of it as files."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from planner import artefact, frontier
from planner.compile.contest import row
from planner.compile.driver import NO_LOSS
from planner.compile.front_marks import uniform_front
from planner.compile.front_solver import Choice, FrontSolver
from planner.compile.prepare import Prepared, prepare
from planner.compile.priced import baseline, planner_version, priced
from planner.compile.runtimes import runtime
from planner.compile.search import Pipeline, pipeline
from planner.errors import Infeasible, InputError
from planner.executor import Artifact, Progress, Timing
from planner.front import DEFAULT, NO_MATTER_NATS, Front, Kind, Point, currencies
from planner.front_plot import svg
from planner.frontier import evenly, trace
from planner.goal import Goal, Objective
from planner.pipeline import dense, run
from planner.plan import Plan, sha256
from planner.prices import LOSS
from planner.request import Request
from planner.serde import dump, dump_json
from planner.verify import Exam, Examiner, race

FRONT_JSON, FRONT_TEXT, FRONT_PLOT = "front.json", "front.txt", "front.svg"

UNIFORMS = 12
"""Uniform settings shown beside a front."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A plan that may be on a front, what kind it is, and whether it keeps what stays limited."""

    kind: Kind
    plan: Plan
    fits: bool = True


@dataclass(frozen=True, slots=True)
class Traced:
    """A front and the plans of its points, by their names."""

    front: Front
    plans: Mapping[str, Plan]


def pareto(
    request: Request,
    *,
    target: str,
    over: str | None,
    points: int,
    verify: int,
    out: Path | None,
    passes: str | None,
    backend: str | None,
    seed: int,
    progress: Progress,
) -> Front:
    """The front of a request on a target; `verify` of its points are run here, and all is written to `out` if given."""
    asked = DEFAULT if over is None else currencies(over)
    if points < 2:
        raise InputError(f"--points: found {points}; a front has at least 2")
    if verify < 0:
        raise InputError(f"--verify: found {verify}; must be at least 0")
    if backend is not None:
        runtime(backend)
    if out is not None:
        replaceable(out)
    steps = pipeline(passes)
    prepared = prepare(request, target, seed, progress, backend)
    if prepared.context.loss is None:
        if over is not None and LOSS in asked:
            raise InputError(f"--over: {LOSS}: {NO_LOSS}; name a source that has them, or leave it out")
        asked = tuple(name for name in asked if name != LOSS)
    traced = traced_front(prepared, steps, asked, points, progress)
    if verify and prepared.exam is not None:
        traced = verified(traced, prepared, prepared.exam, verify, progress)
    if out is not None:
        write(out, traced)
    return traced.front


def traced_front(
    prepared: Prepared, passes: Pipeline, over: tuple[Objective, ...], most: int, progress: Progress
) -> Traced:
    """The front as predicted, from at most so many solves."""
    # What is ranged over may be as small as can be: nothing must be left out because it would not be needed otherwise.
    free = replace(prepared.context, goal=Goal("memory_bytes" if "memory_bytes" in over else over[0]))
    widened, _ = run(passes.widening, dense(free), free)
    space, _ = run(passes.narrowing, widened, free)
    solver = FrontSolver(space, prepared.context, over, passes.last)
    solved = trace(
        solver.solve, len(over), most, apart if LOSS in over else math.log, lambda n: progress("solving", n, most)
    )
    if not solved:
        raise refusal(solver, prepared)
    progress("solving", most, most)
    found = [each.found.choice for each in solved if each.found is not None]
    choices = {choice.solution.chosen: choice for choice in reversed(found)}
    settings = uniform_front(widened, prepared.context, over, solver.within, UNIFORMS)
    entries = [
        *(Entry("planned", plan_of(choice, solver, prepared, passes)) for choice in choices.values()),
        *(Entry("uniform", priced(prepared, "uniform", each)) for each in settings),
        Entry("dense", baseline(prepared), solver.fits(dense(prepared.context))),
    ]
    points, beside, plans = placed(entries, over)
    made = Front(
        name=prepared.request.name,
        target=prepared.context.hardware.name,
        backend=prepared.context.capabilities.runtime,
        over=over,
        within=solver.within,
        points=points,
        beside=beside,
        candidates=widened.size,
        solves=len(solved),
        local=prepared.local,
        notes=(*prepared.checkpoint.notes, *prepared.notes, *(() if prepared.profile else (NO_LOSS,))),
    )
    return Traced(made, plans)


def placed(
    entries: Sequence[Entry], over: tuple[Objective, ...]
) -> tuple[tuple[Point, ...], tuple[Point, ...], dict[str, Plan]]:
    """The points of a front, what is not planned and stands beside it, and the plans of the points by their names.

    What is not planned can be on the front as well: the solver counts seconds as if every layer had as many classes of
    heads as it may, and settings that make do with one are a little faster than that.
    """
    every = [point_of(entry) for entry in entries]
    able = [number for number, entry in enumerate(entries) if entry.fits]
    values = np.array([[every[number].value(name) for name in over] for number in able])
    on = [able[row] for row in frontier.front(values)]
    points = tuple(replace(every[number], name=f"{place:02}") for place, number in enumerate(on, start=1))
    beside = tuple(point for number, point in enumerate(every) if point.kind != "planned" and number not in on)
    return points, beside, {point.name: entries[number].plan for point, number in zip(points, on, strict=True)}


def apart(loss_nats: float) -> float:
    """How far a loss is from none: by its size while it hardly matters, then by its logarithm."""
    return math.log1p(loss_nats / NO_MATTER_NATS)


def refusal(solver: FrontSolver, prepared: Prepared) -> Infeasible:
    """Why there is no plan at all."""
    error = solver.refusal()
    return (
        error if prepared.context.loss is not None else Infeasible(f"{error}; {NO_LOSS}; name a source that has them")
    )


def plan_of(choice: Choice, solver: FrontSolver, prepared: Prepared, passes: Pipeline) -> Plan:
    """A choice as the plan that compile would make of its goal."""
    space, report = solver.chosen(choice)
    asked = replace(prepared, context=replace(prepared.context, goal=choice.goal))
    return priced(asked, "front", space, passes.spelled, report)


def point_of(entry: Entry) -> Point:
    """A plan as a point that is named for its kind."""
    plan = entry.plan
    if plan.predicted is None:
        raise InputError(f"plan {plan.name}: has no predicted costs to compare")
    return Point(entry.kind, entry.kind, plan.goal, plan.predicted, solver=plan.solver)


def verified(traced: Traced, prepared: Prepared, asked: Exam, count: int, progress: Progress) -> Traced:
    """The front with what running some of its points, spread evenly, showed: loss on the exam, bytes, and seconds in
    turns with the dense model."""
    others = [point.name for point in traced.front.points if point.kind != "dense"]
    names = [others[i] for i in evenly(count, len(others))]
    plans = {"dense": baseline(prepared), **{name: traced.plans[name] for name in names}}
    with Examiner(asked, progress) as examiner:
        results = {"dense": examiner.take_dense(prepared.executor.open(plans["dense"]))}
        for name in names:
            results[name] = examiner.take(f"point {name}", prepared.executor.open(plans[name]))
        # Two at a time: each may hold its own weights, and so many need not fit in memory together.
        timings: dict[str, tuple[Timing, ...]] = {}
        for name in names:
            racing = {each: prepared.executor.open(plans[each]) for each in ("dense", name)}
            found = race(racing, asked.documents[0], prepared.request.workload, progress)
            timings |= {name: found[name], "dense": timings.get("dense", ()) + found["dense"]}
    ran = {name: row(name, plan, results[name], timings[name], prepared.local).plan for name, plan in plans.items()}

    def told(point: Point) -> Point:
        plan = ran.get("dense" if point.kind == "dense" else point.name)
        return point if plan is None else replace(point, measured=plan.measured)

    front = replace(
        traced.front, points=tuple(map(told, traced.front.points)), beside=tuple(map(told, traced.front.beside))
    )
    plans = {**traced.plans, **{name: ran[name] for name in names}}
    return Traced(front, {**plans, **{point.name: ran["dense"] for point in front.points if point.kind == "dense"}})


def replaceable(out: Path) -> None:
    """InputError where a front cannot be written, or would take the place of an artefact."""
    artefact.writable(out)
    if (out / artefact.PLAN).is_file():
        raise InputError(f"{out}: holds a compiled artefact, which a front must not replace; give another -o")


def write(out: Path, traced: Traced) -> None:
    """Write the directory: the front as JSON, text and plot, and the plan of every point."""
    text = dump_json(traced.front)
    files = (
        Artifact(FRONT_JSON, text.encode()),
        Artifact(FRONT_TEXT, (traced.front.as_text() + "\n").encode()),
        Artifact(FRONT_PLOT, svg(traced.front).encode()),
        *(Artifact(f"plans/{name}.yaml", dump(plan).encode()) for name, plan in traced.plans.items()),
    )
    artefact.write(out, files, artefact.Header("none", "", sha256(text), planner_version()))
