"""A format costs the gradient's inner product with what it changes: against whole gradients, in every family."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from planner.errors import InputError
from planner.executor import Executor
from planner.space import WeightFormat
from profiles import products, streamed, weight_prices
from profiles.calibration import Calibration
from profiles.parts import Parts
from profiles.streamed import Part, part_of, passed_back, unseen
from profiles.weight_prices import DRAWS_TIMES, WeightPricer, WeightProducts, kind_of
from tests.backends.oracle import Subject, subject, tokens_of

FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "gemma3_text", "phi", "gpt2", "phi3", "mixtral")
DOCUMENTS = tuple(tuple(tokens_of(40, seed=i)) for i in range(2))
ASKED = Calibration((), DOCUMENTS, draws=1, seed=5, sinks=4)
SCORED, DRAWS = 20, DRAWS_TIMES * ASKED.draws


class Halving:
    """An executor whose products with any matrix but a float one read inputs rounded to halves."""

    def __init__(self, executor: Executor) -> None:
        self.capabilities, self.recode_weight = executor.capabilities, executor.recode_weight

    def recode_input(self, form: WeightFormat, values: NDArray[np.float32]) -> NDArray[np.float32] | None:
        return None if form.scheme == "float" else np.round(values * 2) / 2


def pricer(model: Subject, directory: Path, executor: object) -> WeightPricer:
    weights = model.executor.weights
    return WeightPricer(weights, model.spec, cast(Executor, executor), ASKED, Parts(directory), lambda *_: None)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", FAMILIES)
def test_products_are_those_of_whole_gradients(tiny: Callable[[str], Path], family: str, tmp_path: Path) -> None:
    """Of every matrix but in the head: layers, experts, tied and untied embeddings, those that lie transposed."""
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
            if part == "head":
                continue
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
    assert {name for name, i in numbers.items() if not size[i].any()} <= {"lm_head.weight"}
    assert np.allclose(found, wanted, rtol=1e-2, atol=2e-3 * size)


@contextmanager
def hooked(model: Subject) -> Iterator[list[tuple[str, Tensor, Tensor]]]:
    """What went into every linear layer and embedding in a graph, by the name of its matrix, and what came out."""
    met: list[tuple[str, Tensor, Tensor]] = []
    names = {id(p): n for n, p in model.executor.weights.model.named_parameters()}
    decided = {tensor.name for tensor in model.spec.tensors}

    def note(module: torch.nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        name = names[id(module.weight)]
        if name in decided and out.requires_grad:
            met.append((name, inputs[0].detach().flatten(0, 1), out))

    kinds = torch.nn.Linear, torch.nn.Embedding, Conv1D
    hooks = [m.register_forward_hook(note) for m in model.executor.weights.model.modules() if isinstance(m, kinds)]
    model.executor.weights.model.requires_grad_(True)
    try:
        yield met
    finally:
        model.executor.weights.model.requires_grad_(False)
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("family", ["llama", "qwen2", "phi", "gpt2"])
def test_rounded_inputs_are_priced_with_the_matrix(
    tiny: Callable[[str], Path], family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums, those over blocks and those of the head, position by position from what modules read and gave: with biases,
    transposed, tied and not, and the head in pieces."""
    monkeypatch.setattr(streamed, "HEAD_CHUNK", 10)
    monkeypatch.setattr(products, "OUTPUTS_AT_ONCE", 48)
    model = subject(tiny(family))
    executor = Halving(model.executor)
    priced = pricer(model, tmp_path, executor)
    priced.prices()
    found = priced.parts.get("weights", dict)
    wanted = {name: np.zeros_like(found[name]) for name in found}
    numbers = {tensor.name: i for i, tensor in enumerate(model.spec.tensors)}
    own = dict[object, list[tuple[str, Tensor, Tensor]]]()

    def asked(part: Part) -> list[Tensor]:
        own[part] = list(met)
        met.clear()
        return [out for *_, out in own[part]]

    with hooked(model) as met:
        for part, draw, gradients in passed_back(priced.model, DOCUMENTS, SCORED, DRAWS, ASKED.seed, asked, unseen):
            for (name, inputs, _), gradient in zip(own[part], gradients, strict=True):
                toward = gradient.flatten(0, 1).double()
                for f, form in enumerate(priced.formats):
                    dense = torch.from_numpy(model.executor.weights.dense(name))
                    matrix = torch.from_numpy(model.executor.recode_weight(name, form))
                    if inputs.ndim == 1:
                        change = (matrix - dense)[inputs].double()
                    else:
                        read = executor.recode_input(form, inputs.numpy())
                        read_as = inputs if read is None else torch.from_numpy(read)
                        change = read_as.double() @ matrix.double().T - inputs.double() @ dense.double().T
                    place = draw, numbers[name], f
                    rows = (toward * change).sum(-1).tolist()
                    if part == "head":
                        wanted["head"][place] += sum(x * x for x in rows)
                        continue
                    wanted["whole"][place] += sum(rows)
                    wanted["blocks"][place] += sum(
                        sum(rows[at : at + weight_prices.BLOCK]) ** 2 for at in range(0, len(rows), weight_prices.BLOCK)
                    )
    for name, told in found.items():
        size = np.abs(wanted[name]).max(0)
        assert size.any(), name
        assert np.allclose(told, wanted[name], rtol=1e-2, atol=5e-3 * size), name


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
    return WeightProducts(kinds, chance.normal(size=blocks.shape) * sizes, blocks, np.zeros_like(blocks))


