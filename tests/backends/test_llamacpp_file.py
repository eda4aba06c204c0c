"""GGUF files of plans: what is in them byte by byte, how they are to be run, and which plans are refused."""

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, quants

from backends.llamacpp import architecture as arch
from backends.llamacpp import codes, gguf_bytes, gguf_file, layout, vocabulary
from planner.errors import InputError
from planner.executor import Artifact
from planner.formats import ggml, ggml_kv, weight_bytes
from planner.plan import Plan
from planner.space import FLOAT16, FLOAT32, Full, KvChoice, KvFormat, KvSite, WeightChoice, WeightFormat, Window
from tests.backends.oracle import FULL32, Subject, choice, subject

GOLDEN = Path(__file__).parent / "golden" / "llamacpp"
MIXED = {
    "embed_tokens": ggml("q8_0"), "q_proj": ggml("q5_1"), "k_proj": ggml("q4_0"), "v_proj": WeightFormat(16),
    "o_proj": ggml("bf16"), "gate_proj": ggml("q4_1"), "up_proj": ggml("q5_0"),
}  # fmt: skip


def mixed(name: str) -> WeightFormat:
    """A format for every kind of matrix; what is not named stays float32."""
    return MIXED.get(name.split(".")[-2], WeightFormat(32))


@pytest.fixture(scope="module")
def llama(tiny_llama: Path) -> Subject:
    return subject(tiny_llama)


def written(who: Subject, plan: Plan, path: Path) -> gguf_file.FileBytes:
    """The file of a plan; what was counted before it was made."""
    cache = layout.cache(plan, who.spec, who.executor.weights.config)
    numbers = gguf_file.source(who.executor.weights, arch.architecture(who.executor.weights.config, cache.windows))
    table = gguf_file.tensors(plan, who.spec, numbers)
    head = gguf_file.head(gguf_file.metadata(who.spec, numbers), table)
    with path.open("wb") as file:
        gguf_file.write(file, head, table)
    return gguf_file.counted(head, table, who.spec)


def test_another_reader_finds_every_tensor_in_its_type_and_the_bytes_that_were_counted(
    llama: Subject, tmp_path: Path
) -> None:
    plan, path = llama.plan(lambda _: FULL32, mixed), tmp_path / "model.gguf"
    size = written(llama, plan, path)
    found = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    formats = {site.tensor: choice.format for site, choice in plan.weights}
    assert path.stat().st_size == size.total
    assert size.weights == sum(weight_bytes(t, formats[t.name]) for t in llama.spec.tensors)
    assert size.vectors == llama.spec.other_bytes
    for tensor in llama.spec.tensors:
        stored = found.pop(arch.gguf_name(tensor.name))
        assert stored.tensor_type == codes.ggml_type(formats[tensor.name])
        assert stored.n_bytes == weight_bytes(tensor, formats[tensor.name])
        read = quants.dequantize(stored.data, stored.tensor_type)
        heads = {"q_proj": 4, "k_proj": 2}.get(tensor.name.split(".")[-2], 0)
        back = arch.in_model_order(read, heads) if heads else read
        wanted = codes.recoded(llama.executor.weights.dense(tensor.name), formats[tensor.name])
        assert np.array_equal(back, wanted)
    assert {stored.tensor_type.name for stored in found.values()} == {"F32"}


