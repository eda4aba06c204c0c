"""The cache's books: batches, turns, prefixes and copies give what reading everything at once gives."""

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from backends.onnxruntime.runner import ArtefactError, Chat, Group, PlannedModel, Slots, answer
from planner.errors import InputError
from planner.formats import slots, static
from planner.space import FLOAT32, Full, KvChoice, KvFormat, KvSite, Span, Window
from planner.spec import LayerSpec
from tests.backends.oracle import FULL32, choice, tokens_of
from tests.backends.ort import Pair, apart, pair, read, stepped

CLOSE = 5e-4
CONTEXT = 160
WHOLE = 10**6


@pytest.fixture(scope="module")
def opened(tiny: Callable[[str], Path]) -> Callable[[str], Pair]:
    return cache(lambda name: pair(tiny(name)))


@pytest.fixture(scope="module")
def llama(opened: Callable[[str], Pair]) -> Pair:
    return opened("llama")


def mixed(form: KvFormat) -> Callable[[KvSite], KvChoice]:
    """Full heads, windows with and without sinks, one elastic, one larger than the context."""
    kinds = {
        (0, 0): choice(Full(), form),
        (0, 1): choice(Window(16), form, sinks=0),
        (1, 0): choice(Window(64), form, sinks=4),
        (1, 1): choice(Window(1024), form, sinks=4),
        (2, 0): choice(Window(16), form, sinks=4),
        (2, 1): choice(Window(8, 0.125), form, sinks=0),
    }
    return lambda site: kinds[site.layer, site.kv_head]


@pytest.fixture(scope="module")
def model(llama: Pair) -> PlannedModel:
    return llama.open(llama.other.plan(mixed(FLOAT32)))


@pytest.fixture(scope="module")
def whole(llama: Pair) -> PlannedModel:
    """Keeps everything."""
    return llama.open(llama.other.plan(lambda _: FULL32))


# --- smallest and odd caches --------------------------------------------------------------------


@pytest.mark.parametrize("span", [Full(), Window(1), Window(5)])
@pytest.mark.parametrize("sinks", [0, 1, 4])
def test_smallest_caches(llama: Pair, span: Span, sinks: int) -> None:
    """A context shorter than the sinks, a window of one token, no sinks; read and decoded."""
    plan = llama.other.plan(lambda _: choice(span, FLOAT32, sinks=sinks))
    model = llama.open(plan)
    for context in (1, 2, 5, 6, 9):
        tokens = tokens_of(context)
        wanted = llama.other.truly(plan, tokens, context).numpy()
        for chunk_tokens in (1, 2, WHOLE):
            assert apart(read(model, tokens, context, chunk_tokens), wanted) < CLOSE
        held = model.cache(1, context)
        model.read(held, 0, tokens[:1], 1)
        assert context == 1 or apart(stepped(model, held, tokens[1:]), wanted[1:]) < CLOSE


@pytest.mark.parametrize("span", [Full(), Window(8), Window(24), Window(1024)])
def test_a_trained_window_is_never_widened(opened: Callable[[str], Pair], span: Span) -> None:
    both, tokens = opened("mistral"), tokens_of(90)
    plan = both.other.plan(lambda _: choice(span, FLOAT32))
    wanted = both.other.truly(plan, tokens, CONTEXT).numpy()
    for chunk_tokens in (1, 7, WHOLE):
        assert apart(read(both.open(plan), tokens, CONTEXT, chunk_tokens), wanted) < CLOSE


@given(
    alpha=st.none() | st.integers(0, 40),
    beta=st.sampled_from([0.0, 0.1, 0.5]),
    sinks=st.integers(0, 8),
    reach=st.none() | st.integers(1, 40),
    context=st.integers(1, 120),
)
def test_slots_are_those_that_the_planner_counts(
    alpha: int | None, beta: float, sinks: int, reach: int | None, context: int
) -> None:
    span = Full() if alpha is None else Window(alpha, beta)
    wanted = slots(choice(span, FLOAT32, sinks=sinks), LayerSpec(1, 1, 16, reach), context)
    assert Group(sinks, alpha, beta if alpha is not None else 0.0, reach).slots(context) == wanted


@given(
    sinks=st.integers(0, 4),
    window=st.integers(1, 9),
    turns=st.lists(st.tuples(st.booleans(), st.integers(1, 12)), min_size=1, max_size=8),
)
def test_what_lies_in_the_slots_is_what_a_window_keeps(sinks: int, window: int, turns: list[tuple[bool, int]]) -> None:
    """Tokens that come one by one or in chunks leave the first ones and the newest, each in one slot."""
    books, seen = Slots(sinks, window, 1, 12), 0
    for decoded, count in turns:
        for at in np.split(np.arange(seen, seen + count), count if decoded else [count])[: count if decoded else 1]:
            if decoded:
                books.make_room(0)
            books.append(0, at)
            surplus = books.surplus(0)
            if surplus is not None:
                books.keep(0, surplus)
        seen += count
        kept = {at for at in range(seen) if at < sinks or at >= seen - window}
        assert sorted(books.at[0, : books.filled[0]]) == sorted(kept)


