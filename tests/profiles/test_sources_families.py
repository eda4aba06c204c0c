"""Six families open with the shapes of the model that really runs, and what cannot be handled says which part."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from planner.errors import InputError
from planner.source import Source
from profiles.sources.load import load_model, load_tokenizer
from profiles.sources.open import open_source

FAMILIES = ("llama", "qwen3", "mistral", "gemma3_text", "gpt2", "mixtral")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_is_a_matrix_or_counted_as_other(tiny: Callable[[str], Path], family: str) -> None:
    path = tiny(family)
    spec = open_source(Source(huggingface=path.name), path.parent).spec
    parameters = dict(AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).named_parameters())
    matrices = {tensor.name: tensor for tensor in spec.tensors}
    assert set(matrices) <= set(parameters)
    for name, tensor in matrices.items():
        shape = tuple(parameters[name].shape)
        conv1d = family == "gpt2" and tensor.layer >= 0
        rows_cols = (tensor.cols, tensor.rows) if conv1d else (tensor.rows, tensor.cols)
        assert shape == ((tensor.count, *rows_cols) if tensor.count > 1 else rows_cols)
    other = sum(p.numel() for name, p in parameters.items() if name not in matrices)
    assert spec.other_bytes == 4 * other
    left_out = {name for name in parameters if name not in matrices}
    assert all(n.endswith(".bias") or "norm" in n or "ln_" in n or "wpe" in n or "mlp.gate." in n for n in left_out)


@pytest.mark.parametrize("family", FAMILIES)
def test_kv_bytes_are_those_of_the_running_cache(tiny: Callable[[str], Path], family: str) -> None:
    path = tiny(family)
    checkpoint = open_source(Source(huggingface=str(path)), path)
    model = load_model(checkpoint)
    assert model.dtype == torch.float32 and not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    with torch.no_grad():
        cache = model(torch.arange(10)[None], use_cache=True).past_key_values
    measured = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert measured == 10 * checkpoint.spec.kv_bytes_per_token(32)
    assert len(checkpoint.spec.layers) == len(cache.layers)


@pytest.mark.parametrize(
    ("family", "windows"),
    [("llama", (None,) * 3), ("mistral", (24, 24)), ("gemma3_text", (16, None, 16, None)), ("mixtral", (None, None))],
)
def test_windows(tiny: Callable[[str], Path], family: str, windows: tuple[int | None, ...]) -> None:
    path = tiny(family)
    layers = open_source(Source(huggingface=str(path)), path).spec.layers
    assert tuple(layer.window for layer in layers) == windows


def test_what_a_token_reads(tiny_llama: Path, tiny_qwen3: Path, tiny_mixtral: Path) -> None:
    def active(path: Path, name: str) -> float:
        tensors = open_source(Source(huggingface=str(path)), path).spec.tensors
        return next(tensor.active for tensor in tensors if tensor.name.endswith(name))

    assert active(tiny_llama, "embed_tokens.weight") == 1  # it is the head as well
    assert active(tiny_qwen3, "embed_tokens.weight") == 0
    assert active(tiny_qwen3, "lm_head.weight") == 1
    assert active(tiny_mixtral, "experts.down_proj") == 0.5


def test_tokenizer_round_trip_and_template(tiny_llama: Path) -> None:
    tokenizer = load_tokenizer(open_source(Source(huggingface=str(tiny_llama)), tiny_llama))
    text = "Any text: 12 ünïcödé sacks."
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False)
    assert chat == "user: hello\n"


def test_bare_config_has_the_shapes_and_no_weights(tiny_gemma3: Path) -> None:
    full = open_source(Source(huggingface=str(tiny_gemma3)), tiny_gemma3)
    bare = open_source(Source(config="config.json"), tiny_gemma3)
    assert (bare.spec.tensors, bare.spec.layers) == (full.spec.tensors, full.spec.layers)
    assert full.spec.has_weights and not bare.spec.has_weights
    assert json.loads(bare.config)["model_type"] == "gemma3_text"
    with pytest.raises(InputError, match="bare config has neither weights nor tokenizer"):
        load_model(bare)
    with pytest.raises(InputError, match="bare config has neither weights nor tokenizer"):
        load_tokenizer(bare)


LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_hidden_layers": 2,
    "vocab_size": 64,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"auto_map": {"AutoConfig": "x.Y"}}, "auto_map: the model brings its own code"),
        ({"model_type": None}, "model_type: found None"),
        ({"model_type": "nonesuch"}, "model_type: found 'nonesuch'; the families handled are llama"),
        ({"model_type": "deepseek_v3", "kv_lora_rank": 512}, "kv_lora_rank: deepseek_v3 has multi-head latent"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "encoder-decoder"),
        ({"model_type": "gemma2", "attn_logit_softcapping": 50.0}, "softcapping"),
        ({"model_type": "gemma3_text", "attn_logit_softcapping": 50.0}, "softcapping"),
        ({"model_type": "bloom"}, "ALiBi"),
        ({"model_type": "mamba"}, "state-space"),
        ({"model_type": "qwen3_next", "layer_types": ["linear_attention"]}, "linear_attention layers"),
        ({"model_type": "gpt2", "add_cross_attention": True}, "cross attention"),
        ({"model_type": "gemma3", "text_config": {}}, "multimodal; give the text model"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config: the weights are already quantised"),
        ({"hidden_size": "64"}, "hidden_size: found '64'; needs an integer"),
        ({"hidden_size": 65}, "multiple of the number of attention heads"),
        ({"num_attention_heads": 0}, "num_attention_heads: found 0"),
        ({"num_key_value_heads": 3}, "num_key_value_heads: found 3; needs a divisor of the 4 query heads"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers: found 1000000000; needs an integer from 1 to 2048"),
        ({"vocab_size": 10**12}, "vocab_size: found 1000000000000"),
        ({"hidden_act": "nonesuch"}, "nonesuch"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps"),
        ({"rope_parameters": {"rope_type": "nonesuch", "rope_theta": 1e4}}, "nonesuch"),
    ],
)
def test_a_config_that_cannot_be_handled_says_why(tmp_path: Path, change: dict[str, object], message: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | change))
    with pytest.raises(InputError) as caught:
        open_source(Source(config="config.json"), tmp_path)
    text = str(caught.value)
    assert message in text and "config.json" in text and "\n" not in text


def test_sliding_layers_need_a_length(tmp_path: Path) -> None:
    qwen = LLAMA | {"model_type": "qwen3", "layer_types": ["sliding_attention", "full_attention"]}
    (tmp_path / "config.json").write_text(json.dumps(qwen))
    with pytest.raises(InputError, match="sliding_window"):
        open_source(Source(config="config.json"), tmp_path)


def test_a_window_that_the_family_ignores_is_no_window(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | {"sliding_window": 16}))
    layers = open_source(Source(config="config.json"), tmp_path).spec.layers
    assert [layer.window for layer in layers] == [None, None]


def test_phi3_and_qwen2_open(tmp_path: Path) -> None:
    for family in ("phi3", "qwen2"):
        (tmp_path / "config.json").write_text(json.dumps(LLAMA | {"model_type": family, "pad_token_id": 0}))
        spec = open_source(Source(config="config.json"), tmp_path).spec
        assert spec.family == family and len(spec.layers) == 2 and spec.other_bytes > 0
