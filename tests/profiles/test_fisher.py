"""Prices agree with really measured losses, with a naive reference, with themselves, and survive being killed."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from planner.formats import GROUPED_BITS, ROTATED_BITS, grouped, rotated
from planner.profile import ModelProfile
from planner.quality import compare
from planner.space import FLOAT16, Full, WeightFormat, Window
from profiles import fisher
from profiles.calibration import Calibration
from profiles.fisher import KvProducts, Options, losses, mean_and_error, option_products
from profiles.model import Profiler
from profiles.parts import Parts
from tests.backends.oracle import DENSE, FULL32, Subject, choice, subject, tokens_of

SINKS, DRAWS, DOCUMENT_TOKENS = 4, 64, 160
PRICED = (
    *(choice(Window(w), FLOAT16) for w in (16, 32, 64)),
    *(choice(Full(), rotated(bits), FLOAT16) for bits in ROTATED_BITS),
    *(choice(Full(), FLOAT16, rotated(bits)) for bits in ROTATED_BITS),
    choice(Window(32), rotated(3)),
    choice(Window(64), rotated(2)),
)


def calibration(*lengths: int, draws: int, seed: int = 0) -> Calibration:
    """Random documents of these lengths, and a short one for weights."""
    documents = tuple(tuple(tokens_of(n, seed=seed + i)) for i, n in enumerate(lengths))
    return Calibration(documents, (tuple(tokens_of(96, seed=99)),), draws, seed, SINKS)


def profiler(model: Subject, asked: Calibration, directory: Path, progress: Callable[..., None]) -> Profiler:
    return Profiler(model.executor.weights, model.spec, model.executor, asked, Parts(directory), progress)  # type: ignore[arg-type]


def unwatched(stage: str, done: int, of: int) -> None:
    pass


def ranks(x: NDArray[np.float64]) -> NDArray[np.intp]:
    return np.argsort(np.argsort(x))


def spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


# --- against measurements -----------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_prices_agree_with_single_changes_really_measured(
    tiny: Callable[[str], Path], family: str, tmp_path: Path
) -> None:
    model, asked = subject(tiny(family)), calibration(DOCUMENT_TOKENS, draws=DRAWS)
    profile = profiler(model, asked, tmp_path, unwatched).run()
    model.executor.use(profile.statics)
    for predicted, measured in (against_caches(model, profile, asked), against_weights(model, profile, asked)):
        assert np.ptp(np.log(measured)) > np.log(1000)
        assert spearman(predicted, measured) >= 0.9
        assert 0.7 <= float(np.median(predicted / measured)) <= 1.4


Pairs = tuple[NDArray[np.float64], NDArray[np.float64]]


def against_caches(model: Subject, profile: ModelProfile, asked: Calibration) -> Pairs:
    """Predicted and measured loss of every option at every KV site."""
    (document,) = asked.documents
    first = len(document) - len(document) // 2
    dense = model.executor.open(model.plan(lambda _: FULL32)).score(document, first, 64)
    pairs = []
    for i, site in enumerate(model.spec.kv_sites):
        for option in PRICED:
            price = profile.kv.prices(i, (option,), model.spec.layers[site.layer], profile.context_tokens)[0, -1]
            changed = {other: FULL32 for other in model.spec.kv_sites} | {site: option}
            found = model.executor.open(model.plan(changed.__getitem__)).score(document, first, 64)
            pairs.append((price, compare(dense, found, document[first + 1 :]).loss_nats))
    predicted, measured = np.array(pairs).T
    return predicted, measured


def against_weights(model: Subject, profile: ModelProfile, asked: Calibration) -> Pairs:
    """Predicted and measured loss of every matrix in every grouped format."""
    (document,) = asked.weight_documents
    first = len(document) - len(document) // 2
    dense = model.executor.open(model.plan(lambda _: FULL32)).score(document, first, 64)
    pairs = []
    for i, site in enumerate(model.spec.weight_sites):
        for bits in GROUPED_BITS:
            forms = {other.tensor: DENSE for other in model.spec.weight_sites} | {site.tensor: grouped(bits)}
            found = model.executor.open(model.plan(lambda _: FULL32, forms.__getitem__)).score(document, first, 64)
            measured = compare(dense, found, document[first + 1 :]).loss_nats
            pairs.append((profile.weights.price(i, grouped(bits)), measured))
    columns = np.array(pairs).T
    return columns[0], columns[1]


# --- against a naive reference ------------------------------------------------------------------


def naive(
    q: Tensor, k: Tensor, v: Tensor, gradient: Tensor, scale: float, options: Options, scored: int
) -> tuple[KvProducts, Tensor]:
    """What option_products gives, from whole attention matrices, one option and query head at a time."""
    tokens, draws = q.shape[1], len(gradient)
    blocks = -(-scored // fisher.SQUARED)
    now, at = torch.arange(tokens)[:, None], torch.arange(tokens)
    reach = tokens if options.reach is None else options.reach
    able = (at <= now) & (at > now - reach)
    by_key = torch.zeros(draws, blocks, len(options.windows), len(options.keys), dtype=torch.float64)
    by_value = torch.zeros(draws, blocks, len(options.windows), len(options.values), dtype=torch.float64)
    mass = torch.zeros(len(options.windows), dtype=torch.float64)

    def attend(queries: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
        return (queries @ keys.T * scale).masked_fill(~mask, -torch.inf).softmax(-1)

    def add(into: Tensor, w: int, i: int, change: Tensor, head: int) -> None:
        for at in range(scored):
            row = tokens - scored + at
            into[:, at // fisher.SQUARED, w, i] += gradient[:, head, row] @ change[row]

    for head in range(len(q)):
        dense = attend(q[head], k, able)
        for w, window in enumerate(options.windows):
            kept = able if window is None else able & ((at < options.sinks) | (at > now - window))
            mass[w] += (dense * kept)[tokens - scored :].sum() / (len(q) * scored)
            for i, keys in enumerate(options.keys):
                add(by_key, w, i, attend(q[head], keys, kept) @ v - dense @ v, head)
            for i, values in enumerate(options.values):
                add(by_value, w, i, attend(q[head], k, kept) @ (values - v), head)
    return KvProducts(by_key, by_value), mass


@pytest.mark.parametrize(
    ("tokens", "sinks", "reach"),
    [
        *((tokens, 4, None) for tokens in (3, 30, 300, 600)),
        *((tokens, 0, reach) for tokens, reach in ((30, None), (300, 40), (300, 280), (600, 300))),
    ],
)
def test_products_are_those_of_a_naive_reference(tokens: int, sinks: int, reach: int | None) -> None:
    generator = torch.Generator().manual_seed(tokens)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    q, k, v, gradient = drawn(2, tokens, 8), drawn(tokens, 8), drawn(tokens, 8), drawn(2, 2, tokens, 8)
    keys, values = (k, k + 0.3 * drawn(tokens, 8)), (v, v + 0.3 * drawn(tokens, 8), v + drawn(tokens, 8))
    options = Options((1, 16, 64, 100, 256, 299, None), keys, values, sinks, reach)
    scored = tokens if reach is None and sinks == 0 else tokens // 2
    found, shares = option_products(q, k, v, gradient, 0.5, options, scored)
    wanted, mass = naive(q, k, v, gradient, 0.5, options, scored)
    assert torch.allclose(found.by_key, wanted.by_key, atol=1e-9)
    assert torch.allclose(found.by_value, wanted.by_value, atol=1e-9)
    assert torch.allclose(shares, mass, atol=1e-9)
    assert float(mass[-1]) == pytest.approx(1)


def test_changing_nothing_costs_nothing() -> None:
    x = torch.randn(1, 50, 8, generator=torch.Generator().manual_seed(0))
    own, copy = x[0], x[0].clone()
    options = Options((64, None), (own, copy), (own, copy), 4, None)
    found, _ = option_products(x, own, own, x[None], 0.3, options, 50)
    assert float(found.by_key.abs().max()) < 1e-4
    assert not found.by_value.any()


# --- the estimator ------------------------------------------------------------------------------


def products(blocks: int) -> KvProducts:
    generator = torch.Generator().manual_seed(blocks)
    by_key, by_value = (torch.randn(6, 5, blocks, 3, n, generator=generator, dtype=torch.float64) for n in (2, 4))
    return KvProducts(by_key, by_value)


def test_one_block_is_the_plain_estimator() -> None:
    one = products(1)
    plain = (one.by_key[..., None] + one.by_value[..., None, :])[:, :, 0].square() / (2 * 77)
    assert torch.allclose(losses([one.squares()], 77), plain)


def test_blocks_keep_the_sum_over_all_sites_and_documents() -> None:
    """They only share it out between sites, draws and documents by something steadier."""
    one, other = products(7), products(3)
    other = KvProducts(2 * other.by_key, 2 * other.by_value)
    plain = [(each.by_key[..., None] + each.by_value[..., None, :]).sum(2).square() / (2 * 77) for each in (one, other)]
    found = losses([one.squares(), other.squares()], 77)
    assert found.shape[:2] == (6, 10)
    assert torch.allclose(found.sum((0, 1)), torch.cat(plain, 1).sum((0, 1)))
    assert not torch.allclose(found[:, :5].sum((0, 1)), plain[0].sum((0, 1)))
    assert torch.allclose(found, losses([other.squares(), one.squares()], 77).roll(5, 1))


# --- a measurement as a whole -------------------------------------------------------------------


def same(a: ModelProfile, b: ModelProfile) -> bool:
    arrays = (("kv", "loss"), ("kv", "error"), ("weights", "loss"), ("weights", "error"))
    alike = [np.array_equal(getattr(getattr(a, x), y), getattr(getattr(b, x), y), equal_nan=True) for x, y in arrays]
    return all(alike) and np.array_equal(a.mass, b.mass) and a.documents == b.documents and a.kv.windows == b.kv.windows


class Watch:
    """Progress that remembers its stages and interrupts where it is told to."""

    def __init__(self, until: str | None = None) -> None:
        self.until, self.stages = until, list[str]()

    def __call__(self, stage: str, done: int, of: int) -> None:
        assert 0 <= done <= of
        self.stages.append(stage)
        if stage == self.until and done:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def llama(tiny_llama: Path) -> Subject:
    return subject(tiny_llama)


ASKED = calibration(96, 96, 48, draws=3)


@pytest.fixture(scope="module")
def whole(llama: Subject, tmp_path_factory: pytest.TempPathFactory) -> ModelProfile:
    return profiler(llama, ASKED, tmp_path_factory.mktemp("whole"), unwatched).run()


def test_a_profile_is_complete(llama: Subject, whole: ModelProfile) -> None:
    assert whole.context_tokens == (48, 96)
    assert whole.kv.windows == (16, 32, 64)
    assert whole.kv.loss.shape == (6, 4, 5, 5, 2)
    assert np.isfinite(whole.kv.loss).all() and (whole.kv.loss >= 0).all()
    assert np.isfinite(whole.kv.error).all()
    assert whole.weights.loss.shape == (len(llama.spec.tensors), 5)
    assert np.isfinite(whole.weights.loss).all()
    assert np.allclose(whole.mass[:, -1], 1)
    assert (np.diff(whole.mass, axis=1) >= -1e-6).all()
    assert set(whole.statics) == set(llama.spec.kv_sites)
    assert all((s.k_scale > 0).all() and (s.v_scale > 0).all() for s in whole.statics.values())


def test_two_runs_give_the_same_profile(llama: Subject, whole: ModelProfile, tmp_path: Path) -> None:
    assert same(profiler(llama, ASKED, tmp_path, unwatched).run(), whole)
    other = calibration(96, 96, 48, draws=3, seed=1)
    assert not same(profiler(llama, other, tmp_path / "other", unwatched).run(), whole)


@pytest.mark.parametrize(
    ("until", "finished"),
    [
        ("static factors", set()),
        ("document 2 of 3", {"static factors", "document 1 of 3"}),
        ("weight prices", {"static factors", *(f"document {i} of 3" for i in (1, 2, 3))}),
    ],
)
def test_a_killed_run_goes_on_where_it_stopped(
    llama: Subject, whole: ModelProfile, tmp_path: Path, until: str, finished: set[str]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        profiler(llama, ASKED, tmp_path, Watch(until)).run()
    again = Watch()
    assert same(profiler(llama, ASKED, tmp_path, again).run(), whole)
    assert until in again.stages
    assert not finished & set(again.stages)
    last = Watch()
    assert same(profiler(llama, ASKED, tmp_path, last).run(), whole)
    assert not last.stages


def test_a_damaged_part_is_measured_again(llama: Subject, whole: ModelProfile, tmp_path: Path) -> None:
    profiler(llama, ASKED, tmp_path, unwatched).run()
    (tmp_path / "kv-1.safetensors").write_bytes(b"half a fil")
    watch = Watch()
    assert same(profiler(llama, ASKED, tmp_path, watch).run(), whole)
    assert set(watch.stages) == {"document 2 of 3"}


def test_a_sliding_layer_prices_no_window_beyond_its_own(tiny_mistral: Path, tmp_path: Path) -> None:
    """Every layer sees 24 tokens: a window of 32 or more, exact, costs what Full does."""
    model = subject(tiny_mistral)
    kv = profiler(model, calibration(96, draws=3), tmp_path, unwatched).run().kv
    float16 = kv.k_formats.index(FLOAT16)
    exact = kv.loss[:, :, float16, float16, 0]
    assert kv.windows == (16, 32, 64)
    assert np.allclose(exact[:, 1:], exact[:, -1:], rtol=1e-3, atol=1e-9)
    assert (exact[:, 0] > 100 * exact[:, -1]).all()


def test_one_draw_gives_a_price_and_an_error_no_smaller() -> None:
    mean, error = mean_and_error(np.array([[0.5, 2.0]]))
    assert np.isfinite(error).all() and (error >= mean).all()


def test_few_draws_give_prices_with_their_errors(llama: Subject, tmp_path: Path) -> None:
    profile = profiler(llama, calibration(48, draws=1), tmp_path, unwatched).run()
    for prices in (profile.kv, profile.weights):
        assert np.isfinite(prices.error).all()


def test_a_matrix_whose_rows_fill_no_groups_has_no_price(tmp_path: Path) -> None:
    """Rows of 48 inputs: float16 is all that can be offered. Heads of 24 turn in blocks of 8."""
    shapes = {"hidden_size": 48, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1}
    AutoModelForCausalLM.from_config(LlamaConfig(**shapes, vocab_size=320)).save_pretrained(tmp_path / "odd")
    odd = subject(tmp_path / "odd")
    profile = profiler(odd, calibration(64, draws=3), tmp_path / "parts", unwatched).run()
    assert np.isfinite(profile.kv.loss).all()
    for i, tensor in enumerate(odd.spec.tensors):
        assert np.isfinite(profile.weights.price(i, WeightFormat(16)))
        assert np.isnan(profile.weights.price(i, grouped(4))) == (tensor.cols == 48)
        assert profile.weights.price(i, WeightFormat(32)) == 0