# --- batches ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "chunk_tokens"), [(FLOAT32, 7), (FLOAT32, WHOLE), (static(8), 16), (static(4), 16)])
def test_a_batch_of_unequal_lengths_is_its_single_runs(llama: Pair, form: KvFormat, chunk_tokens: int) -> None:
    prompts = [tokens_of(length, seed=length) for length in (1, 30, 100, 17)]
    model = llama.open(llama.other.plan(mixed(form)))
    together = model.cache(len(prompts), CONTEXT)
    logits = np.stack([model.read(together, row, p, chunk_tokens)[-1] for row, p in enumerate(prompts)])
    steps = list(model.generate(together, logits, 40))
    for row, prompt in enumerate(prompts):
        alone = model.cache(1, CONTEXT)
        first = model.read(alone, 0, prompt, chunk_tokens)
        assert apart(logits[row], first[0]) < CLOSE
        assert [step[row] for step in steps] == [step[0] for step in model.generate(alone, first, 40)]


def test_the_first_rows_of_a_batch_can_go_on_alone(model: PlannedModel) -> None:
    """A batch that shrinks and grows: rows beyond those that step keep what they hold."""
    prompts = [tokens_of(length, seed=length) for length in (40, 25, 60)]
    cache = model.cache(3, CONTEXT)
    for row, prompt in enumerate(prompts):
        model.read(cache, row, prompt, 16)
    more = tokens_of(12, seed=7)
    for token in more:
        model.step(cache, [token])
    both = [model.step(cache, [token, token]).copy() for token in more]
    everyone = [model.step(cache, [token] * 3).copy() for token in more]
    for row, times in ((0, 3), (1, 2), (2, 1)):
        wanted = read(model, prompts[row] + more * times, CONTEXT, WHOLE)
        assert apart(np.stack([step[row] for step in everyone]), wanted[-12:]) < CLOSE
        if row < 2:
            assert apart(np.stack([step[row] for step in both]), wanted[-24:-12]) < CLOSE


# --- turns --------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_tokens", [1, 7, WHOLE])
def test_a_second_turn_is_the_whole_conversation_read_at_once(model: PlannedModel, chunk_tokens: int) -> None:
    first, second = [tokens_of(n, seed=n) for n in (90, 3)], [tokens_of(n, seed=n + 1) for n in (5, 60)]
    cache = model.cache(2, CONTEXT)
    for row, (a, b) in enumerate(zip(first, second, strict=True)):
        model.read(cache, row, a, chunk_tokens)
        continued = model.read(cache, row, b, chunk_tokens)
        assert cache.tokens[row] == a + b
        assert apart(continued[-1], read(model, a + b, CONTEXT, WHOLE)[-1]) < CLOSE


def test_turns_and_steps_in_any_order_are_one_reading(model: PlannedModel) -> None:
    tokens, cache = tokens_of(150, seed=4), model.cache(1, CONTEXT)
    wanted = read(model, tokens, CONTEXT, 64)
    cuts = (0, 1, 20, 33, 34, 80, 81, 140, 150)
    for number, (a, b) in enumerate(pairwise(cuts)):
        found = stepped(model, cache, tokens[a:b]) if number % 2 else model.read(cache, 0, tokens[a:b], 9, 0)
        assert apart(found, wanted[a:b]) < CLOSE


def test_generated_tokens_are_part_of_the_conversation(model: PlannedModel) -> None:
    prompt, question, cache = tokens_of(40), tokens_of(9, seed=1), model.cache(1, CONTEXT)
    reply = [step[0] for step in model.generate(cache, model.read(cache, 0, prompt, 16), 20)]
    # The last token is chosen and not read; the next turn begins with it.
    assert cache.tokens[0] == prompt + reply[:-1]
    continued = model.read(cache, 0, [reply[-1], *question], 16)
    assert apart(continued[-1], read(model, prompt + reply + question, CONTEXT, WHOLE)[-1]) < CLOSE


def test_generation_stops_once_every_row_met_a_stop_token(whole: PlannedModel) -> None:
    prompts = [tokens_of(10), tokens_of(14, seed=3)]

    def run(stop: frozenset[int]) -> list[list[int]]:
        cache = whole.cache(2, 40)
        logits = np.concatenate([whole.read(cache, row, prompt, 16) for row, prompt in enumerate(prompts)])
        return list(whole.generate(cache, logits, 20, stop))

    free = run(frozenset())
    assert len(free) == 20
    stops = frozenset({free[5][0], free[8][1]})
    ends = [next(i for i, step in enumerate(free) if step[row] in stops) for row in range(2)]
    assert run(stops) == free[: max(ends) + 1]


