"""Measuring this machine: the figures are sane, honest about noise, and flash is never the page cache."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from planner.errors import InputError
from planner.executor import Probed, ProbedDecoder
from planner.hardware import HardwareProfile
from profiles import flash, hardware
from profiles.flash import Flash, NoFlash, file_system, measure_flash
from profiles.timing import sample, timed


class PackedBytes:
    """A runtime that keeps 8-bit codes with one scale a row, and nothing narrower."""

    name = "packed bytes 1"

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

    def attention(self) -> tuple[Probed, ...]:
        def attention(tokens: int) -> Probed:
            q, k = torch.randn(tokens, 64), torch.randn(512, 64)
            return Probed("32", tokens, tokens * k.numel(), lambda: lambda: torch.softmax(q @ k.T, -1) @ k)

        return attention(1), attention(64)

    def decoder(self, layers: int, classes: int) -> ProbedDecoder:
        def step() -> torch.Tensor:
            x = self.hidden
            for _ in range(layers * classes):
                x = torch.nn.functional.silu(x) * self.hidden
            return x.argmax(-1)

        return ProbedDecoder(step)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[HardwareProfile, list[tuple[str, int, int]]]:
    stages: list[tuple[str, int, int]] = []
    patch = pytest.MonkeyPatch()
    # The real thing, for less long: what is asserted here does not need steady figures.
    for name in ("MEMORY_S", "MATMUL_S", "EXPAND_S", "OVERHEAD_S", "PRODUCT_S"):
        patch.setattr(hardware, name, 0.05)
    patch.setattr(flash, "PASS_S", 0.01)
    with patch.context():
        profile = hardware.measure(tmp_path_factory.mktemp("scratch"), lambda *at: stages.append(at), PackedBytes())
    patch.undo()
    return profile, stages


def test_the_profile_is_of_this_machine(measured: tuple[HardwareProfile, list[tuple[str, int, int]]]) -> None:
    profile, _ = measured
    assert (profile.name, profile.kind, profile.float_bits, profile.provenance) == ("local", "cpu", 32, "measured")
    assert profile.efficiency == 1 and profile.error >= hardware.LEAST_ERROR
    assert any("load average" in note for note in profile.notes)
    assert "packed bytes 1" in profile.sources[0] and "threads" in profile.sources[0]
    # Loose physics: any machine that runs this reads 0.1 GB/s to 10 TB/s and computes 0.1 Gflop/s to 1 Pflop/s.
    assert 1e8 < profile.fastest.read_bytes_per_s < 1e13
    assert 1e8 < profile.flop_per_s(32) < 1e15
    assert 0 < profile.fastest.capacity_bytes <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_only_what_the_runtime_stores_is_measured(
    measured: tuple[HardwareProfile, list[tuple[str, int, int]]],
) -> None:
    profile, _ = measured
    assert [bits for bits, _ in profile.expand_weights_per_s] == [8]
    assert profile.expand_weights_s(1e6, 4) == profile.expand_weights_s(1e6, 8) > profile.expand_weights_s(1e6, 32) == 0


def test_kernels_measured_whole_have_their_points_in_order(
    measured: tuple[HardwareProfile, list[tuple[str, int, int]]],
) -> None:
    profile, _ = measured
    product, attention = profile.product_time("float32"), profile.attention_time(32)
    assert product is not None and [tokens for tokens, _ in product.points] == [1, 64]
    assert product.seconds(64) > product.seconds(32) > product.seconds(1) > 0
    assert attention is not None and 0 < attention.prefill_s < 1e-3
    with pytest.raises(InputError, match="product_times has no block4; it has float32; measure it for the runtime"):
        profile.product_time("block4")
    with pytest.raises(InputError, match="attention_times has none of 8 bits"):
        profile.attention_time(8)


def test_progress_only_goes_forward_and_ends(measured: tuple[HardwareProfile, list[tuple[str, int, int]]]) -> None:
    _, stages = measured
    done = [at for _, at, _ in stages]
    assert done == sorted(done) and stages[-1][1] == stages[-1][2]


def test_flash_is_measured_or_left_out_with_a_reason(
    measured: tuple[HardwareProfile, list[tuple[str, int, int]]],
) -> None:
    profile, _ = measured
    if [tier.name for tier in profile.tiers] == ["dram", "flash"]:
        blocks = [block for block, _ in profile.tier("flash").read_curve]
        assert blocks[0] == 4096 and blocks[-1] == 4 * 2**20
    else:
        assert any(note.startswith("no flash tier: ") for note in profile.notes)


def test_flash_leaves_nothing_behind(tmp_path: Path) -> None:
    found = measure_flash(tmp_path, lambda done, of: None, file_bytes=16 * 2**20)
    assert list(tmp_path.iterdir()) == []
    assert isinstance(found, NoFlash) or found.sequential_bytes_per_s > 0


def test_memory_that_looks_like_a_disk_is_not_flash() -> None:
    shared = Path("/dev/shm")
    if not shared.is_dir() or file_system(shared) not in flash.IN_MEMORY:
        pytest.skip("no file system in memory here")
    found = measure_flash(shared, lambda done, of: None)
    assert isinstance(found, NoFlash) and "lives in memory" in found.reason


def test_a_device_too_full_to_read_from_is_left_out(tmp_path: Path) -> None:
    found = measure_flash(tmp_path, lambda done, of: None, file_bytes=flash.FEWEST_FILE_BYTES - 1)
    assert isinstance(found, NoFlash) and not isinstance(found, Flash)


def test_a_scratch_that_is_no_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a directory"):
        measure_flash(tmp_path / "missing", lambda done, of: None)


def test_the_spread_is_the_middle_half_and_an_outlier_leaves_it_alone() -> None:
    assert sample([1.0] * 9 + [100.0]).spread == 0
    assert sample([1.0] * 9 + [100.0]).seconds == 1


def test_timing_calls_at_least_the_fewest_times() -> None:
    calls = []
    assert timed(lambda: calls.append(1), 0.0).seconds > 0
    assert len(calls) > 5
