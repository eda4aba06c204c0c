"""Pages for ragged budgets: a free list, and a page table of its own for every KV head of every sequence.

A head that keeps a window never takes more pages than its ring, one that keeps everything takes a page as it fills;
what a sequence may come to need is set aside when it is admitted, so that no step fails half way. Pages that a head
gives up are free at once. The tables are what `decode_attention` and `kv_append` read and write through.
"""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


class PagesError(Exception):
    """What was asked of the pages cannot be; the message says what was found and what would do."""


@dataclass(frozen=True, slots=True)
class Head:
    """One KV head's cache: protected slots, and the most other slots it may fill (its ring, or the whole context)."""

    sinks: int
    slots: int

    def filled(self, tokens: int, gone: int) -> int:
        """Slots that hold something when so many tokens were seen and so many slots given up."""
        return min(max(tokens - self.sinks - gone, 0), self.slots)


@dataclass(slots=True)
class _Held:
    heads: tuple[Head, ...]
    tables: list[list[int]]
    gone: list[int]
    tokens: int = 0


@dataclass
class Pages:
    """A pool of `count` pages of `page` slots, and who has them.

    >>> pages = Pages(count=4, page=16)
    >>> pages.admit("a", (Head(sinks=0, slots=32), Head(sinks=4, slots=16)))
    >>> pages.grow("a", 20)
    >>> pages.tables(["a"])[0].tolist(), pages.free
    ([0, 1, 2], 1)
    >>> pages.fits((Head(0, 32),))
    False
    >>> pages.release("a")
    >>> pages.free
    4
    """

    count: int
    page: int
    _free: list[int] = field(init=False)
    _held: dict[Hashable, _Held] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        if self.count < 1 or self.page < 1:
            raise PagesError(f"found {self.count} pages of {self.page} slots; both need to be 1 or more")
        self._free = list(range(self.count))[::-1]

    @property
    def free(self) -> int:
        """Pages that no head has."""
        return len(self._free)

    @property
    def set_aside(self) -> int:
        """Free pages that admitted sequences may still come to need."""
        return sum(self._needed(h.heads) - sum(map(len, h.tables)) for h in self._held.values())

    def _needed(self, heads: Iterable[Head]) -> int:
        return sum(-(-head.slots // self.page) for head in heads)

    def fits(self, heads: Sequence[Head]) -> bool:
        """Whether a sequence with these heads could fill them all beside those that were admitted."""
        return self._needed(heads) <= self.free - self.set_aside

    def admit(self, key: Hashable, heads: Sequence[Head]) -> None:
        """Take a sequence in, with no tokens yet; PagesError where its heads might not get all they may need."""
        if key in self._held:
            raise PagesError(f"sequence {key!r} was admitted before; release it first")
        if not self.fits(heads):
            left = self.free - self.set_aside
            raise PagesError(f"sequence {key!r} may need {self._needed(heads)} pages and {left} are not set aside")
        self._held[key] = _Held(tuple(heads), [[] for _ in heads], [0] * len(heads))

    def grow(self, key: Hashable, tokens: int) -> None:
        """Give every head of a sequence the pages for what it keeps of so many tokens in all."""
        held = self._of(key)
        if tokens < held.tokens:
            raise PagesError(f"sequence {key!r} has {held.tokens} tokens; found {tokens}, needs as many or more")
        wanted = [-(-head.filled(tokens, gone) // self.page) for head, gone in zip(held.heads, held.gone, strict=True)]
        for table, pages in zip(held.tables, wanted, strict=True):
            while len(table) < pages:
                table.append(self._free.pop())
        held.tokens = tokens

    def keep(self, key: Hashable, head: int, slots: int) -> int:
        """Say that a head was compacted to its first `slots` slots; pages past them are free. How many became so."""
        held = self._of(key)
        had = held.heads[head].filled(held.tokens, held.gone[head])
        if not 0 <= slots <= had:
            raise PagesError(f"sequence {key!r}: head {head} has {had} slots; found {slots} to keep")
        if held.tokens - held.heads[head].sinks > held.heads[head].slots:
            raise PagesError(f"sequence {key!r}: head {head} is a ring that has wrapped, whose order is not its age")
        held.gone[head] += had - slots
        table, pages = held.tables[head], -(-slots // self.page)
        given = table[pages:]
        del table[pages:]
        self._free += given[::-1]
        return len(given)

    def release(self, key: Hashable) -> None:
        """Forget a sequence; all its pages are free."""
        held = self._of(key)
        del self._held[key]
        for table in held.tables[::-1]:
            self._free += table[::-1]

    def tables(self, keys: Sequence[Hashable]) -> tuple[Tensor, Tensor]:
        """All page tables of some sequences end to end, int32, and where each (sequence, head) pair's begins."""
        each = [table for key in keys for table in self._of(key).tables]
        starts = torch.tensor([0, *map(len, each)]).cumsum(0)[:-1]
        return torch.tensor([page for table in each for page in table], dtype=torch.int32), starts

    def filled(self, keys: Sequence[Hashable]) -> tuple[Tensor, Tensor]:
        """Filled protected slots, and other slots, of each (sequence, head) pair."""
        sinks, slots = [], []
        for held in map(self._of, keys):
            for head, gone in zip(held.heads, held.gone, strict=True):
                sinks.append(min(held.tokens, head.sinks))
                slots.append(head.filled(held.tokens, gone))
        return torch.tensor(sinks), torch.tensor(slots)

    def gone(self, keys: Sequence[Hashable]) -> Tensor:
        """Slots that each (sequence, head) pair gave up, as a region of `kv_append` has them."""
        return torch.tensor([gone for key in keys for gone in self._of(key).gone])

    def _of(self, key: Hashable) -> _Held:
        if key not in self._held:
            raise PagesError(f"sequence {key!r} was not admitted")
        return self._held[key]
