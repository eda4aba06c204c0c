"""Windows of a length of its own in every layer of a Llama, for vLLM: `plan_windows` of config.json, 0 for none.

This file is copied as it is into an artefact directory; vLLM finds it through its entry point where its folder is on
PYTHONPATH, and needs nothing else.
"""

import copy

from vllm import ModelRegistry
from vllm.config import VllmConfig
from vllm.model_executor.models.llama import LlamaDecoderLayer, LlamaForCausalLM
from vllm.model_executor.models.utils import extract_layer_index


class WindowedLayer(LlamaDecoderLayer):
    """A decoder layer that is told of its own window alone."""

    def __init__(self, vllm_config: VllmConfig, prefix: str = "") -> None:
        config = copy.copy(vllm_config.model_config.hf_config)
        window = config.plan_windows[extract_layer_index(prefix)]
        config.sliding_window = window or None
        config.layer_types = ["sliding_attention" if window else "full_attention"] * config.num_hidden_layers
        super().__init__(vllm_config, prefix, config)


class PlannedWindowsForCausalLM(LlamaForCausalLM):
    """A Llama whose layers have windows of their own."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix, layer_type=WindowedLayer)


def register() -> None:
    """Make the model known by the name that config.json has."""
    ModelRegistry.register_model("PlannedWindowsForCausalLM", "plan_windows:PlannedWindowsForCausalLM")
