"""A model planned for TensorRT-LLM: a checkpoint, its layers' formats, and the options of trtllm-serve.

`max_attention_window` has a length for every layer, which keeps so many of the newest tokens; keys and values have one
type for the model. Known of its source alone: nothing of it runs here.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save

from backends.artefacts import json_bytes
from backends.manifests import AroundVllm, Schema, as_json, as_yaml, note, plain_config
from backends.tensorrt_llm import checkpoint
from backends.vllm.families import FLOAT_ONLY, FUSED
from backends.vllm.windows import layer_choices, windows
from planner.executor import Artifact, Capabilities
from planner.formats import FP8, FP8_ROWS
from planner.plan import Plan
from planner.space import FLOAT16, WeightFormat
from planner.spec import ModelSpec

VERSIONS = (
    Capabilities(
        runtime="tensorrt-llm",
        version="1.2.1",
        kv_formats=(FLOAT16, FP8),
        weight_formats=(WeightFormat(16), FP8_ROWS),
        window_page_tokens=1,
        classes_per_layer=1,
        executes_here=False,
        kv_alike=True,
        native="none",
        spans="layer",
        elastic=False,
        sinks=False,
        kv_one="model",
        weight_sets=tuple(FUSED.values()),
        float_modules=FLOAT_ONLY,
    ),
)
HERE = Path(__file__).parent
OPTIONS, LAYERS, QUANT = (Schema.of(HERE, name) for name in ("options", "quant_cfg", "hf_quant_config"))
MANIFEST = "trtllm.yaml"

SCRIPT = """#!/bin/sh
# Serves this directory; takes further options of trtllm-serve.
cd "$(dirname "$0")" || exit
exec trtllm-serve serve . --backend pytorch --extra_llm_api_options trtllm.yaml "$@"
"""


@dataclass
class TensorRtLlmExecutor(AroundVllm):
    """TensorRT-LLM for one model."""

    table: ClassVar[Capabilities] = VERSIONS[-1]

    @property
    def capabilities(self) -> Capabilities:
        return self.table

    def recode_weight(self, name: str, form: WeightFormat) -> NDArray[np.float32]:
        if form != FP8_ROWS:
            return super().recode_weight(name, form)
        read: NDArray[np.float32] = checkpoint.read_back(torch.from_numpy(self.weights.dense(name))).numpy()
        return read

    def recode_input(self, form: WeightFormat, values: NDArray[np.float32]) -> NDArray[np.float32] | None:
        if form != FP8_ROWS:
            return None
        read: NDArray[np.float32] = checkpoint.read_back(torch.from_numpy(values)).numpy()
        return read

    def identity(self) -> str:
        return f"{super().identity()} {checkpoint.ROWWISE}"

    def emit(self, plan: Plan, spec: ModelSpec) -> tuple[Artifact, ...]:
        coded = layer_choices(plan, spec)[0].k == FP8
        cache = "FP8" if coded else None
        formats: tuple[Artifact, ...] = ()
        if coded or checkpoint.quantised(plan):
            formats = (
                as_json("hf_quant_config.json", QUANT, checkpoint.hf_quant_config(plan, cache)),
                as_json("quant_cfg.json", LAYERS, checkpoint.quant_cfg(plan, cache)),
            )
        return (
            Artifact("config.json", json_bytes(plain_config(self.weights.config))),
            Artifact("model.safetensors", save(checkpoint.tensors(plan, self.weights), {"format": "pt"})),
            *formats,
            as_yaml(MANIFEST, OPTIONS, options(plan, spec)),
            Artifact("serve.sh", SCRIPT.encode()),
            *self.weights.companions(),
            note("TensorRT-LLM", [OPTIONS, LAYERS, QUANT]),
        )


def options(plan: Plan, spec: ModelSpec) -> dict[str, object]:
    """The options of trtllm-serve: batch, lengths, chunks, and a cache with a window for every layer."""
    workload, found = plan.workload, windows(plan, spec)
    longest = workload.longest_tokens
    dtype = "fp8" if layer_choices(plan, spec)[0].k == FP8 else "auto"
    windowed = {"max_attention_window": [window or longest for window in found]} if any(found) else {}
    return {
        "max_batch_size": workload.batch,
        "max_seq_len": longest,
        "max_num_tokens": max(workload.prefill_chunk_tokens, workload.batch),
        "enable_chunked_prefill": True,
        "kv_cache_config": {"dtype": dtype, **windowed},
    }
