"""The transformers runtime on kernels: its attention, prompts and decode steps, and its packed products.

The caches are those of the runner, byte for byte, in one pool for all heads of a layer that are stored at the same
bits. A step of one new token per sequence is one `kv_append` and one `decode_attention` for each pool, a chunk of a
prompt one or two `kv_append` and one `prefill_attention`; packed matrices are multiplied by `dequant_matmul`. Variants
are those the plan was compiled with, the fastest of them once they ran on a GPU. This file is copied into artefacts as
it is, but for the names of its imports.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
import triton
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from backends.kernels import ragged
from backends.kernels.contract import Variant
from backends.kernels.decode_attention import DEFAULT, decode_attention
from backends.kernels.dequant_matmul import dequant_matmul, multiplies
from backends.kernels.kv_append import FIELDS, kv_append
from backends.kernels.planned import Tuned, tuned
from backends.kernels.prefill_attention import prefill_attention
from backends.kernels.rotated import Stored, row_bytes
from backends.transformers import runner
from backends.transformers.runner import ClassCache, Code, PlannedCache, PlannedModel

ATTENTION = "planned-kernels"
FEW_ROWS = 64
"""Rows of a product up to which variants for decoding are the better ones."""


def kernels_run(device: torch.device) -> bool:
    """Whether the kernels run on a device: GPUs of either make are "cuda" to torch, and the interpreter is a CPU's."""
    return device.type == "cuda" or bool(triton.knobs.runtime.interpret)


def multiprocessors(device: torch.device) -> int:
    """Of the device; what the interpreter stands for has 4."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


# --- caches ---------------------------------------------------------------------------------------


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
    code, rows = codes[0], pools[0][0]
    if code.is_float:
        return Stored(code.bits, rows, None, None, sink_pool, None, None)
    mean, scale = (torch.cat([getattr(each, name)[:, 0] for each in codes]).half() for name in ("mean", "scale"))
    norms = pools[1][0][:, 0]
    return Stored(code.bits, rows, _high(code.bits, rows), norms, sink_pool, mean if part == "k" else None, scale)


def _high(bits: int, rows: Tensor) -> Tensor | None:
    """The last bit of 3-bit codes, which lies in the last third of their rows; None of others."""
    return rows[:, rows.shape[1] * 2 // 3 :] if bits == 3 else None


def _pool(tensors: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Rows of tensors [batch, heads, slots, n] one after another [rows, n], and views of it that replace them."""
    rows = [each.flatten(0, 2) for each in tensors]
    pool = torch.cat([*rows, rows[0].new_zeros(1, rows[0].shape[1])])  # a row more: a pool is never empty
    views, start = [], 0
    for each, flat in zip(tensors, rows, strict=True):
        views.append(pool[start : start + len(flat)].view(each.shape))
        start += len(flat)
    return pool, views


def longer(store: Stored, spare: int) -> Stored:
    """A copy of a pool's slots with so many rows more; sinks and factors are the same tensors."""

    def more(rows: Tensor) -> Tensor:
        return torch.cat([rows, rows.new_zeros(spare, *rows.shape[1:])])

    low = more(store.low)
    return replace(
        store, low=low, high=_high(store.bits, low), norms=None if store.norms is None else more(store.norms)
    )


