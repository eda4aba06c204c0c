"""What a plan becomes for the runner: kv.json, weights.json and the tensors of weights.safetensors."""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from backends.transformers.grouped import quantise
from backends.transformers.runner import ClassEntry, KvLayout, WeightEntry, pack
from planner.errors import InputError
from planner.executor import KvStatics, Weights
from planner.formats import GROUPED_BITS, ROTATED_BITS
from planner.plan import Plan
from planner.space import FLOAT16, FLOAT32, Full, KvChoice, KvFormat, KvSite, WeightFormat
from planner.spec import ModelSpec

Statics = Mapping[KvSite, KvStatics]


def kv_layout(plan: Plan, spec: ModelSpec) -> KvLayout:
    """The head classes of every layer, heads that are cached alike together."""
    layers: list[list[ClassEntry]] = []
    chosen = dict(plan.kv)
    for index, layer in enumerate(spec.layers):
        classes: dict[KvChoice, list[int]] = {}
        for head in range(layer.kv_heads):
            site = KvSite(index, head)
            for form in (chosen[site].k, chosen[site].v):
                check_stored(str(site), form, layer.head_dim)
            classes.setdefault(chosen[site], []).append(head)
        layers.append([head_class(choice, heads, layer.window) for choice, heads in classes.items()])
    return {"head_dim": [layer.head_dim for layer in spec.layers], "layers": layers}


def check_stored(where: str, form: KvFormat, head_dim: int) -> None:
    """InputError where the runner has no such format for heads of this size."""
    if form in (FLOAT16, FLOAT32):
        return
    if form.scheme != "rotated" or form.bits not in ROTATED_BITS:
        raise InputError(f"{where}: no KV format has {form.bits:g} bits in scheme {form.scheme!r}")
    if head_dim % 8:
        raise InputError(f"{where}: head_dim: found {head_dim}; codes of {form.bits:g} bits need a multiple of 8")


def head_class(choice: KvChoice, heads: list[int], reach: int | None) -> ClassEntry:
    """One class as the runner's HeadClass names its fields."""
    return {
        "heads": heads,
        "k_bits": int(choice.k.bits),
        "v_bits": int(choice.v.bits),
        "sinks": choice.sinks,
        "alpha": None if isinstance(choice.span, Full) else choice.span.alpha,
        "beta": 0.0 if isinstance(choice.span, Full) else choice.span.beta,
        "reach": reach,
    }


def kv_tensors(plan: Plan, statics: Statics) -> Iterator[tuple[str, Tensor]]:
    """Static factors of the heads whose keys or values are coded, by the runner's names."""
    for site, choice in plan.kv:
        parts = {"k_mean", "k_scale"} if choice.k.scheme == "rotated" else set()
        parts |= {"v_scale"} if choice.v.scheme == "rotated" else set()
        for part in sorted(parts):
            values = torch.from_numpy(np.asarray(getattr(statics[site], part)))
            yield f"kv.{site.layer}.{site.kv_head}::{part}", values.half()


def weight_tensors(plan: Plan, weights: Weights) -> tuple[dict[str, WeightEntry], dict[str, Tensor]]:
    """weights.json and the tensors: packed where the plan has a choice, float32 for all the rest."""
    formats: dict[str, WeightEntry] = {}
    tensors: dict[str, Tensor] = {}
    chosen = {site.tensor: choice.format for site, choice in plan.weights}
    for name in weights.names():
        form = chosen.get(name)
        if form is None:
            plain = torch.from_numpy(weights.dense(name)).float()
            tensors[name] = (plain.T if weights.transposed(name) else plain).contiguous()
            continue
        formats[name], parts = stored(name, form, weights)
        tensors |= {f"{name}::{part}": tensor.contiguous() for part, tensor in parts.items()}
    return formats, tensors


def stored(name: str, form: WeightFormat, weights: Weights) -> tuple[WeightEntry, dict[str, Tensor]]:
    """One matrix in one format: its entry of weights.json and its parts."""
    if form.scheme == "native":
        blocks = weights.native(name)
        if blocks is None:
            raise InputError(f"{name}: the source does not store it in blocks of codes; use float or grouped")
        parts = {"codes": pack(torch.from_numpy(blocks.codes), blocks.bits), "scale": torch.from_numpy(blocks.scale)}
        if blocks.minimum is not None:
            parts["minimum"] = torch.from_numpy(blocks.minimum)
        return {"scheme": "native", "bits": blocks.bits, "offset": blocks.offset}, parts
    matrix = torch.from_numpy(weights.dense(name)).float()
    if form.scheme == "float":
        kind = torch.float32 if form.bits == 32 else torch.float16
        return {"scheme": "float", "bits": int(form.bits), "offset": None}, {"floats": matrix.to(kind)}
    if form.bits not in GROUPED_BITS or form.group < 8 or form.group % 8 or matrix.shape[-1] % form.group:
        raise InputError(
            f"{name}: rows of {matrix.shape[-1]} inputs cannot be stored at {form.bits:g} bits in groups of"
            f" {form.group}; needs one of {GROUPED_BITS} bits and groups of a multiple of 8 that divide the row"
        )
    codes, scale, minimum = quantise(matrix, int(form.bits), form.group)
    parts = {"codes": pack(codes, int(form.bits)), "scale": scale, "minimum": minimum}
    return {"scheme": "grouped", "bits": int(form.bits), "offset": None}, parts
