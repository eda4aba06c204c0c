"""The Python API: compile, import, pareto, verify, check, run, profile, passes and backends, as functions with results.

    from planner import api
    from planner.config import load_request
    result = api.compile(load_request(Path("model.yaml")), out=Path("out"))

Results have `as_text()` and `as_json()`.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from planner.drift import Drift
from planner.errors import InputError
from planner.executor import Capabilities, Progress
from planner.files import write_text
from planner.hardware import HardwareProfile
from planner.measured import Measuring, complaints
from planner.pipeline import Pass
from planner.profile import ModelProfile
from planner.report import CompileReport, VerifyReport
from planner.request import Request, Verification
from planner.serde import document, dump

if TYPE_CHECKING:
    from planner.compile.bench import BenchReport
    from planner.compile.check import CheckReport
    from planner.compile.exporting import ExportReport
    from planner.compile.importing import ImportReport
    from planner.compile.inspecting import InspectReport
    from planner.front import Front
    from planner.published import PublishedFile


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


def compile_plan(
    request: Request,
    plan: Path,
    *,
    out: Path,
    target: str = "local",
    backend: str | None = None,
    seed: int = 0,
    progress: Progress = quiet,
) -> CompileReport:
    """Write the artefact of a plan document, an imported one or one of our own, to `out` and prove it by running it."""
    from planner.compile.given import compile_given

    return compile_given(request, plan, target=target, out=out, backend=backend, seed=seed, progress=progress)


def export(
    request: Request,
    plan: Path,
    *,
    backend: str,
    out: Path,
    target: str = "local",
    seed: int = 0,
    progress: Progress = quiet,
) -> "ExportReport":
    """Write the nearest plan that a runtime carries to one made for another: an artefact's, or a plan document."""
    from planner.compile.exporting import export_plan

    return export_plan(request, plan, backend=backend, target=target, out=out, seed=seed, progress=progress)


def inspect(path: Path, out: Path | None = None) -> "InspectReport":
    """The plan behind an artefact, a GGUF file or a compressed-tensors directory; also written where asked."""
    from planner.compile.inspecting import inspect_path

    return inspect_path(path, out)


def import_plan(
    request: Request,
    file: "PublishedFile",
    *,
    out: Path,
    target: str = "local",
    backend: str | None = None,
    progress: Progress = quiet,
) -> "ImportReport":
    """Fold a published plan (Moa, PrefixKv or Duo of profiles.plans) to KV heads, price it, and write it to `out`."""
    from planner.compile.importing import import_published

    return import_published(request, file, target=target, out=out, backend=backend, progress=progress)


def pareto(
    request: Request,
    *,
    target: str = "local",
    over: str | None = None,
    points: int = 40,
    verify: int = 3,
    out: Path | None = None,
    passes: str | None = None,
    backend: str | None = None,
    seed: int = 0,
    progress: Progress = quiet,
) -> "Front":
    """Plans of which none is better than another in everything, solved for one by one, and `verify` of them run.

    `over` names the currencies as `planner pareto --over` takes them. Writes nothing unless `out` is given.
    """
    from planner.compile import pareto as front

    return front.pareto(
        request,
        target=target,
        over=over,
        points=points,
        verify=verify,
        out=out,
        passes=passes,
        backend=backend,
        seed=seed,
        progress=progress,
    )


def verify(
    directory: Path, text: Path | None = None, documents: int = 8, recall: int = 5, progress: Progress = quiet
) -> VerifyReport:
    """Run an artefact on a text: loss against its own model with nothing compressed, retrieval, bytes, seconds.

    `recall` prompts of each kind hide a number.
    """
    from planner.compile.verification import verify_artefact

    return verify_artefact(directory, Verification(text, documents, recall), progress)


def check(directory: Path, quick: bool = False, progress: Progress = quiet) -> "CheckReport":
    """Run an artefact's kernels in Triton's interpreter against references, over its plan's shapes and hostile ones."""
    from planner.compile.check import check_artefact

    return check_artefact(directory, quick, progress)


