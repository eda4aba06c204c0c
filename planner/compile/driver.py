"""Compile: search, run what was found, correct the loss model, and write the best plan that keeps its limits.

Order of retreat: best feasible plan, best uniform setting, dense, refusal. A uniform setting that measures better than
the plan ships in its place.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from planner import artefact, cost
from planner.compile.exam import exam
from planner.compile.prepare import Prepared, calibration_documents, corrected, prepare
from planner.errors import InputError, VerificationFailed
from planner.executor import Progress
from planner.files import write_text
from planner.goal import Limits
from planner.pipeline import Pass, PassContext, Step, dense, run, spelled
from planner.pipeline_spec import parse_passes
from planner.plan import Costs, Interval, Plan, Provenance, SolverReport, sha256
from planner.prices import dense_kv_bytes
from planner.profile import Anchor
from planner.quality import compare
from planner.report import CompileReport, Row
from planner.request import Request
from planner.serde import dump
from planner.space import KvChoice, KvSite, Space, WeightChoice, WeightSite
from planner.verify import Examiner, Measured, race

ROUNDS = 3
"""How often a plan that missed its loss limit is corrected and solved again."""

UNIFORMS_MEASURED = 3


@dataclass(frozen=True, slots=True)
class Search:
    """What the passes found: the space as widened, the choice, how it was proved, and what each pass did."""

    widened: Space
    chosen: Space
    report: SolverReport
    steps: tuple[Step, ...]


def compile_request(
    request: Request,
    *,
    target: str,
    out: Path,
    passes: str | None,
    dump_to: Path | None,
    backend: str | None,
    seed: int,
    progress: Progress,
) -> CompileReport:
    """Plan a request for a target, prove the plan by running it here, and write the artefact."""
    if backend not in (None, "transformers"):
        raise InputError(f"--backend {backend!r}: not known; 'planner backends' lists those that are")
    artefact.writable(out)
    pipeline = _pipeline(passes)
    prepared = prepare(request, target, seed, progress)
    found = search(pipeline, prepared.context, _dumping(dump_to))
    plan = _plan(prepared, "planned", found.chosen, found.report, pipeline)
    baseline = _plan(prepared, "dense", dense(prepared.context), None, ())
    if not prepared.checkpoint.spec.has_weights:
        write_text(dump(plan), _fresh(out) / artefact.PLAN)
        return CompileReport((Row("dense", baseline), Row("planned", plan)), found.steps, str(out), prepared.context.hardware.name)
    plan, prepared = _correct(plan, prepared, pipeline, progress)
    uniform = [
        _plan(prepared, "uniform", space, None, ())
        for space in _uniform(found.widened, prepared.context)[:UNIFORMS_MEASURED]
    ]
    rows = _measured(prepared, baseline, uniform, plan, progress)
    shipped = _shipped(rows, request.goal.limits, prepared)
    report = CompileReport(rows, found.steps, str(out), prepared.context.hardware.name, shipped.name)
    _write(out, prepared, shipped.plan, report)
    _check_written(out, prepared, shipped.plan)
    return report


# --- searching ----------------------------------------------------------------------------------


def _pipeline(spec: str | None) -> tuple[Pass, ...]:
    from passes.assign import Assign
    from passes.pipeline import PIPELINE, known

    passes = PIPELINE if spec is None else parse_passes(spec, known())
    if not passes or not isinstance(passes[-1], Assign):
        raise InputError("--passes: must end with assign, which picks one candidate for every site")
    return passes


def search(pipeline: Sequence[Pass], ctx: PassContext, snapshot: Callable[[str, Space], None]) -> Search:
    """Run the passes; the last one, assign, also says how good its choice is proved to be."""
    from passes.assign import Assign, assign
    from passes.prune_dominated import PruneDominated

    *before, last = pipeline
    if not isinstance(last, Assign):
        raise InputError("--passes: must end with assign, which picks one candidate for every site")
    wide = [each for each in before if not isinstance(each, PruneDominated)]
    widened, _ = run(wide, dense(ctx), ctx)
    space, steps = run(before, dense(ctx), ctx, snapshot)
    chosen, report = assign(space, ctx, last.gap, last.effort)
    snapshot(last.name, chosen)
    return Search(widened, chosen, report, (*steps, Step(last.name, 0.0, space.size, chosen.size)))


def _uniform(widened: Space, ctx: PassContext) -> tuple[Space, ...]:
    from passes.uniform_settings import uniform_settings

    return uniform_settings(widened, ctx)


def _dumping(directory: Path | None) -> Callable[[str, Space], None]:
    """A snapshot function that writes each space into a directory, numbered in the order of the passes."""
    if directory is None:
        return lambda name, space: None
    directory.mkdir(parents=True, exist_ok=True)
    count = iter(range(100))

    def write(name: str, space: Space) -> None:
        write_text(dump(space), directory / f"{next(count):02}-{name}.yaml")

    return write


# --- plans --------------------------------------------------------------------------------------


def _plan(
    prepared: Prepared, name: str, space: Space, report: SolverReport | None, pipeline: Sequence[Pass]
) -> Plan:
    ctx, chosen = prepared.context, space.chosen
    return Plan(
        name=f"{prepared.request.name} {name}",
        workload=ctx.workload,
        goal=ctx.goal,
        provenance=Provenance(
            weights_sha256=ctx.spec.weights_sha256,
            profile_sha256="" if prepared.profile is None else sha256(repr(prepared.profile.documents)),
            target_sha256=sha256(dump(ctx.hardware)),
            target=ctx.hardware.name,
            backend=ctx.capabilities.runtime,
            passes=tuple(spelled(each) for each in pipeline),
            seed=ctx.seed,
            planner_version=version(),
        ),
        kv=tuple((s, c) for s, c in chosen.items() if isinstance(s, KvSite) and isinstance(c, KvChoice)),
        weights=tuple((s, c) for s, c in chosen.items() if isinstance(s, WeightSite) and isinstance(c, WeightChoice)),
        constraints=space.constraints,
        solver=report,
        predicted=predicted(space, ctx),
    )


def predicted(space: Space, ctx: PassContext) -> Costs:
    """What a chosen space is expected to cost, times with the error of the target's figures."""
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
        loss_nats=None if ctx.loss is None else ctx.loss.predicted(chosen),
        decode_s=seconds(totals.decode_s),
        ttft_s=seconds(totals.ttft_s),
    )


