"""Kernels measured whole: what they took is what a plan is priced at, and nothing is expanded."""

from dataclasses import replace

import pytest

from planner.cost import total, usage
from planner.errors import InputError
from planner.formats import block, exact, static
from planner.goal import Workload
from planner.hardware import AttentionTime, HardwareProfile, MemoryTier, ProductTime
from planner.space import (
    FLOAT32,
    Full,
    KvChoice,
    KvFormat,
    KvSite,
    Tier,
    WeightChoice,
    WeightFormat,
    WeightSite,
    Window,
)
from planner.spec import LayerSpec, ModelSpec, TensorSpec
from planner.times import product_kind

HOME: Tier = (("dram", 1.0),)
MACHINE = HardwareProfile(
    name="whole",
    kind="cpu",
    float_bits=32,
    tiers=(MemoryTier("dram", 10**11, 2e10),),
    matmul_flop_per_s=(("fp32", 1e11),),
    layer_overhead_s=1e-4,
    step_overhead_s=1e-3,
    kernel_overhead_s=5e-5,
    provenance="measured",
    error=0.25,
    sources=("made up",),
    date="2026-01-01",
    product_times=(
        ProductTime("float32", ((1, 4e-10), (101, 1.04e-8))),
        ProductTime("block4", ((1, 1e-10), (101, 1.01e-8))),
        ProductTime("block8", ((1, 2e-10), (101, 1.02e-8))),
        ProductTime("exact4", ((1, 1.5e-10), (101, 1.015e-8))),
    ),
    attention_times=(
        AttentionTime(32, 64, ((512, 2e-10),), ((512, 4e-11),)),
        AttentionTime(8, 64, ((512, 1e-10),), ((512, 2e-10),)),
    ),
)
Q4_1 = TensorSpec("0.up", 0, 512, 256, native=WeightFormat(4, "native", 32), native_bytes=512 * 256 * 5 // 8)
Q8_0 = TensorSpec("0.down", 0, 256, 512, native=WeightFormat(8, "native", 32), native_bytes=512 * 256 * 17 // 16)
LAYER = LayerSpec(q_heads=6, kv_heads=2, head_dim=64)
MODEL = ModelSpec("toy", "toy", "", 256, 1000, 8192, (LAYER,), (Q4_1, Q8_0), 0)
WORK = Workload((1024,), new_tokens=24, prefill_chunk_tokens=100)


def decode(choice: KvChoice, work: Workload = WORK, machine: HardwareProfile = MACHINE) -> float:
    return usage(KvSite(0, 0), choice, MODEL, work, machine, True)["decode_s.core"]


def kv(form: KvFormat, span: Full | Window = Full()) -> KvChoice:  # noqa: B008
    return KvChoice(span, form, form, 4, HOME)


def test_a_codes_kind_is_what_is_multiplied() -> None:
    kinds = [product_kind(each, exact(each) or WeightFormat(32)) for each in (Q4_1, Q8_0)]
    assert kinds == ["exact4", "block8"]  # codes without a minimum are blocks like any others
    assert product_kind(Q4_1, block(4)) == "block4"


def test_a_product_takes_what_was_measured() -> None:
    site = WeightSite(0, Q4_1.name)
    form = exact(Q4_1)
    assert form is not None
    used = usage(site, WeightChoice(form, HOME), MODEL, WORK, MACHINE)
    assert used["decode_s.core"] == pytest.approx(512 * 256 * 1.5e-10)
    assert used["ttft_s.core"] == pytest.approx(10 * 512 * 256 * (1.5e-10 + 99e-10))
    batch = replace(WORK, batch=51)
    assert usage(site, WeightChoice(form, HOME), MODEL, batch, MACHINE)["decode_s.core"] == pytest.approx(
        512 * 256 * (1.5e-10 + 50e-10)
    )


def test_attention_takes_its_slots() -> None:
    overhead = MACHINE.kernel_overhead_s / 2
    each = 2 * 64 * 3 * 2e-10
    assert decode(kv(FLOAT32)) == pytest.approx(1024 * each + overhead)
    assert decode(kv(FLOAT32, Window(60))) == pytest.approx(64 * each + overhead)
    assert decode(kv(static(8))) == pytest.approx(512 * each + overhead)


def test_fewer_bits_may_cost_the_prompt_more() -> None:
    slow, fast = (usage(KvSite(0, 0), kv(form), MODEL, WORK, MACHINE, True) for form in (static(8), FLOAT32))
    assert slow["decode_s.core"] < fast["decode_s.core"] and slow["ttft_s.core"] > fast["ttft_s.core"]
    assert slow["kv_bytes"] < fast["kv_bytes"] / 3


def test_what_was_not_measured_is_not_made_up() -> None:
    with pytest.raises(InputError, match="product_times has no block2"):
        usage(WeightSite(0, Q4_1.name), WeightChoice(block(2), HOME), MODEL, WORK, MACHINE)
    with pytest.raises(InputError, match="attention_times has none of 4 bits"):
        decode(kv(static(4)))


def test_a_whole_choice_sums_to_its_parts() -> None:
    chosen = {
        KvSite(0, 0): kv(FLOAT32),
        KvSite(0, 1): kv(FLOAT32, Window(60)),
        WeightSite(0, Q4_1.name): WeightChoice(WeightFormat(4, "exact", 32), HOME),
        WeightSite(0, Q8_0.name): WeightChoice(WeightFormat(8, "exact", 32), HOME),
    }
    items = dict(total(chosen, MODEL, WORK, MACHINE).decode_items)
    assert items["matrices"] == pytest.approx(512 * 256 * (1.5e-10 + 2e-10))
    assert items["attention"] == pytest.approx((1024 + 64) * 2 * 64 * 3 * 2e-10)
    assert items["expanding weights"] == items["expanding the cache"] == 0


def test_attention_goes_by_how_much_is_cached() -> None:
    curve = AttentionTime(32, 64, ((64, 4e-10), (1064, 2e-10)), ((100, 1e-11), (1000, 3e-11)))
    machine = replace(MACHINE, attention_times=(curve,))
    overhead, each = MACHINE.kernel_overhead_s / 2, 2 * 64 * 3
    assert decode(kv(FLOAT32), machine=machine) == pytest.approx(1024 * each * 2.08e-10 + overhead)  # 0.96 of the way
    assert decode(kv(FLOAT32, Window(28)), machine=machine) == pytest.approx(32 * each * 4e-10 + overhead)
    first = usage(KvSite(0, 0), kv(FLOAT32), MODEL, replace(WORK, context_tokens=(124,)), machine, True)["ttft_s.core"]
    assert first == pytest.approx(100 * 100 * each * 1e-11 + overhead)


def test_attention_goes_by_the_nearest_head_size() -> None:
    wide = replace(MACHINE.attention_times[0], head_dim=128, decode=((512, 1e-10),))
    machine = replace(MACHINE, attention_times=(MACHINE.attention_times[0], wide))
    nearest = [machine.attention_time(32, size) for size in (16, 64, 80, 96, 256)]
    assert [each.head_dim for each in nearest if each is not None] == [64, 64, 64, 128, 128]


def test_a_curve_never_goes_back() -> None:
    for decode_points in ((), ((64, 1e-10), (64, 2e-10)), ((128, 1e-10), (64, 1e-10))):
        with pytest.raises(InputError, match="heads of 64: decode needs its slots in rising order"):
            AttentionTime(32, 64, decode_points, ((64, 1e-10),))
    with pytest.raises(InputError, match="prefill: seconds: found 0"):
        AttentionTime(32, 64, ((64, 1e-10),), ((64, 0.0),))
