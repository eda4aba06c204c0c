"""A model planned for OpenVINO GenAI: a float checkpoint to convert, and the properties of its cache.

Its CPU cache takes keys and values in a type each, for the model. In `u8` a token's vector of one head, or a group of
it, has codes of 8 bits with a scale and a zero point in float32; here the group is the whole vector. Weights stay
floats: formats of its intermediate representation are made by its own converter. Known of its source alone: nothing of
it runs here.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import save

from backends.artefacts import json_bytes
from backends.manifests import AroundVllm, Schema, as_json, note, plain_config
from backends.vllm import checkpoint
from backends.vllm.executor import CHECKPOINT
from backends.vllm.windows import layer_choices
from planner.executor import Artifact, Capabilities, KvStatics
from planner.formats import U8
from planner.plan import Plan
from planner.space import FLOAT16, KvFormat, WeightFormat
from planner.spec import ModelSpec

VERSIONS = (
    Capabilities(
        runtime="openvino",
        version="2026.4",
        kv_formats=(FLOAT16, U8),
        weight_formats=(WeightFormat(16),),
        window_page_tokens=1,
        classes_per_layer=1,
        executes_here=False,
        native="none",
        spans="full",
        elastic=False,
        sinks=False,
        kv_one="model",
    ),
)
SCHEMA = Schema.of(Path(__file__).parent)
MANIFEST = "openvino.json"

SCRIPT = """#!/bin/sh
# Converts this directory into the folder openvino beside it, which openvino.json is for.
cd "$(dirname "$0")" || exit
exec optimum-cli export openvino --model . --task text-generation-with-past --weight-format fp16 openvino
"""


@dataclass
class OpenVinoExecutor(AroundVllm):
    """OpenVINO GenAI for one model."""

    table: ClassVar[Capabilities] = VERSIONS[-1]

    def recode_kv(
        self, part: Literal["k", "v"], form: KvFormat, values: NDArray[np.float32], statics: KvStatics
    ) -> NDArray[np.float32]:
        return u8_recoded(values) if form == U8 else super().recode_kv(part, form, values, statics)

    def identity(self) -> str:
        return f"{super().identity()} u8"

    def emit(self, plan: Plan, spec: ModelSpec) -> tuple[Artifact, ...]:
        return (
            Artifact("config.json", json_bytes(plain_config(self.weights.config))),
            Artifact(CHECKPOINT, save(checkpoint.tensors(plan, self.weights), {"format": "pt"})),
            *self.weights.companions(),
            as_json(MANIFEST, SCHEMA, settings(plan, spec)),
            Artifact("convert.sh", SCRIPT.encode()),
            note("OpenVINO GenAI", [SCHEMA]),
        )


def u8_recoded(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Vectors [tokens, head_dim] as they read back from 8 bits between the least and the largest number of each.

    >>> u8_recoded(np.array([[0.0, 255.0, 1.4], [2.0, 2.0, 2.0]], np.float32)).tolist()
    [[0.0, 255.0, 1.0], [2.0, 2.0, 2.0]]
    """
    low, high = values.min(-1, keepdims=True), values.max(-1, keepdims=True)
    step = (high - low) / np.float32(255)
    codes = np.rint((values - low) / np.where(step == 0, np.float32(1), step))
    read: NDArray[np.float32] = (codes * step + low).astype(np.float32)
    return read


def settings(plan: Plan, spec: ModelSpec) -> dict[str, object]:
    """openvino.json: the device, its properties, and the scheduler's limits."""
    choice, workload = layer_choices(plan, spec)[0], plan.workload
    names = {FLOAT16: "f16", U8: "u8"}
    properties: dict[str, object] = {
        "KEY_CACHE_PRECISION": names[choice.k],
        "VALUE_CACHE_PRECISION": names[choice.v],
    }
    for form, part in ((choice.k, "KEY"), (choice.v, "VALUE")):
        if form == U8:
            properties[f"{part}_CACHE_GROUP_SIZE"] = spec.layers[0].head_dim
    return {
        "device": "CPU",
        "properties": properties,
        "scheduler_config": {
            "max_num_batched_tokens": max(workload.prefill_chunk_tokens, workload.batch),
            "max_num_seqs": workload.batch,
            "dynamic_split_fuse": True,
        },
    }
