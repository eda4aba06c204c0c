"""A plan's matrices and config.json as vLLM reads them: compressed-tensors, a scheme for each fused set."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from backends.vllm import codes, windows
from backends.vllm.capabilities import SIDE_MULTIPLE
from backends.vllm.codes import FloatName
from backends.vllm.families import FLOAT_ONLY, family_of, fused_module, module_of
from planner.errors import InputError
from planner.executor import Weights
from planner.formats import INTEGER_GROUPS
from planner.plan import Plan
from planner.space import WeightFormat
from planner.spec import ModelSpec

Tensors = dict[str, Tensor]

FLOAT = WeightFormat(16)


@dataclass(frozen=True, slots=True)
class Scheme:
    """One entry of config_groups: how matrices of a format are stored and their inputs read."""

    format: str
    weights: dict[str, object]
    input_activations: dict[str, object] | None = None

    def entry(self, targets: list[str]) -> dict[str, object]:
        """The entry for these modules."""
        inputs = {} if self.input_activations is None else {"input_activations": self.input_activations}
        return {"targets": targets, "weights": self.weights, **inputs, "format": self.format}


def scheme_of(form: WeightFormat) -> Scheme:
    """How compressed-tensors names a format of integers."""
    whole: dict[str, object] = {"num_bits": int(form.bits), "type": "int", "symmetric": True}
    if form.bits == 4:
        return Scheme("pack-quantized", {**whole, "strategy": "group", "group_size": form.group, "dynamic": False})
    inputs: dict[str, object] = {**whole, "strategy": "token", "dynamic": True}
    return Scheme("int-quantized", {**whole, "strategy": "channel", "dynamic": False}, inputs)


def float_name(config: str) -> FloatName:
    """The model's float type: float16 where the source has it, and bfloat16, which holds every source's range, else.

    >>> float_name('{"dtype": "float32"}'), float_name('{"torch_dtype": "float16"}')
    ('bfloat16', 'float16')
    """
    told = json.loads(config)
    return "float16" if told.get("dtype", told.get("torch_dtype")) == "float16" else "bfloat16"


def config_json(plan: Plan, spec: ModelSpec, config: str) -> dict[str, object]:
    """config.json: the source's, with the plan's schemes and windows."""
    family = family_of(config)
    dropped = (
        "torch_dtype",
        "layer_types",
        "sliding_window",
        "use_sliding_window",
        "max_window_layers",
        "transformers_version",
    )
    kept = {name: value for name, value in json.loads(config).items() if name not in dropped and value is not None}
    told = {**kept, "architectures": [family.architecture], "dtype": float_name(config)}
    told |= windows.settings(windows.windows(plan, spec), family)
    schemes = quantization_config(plan)
    return told if schemes is None else {**told, "quantization_config": schemes}


def quantization_config(plan: Plan) -> dict[str, object] | None:
    """The schemes of a plan's matrices by their modules; None where all are floats."""
    groups: dict[WeightFormat, list[str]] = {}
    floats: list[str] = []
    for site, choice in plan.weights:
        place = floats if choice.format == FLOAT else groups.setdefault(choice.format, [])
        place.append(module_of(site.tensor))
    if not groups:
        return None
    ordered = sorted(groups.items())
    return {
        "quant_method": "compressed-tensors",
        "format": "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": {f"group_{i}": scheme_of(form).entry(names) for i, (form, names) in enumerate(ordered)},
        "ignore": floats,
    }


def check_fused(plan: Plan) -> None:
    """InputError where matrices that vLLM multiplies with as one differ in format."""
    formats: dict[str, WeightFormat] = {}
    for site, choice in plan.weights:
        module = fused_module(site.tensor)
        if formats.setdefault(module, choice.format) != choice.format:
            found = f"{formats[module]} and {choice.format}"
            raise InputError(f"{module}: its matrices have {found}; vllm needs one format")


def tensors(plan: Plan, weights: Weights) -> Tensors:
    """What model.safetensors holds: float32 where the plan has no choice."""
    check_fused(plan)
    name_of = float_name(weights.config)
    formats: Mapping[str, WeightFormat] = {site.tensor: choice.format for site, choice in plan.weights}
    found: Tensors = {}
    for name in weights.names():
        if name in formats:
            found |= stored(name, formats[name], weights, name_of)
        else:
            found[name] = torch.from_numpy(weights.dense(name)).float()
    return {name: tensor.contiguous() for name, tensor in found.items()}


def stored(name: str, form: WeightFormat, weights: Weights, floats: FloatName) -> Tensors:
    """One matrix in one format, by the names of its parts."""
    matrix = torch.from_numpy(weights.dense(name))
    if form == FLOAT:
        return {name: codes.rounded(matrix, floats)}
    check(name, form, matrix)
    module = module_of(name)
    if form.bits == 4:
        small, scale = codes.quantise4(matrix, form.group, floats)
        shape = torch.tensor(matrix.shape, dtype=torch.int64)
        packed = codes.packed4(small)
        return {f"{module}.weight_packed": packed, f"{module}.weight_scale": scale, f"{module}.weight_shape": shape}
    whole, scale = codes.quantise8(matrix)
    return {f"{module}.weight": whole, f"{module}.weight_scale": scale}


def check(name: str, form: WeightFormat, matrix: Tensor) -> None:
    """InputError where vLLM has no such format, or not for this matrix."""
    if form.scheme != "ct" or (form.bits, form.group) not in {(8, 0), *((4, group) for group in INTEGER_GROUPS)}:
        raise InputError(f"{name}: vllm stores no {form}")
    if module_of(name).rpartition(".")[2] in FLOAT_ONLY or matrix.dim() != 2:
        raise InputError(f"{name}: is no linear layer's matrix; it stays a float")
    rows, cols = matrix.shape
    if form.bits == 4 and (cols % form.group or cols % SIDE_MULTIPLE or rows % SIDE_MULTIPLE):
        raise InputError(
            f"{name}: {rows} rows of {cols} inputs cannot be stored at 4 bits in groups of {form.group}; groups must"
            f" divide a row, and both sides be multiples of {SIDE_MULTIPLE}"
        )


def recoded(name: str, form: WeightFormat, weights: Weights) -> Tensor:
    """A matrix [rows, cols] as it reads back from a format, float32."""
    matrix, floats = torch.from_numpy(weights.dense(name)), float_name(weights.config)
    if form == WeightFormat(32):
        return matrix.float()  # the dense model, which plans are compared with
    if form == FLOAT:
        return codes.rounded(matrix, floats).float()
    check(name, form, matrix)
    if form.bits == 4:
        return codes.dequantise4(*codes.quantise4(matrix, form.group, floats))
    return codes.dequantise8(*codes.quantise8(matrix))
