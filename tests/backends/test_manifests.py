"""What is written for runtimes that are not here: fields that are known, values of the plan, and what is refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.torch import load

from backends.compose.executor import ComposeExecutor
from backends.kubernetes import manifests as kubernetes
from backends.kubernetes.executor import DynamoExecutor, KserveExecutor
from backends.lmcache.executor import LmcacheExecutor
from backends.manifests import NOTE, AroundVllm, Schema
from backends.openvino.executor import OpenVinoExecutor
from backends.sglang.executor import SCHEMA, SglangExecutor
from backends.tensorrt_llm.executor import TensorRtLlmExecutor
from planner.compile.runtimes import RUNTIMES, runtime
from planner.errors import InputError
from planner.executor import Executor
from planner.formats import FP8, FP8_ROWS, U8, integers, weight_bytes
from planner.goal import Workload
from planner.plan import Plan
from planner.space import FLOAT16, Full, KvChoice, KvFormat, KvSite, WeightFormat, Window
from tests.backends.oracle import Subject, choice, subject, tokens_of

GOLDEN = Path(__file__).parent / "golden"
FLOAT = WeightFormat(16)
CHECKPOINT = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")

pytest.importorskip("jsonschema", reason="jsonschema is not installed (extra: manifests)")


@pytest.fixture(scope="module")
def llama(tiny: Callable[[str], Path]) -> Subject:
    return subject(tiny("llama-three"))


def planned(
    llama: Subject,
    coded: KvFormat = FP8,
    weights: WeightFormat = FLOAT,
    windowed: tuple[int, ...] = (),
    value: KvFormat | None = None,
) -> Plan:
    """A plan of one cache format; embeddings stay floats, layers of `windowed` keep 32 tokens."""

    def kv(site: KvSite) -> KvChoice:
        return choice(Window(32) if site.layer in windowed else Full(), coded, value, sinks=0)

    def form(tensor: str) -> WeightFormat:
        return FLOAT if "embed" in tensor or "lm_head" in tensor else weights

    workload = Workload((128, 256), new_tokens=16, batch=3, prefill_chunk_tokens=64)
    return replace(llama.plan(kv, form), workload=workload, name="Golden plan")


CASES: dict[str, tuple[type[AroundVllm], dict[str, object]]] = {
    "sglang": (SglangExecutor, {"weights": integers(8, 0)}),
    "tensorrt_llm": (TensorRtLlmExecutor, {"weights": FP8_ROWS, "windowed": (1,)}),
    "openvino": (OpenVinoExecutor, {"coded": U8, "value": FLOAT16}),
    "lmcache": (LmcacheExecutor, {"weights": integers(4, 32)}),
    "kserve": (KserveExecutor, {"weights": integers(4, 32), "windowed": (1,)}),
    "dynamo": (DynamoExecutor, {"weights": integers(4, 32), "windowed": (1,)}),
    "compose": (ComposeExecutor, {"weights": integers(4, 32), "windowed": (1,)}),
}


def emitted(llama: Subject, name: str) -> tuple[Executor, Plan, dict[str, bytes]]:
    kind, told = CASES[name]
    executor, plan = kind(llama.executor.weights, llama.spec), planned(llama, **told)  # type: ignore[arg-type]
    written = executor.emit(plan, llama.spec)
    files = {f.path: f.content if isinstance(f.content, bytes) else f.content.read_bytes() for f in written}
    return executor, plan, files


@pytest.mark.parametrize("name", CASES)
def test_files_are_the_golden_ones_carry_the_plan_and_hold_no_placeholder(llama: Subject, name: str) -> None:
    executor, plan, files = emitted(llama, name)
    assert executor.capabilities.admits(plan.chosen) and not executor.capabilities.executes_here
    texts = {path: content.decode() for path, content in files.items() if path not in CHECKPOINT}
    folder = GOLDEN / name
    texts = {path: text for path, text in texts.items() if "LICENCE" not in path and not path.startswith("plugin")}
    wanted = {path.name: path.read_text() for path in folder.iterdir()}
    assert texts == wanted
    for text in texts.values():
        assert not any(sign in text for sign in ("None", "TODO", "<", "$MODEL", "CHANGEME"))
    assert "Nothing here was executed by planner." in texts[NOTE]


def test_tensorrt_llm_windows_and_formats_are_those_of_every_layer(llama: Subject) -> None:
    executor, plan, files = emitted(llama, "tensorrt_llm")
    options = yaml.safe_load(files["trtllm.yaml"])
    assert options["kv_cache_config"] == {"dtype": "fp8", "max_attention_window": [256, 32]}
    layers = json.loads(files["quant_cfg.json"])["quantized_layers"]
    coded = {site.tensor.removesuffix(".weight") for site, c in plan.weights if c.format == FP8_ROWS}
    assert set(layers) == coded
    told = json.loads(files["hf_quant_config.json"])["quantization"]
    assert not coded & set(told["exclude_modules"])
    stored = load(files["model.safetensors"])
    sizes = {tensor.name: tensor for tensor in llama.spec.tensors}
    for site, c in plan.weights:
        module = site.tensor.removesuffix(".weight")
        held = sum(t.nbytes for n, t in stored.items() if n.removesuffix("_scale") == f"{module}.weight")
        assert held == weight_bytes(sizes[site.tensor], c.format)
        if c.format == FP8_ROWS:
            back = stored[site.tensor].float() * stored[f"{module}.weight_scale"][:, None]
            assert np.array_equal(back.numpy(), executor.recode_weight(site.tensor, FP8_ROWS))
    assert "quantization_config" not in json.loads(files["config.json"])


@pytest.mark.parametrize("name", ["tensorrt_llm", "openvino"])
def test_their_own_numbers_price_a_plan(llama: Subject, name: str) -> None:
    executor, plan, _ = emitted(llama, name)
    dense = planned(llama, KvFormat(32), WeightFormat(16))
    tokens = tokens_of(64)
    found, plain = (executor.open(each).score(tokens, 16, 32) for each in (plan, dense))
    assert 0 < np.abs(np.exp(found) - np.exp(plain)).mean() < 0.01


def test_containers_are_told_what_serve_yaml_says(llama: Subject) -> None:
    _, _, files = emitted(llama, "compose")
    served = yaml.safe_load(files["serve.yaml"])
    (service,) = yaml.safe_load(files["compose.yaml"])["services"].values()
    command = service["command"]
    for name, value in served.items():
        if name not in ("model", "enable-chunked-prefill", "kv-cache-dtype-skip-layers"):
            assert command[command.index(f"--{name}") + 1] == str(value)
    for name, key in (("kserve", "template"), ("dynamo", "components")):
        _, _, wrapped = emitted(llama, name)
        document, claim = yaml.safe_load_all(wrapped[f"{name}.yaml"])
        assert key in document["spec"] and claim["metadata"]["name"] == document["metadata"]["name"] == "golden-plan"


@pytest.mark.parametrize(
    ("field", "value", "part"),
    [
        ("kv-cache-dtype", "int3", "kv-cache-dtype: 'int3' is not one of"),
        ("context-length", 0, "context-length: 0 is less than the minimum of 1"),
        ("sinks", 4, "Additional properties are not allowed"),
    ],
)
def test_a_field_that_is_not_known_is_never_written(field: str, value: object, part: str) -> None:
    known: dict[str, object] = {"model-path": ".", "dtype": "bfloat16", "context-length": 128}
    SCHEMA.check(known)
    with pytest.raises(InputError, match=part):
        SCHEMA.check({**known, field: value})


def test_every_schema_says_where_it_was_read() -> None:
    backends = Path(kubernetes.__file__).parent.parent
    for path in backends.glob("*/*.json"):
        schema = Schema.of(path.parent, path.stem)
        assert schema.source and schema.version


def test_every_runtime_has_a_table_and_refuses_other_versions() -> None:
    for name in RUNTIMES:
        can = runtime(name).capabilities
        assert can.runtime == name and runtime(f"{name}@{can.version}").capabilities == can
        with pytest.raises(InputError, match=f"what this version carries is not known; give one of .*{can.version}"):
            runtime(f"{name}@0.0.1")
