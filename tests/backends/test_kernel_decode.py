"""Decode attention over ragged caches: right, evenly shared, and reading little more than it must."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.kernels import decode_attention, ragged
from backends.kernels.contract import Variant
from backends.kernels.decode_attention import Shape
from backends.kernels.ragged import GRAIN, balance, program_count, schedule
from planner.goal import Workload
from planner.published import folded
from planner.spec import LayerSpec, ModelSpec
from profiles.plans.duo import Duo
from profiles.plans.moa import Moa
from tests.backends.interpreted import Checking, checking

PLANS = Path(__file__).parents[1] / "profiles" / "data" / "plans"
# What planner compile chose for SmolLM2-135M at 1,024 tokens and an eighth of its cache on the transformers runtime: of
# each layer, of each KV head, bits of keys and of values, protected tokens, and the window.
SMOLLM2 = Path(__file__).parent / "data" / "smollm2_spans.json"
A100 = 108


@pytest.fixture(scope="module")
def interpreter() -> Iterator[Checking]:
    with checking() as process:
        yield process


@pytest.mark.parametrize("shape", decode_attention.hostile(), ids=lambda s: f"{s.head_dim}-k{s.k_bits}-v{s.v_bits}")
@pytest.mark.parametrize(("dtype", "least_slots"), [("float16", 512), ("bfloat16", 64)])
def test_edge_cases_are_those_of_the_reference(
    interpreter: Checking, shape: Shape, dtype: str, least_slots: int
) -> None:
    variant = next(v for v in decode_attention.variants(shape) if v.tile("LEAST_SLOTS") == least_slots)
    assert interpreter.run("decode_attention", asdict(shape), asdict(variant), dtype)["right"]


def test_little_more_is_read_than_the_plan_says(interpreter: Checking) -> None:
    """Windows and a full head at 3 bits, two sequences of different lengths."""
    shape = Shape(64, 3, 3, 3, 3, (4,) * 6, (256, 512, 1020, 256, 512, 700), multiprocessors=2)
    (variant, *_) = decode_attention.variants(shape)
    decoding, merging = interpreter.run("decode_attention", asdict(shape), asdict(variant), "float16")["launches"]
    assert decoding["programs"] > 1
    must = decode_attention.cache_bytes(shape)
    assert decoding["read_by_program"] <= 1.05 * must
    # What programs leave for one another grows with them and not with the cache, which is a small one here.
    assert merging["read_by_program"] <= 0.05 * must
    assert decoding["balance"] < 1.15


def test_large_shares_and_their_merge_together_read_little_more(interpreter: Checking) -> None:
    shape = Shape(64, 3, 3, 3, 3, (4,) * 6, (256, 512, 1020, 256, 512, 700), multiprocessors=2)
    launches = interpreter.run("decode_attention", asdict(shape), asdict(coarse(shape)), "float16")["launches"]
    assert launches[0]["programs"] == 2
    assert sum(launch["read_by_program"] for launch in launches) <= 1.05 * decode_attention.cache_bytes(shape)
    assert launches[0]["balance"] < 1.15


def coarse(shape: Shape) -> Variant:
    """The variant with the largest shares, which leave the fewest partial results."""
    return max(decode_attention.variants(shape), key=lambda v: (v.tile("LEAST_SLOTS"), v.tile("BLOCK_N") == 64))


@pytest.mark.parametrize("context", [1024, 2048])
@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize("shares", [(2, 512), (1, 1024), (4, 256), (2, 64)])
def test_a_step_of_the_smollm2_plan_reads_little_more_than_it_says(
    context: int, batch: int, shares: tuple[int, int]
) -> None:
    """By what launches say they need, which the test above and the next one hold to what is counted."""
    needed = must = 0
    for layer in json.loads(SMOLLM2.read_text()):
        for (k_bits, v_bits), pairs in launched(layer, [context] * batch).items():
            sinks, slots = zip(*pairs, strict=True)
            shape = Shape(64, 3, k_bits, v_bits, len(pairs) // batch, sinks, slots)
            variant = next(v for v in decode_attention.variants(shape) if shares_of(v) == shares)
            needed += sum(launch.bytes_read for launch in decode_attention.launches(shape, variant))
            must += decode_attention.cache_bytes(shape)
    assert must < needed < 1.05 * must


def shares_of(variant: Variant) -> tuple[int, int]:
    """How a variant splits the work."""
    return variant.tile("RESIDENT"), variant.tile("LEAST_SLOTS")


@settings(max_examples=200, deadline=None)
@given(
    slots=st.lists(st.integers(1, 3000), min_size=1, max_size=12),
    bits=st.sampled_from([2, 3, 4, 8, 16, 32]),
    group=st.integers(1, 8),
)
def test_partial_results_are_a_small_share_of_the_cache(slots: list[int], bits: int, group: int) -> None:
    shape = Shape(64, group, bits, bits, 1, (0,) * len(slots), tuple(slots))
    for variant in decode_attention.variants(shape):
        parts = decode_attention.split_parts(shape, shape.programs(variant))
        held = shape.grains * GRAIN * shape.slot_bytes
        assert parts * group * (64 + 2) * 4 <= ragged.PARTIAL_SHARE * held


def launched(layer: Sequence[Sequence[int]], lengths: Sequence[int]) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """(sinks, slots) of the pairs of each launch of a layer, the heads that are stored at the same bits."""
    kinds: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for length in lengths:
        for k_bits, v_bits, sinks, window in layer:
            kinds.setdefault((k_bits, v_bits), []).append((sinks, min(window or length, length - sinks)))
    return kinds


def test_what_a_launch_says_it_needs_is_what_it_reads(interpreter: Checking) -> None:
    for shape in decode_attention.hostile()[:3]:
        variant = decode_attention.variants(shape)[0]
        found = interpreter.run("decode_attention", asdict(shape), asdict(variant), "float16")
        read = sum(launch["read"] for launch in found["launches"])
        needed = sum(launch["bytes_read"] for launch in found["needed"])
        assert needed <= read + 31 * 8 and read <= 1.05 * needed + 32 * len(shape.slots)


# --- shares -------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(
    pairs=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 900)), min_size=1, max_size=12),
    programs=st.integers(1, 40),
    weight=st.integers(1, 6),
)
def test_every_slot_is_in_one_share(pairs: list[tuple[int, int]], programs: int, weight: int) -> None:
    sinks, slots = (torch.tensor(each) for each in zip(*pairs, strict=True))
    none = torch.zeros_like(sinks)
    work = schedule(sinks, slots, none, none, none, weight, programs)
    assert work.starts[0].tolist() == [0, 0]
    assert int(work.starts[-1, 0]) == int(work.records[-1, 1])
    shares = work.starts[:, 0].diff()
    full = shares[shares == shares.max()]
    assert len(full) * int(full[0]) <= int(shares.sum()) < (len(full) + 1) * int(full[0])  # all but the last used one
    for (begin, pair), count in zip(work.starts[:-1].tolist(), shares.tolist(), strict=True):
        if count:
            assert int(work.records[pair, 0]) <= begin < int(work.records[pair, 1])
    of = (work.records[:, 1] - work.records[:, 0]).tolist()
    assert of == [max(1, -(-s * weight // GRAIN) + -(-n // GRAIN)) for s, n in pairs]


def even(pairs: Sequence[tuple[int, int]], weight: int, resident: int, slots_each: int) -> float:
    """Largest over mean share of a launch over (sinks, slots) pairs."""
    sinks, slots = (torch.tensor(each) for each in zip(*pairs, strict=True))
    none = torch.zeros_like(sinks)
    programs = program_count(int(ragged.grains(sinks, slots, weight).sum()), len(pairs), resident, 512, slots_each)
    return balance(schedule(sinks, slots, none, none, none, weight, programs))


@pytest.mark.parametrize("context", [512, 1024, 2048])
@pytest.mark.parametrize("batch", [1, 5, 16])
def test_shares_of_the_smollm2_plan_are_even(context: int, batch: int) -> None:
    """Sequences are of different lengths."""
    lengths = [context * (i + 1) // batch for i in range(batch)]
    for layer in json.loads(SMOLLM2.read_text()):
        for (k_bits, v_bits), pairs in launched(layer, lengths).items():
            shape = Shape(64, 3, k_bits, v_bits, 3, (4,), (1,))
            each = ragged.partial_slots(shape.group, shape.head_dim, shape.slot_bytes)
            assert even(pairs, shape.sink_weight, 2 * A100, each) < 1.15


def spec(layers: int) -> ModelSpec:
    """The shapes of a Llama 3 of so many layers, which is all that a published plan is read with."""
    return ModelSpec("llama", "published", "", 4096, 10, 2**20, (LayerSpec(32, 8, 128),) * layers, (), 0)


@pytest.mark.parametrize(
    ("plan", "model"),
    [
        (Moa(PLANS / "moa_llama-3.2-1b.json"), spec(16)),
        (Moa(PLANS / "moa_llama-3-8b-262k.json"), spec(32)),
        (Duo(PLANS / "llama-3.1-8b" / "full_attention_heads.tsv"), spec(32)),
    ],
)
@pytest.mark.parametrize("batch", [1, 7])
def test_shares_of_published_plans_are_even(plan: Moa | Duo, model: ModelSpec, batch: int) -> None:
    for context in (4096, 32768, 131072):
        published = plan.read(model, Workload(context_tokens=(context,)))
        worst, one_each = 0.0, 0.0
        held: dict[int, list[int]] = {}
        for site, rules in published.groups(model):
            held.setdefault(site.layer, []).append(folded(rules).tokens(context))
        for kept in held.values():
            pairs = [(0, max(1, tokens * (i + 1) // batch)) for i in range(batch) for tokens in kept]
            worst = max(worst, even(pairs, 1, 2 * A100, ragged.partial_slots(4, 128, 512)))
            one_each = max(one_each, max(n for _, n in pairs) * len(pairs) / sum(n for _, n in pairs))
        assert worst < 1.15
        assert worst < one_each  # one program for each head
