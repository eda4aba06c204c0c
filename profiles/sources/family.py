"""The shapes of a model, read off the modules that transformers builds for its config without memory."""

import re
from typing import TYPE_CHECKING

from planner.errors import InputError
from planner.spec import LayerSpec, ModelSpec, TensorSpec
from profiles.sources.told import one_line, quiet

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel

# Routers, norms, biases and position tables stay float32 in every plan.
OTHER_BYTES_PER_ELEMENT = 4

WINDOW_IN_EVERY_LAYER = ("mistral", "mixtral", "phi3")
WINDOW_BY_LAYER_TYPE = ("qwen2", "qwen3", "gemma3_text")

_LAYER = re.compile(r"\.(?:layers|h)\.(\d+)\.")


def model_spec(
    config: "PreTrainedConfig", where: str, source: str, weights_sha256: str = "", licence: str = "unknown"
) -> ModelSpec:
    """The spec of a config; `where` names the file in messages."""
    model = skeleton(config, where)
    tensors = tuple(_tensors(model, config))
    decided = {tensor.name for tensor in tensors}
    other = sum(p.numel() for name, p in model.named_parameters() if name not in decided)
    return ModelSpec(
        family=config.model_type,
        source=source,
        weights_sha256=weights_sha256,
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
        max_positions=config.max_position_embeddings,
        layers=_layers(config, where),
        tensors=tensors,
        other_bytes=other * OTHER_BYTES_PER_ELEMENT,
        licence=licence,
    )


def skeleton(config: "PreTrainedConfig", where: str) -> "PreTrainedModel":
    """The model of a config on torch's meta device: every shape and no bytes."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with quiet(), torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{where}: transformers cannot build this {config.model_type}: {one_line(error)}") from None
    return model


def parameter_shapes(model: "nn.Module") -> dict[str, tuple[int, ...]]:
    """The shape of every parameter by its name in the state dict; a tied head is the embedding."""
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


def _tensors(model: "PreTrainedModel", config: "PreTrainedConfig") -> "list[TensorSpec]":
    """The matrices that are decisions, in the order of the state dict."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    embedding = model.get_input_embeddings()
    head = model.get_output_embeddings()
    tied = head is not None and head.weight is embedding.weight
    found = []
    for name, parameter in model.named_parameters():
        owner = model.get_submodule(name.rpartition(".")[0])
        shape = tuple(parameter.shape)
        layer = int(match[1]) if (match := _LAYER.search(name)) else -1
        if owner is embedding:
            found.append(TensorSpec(name, layer, shape[0], shape[1], active=1.0 if tied else 0.0))
        elif isinstance(owner, Conv1D) and len(shape) == 2:
            found.append(TensorSpec(name, layer, rows=shape[1], cols=shape[0]))  # GPT-2 stores [inputs, outputs]
        elif isinstance(owner, nn.Linear) and len(shape) == 2:
            found.append(TensorSpec(name, layer, shape[0], shape[1]))
        elif len(shape) == 3:
            experts, rows, cols = shape
            found.append(TensorSpec(name, layer, rows, cols, experts, config.num_experts_per_tok / experts))
    return found


def _layers(config: "PreTrainedConfig", where: str) -> tuple[LayerSpec, ...]:
    q_heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or q_heads  # GPT-2's config knows no KV heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // q_heads
    if q_heads % kv_heads:
        raise InputError(
            f"{where}: num_key_value_heads: found {kv_heads}; needs a divisor of the {q_heads} query heads"
        )
    return tuple(LayerSpec(q_heads, kv_heads, head_dim, window) for window in _windows(config, where))


def _windows(config: "PreTrainedConfig", where: str) -> list[int | None]:
    """Each layer's sliding window. A key that a family's model does not read is no window."""
    layers: int = config.num_hidden_layers
    if config.model_type in WINDOW_IN_EVERY_LAYER:
        return [config.sliding_window] * layers
    if config.model_type not in WINDOW_BY_LAYER_TYPE:
        return [None] * layers
    kinds, window = config.layer_types, config.sliding_window
    if len(kinds) != layers:
        raise InputError(f"{where}: layer_types: found {len(kinds)} entries for {layers} layers")
    if window is None and "sliding_attention" in kinds:
        raise InputError(f"{where}: sliding_window: found nothing; layer_types has sliding layers, which need a length")
    return [window if kind == "sliding_attention" else None for kind in kinds]
