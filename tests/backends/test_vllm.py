"""What is written for vLLM: numbers, bytes, names, windows and arguments, and what is refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load

from backends.vllm import checkpoint, codes, serve, validate
from backends.vllm.capabilities import VERSIONS
from backends.vllm.executor import VllmExecutor
from planner.errors import InputError
from planner.executor import of_version
from planner.formats import FP8, integers, weight_bytes
from planner.goal import Workload
from planner.plan import Plan
from planner.space import FLOAT16, Full, KvChoice, KvSite, Span, WeightChoice, WeightFormat, Window
from tests.backends.oracle import Subject, choice, subject

GOLDEN = Path(__file__).parent / "golden" / "vllm"
FLOAT = WeightFormat(16)
SLOWER = (("host", 1.0),)


@pytest.fixture(scope="module")
def llama(tiny: Callable[[str], Path]) -> Subject:
    return subject(tiny("llama-three"))


def form_of(tensor: str) -> WeightFormat:
    """Layer 0: four bits and floats; layer 1: eight bits, and four bits in wider groups."""
    module = tensor.split(".")[-2]
    if module in ("embed_tokens", "lm_head", "o_proj"):
        return FLOAT
    if "layers.0" in tensor:
        return integers(4, 32)
    return integers(4, 128) if module == "down_proj" else integers(8, 0)


def planned(
    llama: Subject,
    spans: tuple[Span, Span] = (Full(), Full()),
    fp8: tuple[int, ...] = (),
    weights: Callable[[str], WeightFormat] = form_of,
) -> Plan:
    """A plan of one span for each layer, some of them cached in fp8."""

    def kv(site: KvSite) -> KvChoice:
        return choice(spans[site.layer], FP8 if site.layer in fp8 else FLOAT16, sinks=0)

    workload = Workload(context_tokens=(128, 256), new_tokens=16, batch=3, prefill_chunk_tokens=64)
    return replace(llama.plan(kv, weights), workload=workload, name="golden")


def executor(llama: Subject) -> VllmExecutor:
    return VllmExecutor(llama.executor.weights, llama.spec)


def emitted(llama: Subject, plan: Plan) -> dict[str, bytes]:
    files = executor(llama).emit(plan, llama.spec)
    return {f.path: f.content if isinstance(f.content, bytes) else f.content.read_bytes() for f in files}


# --- numbers ------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([32, 64]), st.sampled_from(["float16", "bfloat16"]))
def test_four_bits_are_never_worse_than_rounding_to_the_full_range(seed: int, group: int, kind: str) -> None:
    floats: codes.FloatName = "float16" if kind == "float16" else "bfloat16"
    matrix = torch.randn(4, 128, generator=torch.Generator().manual_seed(seed)) ** 3
    small, scale = codes.quantise4(matrix, group, floats)
    assert small.min() >= -8 and small.max() <= 7
    grouped = matrix.view(4, -1, group)
    plain = codes.rounded(grouped.abs().amax(-1, keepdim=True) / 7, floats).float()
    full = ((grouped / plain).round().clamp(-8, 7) * plain).view(4, 128)
    found = codes.dequantise4(small, scale)
    assert (found - matrix).square().sum() <= (full - matrix).square().sum() * (1 + 1e-6)
    assert torch.equal(codes.dequantise4(*codes.quantise4(torch.zeros(2, 64), group, floats)), torch.zeros(2, 64))


def test_packed_codes_are_read_back_nibble_by_nibble() -> None:
    small = torch.randint(-8, 8, (6, 64), dtype=torch.int8)
    words = codes.packed4(small).numpy().view("uint32")
    back = [[(int(word) >> (4 * i) & 15) - 8 for word in row for i in range(8)] for row in words]
    assert back == small.tolist()


def test_eight_bits_and_fp8_stay_within_half_a_step() -> None:
    matrix = torch.randn(5, 96)
    small, scale = codes.quantise8(matrix)
    assert ((codes.dequantise8(small, scale) - matrix).abs() <= scale / 2 * 1.001).all()
    values = torch.randn(64) * 100
    assert ((codes.fp8(values) - values).abs() <= values.abs() / 16 + 2**-10).all()


def test_it_reads_back_what_the_files_hold(llama: Subject) -> None:
    """recode_weight is what a checkpoint's integers stand for."""
    plan, codes_of = planned(llama), executor(llama)
    stored = load(emitted(llama, plan)["model.safetensors"])
    for site, at in plan.weights:
        module, read = (
            site.tensor.removesuffix(".weight"),
            torch.from_numpy(codes_of.recode_weight(site.tensor, at.format)),
        )
        if at.format == FLOAT:
            back = stored[site.tensor].float()
        elif at.format.bits == 8:
            back = stored[f"{module}.weight"].float() * stored[f"{module}.weight_scale"]
        else:
            rows, cols = stored[f"{module}.weight_shape"].tolist()
            words = stored[f"{module}.weight_packed"][..., None] >> torch.arange(0, 32, 4)
            back = ((words & 15) - 8).view(rows, cols // at.format.group, -1).float()
            back = (back * stored[f"{module}.weight_scale"].float()[..., None]).view(rows, cols)
        assert torch.equal(back, read), site


# --- bytes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [form_of, lambda _: FLOAT], ids=["mixed", "floats"])
def test_the_checkpoint_has_the_bytes_that_are_predicted(
    llama: Subject, weights: Callable[[str], WeightFormat]
) -> None:
    plan = planned(llama, weights=weights)
    content = emitted(llama, plan)["model.safetensors"]
    header = 8 + int.from_bytes(content[:8], "little")
    forms = {site.tensor: at.format for site, at in plan.weights}
    predicted = sum(weight_bytes(t, forms[t.name]) for t in llama.spec.tensors) + llama.spec.other_bytes
    assert len(content) - header == predicted


# --- files --------------------------------------------------------------------------------------


def test_the_files_are_those_of_the_golden_set(llama: Subject, request: pytest.FixtureRequest) -> None:
    """One plan with everything in it: schemes, fp8 with a layer left out, windows of two lengths."""
    files = emitted(llama, planned(llama, (Window(64), Window(16, 0.25)), fp8=(1,)))
    golden = {str(path.relative_to(GOLDEN)): path.read_bytes() for path in GOLDEN.rglob("*") if path.is_file()}
    assert set(golden) == {"config.json", "serve.yaml", "serve.sh", "plugin/plan_windows-1.dist-info/entry_points.txt"}
    for name, content in golden.items():
        assert files[name].decode() == content.decode(), name
    assert set(files) >= {"model.safetensors", "plugin/plan_windows.py", "tokenizer.json"}
    for name in ("config.json", "serve.yaml", "serve.sh"):
        assert b"None" not in files[name] and b"null" not in files[name]


def test_one_length_of_windows_needs_no_plugin_and_none_no_word(llama: Subject) -> None:
    one = emitted(llama, planned(llama, (Full(), Window(32))))
    told = json.loads(one["config.json"])
    assert (told["layer_types"], told["sliding_window"]) == (["full_attention", "sliding_attention"], 32)
    assert told["architectures"] == ["LlamaForCausalLM"]
    none = emitted(llama, planned(llama))
    assert not {"layer_types", "sliding_window", "plan_windows"} & set(json.loads(none["config.json"]))
    assert not any(name.startswith("plugin") for name in (*one, *none))
    assert b"PYTHONPATH" not in one["serve.sh"]


def test_floats_and_fp8_everywhere_are_said_shortly(llama: Subject) -> None:
    floats = emitted(llama, planned(llama, weights=lambda _: FLOAT))
    assert "quantization_config" not in json.loads(floats["config.json"])
    assert not any(name.startswith("kv-cache") for name in yaml.safe_load(floats["serve.yaml"]))
    told = yaml.safe_load(emitted(llama, planned(llama, fp8=(0, 1)))["serve.yaml"])
    assert told["kv-cache-dtype"] == "fp8_e4m3" and "kv-cache-dtype-skip-layers" not in told


# --- memory -------------------------------------------------------------------------------------


def moved(plan: Plan, away: Callable[[str], bool]) -> Plan:
    """The plan with some matrices in host memory."""
    weights = tuple((s, WeightChoice(c.format, SLOWER) if away(s.tensor) else c) for s, c in plan.weights)
    return replace(plan, weights=weights)


def test_matrices_of_the_first_layers_are_kept_in_host_memory(llama: Subject) -> None:
    plan = planned(llama)
    told = serve.offloading(moved(plan, lambda name: "layers.0.mlp" in name), llama.spec)
    assert told["cpu-offload-params"] == ["gate_up_proj", "down_proj"]
    forms = {site.tensor: at.format for site, at in plan.weights}
    sizes = [weight_bytes(t, forms[t.name]) for t in llama.spec.tensors if "layers.0.mlp" in t.name]
    told_bytes = float(str(told["cpu-offload-gb"])) * 2**30
    assert sum(sizes) - min(sizes) < told_bytes < sum(sizes)
    assert not serve.offloading(plan, llama.spec)


@pytest.mark.parametrize("away", ["layers.1.mlp.down_proj", "layers.0.mlp.gate_proj", "embed_tokens"])
def test_other_placements_are_refused(llama: Subject, away: str) -> None:
    with pytest.raises(InputError, match="are not those of the first layers"):
        serve.offloading(moved(planned(llama), lambda name: away in name), llama.spec)


def test_a_cache_in_host_memory_is_refused(llama: Subject) -> None:
    plan = planned(llama)
    first, *others = plan.kv
    with pytest.raises(InputError, match="a KV cache in more memories than one"):
        serve.offloading(replace(plan, kv=((first[0], replace(first[1], tier=SLOWER)), *others)), llama.spec)


# --- refusals -----------------------------------------------------------------------------------


def test_what_vllm_has_no_word_for_is_refused(llama: Subject) -> None:
    codes_of = executor(llama)

    def refused(plan: Plan, words: str) -> None:
        with pytest.raises(InputError, match=words):
            codes_of.emit(plan, llama.spec)

    refused(
        planned(llama, weights=lambda name: integers(4, 32) if "q_proj" in name else FLOAT),
        r"layers\.0\.self_attn\.qkv_proj: its matrices have .*; vllm needs one format",
    )
    refused(planned(llama, weights=lambda _: integers(4, 32)), "embed_tokens.*: is no linear layer's matrix")
    refused(
        planned(llama, weights=lambda name: integers(4, 64) if "gate" in name or "up_" in name else FLOAT),
        "rows of 96 inputs cannot be stored at 4 bits in groups of 64",
    )
    refused(planned(llama, weights=lambda name: integers(3, 32) if "o_proj" in name else FLOAT), "vllm stores no")
    plan = planned(llama, (Window(16), Full()))
    one, *rest = plan.kv
    refused(replace(plan, kv=((one[0], replace(one[1], span=Full())), *rest)), "layer 0: 2 kinds of KV heads")
    sunk = tuple((site, replace(at, sinks=4)) for site, at in plan.kv)
    refused(replace(plan, kv=sunk), "layer 0: 4 protected tokens; vllm keeps none beside a window")
    apart = tuple((site, replace(at, v=FP8)) for site, at in plan.kv)
    refused(replace(plan, kv=apart), "vllm has fp8 or a float")


def test_families_and_versions_that_nobody_looked_at_are_refused(tiny: Callable[[str], Path]) -> None:
    with pytest.raises(InputError, match="model_type gpt2 is not written for vllm; known: llama, qwen2, qwen3"):
        checkpoint.config_json(
            planned(subject(tiny("llama-three"))), subject(tiny("gpt2")).spec, '{"model_type": "gpt2"}'
        )
    with pytest.raises(InputError, match=r"vllm 0\.1\.0: what this version carries is not known; give one of 0\.32\.0"):
        of_version(VERSIONS, "0.1.0")


def test_qwen_is_given_no_windows(tiny: Callable[[str], Path]) -> None:
    qwen = subject(tiny("qwen3"))
    with pytest.raises(InputError, match="Qwen3ForCausalLM cannot be given windows layer by layer"):
        emitted(qwen, planned(qwen, (Full(), Window(16)), weights=lambda _: FLOAT))


def test_where_vllm_is_not_installed_that_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(validate.PYTHON_VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="vllm is not installed here: set PLANNER_VLLM_PYTHON"):
        validate.check(tmp_path)
    monkeypatch.setenv(validate.PYTHON_VARIABLE, str(tmp_path / "python"))
    with pytest.raises(InputError, match=r"PLANNER_VLLM_PYTHON: .* is no file"):
        validate.check(tmp_path)
