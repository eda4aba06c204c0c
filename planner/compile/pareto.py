"""The front of a request: passes once, a solve for every point, a few of them run, and all of it as files."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from planner import artefact
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
from planner.front import DEFAULT, Front, Point, by_currency, currencies
from planner.front_plot import svg
from planner.frontier import evenly, front, trace
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

NO_MATTER_NATS = 1e-3
"""Losses below this count as alike: as much comes and goes with rounding to 16 bits."""


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
    plans = [plan_of(choice, solver, prepared, passes) for choice in choices.values()]
    every = [point_of(str(number), plan) for number, plan in enumerate(plans)]
    floors = [NO_MATTER_NATS if name == LOSS else 0.0 for name in over]
    kept = front(np.array(by_currency(every, over)), floors)
    names = {f"{place:02}": number for place, number in enumerate(kept, start=1)}
    uniform = [
        replace(point_of(f"uniform {place}", priced(prepared, "uniform", each)), kind="uniform")
        for place, each in enumerate(uniform_front(widened, prepared.context, over, solver.within, UNIFORMS), start=1)
    ]
    told = Front(
        name=prepared.request.name,
        target=prepared.context.hardware.name,
        backend=prepared.context.capabilities.runtime,
        over=over,
        within=solver.within,
        points=tuple(replace(every[number], name=name) for name, number in names.items()),
        dense=replace(point_of("dense", baseline(prepared)), kind="dense"),
        uniform=tuple(uniform),
        candidates=widened.size,
        solves=len(solved),
        local=prepared.local,
        notes=(*prepared.checkpoint.notes, *prepared.notes, *(() if prepared.profile else (NO_LOSS,))),
    )
    return Traced(told, {name: plans[number] for name, number in names.items()})


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


def point_of(name: str, plan: Plan) -> Point:
    """A plan as a point of a front."""
    if plan.predicted is None:
        raise InputError(f"plan {plan.name}: has no predicted costs to compare")
    return Point(name, "planned", plan.goal, plan.predicted, plan.measured, plan.solver)


def verified(traced: Traced, prepared: Prepared, asked: Exam, count: int, progress: Progress) -> Traced:
    """The front with what running some of its points, spread evenly, showed: loss on the exam, bytes, and seconds in
    turns with the dense model."""
    points = traced.front.points
    names = [points[i].name for i in evenly(count, len(points))]
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
    run_here = {
        name: row(name, plan, results[name], timings[name], prepared.local).plan for name, plan in plans.items()
    }
    told = replace(
        traced.front,
        points=tuple(replace(p, measured=run_here[p.name].measured) if p.name in run_here else p for p in points),
        dense=replace(traced.front.dense, measured=run_here["dense"].measured),
    )
    return Traced(told, {**traced.plans, **{name: run_here[name] for name in names}})


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
