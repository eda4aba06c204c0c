"""The decoder families that can be written as a graph: what differs between them, read from a config.json."""

import inspect
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from planner.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Floats = NDArray[np.float32]

FAMILIES = ("gemma3_text", "llama", "mistral", "phi", "phi3", "qwen2", "qwen3")

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu-tanh",
    "gelu_new": "gelu-tanh",
    "gelu_fast": "gelu-tanh",
    "gelu": "gelu",
}

STATIC_ROPE = ("default", "linear", "llama3", "yarn")
"""Rotary embeddings that are a table of positions; the others change it with the length of the prompt."""

ROTATED_PAIRS = 8
"""What GroupQueryAttention needs a multiple of in the columns of a rotary table."""


@dataclass(frozen=True, slots=True)
class Family:
    """What a graph of one model does beside its matrices. Tensor names are those of transformers, below a layer.

    `norm_offset` is added to the factors of a norm (Gemma); `sandwich` norms what a block adds, too; in a `parallel`
    layer attention and MLP both read the same normed input (Phi). Several names of `qkv` or `up` are one product.
    """

    layers: int
    layer_norm: bool
    eps: float
    norm_offset: float
    activation: str
    gated: bool
    sandwich: bool
    parallel: bool
    qk_norm: bool
    embed_scale: float
    attention_scale: float
    attention_softcap: float
    final_softcap: float
    qkv: tuple[str, ...]
    out: str
    up: tuple[str, ...]
    down: str
    final_norm: str


def family_of(config_json: str) -> Family:
    """The family of a config.json; InputError with the reason where no graph can be written for it."""
    config = settings(config_json)
    kind = config.model_type
    if kind not in FAMILIES:
        raise InputError(f"model_type: found {kind!r}; onnxruntime graphs are written for {', '.join(FAMILIES)}")
    for rope in _ropes(config):
        if rope.get("rope_type", "default") not in STATIC_ROPE:
            raise InputError(
                f"rope_parameters: found rope_type {rope['rope_type']!r}, whose table changes with the length of the"
                f" prompt; onnxruntime graphs take {', '.join(STATIC_ROPE)}"
            )
    activation = getattr(config, "hidden_activation", None) or config.hidden_act
    if activation not in ACTIVATIONS:
        raise InputError(f"hidden_act: found {activation!r}; onnxruntime graphs take {', '.join(ACTIVATIONS)}")
    if kind == "phi" and config.qk_layernorm:
        raise InputError("qk_layernorm: found true; onnxruntime graphs of phi take false")
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    gemma, phi = kind == "gemma3_text", kind == "phi"
    fused = kind == "phi3"
    return Family(
        layers=config.num_hidden_layers,
        layer_norm=phi,
        eps=config.layer_norm_eps if phi else config.rms_norm_eps,
        norm_offset=1.0 if gemma else 0.0,
        activation=ACTIVATIONS[activation],
        gated=not phi,
        sandwich=gemma,
        parallel=phi,
        qk_norm=kind in ("qwen3", "gemma3_text"),
        embed_scale=float(np.float32(config.hidden_size**0.5)) if gemma else 1.0,
        attention_scale=(config.query_pre_attn_scalar if gemma else head_dim) ** -0.5,
        attention_softcap=getattr(config, "attn_logit_softcapping", None) or 0.0,
        final_softcap=getattr(config, "final_logit_softcapping", None) or 0.0,
        qkv=("self_attn.qkv_proj",) if fused else tuple(f"self_attn.{part}_proj" for part in "qkv"),
        out="self_attn.dense" if phi else "self_attn.o_proj",
        up=("mlp.fc1",) if phi else ("mlp.gate_up_proj",) if fused else ("mlp.gate_proj", "mlp.up_proj"),
        down="mlp.fc2" if phi else "mlp.down_proj",
        final_norm="model.final_layernorm" if phi else "model.norm",
    )


def refusal(config_json: str) -> str:
    """Why no graph can be written for a config.json, or nothing."""
    try:
        family_of(config_json)
    except InputError as error:
        return str(error)
    return ""


def settings(config_json: str) -> "PreTrainedConfig":
    """A config.json as transformers reads it."""
    from transformers import AutoConfig

    return AutoConfig.for_model(**json.loads(config_json))


def _ropes(config: "PreTrainedConfig") -> list[dict[str, Any]]:
    """The rotary embeddings of a config: one, or one for each type of layer."""
    rope = getattr(config, "rope_parameters", None) or {}
    return [each for each in rope.values() if isinstance(each, dict)] if "rope_type" not in rope else [rope]


def rotary_tables(config_json: str, positions: int) -> list[tuple[Floats, Floats]]:
    """Cosines and sines [positions, rotated / 2] for every layer, as the model's own module computes them.

    Layers that turn alike share one table.
    """
    import torch
    from transformers import AutoModelForCausalLM

    config = settings(config_json)
    with torch.device("meta"):
        shapes = AutoModelForCausalLM.from_config(config)
    module = type(shapes.get_submodule("model.rotary_emb"))(config)
    by_type = "layer_type" in inspect.signature(module.forward).parameters
    kinds = config.layer_types if by_type else ["all"] * config.num_hidden_layers
    tables: dict[str, tuple[Floats, Floats]] = {}
    at, like = torch.arange(positions)[None], torch.zeros(1, dtype=torch.float32)
    for kind in kinds:
        if kind not in tables:
            found = module(like, at, layer_type=kind) if by_type else module(like, at)
            cos, sin = (np.ascontiguousarray(t[0, :, : t.shape[-1] // 2].numpy()) for t in found)
            if cos.shape[1] % ROTATED_PAIRS:
                raise InputError(
                    f"rope_parameters: turns {2 * cos.shape[1]} numbers of a head; onnxruntime graphs need a multiple"
                    f" of {2 * ROTATED_PAIRS}"
                )
            tables[kind] = cos, sin
    return [tables[kind] for kind in kinds]
