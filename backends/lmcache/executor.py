"""A model planned for vLLM with LMCache: the host's memory keeps the KV cache of prompts that were read before.

LMCache moves whole chunks of all layers, and its connector was not tried beside layers of differing windows: plans for
it have none. It has room for the caches of as many requests as the plan's batch.
"""

from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import ClassVar

import yaml

from backends.manifests import AroundVllm, Schema, as_yaml, note, without
from backends.vllm.capabilities import VERSIONS as VLLM
from backends.vllm.serve import SERVE_SH, SERVE_YAML, arguments
from planner.executor import Artifact, Capabilities
from planner.formats import head_bytes
from planner.plan import Plan
from planner.spec import ModelSpec

VERSIONS = (replace(VLLM[-1], runtime="lmcache", version="0.5.6", spans="full"),)
SCHEMA = Schema.of(Path(__file__).parent)
MANIFEST = "lmcache.yaml"

CHUNK_TOKENS = 256
"""LMCache's own default: shorter prefixes than a chunk are not found again."""

GB = 2**30
CONNECTOR = '{"kv_connector": "LMCacheConnectorV1", "kv_role": "kv_both"}'

SCRIPT = """#!/bin/sh
# Serves this directory; takes further options of vllm serve.
cd "$(dirname "$0")" || exit
export LMCACHE_CONFIG_FILE="$PWD/lmcache.yaml"
exec vllm serve --config serve.yaml "$@"
"""


@dataclass
class LmcacheExecutor(AroundVllm):
    """vLLM with LMCache for one model."""

    table: ClassVar[Capabilities] = VERSIONS[-1]

    def emit(self, plan: Plan, spec: ModelSpec) -> tuple[Artifact, ...]:
        told = arguments(plan, spec, self.weights.config) | {"kv-transfer-config": CONNECTOR}
        return (
            *without(super().emit(plan, spec), (SERVE_YAML, SERVE_SH)),
            Artifact(SERVE_YAML, yaml.safe_dump(told, sort_keys=False).encode()),
            Artifact(SERVE_SH, SCRIPT.encode()),
            as_yaml(MANIFEST, SCHEMA, settings(plan, spec)),
            note("LMCache beside vLLM", [SCHEMA]),
        )


def settings(plan: Plan, spec: ModelSpec) -> dict[str, object]:
    """lmcache.yaml: room in the host's memory, in GiB rounded up to a tenth."""
    longest = plan.workload.longest_tokens
    each = sum(head_bytes(choice, spec.layers[site.layer], longest) for site, choice in plan.kv)
    return {
        "chunk_size": CHUNK_TOKENS,
        "local_cpu": True,
        "max_local_cpu_size": ceil(10 * each * plan.workload.batch / GB) / 10,
    }
