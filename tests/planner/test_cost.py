"""Laws of the cost model: what more bits, more batch and a slower tier may and may not do to bytes and seconds."""

from dataclasses import replace
from math import isclose

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.cost import class_toll, constant, rows, total, usage, usages
from planner.errors import InputError, InvalidSpace
from planner.formats import GROUPED_BITS, ROTATED_BITS, grouped, rotated, static_bytes
from planner.goal import Workload
from planner.hardware import HardwareProfile, MemoryTier
from planner.space import (
    FLOAT16,
    FLOAT32,
    Choice,
    Full,
    KvChoice,
    KvSite,
    Site,
    Tier,
    WeightChoice,
    WeightFormat,
    WeightSite,
    Window,
)
from planner.spec import LayerSpec, ModelSpec, TensorSpec

FAST: Tier = (("dram", 1.0),)
SLOW: Tier = (("flash", 1.0),)
HALF: Tier = (("dram", 0.5), ("flash", 0.5))
MACHINE = HardwareProfile(
    name="small",
    kind="cpu",
    float_bits=32,
    tiers=(
        MemoryTier("dram", 10**10, 2e10),
        MemoryTier("flash", 10**12, 1e9, ((4096, 1e8), (2**20, 1e9))),
    ),
    matmul_flop_per_s=(("fp32", 1e11),),
    layer_overhead_s=1e-4,
    step_overhead_s=1e-3,
    kernel_overhead_s=5e-5,
    provenance="datasheet",
    error=0.4,
    sources=("made up",),
    date="2026-01-01",
    expand_weights_per_s=((2, 1e9), (4, 2e9), (8, 4e9), (16, 8e9)),
    expand_kv_per_s=((2, 5e8), (4, 1e9), (8, 2e9), (16, 4e9)),
)
GPU = replace(
    MACHINE,
    name="gpu",
    kind="gpu",
    float_bits=16,
    matmul_flop_per_s=(("bf16", 1e14),),
    expand_weights_per_s=(),
    expand_kv_per_s=(),
    efficiency=0.8,
)
MODEL = ModelSpec(
    family="toy",
    source="toy",
    weights_sha256="",
    hidden_size=256,
    vocab_size=1000,
    max_positions=8192,
    layers=(LayerSpec(8, 4, 32), LayerSpec(8, 4, 32, window=128), LayerSpec(8, 2, 64)),
    tensors=(
        TensorSpec("embedding", -1, 1000, 256, active=0.0),
        TensorSpec("head", -1, 1000, 256),
        *(TensorSpec(f"{layer}.up", layer, 512, 256) for layer in range(2)),
        TensorSpec("2.experts", 2, 512, 256, count=8, active=0.25),
    ),
    other_bytes=4096,
)
WORK = Workload((1024,), new_tokens=64, prefill_chunk_tokens=100)

SPANS = (Full(), Window(16), Window(64, 0.25))
KV_FORMATS = (*(rotated(bits) for bits in ROTATED_BITS), FLOAT16, FLOAT32)
WEIGHT_FORMATS = (*(grouped(bits) for bits in GROUPED_BITS), WeightFormat(16), WeightFormat(32))

kv_choices = st.builds(
    KvChoice,
    span=st.sampled_from(SPANS),
    k=st.sampled_from(KV_FORMATS),
    v=st.sampled_from(KV_FORMATS),
    sinks=st.sampled_from((0, 4, 16)),
    tier=st.sampled_from((FAST, SLOW, HALF)),
)
weight_choices = st.builds(
    WeightChoice, format=st.sampled_from(WEIGHT_FORMATS), tier=st.sampled_from((FAST, SLOW, HALF))
)
workloads = st.builds(
    Workload,
    context_tokens=st.sampled_from(((256,), (1024,), (300, 2048))),
    new_tokens=st.sampled_from((1, 64, 255)),
    batch=st.sampled_from((1, 3, 16)),
    prefill_chunk_tokens=st.sampled_from((1, 100, 4096)),
)
machines = st.sampled_from((MACHINE, GPU))


@st.composite
def full_choices(draw: st.DrawFn) -> dict[Site, Choice]:
    chosen: dict[Site, Choice] = {site: draw(kv_choices) for site in MODEL.kv_sites}
    return chosen | {site: draw(weight_choices) for site in MODEL.weight_sites}


