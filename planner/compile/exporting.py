"""Carry a plan over to another runtime: the nearest one that it carries, priced there, written, and what that cost."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from passes.project import Floats, Projection, planned_spans, project, spent
from planner import artefact
from planner.compile.contest import contest
from planner.compile.emit import emit
from planner.compile.given import check_sites, differences, placed
from planner.compile.kernels import plan_kernels
from planner.compile.prepare import ANY_CPU, Prepared, prepare
from planner.compile.priced import baseline, predicted, priced
from planner.compile.runtimes import RUNTIMES, runtime
from planner.compile.search import pipeline
from planner.errors import InputError
from planner.executor import Progress
from planner.pipeline import PassContext, dense, run
from planner.plan import Costs, Plan
from planner.report import Row, costs_table, plan_json
from planner.request import Request
from planner.serde import load_file
from planner.space import Choice, Site, Space

PRICED_WITHOUT_ONE = "transformers"
"""The runtime that prices a plan made for none: it has every format that such a plan can hold."""

CURRENCIES = (("loss_nats", 1.0, "nats per token"), ("memory_bytes", 1e-6, "MB"), ("decode_s", 1e3, "ms per token"))


@dataclass(frozen=True, slots=True)
class ExportReport:
    """A plan beside its projection: `given` priced as its own runtime does it, `rows` the dense model and what was
    written."""

    given: Plan
    rows: tuple[Row, ...]
    runtime: str
    moved: int
    distance: float
    out: str
    notes: tuple[str, ...] = ()

    @property
    def plan(self) -> Plan:
        return self.rows[-1].plan

    def changes(self) -> list[tuple[str, str, float, float]]:
        """(currency, unit, before, after) as predicted, of those that are known on both sides."""
        found = []
        for name, scale, unit in CURRENCIES:
            before, after = figure(self.given.predicted, name), figure(self.plan.predicted, name)
            if before is not None and after is not None:
                found.append((name, unit, before * scale, after * scale))
        return found

    def as_json(self) -> dict[str, object]:
        rows = {row.name: plan_json(row.plan) for row in self.rows}
        return {
            "runtime": self.runtime,
            "out": self.out,
            "sites": len(self.plan.chosen),
            "moved": self.moved,
            "distance": self.distance,
            "projection": {
                name: {"unit": unit, "before": before, "after": after} for name, unit, before, after in self.changes()
            },
            "notes": list(self.notes),
            "given": plan_json(self.given),
            **rows,
        }

    def json_text(self) -> str:
        return json.dumps(self.as_json(), indent=1, allow_nan=False) + "\n"

    def as_text(self) -> str:
        told = "the plan is carried as it is"
        if self.moved:
            told = f"{self.moved} of {len(self.plan.chosen)} sites get another choice, {self.distance:.3g} away in all"
        lines = [f"for {self.runtime}: {told}", "", *costs_table((Row("given", self.given), *self.rows)), ""]
        for name, unit, before, after in self.changes():
            lines.append(f"projection, {name}: {before:.4g} -> {after:.4g} {unit} ({after - before:+.4g})")
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join([*lines, f"wrote {self.out}"])


def figure(costs: Costs | None, name: str) -> float | None:
    """One figure of some costs, the middle of an interval."""
    value = None if costs is None else getattr(costs, name)
    return value if value is None or isinstance(value, (int, float)) else float(value.value)


def export_plan(
    request: Request, given: Path, *, backend: str, target: str, out: Path, seed: int, progress: Progress
) -> ExportReport:
    """Write the artefact of the nearest plan that a runtime carries to one that was made for another.

    The plan's own workload and goal hold, whatever the request says.
    """
    runtime(backend)
    artefact.writable(out)
    plan = artefact.read_plan(given) if given.is_dir() else load_file(given, Plan)
    request = replace(request, workload=plan.workload, goal=plan.goal)
    there = prepare(request, target, seed, progress, backend)
    if there.context.loss is None:
        raise InputError(f"{request.name}: a bare config has no prices, which tell what is near; name one with weights")
    before = own_context(request, plan, target, there.context, seed, progress)
    wanted = choices_of(plan, before, str(given))
    space = Space({site: (choice,) for site, choice in wanted.items()})
    found = projected(wanted, spent(space, before), there)
    after, dense_plan = priced(there, "exported", found.space, plan.provenance.passes), baseline(there)
    notes = [*there.checkpoint.notes, *there.notes, *differences(plan, there.context)]
    if not found.keeps_limits:
        notes.append("no plan that this runtime carries keeps the plan's goal; this is the nearest without its limits")
    asked = there.exam
    rows: tuple[Row, ...] = (Row("dense", dense_plan), Row("exported", after))
    if asked is not None:
        rows = contest(there, asked, dense_plan, (), after, progress)
        rows = (*rows[:-1], replace(rows[-1], name="exported"))
    can, kernels = there.context.capabilities, plan_kernels(there, rows[-1].plan, progress)
    report = ExportReport(
        replace(plan, predicted=predicted(space, before), measured=None),
        rows,
        f"{can.runtime} {can.version}",
        len(found.moved),
        found.distance,
        str(out),
        (*notes, *kernels.notes),
    )
    emit(out, there, rows[-1].plan, report, kernels)
    return report


def own_context(
    request: Request, plan: Plan, target: str, there: PassContext, seed: int, progress: Progress
) -> PassContext:
    """What prices a plan as its own runtime does: that runtime's losses, and seconds of the target.

    A runtime for CPUs alone has none of its own on a GPU: there its plan is priced as the GPU prices such formats.
    """
    made_for = plan.provenance.backend if plan.provenance.backend in RUNTIMES else PRICED_WITHOUT_ONE
    if there.hardware.kind == "gpu" and runtime(made_for).cpu_only:
        return replace(prepare(request, ANY_CPU, seed, progress, made_for).context, hardware=there.hardware)
    return prepare(request, target, seed, progress, made_for).context


def choices_of(plan: Plan, ctx: PassContext, where: str) -> dict[Site, Choice]:
    """A plan's choices in memory that the target has; what it does not name is dense."""
    check_sites(plan, ctx, where)
    chosen = {site: choices[0] for site, choices in dense(ctx).candidates.items()}
    return chosen | {site: placed(choice, ctx) for site, choice in plan.chosen.items() if site in chosen}


def projected(wanted: dict[Site, Choice], prices: Floats, there: Prepared) -> Projection:
    """The nearest plan among all that the methods offer in a runtime, and the plan's own windows at every head."""
    ctx = there.context
    space, _ = run((planned_spans(wanted), *pipeline(None).widening), dense(ctx), ctx)
    return project(wanted, prices, space, ctx)
