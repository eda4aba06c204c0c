"""Many conversations at once give what each gives alone, whatever is kept, cancelled, stopped or refused."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from backends.onnxruntime.engine import BatchEngine, Limits
from backends.onnxruntime.prefixes import Kept, Prefixes
from backends.onnxruntime.runner import Snapshot, Speech
from backends.onnxruntime.sampling import Sampler, nucleus
from planner.errors import InputError, TamperedArtifact
from planner.serving.engine import Busy, Refused, Sampling, Stopped
from tests.backends.oracle import tokens_of
from tests.backends.served import CONTEXT, LEAD, alone, ask, engine, reply, write_artefact

LENGTHS = (3, 17, 150, 40, 1, 90, 33, 64)
NEW = 40
LONG, ROOM = 1500, 2000
"""Tokens of a reply that is still running whenever a test gets round to it, and a context for it."""


@pytest.fixture(scope="module")
def out(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_artefact(tiny_llama, tmp_path_factory.mktemp("served") / "out")


@pytest.fixture
def eight(out: Path) -> Iterator[BatchEngine]:
    with engine(out) as opened:
        yield opened


def prompts() -> list[list[int]]:
    return [tokens_of(length, seed=length) for length in LENGTHS]


@pytest.fixture(scope="module")
def by_themselves(out: Path) -> list[tuple[int, ...]]:
    """Every prompt's reply from the runner alone; all were drawn with leads that rounding cannot undo."""
    replies = [alone(out, prompt, NEW - i) for i, prompt in enumerate(prompts())]
    assert min(lead for _, lead in replies) > LEAD
    return [tokens for tokens, _ in replies]


@pytest.mark.parametrize("sessions", [1, 3, 8])
@pytest.mark.parametrize("prefix_bytes", [0, 2**24])
def test_a_crowd_gets_what_each_gets_alone(
    out: Path, by_themselves: list[tuple[int, ...]], sessions: int, prefix_bytes: int
) -> None:
    """Replies of unequal lengths, so that rows are vacated and taken over while others run and wait."""
    with engine(out, sessions=sessions, prefix_bytes=prefix_bytes) as crowded:
        for _ in range(2):
            listeners = [ask(crowded, prompt, NEW - i)[0] for i, prompt in enumerate(prompts())]
            assert [listener.wait().tokens for listener in listeners] == by_themselves


@pytest.mark.parametrize("chunk_tokens", [1, 7, 512])
def test_chunks_change_nothing(out: Path, by_themselves: list[tuple[int, ...]], chunk_tokens: int) -> None:
    with engine(out, chunk_tokens=chunk_tokens) as chunked:
        listeners = [ask(chunked, prompt, NEW - i)[0] for i, prompt in enumerate(prompts())]
        assert [listener.wait().tokens for listener in listeners] == by_themselves


