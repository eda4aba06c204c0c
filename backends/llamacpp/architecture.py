"""Which of llama.cpp's architectures computes a model, under which names, and why none does.

`llama` and Qwen's own compute models whole. Their graphs read no window; `granite_swa` reads one length and a pattern
of layers, and is a Llama where its scales are 1 and the logits that it adds to every softmax are so low that they weigh
nothing. Llama's rotation takes neighbouring rows, so rows of queries and keys are put in that order.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import pi
from typing import TypedDict

import numpy as np
from gguf import GGUFValueType
from numpy.typing import NDArray

from backends.llamacpp.gguf_bytes import Field

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
WINDOWED = "granite_swa"
NO_SINK_LOGIT = -1e9
"""A logit beside those of the tokens that no softmax feels, and that stays finite through all of ggml's kernels."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """How a file is laid out.

    name      what general.architecture says
    rotary    heads whose rows are put in Llama's order, by the name of the matrix in a layer
    windows   each layer's window, None where it keeps everything
    """

    name: str
    rotary: Mapping[str, int]
    windows: tuple[int | None, ...]

    @property
    def window(self) -> int | None:
        """The one length of the windows there are."""
        return next((window for window in self.windows if window is not None), None)


class Rope(TypedDict, total=False):
    """How positions rotate, in a config.json."""

    rope_type: str
    rope_theta: float
    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


class Config(TypedDict, total=False):
    """What is read of a config.json."""

    model_type: str
    hidden_act: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    rope_parameters: Rope
    rope_scaling: Rope


TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
IN_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    """A tensor's name in the file, of its name in transformers.

    >>> gguf_name("model.layers.3.self_attn.q_proj.weight"), gguf_name("model.norm.weight")
    ('blk.3.attn_q.weight', 'output_norm.weight')
    """
    stem, _, suffix = name.rpartition(".")
    if stem in TOP:
        return f"{TOP[stem]}.{suffix}"
    layer, _, leaf = stem.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{IN_LAYER[leaf]}.{suffix}"


def refusal(config: str, windowed: bool = False) -> str:
    """Why no architecture computes a model (its config.json), or nothing; `windowed` where a plan windows layers."""
    told: Config = json.loads(config)
    family = told.get("model_type")
    if family not in FAMILIES:
        return f"GGUF files are written for {', '.join(FAMILIES)}, and this is {family}"
    if told.get("hidden_act", "silu") != "silu":
        return f"hidden_act: llama.cpp computes silu in this family, and the model has {told['hidden_act']}"
    kind = _rope(told).get("rope_type", "default")
    if kind not in ("default", "linear", "llama3"):
        return f"rope_type: files are written for default, linear and llama3, and the model has {kind}"
    if windowed and family == "qwen3":
        return f"no architecture of llama.cpp that reads a pattern of windows norms queries and keys as {family} does"
    return ""


def architecture(config: str, windows: Sequence[int | None]) -> Architecture:
    """The layout for a model whose layers keep so many tokens; `refusal` has been asked."""
    told: Config = json.loads(config)
    windowed = any(window is not None for window in windows)
    family = "llama" if told["model_type"] == "mistral" else str(told["model_type"])
    heads = int(told["num_attention_heads"])
    rotary = {"attn_q": heads, "attn_k": int(told.get("num_key_value_heads") or heads)}
    name = WINDOWED if windowed else family
    return Architecture(name, rotary if name in ("llama", WINDOWED) else {}, tuple(windows))


def fields(config: str, layout: Architecture) -> list[Field]:
    """What the file says of the model's shape."""
    told: Config = json.loads(config)
    name = layout.name
    heads, dim = int(told["num_attention_heads"]), _head_dim(told)
    counts = {
        "context_length": told["max_position_embeddings"],
        "embedding_length": told["hidden_size"],
        "block_count": told["num_hidden_layers"],
        "feed_forward_length": told["intermediate_size"],
        "attention.head_count": heads,
        "attention.head_count_kv": told.get("num_key_value_heads") or heads,
        "attention.key_length": dim,
        "attention.value_length": dim,
        "rope.dimension_count": dim,
        "vocab_size": told["vocab_size"],
    }
    found = [Field.of("general.architecture", GGUFValueType.STRING, name)]
    found += [Field.of(f"{name}.{key}", GGUFValueType.UINT32, int(value)) for key, value in counts.items()]
    numbers = {
        "attention.layer_norm_rms_epsilon": told["rms_norm_eps"],
        "rope.freq_base": _rope(told).get("rope_theta", told.get("rope_theta", 10000.0)),
    }
    if layout.window is not None:
        numbers["logit_scale"] = 1.0
        found.append(Field.of(f"{name}.attention.sliding_window", GGUFValueType.UINT32, layout.window))
        pattern = [window is not None for window in layout.windows]
        found.append(Field.of(f"{name}.attention.sliding_window_pattern", GGUFValueType.BOOL, pattern))
    if _rope(told).get("rope_type") == "linear":
        found.append(Field.of(f"{name}.rope.scaling.type", GGUFValueType.STRING, "linear"))
        numbers["rope.scaling.factor"] = _rope(told)["factor"]
    found += [Field.of(f"{name}.{key}", GGUFValueType.FLOAT32, float(value)) for key, value in numbers.items()]
    return found


def extra_vectors(config: str, layout: Architecture) -> dict[str, NDArray[np.float32]]:
    """Vectors that the file has and the model has not: rotary factors, and sink logits that weigh nothing."""
    told: Config = json.loads(config)
    found = {}
    if _rope(told).get("rope_type") == "llama3":
        found["rope_freqs.weight"] = _llama3_factors(told)
    if layout.window is not None:
        logits = np.full(int(told["num_attention_heads"]), NO_SINK_LOGIT, np.float32)
        found |= {f"blk.{i}.attn_sinks.weight": logits for i in range(len(layout.windows))}
    return found


def in_file_order(rows: NDArray[np.generic], heads: int) -> NDArray[np.generic]:
    """Rows of queries or keys, the halves of each head's rotation interleaved as Llama's graph wants them.

    >>> in_file_order(np.arange(8), 2).tolist()
    [0, 2, 1, 3, 4, 6, 5, 7]
    """
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def in_model_order(rows: NDArray[np.generic], heads: int) -> NDArray[np.generic]:
    """Rows of queries or keys as transformers has them, of the rows of a file in Llama's order.

    >>> in_model_order(in_file_order(np.arange(12), 2), 2).tolist() == list(range(12))
    True
    """
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _head_dim(told: Config) -> int:
    return told.get("head_dim") or told["hidden_size"] // told["num_attention_heads"]


def _rope(told: Config) -> Rope:
    none: Rope = {}
    return told.get("rope_parameters") or told.get("rope_scaling") or none


def _llama3_factors(told: Config) -> NDArray[np.float32]:
    """What each frequency is divided by: nothing where it is high, `factor` where it is low (Llama 3.1's rule)."""
    rope, dim = _rope(told), _head_dim(told)
    frequency = 1.0 / rope["rope_theta"] ** (np.arange(0, dim, 2) / dim)
    turns = rope["original_max_position_embeddings"] * frequency / (2 * pi)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    factors: NDArray[np.float32] = (1.0 / ((1 - smooth) / rope["factor"] + smooth)).astype(np.float32)
    return factors
