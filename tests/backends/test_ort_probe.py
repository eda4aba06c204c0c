"""What the ONNX Runtime probe offers to be timed: every kind, width, head size and length, and calls that run."""

import numpy as np
import pytest

from backends.onnxruntime.executor import CAPABILITIES
from backends.onnxruntime.graph import CACHE_TYPES
from backends.onnxruntime.probe import (
    CHUNK,
    HEAD_DIMS,
    KV_HEADS,
    PRODUCT_KINDS,
    PRODUCT_TOKENS,
    Q_HEADS,
    SLOTS,
    GraphProbe,
)
from planner.executor import FEW_SLOTS, ProbedAttention

PROBE = GraphProbe()
ATTENTION = {(one.bits, one.head_dim, one.slots, one.tokens > 1): one for one in PROBE.attention()}


def test_it_is_of_the_runtime_it_names() -> None:
    assert PROBE.runtime == CAPABILITIES.runtime and PROBE.name.startswith(f"{PROBE.runtime} ")


def test_every_product_is_offered_at_every_number_of_tokens() -> None:
    assert [(one.kind, one.tokens) for one in PROBE.products()] == [
        (k, n) for k in PRODUCT_KINDS for n in PRODUCT_TOKENS
    ]


def test_attention_is_offered_over_every_cache_and_decoding_over_next_to_none() -> None:
    wanted = {
        (bits, size, slots, read) for bits in CACHE_TYPES for size in HEAD_DIMS for slots in SLOTS for read in (0, 1)
    }
    few = {(bits, size, FEW_SLOTS, 0) for bits in CACHE_TYPES for size in HEAD_DIMS}
    assert ATTENTION.keys() == wanted | few


@pytest.mark.parametrize(
    "one", ATTENTION.values(), ids=lambda one: f"{one.bits}-{one.head_dim}-{one.slots}-{one.tokens}"
)
def test_a_call_is_worth_timing_and_fits_in_memory(one: ProbedAttention) -> None:
    assert one.work == 2 * one.tokens * Q_HEADS * one.head_dim * one.slots
    assert 1 <= one.tokens <= min(CHUNK, one.slots)
    cached = one.layers * 2 * KV_HEADS * one.head_dim * one.slots
    assert one.layers >= 1 and cached * 4 < 300e6
    assert one.layers * one.work > 1e7  # far longer than the microseconds of a call


@pytest.mark.parametrize("bits", CACHE_TYPES)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("tokens", [1, 32])
def test_attention_runs_over_a_full_cache(bits: int, head_dim: int, tokens: int) -> None:
    (heard,) = PROBE._attending(bits, head_dim, 64, tokens, 2)() or (None,)
    assert heard is None  # the results stay in the binding


@pytest.mark.parametrize("kind", PRODUCT_KINDS)
def test_products_run_one_behind_the_other_and_keep_their_size(kind: str) -> None:
    (out,) = PROBE._multiplying(kind, 3, 2)()  # type: ignore[misc]
    assert np.isfinite(out).all() and 0.05 < float(np.abs(out).mean()) < 20


@pytest.mark.parametrize("classes", [1, 2])
def test_a_decoder_steps_on_and_on(classes: int) -> None:
    decoder = PROBE.decoder(2, classes)
    assert decoder.kind in PRODUCT_KINDS and decoder.numbers > 0 and decoder.attended > 0
    for _ in range(100):  # its cache is full after 44, and begins anew
        decoder.call()