@pytest.mark.parametrize("length", [5, 120])
def test_what_was_read_before_is_not_read_again_and_changes_nothing(out: Path, length: int) -> None:
    """The same prompt, its next turn, and one that begins alike; before anything is evicted and long after."""
    prompt = tokens_of(length)
    with engine(out) as keeps, engine(out, prefix_bytes=0) as forgets:
        first = reply(keeps, prompt, 8)
        turn = [*prompt, *first.tokens, *tokens_of(6, seed=1)]
        fork = [*prompt[: length // 2], *tokens_of(9, seed=2)]
        for asked, reused in ((prompt, length), (turn, length + 7), (fork, length // 2 if length < 16 else 0)):
            again, anew = reply(keeps, asked, 8), reply(forgets, asked, 8)
            assert again.tokens == anew.tokens
            assert anew.reused_tokens == 0
            # Where nothing was evicted the reply's cache stands in for the prompt's, whose last token is read again.
            assert reused - 1 <= again.reused_tokens <= reused


def test_a_long_prompt_holds_up_nobody_for_longer_than_a_chunk(out: Path) -> None:
    """Whoever speaks gets a token for each chunk of it that is read."""
    with engine(out, chunk_tokens=4, context_tokens=ROOM) as chunked:
        speaker, ticket = ask(chunked, tokens_of(3), LONG)
        speaker.wait_for_words()
        # A token may wait for the rest of its character, so pieces are fewer than tokens.
        before = len(speaker.told)
        listener, _ = ask(chunked, tokens_of(400), 1)
        listener.wait()
        assert len(speaker.told) - before > 400 / 4 / 3
        ticket.cancel()
        assert speaker.wait().reason == "cancelled"


def test_who_hangs_up_frees_the_row_and_disturbs_nobody(out: Path) -> None:
    first, lead = alone(out, prompts()[0], NEW, ROOM)
    assert lead > LEAD
    with engine(out, sessions=3, context_tokens=ROOM) as small:
        staying, _ = ask(small, prompts()[0], NEW)
        leaving, ticket = ask(small, prompts()[1], LONG)
        unread, unread_ticket = ask(small, prompts()[2], 50)
        queued, queued_ticket = ask(small, prompts()[3], 50)
        leaving.wait_for_words()
        for each in (ticket, unread_ticket, queued_ticket):
            each.cancel()
        assert [listener.wait().reason for listener in (leaving, unread, queued)] == ["cancelled"] * 3
        assert staying.wait().tokens == first
        assert len(leaving.wait().tokens) < LONG
        load = small.load()
        assert (load.running, load.waiting) == (0, 0)
        assert reply(small, prompts()[0], NEW).tokens == first


def test_more_than_may_wait_are_turned_away(out: Path) -> None:
    with engine(out, sessions=1, waiting=2, context_tokens=ROOM) as small:
        taken = [ask(small, tokens_of(3), LONG) for _ in range(3)]
        with pytest.raises(Busy, match="try again later"):
            ask(small, tokens_of(3), 1)
        for _, ticket in taken:
            ticket.cancel()
        for listener, _ in taken:
            listener.wait()
        assert reply(small, tokens_of(3), 2).reason == "length"


def test_stopping_ends_everyone_and_takes_no_more(out: Path) -> None:
    with engine(out, sessions=1, context_tokens=ROOM) as opened:
        speaking, _ = ask(opened, tokens_of(3), LONG)
        waiting, _ = ask(opened, tokens_of(3), LONG)
        speaking.wait_for_words()
        opened.stop()
        for listener in (speaking, waiting):
            assert (listener.wait().reason, listener.wait().problem) == ("failed", "the server is shutting down")
        with pytest.raises(Stopped, match="shutting down"):
            ask(opened, tokens_of(3), 1)
        with pytest.raises(Stopped, match="shutting down"):
            opened.load()


def test_stop_texts_end_a_reply_before_them(eight: BatchEngine) -> None:
    whole, _ = ask(eight, prompts()[0], NEW)
    whole.wait()
    text = whole.text
    for start in (len(text) // 3, len(text) // 2):
        stop = text[start : start + 3]
        cut, _ = ask(eight, prompts()[0], NEW, stop=(stop, "never said"))
        ended = cut.wait()
        assert ended.reason == "stop"
        assert cut.text == text[: text.index(stop)]
        assert len(ended.tokens) <= NEW


def test_a_seed_gives_the_same_draws_in_any_company(eight: BatchEngine) -> None:
    drawn = Sampling(temperature=1.0, top_p=0.9, seed=7)
    by_itself = reply(eight, prompts()[0], 20, sampling=drawn).tokens
    crowd = [ask(eight, prompts()[i % 2], 20, sampling=drawn)[0] for i in range(6)]
    assert [listener.wait().tokens for listener in crowd[::2]] == [by_itself] * 3
    others = {reply(eight, prompts()[0], 20, sampling=Sampling(seed=seed)).tokens for seed in range(3)}
    assert len(others) == 3


def test_what_cannot_be_is_refused(eight: BatchEngine, out: Path, tmp_path: Path) -> None:
    for prompt, new_tokens in (((), 1), ((2, 3), 0), ((2, 3), CONTEXT - 1)):
        with pytest.raises(Refused):
            ask(eight, prompt, new_tokens)
    with pytest.raises(Refused, match="'wizard'"):
        eight.chat([{"role": "wizard", "content": "hi"}])
    with pytest.raises(InputError, match="sessions: found 0"):
        Limits(sessions=0)
    with pytest.raises(InputError, match="4096 tokens is more than the 2048"):
        engine(out, context_tokens=4096)
    with pytest.raises(TamperedArtifact, match="not found"):
        engine(tmp_path)


# --- parts ----------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 319), max_size=40), st.lists(st.text("ab e", min_size=1, max_size=3), max_size=3))
def test_pieces_joined_are_the_text_up_to_a_stop(out: Path, tokens: list[int], stops: list[str]) -> None:
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    speech = Speech(tokenizer.decode, stops)
    told = "".join([*map(speech.more, tokens), speech.rest()])
    text = tokenizer.decode(tokens)
    ends = [text.index(stop) for stop in stops if stop in text]
    assert told == (text[: min(ends)] if ends else text)
    assert speech.stopped == bool(ends)


@given(st.lists(st.floats(-20, 20), min_size=1, max_size=40), st.floats(0, 1))
def test_a_nucleus_is_the_fewest_that_have_enough(logits: list[float], top_p: float) -> None:
    likely = np.exp(np.array(logits, np.float32))
    tokens, total = nucleus(likely, top_p), likely.sum(dtype=np.float64)
    inside = likely[tokens].astype(np.float64)
    assert inside.sum() >= top_p * total * (1 - 1e-9)
    assert np.delete(likely, tokens).max(initial=0) < inside.min() or len(tokens) == len(likely)
    assert top_p == 1 or inside[inside > inside.min()].sum() <= top_p * total


def test_draws_follow_the_temperature() -> None:
    logits = np.log(np.array([0.7, 0.2, 0.1], np.float32))
    for temperature in (0.5, 1.0, 2.0):
        sampler = Sampler(Sampling(temperature=temperature, seed=0))
        share = np.bincount([sampler.pick(logits) for _ in range(4000)], minlength=3) / 4000
        wanted = np.array([0.7, 0.2, 0.1]) ** (1 / temperature)
        assert np.abs(share - wanted / wanted.sum()).max() < 0.03


def kept(tokens: list[int], slots: int) -> Kept:
    """A cache of one head that kept `slots` tokens in four bytes each."""
    at = np.arange(len(tokens))[-slots:]
    return Kept(Snapshot(tuple(tokens), (at,), ([np.zeros((1, 2, 1, len(at), 1), np.int16)],)), None)


@given(st.lists(st.tuples(st.lists(st.integers(0, 2), min_size=1, max_size=8), st.integers(1, 8)), max_size=20))
def test_what_is_put_aside_stays_within_its_bytes_and_is_a_true_prefix(each: list[tuple[list[int], int]]) -> None:
    prefixes = Prefixes(limit_bytes=60)
    for tokens, slots in each:
        if not prefixes.holds(tokens):
            prefixes.keep(kept(tokens, slots))
        assert prefixes.bytes <= 60
        found = prefixes.longest([*tokens, 0])
        if found is not None:
            one, count = found
            assert one.snapshot.tokens[:count] == tuple([*tokens, 0][:count])
            assert one.first(count).tokens == one.snapshot.tokens[:count]
            assert one.whole or count == len(one.snapshot.tokens)
