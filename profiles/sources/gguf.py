"""A GGUF file as a checkpoint: its config rebuilt from the metadata, its tensors under their Hugging Face names."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from planner.errors import InputError
from planner.spec import ModelSpec
from profiles.sources.blocks import GRIDS, on_grid
from profiles.sources.checkpoint import Checkpoint, StoredTensor
from profiles.sources.config import config_text, parse_config
from profiles.sources.digest import sha256_of
from profiles.sources.gguf_header import GgufHeader, read_header
from profiles.sources.told import one_line

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

ARCHITECTURES = ("llama", "qwen2", "qwen3")
FLOATS = ("F16", "F32", "F64", "BF16")

_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def open_gguf(path: Path, source: str, licence: str = "unknown") -> Checkpoint:
    """The checkpoint in a GGUF file; `licence` is for a file that names none."""
    from profiles.sources.family import model_spec, parameter_shapes, skeleton

    header = read_header(path)
    config = parse_config(_config(header), str(path))
    stored = _by_transformers_name(header, config)
    _check_shapes(path, stored, parameter_shapes(skeleton(config, str(path))))
    spec = model_spec(config, str(path), source, sha256_of((path,)), one_line(header.text("general.license", licence)))
    return Checkpoint(_on_grids(spec, stored), config_text(config), path, "gguf", _notes(header, stored), stored)


def _config(header: GgufHeader) -> dict[str, object]:
    """The transformers config that the metadata describes."""
    family = header.text("general.architecture")
    if family not in ARCHITECTURES:
        raise InputError(
            f"{header.path}: general.architecture: found {family!r}; GGUF files of {', '.join(ARCHITECTURES)} can be"
            " read: give the model as a Hugging Face directory with safetensors"
        )
    _refuse(header, family)
    heads = header.integer(f"{family}.attention.head_count")
    hidden = header.integer(f"{family}.embedding_length")
    if heads < 1 or hidden < 1:
        raise InputError(f"{header.path}: {family}.attention.head_count: found {heads} heads for {hidden} features")
    head_dim = header.integer(f"{family}.attention.key_length", hidden // heads)
    for key in (f"{family}.attention.value_length", f"{family}.rope.dimension_count"):
        if header.integer(key, head_dim) != head_dim:
            raise InputError(
                f"{header.path}: {key}: found {header.integer(key)}; only heads whose keys, values and rotation have"
                f" one size, here {head_dim}, can be handled"
            )
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None:
        raise InputError(f"{header.path}: has no tensor token_embd.weight; give a whole model")
    window = header.integer(f"{family}.attention.sliding_window", 0)
    config: dict[str, object] = {
        # llama.cpp stores Mistral as llama; the two differ in the window alone.
        "model_type": "mistral" if window and family == "llama" else family,
        "hidden_size": hidden,
        "intermediate_size": header.integer(f"{family}.feed_forward_length"),
        "num_hidden_layers": header.integer(f"{family}.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": header.integer(f"{family}.attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": header.integer(f"{family}.context_length"),
        "rms_norm_eps": header.number(f"{family}.attention.layer_norm_rms_epsilon"),
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": header.number(f"{family}.rope.freq_base", 10000.0),
        },
        "vocab_size": embedding.shape[0],
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "dtype": "float32",
        **_token_ids(header),
    }
    if window:
        config["sliding_window"] = window
    if family == "llama":
        config["attention_bias"] = "blk.0.attn_q.bias" in header.tensors
        config["mlp_bias"] = "blk.0.ffn_up.bias" in header.tensors
    return config


def _refuse(header: GgufHeader, family: str) -> None:
    """What a file of a known architecture may still ask for that its transformers config could not say."""
    if header.fields.get(f"{family}.expert_count"):
        raise InputError(
            f"{header.path}: {family}.expert_count: found {header.fields[f'{family}.expert_count']}; mixtures of"
            " experts can be read from a Hugging Face directory with safetensors"
        )
    scaling = header.fields.get(f"{family}.rope.scaling.type", "none")
    if scaling != "none" or "rope_freqs.weight" in header.tensors:
        part = "tensor rope_freqs.weight" if scaling == "none" else f"{family}.rope.scaling.type {scaling!r}"
        raise InputError(
            f"{header.path}: {part}: scaled rotary positions can be read from a Hugging Face directory with safetensors"
        )
    if family != "llama" and header.fields.get(f"{family}.attention.sliding_window"):
        raise InputError(
            f"{header.path}: {family}.attention.sliding_window: which layers have it is not in the file; give the model"
            " as a Hugging Face directory with safetensors"
        )


def _token_ids(header: GgufHeader) -> dict[str, object]:
    return {
        f"{name}_token_id": header.integer(key) if (key := f"tokenizer.ggml.{ggml}_token_id") in header.fields else None
        for name, ggml in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
    }


def _by_transformers_name(header: GgufHeader, config: "PreTrainedConfig") -> dict[str, StoredTensor]:
    """The file's tensors under their Hugging Face names, with the heads whose rows are to be put back in order."""
    permuted = {}
    if header.text("general.architecture") == "llama":  # the only architecture here that llama.cpp permutes
        permuted = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    found = {}
    for name, tensor in header.tensors.items():
        stem, _, suffix = name.rpartition(".")
        block, _, leaf = stem.rpartition(".")
        layer = block.removeprefix("blk.")
        if stem in _TOP:
            found[f"{_TOP[stem]}.{suffix}"] = tensor
        elif leaf in _IN_LAYER and layer.isdecimal() and block != layer:
            heads = permuted.get(leaf, 0)
            found[f"model.layers.{layer}.{_IN_LAYER[leaf]}.{suffix}"] = replace(tensor, rotary_heads=heads)
        else:
            raise InputError(
                f"{header.path}: tensor {name} has no place in a {config.model_type} model; give the model as a"
                " Hugging Face directory with safetensors"
            )
    return found


