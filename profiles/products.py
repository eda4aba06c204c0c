"""Products with a model's matrices and lookups of their rows, noticed while it runs: what went in and what came out.

What another matrix would have changed in them is asked with gradients of what came out.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

OUTPUTS_AT_ONCE = 8192
"""Outputs of a product whose changes are held at a time: a vocabulary has many."""


@dataclass(frozen=True, slots=True)
class Product:
    """A product with a matrix that was met while the model ran, or a lookup of rows in it.

    name, number  the matrix, and which of a stack of them
    inputs        [rows, inputs]; of a lookup the rows, [rows] of int
    before        [rows, outputs], without what is added to it; None for a lookup
    output        [..., outputs] in the graph
    """

    name: str
    number: int
    inputs: Tensor
    before: Tensor | None
    output: Tensor

    def by_position(self, toward: Tensor, change: Tensor, dense: Tensor, read: Tensor | None) -> Tensor:
        """Inner products [draws, rows] of gradients with what a change of the matrix changes in the output.

        toward         [draws, rows, outputs]
        change, dense  [outputs, inputs]
        read           the inputs as they are read beside the changed matrix, None where as they are
        """
        if self.before is None:
            return torch.einsum("dro,ro->dr", toward, change[self.inputs].float())
        found = torch.zeros(toward.shape[:2])
        for start in range(0, len(change), OUTPUTS_AT_ONCE):
            part = slice(start, start + OUTPUTS_AT_ONCE)
            if read is None:
                differs = self.inputs @ change[part].float().T
            else:
                differs = read @ (dense[part] + change[part]).T - self.before[:, part]
            found += torch.einsum("dro,ro->dr", toward[..., part], differs)
        return found


class Met(TorchFunctionMode):
    """Notes the products with a model's matrices, and the lookups in them, that happen in a graph."""

    def __init__(self, matrices: Mapping[str, Tensor]) -> None:
        super().__init__()
        # A layer of experts multiplies with one slice of a stack after another: a matrix is known by where it lies.
        self._starts = sorted((matrix.data_ptr(), name) for name, matrix in matrices.items())
        self._bytes = {name: matrix.nbytes for name, matrix in matrices.items()}
        self._products: list[Product] = []

    def take(self) -> list[Product]:
        """What was met since this was last asked."""
        found, self._products = self._products, []
        return found

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if torch.is_grad_enabled():
            if func is torch.nn.functional.linear:
                inputs, matrix, bias = _given(args, kwargs, "input", "weight", "bias")
                self._multiplied(inputs, matrix, bias, out)
            elif func is torch.addmm:  # by a matrix that lies as [inputs, outputs]
                bias, inputs, matrix = _given(args, kwargs, "input", "mat1", "mat2")
                self._multiplied(inputs, matrix, bias, out)
            elif func is torch.nn.functional.embedding:
                rows, matrix = _given(args, kwargs, "input", "weight")
                if of := self._named(matrix):
                    self._products.append(Product(*of, rows.reshape(-1), None, out.requires_grad_()))
        return out

    def _multiplied(self, inputs: Tensor, matrix: Tensor, bias: Tensor | None, out: Tensor) -> None:
        of = self._named(matrix)
        if of is None or not out.requires_grad:
            return
        given = out.detach().reshape(-1, out.shape[-1])
        before = given if bias is None else given - bias.detach()
        self._products.append(Product(*of, inputs.detach().reshape(-1, inputs.shape[-1]), before, out))

    def _named(self, matrix: Tensor) -> tuple[str, int] | None:
        at = bisect_right(self._starts, (matrix.data_ptr(), chr(0x10FFFF))) - 1
        if at < 0:
            return None
        start, name = self._starts[at]
        behind = matrix.data_ptr() - start
        return (name, behind // matrix.nbytes) if behind < self._bytes[name] else None


def _given(args: Sequence[Any], kwargs: Mapping[str, Any] | None, *names: str) -> list[Any]:
    """What a call was given for its first arguments, by place or by name; None for what it was not."""
    told = dict(zip(names, args, strict=False)) | dict(kwargs or {})
    return [told.get(name) for name in names]
