"""Pages for ragged budgets: nothing is given twice, nothing is lost, and what was admitted never runs out."""

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from backends.kernels.paged import Head, Pages, PagesError
from tests.backends.interpreted import told

HEADS = st.lists(st.builds(Head, sinks=st.integers(0, 20), slots=st.integers(1, 90)), min_size=1, max_size=4)


class Sequences(RuleBasedStateMachine):
    """Sequences come, grow, are compacted and go, in any order."""

    running = Bundle("running")

    def __init__(self) -> None:
        super().__init__()
        self.pages = Pages(count=40, page=16)
        self.heads: dict[int, list[Head]] = {}
        self.tokens: dict[int, int] = {}
        self.made = 0

    @rule(target=running, heads=HEADS)
    def admit(self, heads: list[Head]) -> int:
        self.made += 1
        if self.pages.fits(heads):
            self.pages.admit(self.made, heads)
            self.heads[self.made], self.tokens[self.made] = heads, 0
        else:
            with pytest.raises(PagesError, match="may need"):
                self.pages.admit(self.made, heads)
        return self.made

    @rule(sequence=running, more=st.integers(0, 70))
    def grow(self, sequence: int, more: int) -> None:
        if sequence in self.heads:
            self.tokens[sequence] += more
            self.pages.grow(sequence, self.tokens[sequence])

    @rule(sequence=running, head=st.integers(0, 3), share=st.floats(0, 1))
    def compact(self, sequence: int, head: int, share: float) -> None:
        kept = self.heads.get(sequence, [])
        if head < len(kept) and self.tokens[sequence] - kept[head].sinks <= kept[head].slots:
            had = int(self.pages.filled([sequence])[1][head])
            free = self.pages.free
            given = self.pages.keep(sequence, head, int(had * share))
            assert self.pages.free == free + given
            assert int(self.pages.filled([sequence])[1][head]) == int(had * share)

    @rule(sequence=consumes(running))
    def release(self, sequence: int) -> None:
        if sequence in self.heads:
            held = len(self.pages.tables([sequence])[0])
            free = self.pages.free
            self.pages.release(sequence)
            assert self.pages.free == free + held
            del self.heads[sequence], self.tokens[sequence]

    @invariant()
    def every_page_is_free_or_in_one_table(self) -> None:
        table, _ = self.pages.tables(list(self.heads))
        assert len(set(table.tolist())) == len(table) == self.pages.count - self.pages.free
        assert 0 <= self.pages.set_aside <= self.pages.free

    @invariant()
    def tables_have_the_pages_for_what_is_filled(self) -> None:
        keys = list(self.heads)
        table, starts = self.pages.tables(keys)
        _, slots = self.pages.filled(keys)
        sizes = torch.cat([starts, torch.tensor([len(table)])]).diff()
        assert torch.equal(sizes, -(-slots // 16))


TestSequences = Sequences.TestCase
TestSequences.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)


def test_a_ring_never_takes_more_than_its_slots() -> None:
    pages = Pages(8, 16)
    pages.admit("a", [Head(4, 32), Head(0, 90)])
    for tokens in range(0, 91, 10):
        pages.grow("a", tokens)
    assert len(pages.tables(["a"])[0]) == 2 + 6


def test_what_cannot_be_is_refused() -> None:
    pages = Pages(4, 16)
    pages.admit("a", [Head(0, 32)])
    pages.grow("a", 40)
    refused = {
        "was admitted before": lambda: pages.admit("a", []),
        "are not set aside": lambda: pages.admit("b", [Head(0, 33)]),
        "was not admitted": lambda: pages.release("b"),
        "as many or more": lambda: pages.grow("a", 39),
        "to keep": lambda: pages.keep("a", 0, 33),
        "that has wrapped": lambda: pages.keep("a", 0, 16),
    }
    for reason, act in refused.items():
        with pytest.raises(PagesError, match=reason):
            act()
    with pytest.raises(PagesError, match="1 or more"):
        Pages(0, 16)


TURNS = """
import json, torch
from dataclasses import replace
from backends.kernels import kv_append as ka, decode_attention as da
from backends.kernels.paged import Head, Pages
from backends.kernels.ragged import schedule
from backends.kernels.rotated import Stored, empty

heads, dim, cpu = (Head(0, 64), Head(0, 20)), 64, torch.device("cpu")
pages = Pages(count=24, page=8)
generator = torch.Generator().manual_seed(0)
def stored():
    low, _, norms = empty(4, 24 * 8, dim, cpu, torch.float16)
    zero, one = torch.zeros(2, dim), torch.ones(2, dim)
    return Stored(4, low, None, norms, torch.zeros(1, dim, dtype=torch.float16), zero, one)
k_store, v_store = stored(), replace(stored(), mean=None)
pages.admit("a", heads)
pages.admit("b", heads)
seen = {"a": 0, "b": 0}
history = {"a": [], "b": []}
def write(keys, tokens):
    k, v = (torch.randn(len(keys), 2, tokens, dim, generator=generator) for _ in range(2))
    for key in keys:
        pages.grow(key, seen[key] + tokens)
    table, starts = pages.tables(keys)
    gone = pages.gone(keys)
    regions = torch.tensor([[int(starts[i]), heads[i % 2].slots, 0, 0, i % 2, i % 2, int(gone[i]), 0]
                            for i in range(2 * len(keys))], dtype=torch.int32)
    before = torch.tensor([seen[key] for key in keys], dtype=torch.int32)
    counts = torch.full((len(keys),), tokens, dtype=torch.int32)
    ka.kv_append(k, v, k_store, v_store, regions, before, counts, False, None, table, 8)
    for i, key in enumerate(keys):
        seen[key] += tokens
        history[key] += [(k[i, :, t], v[i, :, t]) for t in range(tokens)]
write(["a", "b"], 19)      # pages of both are interleaved
pages.keep("a", 0, 9)      # its first nine tokens stay, their pages do not move
write(["a"], 6)
write(["b"], 14)           # the ring of 20 wraps
pages.release("b"); pages.admit("b", heads); seen["b"] = 0; history["b"] = []
write(["b"], 11)           # into pages that another sequence had
keys = ["a", "b"]
table, starts = pages.tables(keys)
sinks, slots = pages.filled(keys)
none = torch.zeros_like(slots)
work = schedule(sinks, slots, starts, none, torch.tensor([0, 1, 0, 1]), 0, 2)
q = torch.randn(4, 3, dim, generator=generator).half()
got = da.decode_attention(q, k_store, v_store, work, dim**-0.5, 0, table, 8)
kept = [history["a"][:9] + history["a"][19:], history["a"][-20:], history["b"], history["b"]]
errors = []
for pair, tokens in enumerate(kept):
    keys_, values = (torch.stack([t[part][pair % 2] for t in tokens]).double() for part in (0, 1))
    wanted = (q[pair].double() @ keys_.T * dim**-0.5).softmax(-1) @ values
    errors.append(float((got[pair].double() - wanted).norm() / wanted.norm()))
print(json.dumps([errors, slots.tolist()]))
"""


def test_attention_sees_what_was_written_through_page_tables() -> None:
    """Against the tokens themselves, which 4-bit codes keep to a tenth."""
    errors, slots = told(TURNS)
    assert slots == [15, 20, 11, 11]
    assert max(errors) < 0.25
