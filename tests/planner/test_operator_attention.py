"""Laws of attention's predicted time: how it grows, what it counts, what it refuses."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.errors import InputError
from planner.operators.attention import Append, AttentionModel, DecodeKernel, PrefillKernel, Serves
from planner.operators.attention_work import Calls, causal_blocks, decode_work
from planner.operators.sheet import GpuSheet

SHEET = GpuSheet(
    name="toy",
    architecture="sm_80",
    sm_count=100,
    boost_hz=1e9,
    l2_bytes=40 << 20,
    shared_bytes_per_sm=160 << 10,
    memory_bytes_per_s=2e12,
    memory_bytes=80 << 30,
    flop_per_s=(("bf16", 3e14),),
    link_bytes_per_s=0,
    pcie_bytes_per_s=3e10,
)
APPEND = Append(token_s=5e-9, narrow=1.0, traffic=1.0)
DECODE = DecodeKernel(
    name="fa2",
    serves=Serves("any", kv_bits=16),
    schedule="fa2",
    resident=2,
    append=APPEND,
    launch_s=8e-6,
    extra_launch_s=3e-6,
    sequence_s=3e-9,
    split_sequence_s=0,
    item_cycles=1000,
    item_cycles_per_dim=8,
    row_cycles_per_dim=0.1,
    key_cycles=8,
    key_cycles_per_dim=0.1,
    key_cycles_per_row=0.01,
    alone=1.5,
    partial_s_per_dim=3e-11,
    memory_share=0.9,
    l2_rate=3.0,
    l2_share=0.7,
    l2_sharpness=8.0,
    overlap=2.0,
)
PREFILL = PrefillKernel(
    name="fa2",
    serves=Serves("any", kv_bits=16, compute_bits=16),
    schedule="fa2",
    append=APPEND,
    launch_s=8e-6,
    extra_launch_s=3e-6,
    sequence_s=3e-9,
    token_s=1e-10,
    item_cycles=1000,
    row_cycles_per_dim=0.1,
    tensor_share=0.6,
    softmax_cycles=0.01,
    small_tile=1.0,
    serial=1.3,
    tail=0.5,
    alone=1.2,
    partial_traffic=1.0,
    memory_share=0.9,
    overlap=1.5,
    throttle=0.05,
    throttle_s=5e-3,
)
MODEL = AttentionModel(decodes_single_tokens=True, decode=(DECODE,), prefill=(PREFILL,))


def calls(**sizes: int) -> Calls:
    given = {"batch": 1, "q_heads": 8, "kv_heads": 8, "head_dim": 128, "prompt": 1, "prefix": 0, "kv_bits": 16}
    given |= {"compute_bits": 16, "window": 0} | sizes
    return Calls(**{name: np.array([size]) for name, size in given.items()})


def test_arguments_broadcast() -> None:
    batch, context = np.array([[1], [4]]), np.array([100, 1000, 10000])
    latency_s = MODEL.decode_s(SHEET, batch, 32, 8, 128, context, 16)
    assert latency_s.shape == (2, 3)
    assert latency_s[1, 2] == MODEL.decode_s(SHEET, 4, 32, 8, 128, 10000, 16)


@given(st.integers(1, 300), st.sampled_from([1, 2, 8]), st.sampled_from([1, 4, 12]), st.integers(1, 40000))
def test_a_step_takes_its_launch_and_its_memory_traffic_at_least(batch: int, kv: int, group: int, context: int) -> None:
    latency_s = MODEL.decode_s(SHEET, batch, kv * group, kv, 128, context, 16)
    held = batch * context * kv * 128 * 4
    beyond_l2 = max(held - SHEET.l2_bytes, 0) * (held > 2 * SHEET.l2_bytes)
    assert latency_s >= DECODE.launch_s + beyond_l2 * 0.9 / SHEET.memory_bytes_per_s


@given(st.integers(1, 200), st.sampled_from([(8, 8), (32, 8), (16, 1)]), st.integers(1, 20000))
def test_a_context_four_times_as_long_is_not_faster(batch: int, heads: tuple[int, int], context: int) -> None:
    short, long = MODEL.decode_s(SHEET, batch, *heads, 128, np.array([context, 4 * context]), 16)
    assert long > short


@given(st.integers(2, 4000), st.integers(0, 4000), st.sampled_from([(8, 8), (32, 8)]))
def test_more_cached_tokens_make_a_prompt_slower(prompt: int, prefix: int, heads: tuple[int, int]) -> None:
    first, later = MODEL.prefill_s(SHEET, 2, *heads, 128, prompt, np.array([prefix, prefix + 1000]), 16)
    assert later > first


def test_a_long_prompt_takes_its_causal_half_of_the_products() -> None:
    latency_s = MODEL.prefill_s(SHEET, 8, 32, 8, 128, 16384, 0, 16)
    products = 4 * 8 * 32 * 128 * 16384**2 / 2
    assert products / latency_s < 0.6 * SHEET.rate("bf16")
    assert products / latency_s > 0.5 * SHEET.rate("bf16")


def test_a_prompt_of_one_token_is_a_step_where_the_model_says_so() -> None:
    step = MODEL.decode_s(SHEET, 4, 32, 8, 128, 501, 16)
    assert MODEL.prefill_s(SHEET, 4, 32, 8, 128, 1, 500, 16) == step
    apart = replace(MODEL, decodes_single_tokens=False)
    assert apart.prefill_s(SHEET, 4, 32, 8, 128, 1, 500, 16) == step
    assert apart.prefill_s(SHEET, 4, 32, 8, 128, 1, 0, 16) != apart.decode_s(SHEET, 4, 32, 8, 128, 1, 16)


def test_a_window_that_holds_every_key_is_none_and_a_narrow_one_hides_the_rest() -> None:
    context = np.array([1000, 2000, 8000, 32000])
    windowed = MODEL.decode_s(SHEET, 4, 8, 8, 128, context, 16, window=2000)
    free = MODEL.decode_s(SHEET, 4, 8, 8, 128, context, 16)
    assert (windowed[:2] == free[:2]).all()
    assert windowed[2] == windowed[3] < free[2]


def test_a_type_without_a_kernel_runs_at_the_pace_of_another_with_its_own_bytes() -> None:
    context = np.array([100, 100000])
    wide, narrow = (MODEL.decode_s(SHEET, 32, 32, 8, 128, context, bits) for bits in (16, 8))
    assert (narrow < wide).all()


def test_the_first_kernel_that_serves_a_call_prices_it() -> None:
    wide = replace(DECODE, name="wide", serves=Serves("over-256"), launch_s=1.0)
    model = replace(MODEL, decode=(wide, DECODE))
    latency_s = model.decode_s(SHEET, 1, 8, 8, np.array([128, 512]), 1000, 16)
    assert latency_s[0] == MODEL.decode_s(SHEET, 1, 8, 8, 128, 1000, 16)
    assert latency_s[1] > 1


def test_a_call_that_no_kernel_serves_is_refused() -> None:
    model = replace(MODEL, decode=(replace(DECODE, serves=Serves("over-256")),))
    with pytest.raises(InputError, match="toy: no attention kernel serves head_dim 128"):
        model.decode_s(SHEET, 1, 8, 8, 128, 1000, 16)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((0, 8, 8, 128, 10, 16), "batch is 0; it must be at least 1"),
        ((1, 8, 8, 128, 0, 16), "prefix is -1; it must be at least 0"),
        ((1, 8, 3, 128, 10, 16), "8 query heads do not share 3 KV heads evenly"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(sizes: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        MODEL.decode_s(SHEET, *sizes)


@settings(max_examples=200)
@given(
    prompt=st.integers(1, 90),
    prefix=st.integers(0, 70),
    window=st.integers(0, 60),
    group=st.sampled_from([1, 2, 3, 5, 8]),
    rows=st.sampled_from([8, 16]),
    block=st.sampled_from([4, 12, 16]),
)
def test_tiles_visit_every_block_that_holds_a_visible_key(
    prompt: int, prefix: int, window: int, group: int, rows: int, block: int
) -> None:
    visited = []
    for start in range(0, prompt * group, rows):
        tokens = range(start // group, min(-(-(start + rows) // group), prompt))
        last = prefix + tokens[-1]
        first = max(prefix + tokens[0] - window + 1, 0) if window else 0
        visited.append(len({key // block for key in range(first, last + 1)}))
    tile_tokens, block_keys = np.array([rows / group]), np.array([block])
    found = causal_blocks(calls(prompt=prompt, prefix=prefix, window=window), tile_tokens, block_keys)
    assert [int(one[0]) for one in found] == [len(visited), sum(visited), max(visited)]


def test_only_a_packed_group_of_flash_attention_2_is_split() -> None:
    alone = decode_work(calls(prefix=8191), "fa2", sm_count=108)
    packed = decode_work(calls(kv_heads=1, prefix=8191), "fa2", sm_count=108)
    assert (int(alone.units[0]), int(alone.splits[0])) == (8, 1)
    assert (int(packed.units[0]), int(packed.splits[0])) == (1, 64)
    windowed = decode_work(calls(kv_heads=1, prefix=8191, window=4096), "fa2", sm_count=108)
    assert (int(windowed.units[0]), int(windowed.splits[0])) == (8, 1)


@given(st.integers(1, 2000), st.sampled_from([(8, 8), (32, 8), (64, 1)]), st.integers(1, 100000))
def test_splits_never_outnumber_blocks(batch: int, heads: tuple[int, int], context: int) -> None:
    one = calls(batch=batch, q_heads=heads[0], kv_heads=heads[1], prefix=context - 1)
    for schedule in ("fa2", "fa3", "fa3-static", "fill", "fill-heads"):
        work = decode_work(one, schedule, sm_count=132)
        assert 1 <= work.splits[0] <= work.longest[0]