@dataclass(frozen=True)
class Pool:
    """The heads of one layer that are stored at the same bits.

    heads          KV heads of the layer, in the order of the pool's pairs in each sequence
    k, v           their slots
    regions        [batch * heads, FIELDS] int32, as `kv_append` has them
    head_dim       of a vector
    slot_bytes     of a key and a value
    sink_weight    slots that a protected one weighs; 0 where no head has any
    grains         of its full slots, which a step's programs share
    """

    heads: list[int]
    k: Stored
    v: Stored
    regions: Tensor
    head_dim: int
    slot_bytes: int
    sink_weight: int
    grains: int
    decode: Tuned[Tensor]
    prefill: Tuned[Tensor]
    append: Tuned[None]
    append_chunk: Tuned[None]

    @classmethod
    def of(cls, caches: Sequence[ClassCache], layer: int, batch: int) -> "Pool":
        """One pool for some classes of a layer, which view it from now on."""
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
        slot_bytes = row_bytes(k.bits, dim) + row_bytes(v.bits, dim)
        weight = ragged.sink_weight(float_bytes, slot_bytes)
        weight = weight if sink_row else 0
        flat = torch.tensor([region for each in regions for region in each], dtype=torch.int32)
        # Counted over full caches and once: a step does not wait for the device to tell how full they are.
        grains = int(ragged.grains(flat[:, 3], flat[:, 1], weight).sum())
        serves = f"layer {layer} kv heads {', '.join(map(str, sorted(heads)))}"
        decode = tuned("decode_attention", "decode", serves, shared_attention)
        prefill = tuned("prefill_attention", "prefill", serves, prefill_attention)
        append, append_chunk = (tuned("kv_append", phase, serves, kv_append) for phase in ("decode", "prefill"))
        return cls(heads, k, v, flat, dim, slot_bytes, weight, grains, decode, prefill, append, append_chunk)

    @property
    def most_sinks(self) -> int:
        """The most sinks of a head."""
        return int(self.regions[:, 3].max())

    def work(self, tokens: Tensor, group: int, variant: Variant) -> ragged.Schedule:
        """The shares of a step after which each sequence has so many tokens [batch], with so many queries of a head."""
        resident = variant.tile("RESIDENT") * multiprocessors(tokens.device)
        each = ragged.partial_slots(group, self.head_dim, self.slot_bytes)
        programs = ragged.program_count(self.grains, len(self.regions), resident, variant.tile("LEAST_SLOTS"), each)
        rows, rings, sink_rows, most_sinks, static = self.regions[:, :5].long().unbind(1)
        total = tokens.repeat_interleave(len(self.heads))
        sinks = torch.minimum(total, most_sinks)
        slots = torch.minimum((total - most_sinks).clamp(min=0), rings)
        return ragged.schedule(sinks, slots, rows, sink_rows, static, self.sink_weight, programs)

    def step(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor, new: Tensor, scale: float) -> Tensor:
        """Attention of at most one new token per sequence: q, and what is returned, [batch, heads, group, 1, dim]."""
        self.append(k, v, self.k, self.v, self.regions, seen.int(), new.int(), self.sink_weight > 0)
        queries = q.flatten(0, 1)[:, :, 0].contiguous()
        made = self.decode(self, queries, seen + new, scale)
        out: Tensor = made.unflatten(0, (len(q), -1))[:, :, :, None]
        return out

    def chunk(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor, new: Tensor, scale: float) -> Tensor:
        """Attention of a chunk of new tokens: q, and what is returned, [batch, heads, group, tokens, dim].

        Rings that have room for the chunk take it at once. Where one has not, the chunk goes behind a copy of the slots
        that lives as long as this, and into the rings when all of its queries have seen what it pushes out.
        """
        rows, rings, sink_rows, sinks = self.regions[:, :4].unbind(1)
        before, count = (each.int().repeat_interleave(len(self.heads)) for each in (seen, new))
        fits = before + count - sinks <= rings
        spare = len(self.k.low) + k.shape[2] * torch.arange(len(fits))
        first = self.regions.clone()
        first[:, 0] = torch.where(fits, rows, spare)
        first[:, 1] = torch.where(fits, rings, k.shape[2])
        first[:, 6] = torch.where(fits, 0, before - sinks)
        all_fit, has_sinks = bool(fits.all()), self.sink_weight > 0
        stores = [each if all_fit else longer(each, k.shape[2] * len(fits)) for each in (self.k, self.v)]
        self.append_chunk(k, v, *stores, first, seen.int(), new.int(), has_sinks)
        fresh = torch.where(fits, rows + before - sinks, spare)
        records = torch.stack([before, count, sinks, rings.clamp(min=1), rows, sink_rows, fresh], 1).int()
        out = self.prefill(q, *stores, records.unflatten(0, (len(q), -1)), scale, self.most_sinks)
        if not all_fit:
            self.append_chunk(k, v, self.k, self.v, self.regions, seen.int(), new.int(), has_sinks)
        return out


def shared_attention(
    pool: Pool, queries: Tensor, tokens: Tensor, scale: float, variant: Variant | None = None
) -> Tensor:
    """`decode_attention` over a pool, in as many shares as the variant takes: they are part of what is timed."""
    chosen = DEFAULT if variant is None else variant
    work = pool.work(tokens, queries.shape[1], chosen)
    return decode_attention(queries, pool.k, pool.v, work, scale, pool.sink_weight, variant=chosen)


