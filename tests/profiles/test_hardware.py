"""Measuring this machine: the figures are sane, say how far they spread, and are what the cost model reads."""

import os
from collections.abc import Callable

import pytest
import torch

from planner.errors import InputError
from planner.executor import FEW_SLOTS, Probed, ProbedAttention, ProbedDecoder
from planner.hardware import HardwareProfile
from planner.measured import by_name, count
from planner.serde import dump, load
from profiles import findings, flash, hardware, memory
from profiles.machine import usable_cpus
from profiles.record import Order

Stages = list[tuple[str, int, int]]


class PackedBytes:
    """A runtime that keeps 8-bit codes with one scale a row, and nothing narrower."""

    runtime, name = "packed", "packed bytes 1"

    def __init__(self) -> None:
        self.codes = torch.randint(-128, 128, (512, 512), dtype=torch.int8)
        self.scale = torch.rand(512, 1)
        self.hidden = torch.randn(1, 16)

    def expand_weights(self, bits: int) -> tuple[int, Callable[[], object]] | None:
        return (self.codes.numel(), lambda: self.codes.float() * self.scale) if bits == 8 else None

    def expand_kv(self, bits: int) -> tuple[int, Callable[[], object]] | None:
        return self.expand_weights(bits)

    def products(self) -> tuple[Probed, ...]:
        def product(tokens: int) -> Probed:
            x, matrix = torch.randn(tokens, 512), torch.randn(512, 512)
            return Probed("float32", tokens, matrix.numel(), lambda: lambda: x @ matrix)

        return product(64), product(1)

    def attention(self) -> tuple[ProbedAttention, ...]:
        def attention(slots: int, tokens: int) -> ProbedAttention:
            q, k = torch.randn(tokens, 64), torch.randn(slots, 64)
            work = 2 * tokens * k.numel()
            return ProbedAttention(
                32, 64, slots, tokens, 1, work, lambda: lambda: torch.softmax(q @ k.T, -1) @ k
            )  # fmt: skip

        return attention(FEW_SLOTS, 1), attention(2048, 1), attention(512, 1), attention(2048, 64), attention(512, 64)

    def decoder(self, layers: int, classes: int) -> ProbedDecoder:
        def step() -> torch.Tensor:
            x = self.hidden
            for _ in range(layers * classes):
                x = torch.nn.functional.silu(x) * self.hidden
            return x.argmax(-1)

        return ProbedDecoder(step)


