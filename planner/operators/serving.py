"""From steps to a served request: time to first token and per token of a continuously batching engine under load.

The engine is run in miniature, not approximated: clients that each send their next request when the last is answered,
prompts waiting for room, chunks sharing a step with the sequences being decoded, a cache that fills up. Steps that only
decode are taken many at a time, so a run costs a few thousand look-ups. Nothing is random: the lengths of requests
follow a golden-ratio sequence.
"""

import heapq
import math
from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

from planner.errors import InputError

GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True, slots=True)
class Engine:
    """How a serving framework schedules, and the two constants that its own work costs.

    token_budget     new tokens a step may hold, decoded ones included
    mixed            prompts share a step with decoding; else prompts go first and decoding waits
    chunked          a prompt may be split over steps; else it waits for a step that holds it whole
    reserves_output  a sequence is admitted only with room for all its output; else it may be evicted and recomputed
    memory_share     of the GPU's memory, for weights and cache together
    fused_qk_norm    norms of queries and keys run inside the kernel that rotates them
    kernel_s         seconds of a small kernel before it moves a byte (`Step.kernel_s`)
    sequence_s       host seconds a step spends on each sequence in it: sampling, detokenising, streaming

    The constants' defaults lie among those fitted to vLLM, TensorRT-LLM and SGLang deployments on H100: 3.7 to 5.0 and
    6 to 47 microseconds (`planner validate deployments`).
    """

    token_budget: int
    mixed: bool = True
    chunked: bool = True
    reserves_output: bool = False
    memory_share: float = 0.92
    fused_qk_norm: bool = False
    kernel_s: float = 4.7e-6
    sequence_s: float = 20e-6

    def kernels(self, qk_norm: bool) -> int:
        """Small kernels a layer: two norms, rotation, cache write, activation; two more to normalise queries and keys.

        >>> Engine(8192).kernels(qk_norm=True), Engine(8192, fused_qk_norm=True).kernels(qk_norm=True)
        (7, 5)
        """
        return 7 if qk_norm and not self.fused_qk_norm else 5


@dataclass(frozen=True, slots=True)
class Load:
    """A closed loop of `concurrency` clients, all starting at once, that send `waves` requests each.

    Lengths lie evenly between (1 - spread) and 1 times `prompt` and `output` tokens.
    """

    concurrency: int
    prompt: int
    output: int
    waves: int = 10
    spread: float = 0.0

    def __post_init__(self) -> None:
        for name, least in (("concurrency", 1), ("prompt", 1), ("output", 2), ("waves", 1)):
            if getattr(self, name) < least:
                raise InputError(f"a load of {name} {getattr(self, name)}; it must be at least {least}")
        if not 0 <= self.spread < 1:
            raise InputError(f"a load whose lengths spread by {self.spread}; the share must be below 1")


@dataclass(frozen=True, slots=True)
class Served:
    """Means over all requests: seconds to the first token, and per token after it."""

    ttft_s: float
    tpot_s: float


class Times(Protocol):
    """What a step takes; see `StepTimes`."""

    def step_s(self, chunks: list[tuple[int, int]], decoded: int, context: float) -> float: ...


def serve(times: Times, engine: Engine, load: Load, kv_tokens: int) -> Served:
    """Run the load through the engine, whose cache holds `kv_tokens`; InputError where not even one request fits."""
    if load.prompt + load.output > kv_tokens:
        needed = load.prompt + load.output
        raise InputError(f"a request of {needed:,} tokens does not fit a cache of {max(kv_tokens, 0):,}")
    run = _Run(times, engine, load, kv_tokens)
    while len(run.answered) < len(run.requests):
        run.step()
    ttft_s = sum(request.first_s - request.sent_s for request in run.answered)
    tpot_s = sum((request.last_s - request.first_s) / (request.output - 1) for request in run.answered)
    return Served(ttft_s / len(run.answered), tpot_s / len(run.answered))


@dataclass(slots=True)
class _Request:
    """A request and where it stands; `born` counts the decoding steps the engine had taken when it joined them."""

    number: int
    prompt: int
    output: int
    sent_s: float = 0.0
    first_s: float = math.nan
    last_s: float = math.nan
    read: int = 0
    made: int = 0
    born: int = 0

    @property
    def to_read(self) -> int:
        """Tokens to run through before the next comes out: the prompt, and after an eviction what was made as well."""
        return self.prompt + self.made

    @property
    def whole(self) -> int:
        return self.prompt + self.output


