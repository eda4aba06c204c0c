"""The weights and the tokenizer of a checkpoint as transformers runs them: float32, nothing downloaded, no code run."""

import json
from typing import TYPE_CHECKING, Any, cast

from planner.errors import InputError
from profiles.sources.blocks import dequantised
from profiles.sources.checkpoint import Checkpoint
from profiles.sources.config import parse_config
from profiles.sources.family import skeleton
from profiles.sources.onnx import read_parameters
from profiles.sources.told import one_line, quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WEIGHTLESS = "a bare config has neither weights nor tokenizer; give a GGUF file or a Hugging Face directory"

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def load_model(checkpoint: Checkpoint) -> "PreTrainedModel":
    """The model in float32, ready to evaluate; no parameter asks for a gradient."""
    import torch
    from safetensors import SafetensorError

    path = checkpoint.path
    if checkpoint.kind == "config":
        raise InputError(f"{path}: {WEIGHTLESS}")
    config = parse_config(json.loads(checkpoint.config), str(path))
    family = type(skeleton(config, str(path)))
    folder: str | None = str(path)
    state = None
    try:
        if checkpoint.kind == "gguf":
            folder, state = None, {n: torch.from_numpy(dequantised(path, t)) for n, t in checkpoint.stored.items()}
        if checkpoint.kind == "onnx":
            read = read_parameters(path, skeleton(config, str(path)))
            folder, state = None, {name: torch.from_numpy(values) for name, values in read.items()}
        with quiet():
            result = family.from_pretrained(
                folder,
                config=config,
                state_dict=state,
                dtype=torch.float32,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
    except (LookupError, OSError, RuntimeError, SafetensorError, TypeError, ValueError) as error:
        raise InputError(f"{path}: transformers cannot load the weights: {one_line(error)}") from None
    # With output_loading_info the result is a pair, which its annotation does not say.
    model, loaded = cast("tuple[PreTrainedModel, dict[str, Any]]", result)
    if missing := sorted(loaded["missing_keys"]):
        raise InputError(f"{path}: has no weights for {missing[0]} and {len(missing) - 1} more; give the whole model")
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise InputError(
                f"{path}: {name} has values that are not finite; the weights are damaged: fetch them again"
            )
    model.requires_grad_(False)
    model.train(False)
    return model


def load_tokenizer(checkpoint: Checkpoint) -> "PreTrainedTokenizerBase":
    """The tokenizer, with its chat template where it has one."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    path = checkpoint.path
    if checkpoint.kind == "config":
        raise InputError(f"{path}: {WEIGHTLESS}")
    if checkpoint.kind == "onnx":
        path = path.parent
    if checkpoint.kind != "gguf" and not any((path / name).is_file() for name in TOKENIZER_FILES):
        # Some families would otherwise come with an empty vocabulary and no complaint.
        raise InputError(f"{path}: has none of {', '.join(TOKENIZER_FILES)}; give the directory its tokenizer")
    tokenizer: PreTrainedTokenizerBase
    try:
        with quiet():
            if checkpoint.kind == "gguf":
                # Not AutoTokenizer: it parses the whole vocabulary twice more to learn the class, which is always this.
                tokenizer = PreTrainedTokenizerFast.from_pretrained(
                    str(path.parent), gguf_file=path.name, local_files_only=True
                )
            else:
                tokenizer = AutoTokenizer.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
    except Exception as error:
        # The tokenizers library says "damaged" with a plain Exception; anything else unforeseen is our bug.
        damage = (ImportError, LookupError, OSError, TypeError, ValueError)
        if type(error) is not Exception and not isinstance(error, damage):
            raise
        raise InputError(f"{path}: transformers cannot read the tokenizer: {one_line(error)}") from None
    return tokenizer
