"""Prefill attention: right over ragged coded caches, whatever the chunks, loading only what a tile of queries sees."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from backends.kernels import prefill_attention as module
from backends.kernels.checking import error
from backends.kernels.counting import counted
from backends.kernels.operators import listed
from backends.kernels.prefill_attention import (
    Shape,
    check,
    launches,
    pairs,
    prefill_attention,
    prefill_attention_op,
    tiles_of,
    variants,
)
from backends.kernels.rotated import Stored
from backends.transformers.runner import ClassCache, Code, HeadClass, Layout
from tests.backends.kernels.agreement import agree, cases


@pytest.mark.parametrize(("shape", "dtype"), cases(module), ids=str)
def test_attention_agrees_with_float64(shape: Shape, dtype: torch.dtype) -> None:
    agree(check(shape, variants(shape)[0], dtype, seed=1), dtype)


def test_every_variant_agrees() -> None:
    shape = Shape(64, 3, 4, 8, sinks=(4,), slots=(40,), past=(60,), lengths=(30,))
    for variant in variants(shape):
        agree(check(shape, variant, torch.float16, seed=2), torch.float16)


@pytest.mark.parametrize("seed", range(3))
def test_turning_a_query_costs_no_more_than_a_float16_weight_does(seed: int) -> None:
    """Among keys of tenfold norm the rounding of a turned query alone would cost 4e-4 and more."""
    shape = Shape(64, 2, 8, 16, sinks=(4,), slots=(500,), past=(600,), lengths=(48,))
    (found,) = check(shape, variants(shape)[-1], torch.float16, seed)
    assert error(found.got, found.wanted) < 3e-4


def visible(shape: Shape) -> Tensor:
    """Pairs [tokens, positions] of the one head of the one sequence of a shape, spelled out."""
    past, length, sinks, slots = shape.past[0], shape.lengths[0], shape.sinks[0], shape.slots[0]
    now, at = past + torch.arange(length)[:, None], torch.arange(past + length)[None, :]
    return (at <= now) & ((at < sinks) | (at > now - slots))


@pytest.mark.parametrize("seed", range(8))
def test_tiles_have_the_keys_that_one_of_their_queries_sees(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    sinks, slots, past, length, group, block = (
        int(torch.randint(low, high, (), generator=draw))
        for low, high in ((0, 20), (1, 60), (0, 70), (1, 70), (1, 5), (3, 30))
    )
    shape = Shape(64, group, 16, 16, (sinks,), (slots,), (past,), (length,))
    sees = visible(shape).repeat_interleave(group, 0)
    assert [sum(seen) for seen in tiles_of(shape, block)] == [int(rows.any(0).sum()) for rows in sees.split(block)]
    assert pairs(shape) == int(sees.sum())


@pytest.mark.parametrize(("k_bits", "v_bits"), [(16, 16), (4, 4), (3, 2)])
def test_a_tile_loads_no_key_that_none_of_its_queries_sees(k_bits: int, v_bits: int) -> None:
    shape = Shape(64, 4, k_bits, v_bits, sinks=(4, 4), slots=(400, 50), past=(200,), lengths=(64,))
    with counted() as traffic:
        check(shape, variants(shape)[0], torch.float16, seed=3)
    needed = launches(shape, variants(shape)[0])[0]
    assert traffic[0].programs == needed.programs
    assert sum(traffic[0].read.programs.values()) <= 1.2 * needed.bytes_read


def stored_of(cache: ClassCache, part: str, fresh: Tensor, sinks: Tensor) -> Stored:
    """What a class of the runner keeps of keys, or values, with rows for new tokens after its ring's."""
    code: Code = getattr(cache, f"{part}_code")
    rows = [
        torch.cat([held.flatten(0, 2), new.flatten(0, 2)])
        for held, new in zip(getattr(cache, part), code.encode(fresh), strict=True)
    ]
    if code.is_float:
        return Stored(code.bits, rows[0], None, None, sinks, None, None)
    high = rows[0][:, rows[0].shape[1] * 2 // 3 :] if code.bits == 3 else None
    mean = code.mean[:, 0] if part == "k" else None
    return Stored(code.bits, rows[0], high, rows[1][:, 0], sinks, mean, code.scale[:, 0])


@pytest.mark.parametrize(("k_bits", "v_bits"), [(32, 32), (4, 4), (3, 2)])
def test_chunks_see_what_they_see_in_the_transformers_runtime(k_bits: int, v_bits: int) -> None:
    """A prompt in chunks shorter and longer than the window, over sinks, before and past the ring's wrap."""
    draw = torch.Generator().manual_seed(5)
    batch, heads, group, dim = 2, 2, 3, 64
    mean = torch.randn(heads, 1, dim, generator=draw)
    scale = 0.5 + torch.rand(heads, 1, dim, generator=draw)
    codes = Code(k_bits, dim, mean, scale), Code(v_bits, dim, torch.zeros_like(mean), scale)
    cache = ClassCache(HeadClass([0, 1], k_bits, v_bits, 4, 24, 0.0, None), *codes, batch, 256)
    seen = torch.zeros(batch, dtype=torch.long)
    for lengths in ((3, 5), (20, 9), (40, 0), (1, 33)):
        tokens, valid = max(lengths), torch.tensor(lengths)
        q, k, v = (torch.randn(batch, heads, n, tokens, dim, generator=draw) for n in (group, 1, 1))
        layout = Layout(4, 24, seen, torch.arange(tokens) < valid[:, None])
        before = replace_rings(cache)
        wanted = cache.attend(q, k[:, :, 0], v[:, :, 0], layout, dim**-0.5)
        sinks = [sink.flatten(0, 2).clone() for sink in (cache.sink_k, cache.sink_v)]
        stores = [
            stored_of(before, part, new[:, :, 0], sink)
            for part, new, sink in zip(("k", "v"), (k, v), sinks, strict=True)
        ]
        pair = torch.arange(batch * heads).view(batch, heads)
        fields = (seen[:, None], valid[:, None], 4, 24, pair * 24, pair * 4, batch * heads * 24 + pair * tokens)
        records = torch.stack([torch.as_tensor(field).expand(batch, heads) for field in fields], -1).int()
        got = prefill_attention(q, *stores, records, dim**-0.5, 4)
        for row, length in enumerate(lengths):
            off = got[row, :, :, :length] - wanted[row, :, :, :length]
            assert off.norm() <= 1e-4 * wanted[row, :, :, :length].norm()
        seen = seen + valid


def replace_rings(cache: ClassCache) -> ClassCache:
    """A copy whose slots stay as they are when the cache is written."""
    copy = object.__new__(ClassCache)
    copy.__dict__ = {**cache.__dict__, "k": tuple(t.clone() for t in cache.k), "v": tuple(t.clone() for t in cache.v)}
    return copy


def test_it_traces_as_one_operator() -> None:
    shape = Shape(64, 2, 4, 16, sinks=(4,), slots=(20,), past=(9,), lengths=(6,))
    draw = torch.Generator().manual_seed(6)
    records, rows, _ = module.records_of(shape)
    k, v = (module.example(bits, rows, 4, shape, torch.float16, draw) for bits in (4, 16))
    v = replace(v, mean=None)
    (k_written, k_statics), (v_written, v_statics) = listed(k), listed(v)
    q = torch.randn(1, 1, 2, 6, 64, generator=draw).half()
    args = (q, k_written, v_written, k_statics, v_statics, records, None, 0.125, 4, 16, 4, 0)
    torch.library.opcheck(prefill_attention_op, args, test_utils=("test_schema", "test_faketensor"))
    assert torch.equal(prefill_attention_op(*args), prefill_attention(q, k, v, records, 0.125, 4))


def test_records_of_another_shape_are_refused() -> None:
    shape = Shape(64, 1, 16, 16, sinks=(0,), slots=(8,), past=(0,), lengths=(2,))
    records, rows, _ = module.records_of(shape)
    one = module.example(16, rows, 1, shape, torch.float16, torch.Generator())
    with pytest.raises(ValueError, match=r"^records: found \(1, 1, 6\)"):
        prefill_attention(torch.zeros(1, 1, 1, 2, 64).half(), one, one, records[..., :6], 1.0, 0)