def test_which_logits_are_asked_for_changes_no_other(model: PlannedModel) -> None:
    tokens = tokens_of(90)
    wanted = read(model, tokens, CONTEXT, 16)
    for first in (0, 1, 15, 16, 89):
        assert apart(model.read(model.cache(1, CONTEXT), 0, tokens, 16, first), wanted[first:]) < CLOSE
    assert apart(model.read(model.cache(1, CONTEXT), 0, tokens, 16), wanted[-1:]) < CLOSE


# --- prefixes and copies ------------------------------------------------------------------------

HELD, NEW = 40, 30


@pytest.mark.parametrize("same", [0, 1, 10, 39, 40])
@pytest.mark.parametrize("evicting", [False, True])
def test_a_prefix_that_is_held_is_not_read_again(
    model: PlannedModel, whole: PlannedModel, same: int, evicting: bool
) -> None:
    """Whether the prompts part before or after what was evicted, the logits are those of a fresh cache."""
    used = model if evicting else whole
    held = tokens_of(HELD, seed=1)
    prompt = held[:same] + [t ^ 1 for t in held[same : same + 1]] + tokens_of(NEW, seed=2)
    cache = used.cache(1, CONTEXT)
    used.read(cache, 0, held, 16)
    done = cache.reusable(0, prompt)
    assert done == (same if not evicting or same == HELD else 0)
    assert cache.tokens[0] == prompt[:done]
    found = used.read(cache, 0, prompt[done:], 16, 0)
    assert apart(found, read(used, prompt, CONTEXT, 16)[done:]) < CLOSE
    assert cache.tokens[0] == prompt


@pytest.mark.parametrize("length", [1, 12, 40])
def test_a_prompt_that_is_held_leaves_one_token_to_read(model: PlannedModel, whole: PlannedModel, length: int) -> None:
    held = tokens_of(HELD, seed=1)
    for used, wanted in ((whole, length - 1), (model, 0)):
        cache = used.cache(1, CONTEXT)
        used.read(cache, 0, held, 16)
        done = cache.reusable(0, held[:length])
        assert done == wanted
        assert apart(used.read(cache, 0, held[done:length], 16)[-1], read(used, held[:length], CONTEXT, 16)[-1]) < CLOSE


def test_a_prefix_is_reused_before_anything_is_evicted(model: PlannedModel) -> None:
    """The smallest window keeps 16: up to there a prompt may part anywhere."""
    held, cache = tokens_of(15), model.cache(1, CONTEXT)
    model.read(cache, 0, held[:10], 4)
    stepped(model, cache, held[10:])
    prompt = held[:12] + tokens_of(40, seed=5)
    assert cache.reusable(0, prompt) == 12
    assert apart(model.read(cache, 0, prompt[12:], 16)[-1], read(model, prompt, CONTEXT, WHOLE)[-1]) < CLOSE


def test_reuse_of_one_row_leaves_the_others(model: PlannedModel) -> None:
    a, b = tokens_of(60, seed=1), tokens_of(70, seed=2)
    cache = model.cache(2, CONTEXT)
    for row, prompt in enumerate((a, b)):
        model.read(cache, row, prompt, 16)
    assert cache.reusable(0, tokens_of(20, seed=3)) == 0
    model.read(cache, 0, tokens_of(20, seed=3), 16)
    assert apart(model.read(cache, 1, [7, 8], 16)[-1], read(model, [*b, 7, 8], CONTEXT, WHOLE)[-1]) < CLOSE


@pytest.mark.parametrize("form", [FLOAT32, static(8), static(4)])
@pytest.mark.parametrize("length", [9, 90])
def test_a_saved_sequence_goes_on_where_it_was(llama: Pair, form: KvFormat, length: int) -> None:
    model = llama.open(llama.other.plan(mixed(form)))
    prompt, more = tokens_of(length, seed=1), tokens_of(12, seed=2)
    cache = model.cache(3, CONTEXT)
    model.read(cache, 1, prompt, 16)
    kept = cache.save(1)
    assert kept.tokens == tuple(prompt) and 0 < kept.bytes < cache.bytes
    straight = model.read(cache, 1, more, 16, 0)
    cache.clear(1)
    model.read(cache, 1, tokens_of(50, seed=8), 16)  # what was saved is a copy
    for row in (1, 0):
        cache.restore(row, kept)
        assert cache.tokens[row] == prompt
        assert apart(model.read(cache, row, more, 16, 0), straight) < 1e-6
        cache.restore(row, kept)
    steps = [model.step(cache, [token, token])[0].copy() for token in more]
    assert apart(np.stack(steps), straight) < (CLOSE if form == FLOAT32 else 0.2)


