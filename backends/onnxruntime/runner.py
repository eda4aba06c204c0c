"""Run a planned model on ONNX Runtime: `python runner.py --prompt "..."`.

This file is copied as it is into an artefact directory and needs onnxruntime, numpy and tokenizers, nothing else. It
holds the cache and its books, the loop that reads prompts in chunks and decodes, and the chat around them.

The cache of a class of heads is a row of slots filled in any order: the graph gets the true positions, and how many
slots are filled. A class with a window has as many slots as it keeps tokens. Once they are full the newest token takes
the last slot, and what lay there takes the slot of the token that leaves the window. A prompt is read in chunks into
wider slots, whose surplus leaves after each chunk; what a token of the chunk may not see is hidden from it by a bias.
"""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, cast

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tokenizers import Tokenizer

onnxruntime.disable_telemetry_events()

Floats = NDArray[np.float32]
Tokens = Sequence[int]

HIDDEN = np.float32(-1e9)
"""What is added to the score of a slot that a token does not see."""


class ArtefactError(Exception):
    """The artefact cannot be used, or not for what was asked; the message says which part and why."""


# --- what kv.json says --------------------------------------------------------------------------


class GroupEntry(TypedDict):
    """What a group of classes keeps; `Group` says what the fields mean."""

    sinks: int
    alpha: int | None
    beta: float
    reach: int | None


class ClassEntry(TypedDict):
    """One class of heads of a layer: how many KV heads, in which group, at how many bits."""

    heads: int
    group: int
    bits: int
    head_dim: int


class KvLayout(TypedDict):
    """kv.json: the groups, the classes of every layer, and the longest context the model was made for."""

    max_positions: int
    vocab: int
    groups: list[GroupEntry]
    layers: list[list[ClassEntry]]


@dataclass(frozen=True)
class Group:
    """What classes of heads keep: the first `sinks` tokens and the newest alpha + beta * context others; alpha None is
    all of them. `reach` is the sliding window the layer was trained with, or None."""

    sinks: int
    alpha: int | None
    beta: float
    reach: int | None

    @property
    def windowed(self) -> bool:
        return self.alpha is not None or self.reach is not None

    def slots(self, context_tokens: int) -> tuple[int, int]:
        """(protected, other) slots for a context of this many tokens."""
        reach = context_tokens if self.reach is None else min(context_tokens, self.reach)
        sinks = min(self.sinks, reach) if self.reach is None else 0
        if self.alpha is None:
            return sinks, reach - sinks
        window = min(context_tokens, max(1, round(self.alpha + self.beta * context_tokens)))
        return sinks, min(window, reach - sinks)


# --- the cache ----------------------------------------------------------------------------------


class Slots:
    """One group's slots for a batch: which position lies in each, and where the next tokens go.

    at  [batch, capacity] int64: the position in each slot, -1 where it is empty
    """

    def __init__(self, sinks: int, window: int, batch: int, room: int = 0) -> None:
        self.sinks, self.window = sinks, window
        self.keeps = sinks + window
        self.at = np.full((batch, self.keeps + room), -1, np.int64)
        self.filled = np.zeros(batch, np.int64)

    def bias(self, row: int, positions: NDArray[np.int64]) -> Floats:
        """What a chunk's tokens see of the slots filled so far and of one another: [tokens, slots], 0 or HIDDEN."""
        at = np.concatenate([self.at[row, : self.filled[row]], positions])
        now = positions[:, None]
        sees = (at <= now) & ((at < self.sinks) | (at > now - self.window))
        return np.where(sees, np.float32(0), HIDDEN)

    def append(self, row: int, positions: NDArray[np.int64]) -> None:
        """The tokens that a step wrote behind the filled slots."""
        start = int(self.filled[row])
        self.at[row, start : start + len(positions)] = positions
        self.filled[row] = start + len(positions)

    def surplus(self, row: int) -> NDArray[np.int64] | None:
        """The slots to keep, in their order, where more tokens are held than the group keeps; else None."""
        held = int(self.filled[row])
        if held <= self.keeps:
            return None
        at = self.at[row, :held]
        newest = int(at.max())
        return np.flatnonzero((at < self.sinks) | (at > newest - self.window))

    def keep(self, row: int, kept: NDArray[np.int64]) -> None:
        """The kept slots were moved to the front."""
        self.at[row, : len(kept)], self.filled[row] = self.at[row, kept], len(kept)

    def make_room(self, row: int) -> int | None:
        """Free the last slot for one more token: the slot whose token leaves, to be taken by the last slot's."""
        if self.filled[row] < self.keeps:
            return None
        last = self.keeps - 1
        leaves = self.sinks + int(self.at[row, self.sinks : self.keeps].argmin())
        self.at[row, leaves] = self.at[row, last]
        self.filled[row] = last
        return leaves


