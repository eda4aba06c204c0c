"""Laws of the model of matrix products, whatever its parameters; and what its shipped parameters say."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.errors import InputError
from planner.operators.gemm import KINDS, GemmModel
from planner.operators.sheet import GpuSheet

A100 = GpuSheet(
    name="a100",
    architecture="sm_80",
    sm_count=108,
    boost_hz=1.41e9,
    l2_bytes=40 * 2**20,
    shared_bytes_per_sm=164 * 2**10,
    memory_bytes_per_s=2.039e12,
    memory_bytes=80 * 10**9,
    flop_per_s=(("bf16", 312e12), ("int8", 624e12)),
    link_bytes_per_s=300e9,
    pcie_bytes_per_s=32e9,
)
H100 = replace(A100, architecture="sm_90", flop_per_s=(("bf16", 989e12), ("fp8", 1979e12)))
MODEL = GemmModel(
    launch_kclocks=3.5,
    flop_time=1.0,
    edge_time=0.15,
    ragged_time=0.0,
    load_bytes_per_clock=35.0,
    fill_kclocks=0.6,
    epilogue_kclocks=1.5,
    wave_softness=0.1,
    read_share=0.95,
    write_share=1.0,
    cached_rate=2.1,
    cached_share=0.4,
    reduce_kclocks=3.0,
    reduce_rate=2.3,
    hot_share=0.1,
    hot_s=2e-3,
    choice=0.04,
    unpack_per_clock=64.0,
    quantise_rate=1.0,
    issue_s=0.0,
)
sizes = st.integers(1, 70_000)


@given(sizes, sizes, sizes)
def test_nothing_beats_the_roofline(m: int, n: int, k: int) -> None:
    traffic_s = 2 * n * k / A100.memory_bytes_per_s
    ideal_s = 2 * m * n * k / A100.rate("bf16")
    assert MODEL.latency_s(A100, "bf16", m, n, k) > max(traffic_s, ideal_s)


@given(sizes, sizes, sizes, st.sampled_from(sorted(KINDS)))
def test_a_larger_product_takes_no_less_than_a_smaller_one_of_full_tiles(m: int, n: int, k: int, kind: str) -> None:
    sheet = replace(A100, flop_per_s=(("bf16", 312e12), ("int8", 624e12), ("fp8", 624e12), ("fp4", 1248e12)))
    small, large = MODEL.latency_s(sheet, kind, m, n, np.array([k, 8 * k]))
    assert large > 0.99 * small


@given(st.lists(st.tuples(sizes, sizes, sizes), min_size=1, max_size=5))
def test_a_product_takes_as_long_alone_as_among_others(shapes: list[tuple[int, int, int]]) -> None:
    together = MODEL.latency_s(A100, "bf16", *np.array(shapes).T)
    alone = [float(MODEL.latency_s(A100, "bf16", *shape)) for shape in shapes]
    assert together.tolist() == pytest.approx(alone, rel=1e-12)


def test_sizes_broadcast_and_the_latency_has_their_shape() -> None:
    m = np.arange(1, 2001)[:, None]
    latency_s = MODEL.latency_s(A100, "bf16", m, np.array([1024, 4096]), 4096)
    assert latency_s.shape == (2000, 2) and latency_s.dtype == np.float64
    assert MODEL.latency_s(A100, "bf16", 1, 1024, 1024).shape == ()


def test_one_tile_more_than_the_chip_holds_costs_a_wave() -> None:
    sheet, n = replace(A100, memory_bytes_per_s=1e14), np.array([108, 109]) * 64
    for softness, ratio in ((0.001, 2), (0.999, 109 / 108)):
        model = replace(MODEL, choice=0.0, wave_softness=softness)
        full, over = model.latency_s(sheet, "bf16", 128, n, 65536)
        assert over / full == pytest.approx(ratio, rel=0.02)


def test_tiles_of_fitted_width_waste_less_on_a_ragged_edge() -> None:
    """257 rows are three tiles of 88 columns on a GPU that can, and three of 128 on one that cannot."""
    same = replace(H100, flop_per_s=A100.flop_per_s)
    ratio = {
        sheet.architecture: float(np.divide(*MODEL.latency_s(sheet, "bf16", np.array([257, 256]), 8192, 8192)))
        for sheet in (A100, same)
    }
    assert ratio["sm_90"] < ratio["sm_80"]


def test_few_weights_read_in_turn_stay_in_the_cache() -> None:
    small = [float(MODEL.latency_s(A100, "bf16", 1, 2048, 1024, weight_copies=n)) for n in (1, 4, np.inf)]
    assert small[0] < small[1] < small[2]
    large = [float(MODEL.latency_s(A100, "bf16", 1, 16384, 16384, weight_copies=n)) for n in (1, np.inf)]
    assert large[0] == pytest.approx(large[1], rel=1e-3)


def test_faster_memory_helps_few_rows_and_faster_arithmetic_many() -> None:
    wide = replace(A100, memory_bytes_per_s=2 * A100.memory_bytes_per_s)
    fast = replace(A100, flop_per_s=(("bf16", 624e12),))

    def gain(sheet: GpuSheet, m: int) -> float:
        return float(MODEL.latency_s(A100, "bf16", m, 8192, 8192) / MODEL.latency_s(sheet, "bf16", m, 8192, 8192))

    assert gain(wide, 1) > 1.4 > gain(wide, 8192) and gain(fast, 8192) > 1.4 > gain(fast, 1)


def test_weights_are_widened_again_for_every_tile() -> None:
    """Narrow weights read faster; unpacking them costs the more the more rows there are."""
    slow = replace(MODEL, unpack_per_clock=8.0)
    ratio = slow.latency_s(A100, "int4_wo", np.array([1, 4096]), 8192, 8192) / slow.latency_s(
        A100, "bf16", np.array([1, 4096]), 8192, 8192
    )
    assert ratio[1] > 1 > MODEL.latency_s(A100, "int4_wo", 1, 8192, 8192) / MODEL.latency_s(A100, "bf16", 1, 8192, 8192)


def test_what_the_host_takes_to_issue_hides_what_is_shorter() -> None:
    eager = replace(MODEL, issue_s=1e-4)
    small, large = eager.latency_s(A100, "bf16", np.array([1, 8192]), 8192, 8192)
    assert small == pytest.approx(1e-4, rel=0.5)
    assert large == pytest.approx(float(MODEL.latency_s(A100, "bf16", 8192, 8192, 8192)), rel=1e-3)


@pytest.mark.parametrize(
    ("kind", "m", "found"),
    [
        ("int3", 1, "no model of int3 products; known: bf16, fp8"),
        ("fp8", 1, "a100: no throughput for fp8; its sheet has bf16, int8"),
        ("bf16", 0, "m, n and k of at least 1, found 0"),
        ("bf16", -3, "m, n and k of at least 1, found -3"),
    ],
)
def test_a_product_without_a_latency_is_refused(kind: str, m: int, found: str) -> None:
    with pytest.raises(InputError, match=found):
        MODEL.latency_s(A100, kind, np.array([m, 5]), 64, 64)
