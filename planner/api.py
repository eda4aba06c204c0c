"""The Python API: what every command of the command line does, as functions that return results.

    from planner import api
    from planner.config import load_request
    result = api.compile(load_request(Path("model.yaml")), out=Path("out"))

Results have `as_text()` and `as_json()`.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from planner import artefact
from planner.errors import InputError, TamperedArtifact, VerificationFailed
from planner.executor import Capabilities, Progress
from planner.files import read_text, write_text
from planner.hardware import HardwareProfile
from planner.pipeline import Pass
from planner.plan import Costs, Plan, sha256
from planner.profile import ModelProfile
from planner.report import CompileReport, Row, costs_json, costs_table
from planner.request import Request
from planner.serde import document, dump, load


def quiet(stage: str, done: int, of: int) -> None:
    """Progress that nobody watches."""


def compile(
    request: Request,
    *,
    out: Path,
    target: str = "local",
    passes: str | None = None,
    dump: Path | None = None,
    backend: str | None = None,
    seed: int = 0,
    progress: Progress = quiet,
) -> CompileReport:
    """Measure a model, find the best plan within its limits, write it to `out` and prove it by running it."""
    from planner.compile.driver import compile_request

    return compile_request(
        request, target=target, out=out, passes=passes, dump_to=dump, backend=backend, seed=seed, progress=progress
    )


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """An artefact run beside its dense model."""

    dense: Costs
    planned: Row

    def as_json(self) -> dict[str, object]:
        plan = self.planned.plan
        return {
            "dense": {"predicted": None, "measured": costs_json(self.dense)},
            "planned": {"predicted": costs_json(plan.predicted), "measured": costs_json(plan.measured)},
        }

    def as_text(self) -> str:
        dense = Row("dense", replace(self.planned.plan, predicted=None, measured=self.dense))
        return "\n".join(costs_table((dense, self.planned)))


def verify(directory: Path, text: Path | None = None, documents: int = 8, progress: Progress = quiet) -> VerifyReport:
    """Run an artefact on a text: loss against its own model with nothing compressed, retrieval, bytes, seconds.

    The dense model is the artefact's own weights with a full cache where they are stored as the source has them;
    then the loss is that of the cache. Raises VerificationFailed where the artefact misses the plan's loss limit.
    """
    from transformers import AutoTokenizer

    from backends.transformers.executor import load
    from planner.compile.exam import exam
    from planner.compile.standalone import dense_of
    from planner.verify import Examiner, race

    plan = plan_of(directory)
    session = load(directory)
    asked = exam(AutoTokenizer.from_pretrained(directory, local_files_only=True), plan.workload, text, documents)
    reference = dense_of(session)
    with Examiner(asked, progress) as examiner:
        dense = examiner.take_dense(reference)
        planned = examiner.take("artefact", session)
        prompt = asked.documents[0][: plan.workload.longest_tokens - plan.workload.new_tokens]
        timings = race({"dense": reference, "planned": session}, prompt, asked.chunk_tokens, progress)
    results = {
        name: replace(result, timings=timings[name]) for name, result in (("dense", dense), ("planned", planned))
    }
    costs = {name: r.costs(r.timings[0].kv_bytes + r.timings[0].weight_bytes) for name, r in results.items()}
    report = VerifyReport(
        costs["dense"],
        Row("planned", replace(plan, measured=costs["planned"], quality_verified=True), results["planned"]),
    )
    limit = plan.goal.limits.loss_nats
    if limit is not None and planned.loss.value > limit:
        raise VerificationFailed(
            f"{directory}: measured a loss of {planned.loss} nats on this text; its plan promised at most {limit}"
        )
    return report


def plan_of(directory: Path) -> Plan:
    """The plan of an artefact, after it was found to be the one the manifest names."""
    path = directory / artefact.PLAN
    if not directory.is_dir():
        raise InputError(f"{directory}: is not a directory; give one that planner compile wrote")
    text = read_text(path)
    try:
        manifest = json.loads(read_text(directory / artefact.MANIFEST))
        wanted = manifest["plan_sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise TamperedArtifact(f"{directory / artefact.MANIFEST}: is not a manifest; compile again") from error
    if sha256(text) != wanted:
        raise TamperedArtifact(f"{path}: differs from the sha256 in {artefact.MANIFEST}; compile again")
    return load(text, Plan, str(path))


def run(directory: Path, prompt: str, new_tokens: int = 128) -> Iterator[str]:
    """The artefact's reply to a prompt, piece by piece."""
    from backends.transformers import runner
    from backends.transformers.executor import load

    plan = plan_of(directory)
    chunk = plan.workload.prefill_chunk_tokens
    return runner.answer(load(directory).model, directory, prompt, new_tokens, chunk, raw=False)