def test_what_blocks_leave_out_is_learnt_of_matrices_of_a_kind() -> None:
    kinds = ("a",) * 400 + ("b",) * 400 + ("c",)
    found = drawn(kinds, (1.0,) * 400 + (3.0,) * 400 + (2.0,))
    factor = (found.losses(1) * 2 / found.blocks).mean((0, 2))
    assert factor[0] == pytest.approx(1, rel=0.15)
    assert factor[400] == pytest.approx(3, rel=0.15)
    assert factor[-1] == pytest.approx(2, rel=0.3)  # one of its kind is priced as all are
    assert len(set(factor.round(9))) == 3


def test_the_head_needs_no_factor() -> None:
    """Its labels are drawn position by position: nothing is left out."""
    found = drawn(("a",) * 50 + ("head",), (3.0,) * 51)
    blocks, whole = found.blocks.copy(), found.whole.copy()
    blocks[:, -1] = whole[:, -1] = 0
    head = np.zeros_like(blocks)
    head[:, -1] = 5
    losses = WeightProducts(found.kinds, whole, blocks, head).losses(10)
    assert np.allclose(losses[:, -1], 5 / 20)
    assert np.allclose(losses[:, :-1], found.losses(10)[:, :-1], rtol=0.2)


def test_prices_are_steadier_than_those_of_the_sum(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """Other documents and labels move them less."""
    model, spreads = subject(tiny("llama")), dict[str, float]()
    parts = []
    for seed in range(6):
        priced = pricer(model, tmp_path / str(seed), model.executor)
        priced.calibration = Calibration((), tuple(tuple(tokens_of(40, seed=seed + i)) for i in (10, 20)), 2, seed, 4)
        priced.prices()
        parts.append(priced.parts.get("weights", dict))
    for name, power in (("whole", 2), ("blocks", 1)):
        every = np.stack([(part[name] ** power).mean(0) for part in parts])
        spreads[name] = float(np.nanmedian(every.std(0) / np.maximum(every.mean(0), 1e-300)))
    assert spreads["blocks"] < 0.7 * spreads["whole"]


def test_a_kind_is_a_name_without_the_number_of_its_layer() -> None:
    assert kind_of("transformer.h.3.attn.c_attn.weight") == kind_of("transformer.h.11.attn.c_attn.weight")
    assert kind_of("lm_head.weight") == "lm_head.weight"
