"""A transformers config read as untrusted text: sane JSON of a family that can be handled, or a line saying why not."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from planner.errors import InputError
from profiles.sources.checkpoint import Checkpoint
from profiles.sources.told import one_line, quiet

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "gemma3_text", "gpt2", "mixtral", "phi", "phi3")
MOST_BYTES = 16 << 20
MOST_LAYERS = 2048
MOST_EXTENT = 1 << 24  # of any one dimension: eight times the largest vocabulary there is

_EXTENTS = (
    *("hidden_size", "intermediate_size", "vocab_size", "num_attention_heads", "num_key_value_heads", "head_dim"),
    *("n_embd", "n_head", "n_inner", "n_positions", "max_position_embeddings", "num_local_experts"),
    *("num_experts_per_tok", "sliding_window"),
)
_ARCHITECTURES = {
    **dict.fromkeys(("bloom", "mpt"), "ALiBi position biases"),
    **dict.fromkeys(("mamba", "mamba2", "falcon_mamba", "rwkv", "jamba", "bamba", "zamba2"), "state-space layers"),
    **dict.fromkeys(("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"), "linear-attention layers"),
    **dict.fromkeys(("deepseek_v2", "deepseek_v3"), "multi-head latent attention"),
    **dict.fromkeys(("bert", "roberta", "modernbert"), "an encoder, which has no cache"),
    "gemma2": "attention logit softcapping, which SDPA has not",
    "lfm2": "convolution layers",
}


def open_config(path: Path, source: str) -> Checkpoint:
    """The shapes that a bare config.json describes; it has no weights."""
    from profiles.sources.family import model_spec

    config = parse_config(read_json(path), str(path))
    spec = model_spec(config, str(path), source=source)
    return Checkpoint(spec, config_text(config), path, "config", ("a bare config has shapes and no weights",))


def read_json(path: Path) -> Mapping[str, object]:
    """The JSON object of a file."""
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise InputError(f"{path}: has {size} bytes; a JSON file of at most {MOST_BYTES} can be")
    try:
        data = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not JSON: {one_line(error)}") from None
    if not isinstance(data, dict):
        raise InputError(f"{path}: holds a JSON {type(data).__name__}; needs an object")
    return data


def parse_config(data: Mapping[str, object], where: str) -> "PreTrainedConfig":
    """transformers' config of this data; `where` names the file in messages."""
    refuse(data, where)
    _check_numbers(data, where)
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    values = {key: value for key, value in data.items() if key != "model_type"}
    try:
        with quiet():
            return AutoConfig.for_model(str(data["model_type"]), **values)
    except (StrictDataclassError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputError(
            f"{where}: transformers cannot read this {data['model_type']} config: {one_line(error)}"
        ) from None


def config_text(config: "PreTrainedConfig") -> str:
    """The config as config.json would hold it."""
    return config.to_json_string()


def refuse(data: Mapping[str, object], where: str) -> None:
    """InputError, with part and reason, where a config asks for what is not handled here."""
    family = data.get("model_type")
    if "auto_map" in data:
        raise InputError(
            f"{where}: auto_map: the model brings its own code, which is never run; give one of {_known()}"
        )
    if not isinstance(family, str):
        raise InputError(f"{where}: model_type: found {family!r}; needs one of {_known()}")
    for key in ("text_config", "llm_config", "language_config", "vision_config", "audio_config"):
        if key in data:
            raise InputError(f"{where}: {key}: {family} is multimodal; give the text model, saved by itself")
    if family in FAMILIES and data.get("quantization_config") is not None:
        raise InputError(
            f"{where}: quantization_config: the weights are already quantised; give the float checkpoint or a GGUF"
        )
    if reason := _unsupported(data, family):
        raise InputError(f"{where}: {reason}, which cannot be handled here; give a model of {_known()}")
    if family not in FAMILIES:
        raise InputError(f"{where}: model_type: found {family!r}; the families handled are {_known()}")


def _unsupported(data: Mapping[str, object], family: str) -> str | None:
    """The part of a model that has no place in the planner."""
    layer_types = data.get("layer_types")
    odd = {str(kind) for kind in layer_types} if isinstance(layer_types, list) else set()
    odd -= {"full_attention", "sliding_attention"}
    parts = (
        (data.get("kv_lora_rank"), f"kv_lora_rank: {family} has multi-head latent attention"),
        (data.get("is_encoder_decoder"), f"is_encoder_decoder: {family} is an encoder-decoder model"),
        (data.get("add_cross_attention"), f"add_cross_attention: {family} has cross attention"),
        (data.get("attn_logit_softcapping"), "attn_logit_softcapping: SDPA has no softcapping of attention logits"),
        (data.get("alibi"), f"alibi: {family} has ALiBi position biases"),
        (data.get("ssm_cfg") or data.get("mamba_d_state"), f"{family} has state-space layers"),
        (odd, f"layer_types: {family} has {', '.join(sorted(odd))} layers"),
        (family in _ARCHITECTURES, f"model_type: {family} has {_ARCHITECTURES.get(family)}"),
    )
    return next((reason for found, reason in parts if found), None)


def _check_numbers(data: Mapping[str, object], where: str) -> None:
    """Extents are positive and not absurd, so that nothing is built, or looped over, that could not be a model."""
    limits = {**dict.fromkeys(_EXTENTS, MOST_EXTENT), **dict.fromkeys(("num_hidden_layers", "n_layer"), MOST_LAYERS)}
    for key, most in limits.items():
        value = data.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise InputError(f"{where}: {key}: found {value!r}; needs an integer from 1 to {most}")


def _known() -> str:
    return ", ".join(FAMILIES)