WIDTHS: Mapping[int, type[np.generic]] = {32: np.float32, 8: np.int8, 4: np.uint8}


class Buffers:
    """The numbers in a group's slots: all classes of one shape in one array, so that one copy moves a slot of all.

    stacks  arrays [classes, 2 (k, v), batch, heads, capacity, width]
    """

    def __init__(self, layout: KvLayout, group: int, batch: int, capacity: int) -> None:
        kinds: dict[tuple[int, int, int], list[str]] = {}
        for index, layer in enumerate(layout["layers"]):
            for number, each in enumerate(layer):
                if each["group"] == group:
                    kinds.setdefault((each["bits"], each["heads"], each["head_dim"]), []).append(f"{index}.{number}")
        self.capacity = capacity
        self.stacks: list[NDArray[np.generic]] = []
        self.views: list[tuple[str, NDArray[np.generic]]] = []
        for (bits, heads, dim), names in kinds.items():
            width = dim // 2 if bits == 4 else dim
            stack = np.zeros((len(names), 2, batch, heads, capacity, width), WIDTHS[bits])
            self.stacks.append(stack)
            self.views += [
                (f"{name}.{part}", stack[i, j]) for i, name in enumerate(names) for j, part in enumerate("kv")
            ]

    @property
    def bytes(self) -> int:
        return sum(stack.nbytes for stack in self.stacks)

    def move(self, row: int, to: int, source: int) -> None:
        """Copy what lies in a slot into another."""
        for stack in self.stacks:
            stack[:, :, row, :, to] = stack[:, :, row, :, source]

    def compact(self, row: int, kept: NDArray[np.int64]) -> None:
        """Move the kept slots to the front."""
        for stack in self.stacks:
            stack[:, :, row, :, : len(kept)] = stack[:, :, row, :, kept].transpose(1, 2, 3, 0, 4)

    def read(self, row: int, filled: int) -> list[NDArray[np.generic]]:
        """A copy of a row's filled slots."""
        return [stack[:, :, row, :, :filled].copy() for stack in self.stacks]

    def write(self, row: int, parts: Sequence[NDArray[np.generic]], filled: int) -> None:
        """Fill a row's first slots."""
        for stack, part in zip(self.stacks, parts, strict=True):
            stack[:, :, row, :, :filled] = part[..., :filled, :]


@dataclass(frozen=True)
class Snapshot:
    """One sequence's cache, put aside: its tokens, and the positions and numbers of every group's filled slots."""

    tokens: tuple[int, ...]
    at: tuple[NDArray[np.int64], ...]
    parts: tuple[list[NDArray[np.generic]], ...]

    @property
    def bytes(self) -> int:
        return sum(part.nbytes for parts in self.parts for part in parts)


