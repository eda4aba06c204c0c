"""A small made-up model with a made-up profile: 4 layers of 2 KV heads, prices that fall with what is kept."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from planner.executor import Capabilities
from planner.formats import grouped, rotated
from planner.goal import Goal, Limits, Objective, Workload
from planner.hardware import HardwareProfile, MemoryTier
from planner.loss import Correction, LossModel
from planner.pipeline import PassContext
from planner.profile import KvPrices, ModelProfile, WeightPrices
from planner.space import FLOAT16, FLOAT32, WeightFormat
from planner.spec import LayerSpec, ModelSpec, TensorSpec

WINDOWS = (16, 32, 64, 128, 256, 512, 1024, 2048)
KV_FORMATS = (FLOAT16, rotated(2), rotated(3), rotated(4), rotated(8))
WEIGHT_FORMATS = (WeightFormat(16), grouped(2), grouped(4), grouped(8))
SINKS = 4


def make_spec(layers: int = 4, kv_heads: int = 2, window: int | None = None) -> ModelSpec:
    """Layers of 64-wide heads; the second matrix of each lies on a native grid, the third fits no group of 32."""
    tensors = tuple(
        tensor
        for i in range(layers)
        for tensor in (
            TensorSpec(f"layers.{i}.q", i, 128, 128),
            TensorSpec(f"layers.{i}.up", i, 256, 128, native=WeightFormat(4.5, "native", 32), native_bytes=18432),
            TensorSpec(f"layers.{i}.odd", i, 64, 72),
        )
    )
    each = LayerSpec(2 * kv_heads, kv_heads, 64)
    shapes = tuple(replace(each, window=window if i % 2 else None) for i in range(layers))
    return ModelSpec("toy", "toy", "ab" * 32, 128, 320, 4096, shapes, tensors, 4096)


def make_profile(spec: ModelSpec, contexts: tuple[int, ...], seed: int = 0) -> ModelProfile:
    """Losses that fall with the window and the bits, by random powers; no two sites alike."""
    rng = np.random.default_rng(seed)
    windows = tuple(w for w in WINDOWS if w + SINKS < max(contexts))
    sites, forms = spec.kv_sites, KV_FORMATS
    shape = (len(sites), len(windows) + 1, len(forms), len(forms), len(contexts))
    loss, mass = np.zeros(shape), np.zeros((len(sites), len(windows) + 1, len(contexts)))
    coarse = np.array([0.0 if form == FLOAT16 else 4.0**-form.bits for form in forms])
    for i in range(len(sites)):
        size, power = 10 ** rng.uniform(-4, -1.5), rng.uniform(0.3, 2)
        k, v = rng.uniform(0.02, 1), rng.uniform(0.02, 0.3)
        for j, context in enumerate(contexts):
            kept = np.minimum(np.array([*windows, context]) / context, 1.0)
            evicted = size * (kept**-power - 1)
            rounding = (k * coarse[:, None] + v * coarse[None, :]) * rng.uniform(0.8, 1.25, (len(forms),) * 2)
            loss[i, ..., j] = evicted[:, None, None] + rounding * (1 + kept[:, None, None])
            mass[i, :, j] = kept ** rng.uniform(0.05, 0.6)
    rates = np.array([1e-6, 0.1, 0.01, 1e-4])
    weights = 10 ** rng.uniform(-2, 0, (len(spec.tensors), 1)) * rates
    for i, tensor in enumerate(spec.tensors):
        if tensor.cols % 32:
            weights[i, 1:] = np.nan
    return ModelProfile(
        weights_sha256=spec.weights_sha256,
        formats_sha256="cd" * 32,
        context_tokens=contexts,
        draws=4,
        seed=0,
        kv=KvPrices(sites, windows, forms, forms, SINKS, loss, loss / 10),
        weights=WeightPrices(spec.weight_sites, WEIGHT_FORMATS, weights, weights / 10),
        mass=mass,
        statics={},
        documents=(),
    )


def make_hardware(fast_bytes: int = 10**9, tiers: int = 2, float_bits: int = 32) -> HardwareProfile:
    """A CPU with memory at 10 GB/s and, behind a link of 1 GB/s each, slower tiers."""
    slower = tuple(MemoryTier(name, 10**12, 1e9) for name in ("flash", "disk")[: tiers - 1])
    return HardwareProfile(
        name="toy",
        kind="cpu",
        float_bits=32 if float_bits == 32 else 16,
        tiers=(MemoryTier("dram", fast_bytes, 1e10), *slower),
        matmul_flop_per_s=(("fp32", 1e11), ("fp16", 1e11)),
        layer_overhead_s=1e-5,
        step_overhead_s=1e-5,
        kernel_overhead_s=1e-6,
        provenance="datasheet",
        error=0.4,
        sources=(),
        date="",
        expand_weights_per_s=((4.0, 1e9),),
        expand_kv_per_s=((4.0, 1e9),),
    )


def make_capabilities(page: int = 1, classes: int | None = None, offloads: bool = True) -> Capabilities:
    return Capabilities(
        runtime="toy",
        version="1",
        kv_formats=(FLOAT32, *KV_FORMATS),
        weight_formats=(WeightFormat(32), *WEIGHT_FORMATS),
        window_page_tokens=page,
        classes_per_layer=classes,
        executes_here=True,
        offloads=offloads,
    )


DEARER = Correction(1.1, 0.0, 0.6)
"""Whole settings lose more than their prices sum to."""


def make_context(
    limits: Limits | None = None,
    minimise: Objective = "loss_nats",
    contexts: tuple[int, ...] = (1024,),
    window: int | None = None,
    page: int = 1,
    classes: int | None = None,
    fast_bytes: int = 10**9,
    tiers: int = 2,
    lossy: bool = True,
    layers: int = 4,
    kv_heads: int = 2,
    seed: int = 0,
) -> PassContext:
    """Everything a pass may know of the made-up model."""
    spec = make_spec(layers, kv_heads, window)
    workload = Workload(contexts, new_tokens=16)
    loss = LossModel(spec, make_profile(spec, contexts, seed), workload, DEARER, DEARER) if lossy else None
    goal = Goal(minimise, limits or Limits())
    return PassContext(spec, workload, goal, make_hardware(fast_bytes, tiers), make_capabilities(page, classes), loss)


@pytest.fixture
def context() -> Callable[..., PassContext]:
    """`make_context`, whose arguments say what a test changes."""
    return make_context
