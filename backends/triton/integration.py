"""The transformers runtime with its decode steps on kernels where a device runs them, and as it is elsewhere.

The caches are those of the runner, byte for byte, in one pool for all heads of a layer that are stored at the same
bits. A step of one new token per sequence is one `kv_append` and one `decode_attention` for each pool; prompts, which
come in chunks, are read by the runner's own attention, which writes the same pools through views.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import triton
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from backends.kernels import ragged
from backends.kernels.decode_attention import decode_attention
from backends.kernels.kv_append import FIELDS, kv_append
from backends.kernels.rotated import Stored, row_bytes
from backends.transformers import runner
from backends.transformers.runner import ClassCache, Code, PlannedCache, PlannedModel

ATTENTION = "planned-kernels"
RESIDENT_PROGRAMS = 2
LEAST_SLOTS = 512


def kernels_run(device: torch.device) -> bool:
    """Whether the kernels run on a device: GPUs of either make are "cuda" to torch, and the interpreter is a CPU's."""
    return device.type == "cuda" or bool(triton.knobs.runtime.interpret)


def multiprocessors(device: torch.device) -> int:
    """Of the device; what the interpreter stands for has 4."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


def pooled(caches: Sequence[ClassCache], part: str) -> Stored:
    """The keys ("k"), or values, of classes that are stored at the same bits, moved into one pool that they view."""
    codes = [cast(Code, getattr(cache, f"{part}_code")) for cache in caches]
    stores = [cast(tuple[Tensor, ...], getattr(cache, part)) for cache in caches]
    sinks = [cast(Tensor, getattr(cache, f"sink_{part}")) for cache in caches]
    pools = [_pool(list(tensors)) for tensors in zip(*stores, strict=True)]
    sink_pool, sink_views = _pool(sinks)
    for i, cache in enumerate(caches):
        setattr(cache, part, tuple(views[i] for _, views in pools))
        setattr(cache, f"sink_{part}", sink_views[i])
    code, low = codes[0], pools[0][0]
    if code.is_float:
        return Stored(code.bits, low, None, None, sink_pool, None, None)
    high = low[:, low.shape[1] * 2 // 3 :] if code.bits == 3 else None  # the low part of a row is two thirds of it
    mean, scale = (torch.cat([getattr(each, name)[:, 0] for each in codes]).contiguous() for name in ("mean", "scale"))
    return Stored(code.bits, low, high, pools[1][0][:, 0], sink_pool, mean if part == "k" else None, scale)


def _pool(tensors: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Rows of tensors [batch, heads, slots, n] one after another [rows, n], and views of it that replace them."""
    rows = [each.flatten(0, 2) for each in tensors]
    pool = torch.cat([*rows, rows[0].new_zeros(1, rows[0].shape[1])])  # a row more: a pool is never empty
    views, start = [], 0
    for each, flat in zip(tensors, rows, strict=True):
        views.append(pool[start : start + len(flat)].view(each.shape))
        start += len(flat)
    return pool, views


@dataclass(frozen=True)
class Pool:
    """The heads of one layer that are stored at the same bits.

    heads          KV heads of the layer, in the order of the pool's pairs in each sequence
    k, v           their slots
    regions        [batch * heads, FIELDS] int32, as `kv_append` has them
    sink_weight    slots that a protected one weighs; 0 where no head has any
    programs       that share the slots of a step
    """

    heads: list[int]
    k: Stored
    v: Stored
    regions: Tensor
    sink_weight: int
    programs: int

    @classmethod
    def of(cls, caches: Sequence[ClassCache], batch: int) -> "Pool":
        """One pool for some classes, which view it from now on."""
        heads = [head for cache in caches for head in cache.heads]
        regions: list[list[list[int]]] = [[] for _ in range(batch)]
        row = sink_row = static = 0
        for cache in caches:
            count, slots, sinks = len(cache.heads), cache.slots, cache.sinks
            for sequence in range(batch):
                for i, head in enumerate(cache.heads):
                    at = sequence * count + i
                    region = [row + at * slots, slots, sink_row + at * sinks, sinks, static + i, head]
                    regions[sequence].append(region + [0] * (FIELDS - len(region)))
            row, sink_row, static = row + batch * count * slots, sink_row + batch * count * sinks, static + count
        k, v = pooled(caches, "k"), pooled(caches, "v")
        dim = caches[0].k_code.head_dim
        float_bytes = sum(store.sinks.shape[1] * store.sinks.element_size() for store in (k, v))
        weight = ragged.sink_weight(float_bytes, row_bytes(k.bits, dim) + row_bytes(v.bits, dim))
        weight = weight if sink_row else 0
        flat = torch.tensor([region for each in regions for region in each], dtype=torch.int32)
        # Counted over full caches and once: a step does not wait for the device to tell how full they are.
        most = int(ragged.grains(flat[:, 3], flat[:, 1], weight).sum())
        resident = RESIDENT_PROGRAMS * multiprocessors(flat.device)
        return cls(heads, k, v, flat, weight, ragged.program_count(most, resident, LEAST_SLOTS))

    def work(self, tokens: Tensor) -> ragged.Schedule:
        """The shares of a step after which each sequence has so many tokens [batch]."""
        rows, rings, sink_rows, most_sinks, static = self.regions[:, :5].long().unbind(1)
        total = tokens.repeat_interleave(len(self.heads))
        sinks = torch.minimum(total, most_sinks)
        slots = torch.minimum((total - most_sinks).clamp(min=0), rings)
        return ragged.schedule(sinks, slots, rows, sink_rows, static, self.sink_weight, self.programs)


