"""The model families vLLM is given, and how a decoder's modules are named and fused there."""

import json
from dataclasses import dataclass

from planner.errors import InputError


@dataclass(frozen=True, slots=True)
class Family:
    """One model_type: vLLM's class for it, and whether its layers can be windowed one by one through config.json."""

    architecture: str
    windowed_by_layer: bool


FAMILIES = {
    "llama": Family("LlamaForCausalLM", True),
    "qwen2": Family("Qwen2ForCausalLM", False),
    "qwen3": Family("Qwen3ForCausalLM", False),
}

FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""Matrices that vLLM multiplies with as one, by the name it has for them; they share a format."""

FLOAT_ONLY = ("embed_tokens", "lm_head")
"""Modules whose matrices stay floats."""


def family_of(config: str) -> Family:
    """The family of a model (its config.json); InputError where vLLM's checkpoints are not written for it."""
    found = refusal(config)
    if found:
        raise InputError(f"config.json: {found}")
    return FAMILIES[json.loads(config)["model_type"]]


def refusal(config: str) -> str:
    """Why a model cannot be written for vLLM, or nothing.

    >>> refusal('{"model_type": "gpt2"}')
    'model_type gpt2 is not written for vllm; known: llama, qwen2, qwen3'
    """
    found = json.loads(config).get("model_type")
    return "" if found in FAMILIES else f"model_type {found} is not written for vllm; known: {', '.join(FAMILIES)}"


def module_of(tensor: str) -> str:
    """The module a matrix belongs to.

    >>> module_of("model.layers.0.self_attn.q_proj.weight")
    'model.layers.0.self_attn.q_proj'
    """
    return tensor.removesuffix(".weight")


def fused_module(tensor: str) -> str:
    """The module of a matrix as vLLM names it.

    >>> fused_module("model.layers.0.self_attn.q_proj.weight"), fused_module("model.layers.0.mlp.down_proj.weight")
    ('model.layers.0.self_attn.qkv_proj', 'model.layers.0.mlp.down_proj')
    """
    parent, _, name = module_of(tensor).rpartition(".")
    whole = next((whole for whole, parts in FUSED.items() if name in parts), name)
    return f"{parent}.{whole}"