def _check_shapes(path: Path, stored: dict[str, StoredTensor], wanted: dict[str, tuple[int, ...]]) -> None:
    """Every parameter is in the file with the shape the metadata says, and nothing else is."""
    for name, shape in wanted.items():
        if name not in stored:
            raise InputError(f"{path}: has no tensor for {name}; the file is incomplete: fetch it again")
        if stored[name].shape != shape:
            raise InputError(
                f"{path}: tensor {stored[name].name} is {list(stored[name].shape)}, and the metadata makes {name}"
                f" {list(shape)}; the file is damaged: fetch it again"
            )
    if unknown := sorted(set(stored) - set(wanted)):
        raise InputError(
            f"{path}: tensor {stored[unknown[0]].name} ({unknown[0]}) has no place in the model of its metadata"
        )


def _on_grids(spec: ModelSpec, stored: dict[str, StoredTensor]) -> ModelSpec:
    """The spec with the native format of every matrix that lies on an affine grid."""
    tensors = []
    for tensor in spec.tensors:
        place = stored[tensor.name]
        if on_grid(place):
            grid = GRIDS[place.ggml_type]
            size = grid.size_bytes(tensor.rows, tensor.cols)
            tensor = replace(tensor, native=grid.format, native_bytes=size)
        tensors.append(tensor)
    return replace(spec, tensors=tuple(tensors))


def _notes(header: GgufHeader, stored: dict[str, StoredTensor]) -> tuple[str, ...]:
    counts: dict[str, int] = {}
    for tensor in stored.values():
        if tensor.ggml_type not in GRIDS and tensor.ggml_type not in FLOATS:
            counts[tensor.ggml_type] = counts.get(tensor.ggml_type, 0) + 1
    notes = [
        f"{count} of {len(stored)} tensors are {kind}, which has no native format here: read as floats, rounded again"
        for kind, count in sorted(counts.items())
    ]
    if (pre := str(header.fields.get("tokenizer.ggml.pre", "default"))) not in _known_splits():
        notes.append(f"tokenizer.ggml.pre {pre!r} is unknown here: text is split as GPT-2 does, which may cost quality")
    return tuple(notes)


def _known_splits() -> set[str]:
    """The pre-tokenizers that come out right. SmolLM's differs from GPT-2's in parting digits, which no merge joins."""
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    return {"default", "gpt-2", "smollm", *GGUF_PRE_TOKENIZER_SPLITS}
