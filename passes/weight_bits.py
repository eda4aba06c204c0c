"""Bits of every weight matrix.

Rounding to the nearest point of a grid per group of inputs, as GGUF's block formats do, with a width for each matrix.
AutoRound (Cheng et al., https://arxiv.org/abs/2309.05516) trains the rounding and mixes widths by a recipe per layer;
here nothing is trained, each matrix is a site and each format a candidate, priced by what rounding that one matrix
changes in the model's outputs. A matrix that its source already stores on a grid keeps that format for free.
Stacked experts are rounded like any matrix, along their inputs.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import isnan
from typing import ClassVar

from planner.pipeline import PassContext
from planner.prices import lossless
from planner.space import Choice, Site, Space, WeightChoice, WeightFormat, WeightSite
from planner.spec import TensorSpec


@dataclass(frozen=True, slots=True)
class WeightBits:
    """Offers each matrix what keeps its source's numbers and every format that the runtime stores and the profile has
    priced."""

    name: ClassVar[str] = "weight-bits"
    bits: tuple[float, ...] = ()

    def run(self, space: Space, ctx: PassContext) -> Space:
        tensors = {WeightSite(tensor.layer, tensor.name): tensor for tensor in ctx.spec.tensors}
        offered = {
            site: [form for form in storable(site, tensor, ctx) if self._wanted(form)]
            for site, tensor in tensors.items()
        }

        def variants(site: Site, choice: Choice) -> Iterable[Choice]:
            if isinstance(site, WeightSite) and isinstance(choice, WeightChoice):
                return [replace(choice, format=form) for form in offered[site]]
            return ()

        return space.widen(variants)

    def _wanted(self, form: WeightFormat) -> bool:
        return not self.bits or form.as_source or form.bits in self.bits


def storable(site: WeightSite, tensor: TensorSpec, ctx: PassContext) -> list[WeightFormat]:
    """Formats that a matrix can take: what the runtime stores and something priced, and those as its source has it."""
    carried = [form for form in ctx.capabilities.weight_formats if _fits(form, tensor, ctx)]
    forms = [form for form in carried if _priced(site, form, ctx)]
    kept = ctx.capabilities.as_source(tensor), ctx.capabilities.as_unrounded(tensor)
    return [*forms, *(form for form in kept if form is not None)]


def _fits(form: WeightFormat, tensor: TensorSpec, ctx: PassContext) -> bool:
    fitting = ctx.capabilities.fits(tensor, form)
    return fitting and (form.scheme != "float" or form.bits <= ctx.hardware.float_bits)


def _priced(site: WeightSite, form: WeightFormat, ctx: PassContext) -> bool:
    choice = WeightChoice(form, ctx.home)
    if ctx.loss is None:
        return lossless(choice)
    if form not in ctx.loss.profile.weights.formats and form != WeightFormat(32):
        return False
    return not isnan(ctx.loss.price(site, choice))
