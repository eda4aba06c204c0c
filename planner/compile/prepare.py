"""Everything a compilation stands on: the model opened, the machine known, the prices measured or read back."""

import hashlib
import json
import os
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from planner.compile.calibration import Texts, texts
from planner.compile.exam import exam, read
from planner.compile.runtimes import choose, runtime
from planner.errors import InputError
from planner.executor import Capabilities, Executor, Progress
from planner.files import write_text
from planner.hardware import HardwareProfile
from planner.loss import fitted
from planner.pipeline import PassContext
from planner.profile import ModelProfile
from planner.request import Request
from planner.serde import dump, load_file
from planner.verify import Exam

if TYPE_CHECKING:
    from profiles.sources.checkpoint import Checkpoint
    from profiles.weights import CheckpointWeights

SINKS = 4
"""Protected tokens at the start of a sequence; attention parks on them."""

ANY_CPU = "server-cpu"
"""A target for those who want a model measured and no plan: prices do not depend on it, and this one is not timed."""


def cache_directory() -> Path:
    """Where measurements are kept, made if need be: $PLANNER_CACHE, or ~/.cache/planner."""
    given = os.environ.get("PLANNER_CACHE")
    directory = Path(given) if given else Path.home() / ".cache" / "planner"
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise InputError(f"{directory}: cannot be made: {why}; set PLANNER_CACHE to a writable directory") from error
    return directory


@dataclass(frozen=True)
class Prepared:
    """An opened request. `context` is what passes see; `executor` runs plans here.

    `read_from` is what it was calibrated on. A model without weights has neither that, nor a profile or an exam.
    """

    request: Request
    checkpoint: "Checkpoint"
    weights: "CheckpointWeights"
    executor: Executor
    profile: ModelProfile | None
    read_from: Texts | None
    exam: Exam | None
    context: PassContext
    local: bool
    notes: tuple[str, ...] = ()


def prepare(request: Request, target: str, seed: int, progress: Progress, backend: str | None = None) -> Prepared:
    """Open the source, know the target, and price the model unless its profile is kept already."""
    from profiles.allocator import keep_freed_memory
    from profiles.weights import CheckpointWeights

    keep_freed_memory()
    checkpoint = opened(request)
    weights = CheckpointWeights(checkpoint)
    read_from = texts(request, weights.tokenizer, seed) if checkpoint.spec.has_weights else None
    asked = None if read_from is None else questions(request, weights, read_from)
    named = None if target == "local" else known_target(target)
    name, notes = choose(backend, "local" if named is None else named, checkpoint.config)
    machine = measured_here(name, progress) if named is None else named
    executor = runtime(name).executor(weights, checkpoint.spec)
    profile = None
    if read_from is not None:
        profile = model_profile(request, checkpoint, weights, executor, read_from, seed, progress)
        notes = (*notes, *read_from.notes)
    loss = None
    if profile is not None:
        executor.use(profile.statics)
        loss = fitted(checkpoint.spec, profile, request.workload)
    capabilities = executor.capabilities
    if profile is None:
        capabilities = shapes_only(capabilities)
    context = PassContext(checkpoint.spec, request.workload, request.goal, machine, capabilities, loss, seed)
    return Prepared(
        request, checkpoint, weights, executor, profile, read_from, asked, context, target == "local", notes
    )


def opened(request: Request) -> "Checkpoint":
    """The request's source, which must have positions for its longest context."""
    from profiles.sources.open import open_source

    checkpoint = open_source(request.source, Path.cwd())
    if request.workload.longest_tokens > checkpoint.spec.max_positions:
        raise InputError(
            f"workload.context_tokens: {request.workload.longest_tokens} is more than the"
            f" {checkpoint.spec.max_positions} positions this model was made for"
        )
    return checkpoint


def shapes_only(capabilities: Capabilities) -> Capabilities:
    """What a plan that is not run may hold: nothing that a runtime lacks need be left out."""
    return replace(capabilities, runtime="none", offloads=True, executes_here=False)


def known_target(target: str) -> HardwareProfile:
    """The profile of a target that is not measured here: a data sheet, or a file."""
    from profiles.targets import target as known

    return known(target)


def kept_machine(name: str) -> Path:
    """Where this machine's profile for a runtime is kept."""
    return cache_directory() / f"hardware-local-{name}.yaml"


def measured_here(name: str, progress: Progress) -> HardwareProfile:
    """This machine as a runtime uses it; measured once a day."""
    from profiles.hardware import measure
    from profiles.record import Order

    probe = runtime(name).probe()
    kept = kept_machine(name)
    if kept.is_file():
        found = load_file(kept, HardwareProfile)
        if found.date == date.today().isoformat() and probe.name in " ".join(found.sources):
            return found
    measured = measure(Order(kept.parent, progress), probe)
    write_text(dump(measured), kept)
    return measured


def model_profile(
    request: Request,
    checkpoint: "Checkpoint",
    weights: "CheckpointWeights",
    executor: Executor,
    read_from: Texts,
    seed: int,
    progress: Progress,
) -> ModelProfile:
    """The prices of a model, measured document by document or read back: they are kept by the hash of all inputs."""
    from profiles import anchors
    from profiles.calibration import Calibration
    from profiles.model import Profiler, code_sha256
    from profiles.parts import Parts

    sinks = SINKS if executor.capabilities.sinks else 0
    asked = Calibration(read_from.priced, read_from.short, request.calibration.draws, seed, sinks)
    identity = json.dumps(
        [
            checkpoint.spec.weights_sha256,
            checkpoint.config,
            executor.identity(),
            code_sha256(),
            asked.sha256,
            read_from.held_out,
            asked.draws,
            seed,
            sinks,
        ]
    )
    parts = Parts(cache_directory() / "profiles" / hashlib.sha256(identity.encode()).hexdigest()[:24])
    profiler = Profiler(weights, checkpoint.spec, executor, asked, parts, progress)
    profile = profiler.run()
    return anchors.measure(
        profile, checkpoint.spec, executor, read_from.held_out, request.workload.prefill_chunk_tokens, parts, progress
    )


def questions(request: Request, weights: "CheckpointWeights", read_from: Texts) -> Exam:
    """What plans are verified on: made before anything is measured, so that a text that will not do is told at once."""
    from profiles import documents
    from profiles.calibration import document_sha256

    learnt, _ = read(request.calibration.text, documents.CALIBRATION_TEXT)
    content, where = read(request.verification.text, documents.VERIFICATION_TEXT)
    if content == learnt:
        raise InputError(f"{where}: is what the model is calibrated on; give another text for verification")
    seen = {document_sha256(document) for document in read_from.every}
    return exam(weights.tokenizer, request.workload, request.verification, seen, learnt)
