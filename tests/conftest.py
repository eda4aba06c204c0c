"""Tiny random models of six families, real Hugging Face directories that load in a moment."""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from click.testing import Result
    from transformers import PreTrainedTokenizerFast

VOCABULARY = 320
TINY_FAMILIES = ("llama", "qwen3", "mistral", "gemma3_text", "gpt2", "mixtral")

_COMMON = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
_DECODER = {
    **_COMMON,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "initializer_range": 0.15,  # wide enough that attention is not flat
}
_ROPE: dict[str, object] = {"rope_type": "default", "rope_theta": 10000.0}
_THREE: dict[str, object] = {"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 3}
_SIX: dict[str, object] = {**_THREE, "num_key_value_heads": 6}
_CONFIGS: dict[str, dict[str, object]] = {
    "llama": {**_DECODER, "num_hidden_layers": 3, "tie_word_embeddings": True},
    "qwen3": {**_DECODER, "num_hidden_layers": 2, "head_dim": 32},
    "mistral": {**_DECODER, "num_hidden_layers": 2, "sliding_window": 24},
    "gemma3_text": {
        **_DECODER,
        "num_hidden_layers": 4,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "query_pre_attn_scalar": 32,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "gpt2": {**_COMMON, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 1024, "initializer_range": 0.15},
    "mixtral": {
        **_DECODER,
        "num_hidden_layers": 2,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": None,
    },
    "qwen2": {**_DECODER, "num_hidden_layers": 2},
    "phi": {
        **_DECODER,
        "num_hidden_layers": 2,
        "hidden_size": 128,
        "num_key_value_heads": 4,
        "rope_parameters": {**_ROPE, "partial_rotary_factor": 0.5},
    },
    "phi-8": {**_DECODER, "num_hidden_layers": 1, "rope_parameters": {**_ROPE, "partial_rotary_factor": 0.5}},
    "phi3": {**_DECODER, "num_hidden_layers": 2, "rope_parameters": {**_ROPE, "partial_rotary_factor": 1.0}},
    # More of the families above: KV heads enough for two classes that lie across one another, rotary embeddings of
    # other kinds, heads that are no multiple of a block of weights.
    "llama-three": {**_DECODER, **_THREE, "num_hidden_layers": 2, "head_dim": 32},
    "llama-16": {**_DECODER, **_SIX, "num_hidden_layers": 2, "head_dim": 16},
    "llama-48": {**_DECODER, **_SIX, "num_hidden_layers": 2, "head_dim": 48},
    "llama-80": {**_DECODER, **_SIX, "num_hidden_layers": 2, "head_dim": 80},
    "llama-24": {**_DECODER, **_THREE, "num_hidden_layers": 1, "head_dim": 24},
    "llama-llama3": {
        **_DECODER,
        "num_hidden_layers": 2,
        "rope_parameters": {
            **_ROPE,
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "llama-yarn": {
        **_DECODER,
        "num_hidden_layers": 2,
        "max_position_embeddings": 256,
        "rope_parameters": {**_ROPE, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    },
    "llama-linear": {
        **_DECODER,
        "num_hidden_layers": 2,
        "rope_parameters": {**_ROPE, "rope_type": "linear", "factor": 3.0},
    },
    "gemma3_text-capped": {
        **_DECODER,
        "num_hidden_layers": 2,
        "head_dim": 32,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"],
        "final_logit_softcapping": 3.0,
    },
    "llama-dynamic": {
        **_DECODER,
        "num_hidden_layers": 1,
        "rope_parameters": {**_ROPE, "rope_type": "dynamic", "factor": 2.0},
    },
    "gemma3_text-three": {
        **_DECODER,
        **_THREE,
        "num_hidden_layers": 4,
        "head_dim": 32,
        "query_pre_attn_scalar": 24,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
}

_TEXT = (
    "The river ran past the old mill, and the miller counted sacks of flour until the light was gone.",
    "Numbers such as 12, 405 and 1998 stand beside words; so do commas, colons: and (sometimes) brackets.",
    "A model reads a token at a time and keeps what it may need again.",
)


def _tokenizer() -> "PreTrainedTokenizerFast":
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|begin|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_TEXT, trainer)
    template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|begin|>", eos_token="<|end|>", chat_template=template
    )


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The directory of a tiny seeded random model of a family, written once per session.

    A name may have more behind its family: `llama-yarn`.
    """

    @cache
    def write(name: str) -> Path:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        path = tmp_path_factory.mktemp("tiny") / name
        config = AutoConfig.for_model(name.partition("-")[0], **_CONFIGS[name])
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config)
            for parameter in model.parameters():
                if parameter.ndim == 1:  # norms begin as ones and biases as zeros, which would hide a wrong one
                    parameter.data += torch.randn_like(parameter) * 0.2
        model.to(torch.float32).save_pretrained(path)
        _tokenizer().save_pretrained(path)
        return path

    return write


@pytest.fixture(scope="session")
def tiny_llama(tiny: Callable[[str], Path]) -> Path:
    """3 layers, 4 query and 2 KV heads of 16, tied embedding."""
    return tiny("llama")


@pytest.fixture(scope="session")
def tiny_qwen3(tiny: Callable[[str], Path]) -> Path:
    """2 layers, heads of 32 with normalised queries and keys."""
    return tiny("qwen3")


@pytest.fixture(scope="session")
def tiny_mistral(tiny: Callable[[str], Path]) -> Path:
    """2 layers, every one with a sliding window of 24."""
    return tiny("mistral")


@pytest.fixture(scope="session")
def tiny_gemma3(tiny: Callable[[str], Path]) -> Path:
    """4 layers, a sliding window of 16 in every other one, 1 KV head of 32."""
    return tiny("gemma3_text")


@pytest.fixture(scope="session")
def tiny_gpt2(tiny: Callable[[str], Path]) -> Path:
    """2 layers, 4 heads that share nothing, learnt positions, Conv1D matrices."""
    return tiny("gpt2")


@pytest.fixture(scope="session")
def tiny_mixtral(tiny: Callable[[str], Path]) -> Path:
    """2 layers, 2 of 4 experts per token."""
    return tiny("mixtral")


@pytest.fixture(scope="session")
def planner_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty place for the measurements of this session."""
    directory = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLANNER_CACHE", str(directory))
        yield directory


@pytest.fixture(scope="session")
def compiled(
    tiny_llama: Path, planner_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, "Result"]:
    """A model.yaml, the artefact that was compiled from it, and what compile printed with --json. Read only."""
    from click.testing import CliRunner

    from planner.cli import main

    work = tmp_path_factory.mktemp("compiled")
    path, out = work / "model.yaml", work / "out"
    path.write_text(
        "schema: planner/model@1\n"
        f"source: {{huggingface: '{tiny_llama}'}}\n"
        "workload: {context_tokens: [64], new_tokens: 8, prefill_chunk_tokens: 32}\n"
        "goal: {minimise: loss_nats, limits: {kv_share: 0.5}}\n"
        "calibration: {documents: 1, draws: 2}\n"
        "verification: {documents: 2}\n"
    )
    args = ["compile", str(path), "--target", "laptop-cpu", "-o", str(out), "--json"]
    return path, out, CliRunner().invoke(main, args, catch_exceptions=False)