def test_our_reader_agrees_with_gguf_s(llama: Subject, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    written(llama, llama.plan(lambda _: FULL32, mixed), path)
    ours, theirs = gguf_bytes.read(path), GGUFReader(path)
    assert [field.key for field in ours.fields] == [key for key in theirs.fields if not key.startswith("GGUF.")]
    for tensor in theirs.tensors:
        assert (ours.rows(tensor.name).ravel() == tensor.data.view(np.uint8).ravel()).all()
    family = ours.field("general.architecture")
    assert family is not None and family.text == "llama"
    for key in ("llama.block_count", "tokenizer.ggml.merges", "tokenizer.ggml.token_type", "llama.rope.freq_base"):
        kind = theirs.fields[key].types[-1]
        again = gguf_bytes.Field.of(key, kind, theirs.fields[key].contents())
        assert ours.field(key) == again


def test_windows_are_a_pattern_and_sink_logits_that_weigh_nothing(llama: Subject, tmp_path: Path) -> None:
    def kv(site: KvSite) -> KvChoice:
        return choice(Window(16) if site.layer == 1 else Full(), FLOAT32, sinks=0)

    path = tmp_path / "model.gguf"
    size = written(llama, llama.plan(kv), path)
    read = GGUFReader(path)
    assert path.stat().st_size == size.total
    assert read.fields["general.architecture"].contents() == "granite_swa"
    assert read.fields["granite_swa.attention.sliding_window"].contents() == 16
    assert read.fields["granite_swa.attention.sliding_window_pattern"].contents() == [False, True, False]
    sinks = [tensor.data for tensor in read.tensors if tensor.name.endswith("attn_sinks.weight")]
    assert len(sinks) == 3 and all((logits == arch.NO_SINK_LOGIT).all() for logits in sinks)
    assert size.vectors == llama.spec.other_bytes + 3 * 4 * 4


def test_the_tokenizer_and_the_template_travel(llama: Subject, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    written(llama, llama.plan(lambda _: FULL32), path)
    fields = GGUFReader(path).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    assert len(tokens) == llama.spec.vocab_size and tokens[:2] == ["<|begin|>", "<|end|>"]
    assert fields["tokenizer.ggml.token_type"].contents()[0] == vocabulary.CONTROL
    assert fields["tokenizer.ggml.bos_token_id"].contents() == 0
    assert "{% for m in messages %}" in fields["tokenizer.chat_template"].contents()


def test_a_tokenizer_that_llama_cpp_has_no_name_for_is_refused() -> None:
    with pytest.raises(InputError, match=r"no tokenizer.json"):
        vocabulary.of_companions((), 320)
    with pytest.raises(InputError, match="splits text as GPT-2, SmolLM, Llama 3 or Qwen 2"):
        vocabulary.split_name({"model": {"type": "Unigram"}, "pre_tokenizer": {"type": "Metaspace"}})
    parts = [{"type": "Digits", "individual_digits": True}, {"type": "ByteLevel"}]
    told = {"model": {"type": "BPE"}, "pre_tokenizer": {"type": "Sequence", "pretokenizers": parts}}
    assert vocabulary.split_name(told) == "smollm"


@pytest.mark.parametrize("name", ["llama-llama3", "llama-linear", "qwen2", "qwen3", "mistral"])
def test_families_and_rotary_scalings_are_written(tiny: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    who, path = subject(tiny(name)), tmp_path / "model.gguf"
    assert written(who, who.plan(lambda _: FULL32), path).total == path.stat().st_size
    family = GGUFReader(path).fields["general.architecture"].contents()
    assert family == {"mistral": "granite_swa"}.get(name, name.partition("-")[0])


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kv", "why"),
    [
        (lambda s: choice(Full(), FLOAT16 if s.kv_head else FLOAT32), "keys in f16 where .* f32; .* one type for all"),
        (lambda s: choice(Full(), FLOAT16, FLOAT32 if s.layer else FLOAT16), "values in f32 where"),
        (lambda s: choice(Window(16), FLOAT32), "4 protected tokens beside a window; llama.cpp keeps none"),
        (lambda s: choice(Window(16 + s.layer), FLOAT32, sinks=0), "windows of 16 and 18 tokens; .* one length"),
        (lambda s: choice(Window(16) if s.kv_head else Full(), FLOAT32, sinks=0), "its heads keep different spans"),
        (lambda s: choice(Full(), ggml_kv("q8_0")), "-ctk q8_0: its blocks of 32 do not divide heads of 16"),
        (lambda s: choice(Full(), KvFormat(4, "rotated")), "no KV format has 4 bits in scheme 'rotated'"),
    ],
)
def test_a_cache_that_llama_cpp_does_not_have_is_refused(
    llama: Subject, kv: Callable[[KvSite], KvChoice], why: str
) -> None:
    with pytest.raises(InputError, match=why):
        layout.cache(llama.plan(kv), llama.spec, llama.executor.weights.config)


def test_models_that_no_architecture_computes_are_refused(llama: Subject, tiny_qwen3: Path) -> None:
    config = json.loads(llama.executor.weights.config)
    assert "this is gemma3_text" in arch.refusal(json.dumps({**config, "model_type": "gemma3_text"}))
    assert "the model has gelu" in arch.refusal(json.dumps({**config, "hidden_act": "gelu"}))
    yarn = {**config, "rope_parameters": {"rope_type": "yarn"}}
    assert "the model has yarn" in arch.refusal(json.dumps(yarn))
    assert arch.refusal(json.dumps(config), windowed=True) == ""
    qwen3 = subject(tiny_qwen3)
    with pytest.raises(InputError, match="norms queries and keys as qwen3 does"):
        layout.cache(
            qwen3.plan(lambda _: choice(Window(16), FLOAT32, sinks=0)), qwen3.spec, qwen3.executor.weights.config
        )


def test_a_format_that_a_matrix_cannot_take_is_refused(llama: Subject, tmp_path: Path) -> None:
    plan = llama.plan(lambda _: FULL32, lambda _: ggml("q4_K"))
    with pytest.raises(InputError, match=r"embed_tokens.weight: rows of 64 are no multiple of a block of 256"):
        written(llama, plan, tmp_path / "model.gguf")


def test_a_damaged_file_is_refused(llama: Subject, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    written(llama, llama.plan(lambda _: FULL32), path)
    content = path.read_bytes()
    for cut in (0, 3, 30, 2000):
        path.write_bytes(content[:cut])
        with pytest.raises((InputError, ValueError)):
            gguf_bytes.read(path)
    path.write_bytes(content[:-64])
    found = gguf_bytes.read(path)
    last = list(found.entries)[-1]
    with pytest.raises(InputError, match="cut short"):
        found.rows(last)


# --- how it is run ------------------------------------------------------------------------------


def placed(llama: Subject, host: Callable[[str], bool], cache_tier: str = "hbm") -> layout.Settings:
    """What is told of a plan for a GPU whose host keeps some matrices."""
    kept = choice(Full(), ggml_kv("q8_0"), ggml_kv("q4_1"), sinks=0)
    plan = llama.plan(lambda _: replace(kept, tier=((cache_tier, 1.0),)), mixed)
    weights = [
        (site, WeightChoice(each.format, (("dram" if host(site.tensor) else "hbm", 1.0),)))
        for site, each in plan.weights
    ]
    plan = replace(plan, weights=tuple(weights))
    cache, size = layout.Cache("q8_0", "q4_1", (None, 16, None)), gguf_file.FileBytes(1024, 4096, 256, 32)
    return layout.settings(plan, cache, 32, size)


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_golden_files_say_how_a_plan_is_run(llama: Subject, name: str) -> None:
    if name == "gpu":
        told = placed(llama, lambda tensor: "down_proj" in tensor or "layers.1.mlp" in tensor)
    else:
        cache, size = layout.Cache("f16", "q8_0", (None, None, None)), gguf_file.FileBytes(1024, 4096, 256, 32)
        told = layout.settings(llama.plan(lambda _: FULL32), cache, 32, size)
    text = json.dumps(told, indent=1) + "\n"
    script = layout.run_script(told)
    assert "None" not in script and "{" not in script.replace("${LLAMA:-llama-server}", "")
    assert (GOLDEN / f"{name}.json").read_text() == text
    assert (GOLDEN / f"{name}.sh").read_text() == script


def test_the_script_runs_where_a_shell_is(llama: Subject, tmp_path: Path) -> None:
    script = tmp_path / "with space" / "run.sh"
    script.parent.mkdir()
    script.write_text((GOLDEN / "gpu.sh").read_text())
    told = subprocess.run(
        ["sh", str(script), "--port", "1"], env={"LLAMA": "/bin/echo"}, capture_output=True, text=True, check=True
    )
    assert told.stdout.startswith(f"-m {script.parent}/model.gguf -c 2048 -np 1 -ctk q8_0 -ctv q4_1 -fa on")
    assert told.stdout.endswith("--port 1\n")


def test_what_lies_in_two_memories_or_beyond_the_host_s_is_refused(llama: Subject) -> None:
    assert placed(llama, lambda _: False)["host_tensors"] == []
    assert placed(llama, lambda _: False, "dram")["host_cache"]
    plan = llama.plan(lambda _: FULL32)
    first, *rest = ((site, replace(each, tier=(("hbm", 1.0),))) for site, each in plan.weights)
    split = replace(first[1], tier=(("hbm", 0.5), ("dram", 0.5)))
    with pytest.raises(InputError, match=r"is split over hbm, dram; llama.cpp places it whole"):
        layout.host_tensors(replace(plan, weights=((first[0], split), *rest)))
    far = replace(first[1], tier=(("nvme", 1.0),))
    with pytest.raises(InputError, match="lies in nvme"):
        layout.host_tensors(replace(plan, weights=((first[0], far), *rest)))
    heads = [replace(each, tier=((name, 1.0),)) for (_, each), name in zip(plan.kv, ("hbm", "dram"), strict=False)]
    with pytest.raises(InputError, match="the cache lies in dram and hbm"):
        layout.host_cache(heads)


def test_a_tokenizer_json_needs_to_be_bytes() -> None:
    with pytest.raises(InputError, match=r"no tokenizer.json"):
        vocabulary.of_companions((Artifact("LICENCE-OF-WEIGHTS.txt", b""),), 8)