class Cache:
    """All layers' caches of a batch of sequences, each with the tokens it has seen."""

    def __init__(self, layout: KvLayout, batch: int, context_tokens: int) -> None:
        self.layout, self.batch, self.context_tokens = layout, batch, context_tokens
        self.groups = [Group(**each) for each in layout["groups"]]
        self.tokens: list[list[int]] = [[] for _ in range(batch)]
        self.slots = [Slots(*group.slots(context_tokens), batch) for group in self.groups]
        self.buffers = [Buffers(layout, number, batch, slots.keeps) for number, slots in enumerate(self.slots)]
        self.bindings: dict[int, Decoding] = {}

    @property
    def bytes(self) -> int:
        """Bytes of the arrays that hold the cache."""
        return sum(each.bytes for each in self.buffers)

    def clear(self, row: int) -> None:
        """Forget a row's sequence."""
        self.tokens[row] = []
        for slots in self.slots:
            slots.filled[row] = 0

    def save(self, row: int) -> Snapshot:
        """A copy of a row's sequence."""
        filled = [int(slots.filled[row]) for slots in self.slots]
        return Snapshot(
            tuple(self.tokens[row]),
            tuple(slots.at[row, :n].copy() for slots, n in zip(self.slots, filled, strict=True)),
            tuple(each.read(row, n) for each, n in zip(self.buffers, filled, strict=True)),
        )

    def restore(self, row: int, kept: Snapshot) -> None:
        """A row takes over a sequence; its cache must be made for the same windows."""
        for each, at in zip(self.buffers, kept.at, strict=True):
            if len(at) > each.capacity:
                raise ArtefactError(f"{len(at)} kept tokens do not fit a cache of {each.capacity} slots")
        self.tokens[row] = list(kept.tokens)
        for slots, each, at, parts in zip(self.slots, self.buffers, kept.at, kept.parts, strict=True):
            slots.at[row, : len(at)], slots.filled[row] = at, len(at)
            each.write(row, parts, len(at))

    def reusable(self, row: int, tokens: Tokens) -> int:
        """How many of the first tokens of a prompt a row's cache stands for already; what it holds beyond is dropped.

        A cache that evicted something can only go on from its end. One token at least is left to be read.
        """
        held = self.tokens[row]
        same = 0
        while same < min(len(held), len(tokens) - 1) and held[same] == tokens[same]:
            same += 1
        if same == len(held):
            return same
        if any(int(slots.filled[row]) < len(held) for slots in self.slots):
            self.clear(row)
            return 0
        self.tokens[row] = held[:same]
        for slots in self.slots:
            # Nothing was evicted yet, so slot and position are one and the same.
            slots.filled[row] = same
        return same


class Decoding:
    """The arrays of a decode step of the first `rows` rows, bound once and written in place."""

    def __init__(self, session: onnxruntime.InferenceSession, cache: Cache, rows: int) -> None:
        self.session, self.cache, self.rows = session, cache, rows
        self.ids, self.positions = np.zeros((rows, 1), np.int64), np.zeros((rows, 1), np.int64)
        self.filled = [np.zeros(rows, np.int32) for _ in cache.groups]
        self.counts = [np.zeros((), np.int32) for _ in cache.groups]
        self.logits = np.zeros((rows, 1, cache.layout["vocab"]), np.float32)
        self.binding = session.io_binding()
        self._bound = [-1] * len(cache.groups)
        _bind_in(self.binding, "ids", self.ids)
        _bind_in(self.binding, "positions", self.positions)
        _bind_in(self.binding, "keep", np.zeros(1, np.int64))
        for number in range(len(cache.groups)):
            _bind_in(self.binding, f"filled.{number}", self.filled[number])
            _bind_in(self.binding, f"slots.{number}", self.counts[number])
            _bind_cache(self.binding, cache.buffers[number], slice(0, rows))
        _bind_out(self.binding, "logits", self.logits)

    def run(self, tokens: Tokens) -> Floats:
        """Logits [rows, vocab] after one more token of each row."""
        cache = self.cache
        self.ids[:, 0] = tokens
        positions = np.array([len(cache.tokens[row]) for row in range(self.rows)], np.int64)
        self.positions[:, 0] = positions
        for number, (group, slots) in enumerate(zip(cache.groups, cache.slots, strict=True)):
            for row in range(self.rows):
                leaves = slots.make_room(row)
                if leaves is not None:
                    last = slots.keeps - 1
                    if leaves != last:
                        cache.buffers[number].move(row, leaves, last)
            self.filled[number][:] = slots.filled[: self.rows]
            seen = int(self.filled[number].max()) + 1
            self.counts[number][()] = seen
            if group.windowed and seen != self._bound[number]:
                _bind_in(self.binding, f"bias.{number}", np.zeros((self.rows, 1, 1, seen), np.float32))
                self._bound[number] = seen
        self.session.run_with_iobinding(self.binding)
        for row, token in enumerate(tokens):
            cache.tokens[row].append(int(token))
            for slots in cache.slots:
                slots.append(row, positions[row : row + 1])
        return self.logits[:, 0]


