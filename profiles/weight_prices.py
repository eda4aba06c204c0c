"""Price every format of every weight matrix, with what rounding the inputs of its products changes.

The estimator is that of `fisher.py`: the inner product of a draw's gradient with a change, here of what a product with
the matrix gives, or a lookup in it. What one position does hardly hangs together with what another does, so squares are
taken of sums over few positions, each of which is one more sample. In the head, where labels of different positions are
drawn independently, that is exact; elsewhere what it leaves out is learnt from all matrices of a kind. Documents are
short, and several pass through the model side by side.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from planner.errors import InputError
from planner.profile import WeightPrices
from planner.space import WeightFormat
from planner.spec import TensorSpec
from profiles.fisher import mean_and_error
from profiles.measurement import Measurement
from profiles.products import Met, Product
from profiles.streamed import Part, passed_back, unseen
from profiles.workers import one_thread_each

DRAWS_TIMES = 2
"""Draws for each that caches are priced with: documents are short, and all pass through the model at once."""

BLOCK = 8
"""Positions whose inner products are added before they are squared (of an expert: neighbours among those it serves)."""

PRIOR_SAMPLES = 50
"""How many samples of matrices of one kind weigh as much as those of all others, in what blocks leave out."""


@dataclass(frozen=True, slots=True)
class WeightProducts:
    """Inner products of gradients with what formats change, over all positions of all documents.

    kinds   what sort of matrix each site is: its name without the number of its layer
    whole   [draws, weight_sites, formats], but for those in the head
    blocks  like it: the sum of their squares over blocks of positions
    head    like it: the sum of the squares over positions in the head
    """

    kinds: tuple[str, ...]
    whole: NDArray[np.float64]
    blocks: NDArray[np.float64]
    head: NDArray[np.float64]

    def losses(self, scored: int) -> NDArray[np.float64]:
        """Loss in nats per token by draw: [draws, weight_sites, formats].

        The mean square of the whole is what is wanted, and that of blocks is steadier but without what positions of
        different blocks do together. How much that is hangs on what a matrix is for: values are mixed over positions.
        So the ratio of the two is that of matrices of a kind, and of all where there are few of it. What a tied matrix
        does in the head and what it does in the embedding are added as if they had nothing to do with one another.
        """
        whole, blocks = np.square(self.whole).mean(0), self.blocks.mean(0)
        ratios = np.divide(whole, blocks, out=np.full_like(blocks, np.nan), where=blocks > 0)
        known = np.isfinite(ratios)
        if not known.any():
            return (self.head + self.blocks) / (2 * scored)
        of_all = ratios[known].mean()
        kinds = np.array(self.kinds)
        factor = np.empty((len(kinds), 1))
        for kind in set(self.kinds):
            own = kinds == kind
            samples = own.sum() * len(self.whole) if known[own].any() else 0
            mean = ratios[own][known[own]].mean() if samples else of_all
            factor[own] = (samples * mean + PRIOR_SAMPLES * of_all) / (samples + PRIOR_SAMPLES)
        return (self.head + self.blocks * factor) / (2 * scored)


class WeightPricer(Measurement):
    """The prices of every format of a model's matrices under one runtime."""

    @property
    def formats(self) -> tuple[WeightFormat, ...]:
        """Every format that changes something: what rounds a matrix, and what rounds the inputs of its products."""
        can = self.executor.capabilities
        kept = dict.fromkeys(filter(None, map(can.as_source, self.spec.tensors))) if can.native == "exact" else ()
        return tuple(f for f in (*can.weight_formats, *kept) if f != WeightFormat(32))

    def prices(self) -> WeightPrices:
        """Mean loss in nats per token over the draws for weights, and its standard error on these documents."""
        if not self.calibration.weight_documents:
            nothing = np.full((len(self.spec.tensors), len(self.formats)), np.nan)
            return WeightPrices(self.spec.weight_sites, self.formats, nothing, nothing)
        part = self.parts.get("weights", self._products)
        kinds = tuple(kind_of(tensor.name) for tensor in self.spec.tensors)
        found = WeightProducts(kinds, *(cast(NDArray[np.float64], part[name]) for name in ("whole", "blocks", "head")))
        loss, error = mean_and_error(found.losses(self.scored * len(self.calibration.weight_documents)))
        for i, tensor in enumerate(self.spec.tensors):
            unfit = sorted(set(range(len(self.formats))) - set(self._fitting(tensor)))
            loss[i, unfit] = error[i, unfit] = np.nan
        return WeightPrices(self.spec.weight_sites, self.formats, loss, error)

    @property
    def scored(self) -> int:
        """Positions of each document that are scored."""
        return len(self.calibration.weight_documents[0]) // 2

    def _products(self) -> dict[str, NDArray[np.float64]]:
        """`whole`, `blocks` and `head` as in WeightProducts."""
        documents, tensors = self.calibration.weight_documents, self.spec.tensors
        draws = DRAWS_TIMES * self.calibration.draws
        shape = draws, len(tensors), len(self.formats)
        sums = {name: np.zeros(shape) for name in ("whole", "blocks", "head")}
        if any(tensor.count > 1 for tensor in tensors):
            self.model.set_experts_implementation("eager")  # one expert after another: each product is met
        parameters = dict(self.model.named_parameters())
        met, ever = Met({tensor.name: parameters[tensor.name] for tensor in tensors}), set[str]()
        products: dict[Part, list[Product]] = {}
        toward: list[Tensor] = []
        in_head: dict[tuple[int, int], Tensor] = {}
        steps = len(self.spec.layers) + 1
        self.progress("weight prices", 0, steps)

        def wanted(part: Part) -> list[Tensor]:
            products[part] = met.take()
            ever.update(each.name for each in products[part])
            return [each.output for each in products[part]]

        with met:
            seed = self.calibration.seed
            for part, draw, found in passed_back(self.model, documents, self.scored, draws, seed, wanted, unseen):
                if draw == 0:
                    toward = [torch.empty(draws, *each.shape) for each in found]
                for into, gradient in zip(toward, found, strict=True):
                    into[draw] = gradient
                if draw == draws - 1:
                    self._add(sums, part, list(zip(products.pop(part), toward, strict=True)), in_head)
                    toward.clear()
                    if isinstance(part, int):
                        in_head.clear()
                        self.progress("weight prices", len(self.spec.layers) - part, steps)
        if missed := [tensor.name for tensor in tensors if tensor.name not in ever]:
            raise InputError(
                f"{missed[0]}: {type(self.model).__name__} ran without a product with it or a lookup in it, so"
                " planner cannot tell what rounding it costs"
            )
        self.progress("weight prices", steps, steps)
        return sums

    def _add(
        self,
        sums: Mapping[str, NDArray[np.float64]],
        part: Part,
        products: Sequence[tuple[Product, Tensor]],
        in_head: dict[tuple[int, int], Tensor],
    ) -> None:
        """Add what every format changes in the products of one part, with gradients [draws, ..., outputs].

        The head comes in many pieces. Its matrix, maybe the largest there is, is recoded in the first and what each
        format changes is left `in_head`, by the numbers of both, in 16 bits that hold small changes as well as large.
        """
        names = {each.name for each, _ in products}
        asked = [
            (i, number)
            for i, tensor in enumerate(self.spec.tensors)
            if tensor.name in names
            for number in self._fitting(tensor)
        ]

        def add(place: tuple[int, int]) -> None:
            name, form = self.spec.tensors[place[0]].name, self.formats[place[1]]
            with torch.inference_mode():
                dense = stack(torch.from_numpy(self.weights.dense(name)))
                change = in_head[place] if place in in_head else self._recoded(name, form) - dense
                if part == "head":
                    change = in_head[place] = change.bfloat16()
                for each, toward in products:
                    if each.name != name:
                        continue
                    read = None if each.before is None else self._read(form, each.inputs)
                    own = change[each.number], dense[each.number]
                    exact = each.by_position(toward.flatten(1, -2), *own, read).double()
                    if part == "head":
                        sums["head"][:, *place] += exact.square().sum(-1).numpy()
                        continue
                    padded = torch.nn.functional.pad(exact, (0, -exact.shape[-1] % BLOCK))
                    sums["whole"][:, *place] += exact.sum(-1).numpy()
                    sums["blocks"][:, *place] += padded.unflatten(-1, (-1, BLOCK)).sum(-1).square().sum(-1).numpy()

        with one_thread_each() as pool:
            list(pool.map(add, asked))

    def _fitting(self, tensor: TensorSpec) -> list[int]:
        """The numbers of the formats that a matrix can take."""
        can = self.executor.capabilities
        return [
            number
            for number, form in enumerate(self.formats)
            if (form == can.as_source(tensor) if form.as_source else can.fits(tensor, form))
        ]

    def _recoded(self, name: str, form: WeightFormat) -> Tensor:
        """A matrix, or a stack of them, as it reads back from a format: [count, outputs, inputs]."""
        plain = form.as_source
        return stack(torch.from_numpy(self.weights.dense(name) if plain else self.executor.recode_weight(name, form)))

    def _read(self, form: WeightFormat, inputs: Tensor) -> Tensor | None:
        """Inputs [rows, inputs] of a product as a format reads them, None where as they are."""
        read = self.executor.recode_input(form, inputs.numpy())
        return None if read is None else torch.from_numpy(read)


def stack(matrix: Tensor) -> Tensor:
    """[count, outputs, inputs] of a matrix, or of a stack of them."""
    return matrix.reshape(-1, *matrix.shape[-2:])


def kind_of(name: str) -> str:
    """The name of a matrix without the number of its layer.

    >>> kind_of("model.layers.12.mlp.up_proj.weight")
    'model.layers.mlp.up_proj.weight'
    """
    return re.sub(r"\.\d+\b", "", name)
