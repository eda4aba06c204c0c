"""Run a planned model: `python runner.py --prompt "..."`.

This file is copied as it is into an artefact directory and needs torch, transformers and safetensors, nothing else.
It holds the storage codes, the ragged KV cache, packed weights, and the loop that prefills in chunks and decodes.

A layer's KV heads are grouped into classes that store alike. A class keeps the first `sinks` tokens as floats and the
newest `slots` others in a ring of coded slots: slot (position - sinks) mod slots. A token is coded when it arrives and
every query, its own included, sees the coded value; so what attention sees does not depend on the prefill chunks.
"""

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.masking_utils import AttentionMaskInterface
from transformers.pytorch_utils import Conv1D


class ArtefactError(Exception):
    """The artefact cannot be used, or not for what was asked; the message says which part and why."""


# --- what the files of an artefact say ----------------------------------------------------------


class ClassEntry(TypedDict):
    """One head class of a layer in kv.json; `HeadClass` says what the fields mean."""

    heads: list[int]
    k_bits: int
    v_bits: int
    sinks: int
    alpha: int | None
    beta: float
    reach: int | None


class KvLayout(TypedDict):
    """kv.json: the head size of every layer, and its head classes."""

    head_dim: list[int]
    layers: list[list[ClassEntry]]


class WeightEntry(TypedDict):
    """One matrix in weights.json. The minimum of a group is stored where `offset` is None, else scale * offset."""

    scheme: str
    bits: int
    offset: int | None


# --- codes of keys and values -------------------------------------------------------------------

# Lloyd-Max levels of the standard normal distribution (positive half; the codebooks are symmetric).
# J. Max, Quantizing for minimum distortion, IRE Trans. Inf. Theory 6 (1960); recomputed.
HALF_LEVELS = {
    2: (0.4527800346, 1.5104176085),
    3: (0.2450941789, 0.7560052812, 1.3439092785, 2.1519457045),
    4: (0.1283950299, 0.3880482995, 0.6567591185, 0.9423404565, 1.2562311973, 1.618046386, 2.0690172265, 2.732589571),
}

FLOAT16_MAX = 65504.0


def levels(bits: int) -> Tensor:
    """The 2**bits reproduction levels of a codebook, ascending."""
    half = torch.tensor(HALF_LEVELS[bits], dtype=torch.float32)
    return torch.cat([-half.flip(0), half])