def _bind_in(binding: onnxruntime.IOBinding, name: str, value: NDArray[np.generic]) -> None:
    binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(value))


def _bind_out(binding: onnxruntime.IOBinding, name: str, value: NDArray[np.generic]) -> None:
    binding.bind_ortvalue_output(name, onnxruntime.OrtValue.ortvalue_from_numpy(value))


def _bind_cache(binding: onnxruntime.IOBinding, buffers: Buffers, rows: slice) -> None:
    for name, view in buffers.views:
        value = onnxruntime.OrtValue.ortvalue_from_numpy(view[rows])
        binding.bind_ortvalue_input(f"past.{name}", value)
        binding.bind_ortvalue_output(f"present.{name}", value)


# --- the model ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Where a group's part of a prompt is read into."""

    slots: Slots
    buffers: Buffers
    row: int


class PlannedModel:
    """A graph in a session, with the cache that kv.json (`layout`) lays out."""

    def __init__(self, session: onnxruntime.InferenceSession, layout: KvLayout, weight_bytes: int, kv_static: int):
        self.session, self.layout = session, layout
        self.weight_bytes, self.static_bytes = weight_bytes, kv_static

    def cache(self, batch: int, context_tokens: int) -> Cache:
        """Empty caches for sequences that together with what they generate reach `context_tokens`."""
        most = self.layout["max_positions"]
        if context_tokens > most:
            raise ArtefactError(f"a context of {context_tokens} tokens is more than the {most} this model was made for")
        return Cache(self.layout, batch, context_tokens)

    def read(self, cache: Cache, row: int, tokens: Tokens, chunk_tokens: int, first: int | None = None) -> Floats:
        """Read a prompt, or its rest, into a row of the cache; logits [kept, vocab] of its tokens from `first` on, of
        its last one where that is None."""
        if not len(tokens):
            raise ArtefactError("a prompt has no tokens; give at least one")
        if chunk_tokens < 1:
            raise ArtefactError(f"chunks of {chunk_tokens} tokens; give at least 1")
        self._check(tokens)
        start = len(cache.tokens[row])
        if start + len(tokens) > cache.context_tokens:
            raise ArtefactError(f"{start + len(tokens)} tokens do not fit a cache made for {cache.context_tokens}")
        first = len(tokens) - 1 if first is None else first
        places = [self._place(cache, number, row, len(tokens), chunk_tokens) for number in range(len(cache.groups))]
        kept = []
        for at in range(0, len(tokens), chunk_tokens):
            chunk = tokens[at : at + chunk_tokens]
            keep = np.arange(max(first - at, 0), len(chunk), dtype=np.int64)
            logits = self._chunk(cache.groups, places, start + at, chunk, keep)
            if len(keep):
                kept.append(logits[0])
        for place, slots, buffers in zip(places, cache.slots, cache.buffers, strict=True):
            if place.slots is not slots:
                filled = int(place.slots.filled[0])
                slots.at[row, :filled], slots.filled[row] = place.slots.at[0, :filled], filled
                buffers.write(row, place.buffers.read(0, filled), filled)
        cache.tokens[row] += [int(token) for token in tokens]
        return kept[0] if len(kept) == 1 else np.concatenate(kept)

    def _check(self, tokens: Tokens) -> None:
        """ArtefactError for a token that the model does not have; the graph takes one below 0 for another."""
        for token in (min(tokens), max(tokens)):
            if not 0 <= token < self.layout["vocab"]:
                raise ArtefactError(f"found token {token}; this model has {self.layout['vocab']}, counted from 0")

    @staticmethod
    def _place(cache: Cache, number: int, row: int, tokens: int, chunk_tokens: int) -> "Place":
        """Where a group's part of a prompt is read: the row's own slots, or a copy with room for a chunk where its
        window would run over."""
        slots, buffers = cache.slots[number], cache.buffers[number]
        filled = int(slots.filled[row])
        if filled + tokens <= slots.keeps:
            return Place(slots, buffers, row)
        wide = Slots(slots.sinks, slots.window, 1, min(tokens, chunk_tokens))
        wide.at[0, :filled], wide.filled[0] = slots.at[row, :filled], filled
        into = Buffers(cache.layout, number, 1, wide.at.shape[1])
        into.write(0, buffers.read(row, filled), filled)
        return Place(wide, into, 0)

    def _chunk(
        self, groups: Sequence[Group], places: Sequence["Place"], start: int, tokens: Tokens, keep: NDArray[np.int64]
    ) -> Floats:
        """One chunk of a prompt through the graph: logits [1, kept, vocab]."""
        positions = np.arange(start, start + len(tokens), dtype=np.int64)
        binding = self.session.io_binding()
        _bind_in(binding, "ids", np.array([list(tokens)], np.int64))
        _bind_in(binding, "positions", positions[None])
        _bind_in(binding, "keep", keep)
        for number, (group, place) in enumerate(zip(groups, places, strict=True)):
            seen = int(place.slots.filled[place.row]) + len(tokens)
            _bind_in(binding, f"filled.{number}", np.array([seen - 1], np.int32))
            _bind_in(binding, f"slots.{number}", np.array(seen, np.int32))
            if group.windowed:
                _bind_in(binding, f"bias.{number}", place.slots.bias(place.row, positions)[None, None])
            _bind_cache(binding, place.buffers, slice(place.row, place.row + 1))
        logits = np.empty((1, len(keep), self.layout["vocab"]), np.float32)
        _bind_out(binding, "logits", logits)
        self.session.run_with_iobinding(binding)
        for place in places:
            place.slots.append(place.row, positions)
            kept = place.slots.surplus(place.row)
            if kept is not None:
                place.buffers.compact(place.row, kept)
                place.slots.keep(place.row, kept)
        return logits

    def step(self, cache: Cache, tokens: Tokens) -> Floats:
        """Logits [rows, vocab] after one more token of each of the first rows. What it returns is written over by the
        next step."""
        self._check(tokens)
        rows = len(tokens)
        if rows > cache.batch:
            raise ArtefactError(f"{rows} tokens for a cache of {cache.batch} sequences; give one for each")
        longest = max(len(cache.tokens[row]) for row in range(rows)) + 1
        if longest > cache.context_tokens:
            raise ArtefactError(f"{longest} tokens do not fit a cache made for {cache.context_tokens}")
        if rows not in cache.bindings:
            cache.bindings[rows] = Decoding(self.session, cache, rows)
        return cache.bindings[rows].run(tokens)

    def generate(
        self,
        cache: Cache,
        logits: Floats,
        new_tokens: int,
        stop: frozenset[int] = frozenset(),
        pick: Callable[[Floats], NDArray[np.int64]] = lambda logits: logits.argmax(-1),
    ) -> Iterator[list[int]]:
        """Tokens of all rows, step by step, from the logits [rows, vocab] after their prompts, until all stopped."""
        stopped = np.zeros(len(logits), bool)
        for i in range(new_tokens):
            tokens = [int(t) for t in pick(logits)]
            yield tokens
            stopped |= np.isin(tokens, list(stop))
            if stopped.all() or i == new_tokens - 1:
                return
            logits = self.step(cache, tokens)


