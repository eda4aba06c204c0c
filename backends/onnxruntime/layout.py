"""What a plan becomes for the graph and the runner: head classes and groups, kv.json, and matrices as stored."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from backends.onnxruntime import codes
from backends.onnxruntime.families import Family, family_of, rotary_tables
from backends.onnxruntime.graph import Graph, HeadClass, LayerShape, Matrix
from backends.onnxruntime.runner import ClassEntry, Group, GroupEntry, KvLayout
from planner.errors import InputError
from planner.executor import KvStatics, Weights
from planner.formats import BLOCK_BITS, STATIC_BITS
from planner.plan import Plan
from planner.space import FLOAT32, Full, KvChoice, KvFormat, KvSite, WeightFormat
from planner.spec import LayerSpec, ModelSpec

Statics = Mapping[KvSite, KvStatics]

HEAD_MULTIPLE = 16
"""What GroupQueryAttention needs of the size of heads that it turns by a rotary embedding."""


def classes_of(plan: Plan, spec: ModelSpec) -> tuple[list[Group], list[list[tuple[int, KvChoice, list[int]]]]]:
    """The groups of a plan, and for every layer its classes as (group, choice, heads)."""
    groups: dict[Group, int] = {}
    layers = []
    chosen = dict(plan.kv)
    for index, layer in enumerate(spec.layers):
        classes: dict[tuple[object, ...], tuple[KvChoice, list[int]]] = {}
        for head in range(layer.kv_heads):
            choice = chosen[KvSite(index, head)]
            check_stored(f"layer {index} kv head {head}", choice, layer.head_dim)
            key = (choice.span, choice.k, choice.sinks)
            classes.setdefault(key, (choice, []))[1].append(head)
        layers.append(
            [
                (groups.setdefault(group_of(choice, layer), len(groups)), choice, heads)
                for choice, heads in classes.values()
            ]
        )
    return list(groups), layers


def group_of(choice: KvChoice, layer: LayerSpec) -> Group:
    """The group of a choice in a layer."""
    span = choice.span
    sinks = choice.sinks if layer.window is None else 0
    if isinstance(span, Full):
        # Nothing leaves, so nothing need be protected from leaving.
        return Group(0, None, 0.0, layer.window)
    return Group(sinks, span.alpha, span.beta, layer.window)


def check_stored(where: str, choice: KvChoice, head_dim: int) -> None:
    """InputError where no attention node stores this."""
    if choice.k != choice.v:
        raise InputError(
            f"{where}: keys of {choice.k.bits:g} bits with values of {choice.v.bits:g}; this runtime has one width"
        )
    check_format(where, choice.k, head_dim)


def check_format(where: str, form: KvFormat, head_dim: int) -> None:
    """InputError where the runtime has no such format for heads of this size."""
    if head_dim % HEAD_MULTIPLE:
        raise InputError(f"{where}: head_dim: found {head_dim}; this runtime needs a multiple of {HEAD_MULTIPLE}")
    if form != FLOAT32 and (form.scheme != "static" or form.bits not in STATIC_BITS):
        raise InputError(f"{where}: no KV format has {form.bits:g} bits in scheme {form.scheme!r}")


def kv_layout(plan: Plan, spec: ModelSpec) -> KvLayout:
    """kv.json's layout."""
    groups, layers = classes_of(plan, spec)
    told: list[GroupEntry] = [{"sinks": g.sinks, "alpha": g.alpha, "beta": g.beta, "reach": g.reach} for g in groups]
    entries: list[list[ClassEntry]] = [
        [
            {"heads": len(heads), "group": group, "bits": int(choice.k.bits), "head_dim": shape.head_dim}
            for group, choice, heads in layer
        ]
        for layer, shape in zip(layers, spec.layers, strict=True)
    ]
    return {"max_positions": spec.max_positions, "vocab": spec.vocab_size, "groups": told, "layers": entries}


def shapes(plan: Plan, spec: ModelSpec, statics: Statics, tables: Sequence[int]) -> list[LayerShape]:
    """Every layer's attention as the graph is written; `tables` is the rotary table of each layer."""
    groups, layers = classes_of(plan, spec)
    return [
        LayerShape(
            layer.q_heads,
            layer.kv_heads,
            layer.head_dim,
            tuple(_head_class(index, group, groups[group], choice, heads, statics) for group, choice, heads in classes),
            tables[index],
        )
        for index, (layer, classes) in enumerate(zip(spec.layers, layers, strict=True))
    ]


def _head_class(
    layer: int, number: int, group: Group, choice: KvChoice, heads: list[int], statics: Statics
) -> HeadClass:
    bits = int(choice.k.bits)
    k_scale = v_scale = np.zeros((0, 0), np.float32)
    if bits != 32:
        sites = [statics[KvSite(layer, head)] for head in heads]
        k_scale = np.stack([codes.kv_scale(site.k_peak, bits) for site in sites])
        v_scale = np.stack([codes.kv_scale(site.v_peak, bits) for site in sites])
    return HeadClass(tuple(heads), number, group.windowed, bits, k_scale, v_scale)


@dataclass(frozen=True)
class PlannedParameters:
    """A model's numbers in the formats of a plan."""

    weights: Weights
    formats: Mapping[str, WeightFormat]

    def matrix(self, name: str) -> Matrix:
        form = self.formats.get(name, WeightFormat(32))
        return stored(name, form, self.weights)

    def vector(self, name: str) -> NDArray[np.float32] | None:
        return self.weights.dense(name) if name in self.weights.names() else None

    def alike(self, names: Sequence[str]) -> bool:
        forms = {self.formats.get(name, WeightFormat(32)) for name in names}
        if len(forms) > 1:
            return False
        # Of grids at one width some have a minimum and some have none.
        return not forms.pop().as_source or len({self._has_minimum(name) for name in names}) == 1

    def _has_minimum(self, name: str) -> bool:
        native = self.weights.native(name)
        return native is not None and native.minimum is not None


def stored(name: str, form: WeightFormat, weights: Weights) -> Matrix:
    """One matrix [outputs, inputs] in one format."""
    if form == WeightFormat(32):
        return weights.dense(name)
    if form.as_source:
        blocks = weights.native(name)
        if blocks is None or codes.exact_bits(blocks.bits) is None:
            raise InputError(f"{name}: the source does not store it in blocks of up to 8 bits; use float or block")
        return replace(codes.exact(blocks), rounds_inputs=form.scheme == "exact")
    matrix = weights.dense(name)
    if form.scheme != "block" or form.bits not in BLOCK_BITS or matrix.shape[-1] % form.group:
        raise InputError(
            f"{name}: rows of {matrix.shape[-1]} inputs cannot be stored at {form.bits:g} bits in blocks of"
            f" {form.group}; needs one of {BLOCK_BITS} bits and blocks that divide the row"
        )
    return codes.rounded(matrix, int(form.bits), form.group)


def graph(plan: Plan, spec: ModelSpec, weights: Weights, statics: Statics) -> Graph:
    """The graph of a plan, ready to be written."""
    family: Family = family_of(weights.config)
    found = rotary_tables(weights.config, spec.max_positions)
    distinct = list({id(table): table for table in found}.values())
    numbers = [next(i for i, each in enumerate(distinct) if each is table) for table in found]
    formats = {site.tensor: choice.format for site, choice in plan.weights}
    head = "lm_head.weight" if "lm_head.weight" in weights.names() else "model.embed_tokens.weight"
    parameters = PlannedParameters(weights, formats)
    return Graph(family, shapes(plan, spec, statics, numbers), distinct, parameters, head)
