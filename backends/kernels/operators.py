"""Decode attention and KV append as torch operators, which torch.compile and torch.export trace without looking inside.

    torch.ops.planned.decode_attention(q, k, v, records, starts, table, scale, k_bits, v_bits, sink_weight, page)
    torch.ops.planned.kv_append(k, v, k_written, v_written, k_statics, v_statics, regions, seen, counts, ...)

Stores are lists of tensors here, for an operator takes nothing else: `written` low, high, norms and sinks, `statics`
mean and scale, an empty tensor for a part that there is not.
"""

import torch
from torch import Tensor

from .decode_attention import decode_attention
from .kv_append import kv_append
from .ragged import Schedule
from .rotated import Stored


def listed(store: Stored) -> tuple[list[Tensor], list[Tensor]]:
    """(written, statics) of a store."""
    none = torch.empty(0, device=store.low.device)
    parts = [store.low, store.high, store.norms, store.sinks, store.mean, store.scale]
    full = [none if part is None else part for part in parts]
    return full[:4], full[4:]


def store_of(bits: int, written: list[Tensor], statics: list[Tensor]) -> Stored:
    """The store of those lists."""
    low, sinks = written[0], written[3]
    high, norms, mean, scale = (x if x.numel() else None for x in (written[1], written[2], *statics))
    return Stored(bits, low, high, norms, sinks, mean, scale)


@torch.library.custom_op("planned::decode_attention", mutates_args=())
def decode_attention_op(
    q: Tensor,
    k_written: list[Tensor],
    v_written: list[Tensor],
    k_statics: list[Tensor],
    v_statics: list[Tensor],
    records: Tensor,
    starts: Tensor,
    table: Tensor | None,
    scale: float,
    k_bits: int,
    v_bits: int,
    sink_weight: int,
    page: int,
) -> Tensor:
    """Outputs of queries [queries, group, head_dim], as `decode_attention` gives them."""
    k, v = store_of(k_bits, k_written, k_statics), store_of(v_bits, v_written, v_statics)
    return decode_attention(q, k, v, Schedule(records, starts), scale, sink_weight, table, page)


@decode_attention_op.register_fake
def _(q: Tensor, *rest: object) -> Tensor:
    return torch.empty_like(q)


@torch.library.custom_op("planned::kv_append", mutates_args=("k_written", "v_written"))
def kv_append_op(
    k: Tensor,
    v: Tensor,
    k_written: list[Tensor],
    v_written: list[Tensor],
    k_statics: list[Tensor],
    v_statics: list[Tensor],
    regions: Tensor,
    seen: Tensor,
    counts: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    table: Tensor | None,
    k_bits: int,
    v_bits: int,
    has_sinks: bool,
    page: int,
) -> None:
    """Write new tokens [batch, heads, tokens, head_dim], as `kv_append` does."""
    stores = store_of(k_bits, k_written, k_statics), store_of(v_bits, v_written, v_statics)
    angles = None if cos is None or sin is None else (cos, sin)
    kv_append(k, v, *stores, regions, seen, counts, has_sinks, angles, table, page)


@kv_append_op.register_fake
def _(*_args: object) -> None:
    return None
