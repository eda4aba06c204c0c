"""vLLM itself on what is written for it: its parser, its configuration, and its engine beside the oracle.

Needs vLLM in an environment of its own, named by PLANNER_VLLM_PYTHON; about a minute a test.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from backends.vllm import validate
from backends.vllm.executor import VllmExecutor
from planner.errors import InputError
from planner.executor import Artifact
from planner.formats import FP8, integers
from planner.goal import Workload
from planner.plan import Plan
from planner.space import FLOAT16, Full, KvChoice, KvSite, WeightChoice, WeightFormat, Window
from tests.backends.oracle import Subject, choice, subject, tokens_of

NATS = 0.01
NATS_INPUTS_ROUNDED = 0.03
"""Where products round their inputs too: vLLM rounds those that its own bfloat16 layers gave."""


def why_not() -> str:
    """Why vLLM cannot run here, or nothing."""
    try:
        validate.interpreter()
    except InputError as error:
        return str(error)
    return ""


pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())


@pytest.fixture(scope="module")
def llama(tiny: Callable[[str], Path]) -> Subject:
    return subject(tiny("llama-three"))


def mixed(tensor: str) -> WeightFormat:
    module = tensor.split(".")[-2]
    if module in ("embed_tokens", "lm_head", "o_proj"):
        return WeightFormat(16)
    return integers(4, 32) if "layers.0" in tensor else integers(8, 0)


def planned(of: Subject, weights: Callable[[str], WeightFormat], windows: tuple[int, int], fp8: bool = False) -> Plan:
    """Two layers' windows (0 keeps all), the second layer in fp8 if asked."""

    def kv(site: KvSite) -> KvChoice:
        window = windows[site.layer]
        return choice(Window(window) if window else Full(), FP8 if fp8 and site.layer else FLOAT16, sinks=0)

    workload = Workload(context_tokens=(256,), new_tokens=16, prefill_chunk_tokens=64)
    return replace(of.plan(kv, weights), name="tiny", workload=workload)


def written(of: Subject, plan: Plan, directory: Path) -> Path:
    for file in VllmExecutor(of.executor.weights, of.spec).emit(plan, of.spec):
        write(directory, file)
    return directory


def write(directory: Path, file: Artifact) -> None:
    path = directory / file.path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(file.content if isinstance(file.content, bytes) else file.content.read_bytes())


def test_its_own_code_takes_every_argument(llama: Subject, tmp_path: Path) -> None:
    plan = planned(llama, mixed, (48, 80), fp8=True)
    slow = tuple((s, WeightChoice(c.format, (("host", 1.0),)) if "0.mlp" in s.tensor else c) for s, c in plan.weights)
    found = validate.check(written(llama, replace(plan, weights=slow), tmp_path))
    assert (found.architecture, found.dtype) == ("PlannedWindowsForCausalLM", "bfloat16")
    assert found.quantization == "compressed-tensors"
    assert (found.cache_dtype, found.skipped) == ("fp8_e4m3", ("0",))
    assert (found.max_model_len, found.chunked_prefill, found.max_num_batched_tokens) == (256, True, 64)
    assert found.offload_gb > 0 and found.offload_params == ("down_proj", "gate_up_proj")


def test_what_it_takes_and_does_not_read_is_refused_by_the_table(llama: Subject, tmp_path: Path) -> None:
    arguments = written(llama, planned(llama, mixed, (0, 0), fp8=True), tmp_path) / "serve.yaml"
    text = arguments.read_text()
    arguments.write_text(text.replace("fp8_e4m3", "int8_per_token_head"))
    with pytest.raises(InputError, match="takes int8_per_token_head on a CPU and does not read it"):
        validate.check(tmp_path)
    arguments.write_text(text + "keep-tokens: 4\n")
    with pytest.raises(InputError, match=r"vllm refuses it: .*keep-tokens"):
        validate.check(tmp_path)


def has_avx512() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.is_file() and "avx512f" in cpuinfo.read_text()


def linears(form: WeightFormat) -> Callable[[str], WeightFormat]:
    """All linear layers in one format."""
    return lambda name: form if "_proj" in name else WeightFormat(16)


@pytest.mark.parametrize(
    ("weights", "windows", "fp8", "within"),
    [
        (linears(WeightFormat(16)), (0, 48), False, NATS),
        (linears(integers(8, 0)), (32, 80), False, NATS_INPUTS_ROUNDED),
        (linears(integers(4, 32)), (0, 0), False, NATS),
        (mixed, (32, 80), True, NATS_INPUTS_ROUNDED),
    ],
    ids=["a window", "eight bits and two windows", "four bits", "all together"],
)
def test_it_gives_the_likelihood_of_the_oracle(
    llama: Subject,
    weights: Callable[[str], WeightFormat],
    windows: tuple[int, int],
    fp8: bool,
    within: float,
    tmp_path: Path,
) -> None:
    plan, tokens = planned(llama, weights, windows, fp8), tokens_of(200)
    if not has_avx512() and (fp8 or any(choice.format.bits == 4 for _, choice in plan.weights)):
        with pytest.raises(InputError, match=r"need AVX-512 on an x86 CPU, which this machine has not"):
            validate.score(written(llama, plan, tmp_path), [tokens])
        return
    found = validate.score(written(llama, plan, tmp_path), [tokens], new_tokens=3)
    assert len(found.tokens[0]) == 3 and found.decode_s is not None
    session = VllmExecutor(llama.executor.weights, llama.spec).open(plan)
    rows = session.score(tokens, 0, 64)[:-1]
    wanted = rows[np.arange(len(rows)), tokens[1:]]
    assert abs(np.mean(found.scores[0]) - np.mean(wanted)) < within
