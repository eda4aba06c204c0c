"""Measure what plans really do: loss on held-out documents, retrieval, bytes and seconds, through the physical cache.

Every plan of a table is scored on the same positions of the same documents, and timed in turns with the dense model.
"""

import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from planner.executor import Progress, Session, Timing
from planner.goal import Workload
from planner.plan import Costs, Interval
from planner.quality import DocumentScore, compare, mean_interval, perplexity

ROUNDS = 3
"""How often each timed plan has its turn."""

TIMED_TOKENS = 16

ANSWER_TOKENS = 8
"""Tokens in which a hidden number must be told."""

Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Passkey:
    """A prompt that hides a number, and how to tell from generated tokens whether it was found.

    The last `question_tokens` of the prompt ask for it; what comes before does not tell what will be asked.
    """

    prompt: Tokens
    found: Callable[[Sequence[int]], bool]
    question_tokens: int


@dataclass(frozen=True, slots=True)
class Exam:
    """What plans are measured on. Positions from `first` on are scored; all compared budgets bind there.

    `passkeys` hide one number in filler, `pairs` one among others that are stored under other keys.
    """

    documents: tuple[Tokens, ...]
    first: int
    passkeys: tuple[Passkey, ...]
    chunk_tokens: int
    pairs: tuple[Passkey, ...] = ()


@dataclass(frozen=True, slots=True)
class Measured:
    """What running one plan showed."""

    scores: tuple[DocumentScore, ...]
    passkeys: tuple[bool, ...]
    timings: tuple[Timing, ...] = ()
    pairs: tuple[bool, ...] = ()

    @property
    def loss(self) -> Interval:
        return mean_interval([s.loss_nats for s in self.scores])

    def costs(self, source: str) -> Costs:
        """The measured costs. Working memory cannot be counted from here: `memory_bytes` is weights and cache alone."""
        kv_bytes = self.timings[0].kv_bytes if self.timings else 0
        weight_bytes = self.timings[0].weight_bytes if self.timings else 0
        ttft = [t.ttft_s for t in self.timings]
        decode = [s for t in self.timings for s in t.decode_s]
        return Costs(
            source=source,
            kv_bytes=kv_bytes,
            weight_bytes=weight_bytes,
            memory_bytes=kv_bytes + weight_bytes,
            loss_nats=self.loss,
            decode_s=quartiles(decode) if decode else None,
            ttft_s=quartiles(ttft) if ttft else None,
            perplexity=perplexity(mean_interval([s.nll_nats for s in self.scores])),
            passkey=share(self.passkeys),
        )


def share(found: Sequence[bool]) -> float | None:
    """How many were found of those asked for; None where nothing was asked.

    >>> share([True, False]), share([])
    (0.5, None)
    """
    return sum(found) / len(found) if found else None


def quartiles(values: Sequence[float]) -> Interval:
    """The median between the quartiles.

    >>> quartiles([1.0, 2.0, 3.0])
    Interval(value=2.0, low=1.5, high=2.5)
    """
    low, high = np.quantile(values, [0.25, 0.75])
    return Interval(statistics.median(values), float(low), float(high))


@dataclass
class Examiner(AbstractContextManager["Examiner"]):
    """Holds the dense model's answers on disk while plans are compared with them.

    They lie in files without a name, so that a killed run leaves nothing behind.
    """

    exam: Exam
    progress: Progress
    _answers: list[NDArray[np.float32]] = field(default_factory=list)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._answers.clear()

    def take_dense(self, session: Session) -> Measured:
        """The dense model's answers, kept for `take`; its own scores have no loss."""
        for index, document in enumerate(self.exam.documents):
            self.progress("dense model", index, len(self.exam.documents))
            self._answers.append(on_disk(session.score(document, self.exam.first, self.exam.chunk_tokens)))
        self.progress("dense model", len(self.exam.documents), len(self.exam.documents))
        return self.take("dense model again", session, same=True)

    def take(self, name: str, session: Session, same: bool = False) -> Measured:
        """Score one plan on every document and hidden number; `same` when it is the dense model itself.

        What is done is told in tokens read: documents and the prompts of hidden numbers differ in length.
        """
        scores, found, done = list[DocumentScore](), list[tuple[bool, ...]](), 0
        stage, hidden = f"verifying {name}, tokens", (self.exam.passkeys, self.exam.pairs)
        of = sum(0 if same else len(document) for document in self.exam.documents) + sum(map(tokens_of, hidden))
        for document, dense in zip(self.exam.documents, self._answers, strict=True):
            self.progress(stage, done, of)
            planned = dense if same else session.score(document, self.exam.first, self.exam.chunk_tokens)
            scores.append(compare(dense, planned, document[self.exam.first + 1 :]))
            done += 0 if same else len(document)
        for asked in hidden:
            self.progress(stage, done, of)
            found.append(recalled(session, asked))
            done += tokens_of(asked)
        self.progress(stage, of, of)
        passkeys, pairs = found
        return Measured(tuple(scores), passkeys, pairs=pairs)


def tokens_of(asked: Sequence[Passkey]) -> int:
    """Tokens of all prompts."""
    return sum(len(key.prompt) for key in asked)


def recalled(session: Session, asked: Sequence[Passkey]) -> tuple[bool, ...]:
    """Which of the hidden numbers a plan tells."""
    answers = session.generate([key.prompt for key in asked], ANSWER_TOKENS) if asked else []
    return tuple(key.found(answer) for key, answer in zip(asked, answers, strict=True))


def on_disk(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The same values, read back from an unnamed file."""
    with tempfile.TemporaryFile() as file:
        values.tofile(file)
        return np.memmap(file, values.dtype, "r", shape=values.shape)


def race(
    sessions: Mapping[str, Session], document: Tokens, workload: Workload, progress: Progress, rounds: int = ROUNDS
) -> dict[str, tuple[Timing, ...]]:
    """Time sessions in turns, so that a busy moment hits all of them alike.

    All of the document but its end is the prompt, and as many tokens as the end has are generated: together they fill
    the cache that the plan was made for, once for every request of the batch.
    """
    timed = min(TIMED_TOKENS, workload.new_tokens)
    prompt = document[: len(document) - timed]
    timings: dict[str, list[Timing]] = {name: [] for name in sessions}
    done, of = 0, rounds * len(sessions)
    for _ in range(rounds):
        for name, session in sessions.items():
            progress("timing in turns", done, of)
            timings[name].append(session.time(prompt, timed, workload.prefill_chunk_tokens, workload.batch))
            done += 1
    progress("timing in turns", of, of)
    return {name: tuple(found) for name, found in timings.items()}