@pytest.fixture(scope="module", params=["whole", "quick"])
def measured(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[HardwareProfile, Stages]:
    stages: Stages = []
    patch = pytest.MonkeyPatch()
    # The real thing, for less long: what is asserted here does not need steady figures.
    for module, names in (
        (memory, ("READ_S",)),
        (hardware, ("MATMUL_S", "EXPAND_S", "PRODUCT_S", "ATTENTION_S")),
        (findings, ("DECODER_S",)),
        (flash, ("BLOCK_S",)),
    ):
        for name in names:
            patch.setattr(module, name, 0.002)
    patch.setattr(flash, "FILE_BYTES", flash.FEWEST_FILE_BYTES)
    order = Order(tmp_path_factory.mktemp("scratch"), lambda *at: stages.append(at), quick=request.param == "quick")
    with patch.context():
        profile = hardware.measure(order, PackedBytes())
    patch.undo()
    assert list(order.scratch.iterdir()) == []
    return profile, stages


def test_the_profile_is_of_this_machine(measured: tuple[HardwareProfile, Stages]) -> None:
    profile, _ = measured
    machine = profile.machine
    assert machine is not None and machine.processor and machine.threads == usable_cpus()
    assert (machine.device, machine.runtime, machine.software[0]) == ("cpu", "packed", "packed bytes 1")
    assert (profile.name, profile.kind, profile.float_bits, profile.provenance) == ("local", "cpu", 32, "measured")
    assert profile.efficiency == 1 and hardware.LEAST_ERROR <= profile.error <= findings.MOST_ERROR
    assert 0 <= machine.others_share <= 1 and any("load average" in note for note in profile.notes)
    assert "packed bytes 1" in profile.sources[0] and "threads" in profile.sources[0]
    # Loose physics: any machine that runs this reads 0.1 GB/s to 10 TB/s and computes 10 Mflop/s to 1 Pflop/s.
    assert 1e8 < profile.fastest.read_bytes_per_s < 1e13
    assert 1e7 < profile.flop_per_s(32) < 1e15
    assert 0 < profile.fastest.capacity_bytes <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_what_the_cost_model_reads_is_what_the_curves_say(measured: tuple[HardwareProfile, Stages]) -> None:
    profile, _ = measured
    curves = by_name(profile.curves)
    threads = usable_cpus()
    assert profile.fastest.read_bytes_per_s == curves[memory.reading(threads)].points[-1][1]
    assert dict(profile.matmul_flop_per_s)["fp32"] == curves["torch fp32 product"].points[-1][1]
    assert profile.expand_weights_per_s == ((8.0, curves["expand weights"].value(8)),)
    product = profile.product_time("float32")
    assert product is not None and product.points == tuple((at, s) for at, s, _ in curves["float32 product"].points)
    assert [at for at, _, _ in curves["decoder step, 1 class"].points] == [1, 1 + findings.DEEP_LAYERS]


def test_memory_is_read_with_one_thread_and_with_all(measured: tuple[HardwareProfile, Stages]) -> None:
    profile, _ = measured
    curves = [curve for curve in profile.curves if curve.name.startswith("memory read")]
    assert [curve.name for curve in curves] == [memory.reading(n) for n in dict.fromkeys((1, usable_cpus()))]
    sizes = [at for at, _, _ in curves[0].points]
    assert sizes[-1] == memory.beyond_caches_bytes() and sizes[0] < sizes[-1] / 64


def test_a_call_over_few_slots_is_not_priced_with_the_attention(measured: tuple[HardwareProfile, Stages]) -> None:
    profile, _ = measured
    curve, time = by_name(profile.curves)["attention decode, 32 bits, head 64"], profile.attention_time(32, 64)
    assert curve.points[0][0] == FEW_SLOTS and time is not None
    assert [slots for slots, _ in time.decode] == [slots for slots, _, _ in curve.points[1:]]
    for (slots, each), (_, seconds, _) in zip(time.decode, curve.points[1:], strict=True):
        assert seconds / 2 <= each * 2 * 64 * slots * 1.001 and each * 2 * 64 * slots <= seconds * 1.001
    with pytest.raises(InputError, match="attention_times has none of 8 bits"):
        profile.attention_time(8, 64)


def test_only_what_the_runtime_stores_is_measured(measured: tuple[HardwareProfile, Stages]) -> None:
    profile, _ = measured
    assert [bits for bits, _ in profile.expand_weights_per_s] == [8]
    assert profile.expand_weights_s(1e6, 4) == profile.expand_weights_s(1e6, 8) > profile.expand_weights_s(1e6, 32) == 0
    with pytest.raises(InputError, match="product_times has no block4; it has float32; measure it for the runtime"):
        profile.product_time("block4")


def test_progress_only_goes_forward_and_ends(measured: tuple[HardwareProfile, Stages]) -> None:
    _, stages = measured
    done = [at for stage, at, _ in stages if stage == stages[0][0]]
    assert done == sorted(done) and stages[-1][1] == stages[-1][2]


def test_flash_is_measured_or_left_out_with_a_reason(measured: tuple[HardwareProfile, Stages]) -> None:
    profile, _ = measured
    if [tier.name for tier in profile.tiers] == ["dram", "flash"]:
        blocks = [block for block, _ in profile.tier("flash").read_curve]
        assert blocks[0] == 4096 and blocks[-1] == 16 * 2**20
    else:
        assert any(note.startswith("no flash tier: ") for note in profile.notes)


def test_a_measured_profile_reads_back_and_one_cut_short_does_not(measured: tuple[HardwareProfile, Stages]) -> None:
    profile, _ = measured
    text = dump(profile)
    assert load(text, HardwareProfile, "p.yaml") == profile
    assert profile.machine is not None and profile.machine.figures == count(profile.curves)
    lines = text.splitlines()
    cuts = range(len(lines) - 1, lines.index("curves:"), -1)
    for cut in cuts:
        with pytest.raises(InputError, match=r"^p\.yaml: "):
            load("\n".join(lines[:cut]), HardwareProfile, "p.yaml")


def test_profiles_of_the_first_version_are_still_read() -> None:
    old = """schema: planner/hardware-profile@1
name: local
kind: cpu
float_bits: 32
tiers: [{name: dram, capacity_bytes: 1000, read_bytes_per_s: 1e10, read_curve: []}]
matmul_flop_per_s: [[fp32, 1e11]]
layer_overhead_s: 1e-4
step_overhead_s: 1e-3
kernel_overhead_s: 1e-5
provenance: measured
error: 0.25
sources: [measured]
date: "2026-01-01"
product_times: [{kind: float32, points: [[1, 1e-10]]}]
attention_times: [{bits: 32, decode_s: 2e-10, prefill_s: 1e-11}]
notes: []
efficiency: 1.0
"""
    profile = load(old, HardwareProfile, "old.yaml")
    time = profile.attention_time(32, 128)
    assert time is not None and (time.decode, time.prefill) == (((2048, 2e-10),), ((2048, 1e-11),))
    assert profile.machine is None and profile.curves == ()
    assert load(dump(profile), HardwareProfile, "new.yaml") == profile
    with pytest.raises(InputError, match=r"^old\.yaml: \$\.attention_times\[0\]: field 'prefill' is missing"):
        load(old.replace(", prefill_s: 1e-11", ""), HardwareProfile, "old.yaml")