def bench(
    directory: Path,
    against: Sequence[str] = (),
    context_tokens: int | None = None,
    batch: int = 1,
    rounds: int = 3,
    progress: Progress = quiet,
    model: Path | None = None,
    documents: int = 2,
) -> "BenchReport":
    """Time an artefact on this machine, in turns with others: `dense`, its own weights under a full cache, `llama.cpp`
    with the same `model` (its model.yaml), whose loss is measured as well, or paths."""
    from planner.compile.bench import bench_artefact

    return bench_artefact(directory, against, context_tokens, batch, rounds, progress, model, documents)


def run(directory: Path, prompt: str, new_tokens: int = 128) -> Iterator[str]:
    """The artefact's reply to a prompt, piece by piece."""
    from planner.compile.verification import runnable

    plan, ran_by = runnable(directory)
    return ran_by.reply(directory, prompt, new_tokens, plan.workload.prefill_chunk_tokens)


@dataclass(frozen=True, slots=True)
class ProfileReport:
    """A measured model: how much each family of options costs in all, and how far sums are off."""

    profile: ModelProfile
    where: str
    notes: tuple[str, ...] = ()

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
            "notes": list(self.notes),
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
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes), f"kept in {self.where}"])


def profile_model(
    request: Request, progress: Progress = quiet, seed: int = 0, backend: str | None = None
) -> ProfileReport:
    """Price every option of every site of a model as a runtime stores them; kept by content, resumed after a kill."""
    from planner.compile.prepare import ANY_CPU, cache_directory, prepare

    prepared = prepare(request, ANY_CPU, seed, progress, backend)
    if prepared.profile is None:
        raise InputError(f"{request.name}: a bare config has no weights to measure; give a model with weights")
    return ProfileReport(prepared.profile, str(cache_directory() / "profiles"), prepared.notes)


@dataclass(frozen=True, slots=True)
class HardwareReport:
    """This machine, measured, and beside a baseline where one was given."""

    hardware: HardwareProfile
    drift: Drift | None = None

    @property
    def complaints(self) -> tuple[str, ...]:
        """What makes the figures doubtful: noise, and others at work."""
        machine = self.hardware.machine
        return () if machine is None else complaints(machine, self.hardware.curves)

    def as_json(self) -> dict[str, object]:
        if self.drift is None:
            return dict(document(self.hardware))
        return {"check": self.drift.as_json(), "profile": dict(document(self.hardware))}

    def as_text(self) -> str:
        return dump(self.hardware).rstrip() if self.drift is None else self.drift.as_text()


def profile_hardware(
    out: Path | None = None,
    progress: Progress = quiet,
    how: Measuring = Measuring(),  # noqa: B008
) -> HardwareReport:
    """Measure this machine as a runtime uses it, and also write the profile for `--target FILE`."""
    from planner.compile.machine import measured

    hardware = measured(how, progress)
    if out is not None:
        write_text(dump(hardware), out)
    return HardwareReport(hardware)


def check_hardware(
    baseline: Path,
    tolerance: float = 0.1,
    out: Path | None = None,
    junit: Path | None = None,
    progress: Progress = quiet,
    how: Measuring = Measuring(),  # noqa: B008
) -> HardwareReport:
    """Measure this machine and compare it with a profile of it, figure by figure; also write both as asked.

    What looks slower is timed again, as far as a quarter of the time goes, and counts only if it stays slower.
    """
    from planner.compile.machine import checked
    from planner.junit import junit as as_junit

    hardware, drift = checked(how, baseline, tolerance, progress)
    if out is not None:
        write_text(dump(hardware), out)
    if junit is not None:
        write_text(as_junit(drift, str(baseline)), junit)
    return HardwareReport(hardware, drift)


def passes() -> Iterable[type[Pass]]:
    """Every method, in the order of the pipeline."""
    from passes.pipeline import known

    return known()


def backends() -> Iterable[Capabilities]:
    """Every runtime that plans are emitted for."""
    from planner.compile.runtimes import RUNTIMES

    return tuple(make(None).capabilities for make in RUNTIMES.values())
