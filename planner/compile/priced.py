"""A chosen space as a plan: what was chosen, where it came from, and what it is expected to cost."""

from importlib.metadata import PackageNotFoundError, version

from planner import cost
from planner.compile.prepare import Prepared
from planner.compile.search import Pipeline, Search
from planner.pipeline import PassContext, dense
from planner.plan import Costs, Interval, Plan, Provenance, SolverReport, sha256
from planner.profile import ModelProfile
from planner.serde import dump
from planner.space import KvChoice, KvSite, Space, WeightChoice, WeightSite


def planned(prepared: Prepared, passes: Pipeline, found: Search) -> Plan:
    """The plan of a search."""
    return priced(prepared, "planned", found.chosen, passes.spelled, found.report)


def baseline(prepared: Prepared) -> Plan:
    """The plan that compresses nothing."""
    return priced(prepared, "dense", dense(prepared.context))


def priced(
    prepared: Prepared, name: str, space: Space, passes: tuple[str, ...] = (), report: SolverReport | None = None
) -> Plan:
    """The plan of a space with one candidate per site."""
    profile = "" if prepared.profile is None else profile_sha256(prepared.profile)
    return priced_in(prepared.context, f"{prepared.request.name} {name}", space, passes, report, profile)


def priced_in(
    ctx: PassContext,
    name: str,
    space: Space,
    passes: tuple[str, ...] = (),
    report: SolverReport | None = None,
    profile: str = "",
) -> Plan:
    """The plan of a space in a context; `profile` is the identity of the profile behind it, if there is one."""
    chosen = space.chosen
    return Plan(
        name=name,
        workload=ctx.workload,
        goal=ctx.goal,
        provenance=Provenance(
            weights_sha256=ctx.spec.weights_sha256,
            profile_sha256=profile,
            target_sha256=sha256(dump(ctx.hardware)),
            target=ctx.hardware.name,
            backend=ctx.capabilities.runtime,
            passes=passes,
            seed=ctx.seed,
            planner_version=planner_version(),
        ),
        kv=tuple((s, c) for s, c in chosen.items() if isinstance(s, KvSite) and isinstance(c, KvChoice)),
        weights=tuple((s, c) for s, c in chosen.items() if isinstance(s, WeightSite) and isinstance(c, WeightChoice)),
        constraints=space.constraints,
        solver=report,
        predicted=predicted(space, ctx, solved=report is not None),
    )


def predicted(space: Space, ctx: PassContext, solved: bool = False) -> Costs:
    """What a chosen space is expected to cost, times with the error of the target's figures; `solved` where prices made
    the choice."""
    chosen = space.chosen
    totals = cost.total(chosen, ctx.spec, ctx.workload, ctx.hardware)
    error = ctx.hardware.error

    def seconds(value: float) -> Interval:
        return Interval(value, value * (1 - error), value * (1 + error))

    return Costs(
        source=f"predicted, {ctx.hardware.provenance} figures of {ctx.hardware.name}",
        kv_bytes=totals.kv_bytes,
        weight_bytes=totals.weight_bytes,
        memory_bytes=totals.memory_bytes,
        loss_nats=None if ctx.loss is None else ctx.loss.predicted(chosen, solved),
        decode_s=seconds(totals.decode_s),
        ttft_s=seconds(totals.ttft_s),
    )


def profile_sha256(profile: ModelProfile) -> str:
    """The identity of a profile: of all that was measured, not of what came out."""
    made = (profile.weights_sha256, profile.formats_sha256, profile.context_tokens, profile.draws, profile.seed)
    return sha256(repr((*made, profile.documents)))


def planner_version() -> str:
    """The version of this package."""
    try:
        return version("llm-planner")
    except PackageNotFoundError:
        return "0+unknown"
