"""A tiny model's artefact on disk, to be served; and requests that are made of an engine and waited for."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from backends.onnxruntime import runner
from backends.onnxruntime.engine import BatchEngine, Limits, Running
from backends.onnxruntime.executor import CAPABILITIES
from planner import artefact
from planner.executor import Artifact
from planner.plan import sha256
from planner.serde import dump
from planner.serving.engine import GREEDY, Ask, Ended, Event, Piece, Sampling
from planner.space import FLOAT32, Full, KvChoice, KvSite, Window
from tests.backends.oracle import choice
from tests.backends.ort import pair

CONTEXT = 256
NAME = "tiny"
PATIENCE_S = 60.0
LEAD = 2e-5
"""The sums of a batch differ from those of one row in their last bits; a lead this long cannot change hands."""
KINDS = {
    (0, 0): choice(Full(), FLOAT32),
    (0, 1): choice(Window(16), FLOAT32, sinks=0),
    (1, 0): choice(Window(64), FLOAT32),
    (1, 1): choice(Full(), FLOAT32),
    (2, 0): choice(Window(8, 0.125), FLOAT32),
    (2, 1): choice(Window(16), FLOAT32),
}


def write_artefact(model: Path, out: Path) -> Path:
    """An artefact of a tiny model in which full heads and three windows lie side by side."""
    opened = pair(model)

    def kv(site: KvSite) -> KvChoice:
        return KINDS[site.layer, site.kv_head]

    plan = opened.other.plan(kv)
    made = replace(plan.provenance, backend=CAPABILITIES.runtime, planner_version="0")
    workload = replace(plan.workload, context_tokens=(CONTEXT,), new_tokens=32)
    text = dump(replace(plan, name=NAME, workload=workload, provenance=made))
    files = (*opened.executor.emit(plan, opened.other.spec), Artifact(artefact.PLAN, text.encode()))
    artefact.write(out, files, artefact.Header(CAPABILITIES.runtime, CAPABILITIES.version, sha256(text), "0"))
    return out


def engine(directory: Path, **limits: int) -> BatchEngine:
    """An engine on one thread."""
    return BatchEngine.open(directory, NAME, Limits(**{"context_tokens": CONTEXT, "chunk_tokens": 32, **limits}), 1)


@dataclass
class Listener:
    """The events of one request."""

    told: list[str] = field(default_factory=list)
    ended: Ended | None = None
    _done: threading.Event = field(default_factory=threading.Event)
    _spoke: threading.Event = field(default_factory=threading.Event)

    def __call__(self, event: Event) -> None:
        if isinstance(event, Piece):
            self.told.append(event.text)
            self._spoke.set()
        else:
            self.ended = event
            self._done.set()

    def wait(self) -> Ended:
        assert self._done.wait(PATIENCE_S)
        assert self.ended is not None
        return self.ended

    def wait_for_words(self) -> None:
        assert self._spoke.wait(PATIENCE_S)

    @property
    def text(self) -> str:
        return "".join(self.told)


def ask(
    on: BatchEngine, prompt: Sequence[int], new_tokens: int, sampling: Sampling = GREEDY, stop: tuple[str, ...] = ()
) -> tuple[Listener, Running]:
    """A request, on its way."""
    listener = Listener()
    return listener, on.submit(Ask(tuple(prompt), new_tokens, sampling, stop), listener)


def reply(on: BatchEngine, prompt: Sequence[int], new_tokens: int, **options: object) -> Ended:
    """The end of a request."""
    return ask(on, prompt, new_tokens, **options)[0].wait()  # type: ignore[arg-type]


def alone(
    directory: Path, prompt: Sequence[int], new_tokens: int, context_tokens: int = CONTEXT
) -> tuple[tuple[int, ...], float]:
    """Greedy tokens of the runner by itself, and by how much the likeliest was ahead where that was closest."""
    model, stop = runner.load(directory, 1), runner.Chat.of(directory).stop
    cache = model.cache(1, context_tokens)
    logits, tokens, lead = model.read(cache, 0, list(prompt), 32), list[int](), np.inf
    while True:
        second, first = np.sort(logits[0])[-2:]
        tokens.append(int(logits[0].argmax()))
        lead = min(lead, float(first - second))
        if tokens[-1] in stop or len(tokens) == new_tokens:
            return tuple(tokens), lead
        logits = model.step(cache, tokens[-1:])
