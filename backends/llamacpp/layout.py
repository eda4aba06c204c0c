"""What a plan becomes for llama.cpp: one type of keys and one of values, windows by layer, and a command line.

The cache has whole cells of all heads: a layer keeps every token or one window that all windowed layers share, and
nothing beside a window. `check` says which of a plan's decisions that cannot carry.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TypedDict

from backends.llamacpp.architecture import gguf_name, refusal
from backends.llamacpp.gguf_file import FileBytes
from planner.errors import InputError
from planner.formats import GGML_KV, KV_BLOCK
from planner.plan import Plan
from planner.space import Full, KvChoice, KvFormat, KvSite, Tier
from planner.spec import LayerSpec, ModelSpec

CELLS = 256
"""The cache is rounded up to so many tokens (src/llama-kv-cache-iswa.cpp, src/llama-context.cpp)."""

CHUNK_TOKENS = 256
"""Tokens that are computed at once (-ub); a windowed layer's cache has room for as many beside its window."""

FASTEST_TIERS = ("hbm", "vram")
"""Memory of a GPU; anything else is the host's."""


class Settings(TypedDict):
    """llama.json: how the file is to be run."""

    context_tokens: int
    batch: int
    cache_type_k: str
    cache_type_v: str
    chunk_tokens: int
    window: int | None
    gpu: bool
    host_tensors: list[str]
    host_cache: bool
    kv_width: int
    file_bytes: dict[str, int]


@dataclass(frozen=True, slots=True)
class Cache:
    """The types of keys and values, and each layer's window."""

    k: str
    v: str
    windows: tuple[int | None, ...]


def cache_type(form: KvFormat) -> str:
    """llama.cpp's name (-ctk, -ctv) of a format; InputError where it caches none such.

    >>> cache_type(KvFormat(16)), cache_type(KvFormat(8, "q8_0"))
    ('f16', 'q8_0')
    """
    if form.scheme == "float" and form.bits in (16, 32):
        return f"f{form.bits:g}"
    if form.scheme in GGML_KV:
        return form.scheme
    raise InputError(
        f"no KV format has {form.bits:g} bits in scheme {form.scheme!r}; llama.cpp has f32, f16, {', '.join(GGML_KV)}"
    )


def cache(plan: Plan, spec: ModelSpec, config: str) -> Cache:
    """How a plan's cache is kept; InputError names the first decision that llama.cpp cannot carry."""
    first, like = plan.kv[0]
    for site, choice in plan.kv:
        for part, form, other in (("keys", choice.k, like.k), ("values", choice.v, like.v)):
            if form != other:
                raise InputError(
                    f"{site}: {part} in {cache_type(form)} where {first} has {cache_type(other)}; llama.cpp has one"
                    " type for all"
                )
    for part, form in (("k", like.k), ("v", like.v)):
        dims = {layer.head_dim for layer in spec.layers}
        if form.scheme in GGML_KV and any(dim % KV_BLOCK for dim in dims):
            raise InputError(f"-ct{part} {form.scheme}: its blocks of {KV_BLOCK} do not divide heads of {min(dims)}")
    windows = tuple(_layer_window(i, layer, plan) for i, layer in enumerate(spec.layers))
    lengths = sorted({window for window in windows if window is not None})
    if len(lengths) > 1:
        raise InputError(f"windows of {lengths[0]} and {lengths[-1]} tokens; llama.cpp has one length for a model")
    if why := refusal(config, bool(lengths)):
        raise InputError(f"llama.cpp: {why}")
    return Cache(cache_type(like.k), cache_type(like.v), windows)


def _layer_window(index: int, layer: LayerSpec, plan: Plan) -> int | None:
    chosen = [choice for site, choice in plan.kv if site.layer == index]
    if len({choice.span for choice in chosen}) > 1:
        raise InputError(f"layer {index}: its heads keep different spans; llama.cpp has one for a layer")
    choice = chosen[0]
    if isinstance(choice.span, Full):
        return layer.window
    if choice.sinks and layer.window is None:
        raise InputError(
            f"{KvSite(index, 0)}: keeps {choice.sinks} protected tokens beside a window; llama.cpp keeps none"
        )
    tokens = choice.span.tokens(plan.workload.longest_tokens)
    return tokens if layer.window is None else min(tokens, layer.window)


