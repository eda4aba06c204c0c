"""A backend's numbers run by transformers give what the backend itself does."""

from pathlib import Path

import numpy as np
import pytest

from backends.onnxruntime.executor import OnnxRuntimeExecutor
from backends.transformers.oracle import Codes, Oracle
from planner.errors import InputError
from planner.executor import Executor
from planner.formats import block, grouped, rotated, static
from planner.plan import Plan
from planner.space import FLOAT16, FLOAT32, Full, KvChoice, KvSite, WeightFormat, Window
from tests.backends.oracle import Subject, choice, subject, tokens_of

CONTEXT = 96
FIRST = 24


@pytest.fixture(scope="module")
def llama(tiny_llama: Path) -> Subject:
    return subject(tiny_llama)


@pytest.fixture(scope="module")
def gpt2(tiny_gpt2: Path) -> Subject:
    return subject(tiny_gpt2)


def difference(who: Subject, plan: Plan, executor: Executor, codes: Codes) -> float:
    """The largest difference in log-probability between a runtime and the oracle over its codes."""
    tokens = tokens_of(CONTEXT)
    executor.use(who.statics)
    real = executor.open(plan).score(tokens, FIRST, 40)
    oracle = Oracle(codes, who.executor.weights, who.spec).open(plan, who.statics).score(tokens, FIRST, 40)
    return float(np.abs(real - oracle).max())


def per_head(site: KvSite) -> KvChoice:
    kinds = (
        choice(Full(), rotated(4), rotated(3)),
        choice(Window(16), FLOAT16),
        choice(Window(24), rotated(8), FLOAT32, sinks=2),
    )
    return kinds[(site.layer + site.kv_head) % len(kinds)]


def test_it_is_the_transformers_runner_over_that_runners_codes(llama: Subject) -> None:
    forms = {"q_proj": grouped(4), "up_proj": WeightFormat(16), "embed_tokens": grouped(8)}
    plan = llama.plan(per_head, lambda name: forms.get(name.split(".")[-2], WeightFormat(32)))
    assert difference(llama, plan, llama.executor, llama.executor) < 5e-3


def test_it_reads_matrices_that_are_kept_transposed(gpt2: Subject) -> None:
    plan = gpt2.plan(lambda _: choice(Window(16), FLOAT32), lambda _: grouped(4))
    assert difference(gpt2, plan, gpt2.executor, gpt2.executor) < 5e-3


@pytest.mark.parametrize("bits", [8, 4])
def test_it_is_onnx_runtime_over_its_codes_inputs_rounded_and_sinks_coded(llama: Subject, bits: int) -> None:
    executor = OnnxRuntimeExecutor(llama.executor.weights, llama.spec)
    floats = llama.plan(lambda s: choice(Window(16) if s.kv_head else Full(), FLOAT32))
    assert difference(llama, floats, executor, executor) < 1e-4
    coded = llama.plan(lambda s: choice(Window(16), static(bits)), lambda _: block(bits))
    # Both round the same numbers, and noise of 1e-6 flips some: the tails of the difference are not of interest.
    assert difference(llama, coded, executor, executor) < 0.1


def test_it_is_never_timed(llama: Subject) -> None:
    session = Oracle(llama.executor, llama.executor.weights, llama.spec).open(llama.plan(per_head), llama.statics)
    assert session.generate([tokens_of(20)], 3)
    with pytest.raises(InputError, match="nothing to time"):
        session.time(tokens_of(20), 2, 8)
