"""Carry out a plan that is given, an imported one or one of our own: no search, and the same emission and proof."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from passes.legalise import legal_choices
from planner import artefact, cost
from planner.compile.contest import contest
from planner.compile.emit import emit
from planner.compile.kernels import plan_kernels
from planner.compile.prepare import Prepared, prepare
from planner.compile.priced import baseline, priced
from planner.compile.retreat import misses
from planner.compile.runtimes import runtime
from planner.errors import InputError, VerificationFailed
from planner.executor import Progress
from planner.folding import merged
from planner.formats import slots
from planner.pipeline import PassContext, dense
from planner.plan import Plan
from planner.report import CompileReport, Row
from planner.request import Request
from planner.serde import load_file
from planner.space import AtMostDistinct, Choice, Full, KvChoice, Site, Space, attribute, violated

NOT_RUN = "without weights nothing is run: bytes and seconds are predicted, and the loss is unknown"


@dataclass(frozen=True, slots=True)
class Carried:
    """A given plan as a runtime can carry it, and what had to change for that."""

    space: Space
    notes: tuple[str, ...]


def compile_given(
    request: Request, path: Path, *, target: str, out: Path, backend: str | None, seed: int, progress: Progress
) -> CompileReport:
    """Write the artefact of a plan document, run beside the dense model; VerificationFailed where it misses a limit."""
    if backend is not None:
        runtime(backend)
    artefact.writable(out)
    given = load_file(path, Plan)
    prepared = prepare(request, target, seed, progress, backend)
    found = carried(given, prepared.context, str(path))
    plan, dense_plan = priced_as_given(prepared, given, found.space), baseline(prepared)
    notes = (*prepared.checkpoint.notes, *prepared.notes, *found.notes)
    asked = prepared.exam
    if asked is None:
        rows: tuple[Row, ...] = (Row("dense", dense_plan), Row("planned", plan))
        notes = (*notes, NOT_RUN)
    else:
        rows = contest(prepared, asked, dense_plan, (), plan, progress)
    check_limits(rows[-1].plan, prepared.context, str(path))
    kernels = plan_kernels(prepared, rows[-1].plan, progress)
    report = CompileReport(rows, (), str(out), prepared.context.hardware.name, notes=(*notes, *kernels.notes))
    emit(out, prepared, rows[-1].plan, report, kernels)
    return report


def check_limits(plan: Plan, ctx: PassContext, where: str) -> None:
    """VerificationFailed where a given plan misses a limit: as measured, or as predicted where nothing was run."""
    missed = tuple(misses(replace(plan, measured=plan.measured or plan.predicted), ctx.goal.limits, ctx.spec))
    if missed:
        names = " and ".join(f"goal.limits.{miss.limit}" for miss in missed)
        raise VerificationFailed(f"{where}: took a {', a '.join(map(str, missed))}; loosen {names}, or give no --plan")


def priced_as_given(prepared: Prepared, given: Plan, space: Space) -> Plan:
    """The plan of a space. Prices are of windows beside the profile's own protected tokens: where a plan protects more,
    the loss expected is that of a window which keeps as many in all."""
    plan, loss = priced(prepared, "planned", space, given.provenance.passes), prepared.context.loss
    if loss is None or plan.predicted is None:
        return plan
    sinks = prepared.context.sinks

    def alike(choice: Choice) -> Choice:
        if not isinstance(choice, KvChoice) or isinstance(choice.span, Full):
            return choice
        span = replace(choice.span, alpha=choice.span.alpha + choice.sinks - sinks)
        return replace(choice, span=span, sinks=sinks)

    expected = loss.predicted({site: alike(choice) for site, choice in plan.chosen.items()}, given.solver is not None)
    return replace(plan, predicted=replace(plan.predicted, loss_nats=expected))


def carried(given: Plan, ctx: PassContext, where: str) -> Carried:
    """A plan's choices as the context's runtime and target can carry them; InputError where they are another model's.

    What a runtime does not store is kept as it is in the dense plan; a window that drops nothing becomes Full; where
    the heads of a layer are of more kinds than it can have, some keep more. Each is noted, with the bytes it takes.
    """
    start = dense(ctx)
    check_sites(given, ctx, where)
    there = {site: placed(choice, ctx) for site, choice in given.chosen.items() if site in start.candidates}
    chosen: dict[Site, Choice] = {}
    unstored = 0
    for site, (default,) in start.candidates.items():
        choice = there.get(site, default)
        legal = legal_choices(site, (choice,), ctx)
        unstored += not legal
        chosen[site] = whole(legal[0] if legal else stored_as(default, choice), site, ctx)
    before = cost.total({**chosen, **there}, ctx.spec, ctx.workload, ctx.hardware)
    chosen, moved = in_classes(chosen, ctx)
    broken = violated(chosen, ctx.capabilities.constraints(chosen))
    if broken is not None:
        raise InputError(
            f"{where}: {ctx.capabilities.runtime} has one {broken.attribute} for {len(broken.sites)} sites from"
            f" {broken.sites[0]} on, and the plan has several; planner export finds the nearest plan that it carries"
        )
    after = cost.total(chosen, ctx.spec, ctx.workload, ctx.hardware)
    changed = f"KV cache {after.kv_bytes / 1e6:.2f} MB, where the plan has {before.kv_bytes / 1e6:.2f}"
    notes = list(differences(given, ctx))
    if unstored:
        notes.append(
            f"{unstored} sites have a format that the runtime does not store and take the dense one; {changed}"
        )
    if moved:
        most = ctx.capabilities.classes_per_layer
        notes.append(f"{moved} heads keep more than planned: the runtime has {most} kinds of heads a layer; {changed}")
    return Carried(start.choose(chosen), tuple(notes))


def check_sites(given: Plan, ctx: PassContext, where: str) -> None:
    """InputError unless the plan has a choice for every KV head of the model and for no other."""
    sites = {site for site, _ in given.kv}
    if sites != set(ctx.spec.kv_sites):
        layers = len({site.layer for site in sites})
        raise InputError(
            f"{where}: kv: found {len(sites)} KV heads in {layers} layers; the model has {len(ctx.spec.kv_sites)} in"
            f" {len(ctx.spec.layers)}; give a plan that was made for this model"
        )


def differences(given: Plan, ctx: PassContext) -> Iterator[str]:
    """What the plan was made for and this compilation is not."""
    asked, made = ctx.workload.context_tokens, given.workload.context_tokens
    if set(asked) - set(made):
        yield (
            f"the plan was made for contexts of {', '.join(map(str, made))} tokens, and this is for"
            f" {', '.join(map(str, asked))}: its windows are as long as their rules say there"
        )
    weights = given.provenance.weights_sha256
    if weights and weights != ctx.spec.weights_sha256:
        yield "the plan was made for other weights than these"


def placed(choice: Choice, ctx: PassContext) -> Choice:
    """The choice in its own memory where the target has it and the runtime reads from it, else in the fastest."""
    known = {tier.name for tier in ctx.hardware.tiers}
    there = ctx.capabilities.offloads and all(name in known for name, _ in choice.tier)
    return choice if there else replace(choice, tier=ctx.home)


def stored_as(default: Choice, choice: Choice) -> Choice:
    """The choice with its span and protected tokens, in the formats of the dense one."""
    if isinstance(default, KvChoice) and isinstance(choice, KvChoice):
        return replace(choice, k=default.k, v=default.v)
    return default


def whole(choice: Choice, site: Site, ctx: PassContext) -> Choice:
    """The choice, its span Full where it drops nothing of its layer's cache at the longest context."""
    if not isinstance(choice, KvChoice) or isinstance(choice.span, Full):
        return choice
    full = replace(choice, span=Full())
    layer, context = ctx.spec.layers[site.layer], ctx.workload.longest_tokens
    return full if sum(slots(choice, layer, context)) == sum(slots(full, layer, context)) else choice


def in_classes(chosen: Mapping[Site, Choice], ctx: PassContext) -> tuple[dict[Site, Choice], int]:
    """The choices with no more kinds of heads in a layer than the runtime has, and how many heads keep more for it."""
    found, moved = dict(chosen), 0
    rules = (rule for rule in ctx.capabilities.constraints(chosen) if isinstance(rule, AtMostDistinct))
    for rule in (rule for rule in rules if rule.attribute == "kernel"):
        heads = {site: choice for site in rule.sites if isinstance(choice := chosen[site], KvChoice)}
        kinds = {attribute(choice, "kernel") for choice in heads.values()}
        if len(kinds) <= rule.most:
            continue
        if len({(choice.k, choice.v, choice.sinks) for choice in heads.values()}) > 1:
            raise InputError(
                f"layer {rule.sites[0].layer}: heads of {len(kinds)} kinds that differ in more than their windows;"
                f" {ctx.capabilities.runtime} has {rule.most}; give --backend transformers"
            )
        spans = merged([choice.span for choice in heads.values()], rule.most, ctx.workload.context_tokens)
        for (site, choice), span in zip(heads.items(), spans, strict=True):
            moved += span != choice.span
            found[site] = whole(replace(choice, span=span), site, ctx)
    return found, moved
