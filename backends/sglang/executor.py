"""A model planned for SGLang: vLLM's checkpoint, and the arguments of its server in a YAML file.

It reads compressed-tensors as vLLM does. Its cache has one type for the model, and which of its models take windows
layer by layer was not tried, so none are planned. Known of its source alone: nothing of it runs here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from backends.manifests import AroundVllm, Schema, as_yaml, note, without
from backends.vllm.capabilities import VERSIONS as VLLM
from backends.vllm.checkpoint import float_name
from backends.vllm.serve import SERVE_SH, SERVE_YAML
from backends.vllm.windows import layer_choices
from planner.executor import Artifact, Capabilities
from planner.formats import FP8
from planner.plan import Plan
from planner.space import KvChoice
from planner.spec import ModelSpec

VERSIONS = (replace(VLLM[-1], runtime="sglang", version="0.5.23", spans="full", kv_one="model", offloads=False),)
SCHEMA = Schema.of(Path(__file__).parent)
MANIFEST = "sglang.yaml"

SCRIPT = """#!/bin/sh
# Serves this directory; takes further options of sglang.launch_server.
cd "$(dirname "$0")" || exit
exec python3 -m sglang.launch_server --config sglang.yaml "$@"
"""


@dataclass
class SglangExecutor(AroundVllm):
    """SGLang for one model."""

    table: ClassVar[Capabilities] = VERSIONS[-1]

    def emit(self, plan: Plan, spec: ModelSpec) -> tuple[Artifact, ...]:
        told = arguments(plan, layer_choices(plan, spec), self.weights.config)
        return (
            *without(super().emit(plan, spec), (SERVE_YAML, SERVE_SH)),
            as_yaml(MANIFEST, SCHEMA, told),
            Artifact("serve.sh", SCRIPT.encode()),
            note("SGLang", [SCHEMA]),
        )


def arguments(plan: Plan, layers: Sequence[KvChoice], config: str) -> dict[str, object]:
    """What sglang.launch_server is to be told, by the names of its options."""
    workload = plan.workload
    coded = {"kv-cache-dtype": "fp8_e4m3"} if layers[0].k == FP8 else {}
    return {
        "model-path": ".",
        "served-model-name": plan.name,
        "dtype": float_name(config),
        "context-length": workload.longest_tokens,
        "max-running-requests": workload.batch,
        "chunked-prefill-size": workload.prefill_chunk_tokens,
        **coded,
    }