class KernelCache(PlannedCache):
    """The runner's cache with its classes pooled."""

    def __init__(self, plain: PlannedCache) -> None:
        self.context_tokens, self.seen, self.layers = plain.context_tokens, plain.seen, plain.layers
        self._valid, self._layouts = plain._valid, {}
        self.pools: list[list[Pool]] = []
        for index, layer in enumerate(self.layers):
            alike: dict[tuple[int, int], list[ClassCache]] = {}
            for cache in layer:
                alike.setdefault((cache.k_code.bits, cache.v_code.bits), []).append(cache)
            self.pools.append([Pool.of(caches, index, len(self.seen)) for caches in alike.values()])

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Attention of new tokens, which are stored: q [batch, kv_heads, group, tokens, head_dim]."""
        new, out = self._valid.sum(1), torch.empty_like(q)
        for pool in self.pools[layer]:
            run = pool.step if q.shape[3] == 1 else pool.chunk
            out[:, pool.heads] = run(q[:, pool.heads], k, v, self.seen, new, scale).to(out.dtype)
        return out


def kernel_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    planned_cache: KernelCache | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Attention over the planned cache, as transformers calls it: query [batch, q_heads, tokens, head_dim]."""
    if planned_cache is None:
        raise RuntimeError("planned attention was called without planned_cache; use PlannedModel.step")
    batch, q_heads, tokens, dim = query.shape
    kv_heads, scale = key.shape[1], dim**-0.5 if scaling is None else scaling
    grouped = query.reshape(batch, kv_heads, q_heads // kv_heads, tokens, dim)
    out = planned_cache.attend(cast(int, module.layer_idx), grouped, key, value, scale)
    return out.reshape(batch, q_heads, tokens, dim).transpose(1, 2), None


AttentionInterface.register(ATTENTION, kernel_attention)
AttentionMaskInterface.register(ATTENTION, lambda *args, **kwargs: None)  # the cache masks by position itself


# --- the model ------------------------------------------------------------------------------------


class KernelLinear(nn.Module):
    """A linear layer whose packed matrix is multiplied as it is stored."""

    def __init__(self, name: str, plain: runner.PackedLinear, dtype: torch.dtype) -> None:
        super().__init__()
        self.packed = plain.packed
        self.bias = None if plain.bias is None else plain.bias.to(dtype)
        self.few, self.many = (
            tuned("dequant_matmul", phase, f"{name}.weight", dequant_matmul) for phase in ("decode", "prefill")
        )

    def forward(self, x: Tensor) -> Tensor:
        run = self.few if x.numel() <= FEW_ROWS * x.shape[-1] else self.many
        packed = self.packed
        minimum = packed.minimum if packed.offset is None else None
        out = run(x, packed.codes, packed.scale, minimum, packed.offset or 0)
        return out if self.bias is None else out + self.bias


class Converted(nn.Module):
    """What the runner computes in float32, in another type."""

    def __init__(self, plain: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.plain, self.dtype = plain, dtype

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.plain(x.float() if x.is_floating_point() else x)
        return out.to(self.dtype)


def convert(model: nn.Module, dtype: torch.dtype, multiply: bool) -> None:
    """All of a model in a type; with `multiply` its packed matrices on kernels, where there is one for them."""
    for parameter in model.parameters():  # packed matrices are buffers
        parameter.data = parameter.data.to(dtype)
    for path, module in list(model.named_modules()):
        if multiply and isinstance(module, runner.PackedLinear) and products(module.packed):
            replaced: nn.Module = KernelLinear(path, module, dtype)
        elif isinstance(module, runner.PackedLinear | runner.PackedEmbedding) and dtype != torch.float32:
            replaced = Converted(module, dtype)
        elif isinstance(module, runner.PackedStack) and dtype != torch.float32:
            raise runner.ArtefactError(f"{path}: stacked experts are expanded in float32; use --dtype float32")
        else:
            continue
        parent, _, leaf = path.rpartition(".")
        setattr(model.get_submodule(parent), leaf, replaced)


def products(packed: runner.Packed) -> bool:
    """Whether a kernel multiplies by a matrix as it is stored."""
    if packed.scheme == "float" or packed.codes.dim() != 2:
        return False
    inputs = packed.codes.shape[1] * 8 // packed.bits
    return multiplies(packed.bits, inputs, inputs // packed.scale.shape[-1])


class KernelModel(PlannedModel):
    """A planned model on a device, on kernels; without `multiply` its attention alone."""

    def __init__(self, plain: PlannedModel, device: torch.device, dtype: torch.dtype, multiply: bool) -> None:
        self.model, self.kinds = plain.model, plain.kinds
        self.device, self.dtype = device, dtype
        convert(self.model, dtype, multiply)
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
            return super().step(cache, ids, valid).float()

    def prefill(self, cache: PlannedCache, prompts: Sequence[Sequence[int]], chunk_tokens: int) -> Tensor:
        with self.device:
            return super().prefill(cache, prompts, chunk_tokens)

    def logits(self, hidden: Tensor) -> Tensor:
        return super().logits(hidden.to(self.dtype)).float()


def on_device(
    plain: PlannedModel,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    multiply: bool = True,
) -> PlannedModel:
    """The model on kernels where the device runs them, else as it is: the physical torch path."""
    return KernelModel(plain, device, dtype, multiply) if kernels_run(device) else plain