def cells(window: int | None, context_tokens: int) -> int:
    """Tokens that one sequence's cache has room for in a layer.

    >>> cells(None, 1000), cells(100, 1000), cells(900, 1000)
    (1024, 512, 1024)
    """
    whole = -(-context_tokens // CELLS) * CELLS
    if window is None:
        return whole
    return min(-(-(window + CHUNK_TOKENS) // CELLS) * CELLS, whole)


def host_tensors(plan: Plan) -> list[str]:
    """The tensors that a plan leaves in the host's memory while others lie in a GPU's; none where there is no GPU.

    InputError where a tensor is split between memories, or lies beyond the host's.
    """
    tiers = {site.tensor: _tier(site.tensor, choice.tier) for site, choice in plan.weights}
    if not any(tier in FASTEST_TIERS for tier in tiers.values()):
        return []
    found = []
    for name, tier in tiers.items():
        if tier in FASTEST_TIERS:
            continue
        if tier != "dram":
            raise InputError(f"{name}: lies in {tier}; llama.cpp places tensors in a GPU's memory or the host's")
        found.append(gguf_name(name))
    return found


def host_cache(choices: Sequence[KvChoice]) -> bool:
    """Whether the cache lies in the host's memory; InputError where some of it does and some does not."""
    tiers = {_tier("the cache", choice.tier) for choice in choices}
    if len(tiers) > 1:
        raise InputError(f"the cache lies in {' and '.join(sorted(tiers))}; llama.cpp keeps all of it in one memory")
    return not tiers & set(FASTEST_TIERS)


def _tier(what: str, tier: Tier) -> str:
    if len(tier) > 1:
        raise InputError(f"{what}: is split over {', '.join(name for name, _ in tier)}; llama.cpp places it whole")
    return tier[0][0]


def settings(plan: Plan, cache: Cache, kv_width: int, size: FileBytes) -> Settings:
    """What llama.json says of a plan."""
    on_gpu = any(name in FASTEST_TIERS for _, choice in plan.weights for name, _ in choice.tier)
    return {
        "context_tokens": plan.workload.longest_tokens,
        "batch": plan.workload.batch,
        "cache_type_k": cache.k,
        "cache_type_v": cache.v,
        "chunk_tokens": CHUNK_TOKENS,
        "window": next((window for window in cache.windows if window is not None), None),
        "gpu": on_gpu,
        "host_tensors": host_tensors(plan),
        "host_cache": host_cache([choice for _, choice in plan.kv]),
        "kv_width": kv_width,
        "file_bytes": asdict(size),
    }


def arguments(settings: Settings) -> list[str]:
    """The arguments of llama-cli and llama-server beside the file itself."""
    found = ["-c", str(settings["context_tokens"] * settings["batch"]), "-np", str(settings["batch"])]
    found += ["-ctk", settings["cache_type_k"], "-ctv", settings["cache_type_v"], "-fa", "on"]
    found += ["-b", str(settings["chunk_tokens"]), "-ub", str(settings["chunk_tokens"]), "--no-context-shift"]
    if settings["gpu"]:
        found += ["-fit", "off", "-ngl", "999"]  # placement is the plan's
        found += ["-nkvo"] if settings["host_cache"] else []
        if settings["host_tensors"]:
            found += ["-ot", ",".join(f"^{pattern}$=CPU" for pattern in _patterns(settings["host_tensors"]))]
    return found


def _patterns(names: Sequence[str]) -> list[str]:
    """Regular expressions for tensors, layers of like matrices in one.

    >>> _patterns(["blk.0.ffn_up.weight", "blk.2.ffn_up.weight", "output.weight"])
    ['blk\\\\.(0|2)\\\\.ffn_up\\\\.weight', 'output\\\\.weight']
    """
    layers: dict[str, list[str]] = {}
    for name in names:
        match = re.fullmatch(r"blk\.(\d+)\.(.+)", name)
        layers.setdefault(match[2] if match else name, []).extend([match[1]] if match else [])
    return [
        rf"blk\.({'|'.join(found)})\.{re.escape(rest)}" if found else re.escape(rest) for rest, found in layers.items()
    ]


RUN = """#!/bin/sh
# Serve this model with llama.cpp: sh run.sh --port 8080. LLAMA names the program: LLAMA=llama-cli sh run.sh -p "Hello"
# Threads are llama.cpp's own choice; -t sets them.
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
exec "${{LLAMA:-llama-server}}" -m "$here/model.gguf" {arguments} "$@"
"""


def run_script(settings: Settings) -> str:
    """run.sh: the command line that carries the plan out."""
    quoted = [f"'{each}'" if re.search(r"[^\w.=-]", each) else each for each in arguments(settings)]
    return RUN.format(arguments=" ".join(quoted))