@dataclass(slots=True)
class _Run:
    """The engine's queues; the clock moves by one step, or by many that only decode."""

    times: Times
    engine: Engine
    load: Load
    kv_tokens: int
    now_s: float = 0.0
    steps: int = 0
    held: int = 0
    requests: list[_Request] = field(default_factory=list)
    unsent: deque[_Request] = field(default_factory=deque)
    sent: deque[_Request] = field(default_factory=deque)
    waiting: deque[_Request] = field(default_factory=deque)
    reading: _Request | None = None
    decoding: dict[int, _Request] = field(default_factory=dict)
    ends: list[tuple[int, int]] = field(default_factory=list)
    answered: list[_Request] = field(default_factory=list)

    def __post_init__(self) -> None:
        load = self.load
        for number in range(load.concurrency * load.waves):
            share = 1 - load.spread * ((number + 1) * GOLDEN % 1)
            # Another phase, or long prompts would always have long answers.
            output_share = 1 - load.spread * (((number + 1) * GOLDEN + GOLDEN) * math.e % 1)
            lengths = max(1, round(load.prompt * share)), max(2, round(load.output * output_share))
            self.requests.append(_Request(number, *lengths))
        self.waiting.extend(self.requests[: load.concurrency])
        self.unsent.extend(self.requests[load.concurrency :])

    def step(self) -> None:
        """One step of the engine; a request sent when a step ends is seen when the next one does."""
        while self.sent and (self.sent[0].sent_s < self.now_s or not (self.decoding or self.waiting or self.reading)):
            self.waiting.append(self.sent.popleft())
        chunks, begun = self._read_prompts()
        decoded = len(self.decoding) if self.engine.mixed or not chunks else 0
        context = self.held / decoded if decoded else 0.0
        steps = 1 if chunks else self._steps_alike()
        step_s = self.times.step_s(chunks, decoded, context + (steps - 1) / 2)
        self.now_s += steps * (step_s + self.engine.sequence_s * (decoded + len(begun)))
        if decoded:
            self._decode(steps)
        for request in begun:
            self._begin(request)
        while self.held > self.kv_tokens and len(self.decoding) > 1:
            self._evict()

    def _read_prompts(self) -> tuple[list[tuple[int, int]], list[_Request]]:
        """Chunks of this step as (tokens, tokens before them), and the requests whose prompts end in it."""
        room = self.engine.token_budget - (len(self.decoding) if self.engine.mixed else 0)
        chunks: list[tuple[int, int]] = []
        begun: list[_Request] = []
        taken = self._taken()
        while room > 0:
            request = self.reading
            if request is None:
                if not self.waiting:
                    break
                request = self.waiting[0]
                needed = request.whole if self.engine.reserves_output else request.to_read + 1
                if taken + needed > self.kv_tokens and (self.decoding or begun):
                    break
                if not self.engine.chunked and request.to_read > room and chunks:
                    break
                self.waiting.popleft()
                taken += needed
            unread = request.to_read - request.read
            tokens = min(unread, room) if self.engine.chunked else unread
            chunks.append((tokens, request.read))
            request.read += tokens
            room -= tokens
            self.reading = None if tokens == unread else request
            if self.reading is None:
                begun.append(request)
        return chunks, begun

    def _taken(self) -> int:
        """Tokens of the cache that are spoken for."""
        if self.engine.reserves_output:
            taken = sum(request.whole for request in self.decoding.values())
            return taken + (self.reading.whole if self.reading else 0)
        return self.held + (self.reading.to_read if self.reading else 0)

    def _steps_alike(self) -> int:
        """Steps until a sequence ends, a request arrives or the cache is full."""
        while self.ends[0][1] not in self.decoding or self._end(self.decoding[self.ends[0][1]]) != self.ends[0][0]:
            heapq.heappop(self.ends)  # evicted since
        decoded = len(self.decoding)
        steps = self.ends[0][0] - self.steps
        if self.sent:
            step_s = self.times.step_s([], decoded, self.held / decoded) + self.engine.sequence_s * decoded
            steps = min(steps, math.floor((self.sent[0].sent_s - self.now_s) / step_s) + 1)
        if not self.engine.reserves_output:
            steps = min(steps, (self.kv_tokens - self.held) // decoded + 1)
        return max(1, steps)

    def _decode(self, steps: int) -> None:
        """A token for every sequence in each of so many steps; those that have their last leave."""
        self.steps += steps
        self.held += steps * len(self.decoding)
        while self.ends and self.ends[0][0] <= self.steps:
            end, number = heapq.heappop(self.ends)
            request = self.decoding.get(number)
            if request is None or self._end(request) != end:
                continue  # evicted since
            del self.decoding[number]
            self.held -= self._context(request)
            request.last_s = self.now_s
            self.answered.append(request)
            if self.unsent:
                following = self.unsent.popleft()
                following.sent_s = self.now_s
                self.sent.append(following)

    def _begin(self, request: _Request) -> None:
        """The prompt is read and has given a token; from the next step on the sequence is decoded."""
        if math.isnan(request.first_s):
            request.first_s = self.now_s
        request.made += 1
        request.born = self.steps
        self.held += request.prompt + request.made
        self.decoding[request.number] = request
        heapq.heappush(self.ends, (self._end(request), request.number))

    def _evict(self) -> None:
        """The sequence admitted last gives up its cache and is read again when there is room."""
        _, request = self.decoding.popitem()
        self.held -= self._context(request)
        request.made += self.steps - request.born
        request.read = 0
        self.waiting.appendleft(request)

    def _context(self, request: _Request) -> int:
        """Tokens a decoded sequence holds in the cache now."""
        return request.prompt + request.made + self.steps - request.born

    @staticmethod
    def _end(request: _Request) -> int:
        """Decoding steps taken when the sequence has its last token; at least one more, for a step ends it."""
        return request.born + max(1, request.output - request.made)
