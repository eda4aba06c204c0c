"""Seconds on a GPU whose operators are priced: shares add up to their calls, and more work takes longer."""

from dataclasses import replace

import numpy as np
import pytest

from planner import cost
from planner.errors import InputError
from planner.goal import Workload
from planner.hardware import HardwareProfile
from planner.space import Full, KvChoice, KvFormat, KvSite, WeightChoice, WeightFormat, WeightSite, Window
from planner.spec import LayerSpec, ModelSpec, TensorSpec
from planner.times import attention_s, product_s
from profiles.targets import target, targets

HOME = (("hbm", 1.0),)
SIXTEEN = KvFormat(16)
SHAPES = {"q_proj": (4096, 4096), "k_proj": (1024, 4096), "v_proj": (1024, 4096), "o_proj": (4096, 4096)}
MATRICES = tuple(TensorSpec(f"model.layers.0.self_attn.{n}.weight", 0, *shape) for n, shape in SHAPES.items())
LAYER = LayerSpec(32, 8, 128)
SPEC = ModelSpec("llama", "", "", 4096, 1000, 32768, (LAYER,), MATRICES, 0)
GPUS = [name for name in targets() if target(name).kind == "gpu"]


@pytest.fixture(scope="module")
def a100() -> HardwareProfile:
    return target("a100")


def decoded(hardware: HardwareProfile, name: str, bits: float, batch: int) -> float:
    choice = WeightChoice(WeightFormat(bits) if bits == 16 else WeightFormat(bits, "grouped", 64), HOME)
    site = WeightSite(0, f"model.layers.0.self_attn.{name}.weight")
    return cost.usage(site, choice, SPEC, Workload((2048,), batch=batch), hardware)["decode_s.core"]


def test_fused_matrices_share_one_call(a100: HardwareProfile) -> None:
    assert a100.operators is not None
    together = sum(decoded(a100, name, 16, 1) for name in ("q_proj", "k_proj", "v_proj"))
    assert together == pytest.approx(a100.operators.product_s(16, 1, 6144, 4096))
    assert decoded(a100, "o_proj", 16, 1) == pytest.approx(a100.operators.product_s(16, 1, 4096, 4096))


def test_few_bits_win_for_one_token_and_lose_for_many(a100: HardwareProfile) -> None:
    """Kernels that widen 4-bit weights are bound by arithmetic long before those that need not."""
    assert decoded(a100, "q_proj", 4, 1) < decoded(a100, "q_proj", 16, 1)
    assert decoded(a100, "q_proj", 4, 256) > decoded(a100, "q_proj", 16, 256)


@pytest.mark.parametrize("name", GPUS)
def test_more_work_never_takes_less(name: str) -> None:
    hardware = target(name)
    batches = [decoded(hardware, "q_proj", 16, batch) for batch in (1, 64, 1024)]
    assert batches == sorted(batches) and batches[0] > 0
    tokens, held = np.ones(4), np.array([128.0, 1024.0, 8192.0, 65536.0])
    seconds = attention_s(LAYER, 16, 8, tokens, held, np.zeros(4), True, hardware)
    assert (np.diff(seconds) >= 0).all() and seconds[-1] > 4 * seconds[0]
    chunks = attention_s(LAYER, 16, 1, np.full(4, 256.0), held, np.zeros(4), False, hardware)
    assert (np.diff(chunks) >= 0).all()


def test_heads_that_are_alike_take_a_layer_s_attention_together(a100: HardwareProfile) -> None:
    assert a100.operators is not None
    work = Workload((4096,), new_tokens=64)
    choice = KvChoice(Full(), SIXTEEN, SIXTEEN, 0, HOME)
    one = cost.usage(KvSite(0, 0), choice, SPEC, work, a100, tolled=True)["decode_s.core"]
    whole = a100.operators.attention_s(LAYER, 16, 1, np.ones(1), np.array([4096.0]), True)
    assert 8 * one == pytest.approx(float(whole[0]), rel=1e-6)


def test_a_window_attends_to_less(a100: HardwareProfile) -> None:
    work = Workload((32768,), new_tokens=64, batch=8)
    spans = (Window(1024), Window(8192), Full())
    choices = [KvChoice(span, SIXTEEN, SIXTEEN, 4, HOME) for span in spans]
    for row in ("decode_s.core", "ttft_s.core"):
        seconds = [cost.usage(KvSite(0, 0), choice, SPEC, work, a100)[row] for choice in choices]
        assert seconds == sorted(seconds) and seconds[0] < seconds[-1]


def test_experts_multiply_what_is_sent_to_them(a100: HardwareProfile) -> None:
    expert = TensorSpec("w", 0, 4096, 4096, count=8, active=0.25)
    one = replace(expert, count=1, active=1.0)
    float16 = WeightFormat(16)
    every = product_s(expert, float16, 10_000, 0.0, 4096, a100)
    assert every == pytest.approx(8 * product_s(one, float16, 2500, 0.0, 4096, a100), rel=1e-3)
    assert product_s(replace(expert, active=0.0), float16, 100, 0.0, 4096, a100) == 0


def test_a_product_that_nobody_measured_is_refused(a100: HardwareProfile) -> None:
    assert a100.operators is not None
    only = replace(a100.operators, gemm=tuple(pair for pair in a100.operators.gemm if pair[0] == "bf16"))
    with pytest.raises(InputError, match="a100: no model of int4_wo products; it has bf16"):
        only.product_s(4, 1, 64, 64)
