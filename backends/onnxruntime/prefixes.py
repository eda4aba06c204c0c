"""Caches put aside after prompts and replies, so that what a new prompt shares with them is not read again."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from backends.onnxruntime.runner import Snapshot


@dataclass(frozen=True)
class Kept:
    """A sequence's cache, and where its last token was just read, the logits [vocab] after it."""

    snapshot: Snapshot
    logits: NDArray[np.float32] | None

    @property
    def whole(self) -> bool:
        """Whether nothing was evicted: then its first tokens alone are of use too."""
        return all(len(at) == len(self.snapshot.tokens) for at in self.snapshot.at)

    @property
    def bytes(self) -> int:
        return self.snapshot.bytes + (0 if self.logits is None else self.logits.nbytes)

    def usable(self, prompt: Sequence[int]) -> int:
        """How many of a prompt's first tokens this saves reading. Without logits, the last must be read for them."""
        tokens = self.snapshot.tokens
        same = common(tokens, prompt)
        if same == len(tokens) == len(prompt) and self.logits is not None:
            return same
        if same == len(tokens) < len(prompt):
            return same
        return min(same, len(prompt) - 1) if self.whole else 0

    def first(self, count: int) -> Snapshot:
        """The cache of the first tokens, without copying what is left out."""
        if count == len(self.snapshot.tokens):
            return self.snapshot
        # Nothing was evicted, so slot and position are one and the same.
        return Snapshot(
            self.snapshot.tokens[:count],
            tuple(at[:count] for at in self.snapshot.at),
            tuple([part[..., :count, :] for part in parts] for parts in self.snapshot.parts),
        )


class Prefixes:
    """What was put aside, within `limit_bytes`; what was not used for longest leaves first."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes, self.bytes = limit_bytes, 0
        self._kept: OrderedDict[tuple[int, ...], Kept] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def longest(self, prompt: Sequence[int]) -> tuple[Kept, int] | None:
        """What saves most of a prompt, and how many tokens of it."""
        found = max(self._kept.values(), key=lambda kept: kept.usable(prompt), default=None)
        if found is None or not (count := found.usable(prompt)):
            return None
        self._kept.move_to_end(found.snapshot.tokens)
        return found, count

    def holds(self, tokens: Sequence[int]) -> bool:
        """Whether keeping this sequence would add nothing."""
        return tuple(tokens) in self._kept

    def keep(self, kept: Kept) -> None:
        """Put a cache aside, in place of those that it makes superfluous."""
        tokens = kept.snapshot.tokens
        if kept.whole:
            for other in [each for each in self._kept if tokens[: len(each)] == each]:
                self._drop(other)
        elif tokens in self._kept:
            self._drop(tokens)
        self._kept[tokens] = kept
        self.bytes += kept.bytes
        while self.bytes > self.limit_bytes:
            self._drop(next(iter(self._kept)))

    def _drop(self, tokens: tuple[int, ...]) -> None:
        self.bytes -= self._kept.pop(tokens).bytes


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many first tokens two sequences share.

    >>> common((1, 2, 3), (1, 2, 4)), common((1, 2), (1, 2, 4))
    (2, 2)
    """
    shorter = min(len(a), len(b))
    differ = np.flatnonzero(np.asarray(a[:shorter]) != np.asarray(b[:shorter]))
    return int(differ[0]) if len(differ) else shorter