def hadamard(dim: int) -> Tensor:
    """An orthogonal rotation [dim, dim]: Hadamard blocks of the largest power of two that divides dim."""
    block = dim & -dim
    matrix = torch.ones(1, 1)
    while matrix.shape[0] < block:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    rotation: Tensor = torch.block_diag(*[matrix / math.sqrt(block)] * (dim // block))
    return rotation


def planes(bits: int) -> tuple[int, ...]:
    """The power-of-two widths a code is split into for packing: 3 = 2 + 1; native blocks also have 5 = 4 + 1."""
    return tuple(width for width in (8, 4, 2, 1) if bits & width)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes [..., n] below 2**bits as bytes [..., n * bits / 8]; n must be a multiple of 8."""
    parts, shift = [], 0
    for width in planes(bits):
        each = 8 // width
        part = (codes.to(torch.uint8) >> shift) & (2**width - 1)
        part = part.reshape(*codes.shape[:-1], -1, each)
        packed = part[..., 0].clone()
        for i in range(1, each):
            packed |= part[..., i] << (i * width)
        parts.append(packed)
        shift += width
    return torch.cat(parts, -1)


def byte_values(bits: int, values: Tensor) -> Tensor:
    """What the packed bytes of a few codes stand for: [2**(bits * n), n] float32, for n codes that share their bytes.

    `values` [2**bits] is what each code stands for. Widths that divide 8 have n codes a byte; 3 bits have four codes in
    a byte of low bits and half a byte of high bits, 5 bits two codes in a byte and a quarter.
    """
    low = planes(bits)[0]
    each = 8 // low
    index = torch.arange(2 ** (bits * each))
    codes = [(index >> (i * low)) & (2**low - 1) for i in range(each)]
    if bits != low:
        codes = [code | ((index >> (8 + i)) & 1) << low for i, code in enumerate(codes)]
    return values[torch.stack(codes, 1)]


def unpack(packed: Tensor, bits: int, table: Tensor) -> Tensor:
    """Packed codes [..., n * bits / 8] as the numbers [..., n] that `table` (from `byte_values`) gives them."""
    low = planes(bits)[0]
    n = packed.shape[-1] * 8 // bits
    index = packed[..., : n * low // 8].int()
    if bits != low:
        share = low  # 8 / each: high bits of so many bytes of low bits lie in one byte
        high = packed[..., n * low // 8 :].int()
        each = 8 // low
        parts = [(high >> (i * each)) & (2**each - 1) for i in range(share)]
        index = index | (torch.stack(parts, -1).flatten(-2) << 8)
    return table.index_select(0, index.flatten()).view(*packed.shape[:-1], n)


@dataclass
class Code:
    """How one class stores keys, or values, [batch, heads, tokens, head_dim].

    bits 16 and 32 are floats. Below that a vector is stored in a rotated space: subtract `mean`, multiply by `scale`
    (both [heads, 1, head_dim], static), rotate; then Lloyd-Max codes (8 bits: uniform codes) and one float16 factor
    per token and head. Attention works in the rotated space, where queries are rotated once instead of every key, and
    the mean, which adds the same to all scores of a query, is never put back.
    """

    bits: int
    head_dim: int
    mean: Tensor
    scale: Tensor
    rotation: Tensor = field(init=False)
    book: Tensor = field(init=False)
    edges: Tensor = field(init=False)
    table: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.rotation = hadamard(self.head_dim)
        self.book = levels(self.bits) if self.bits < 8 else torch.arange(-128, 128, dtype=torch.float32)
        self.edges = (self.book[1:] + self.book[:-1]) / 2
        self.table = torch.empty(0) if self.is_float else byte_values(self.bits, self.book)

    @property
    def is_float(self) -> bool:
        return self.bits >= 16

    @property
    def float_type(self) -> torch.dtype:
        """The type sinks are kept in, and everything where the code is a float."""
        return torch.float32 if self.bits == 32 else torch.float16

    def floats(self, x: Tensor) -> Tensor:
        """Vectors as the floats that sinks are kept as; what float16 cannot hold saturates and is never infinite."""
        return x if self.bits == 32 else x.clamp(-FLOAT16_MAX, FLOAT16_MAX).half()

    def empty(self, batch: int, heads: int, slots: int) -> tuple[Tensor, ...]:
        """Zeroed storage for that many tokens: one float tensor, or codes and factors."""
        if self.is_float:
            return (torch.zeros(batch, heads, slots, self.head_dim, dtype=self.float_type),)
        codes = torch.zeros(batch, heads, slots, self.head_dim * self.bits // 8, dtype=torch.uint8)
        return codes, torch.zeros(batch, heads, slots, 1, dtype=torch.float16)

    def rotated(self, x: Tensor) -> Tensor:
        """Vectors in the space they are stored in."""
        return x if self.is_float else ((x - self.mean) * self.scale) @ self.rotation

    def rotated_query(self, q: Tensor) -> Tensor:
        """Queries [batch, heads, n, head_dim] whose products with rotated keys are those of the originals, but for
        a constant per query."""
        return q if self.is_float else (q / self.scale) @ self.rotation

    def restored(self, x: Tensor) -> Tensor:
        """The inverse of `rotated`, but for the mean."""
        return x if self.is_float else (x @ self.rotation.T) / self.scale

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        """What is stored of vectors."""
        if self.is_float:
            return (self.floats(x),)
        z = self.rotated(x.float())
        if self.bits == 8:
            factor = (z.abs().amax(-1, keepdim=True) / 127).clamp(6e-8, FLOAT16_MAX).half()
            codes = ((z / factor.float()).round().clamp(-127, 127) + 128).to(torch.uint8)
            return codes, factor
        rms = z.pow(2).mean(-1, keepdim=True).sqrt().clamp_min(1e-30)
        codes = torch.bucketize(z / rms, self.edges)
        shape = self.book[codes]
        factor = (z * shape).sum(-1, keepdim=True) / shape.pow(2).sum(-1, keepdim=True)
        return pack(codes, self.bits), factor.clamp(max=FLOAT16_MAX).half()

    def decode(self, stored: tuple[Tensor, ...]) -> Tensor:
        """Stored vectors, in the rotated space."""
        if self.is_float:
            return stored[0].float()
        return unpack(stored[0], self.bits, self.table).mul_(stored[1].float())


# --- the cache ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class HeadClass:
    """KV heads of one layer that are cached alike, as kv.json lists them.

    `alpha` + `beta` * context is the number of coded slots; alpha None keeps every token. `reach` is the sliding
    window the layer was trained with, or None.
    """

    heads: Sequence[int]
    k_bits: int
    v_bits: int
    sinks: int
    alpha: int | None
    beta: float
    reach: int | None

    def slots(self, context_tokens: int) -> tuple[int, int]:
        """(protected, coded) slots allocated for a context of this many tokens."""
        reach = context_tokens if self.reach is None else min(context_tokens, self.reach)
        sinks = min(self.sinks, reach) if self.reach is None else 0
        if self.alpha is None:
            return sinks, reach - sinks
        window = min(context_tokens, max(1, round(self.alpha + self.beta * context_tokens)))
        return sinks, min(window, reach - sinks)


class Layout:
    """Where the new tokens of one step go in a cache of so many sinks and slots, and what each of them sees.

    sees  [batch, 1, tokens, sinks + slots + tokens]
    sink, coded  (row, position in the chunk, slot) of the tokens to store
    """

    def __init__(self, sinks: int, slots: int, seen: Tensor, valid: Tensor) -> None:
        tokens = valid.shape[1]
        positions = seen[:, None] + torch.arange(tokens)
        self.is_sink = (positions < sinks)[:, None, :, None]
        at = torch.cat([self._held(sinks, slots, seen), torch.where(valid, positions, -1)], 1)[:, None]
        now = positions[:, :, None]
        sees = (at >= 0) & (at <= now) & ((at < sinks) | (at > now - slots))
        sees[:, :, sinks + slots :] |= torch.eye(tokens, dtype=torch.bool)  # softmax over nothing would be NaN
        self.sees = sees[:, None]
        row, token = (valid & (positions < sinks)).nonzero(as_tuple=True)
        self.sink = row, token, positions[row, token]
        newest = torch.where(valid, positions, -1).amax(1, keepdim=True)
        row, token = (valid & (positions >= sinks) & (positions > newest - slots)).nonzero(as_tuple=True)
        self.coded = row, token, (positions[row, token] - sinks) % max(slots, 1)

    @staticmethod
    def _held(sinks: int, slots: int, seen: Tensor) -> Tensor:
        """Position in each slot, sinks first, -1 where empty: [batch, sinks + slots]."""
        sink = torch.arange(sinks).expand(len(seen), -1)
        slot = torch.arange(slots).expand(len(seen), -1)
        coded = (seen - sinks)[:, None]
        position = slot + slots * ((coded - 1 - slot).div(max(slots, 1), rounding_mode="floor"))
        held = torch.where(slot < coded, position + sinks, -1)
        return torch.cat([torch.where(sink < seen[:, None], sink, -1), held], 1)


class ClassCache:
    """The slots of one head class of one layer, for a batch of sequences.

    sink_k, sink_v  [batch, heads, sinks, head_dim]  float
    k, v            what `Code.empty` gives for [batch, heads, slots]
    """

    def __init__(self, kind: HeadClass, k_code: Code, v_code: Code, batch: int, context_tokens: int) -> None:
        self.kind, self.k_code, self.v_code = kind, k_code, v_code
        self.heads = list(kind.heads)
        self.sinks, self.slots = kind.slots(context_tokens)
        shape = (batch, len(self.heads), self.sinks, k_code.head_dim)
        self.sink_k = torch.zeros(shape, dtype=k_code.float_type)
        self.sink_v = torch.zeros(shape, dtype=v_code.float_type)
        self.k = k_code.empty(batch, len(self.heads), self.slots)
        self.v = v_code.empty(batch, len(self.heads), self.slots)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.sink_k, self.sink_v, *self.k, *self.v)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout, scale: float) -> Tensor:
        """Attention of new tokens over the cache and themselves, and the new tokens stored.

        q        [batch, heads, group, tokens, head_dim]
        k, v     [batch, heads, tokens, head_dim]
        returns  [batch, heads, group, tokens, head_dim]
        """
        batch, heads, group, tokens, dim = q.shape
        k_new, v_new = self.k_code.encode(k), self.v_code.encode(v)
        keys = self._seen(self.k_code, self.sink_k, self.k, k, k_new, layout)
        values = self._seen(self.v_code, self.sink_v, self.v, v, v_new, layout)
        mask = layout.sees[:, :, None].expand(-1, -1, group, -1, -1).reshape(batch, 1, group * tokens, -1)
        queries = self.k_code.rotated_query(q.reshape(batch, heads, group * tokens, dim))
        out = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=scale)
        self._store((k, v), (*k_new, *v_new), layout)
        return self.v_code.restored(out).view(batch, heads, group, tokens, dim)

    def _seen(
        self,
        code: Code,
        sink: Tensor,
        stored: tuple[Tensor, ...],
        new: Tensor,
        coded: tuple[Tensor, ...],
        layout: Layout,
    ) -> Tensor:
        """All that a step can see, in the code's space: [batch, heads, sinks + slots + tokens, head_dim]."""
        exact = code.rotated(code.floats(new).float())
        return torch.cat(
            [
                code.rotated(sink.float()),
                code.decode(stored),
                torch.where(layout.is_sink, exact, code.decode(coded)),
            ],
            2,
        )

    def _store(self, new: tuple[Tensor, Tensor], coded: tuple[Tensor, ...], layout: Layout) -> None:
        row, token, at = layout.sink
        if len(row):
            for code, sink, x in zip((self.k_code, self.v_code), (self.sink_k, self.sink_v), new, strict=True):
                sink[row, :, at] = code.floats(x[row, :, token])
        row, token, at = layout.coded
        for stored, x in zip((*self.k, *self.v), coded, strict=True):
            stored[row, :, at] = x[row, :, token]


class PlannedCache:
    """All layers' caches of a batch of sequences, and how many tokens each sequence has seen."""

    def __init__(self, layers: Sequence[Sequence[tuple[HeadClass, Code, Code]]], batch: int, context_tokens: int):
        self.context_tokens = context_tokens
        self.seen = torch.zeros(batch, dtype=torch.long)
        self.layers = [[ClassCache(*kind, batch, context_tokens) for kind in layer] for layer in layers]
        self._valid = torch.ones(batch, 1, dtype=torch.bool)
        self._layouts: dict[tuple[int, int], Layout] = {}

    @property
    def bytes(self) -> int:
        """Bytes of the tensors that hold the cache."""
        return sum(t.nbytes for layer in self.layers for kind in layer for t in kind.tensors)

    def begin(self, valid: Tensor) -> None:
        """Start a step of new tokens, of which `valid` [batch, tokens], a prefix of each row, are real."""
        self._valid, self._layouts = valid, {}

    def end(self) -> None:
        """The step's tokens were seen by all layers."""
        self.seen = self.seen + self._valid.sum(1)

    def layout(self, sinks: int, slots: int) -> Layout:
        """The layout of this step, the same for all classes of that size."""
        if (sinks, slots) not in self._layouts:
            self._layouts[sinks, slots] = Layout(sinks, slots, self.seen, self._valid)
        return self._layouts[sinks, slots]


def planned_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    planned_cache: PlannedCache | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Attention over the planned cache, as transformers calls it: query [batch, q_heads, tokens, head_dim]."""
    if planned_cache is None:
        raise RuntimeError("planned attention was called without planned_cache; use PlannedModel.step")
    batch, q_heads, tokens, dim = query.shape
    kv_heads = key.shape[1]
    grouped = query.reshape(batch, kv_heads, q_heads // kv_heads, tokens, dim)
    scale = dim**-0.5 if scaling is None else scaling
    out = torch.empty_like(grouped)
    for kind in planned_cache.layers[cast(int, module.layer_idx)]:
        layout = planned_cache.layout(kind.sinks, kind.slots)
        if len(kind.heads) == kv_heads:
            out = kind.attend(grouped, key, value, layout, scale)
        else:
            h = kind.heads
            out[:, h] = kind.attend(grouped[:, h], key[:, h], value[:, h], layout, scale)
    return out.reshape(batch, q_heads, tokens, dim).transpose(1, 2), None


AttentionInterface.register("planned", planned_attention)
AttentionMaskInterface.register("planned", lambda *args, **kwargs: None)  # the cache masks by position itself

# --- packed weights -----------------------------------------------------------------------------


SCRATCH_ELEMENTS = 4 * 2**20
"""A matrix is expanded in blocks of rows of at most so many numbers."""


class Packed(nn.Module):
    """A matrix [rows, cols] (or [count, rows, cols]) as stored: floats, or codes with a scale and minimum per group."""

    floats: Tensor
    codes: Tensor
    scale: Tensor
    minimum: Tensor

    def __init__(self, name: str, entry: WeightEntry, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.scheme, self.bits, self.offset = entry["scheme"], entry["bits"], entry["offset"]
        parts = ("floats",) if self.scheme == "float" else ("codes", "scale", "minimum")
        for part in parts:
            if f"{name}::{part}" in tensors:
                self.register_buffer(part, tensors[f"{name}::{part}"])
        if self.scheme != "float":
            self.table = byte_values(self.bits, torch.arange(2.0**self.bits))

    @property
    def rows(self) -> int:
        """Rows of the matrix; matrices of a stack."""
        return len(self.floats if self.scheme == "float" else self.codes)

    def blocks(self) -> list[slice]:
        """The rows in blocks of at most SCRATCH_ELEMENTS numbers, so that expanding takes little memory."""
        numbers = self.floats.numel() if self.scheme == "float" else self.codes.numel() * 8 // self.bits
        each = max(1, SCRATCH_ELEMENTS * self.rows // max(1, numbers))
        return [slice(start, start + each) for start in range(0, self.rows, each)]

    def dense(self, rows: Tensor | slice | None = None) -> Tensor:
        """The float32 matrix, or only those of its rows."""
        if self.scheme == "float":
            return (self.floats if rows is None else self.floats[rows]).float()
        codes, scale = (self.codes, self.scale) if rows is None else (self.codes[rows], self.scale[rows])
        scale = scale.float()
        if self.offset is None:
            minimum = (self.minimum if rows is None else self.minimum[rows]).float()
        else:
            minimum = scale * self.offset
        values = unpack(codes, self.bits, self.table)
        grouped = values.view(*values.shape[:-1], scale.shape[-1], -1)
        return torch.addcmul(minimum[..., None], grouped, scale[..., None]).view(values.shape)


class PackedLinear(nn.Module):
    """A linear layer that expands its matrix, block of rows by block, for each call."""

    def __init__(self, packed: Packed, bias: Tensor | None) -> None:
        super().__init__()
        self.packed, self.bias = packed, bias

    def forward(self, x: Tensor) -> Tensor:
        blocks = self.packed.blocks()
        if len(blocks) == 1:
            return functional.linear(x, self.packed.dense(), self.bias)
        out = torch.cat([functional.linear(x, self.packed.dense(block)) for block in blocks], -1)
        return out if self.bias is None else out + self.bias


class PackedEmbedding(nn.Module):
    """An embedding that expands only the rows it looks up; Gemma scales what it looks up."""

    def __init__(self, packed: Packed, multiplier: Tensor | None) -> None:
        super().__init__()
        self.packed, self.multiplier = packed, multiplier

    def forward(self, ids: Tensor) -> Tensor:
        found = self.packed.dense(ids)
        return found if self.multiplier is None else found * self.multiplier


class PackedStack(nn.Module):
    """Stacked experts; only the one that is asked for is expanded."""

    def __init__(self, packed: Packed) -> None:
        super().__init__()
        self.packed = packed

    def __getitem__(self, expert: Tensor) -> Tensor:
        return self.packed.dense(expert)


def install(model: PreTrainedModel, name: str, packed: Packed) -> None:
    """Put a packed matrix where the model keeps the weight of that name."""
    path, attribute = name.rsplit(".", 1)
    parent_path, _, leaf = path.rpartition(".")
    parent, owner = model.get_submodule(parent_path), model.get_submodule(path)
    if owner is model.get_input_embeddings():
        setattr(parent, leaf, PackedEmbedding(packed, getattr(owner, "embed_scale", None)))
        if model.config.tie_word_embeddings:
            model.set_output_embeddings(PackedLinear(packed, None))
    elif isinstance(owner, (nn.Linear, Conv1D)) and attribute == "weight":
        setattr(parent, leaf, PackedLinear(packed, owner.bias))
    elif getattr(owner, attribute).dim() == 3:
        delattr(owner, attribute)
        setattr(owner, attribute, PackedStack(packed))
    else:
        raise ArtefactError(f"{name}: is part of a {type(owner).__name__}, whose weights cannot be stored packed")


# --- the model ----------------------------------------------------------------------------------


def build(config: dict[str, str], formats: dict[str, WeightEntry], tensors: dict[str, Tensor]) -> PreTrainedModel:
    """The transformers model with its matrices packed: `formats` is weights.json, `tensors` weights.safetensors."""
    settings = AutoConfig.for_model(**config)
    with no_init_weights():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            settings, dtype=torch.float32, attn_implementation="planned", experts_implementation="eager"
        )
    for name, entry in formats.items():
        install(model, name, Packed(name, entry, tensors))
    loaded = model.load_state_dict({n: t for n, t in tensors.items() if "::" not in n}, strict=False, assign=True)
    left = [name for name in loaded.missing_keys if ".packed." not in name]
    if model.config.tie_word_embeddings and not isinstance(model.get_input_embeddings(), PackedEmbedding):
        model.tie_weights()
        left = [name for name in left if name != "lm_head.weight"]
    if left or loaded.unexpected_keys:
        raise ArtefactError(f"weights do not fit the model: missing {left}, unknown {loaded.unexpected_keys}")
    model.requires_grad_(False)
    model.train(False)
    return model


class PlannedModel:
    """A decoder built by `build`, with the cache that kv.json (`kv`) lays out."""

    def __init__(self, model: PreTrainedModel, kv: KvLayout, tensors: dict[str, Tensor]) -> None:
        self.model = model
        self.kinds = [
            [(HeadClass(**c), *self._codes(i, c, kv["head_dim"][i], tensors)) for c in layer]
            for i, layer in enumerate(kv["layers"])
        ]

    @staticmethod
    def _codes(layer: int, kind: ClassEntry, dim: int, tensors: dict[str, Tensor]) -> tuple[Code, Code]:
        heads = kind["heads"]
        zero, one = torch.zeros(len(heads), 1, dim), torch.ones(len(heads), 1, dim)

        def static(part: str, default: Tensor) -> Tensor:
            found = [tensors[name].float() for h in heads if (name := f"kv.{layer}.{h}::{part}") in tensors]
            return torch.stack(found)[:, None] if found else default

        key = Code(kind["k_bits"], dim, static("k_mean", zero), static("k_scale", one))
        return key, Code(kind["v_bits"], dim, zero, static("v_scale", one))

    @property
    def static_bytes(self) -> int:
        """Bytes of the static factors of the codes, shared by all sequences, as weights.safetensors stores them."""
        return sum(
            2 * (code.mean.numel() * (part == 1) + code.scale.numel())
            for layer in self.kinds
            for kind in layer
            for part, code in enumerate(kind[:0:-1])
            if not code.is_float
        )

    @property
    def weight_bytes(self) -> int:
        """Bytes of the tensors that hold the weights, each storage once; constants made from the config are none."""
        held = {t.data_ptr(): t.nbytes for t in self.model.state_dict().values()}
        return sum(held.values())

    def cache(self, batch: int, context_tokens: int) -> PlannedCache:
        """Empty caches for sequences that together with what they generate reach `context_tokens`."""
        most = self.model.config.max_position_embeddings
        if context_tokens > most:
            raise ArtefactError(f"a context of {context_tokens} tokens is more than the {most} this model was made for")
        return PlannedCache(self.kinds, batch, context_tokens)

    @torch.no_grad()
    def step(self, cache: PlannedCache, ids: Tensor, valid: Tensor | None = None) -> Tensor:
        """Hidden states [batch, tokens, hidden] of new tokens, which enter the cache.

        ids [batch, tokens]; `valid` [batch, tokens] marks each row's real tokens, a prefix of the row.
        """
        valid = torch.ones_like(ids, dtype=torch.bool) if valid is None else valid
        needed = int((cache.seen + valid.sum(1)).max())
        if needed > cache.context_tokens:
            raise ArtefactError(f"{needed} tokens do not fit a cache made for {cache.context_tokens}")
        cache.begin(valid)
        positions = (cache.seen[:, None] + torch.arange(ids.shape[1])).clamp(max=cache.context_tokens - 1)  # padding
        out = self.model.base_model(
            input_ids=ids, position_ids=positions, use_cache=False, attention_mask=None, planned_cache=cache
        )
        cache.end()
        hidden: Tensor = out.last_hidden_state
        return hidden

    @torch.no_grad()
    def prefill(self, cache: PlannedCache, prompts: Sequence[Sequence[int]], chunk_tokens: int) -> Tensor:
        """Read a batch of prompts of any lengths in chunks; logits [batch, vocab] after each one's last token."""
        lengths = torch.tensor([len(p) for p in prompts])
        if not len(lengths) or int(lengths.min()) == 0:
            raise ArtefactError("a prompt has no tokens; give each at least one")
        longest = int(lengths.max())
        ids = torch.zeros(len(prompts), longest, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = torch.tensor(list(prompt), dtype=torch.long)
        last = torch.zeros(len(prompts), 0)
        for start in range(0, longest, chunk_tokens):
            chunk = ids[:, start : start + chunk_tokens]
            here = lengths - start
            valid = torch.arange(chunk.shape[1]) < here[:, None]
            hidden = self.step(cache, chunk, valid)
            ended = (here > 0) & (here <= chunk.shape[1])
            if last.shape[1] == 0:
                last = torch.zeros(len(prompts), hidden.shape[-1])
            last[ended] = hidden[ended, here[ended] - 1]
        return self.logits(last)

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits of hidden states."""
        logits: Tensor = self.model.get_output_embeddings()(hidden)
        cap = getattr(self.model.config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def generate(
        self, cache: PlannedCache, logits: Tensor, new_tokens: int, stop: frozenset[int] = frozenset()
    ) -> Iterator[Tensor]:
        """Greedy tokens [batch], step by step, from the logits that `prefill` gave; ends when all rows stopped."""
        stopped = torch.zeros(len(logits), dtype=torch.bool)
        for i in range(new_tokens):
            token = logits.argmax(-1)
            yield token
            stopped |= torch.tensor([int(t) in stop for t in token])
            if bool(stopped.all()) or i == new_tokens - 1:
                return
            logits = self.logits(self.step(cache, token[:, None])[:, -1])


# --- the artefact directory ---------------------------------------------------------------------

JSON_FILES, WEIGHTS_FILE = ("config.json", "kv.json", "weights.json"), "weights.safetensors"


def checked(directory: Path) -> dict[str, object]:
    """The manifest of an artefact, after every file it lists was found to have the sha256 it lists."""
    path = directory / "manifest.json"
    if not path.is_file():
        raise ArtefactError(f"{path}: not found; give a directory that planner compile wrote")
    try:
        manifest: dict[str, object] = json.loads(path.read_text())
        files = dict(cast(dict[str, str], manifest["files"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ArtefactError(f"{path}: is not a manifest ({error}); compile again") from error
    for name in (*JSON_FILES, WEIGHTS_FILE):
        if name not in files:
            raise ArtefactError(f"{path}: does not list {name}; compile again")
    for name, wanted in files.items():
        file = directory / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ArtefactError(f"{path}: lists {name}, which lies outside the artefact")
        if not file.is_file():
            raise ArtefactError(f"{file}: is missing; compile again")
        digest = hashlib.sha256()
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
        if digest.hexdigest() != wanted:
            raise ArtefactError(f"{file}: differs from the sha256 in manifest.json; compile again")
    return manifest


def load(directory: Path) -> PlannedModel:
    """The model of an artefact directory, checked."""
    checked(directory)
    config, kv, weights = (json.loads((directory / name).read_text()) for name in JSON_FILES)
    tensors = load_file(directory / WEIGHTS_FILE)
    return PlannedModel(build(config, weights, tensors), kv, tensors)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--chunk-tokens", type=int, default=256)
    parser.add_argument("--raw", action="store_true", help="do not wrap the prompt in the chat template")
    options = parser.parse_args()
    here = Path(__file__).resolve().parent
    try:
        model = load(here)
        for piece in answer(model, here, options.prompt, options.max_new_tokens, options.chunk_tokens, options.raw):
            print(piece, end="", flush=True)
    except ArtefactError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    print()
    return 0


def answer(
    model: PlannedModel, directory: Path, prompt: str, new_tokens: int, chunk_tokens: int, raw: bool
) -> Iterator[str]:
    """The model's reply to a prompt, in pieces as they are decoded."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    if tokenizer.chat_template and not raw:
        turns = [{"role": "user", "content": prompt}]
        prompt = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    ids = tokenizer(prompt).input_ids
    cache = model.cache(1, len(ids) + new_tokens)
    logits = model.prefill(cache, [ids], chunk_tokens)
    stop = frozenset({tokenizer.eos_token_id} - {None})
    told, tokens = "", list[int]()
    for token in model.generate(cache, logits, new_tokens, stop):
        if int(token[0]) in stop:
            return
        tokens.append(int(token[0]))
        text = str(tokenizer.decode(tokens))
        if not text.endswith("\ufffd"):  # a character may span tokens
            yield text[len(told) :]
            told = text


if __name__ == "__main__":
    raise SystemExit(main())
