"""Measuring a GPU: refused where there is none, run where there is one, and its calls checked on what there is.

Without a GPU the very same calls run on the CPU with small sizes, and with their real sizes on a device `cuda` of fake
tensors, whose shapes and types torch checks as it would the real ones'.
"""

from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from planner.cost import total
from planner.errors import InputError
from planner.goal import Workload
from planner.hardware import HardwareProfile, MemoryTier
from planner.measured import Machine, by_name, count
from planner.serde import dump, load
from planner.space import FLOAT16, Full, KvChoice, KvSite, WeightChoice, WeightFormat, WeightSite
from planner.spec import LayerSpec, ModelSpec, TensorSpec
from profiles import gpu, tensor_ops
from profiles.gpu import event_clock, gpu_pieces, gpu_profile, kinds, link, measure_gpu, this_gpu
from profiles.record import Order, Piece, hastened, take
from profiles.tensor_ops import Ground
from profiles.timing import wall_clock

HERE = Ground(torch.device("cpu"), wall_clock, 2**16)
EVERY = kinds(False, (9, 0))


def silent(stage: str, done: int, of: int) -> None:
    """Nobody watches."""


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("MATRIX", 64),
        ("SLOTS", (32, 64)),
        ("HEAD_DIMS", (16, 32)),
        ("COPIED_BYTES", (2**12, 2**16)),
        ("CROSSING_BYTES", (2**12, 2**14, 2**16, 2**18)),
    ):
        monkeypatch.setattr(gpu, name, value)


def pieces_here(quick: bool) -> list[Piece]:
    return [*hastened(list(gpu_pieces(HERE, ("fp32", "bf16", "int8"), 2**30, quick)), quick=True)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_refused_with_the_reason() -> None:
    with pytest.raises(InputError, match=r"^--device cuda: torch .*; leave --device out to measure the CPU$"):
        this_gpu(quick=False)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_is_measured(tmp_path: Path) -> None:
    profile = measure_gpu(Order(tmp_path, silent, quick=True))
    assert load(dump(profile), HardwareProfile, "gpu.yaml") == profile
    assert profile.machine is not None and profile.machine.processor == this_gpu(quick=True).processor
    assert event_clock(lambda: torch.ones(1, device="cuda"), 3) > 0


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("quick", [False, True])
def test_the_same_calls_run_on_the_cpu_and_make_a_profile(quick: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("COPY_S", "PRODUCT_S", "ATTENTION_S", "LINK_S", "LAUNCH_S"):
        monkeypatch.setattr(gpu, name, 0.005)
    curves = take(pieces_here(quick), silent)
    named = by_name(curves)
    assert {"memory copy", "host to device", "device to host", "launch", "torch bf16 product"} <= named.keys()
    assert {curve.unit for curve in curves} == {"s", "bytes/s", "flop/s"}
    machine = Machine("cuda", "none", 1, "torch", (), "", quick, 0.0, 0.0, count(curves))
    profile = gpu_profile(machine, curves, 10**10, (MemoryTier("dram", 10**11, *link(named)),), ("of a CPU",))
    assert profile.tier("dram").bytes_per_s(4096) == named["host to device"].value(4096)
    assert profile.error >= gpu.LEAST_ERROR and load(dump(profile), HardwareProfile, "gpu.yaml") == profile
    priced(profile)


def priced(profile: HardwareProfile) -> None:
    """A plan can be priced on the profile."""
    matrix = TensorSpec("0.up", 0, 512, 256)
    model = ModelSpec("toy", "toy", "", 256, 1000, 8192, (LayerSpec(2, 1, 64),), (matrix,), 0)
    home = (("hbm", 1.0),)
    chosen = {
        KvSite(0, 0): KvChoice(Full(), FLOAT16, FLOAT16, 4, home),
        WeightSite(0, "0.up"): WeightChoice(WeightFormat(16), home),
    }
    found = total(chosen, model, Workload((512,), new_tokens=8), profile)
    assert 0 < found.decode_s < found.ttft_s * 1e6


def test_every_call_is_well_formed_on_a_gpu() -> None:
    with FakeTensorMode():
        ground = Ground(torch.device("cuda"), wall_clock, 50 * 2**20)
        every = gpu_pieces(ground, EVERY, 80 * 10**9, quick=False)
        # Copies and the host's look at a result need the device itself.
        pieces = [piece for piece in every if piece.curve.startswith("torch ") or piece.curve == "launch"]
        for piece in pieces:
            piece.sample(0.0)  # a wrong shape, type or layout raises
    curves = {piece.curve for piece in pieces}
    assert {f"torch {kind} product" for kind in EVERY} <= curves
    ints = [piece.at for piece in pieces if piece.curve == "torch int8 product"]
    assert min(ints) > 16  # cuBLASLt's integer product wants more rows


def test_products_are_of_what_they_say(small: None) -> None:
    x = torch.randn(4, 64)
    for kind, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("int8", torch.int32)):
        out = tensor_ops._multiplying(HERE, kind, 4, 64)()
        assert isinstance(out, torch.Tensor) and out.dtype == dtype and out.shape == x.shape


def test_what_takes_turns_outgrows_the_cache() -> None:
    turns = Ground(torch.device("cpu"), wall_clock, 1000).turns(lambda: object(), 64)
    seen = [next(turns) for _ in range(100)]
    assert len(set(map(id, seen))) * 64 > 2 * 1000 and seen[0] in seen[1:]


def test_the_tiny_decoder_is_as_deep_as_it_says() -> None:
    torch.manual_seed(0)
    for classes in (1, 2):
        with torch.profiler.profile() as shallow:
            tensor_ops.decoder_step(HERE, 1, classes)()
        with torch.profiler.profile() as deep:
            tensor_ops.decoder_step(HERE, 5, classes)()
        calls = [
            sum(event.count for event in one.key_averages() if event.key == "aten::scaled_dot_product_attention")
            for one in (shallow, deep)
        ]
        assert calls == [classes, 5 * classes]


def test_types_go_by_what_a_device_can_do() -> None:
    assert kinds(False, (7, 5)) == ("fp32", "fp16")
    assert kinds(False, (8, 9)) == ("fp32", "fp16", "bf16", "int8", "fp8")