@dataclass(frozen=True, slots=True)
class ProfileReport:
    """A measured model: how much each family of options costs in all, and how far sums are off."""

    profile: ModelProfile
    where: str

    def as_json(self) -> dict[str, object]:
        p = self.profile
        return {
            "weights_sha256": p.weights_sha256,
            "context_tokens": list(p.context_tokens),
            "draws": p.draws,
            "documents_sha256": list(p.documents),
            "uniform": dict(self._uniform()),
            "anchors": [
                {"name": a.name, "predicted_nats": a.predicted_nats, "measured_nats": a.measured_nats}
                for a in p.anchors
            ],
        }

    def _uniform(self) -> Iterator[tuple[str, float]]:
        kv, last = self.profile.kv, -1
        for i, form in enumerate(kv.k_formats):
            yield f"keys {form.bits:g}-bit", float(kv.loss[:, -1, i, 0, last].sum())
        for i, form in enumerate(kv.v_formats):
            yield f"values {form.bits:g}-bit", float(kv.loss[:, -1, 0, i, last].sum())
        for i, window in enumerate(kv.windows):
            yield f"window {window}", float(kv.loss[:, i, 0, 0, last].sum())

    def as_text(self) -> str:
        lines = [f"{len(self.profile.kv.sites)} KV heads and {len(self.profile.weights.sites)} matrices priced;"]
        lines += [f"  {name:<16} everywhere: {loss:.4f} nats predicted" for name, loss in self._uniform()]
        lines += ["settings really run:"]
        lines += [
            f"  {a.name:<28} {a.predicted_nats:.4f} predicted, {a.measured_nats:.4f} measured"
            for a in self.profile.anchors
        ]
        return "\n".join([*lines, f"kept in {self.where}"])


def profile_model(request: Request, target: str = "local", progress: Progress = quiet, seed: int = 0) -> ProfileReport:
    """Price every option of every site of a model; kept by content, resumed after a kill."""
    from planner.compile.prepare import cache_directory, prepare

    profile = prepare(request, target, seed, progress).profile
    if profile is None:
        raise InputError(f"{request.name}: a bare config has no weights to measure; give a model with weights")
    return ProfileReport(profile, str(cache_directory() / "profiles"))


@dataclass(frozen=True, slots=True)
class HardwareReport:
    """This machine, measured."""

    hardware: HardwareProfile

    def as_json(self) -> dict[str, object]:
        return dict(document(self.hardware))

    def as_text(self) -> str:
        return dump(self.hardware).rstrip()


def profile_hardware(out: Path | None = None, progress: Progress = quiet) -> HardwareReport:
    """Measure this machine, and also write the profile for `--target FILE`."""
    from backends.transformers.probe import RunnerProbe
    from planner.compile.prepare import cache_directory
    from profiles.hardware import measure

    scratch = cache_directory()
    scratch.mkdir(parents=True, exist_ok=True)
    hardware = measure(scratch, progress, RunnerProbe())
    write_text(dump(hardware), scratch / "hardware-local.yaml")
    if out is not None:
        write_text(dump(hardware), out)
    return HardwareReport(hardware)


def passes() -> Iterable[type[Pass]]:
    """Every method, in the order of the pipeline."""
    from passes.pipeline import known

    return known()


def backends() -> Iterable[Capabilities]:
    """Every runtime that plans are emitted for."""
    from backends.transformers.executor import CAPABILITIES

    return (CAPABILITIES,)
