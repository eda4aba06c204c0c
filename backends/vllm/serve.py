"""The arguments a plan is served with: serve.yaml for `vllm serve --config`, and serve.sh that calls it."""

from collections.abc import Sequence

import yaml

from backends.vllm.checkpoint import float_name
from backends.vllm.families import fused_module
from backends.vllm.windows import PLUGIN_FOLDER, layer_choices, plugin, windows
from planner.errors import InputError
from planner.executor import Artifact
from planner.formats import FP8, weight_bytes
from planner.plan import Plan
from planner.space import KvChoice
from planner.spec import ModelSpec

GIB = 2**30
SERVE_YAML, SERVE_SH = "serve.yaml", "serve.sh"

LAYER_ORDER = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
"""A layer's matrices in the order in which vLLM makes them, and so moves them to the host."""


def arguments(plan: Plan, spec: ModelSpec, config: str) -> dict[str, object]:
    """serve.yaml: what `vllm serve` is to be told, by the names of its options."""
    workload = plan.workload
    told: dict[str, object] = {
        "model": ".",
        "served-model-name": plan.name,
        "dtype": float_name(config),
        "max-model-len": workload.longest_tokens,
        "max-num-seqs": workload.batch,
        "enable-chunked-prefill": True,
        "max-num-batched-tokens": max(workload.prefill_chunk_tokens, workload.batch),
    }
    return told | cache_type(layer_choices(plan, spec)) | offloading(plan, spec)


def cache_type(layers: Sequence[KvChoice]) -> dict[str, object]:
    """The arguments that say how keys and values are stored, and in which layers they are not.

    >>> from planner.space import FLOAT16, Full
    >>> whole = KvChoice(Full(), FLOAT16, FLOAT16, 0, (("hbm", 1.0),))
    >>> cache_type([whole, KvChoice(Full(), FP8, FP8, 0, (("hbm", 1.0),))])
    {'kv-cache-dtype': 'fp8_e4m3', 'kv-cache-dtype-skip-layers': ['0']}
    >>> cache_type([whole])
    {}
    """
    for index, choice in enumerate(layers):
        if choice.k != choice.v or (choice.k != FP8 and (choice.k.scheme, choice.k.bits) != ("float", 16)):
            raise InputError(f"layer {index}: keys in {choice.k} and values in {choice.v}; vllm has fp8 or a float")
    kept = [str(index) for index, choice in enumerate(layers) if choice.k != FP8]
    if len(kept) == len(layers):
        return {}
    return {"kv-cache-dtype": "fp8_e4m3"} | ({"kv-cache-dtype-skip-layers": kept} if kept else {})


def offloading(plan: Plan, spec: ModelSpec) -> dict[str, object]:
    """The arguments that keep matrices in host memory.

    vLLM is told how many bytes and which of a layer's matrices, and moves those of the first layers first, until it has
    so many: a plan that moves others is refused.
    """
    tiers = {choice.tier for _, choice in plan.kv}
    if len(tiers) > 1:
        raise InputError("a KV cache in more memories than one: vllm keeps all of it in the fastest")
    (fastest,) = tiers
    sizes = {tensor.name: tensor for tensor in spec.tensors}
    moved: dict[tuple[int, str], int] = {}
    kept: set[tuple[int, str]] = set()
    for site, choice in plan.weights:
        place = site.layer, fused_module(site.tensor).rpartition(".")[2]
        if choice.tier == fastest:
            kept.add(place)
        elif len(choice.tier) > 1:
            raise InputError(f"{site}: lies in {len(choice.tier)} memories; vllm moves whole matrices")
        else:
            moved[place] = moved.get(place, 0) + weight_bytes(sizes[site.tensor], choice.format)
    if not moved:
        return {}
    kinds = [kind for kind in LAYER_ORDER if any(kind == other for _, other in moved)]
    order = [(layer, kind) for layer in range(len(spec.layers)) for kind in kinds]
    if set(order[: len(moved)]) != set(moved) or kept & set(moved):
        raise InputError(
            f"{len(moved)} matrices in a slower memory are not those of the first layers; vllm moves these first"
        )
    # It goes on until it has as many: one byte less than all, so that rounding never adds another matrix.
    return {"cpu-offload-gb": (sum(moved.values()) - 1) / GIB, "cpu-offload-params": kinds}


def artifacts(plan: Plan, spec: ModelSpec, config: str) -> tuple[Artifact, ...]:
    """serve.yaml, and serve.sh that serves the directory it lies in."""
    text = yaml.safe_dump(arguments(plan, spec, config), sort_keys=False)
    return Artifact(SERVE_YAML, text.encode()), Artifact(SERVE_SH, script(bool(plugin(windows(plan, spec)))).encode())


def script(plugged: bool) -> str:
    """serve.sh. On a CPU with AMX vLLM rounds the inputs of four-bit products too unless it is told not to."""
    lines = [
        "#!/bin/sh",
        "# Serves this directory; takes further options of vllm serve.",
        'cd "$(dirname "$0")" || exit',
    ]
    if plugged:
        lines.append(f'export PYTHONPATH="$PWD/{PLUGIN_FOLDER}${{PYTHONPATH:+:$PYTHONPATH}}"')
    lines += ["export VLLM_CPU_INT4_W4A8=0", f'exec vllm serve --config {SERVE_YAML} "$@"', ""]
    return "\n".join(lines)