def test_a_saved_sequence_that_does_not_fit_is_refused(model: PlannedModel) -> None:
    cache = model.cache(1, CONTEXT)
    model.read(cache, 0, tokens_of(90), 16)
    small = model.cache(1, 50)
    model.read(small, 0, tokens_of(5), 16)
    with pytest.raises(ArtefactError, match="90 kept tokens do not fit a cache of 50 slots"):
        small.restore(0, cache.save(0))
    assert small.tokens == [tokens_of(5)]
    assert apart(model.read(small, 0, [5], 4)[-1], read(model, [*tokens_of(5), 5], 50, 4)[-1]) < CLOSE


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_tokens", [1, 7, WHOLE])
def test_more_tokens_than_the_cache_holds_are_refused(model: PlannedModel, chunk_tokens: int) -> None:
    cache = model.cache(1, 20)
    with pytest.raises(ArtefactError, match="21 tokens do not fit a cache made for 20"):
        model.read(cache, 0, tokens_of(21), chunk_tokens)
    assert cache.tokens == [[]]
    model.read(cache, 0, tokens_of(20), chunk_tokens)
    with pytest.raises(ArtefactError, match="21 tokens do not fit a cache made for 20"):
        model.step(cache, [5])
    with pytest.raises(ArtefactError, match="21 tokens do not fit a cache made for 20"):
        model.read(cache, 0, [5], chunk_tokens)


def test_more_sequences_than_the_cache_has_are_refused(model: PlannedModel) -> None:
    cache = model.cache(1, 20)
    model.read(cache, 0, [5, 6], 4)
    with pytest.raises(ArtefactError, match="2 tokens for a cache of 1 sequences"):
        model.step(cache, [5, 6])
    assert cache.tokens == [[5, 6]]


def test_a_reply_ends_where_the_cache_does(model: PlannedModel, tiny_llama: Path) -> None:
    chat = Chat(Tokenizer.from_file(str(tiny_llama / "tokenizer.json")), None, ())
    prompt, cache = tokens_of(17), model.cache(1, 20)
    for _ in answer(model, chat, cache, prompt, 100, 8):
        pass
    assert len(cache.tokens[0]) == 19  # three tokens came, and nothing had to follow the last of them
    with pytest.raises(ArtefactError, match="17 tokens do not fit a cache made for 16"):
        answer(model, chat, model.cache(1, 16), prompt, 100, 8)


def test_an_empty_prompt_and_chunks_of_nothing_are_refused(model: PlannedModel) -> None:
    cache = model.cache(1, 20)
    with pytest.raises(ArtefactError, match="a prompt has no tokens"):
        model.read(cache, 0, [], 4)
    for chunk_tokens in (0, -1):
        with pytest.raises(ArtefactError, match=f"chunks of {chunk_tokens} tokens; give at least 1"):
            model.read(cache, 0, [5], chunk_tokens)


@pytest.mark.parametrize("token", [-1, 320, 10**9])
def test_a_token_that_the_model_does_not_have_is_refused(model: PlannedModel, token: int) -> None:
    cache = model.cache(1, 20)
    with pytest.raises(ArtefactError, match=f"token {token}; this model has 320"):
        model.read(cache, 0, [5, token], 4)
    model.read(cache, 0, [5], 4)
    with pytest.raises(ArtefactError, match=f"token {token}; this model has 320"):
        model.step(cache, [token])
    assert cache.tokens == [[5]]


@pytest.mark.parametrize("prompts", [[], [[]], [[5], []]])
def test_an_empty_prompt_is_refused(llama: Pair, prompts: list[list[int]]) -> None:
    session = llama.executor.open(llama.other.plan(lambda _: FULL32))
    with pytest.raises(InputError, match="no tokens"):
        session.generate(prompts, 4)


def test_a_context_beyond_the_models_positions_is_refused(llama: Pair) -> None:
    session = llama.executor.open(llama.other.plan(lambda _: FULL32))
    with pytest.raises(InputError, match="2049 tokens is more than the 2048"):
        session.generate([tokens_of(2000)], 49)
    with pytest.raises(InputError, match="2049 tokens is more than the 2048"):
        session.score(tokens_of(2049), 0, 256)


def test_scores_are_log_probabilities_of_the_positions_asked_for(llama: Pair) -> None:
    plan, tokens = llama.other.plan(mixed(FLOAT32)), tokens_of(50)
    found = llama.executor.open(plan).score(tokens, 30, 16)
    wanted = llama.other.executor.open(plan).score(tokens, 30, 16)
    assert found.shape == (20, 320) and apart(found, wanted) < CLOSE