def one_choice() -> st.SearchStrategy[tuple[Site, Choice]]:
    return st.one_of(
        st.tuples(st.sampled_from(MODEL.kv_sites), kv_choices),
        st.tuples(st.sampled_from(MODEL.weight_sites), weight_choices),
    )


@given(full_choices(), workloads, machines)
@settings(max_examples=40, deadline=None)
def test_a_whole_choice_never_costs_more_than_its_parts(
    chosen: dict[Site, Choice], work: Workload, machine: HardwareProfile
) -> None:
    parts = [usage(site, choice, MODEL, work, machine) for site, choice in chosen.items()]
    most = {row: base + sum(part[row] for part in parts) for row, base in constant(MODEL, work, machine).items()}
    whole = total(chosen, MODEL, work, machine)
    assert isclose(whole.kv_bytes, most["kv_bytes"])
    assert isclose(whole.weight_bytes, most["weight_bytes"])
    assert abs(whole.memory_bytes - most["memory_bytes"]) <= 1
    assert all(abs(count - most[f"bytes.{tier}"]) <= 1 for tier, count in whole.tier_bytes)
    for stage, seconds in (("decode_s", whole.decode_s), ("ttft_s", whole.ttft_s)):
        assert seconds <= max(value for row, value in most.items() if row.startswith(stage)) * (1 + 1e-9)


@given(full_choices(), workloads, machines)
@settings(max_examples=40, deadline=None)
def test_the_items_of_a_total_sum_to_it(chosen: dict[Site, Choice], work: Workload, machine: HardwareProfile) -> None:
    whole = total(chosen, MODEL, work, machine)
    assert abs(sum(count for _, count in whole.bytes_items) - sum(count for _, count in whole.tier_bytes)) <= 2
    for items, seconds in ((whole.decode_items, whole.decode_s), (whole.ttft_items, whole.ttft_s)):
        core = sum(value for name, value in items if not name.startswith("link "))
        assert isclose(seconds, max([core, *(value for name, value in items if name.startswith("link "))]))


def test_every_head_its_own_class_costs_what_its_parts_do_and_one_class_saves_the_rest() -> None:
    def chosen(alike: bool) -> dict[Site, Choice]:
        heads: dict[Site, Choice] = {
            site: KvChoice(Window(64 if alike else 64 + site.kv_head), FLOAT16, FLOAT16, 4, FAST)
            for site in MODEL.kv_sites
        }
        return heads | {site: WeightChoice(WeightFormat(16), FAST) for site in MODEL.weight_sites}

    def core(chosen: dict[Site, Choice], tolled: bool) -> float:
        parts = [usage(site, c, MODEL, WORK, MACHINE, tolled)["decode_s.core"] for site, c in chosen.items()]
        return constant(MODEL, WORK, MACHINE)["decode_s.core"] + sum(parts)

    assert isclose(core(chosen(False), False), total(chosen(False), MODEL, WORK, MACHINE).decode_s)
    assert isclose(core(chosen(True), True), total(chosen(True), MODEL, WORK, MACHINE).decode_s)
    further = len(MODEL.kv_sites) - len(MODEL.layers)
    tolls = further * class_toll(WORK, MACHINE)["decode_s.core"]
    assert isclose(core(chosen(False), True) + tolls, total(chosen(False), MODEL, WORK, MACHINE).decode_s)
    saved = core(chosen(True), False) - total(chosen(True), MODEL, WORK, MACHINE).decode_s
    assert isclose(saved, MACHINE.kernel_overhead_s * (len(MODEL.kv_sites) - len(MODEL.layers)))


@given(one_choice(), workloads, machines)
@settings(max_examples=100, deadline=None)
def test_a_slower_tier_never_lowers_link_time_nor_raises_memory_time(
    placed: tuple[Site, Choice], work: Workload, machine: HardwareProfile
) -> None:
    site, choice = placed
    near, half, far = (usage(site, replace(choice, tier=tier), MODEL, work, machine) for tier in (FAST, HALF, SLOW))
    for faster, slower in ((near, half), (half, far)):
        for row in rows(machine):
            if "link" in row or row == "bytes.flash":
                assert faster[row] <= slower[row] * (1 + 1e-12)
            if row.endswith(".core") or row in ("memory_bytes", "bytes.dram"):
                assert faster[row] * (1 + 1e-12) >= slower[row]
    assert near["kv_bytes"] == far["kv_bytes"] and near["weight_bytes"] == far["weight_bytes"]


