"""A format costs the gradient's inner product with what it changes: against whole gradients, in every family."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from planner.errors import InputError
from planner.executor import Executor
from planner.space import WeightFormat
from profiles.calibration import Calibration
from profiles.parts import Parts
from profiles.streamed import part_of, passed_back, unseen
from profiles.weight_prices import BLOCK, WeightPricer, WeightProducts, kind_of
from tests.backends.oracle import Subject, subject, tokens_of

FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "gemma3_text", "phi", "gpt2", "phi3", "mixtral")
DOCUMENTS = tuple(tuple(tokens_of(40, seed=i)) for i in range(2))
ASKED = Calibration((), DOCUMENTS, draws=1, seed=5, sinks=4)
SCORED, DRAWS = 20, ASKED.draws_for(80)


class Halving:
    """An executor whose products with a matrix of two bits and more read inputs rounded to halves."""

    def __init__(self, executor: Executor) -> None:
        self.capabilities, self.recode_weight = executor.capabilities, executor.recode_weight

    def recode_input(self, form: WeightFormat, values: NDArray[np.float32]) -> NDArray[np.float32] | None:
        return None if form.scheme == "float" else np.round(values * 2) / 2


def pricer(model: Subject, directory: Path, executor: object) -> WeightPricer:
    weights = model.executor.weights
    return WeightPricer(weights, model.spec, cast(Executor, executor), ASKED, Parts(directory), lambda *_: None)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", FAMILIES)
def test_products_are_those_of_whole_gradients(tiny: Callable[[str], Path], family: str, tmp_path: Path) -> None:
    """Of every matrix: layers, experts, tied and untied embeddings, positions, and those that lie transposed."""
    model = subject(tiny(family))
    priced = pricer(model, tmp_path, model.executor)
    priced.prices()
    found = priced.parts.get("weights", dict)["whole"]
    wanted = np.zeros_like(found)
    parameters, inside = dict(priced.model.named_parameters()), part_of(priced.model)
    names = {part: [n for n in parameters if inside.get(n) == part] for part in range(len(model.spec.layers))}
    outer = [n for n in parameters if n not in inside]
    numbers = {tensor.name: i for i, tensor in enumerate(model.spec.tensors)}
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    try:
        for part, draw, gradients in passed_back(
            priced.model,
            DOCUMENTS,
            SCORED,
            DRAWS,
            ASKED.seed,
            lambda part: [parameters[n] for n in (names[part] if isinstance(part, int) else outer)],
            unseen,
        ):
            for name, gradient in zip(names[part] if isinstance(part, int) else outer, gradients, strict=True):
                if name not in numbers:
                    continue
                flat = gradient.T if model.executor.weights.transposed(name) else gradient
                for f, form in enumerate(priced.formats):
                    dense = model.executor.weights.dense(name)
                    change = model.executor.recode_weight(name, form) - dense
                    wanted[draw, numbers[name], f] += float((flat.detach() * torch.from_numpy(change)).sum())
    finally:
        priced.model.requires_grad_(False)
    size = np.abs(wanted).max(0)
    assert (size.max(1) > 0).all()
    assert np.allclose(found, wanted, rtol=1e-2, atol=2e-3 * size)


def test_rounded_inputs_cost_as_much_as_they_change(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """A product with rounded inputs is asked of as a whole, the matrix and the inputs changed at once."""
    model = subject(tiny("llama"))
    priced = [
        pricer(model, tmp_path / str(i), each) for i, each in enumerate((model.executor, Halving(model.executor)))
    ]
    formats = priced[0].prices().formats
    assert priced[1].prices().formats == formats
    plain, rounded = (each.parts.get("weights", dict)["blocks"] for each in priced)
    floats, codes = (
        [i for i, form in enumerate(formats) if (form.scheme == "float") == told] for told in (True, False)
    )
    assert floats and codes
    assert np.array_equal(plain[..., floats], rounded[..., floats])
    eight = [i for i in codes if formats[i].bits == 8]
    assert (rounded[..., eight].mean(0) > 3 * plain[..., eight].mean(0)).all()


def test_a_matrix_that_is_never_met_is_refused(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    model = subject(tiny("llama"))
    priced = pricer(model, tmp_path, model.executor)
    stray = SimpleNamespace(name="stray", count=1, cols=64, rows=64, native=None)
    priced.spec = cast("object", SimpleNamespace(tensors=(*model.spec.tensors, stray), layers=model.spec.layers))  # type: ignore[assignment]
    model.executor.weights.model.register_parameter("stray", torch.nn.Parameter(torch.randn(64, 64)))
    try:
        with pytest.raises(InputError, match="stray: LlamaForCausalLM ran without a product with it"):
            priced.prices()
    finally:
        del model.executor.weights.model.stray


def drawn(kinds: tuple[str, ...], together: tuple[float, ...]) -> WeightProducts:
    """Products of many positions, of whose squares `together` times those of blocks are what all do."""
    chance = np.random.default_rng(0)
    blocks = chance.uniform(1, 2, (4, len(kinds), 3))
    sizes = np.sqrt(blocks.mean(0) * np.array(together)[:, None])
    return WeightProducts(kinds, chance.normal(size=blocks.shape) * sizes, blocks)


def test_one_block_is_the_plain_estimator() -> None:
    whole = np.random.default_rng(0).normal(size=(4, 1, 1))
    assert np.allclose(WeightProducts(("a",), whole, whole**2).losses(7), whole**2 / 14)


def test_what_blocks_leave_out_is_learnt_of_matrices_of_a_kind() -> None:
    kinds = ("a",) * 400 + ("b",) * 400 + ("c",)
    found = drawn(kinds, (1.0,) * 400 + (3.0,) * 400 + (2.0,))
    factor = (found.losses(1) * 2 / found.blocks).mean((0, 2))
    assert factor[0] == pytest.approx(1, rel=0.15)
    assert factor[400] == pytest.approx(3, rel=0.15)
    assert factor[-1] == pytest.approx(2, rel=0.3)  # one of its kind is priced as all are
    assert len(set(factor.round(9))) == 3


def test_prices_are_steadier_than_those_of_the_sum(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """By draws: the square of one number has a spread of sqrt(2) times its mean."""
    model = subject(tiny("llama"))
    priced = pricer(model, tmp_path, model.executor)
    prices = priced.prices()
    part = priced.parts.get("weights", dict)
    plain = np.square(part["whole"]).std(0, ddof=1) / np.square(part["whole"]).mean(0)
    steady = prices.error * np.sqrt(DRAWS) / prices.loss
    assert float(np.median(plain)) > 1
    assert float(np.median(steady)) < 0.8 * float(np.median(plain))


def test_a_kind_is_a_name_without_the_number_of_its_layer() -> None:
    assert kind_of("transformer.h.3.attn.c_attn.weight") == kind_of("transformer.h.11.attn.c_attn.weight")
    assert kind_of("lm_head.weight") == "lm_head.weight"
    assert BLOCK > 1
