"""From operators to a step: what tensor parallelism, batches and small kernels must do to it."""

from dataclasses import replace

import numpy as np
import pytest

from planner.errors import InputError
from planner.operators.collective import ALL_REDUCE, all_reduce_model
from planner.operators.roofline import Roofline
from planner.operators.sheet import GpuSheet
from planner.operators.step import DenseModel, Step
from planner.operators.step_times import StepTimes

SHEET = GpuSheet(
    name="round",
    architecture="any",
    sm_count=100,
    boost_hz=1e9,
    l2_bytes=1,
    shared_bytes_per_sm=1,
    memory_bytes_per_s=1e12,
    memory_bytes=10**11,
    flop_per_s=(("bf16", 1e15), ("fp8", 2e15)),
    link_bytes_per_s=1e11,
    pcie_bytes_per_s=1e10,
)
LLAMA_8B = DenseModel(32, 4096, 32, 8, 128, 14336, 128256)
STEP = Step(LLAMA_8B, Roofline(SHEET), gpus=1, kind="bf16", kv_bits=16)


def test_a_small_batch_takes_as_long_as_reading_the_weights() -> None:
    # 7 billion weights of the layers and half of the embeddings, the head, at 2 bytes and 1 TB/s.
    weights_s = 2 * (LLAMA_8B.matrix_elements + LLAMA_8B.embedding_elements / 2) / 1e12
    assert STEP.decode_s(1, 1) == pytest.approx(weights_s, rel=1e-3)


def test_a_long_prompt_takes_as_long_as_its_products_and_attention() -> None:
    products_s = 2 * 4096 * LLAMA_8B.matrix_elements / 1e15
    attention_s = 32 * 2 * 4096**2 * 32 * 128 / 1e15
    without_traffic = replace(STEP, operators=Roofline(replace(SHEET, memory_bytes_per_s=1e18)))
    assert without_traffic.prefill_s(4096) == pytest.approx(products_s + attention_s, rel=1e-3)
    assert STEP.prefill_s(4096) > products_s + attention_s


def test_the_cache_is_read_once_a_step() -> None:
    more_s = STEP.decode_s(8, 2000) - STEP.decode_s(8, 1000)
    assert more_s == pytest.approx(8 * 1000 * STEP.kv_bytes_per_token / 1e12)
    assert STEP.kv_bytes_per_token == 2 * 32 * 8 * 128 * 2


@pytest.mark.parametrize("gpus", [2, 4, 8])
def test_gpus_share_weights_and_cache_and_pay_for_it_in_all_reduces(gpus: int) -> None:
    part = replace(STEP, gpus=gpus)
    assert part.weight_bytes == pytest.approx(STEP.weight_bytes / gpus)
    assert part.kv_bytes_per_token == STEP.kv_bytes_per_token / gpus
    assert STEP.decode_s(64, 1000) / gpus < part.decode_s(64, 1000) < STEP.decode_s(64, 1000)


def test_a_kv_head_is_never_split() -> None:
    assert replace(STEP, gpus=16).kv_bytes_per_token == STEP.kv_bytes_per_token / 8


def test_small_kernels_add_to_every_layer() -> None:
    slower = replace(STEP, kernels=7, kernel_s=1e-6)
    assert slower.tokens_s(1) - STEP.tokens_s(1) == pytest.approx(32 * 7 * 1e-6)


def test_fewer_bits_are_faster_at_a_small_batch() -> None:
    assert replace(STEP, kind="fp8").decode_s(1, 1) < 0.6 * STEP.decode_s(1, 1)
    assert replace(STEP, kv_bits=8).decode_attention_s(8, 4096) == pytest.approx(STEP.decode_attention_s(8, 4096) / 2)


def test_what_cannot_be_shared_or_multiplied_is_refused() -> None:
    with pytest.raises(InputError, match="32 query heads cannot be shared evenly by 3 GPUs"):
        replace(STEP, gpus=3)
    with pytest.raises(InputError, match="no products of kind 'fp7'; known: bf16"):
        replace(STEP, kind="fp7")


def test_looking_a_step_up_is_running_it() -> None:
    times = StepTimes(STEP)
    for batch, context in ((1, 512), (24, 4096), (200, 3000), (1024, 8192)):
        assert times.step_s([], batch, context) == pytest.approx(STEP.decode_s(batch, context), rel=1e-3)
    assert times.step_s([(2048, 0)], 0, 0) == pytest.approx(STEP.prefill_s(2048), rel=1e-2)


def test_chunks_of_a_prompt_attend_to_all_before_them() -> None:
    times = StepTimes(STEP)
    attended = [float(STEP.prefill_attention_s(length)) for length in (1024, 4096)]
    second_s = times.step_s([(3072, 1024)], 0, 0) - STEP.tokens_s(3072) - STEP.head_s(1)
    assert second_s == pytest.approx(attended[1] - attended[0], rel=2e-2)


def test_beyond_the_grid_times_grow_in_proportion() -> None:
    times = StepTimes(STEP)
    assert times.step_s([], 2048, 1000) > 1.5 * times.step_s([], 1024, 1000)
    assert times.step_s([(65536, 0)], 0, 0) > 1.9 * times.step_s([(32768, 0)], 0, 0)


@pytest.mark.parametrize("framework", [*ALL_REDUCE, "another"])
def test_an_all_reduce_takes_longer_with_bytes_and_gpus(framework: str) -> None:
    model = all_reduce_model(framework)
    messages = np.geomspace(256, 1e9, 60)
    latencies = np.array([model.latency_s(SHEET, gpus, messages) for gpus in (1, 2, 4, 8)])
    assert (latencies[0] == 0).all()
    assert (np.diff(latencies, axis=0) > 0).all()
    assert (np.diff(latencies[1:], axis=1) >= 0).all()
    bound = Roofline(SHEET)
    assert (latencies[3] > bound.all_reduce_s(8, messages)).all()


def test_gpus_without_a_link_use_pcie() -> None:
    model, message = all_reduce_model("vllm"), np.array([1e9])
    apart = model.latency_s(replace(SHEET, link_bytes_per_s=0.0), 2, message)
    assert apart > 9 * model.latency_s(SHEET, 2, message)