@given(st.sampled_from(MODEL.kv_sites), kv_choices, workloads, machines)
@settings(max_examples=60, deadline=None)
def test_more_bits_never_take_fewer_bytes(
    site: KvSite, choice: KvChoice, work: Workload, machine: HardwareProfile
) -> None:
    counts = [usage(site, replace(choice, k=wide, v=wide), MODEL, work, machine)["kv_bytes"] for wide in KV_FORMATS]
    assert counts == sorted(counts)


@pytest.mark.parametrize("site", MODEL.weight_sites, ids=str)
def test_more_bits_of_a_matrix_never_take_fewer_bytes(site: WeightSite) -> None:
    counts = [usage(site, WeightChoice(form, FAST), MODEL, WORK, MACHINE)["weight_bytes"] for form in WEIGHT_FORMATS]
    assert counts == sorted(counts) and counts[0] > 0


@given(st.sampled_from(MODEL.kv_sites), kv_choices, st.integers(1, 64))
@settings(max_examples=60, deadline=None)
def test_batch_scales_the_cache_exactly_and_its_static_factors_not_at_all(
    site: KvSite, choice: KvChoice, batch: int
) -> None:
    one = usage(site, choice, MODEL, WORK, MACHINE)
    many = usage(site, choice, MODEL, replace(WORK, batch=batch), MACHINE)
    shared = static_bytes(choice, MODEL.layers[site.layer])
    assert many["kv_bytes"] - shared == batch * (one["kv_bytes"] - shared)


@given(workloads, machines, st.booleans())
@settings(max_examples=20, deadline=None)
def test_pricing_a_space_is_pricing_its_candidates(work: Workload, machine: HardwareProfile, tolled: bool) -> None:
    heads = [KvChoice(span, FLOAT16, rotated(4), 4, tier) for span in SPANS for tier in (FAST, HALF)]
    candidates: dict[Site, list[Choice]] = {site: list(heads) for site in MODEL.kv_sites}
    candidates |= {site: [WeightChoice(form, FAST) for form in WEIGHT_FORMATS] for site in MODEL.weight_sites}
    wanted = [
        list(usage(site, choice, MODEL, work, machine, tolled).values())
        for site, choices in candidates.items()
        for choice in choices
    ]
    assert np.array_equal(usages(candidates, MODEL, work, machine, tolled), np.array(wanted))


def test_a_table_that_is_only_looked_up_takes_bytes_and_no_time() -> None:
    use = usage(WeightSite(-1, "embedding"), WeightChoice(WeightFormat(16), FAST), MODEL, WORK, MACHINE)
    assert use["weight_bytes"] == 1000 * 256 * 2
    assert all(use[row] == 0 for row in rows(MACHINE) if "_s." in row)


def test_the_head_runs_once_a_prefill_and_a_layer_once_a_chunk() -> None:
    def ttft(name: str, layer: int) -> float:
        return usage(WeightSite(layer, name), WeightChoice(WeightFormat(32), FAST), MODEL, WORK, MACHINE)["ttft_s.core"]

    assert isclose(ttft("head", -1), 1000 * 256 * 4 / 2e10)
    # 960 tokens in nine chunks of 100 and one of 60; each is bound by its products, not by reading 512 kB.
    assert isclose(ttft("0.up", 0), 2 * 512 * 256 * 960 / 1e11)


def test_a_batch_touches_more_experts_but_never_more_than_all() -> None:
    site, plain = WeightSite(2, "2.experts"), WeightChoice(WeightFormat(32), FAST)
    machine = replace(MACHINE, matmul_flop_per_s=(("fp32", 1e18),))
    seconds = [
        usage(site, plain, MODEL, replace(WORK, batch=batch), machine)["decode_s.core"] for batch in (1, 2, 10**4)
    ]
    everything = 8 * 512 * 256 * 4 / 2e10
    assert isclose(seconds[0], everything / 4) and isclose(seconds[1], everything * (1 - 0.75**2))
    assert isclose(seconds[2], everything)