# --- the artefact directory ---------------------------------------------------------------------

GRAPH, GRAPH_DATA, KV, CHAT, TOKENIZER = "model.onnx", "model.onnx.data", "kv.json", "chat.json", "tokenizer.json"


def checked(directory: Path) -> dict[str, object]:
    """The manifest of an artefact, after every file it lists was found to have the sha256 it lists."""
    path = directory / "manifest.json"
    if not path.is_file():
        raise ArtefactError(f"{path}: not found; give a directory that planner compile wrote")
    try:
        manifest: dict[str, object] = json.loads(path.read_text())
        files = dict(cast(dict[str, str], manifest["files"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ArtefactError(f"{path}: is not a manifest ({error}); compile again") from error
    for name in (GRAPH, GRAPH_DATA, KV, CHAT, TOKENIZER):
        if name not in files:
            raise ArtefactError(f"{path}: does not list {name}; compile again")
    for name, wanted in files.items():
        file = directory / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ArtefactError(f"{path}: lists {name}, which lies outside the artefact")
        if not file.is_file():
            raise ArtefactError(f"{file}: is missing; compile again")
        with file.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != wanted:
                raise ArtefactError(f"{file}: differs from the sha256 in manifest.json; compile again")
    return manifest


def options(threads: int = 0) -> onnxruntime.SessionOptions:
    """How sessions run: with so many threads (0: one a core), telling errors alone."""
    chosen = onnxruntime.SessionOptions()
    chosen.intra_op_num_threads = threads
    chosen.log_severity_level = 3
    return chosen


def load(directory: Path, threads: int = 0) -> PlannedModel:
    """The model of an artefact directory, checked."""
    checked(directory)
    found = json.loads((directory / KV).read_text())
    session = onnxruntime.InferenceSession(str(directory / GRAPH), options(threads), providers=["CPUExecutionProvider"])
    return PlannedModel(session, found["layout"], found["weight_bytes"], found["static_bytes"])


# --- chat ---------------------------------------------------------------------------------------

UNFINISHED = "\ufffd"
"""What a decoder puts where the bytes of a character are not all there."""


class Speech:
    """Text as its tokens come: a character that spans tokens waits for its last one, what may become a stop text waits
    until it has or has not, and from a stop text on nothing is told.

    >>> letters = lambda tokens: "".join(map(chr, tokens))
    >>> speech = Speech(letters, ("END",))
    >>> [speech.more(ord(letter)) for letter in "nEE-END!"], speech.stopped
    (['n', '', 'E', 'E-', '', '', '', ''], True)
    >>> speech.rest()
    ''
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = ()) -> None:
        self.stopped = False
        self._decode, self._stop = decode, tuple(stop)
        self._tokens: list[int] = []
        # Decoded from `_from`, a little before what was told, for a decoder may treat the first token apart.
        self._from = self._told = 0
        self._held = ""

    def more(self, token: int) -> str:
        """What can be told after one more token."""
        if self.stopped:
            return ""
        self._tokens.append(token)
        before, now = self._decode(self._tokens[self._from : self._told]), self._decode(self._tokens[self._from :])
        if now.endswith(UNFINISHED):
            return ""
        self._from, self._told = self._told, len(self._tokens)
        return self._tell(now[len(before) :])

    def rest(self) -> str:
        """What was waiting, at the end of the reply."""
        if self.stopped:
            return ""
        before, now = self._decode(self._tokens[self._from : self._told]), self._decode(self._tokens[self._from :])
        told = self._tell(now[len(before) :])
        if not self.stopped:
            told, self._held = told + self._held, ""
        self._from = self._told = len(self._tokens)
        return told

    def _tell(self, text: str) -> str:
        self._held += text
        found = [at for at in map(self._held.find, self._stop) if at >= 0]
        if found:
            told, self._held, self.stopped = self._held[: min(found)], "", True
            return told
        waits = max((_begun(self._held, stop) for stop in self._stop), default=0)
        told = self._held[: len(self._held) - waits]
        self._held = self._held[len(told) :]
        return told


def _begun(text: str, stop: str) -> int:
    """How many of the last characters of a text may be the beginning of a stop text.

    >>> _begun("the EN", "END"), _begun("the END of", "END")
    (2, 0)
    """
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


class Template(TypedDict):
    """chat.json: what stands around the messages of a conversation, and which tokens end a reply.

    A conversation is before[role] + message + after[role] for each message, then `reply`. `default_system` is put first
    where a conversation does not begin with a system message. Messages of `stripped` roles lose the blanks around them.
    """

    before: dict[str, str]
    after: dict[str, str]
    stripped: list[str]
    default_system: str
    reply: str


def rendered(template: Template, messages: Sequence[Mapping[str, str]], reply: bool) -> str:
    """A conversation as the text that the model was trained to read."""
    text = "" if messages and messages[0]["role"] == "system" else template["default_system"]
    for message in messages:
        role = message["role"]
        if role not in template["before"]:
            raise ArtefactError(f"role: found {role!r}; this model knows {', '.join(template['before'])}")
        content = message["content"].strip() if role in template["stripped"] else message["content"]
        text += template["before"][role] + content + template["after"][role]
    return text + template["reply"] if reply else text


class Chat:
    """A tokenizer and the template of conversations."""

    def __init__(self, tokenizer: Tokenizer, template: Template | None, stop: Sequence[int]) -> None:
        self.tokenizer, self.template, self.stop = tokenizer, template, frozenset(stop)

    @classmethod
    def of(cls, directory: Path) -> "Chat":
        found = json.loads((directory / CHAT).read_text())
        return cls(Tokenizer.from_file(str(directory / TOKENIZER)), found["template"], found["stop"])

    def prompt(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """The tokens of a conversation that asks for a reply."""
        if self.template is None:
            raise ArtefactError("this model has no chat template that this runner can follow; give a raw prompt")
        text = rendered(self.template, messages, True)
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def ask(self, text: str, raw: bool = False) -> list[int]:
        """The tokens of one message of a user; of the text as it is where that is wanted, or no template is known."""
        return self.raw(text) if raw or self.template is None else self.prompt([{"role": "user", "content": text}])

    def raw(self, text: str) -> list[int]:
        """The tokens of a text as it is."""
        return list(self.tokenizer.encode(text).ids)

    def pieces(self, tokens: Iterator[int]) -> Iterator[str]:
        """The text of tokens as they come, up to one that ends a reply; half a character at the end is left out."""
        speech = Speech(self.tokenizer.decode)
        for token in tokens:
            if token in self.stop:
                break
            if text := speech.more(token):
                yield text
        if rest := speech.rest().rstrip(UNFINISHED):
            yield rest


def answer(
    model: PlannedModel, chat: Chat, cache: Cache, prompt: Tokens, new_tokens: int, chunk_tokens: int
) -> Iterator[str]:
    """The greedy reply to a prompt, in pieces as they are decoded; what the cache holds of it is not read again.

    A reply that reaches the end of the cache ends there.
    """
    new_tokens = min(new_tokens, max(cache.context_tokens - len(prompt), 1))
    done = cache.reusable(0, prompt)
    logits = model.read(cache, 0, prompt[done:], chunk_tokens)
    tokens = (step[0] for step in model.generate(cache, logits, new_tokens, chat.stop))
    return chat.pieces(tokens)


def converse(model: PlannedModel, chat: Chat, context_tokens: int, new_tokens: int, chunk_tokens: int) -> None:
    """A conversation on standard input and output; each turn goes on with the cache of the turns before."""
    cache, messages = model.cache(1, context_tokens), list[dict[str, str]]()
    for line in sys.stdin:
        messages.append({"role": "user", "content": line.rstrip("\n")})
        said = ""
        for piece in answer(model, chat, cache, chat.prompt(messages), new_tokens, chunk_tokens):
            print(piece, end="", flush=True)
            said += piece
        print(flush=True)
        messages.append({"role": "assistant", "content": said})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", help="one prompt; without it, a conversation: one message a line of standard input")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--chunk-tokens", type=int, default=256)
    parser.add_argument("--threads", type=int, default=0, help="0: one a core")
    parser.add_argument("--raw", action="store_true", help="do not wrap the prompt in the chat template")
    asked = parser.parse_args()
    here = Path(__file__).resolve().parent
    try:
        model, chat = load(here, asked.threads), Chat.of(here)
        if asked.prompt is None:
            converse(model, chat, model.layout["max_positions"], asked.max_new_tokens, asked.chunk_tokens)
            return 0
        prompt = chat.ask(asked.prompt, asked.raw)
        cache = model.cache(1, min(len(prompt) + asked.max_new_tokens, model.layout["max_positions"]))
        start = time.perf_counter()
        count = 0
        for piece in answer(model, chat, cache, prompt, asked.max_new_tokens, asked.chunk_tokens):
            print(piece, end="", flush=True)
            count += 1
        print(f"\n[{len(prompt)} tokens read, {count} pieces in {time.perf_counter() - start:.1f} s]", file=sys.stderr)
    except ArtefactError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
