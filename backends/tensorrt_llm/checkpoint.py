"""A plan's matrices as ModelOpt exports them for TensorRT-LLM, and what says which layer has which format.

Its `FP8_PER_CHANNEL_PER_TOKEN` has e4m3 codes with a float32 scale for each row, and its products round each token's
inputs to e4m3 by its own largest magnitude: nothing of it is measured on a text.
"""

import torch
from torch import Tensor

from backends.vllm.checkpoint import FLOAT, float_name
from backends.vllm.checkpoint import stored as floats_stored
from backends.vllm.codes import FP8, FP8_MAX
from backends.vllm.families import module_of
from planner.errors import InputError
from planner.executor import Weights
from planner.formats import FP8_ROWS
from planner.plan import Plan

ROWWISE = "FP8_PER_CHANNEL_PER_TOKEN"


def rows8(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Codes [rows, cols] e4m3 and float32 scales [rows].

    >>> codes, scale = rows8(torch.tensor([[448.0, 1.0], [0.0, 0.0]]))
    >>> codes.float().tolist(), scale.tolist()
    ([[448.0, 1.0], [0.0, 0.0]], [1.0, 0.0])
    """
    scale = matrix.float().abs().amax(-1) / FP8_MAX
    divided = matrix.float() / torch.where(scale == 0, 1.0, scale)[:, None]
    return divided.clamp(-FP8_MAX, FP8_MAX).to(FP8), scale


def read_back(matrix: Tensor) -> Tensor:
    """A matrix, or the inputs [tokens, inputs] of a product, as float32 numbers of e4m3."""
    codes, scale = rows8(matrix)
    return codes.float() * scale[:, None]


def tensors(plan: Plan, weights: Weights) -> dict[str, Tensor]:
    """What model.safetensors holds: float32 where the plan has no choice."""
    formats = {site.tensor: choice.format for site, choice in plan.weights}
    kind = float_name(weights.config)
    found: dict[str, Tensor] = {}
    for name in weights.names():
        form = formats.get(name)
        if form is None:
            found[name] = torch.from_numpy(weights.dense(name)).float()
        elif form == FP8_ROWS:
            codes, scale = rows8(torch.from_numpy(weights.dense(name)))
            found |= {name: codes, f"{module_of(name)}.weight_scale": scale}
        elif form == FLOAT:
            found |= floats_stored(name, form, weights, kind)
        else:
            raise InputError(f"{name}: tensorrt-llm is written {FP8_ROWS} and floats, not {form}")
    return {name: tensor.contiguous() for name, tensor in found.items()}


def quantised(plan: Plan) -> dict[str, dict[str, str]]:
    """The layers with a format of their own."""
    return {module_of(s.tensor): {"quant_algo": ROWWISE} for s, choice in plan.weights if choice.format == FP8_ROWS}


def hf_quant_config(plan: Plan, cache: str | None) -> dict[str, object]:
    """hf_quant_config.json; `cache` is the algorithm of keys and values, if they have one."""
    floats = [module_of(site.tensor) for site, choice in plan.weights if choice.format == FLOAT]
    told = {} if cache is None else {"kv_cache_quant_algo": cache}
    return {
        "producer": {"name": "planner", "version": plan.provenance.planner_version},
        "quantization": {"quant_algo": "MIXED_PRECISION", **told, "exclude_modules": floats},
    }


def quant_cfg(plan: Plan, cache: str | None) -> dict[str, object]:
    """quant_cfg.json, read where hf_quant_config.json says that formats are mixed. It has to name the cache's."""
    return {"quant_algo": "MIXED_PRECISION", "kv_cache_quant_algo": cache, "quantized_layers": quantised(plan)}