def test_attention_over_a_cache_by_hand() -> None:
    # Layer 0: two query heads a KV head of 32 channels. 4 sinks at 128 bytes, 1020 slots at 2 x (16 + 2) bytes, and
    # three float16 vectors of static factors, which no step reads.
    choice = KvChoice(Full(), rotated(4), rotated(4), 4, FAST)
    use = usage(KvSite(0, 0), choice, MODEL, WORK, replace(MACHINE, kernel_overhead_s=0.0))
    stored = 4 * 32 * 4 + 1020 * 36
    flop = 4 * 2 * 32 * 1024
    assert use["kv_bytes"] == use["memory_bytes"] == stored + 3 * 32 * 2
    assert isclose(use["decode_s.core"], max(flop / 1e11, stored / 2e10) + 1020 * 2 * 32 / 1e9)


def test_flash_is_read_at_the_rate_of_its_blocks() -> None:
    def link(alpha: int) -> float:
        choice = KvChoice(Window(alpha), FLOAT16, FLOAT16, 0, SLOW)
        return usage(KvSite(0, 0), choice, MODEL, WORK, MACHINE)["decode_s.link.flash"]

    # 128 bytes a slot. The curve's first point is 4 KiB, its next is out of reach.
    assert isclose(link(32), 4096 / 1e8) and isclose(link(16), link(32))
    assert 1024 * 128 / 1e9 < link(1024) < 1024 * 128 / 1e8


@given(st.floats(1, 1e8), st.floats(1, 1e8))
def test_a_longer_read_never_ends_sooner(one: float, other: float) -> None:
    disk = MACHINE.tier("flash")
    shorter, longer = sorted((one, other))
    assert shorter / disk.bytes_per_s(shorter) <= longer / disk.bytes_per_s(longer) * (1 + 1e-12)


def test_rows_name_every_tier_and_link() -> None:
    use = usage(KvSite(0, 0), KvChoice(Full(), FLOAT16, FLOAT16, 0, FAST), MODEL, WORK, MACHINE)
    assert tuple(use) == rows(MACHINE) == tuple(constant(MODEL, WORK, MACHINE))
    assert [row for row in rows(MACHINE) if "flash" in row] == [
        "bytes.flash",
        "decode_s.link.flash",
        "ttft_s.link.flash",
    ]
    assert not [row for row in rows(replace(MACHINE, tiers=MACHINE.tiers[:1])) if "link" in row]


def test_a_tier_that_the_target_lacks_is_refused() -> None:
    choice = KvChoice(Full(), FLOAT16, FLOAT16, 0, (("hbm", 1.0),))
    with pytest.raises(InputError, match=r"target small has no tier 'hbm'; it has dram, flash"):
        usage(KvSite(0, 0), choice, MODEL, WORK, MACHINE)


def test_a_candidate_of_another_kind_and_an_unknown_tensor_are_refused() -> None:
    with pytest.raises(InvalidSpace, match="layer 0 kv head 0 cannot take WeightChoice"):
        usage(KvSite(0, 0), WeightChoice(WeightFormat(16), FAST), MODEL, WORK, MACHINE)
    with pytest.raises(InvalidSpace, match=r"0\.gate is no tensor of toy"):
        usage(WeightSite(0, "0.gate"), WeightChoice(WeightFormat(16), FAST), MODEL, WORK, MACHINE)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("tiers", (), "has no memory tier"),
        ("tiers", MACHINE.tiers[:1] * 2, "each name once"),
        ("matmul_flop_per_s", (("bf16", 1e11),), "no rate for 32-bit"),
        ("matmul_flop_per_s", (("fp32", -1.0),), r"matmul_flop_per_s.fp32: found -1.0"),
        ("expand_kv_per_s", ((4, float("nan")),), "expanded per second at 4 bits: found nan"),
        ("layer_overhead_s", float("inf"), "layer_overhead_s: found inf"),
        ("efficiency", 1.5, "efficiency: found 1.5"),
    ],
)
def test_a_profile_that_makes_no_sense_is_refused(field: str, value: object, said: str) -> None:
    with pytest.raises(InputError, match=said):
        replace(MACHINE, **{field: value})


@pytest.mark.parametrize(
    ("curve", "rate", "said"),
    [
        (((4096, 1e8), (4096, 2e8)), 1e9, "rising order"),
        (((4096, 0.0),), 1e9, "read_curve rate: found 0.0"),
        ((), 0.0, "read_bytes_per_s: found 0.0"),
    ],
)
def test_a_tier_that_makes_no_sense_is_refused(curve: tuple[tuple[int, float], ...], rate: float, said: str) -> None:
    with pytest.raises(InputError, match=said):
        MemoryTier("flash", 10**9, rate, curve)