def version() -> str:
    """The version of this package."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("llm-planner")
    except PackageNotFoundError:
        return "0+unknown"


def _correct(
    plan: Plan, prepared: Prepared, pipeline: Sequence[Pass], progress: Progress
) -> tuple[Plan, Prepared]:
    """Measure the plan on the correction document; where it misses its loss limit, learn from that and solve again."""
    limit, profile = prepared.request.goal.limits.loss_nats, prepared.profile
    if limit is None or profile is None:
        return plan, prepared
    _, document = calibration_documents(prepared.request, prepared.weights, prepared.context.seed)
    first, chunk = len(document) // 2, prepared.request.workload.prefill_chunk_tokens
    reference = prepared.executor.open(_plan(prepared, "dense", dense(prepared.context), None, ()))
    answers = reference.score(document, first, chunk)
    for number in range(ROUNDS):
        progress("correcting", number, ROUNDS)
        score = compare(answers, prepared.executor.open(plan).score(document, first, chunk), document[first + 1 :])
        if score.loss_nats <= limit or prepared.context.loss is None:
            break
        anchor = Anchor(f"round {number + 1}", len(document), prepared.context.loss.total(plan.chosen), score.loss_nats)
        profile = replace(profile, anchors=(*profile.anchors, *(anchor,) * len(profile.anchors)))
        prepared = replace(prepared, profile=profile, context=corrected(prepared, profile))
        found = search(pipeline, prepared.context, lambda name, space: None)
        plan = _plan(prepared, "planned", found.chosen, found.report, pipeline)
    progress("correcting", ROUNDS, ROUNDS)
    return plan, prepared


# --- measuring ----------------------------------------------------------------------------------


def _measured(
    prepared: Prepared, baseline: Plan, uniform: Sequence[Plan], plan: Plan, progress: Progress
) -> tuple[Row, ...]:
    """The rows of the table, all scored on the same positions and timed in turns."""
    request = prepared.request
    seen = () if prepared.profile is None else prepared.profile.documents
    asked = exam(
        prepared.weights.tokenizer, request.workload, request.verification.text, request.verification.documents, seen
    )
    opened = prepared.executor.open
    with Examiner(asked, progress) as examiner:
        sessions = {"dense": opened(baseline)}
        results = {"dense": examiner.take_dense(sessions["dense"])}
        candidates = {f"uniform {i + 1}": each for i, each in enumerate(uniform)}
        for name, each in {**candidates, "planned": plan}.items():
            sessions[name] = opened(each)
            results[name] = examiner.take(name, sessions[name])
        best = _best_uniform(results, candidates, request.goal.limits)
        racing = {name: sessions[name] for name in ("dense", *([best] if best else []), "planned")}
        prompt = asked.documents[0][: request.workload.longest_tokens - request.workload.new_tokens]
        timings = race(racing, prompt, asked.chunk_tokens, progress)
    plans = {"dense": baseline, **candidates, "planned": plan}
    told = {name: "uniform" if name == best else name for name in racing}
    return tuple(
        Row(told[name], _with(plans[name], results[name], timings[name], prepared), results[name]) for name in racing
    )


def _with(plan: Plan, result: Measured, timings: Sequence[object], prepared: Prepared) -> Plan:
    measured = replace(result, timings=tuple(timings))  # type: ignore[arg-type]
    held = measured.timings[0].kv_bytes + measured.timings[0].weight_bytes
    local = prepared.context.hardware.provenance == "measured"
    costs = measured.costs(held)
    if not local:
        costs = replace(costs, source="measured here, not on the target")
    return replace(plan, measured=costs, quality_verified=True, speed_measured=local)


def _best_uniform(results: dict[str, Measured], uniform: dict[str, Plan], limits: Limits) -> str | None:
    """The uniform setting that did best: least loss among those whose other figures meet the limits by prediction."""
    if not uniform:
        return None
    kept = [n for n in uniform if limits.loss_nats is None or results[n].loss.value <= limits.loss_nats]
    return (kept or [min(uniform, key=lambda n: results[n].loss.value)])[0] if limits.loss_nats else min(
        uniform, key=lambda n: results[n].loss.value
    )


def _objective(row: Row, prepared: Prepared) -> float:
    """What the goal minimises, as measured for this row; seconds as predicted where the target is elsewhere."""
    plan, name = row.plan, prepared.request.goal.minimise
    costs = plan.predicted if name in ("decode_s", "ttft_s", "memory_bytes") or plan.measured is None else plan.measured
    value = getattr(costs, name)
    return float(value.value if isinstance(value, Interval) else value)


def _shipped(rows: Sequence[Row], limits: Limits, prepared: Prepared) -> Row:
    """The row to ship: the plan, unless it misses a limit or a uniform setting measured better; then what is next."""
    by_name = {row.name: row for row in rows}
    order = [by_name[name] for name in ("planned", "uniform", "dense") if name in by_name]
    feasible = [row for row in order if keeps(row.plan, limits, prepared)]
    if not feasible:
        measured = order[0].plan.measured
        told = f"{measured.loss_nats}" if measured is not None else "nothing"
        raise VerificationFailed(
            f"no plan kept its limits when run: the planned one measured a loss of {told} nats where at most"
            f" {limits.loss_nats} was asked; loosen goal.limits.loss_nats or another limit"
        )
    if order[0] is feasible[0] and len(feasible) > 1 and feasible[1].name == "uniform":
        return min(feasible[:2], key=lambda row: _objective(row, prepared))
    return feasible[0]


def keeps(plan: Plan, limits: Limits, prepared: Prepared) -> bool:
    """Whether a measured plan keeps every limit: bytes and loss as measured, seconds as the target's figures say."""
    measured, expected = plan.measured, plan.predicted
    if measured is None or expected is None or measured.loss_nats is None:
        return False
    share = limits.kv_share
    most_kv = limits.kv_bytes if share is None else share * dense_kv_bytes(prepared.context.spec, plan.workload)
    pairs = (
        (measured.loss_nats.value, limits.loss_nats),
        (measured.kv_bytes, most_kv),
        (measured.weight_bytes, limits.weight_bytes),
        (expected.memory_bytes, limits.memory_bytes),
        (expected.decode_s.value if expected.decode_s else 0.0, limits.decode_s),
        (expected.ttft_s.value if expected.ttft_s else 0.0, limits.ttft_s),
    )
    return all(limit is None or value <= limit for value, limit in pairs)


# --- writing ------------------------------------------------------------------------------------


def _fresh(out: Path) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    return out


def _write(out: Path, prepared: Prepared, plan: Plan, report: CompileReport) -> None:
    from planner.executor import Artifact

    capabilities = prepared.executor.capabilities
    text = dump(plan)
    files = (
        *prepared.executor.emit(plan, prepared.checkpoint.spec),
        Artifact(artefact.PLAN, text.encode()),
        Artifact(artefact.REPORT, report.json_text().encode()),
        Artifact("report.txt", (report.as_text() + "\n").encode()),
    )
    header = artefact.Header(capabilities.runtime, capabilities.version, sha256(text), version())
    artefact.write(out, files, header)


def _check_written(out: Path, prepared: Prepared, plan: Plan) -> None:
    """Load what was written and let it speak: the same tokens as the session that was verified."""
    prompt = list(range(5, 37))
    prompt = [token % prepared.checkpoint.spec.vocab_size for token in prompt]
    written = prepared.executor.load(out).generate([prompt], 8)
    verified = prepared.executor.open(plan).generate([prompt], 8)
    if written != verified:
        raise VerificationFailed(f"{out}: the written artefact generates other tokens than the plan that was verified")
