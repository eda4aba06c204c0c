"""Shapes of published dense models by the names that tables of deployments use."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from planner.operators.step import DenseModel


@dataclass(frozen=True, slots=True)
class Published:
    """A model, and the kind of product its publisher's fp8 checkpoint needs: per tensor, or per block of 128 x 128."""

    shape: DenseModel
    fp8: str = "fp8"


_LLAMA_8B = Published(DenseModel(32, 4096, 32, 8, 128, 14336, 128256))
_LLAMA_70B = Published(DenseModel(80, 8192, 64, 8, 128, 28672, 128256))
_LLAMA_405B = Published(DenseModel(126, 16384, 128, 8, 128, 53248, 128256))


def _qwen3(layers: int, hidden: int, q_heads: int, ffn: int) -> Published:
    return Published(DenseModel(layers, hidden, q_heads, 8, 128, ffn, 151936, qk_norm=True), fp8="fp8_block")


# From the config.json of each on huggingface.co. Qwen publishes fp8 in blocks only (its model cards: "fine-grained fp8,
# block size 128"); Llama's fp8 checkpoints (Meta, NVIDIA ModelOpt, Neural Magic) are per tensor with stored scales.
MODELS: Mapping[str, Published] = {
    "llama-3-8b": _LLAMA_8B,
    "llama-3.1-8b": _LLAMA_8B,
    "llama-3-70b": _LLAMA_70B,
    "llama-3.1-70b": _LLAMA_70B,
    "llama-3.3-70b": _LLAMA_70B,
    "llama-3.1-405b": _LLAMA_405B,
    "qwen3-0.6b": _qwen3(28, 1024, 16, 3072),
    "qwen3-1.7b": _qwen3(28, 2048, 16, 6144),
    "qwen3-4b": _qwen3(36, 2560, 32, 9728),
    "qwen3-8b": _qwen3(36, 4096, 32, 12288),
    "qwen3-14b": _qwen3(40, 5120, 40, 17408),
    "qwen3-32b": _qwen3(64, 5120, 64, 25600),
    "qwen2.5-7b": Published(DenseModel(28, 3584, 28, 4, 128, 18944, 152064)),
    "qwen2.5-14b": Published(DenseModel(48, 5120, 40, 8, 128, 13824, 152064)),
    "qwen2.5-32b": Published(DenseModel(64, 5120, 40, 8, 128, 27648, 152064)),
    "qwen2.5-72b": Published(DenseModel(80, 8192, 64, 8, 128, 29568, 152064)),
    "mistral-7b": Published(DenseModel(32, 4096, 32, 8, 128, 14336, 32000)),
}


def published(path: str) -> Published | None:
    """The model of a repository's path, whoever publishes it and however it was tuned; None where it is not known.

    >>> published("meta-llama/Meta-Llama-3.1-8B-Instruct-FP8") == MODELS["llama-3.1-8b"]
    True
    >>> published("openai/gpt-oss-120b") is None
    True
    """
    name = path.rsplit("/", 1)[-1].lower()
    name = re.sub(r"-(instruct|base|hf|fp8|bf16|v0\.\d|2\d{3})(?=-|$)", "", name).removeprefix("meta-")
    return MODELS.get(name)
