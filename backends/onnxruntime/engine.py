"""Several conversations at once on one planned model: prompts read in pieces between decode steps of all that run.

One thread owns the model and a cache of as many rows as there are sessions. The rows that decode come first, so that a
step computes no others; the row behind them is where the next prompt is being read. A session that ends leaves its row
to the last one.
"""

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from backends.artefacts import opening
from backends.onnxruntime import runner
from backends.onnxruntime.prefixes import Kept, Prefixes
from backends.onnxruntime.runner import ArtefactError, Chat, Floats, PlannedModel, Speech
from backends.onnxruntime.sampling import Sampler
from planner.errors import InputError
from planner.serving.engine import Ask, Busy, Deliver, Ended, Load, Piece, Reason, Refused, Stopped

CLOSED = "the server is shutting down"
FAILED = "the engine failed; its last words are in the server's log"


@dataclass(frozen=True, slots=True)
class Limits:
    """How much an engine takes on: rows of cache and tokens of each, tokens of prompts read between two decode steps,
    requests that may wait, and bytes of caches put aside for prompts that begin alike."""

    sessions: int = 8
    context_tokens: int = 2048
    chunk_tokens: int = 256
    waiting: int = 64
    prefix_bytes: int = 512 * 2**20

    def __post_init__(self) -> None:
        for name in ("sessions", "context_tokens", "chunk_tokens"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: found {getattr(self, name)}; must be at least 1")
        for name in ("waiting", "prefix_bytes"):
            if getattr(self, name) < 0:
                raise InputError(f"{name}: found {getattr(self, name)}; must not be negative")


class Running:
    """A request, from when it waits to its end; all but `cancel` is for the engine's thread."""

    def __init__(self, ask: Ask, deliver: Deliver, decode: Callable[[Sequence[int]], str]) -> None:
        self.ask, self.deliver = ask, deliver
        self.sampler, self.speech = Sampler(ask.sampling), Speech(decode, ask.stop)
        self.tokens: list[int] = []
        self.reused, self.cancelled = 0, False

    def cancel(self) -> None:
        self.cancelled = True

    def end(self, ended: Ended) -> None:
        """Tell what waited to be told, and that this was all."""
        if rest := self.speech.rest():
            self.deliver(Piece(rest))
        self.deliver(ended)


class BatchEngine:
    """A planned model that generates for `limits.sessions` requests at once."""

    def __init__(self, model: PlannedModel, chat: Chat, name: str, limits: Limits) -> None:
        try:
            self._cache = model.cache(limits.sessions, limits.context_tokens)
        except ArtefactError as error:
            raise InputError(str(error)) from error
        except MemoryError as error:
            raise InputError(
                f"{limits.sessions} caches of {limits.context_tokens} tokens do not fit the memory; give less of either"
            ) from error
        self.name, self.limits = name, limits
        self._model, self._chat = model, chat
        self._changed = threading.Condition()
        self._waiting: deque[Running] = deque()
        self._reading: Running | None = None
        self._active: list[Running] = []
        self._prefixes = Prefixes(limits.prefix_bytes)
        self._stopped = ""
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    @classmethod
    def open(cls, directory: Path, name: str, limits: Limits, threads: int = 0) -> "BatchEngine":
        """The engine of an artefact directory, checked; `threads` 0 is one a core."""
        with opening(directory, ArtefactError):
            model, chat = runner.load(directory, threads), Chat.of(directory)
        return cls(model, chat, name, limits)

    # --- for any thread ---------------------------------------------------------------------------

    @property
    def context_tokens(self) -> int:
        return self.limits.context_tokens

    @property
    def vocabulary(self) -> int:
        return self._model.layout["vocab"]

    @property
    def cache_bytes(self) -> int:
        """Bytes of all rows' caches."""
        return self._cache.bytes

    def chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        try:
            return self._chat.prompt(messages)
        except ArtefactError as error:
            raise Refused(str(error)) from error

    def raw(self, text: str) -> list[int]:
        return self._chat.raw(text)

    def submit(self, ask: Ask, deliver: Deliver) -> Running:
        if not ask.prompt:
            raise Refused("the prompt has no tokens; give at least one")
        if ask.new_tokens < 1 or len(ask.prompt) + ask.new_tokens > self.context_tokens:
            raise Refused(
                f"{len(ask.prompt)} tokens of prompt and {ask.new_tokens} new ones are not within 1 and the"
                f" {self.context_tokens} of the context"
            )
        running = Running(ask, deliver, self._chat.tokenizer.decode)
        with self._changed:
            if self._stopped:
                raise Stopped(self._stopped)
            if len(self._waiting) + self._occupied() >= self.limits.waiting + self.limits.sessions:
                raise Busy(
                    f"{self._occupied()} requests run and {len(self._waiting)} wait, which is all that may;"
                    " try again later"
                )
            self._waiting.append(running)
            self._changed.notify()
        return running

    def load(self) -> Load:
        with self._changed:
            if self._stopped:
                raise Stopped(self._stopped)
            return Load(
                self.limits.sessions,
                self._occupied(),
                len(self._waiting),
                len(self._prefixes),
                self._prefixes.bytes,
            )

    def stop(self) -> None:
        self._stopped = CLOSED

    def close(self) -> None:
        """Stop, and wait for the thread to end."""
        self.stop()
        with self._changed:
            self._changed.notify()
        self._thread.join()

    def __enter__(self) -> "BatchEngine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _occupied(self) -> int:
        return len(self._active) + (self._reading is not None)

    # --- the engine's thread ----------------------------------------------------------------------

    def _work(self) -> None:
        """Read a chunk, decode a step, until stopped. An error is a bug: it is printed, and everyone is told."""
        try:
            while self._wanted():
                self._read()
                self._decode()
        finally:
            with self._changed:
                self._stopped = self._stopped or FAILED
                left = [*self._active, *([self._reading] if self._reading else []), *self._waiting]
                self._active, self._reading = [], None
                self._waiting.clear()
            for running in left:
                self._end(running, "failed", self._stopped)

    def _wanted(self) -> bool:
        """Wait for something to do, without those who hung up; False when stopped."""
        while not self._stopped:
            for row in reversed([row for row, running in enumerate(self._active) if running.cancelled]):
                self._end(self._vacate(row), "cancelled")
            with self._changed:
                gone = [running for running in self._waiting if running.cancelled]
                for running in gone:
                    self._waiting.remove(running)
                if self._reading is not None and self._reading.cancelled:
                    gone.append(self._reading)
                    self._reading = None
                if not gone and (self._active or self._reading or self._waiting):
                    return True
                if not gone and not self._stopped:
                    self._changed.wait()
            for running in gone:
                self._end(running, "cancelled")
        return False

    def _read(self) -> None:
        """Read up to a chunk of waiting prompts, in the order they came."""
        budget = self.limits.chunk_tokens
        while budget > 0 and (running := self._reader()) is not None:
            row, prompt = len(self._active), running.ask.prompt
            piece = prompt[len(self._cache.tokens[row]) :][:budget]
            budget -= len(piece)
            logits = self._model.read(self._cache, row, piece, len(piece))[-1]
            if len(self._cache.tokens[row]) == len(prompt):
                self._put_aside(row, logits)
                self._start(running, logits)

    def _reader(self) -> Running | None:
        """The request whose prompt is being read, with its row prepared; one whose whole prompt was read before
        starts at once."""
        while True:
            with self._changed:
                if self._reading is not None:
                    return self._reading
                if not self._waiting or len(self._active) >= self.limits.sessions:
                    return None
                running = self._reading = self._waiting.popleft()
            row, prompt = len(self._active), running.ask.prompt
            self._cache.clear(row)
            found = self._prefixes.longest(prompt)
            if found is None:
                return running
            kept, running.reused = found
            self._cache.restore(row, kept.first(running.reused))
            if running.reused < len(prompt) or kept.logits is None:
                return running
            self._start(running, kept.logits)

    def _start(self, running: Running, logits: Floats) -> None:
        """A prompt was read: its row is the last of those that decode."""
        with self._changed:
            self._reading = None
            self._active.append(running)
        self._hear(len(self._active) - 1, logits)

    def _decode(self) -> None:
        """One more token for everyone who has a row."""
        if not self._active:
            return
        logits = self._model.step(self._cache, [running.tokens[-1] for running in self._active])
        for row in reversed(range(len(self._active))):
            self._hear(row, logits[row])

    def _hear(self, row: int, logits: Floats) -> None:
        """Draw a row's next token and tell it; where that ends the reply, the row is vacated."""
        running = self._active[row]
        token = running.sampler.pick(logits)
        running.tokens.append(token)
        ended = token in self._chat.stop
        if not ended:
            if text := running.speech.more(token):
                running.deliver(Piece(text))
            ended = running.speech.stopped
        if ended or len(running.tokens) >= running.ask.new_tokens:
            self._put_aside(row)
            self._end(self._vacate(row), "stop" if ended else "length")

    def _put_aside(self, row: int, logits: Floats | None = None) -> None:
        """Keep a row's cache for prompts that begin as it does."""
        if self.limits.prefix_bytes and not self._prefixes.holds(self._cache.tokens[row]):
            kept = Kept(self._cache.save(row), None if logits is None else logits.copy())
            self._prefixes.keep(kept)

    def _vacate(self, row: int) -> Running:
        """The last row that decodes moves into a row that ended, and the prompt being read follows it."""
        last = len(self._active) - 1
        if row != last:
            self._cache.restore(row, self._cache.save(last))
        if self._reading is not None:
            self._cache.restore(last, self._cache.save(last + 1))
        with self._changed:
            running = self._active[row]
            self._active[row] = self._active[last]
            self._active.pop()
        return running

    def _end(self, running: Running, reason: Reason, problem: str = "") -> None:
        running.end(Ended(reason, len(running.ask.prompt), running.reused, tuple(running.tokens), problem))