class KernelCache(PlannedCache):
    """The runner's cache with its classes pooled."""

    def __init__(self, plain: PlannedCache) -> None:
        self.context_tokens, self.seen, self.layers = plain.context_tokens, plain.seen, plain.layers
        self._valid, self._layouts = plain._valid, {}
        self.pools: list[list[Pool]] = []
        for layer in self.layers:
            alike: dict[tuple[int, int], list[ClassCache]] = {}
            for cache in layer:
                alike.setdefault((cache.k_code.bits, cache.v_code.bits), []).append(cache)
            self.pools.append([Pool.of(caches, len(self.seen)) for caches in alike.values()])

    def decode(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Attention of one new token per sequence, which is stored: q [batch, kv_heads, group, 1, head_dim]."""
        counts = self._valid.sum(1)
        out = torch.empty_like(q)
        for pool in self.pools[layer]:
            seen, new = self.seen.int(), counts.int()
            kv_append(k, v, pool.k, pool.v, pool.regions, seen, new, pool.sink_weight > 0)
            queries = q[:, pool.heads].flatten(0, 1)[:, :, 0].contiguous()
            made = decode_attention(queries, pool.k, pool.v, pool.work(self.seen + counts), scale, pool.sink_weight)
            out[:, pool.heads] = made.unflatten(0, (len(q), -1))[:, :, :, None]
        return out


def kernel_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    planned_cache: KernelCache | None = None,
    **rest: object,
) -> tuple[Tensor, None]:
    """Attention over the planned cache, as transformers calls it: query [batch, q_heads, tokens, head_dim]."""
    if planned_cache is None:
        raise RuntimeError("planned attention was called without planned_cache; use PlannedModel.step")
    batch, q_heads, tokens, dim = query.shape
    if tokens > 1:
        return runner.planned_attention(module, query, key, value, attention_mask, scaling, planned_cache, **rest)
    kv_heads, scale = key.shape[1], dim**-0.5 if scaling is None else scaling
    grouped = query.reshape(batch, kv_heads, q_heads // kv_heads, tokens, dim)
    out = planned_cache.decode(cast(int, module.layer_idx), grouped, key, value, scale)
    return out.reshape(batch, q_heads, tokens, dim).transpose(1, 2), None


AttentionInterface.register(ATTENTION, kernel_attention)
AttentionMaskInterface.register(ATTENTION, lambda *args, **kwargs: None)  # the cache masks by position itself


class KernelModel(PlannedModel):
    """A planned model on a device, its decode steps on kernels."""

    def __init__(self, plain: PlannedModel, device: torch.device) -> None:
        self.model, self.kinds, self.device = plain.model, plain.kinds, device
        self.model.to(device)  # type: ignore[arg-type]  # transformers wraps torch's own method
        for module in self.model.modules():
            if isinstance(module, runner.Packed) and module.scheme != "float":
                module.table = module.table.to(device)
        for code in {id(code): code for layer in self.kinds for kind in layer for code in kind[1:]}.values():
            for name in ("mean", "scale", "rotation", "book", "edges", "table"):
                setattr(code, name, getattr(code, name).to(device))
        self.model.set_attn_implementation(ATTENTION)

    def cache(self, batch: int, context_tokens: int) -> KernelCache:
        with self.device:
            return KernelCache(super().cache(batch, context_tokens))

    def step(self, cache: PlannedCache, ids: Tensor, valid: Tensor | None = None) -> Tensor:
        with self.device:
            return super().step(cache, ids, valid)

    def prefill(self, cache: PlannedCache, prompts: Sequence[Sequence[int]], chunk_tokens: int) -> Tensor:
        with self.device:
            return super().prefill(cache, prompts, chunk_tokens)


def on_device(plain: PlannedModel, device: torch.device) -> PlannedModel:
    """The model with its decode steps on kernels where the device runs them, else as it is: the physical torch path."""
    return KernelModel(plain, device) if kernels_run(device) else plain
