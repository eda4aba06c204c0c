"""Measure what plans really do: loss on held-out documents, retrieval, bytes and seconds, through the physical cache.

Every plan of a table is scored on the same positions of the same documents, and timed in turns with the dense model.
"""

import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import numpy as np

from planner.executor import Progress, Session, Timing
from planner.plan import Costs, Interval
from planner.quality import DocumentScore, compare, mean_interval, perplexity

ROUNDS = 3
"""How often each timed plan has its turn."""

TIMED_TOKENS = 16

Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Passkey:
    """A prompt that hides a key, and how to tell from generated tokens whether it was found."""

    prompt: Tokens
    found: Callable[[Sequence[int]], bool]


@dataclass(frozen=True, slots=True)
class Exam:
    """What plans are measured on. Positions from `first` on are scored; all compared budgets bind there."""

    documents: tuple[Tokens, ...]
    first: int
    passkeys: tuple[Passkey, ...]
    chunk_tokens: int


@dataclass(frozen=True, slots=True)
class Measured:
    """What running one plan showed."""

    scores: tuple[DocumentScore, ...]
    passkeys: tuple[bool, ...]
    timings: tuple[Timing, ...] = ()

    @property
    def loss(self) -> Interval:
        return mean_interval([s.loss_nats for s in self.scores])

    def costs(self, memory_bytes: int) -> Costs:
        """The measured costs; `memory_bytes` is what the process cannot count itself (working memory included)."""
        ttft = [t.ttft_s for t in self.timings]
        decode = [s for t in self.timings for s in t.decode_s]
        return Costs(
            source="measured on this machine",
            kv_bytes=self.timings[0].kv_bytes if self.timings else 0,
            weight_bytes=self.timings[0].weight_bytes if self.timings else 0,
            memory_bytes=memory_bytes,
            loss_nats=self.loss,
            decode_s=quartiles(decode) if decode else None,
            ttft_s=quartiles(ttft) if ttft else None,
            perplexity=perplexity(mean_interval([s.nll_nats for s in self.scores])),
            passkey=sum(self.passkeys) / len(self.passkeys) if self.passkeys else None,
        )


def quartiles(values: Sequence[float]) -> Interval:
    """The median between the quartiles.

    >>> quartiles([1.0, 2.0, 3.0])
    Interval(value=2.0, low=1.5, high=2.5)
    """
    low, high = np.quantile(values, [0.25, 0.75])
    return Interval(statistics.median(values), float(low), float(high))


@dataclass
class Examiner(AbstractContextManager["Examiner"]):
    """Holds the dense model's answers on disk while plans are compared with them, and removes them afterwards."""

    exam: Exam
    progress: Progress
    _scratch: tempfile.TemporaryDirectory[str] = field(default_factory=tempfile.TemporaryDirectory)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._scratch.cleanup()

    def _answer(self, index: int) -> Path:
        return Path(self._scratch.name) / f"{index}.npy"

    def take_dense(self, session: Session) -> Measured:
        """The dense model's answers, kept for `take`; its own scores have no loss."""
        for index, document in enumerate(self.exam.documents):
            self.progress("dense model", index, len(self.exam.documents))
            np.save(self._answer(index), session.score(document, self.exam.first, self.exam.chunk_tokens))
        self.progress("dense model", len(self.exam.documents), len(self.exam.documents))
        return self.take("dense model again", session, same=True)

    def take(self, name: str, session: Session, same: bool = False) -> Measured:
        """Score one plan on every document and passkey; `same` when it is the dense model itself."""
        scores = []
        stage, of = f"verifying {name}", len(self.exam.documents) + len(self.exam.passkeys)
        for index, document in enumerate(self.exam.documents):
            dense = np.load(self._answer(index), mmap_mode="r")
            self.progress(stage, index, of)
            planned = dense if same else session.score(document, self.exam.first, self.exam.chunk_tokens)
            scores.append(compare(dense, planned, document[self.exam.first + 1 :]))
        found = []
        for index, key in enumerate(self.exam.passkeys):
            self.progress(stage, len(self.exam.documents) + index, of)
            found.append(key.found(session.generate([key.prompt], 8)[0]))
        self.progress(stage, of, of)
        return Measured(tuple(scores), tuple(found))


def race(
    sessions: Mapping[str, Session], prompt: Tokens, chunk_tokens: int, progress: Progress
) -> dict[str, tuple[Timing, ...]]:
    """Time sessions in turns on one prompt, so that a busy moment hits all of them alike."""
    timings: dict[str, list[Timing]] = {name: [] for name in sessions}
    done, of = 0, ROUNDS * len(sessions)
    for _ in range(ROUNDS):
        for name, session in sessions.items():
            progress("timing in turns", done, of)
            timings[name].append(session.time(prompt, TIMED_TOKENS, chunk_tokens))
            done += 1
    progress("timing in turns", of, of)
    return {name: tuple(found) for name, found in timings.items()}
