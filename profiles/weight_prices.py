"""Price every format of every weight matrix: what it changes in the matrix, and what rounding the inputs changes.

The estimator is that of `fisher.py`: the inner product of a draw's gradient with the change, here of the matrix and of
the outputs of its products. Matrices are asked of where they are: layer by layer, with the changes of one layer held.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from planner.executor import Executor, Progress
from planner.profile import WeightPrices
from planner.space import WeightFormat
from planner.spec import ModelSpec, TensorSpec
from profiles.calibration import Calibration
from profiles.fisher import mean_and_error
from profiles.parts import Parts
from profiles.streamed import Part, part_of, passed_back, unseen
from profiles.weights import CheckpointWeights

RECODED_INPUTS = 64
"""Inputs of a row with which it is asked whether a format rounds them: any whole number of blocks would do."""

Changes = Sequence[Tensor | None]
"""What each format changes, in their order: empty where nothing, None where it has no change of this kind."""


@dataclass(frozen=True, slots=True)
class Rounded:
    """A product with a weight matrix: its output in the graph, and how that changes where the inputs are rounded.

    The changes are in the order of the formats, None where one takes inputs as they are.

    output   [1, tokens, outputs]
    changes  like it
    """

    name: str
    output: Tensor
    changes: Changes


Recode = Callable[[Tensor], Changes]
"""Inputs [tokens, inputs] as each format of a product reads them; None where as they are."""


@contextmanager
def watched(names: Mapping[str, torch.nn.Module], recode: Recode) -> Iterator[list[Rounded]]:
    """What passes through linear layers, named by their matrices, where a graph is built while the block runs."""
    seen: list[Rounded] = []

    def watch(name: str) -> Callable[[torch.nn.Module, tuple[Tensor, ...], Tensor], None]:
        def after(module: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if not output.requires_grad:
                return
            x, weight = inputs[0].detach(), cast(Tensor, module.weight).detach()
            read = recode(x.reshape(-1, x.shape[-1]))
            changes = tuple(None if r is None else (r.view_as(x) - x) @ weight.T for r in read)
            seen.append(Rounded(name, output, changes))

        return after

    hooks = [module.register_forward_hook(watch(name)) for name, module in names.items()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def products(gradient: Tensor, changes: Changes, unchanged: float) -> list[float]:
    """Inner products of a gradient with each format's change: 0 where it is empty, `unchanged` where there is none."""
    flat = gradient.flatten()
    return [
        unchanged if change is None else float(flat @ change.flatten().float()) if change.numel() else 0.0
        for change in changes
    ]


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked of a part: matrices, by their numbers, with what formats change in them, and rounded products."""

    matrices: Mapping[int, Changes]
    rounded: Sequence[Rounded]


@dataclass
class WeightPricer:
    """One model's matrices being priced under one runtime's formats."""

    weights: CheckpointWeights
    spec: ModelSpec
    executor: Executor
    calibration: Calibration
    parts: Parts
    progress: Progress

    @property
    def model(self) -> PreTrainedModel:
        return self.weights.model

    @property
    def formats(self) -> tuple[WeightFormat, ...]:
        """Every format that changes something: what rounds a matrix, and what rounds the inputs of its products."""
        can = self.executor.capabilities
        kept = dict.fromkeys(filter(None, map(can.as_source, self.spec.tensors))) if can.native == "exact" else ()
        return tuple(f for f in (*can.weight_formats, *kept) if f != WeightFormat(32))

    def prices(self) -> WeightPrices:
        """Mean loss in nats per token over the draws on all documents for weights, and its standard error."""
        shape = (len(self.spec.tensors), len(self.formats))
        found = [
            self.parts.get(f"weights-{number}", partial(self._squares, document, number))["squares"]
            for number, document in enumerate(self.calibration.weight_documents)
        ]
        loss, error = mean_and_error(np.concatenate(found)) if found else (np.full(shape, np.nan),) * 2
        return WeightPrices(self.spec.weight_sites, self.formats, loss, error)

    def _squares(self, document: Sequence[int], number: int) -> dict[str, NDArray[np.float64]]:
        """Squares c^2 / (2 * scored) of one document: [draws, weight_sites, formats]."""
        scored, draws = len(document) // 2, self.calibration.draws_for(len(document))
        parameters = dict(self.model.named_parameters())
        matrices = [parameters[tensor.name] for tensor in self.spec.tensors]
        numbers = {tensor.name: i for i, tensor in enumerate(self.spec.tensors)}
        products_of = np.zeros((draws, len(matrices), len(self.formats)))
        inside, outside = self._by_part()
        # What belongs to no layer, a tied matrix above all, is asked of in the head and in the embedding. Its changes
        # are held from one to the other, in 16 bits: it may be the largest matrix there is.
        shared = {i: self._changes(self.spec.tensors[i], torch.float16) for i in outside}
        asked: dict[Part, Asked] = {}
        steps = len(self.spec.layers) + 1
        self.progress("weight prices", 0, steps)

        def wanted(part: Part) -> list[Tensor]:
            own = {i: self._changes(self.spec.tensors[i], torch.float32) for i in inside.get(part, ())}
            matrices_here = own if isinstance(part, int) else shared
            # The head is also run, for one position, on the way to the embedding: nothing leads back there, so what
            # was rounded in it has zeros for gradients.
            asked[part] = Asked(matrices_here, tuple(seen))
            seen.clear()
            return [*(matrices[i] for i in asked[part].matrices), *(each.output for each in asked[part].rounded)]

        for matrix in matrices:
            matrix.requires_grad_(True)
        try:
            with watched(self._linears(), self._inputs_read) as seen:
                seed = self.calibration.seed - number
                for part, draw, found in passed_back(self.model, document, scored, draws, seed, wanted, unseen):
                    own = asked[part]
                    toward = dict(zip(own.matrices, found, strict=False))
                    for i, gradient in toward.items():
                        products_of[draw, i] += products(gradient, own.matrices[i], unchanged=np.nan)
                    for each, gradient in zip(own.rounded, found[len(toward) :], strict=True):
                        products_of[draw, numbers[each.name]] += products(gradient, each.changes, unchanged=0.0)
                    if draw == draws - 1:
                        del asked[part]
                        if isinstance(part, int):
                            self.progress("weight prices", len(self.spec.layers) - part, steps)
        finally:
            self.model.requires_grad_(False)
        self.progress("weight prices", steps, steps)
        return {"squares": np.square(products_of) / (2 * scored)}

    def _by_part(self) -> tuple[dict[Part, list[int]], list[int]]:
        """The numbers of the matrices in each layer, and of those in none."""
        layer_of, inside, outside = part_of(self.model), dict[Part, list[int]](), list[int]()
        for number, tensor in enumerate(self.spec.tensors):
            if tensor.name in layer_of:
                inside.setdefault(layer_of[tensor.name], []).append(number)
            else:
                outside.append(number)
        return inside, outside

    def _linears(self) -> dict[str, torch.nn.Module]:
        """The linear layers whose inputs some format rounds, by the name of their matrix; a tied head is the
        embedding's."""
        if all(read is None for read in self._inputs_read(torch.zeros(1, RECODED_INPUTS))):
            return {}
        decided = {tensor.name for tensor in self.spec.tensors}
        found: dict[str, torch.nn.Module] = {
            name: module
            for path, module in self.model.named_modules()
            if isinstance(module, torch.nn.Linear) and (name := f"{path}.weight") in decided
        }
        head = self.model.get_output_embeddings()
        embedding = self.model.get_input_embeddings()
        if head is not None and head.weight is embedding.weight:
            name = next(n for n, p in self.model.named_parameters() if p is head.weight)
            found[name] = head
        return found

    def _inputs_read(self, x: Tensor) -> list[Tensor | None]:
        """Inputs [tokens, inputs] of a product as each format reads them, None where as they are."""
        values = x.numpy()
        read = [self.executor.recode_input(form, values) for form in self.formats]
        return [None if each is None else torch.from_numpy(each) for each in read]

    def _changes(self, tensor: TensorSpec, held_as: torch.dtype) -> list[Tensor | None]:
        """What each format changes in a matrix, in the parameter's own layout; None where it cannot."""
        changes: list[Tensor | None] = []
        dense = torch.from_numpy(self.weights.dense(tensor.name))
        for form in self.formats:
            if form.as_source:
                fits = form == self.executor.capabilities.as_source(tensor)
                changes.append(torch.empty(0) if fits else None)
                continue
            if not self.executor.capabilities.fits(tensor, form):
                changes.append(None)
                continue
            change = torch.from_numpy(self.executor.recode_weight(tensor.name, form)) - dense
            changes.append((change.T if self.weights.transposed(tensor.name) else change).to(held_as))
        return changes
