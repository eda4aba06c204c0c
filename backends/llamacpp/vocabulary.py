"""The tokenizer and the chat template as a GGUF file's metadata: the source file's own, or made of a tokenizer.json.

Of a tokenizer.json only byte-level BPE is taken over, and only where llama.cpp has a name for how it splits text.
"""

import json
from collections.abc import Mapping, Sequence
from typing import TypedDict

from gguf import GGUFValueType
from tokenizers import Tokenizer

from backends.llamacpp.gguf_bytes import Field, File
from planner.errors import InputError
from planner.executor import Artifact

CARRIED = ("tokenizer.", "general.")
NOT_CARRIED = ("general.architecture", "general.file_type", "general.quantization_version", "general.alignment")

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {f"{_WORDS}\\p{{N}}{{1,3}}{_REST}": "llama-bpe", f"{_WORDS}\\p{{N}}{_REST}": "qwen2"}
"""llama.cpp's names (src/llama-vocab.cpp) of the patterns that text is split by."""


class AddedToken(TypedDict):
    """A token that no merge makes."""

    id: int
    content: str
    special: bool


class BpeModel(TypedDict):
    """Tokens and the merges that make them."""

    vocab: dict[str, int]
    merges: list[str | list[str]]


class TokenizerFile(TypedDict):
    """What is read of a tokenizer.json."""

    model: BpeModel
    added_tokens: list[AddedToken]


NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5


def of_gguf(file: File) -> list[Field]:
    """What a file says of its tokenizer, its name and its licence."""
    return [field for field in file.fields if field.key.startswith(CARRIED) and field.key not in NOT_CARRIED]


def of_companions(companions: Sequence[Artifact], vocabulary: int) -> list[Field]:
    """The fields of a tokenizer.json among the files beside a model whose embedding has so many rows."""
    files = {file.path: file.content for file in companions}
    content = files.get("tokenizer.json")
    if not isinstance(content, bytes):
        raise InputError("the model has no tokenizer.json, so its vocabulary cannot be carried into a GGUF file")
    told: TokenizerFile = json.loads(content)
    tokens, kinds = _tokens(told, vocabulary)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in told["model"]["merges"]]
    beside = files.get("tokenizer_config.json")
    settings = json.loads(beside) if isinstance(beside, bytes) else {}
    found = [
        Field.of("tokenizer.ggml.model", GGUFValueType.STRING, "gpt2"),
        Field.of("tokenizer.ggml.pre", GGUFValueType.STRING, split_name(json.loads(content))),
        Field.of("tokenizer.ggml.tokens", GGUFValueType.STRING, tokens),
        Field.of("tokenizer.ggml.token_type", GGUFValueType.INT32, kinds),
        Field.of("tokenizer.ggml.merges", GGUFValueType.STRING, merges),
    ]
    ids = dict[str, int]()
    for ggml, name in (("bos", "bos"), ("eos", "eos"), ("unknown", "unk"), ("padding", "pad")):
        token = settings.get(f"{name}_token")
        token = token.get("content") if isinstance(token, dict) else token
        if token in tokens:
            ids[name] = tokens.index(token)
            found.append(Field.of(f"tokenizer.ggml.{ggml}_token_id", GGUFValueType.UINT32, ids[name]))
    starts = Tokenizer.from_str(content.decode()).encode("a").ids[:1] == [ids.get("bos")]
    found.append(Field.of("tokenizer.ggml.add_bos_token", GGUFValueType.BOOL, starts))
    template = files.get("chat_template.jinja", settings.get("chat_template"))
    if template:
        text = template.decode() if isinstance(template, bytes) else str(template)
        found.append(Field.of("tokenizer.chat_template", GGUFValueType.STRING, text))
    return found


def _tokens(told: TokenizerFile, vocabulary: int) -> tuple[list[str], list[int]]:
    """Every row's token and what kind it is: rows without a token are unused, tokens without a row left out."""
    tokens, kinds = [f"[PAD{i}]" for i in range(vocabulary)], [UNUSED] * vocabulary
    found = [(i, token, NORMAL) for token, i in told["model"]["vocab"].items()]
    for added in told.get("added_tokens", ()):
        found.append((added["id"], added["content"], CONTROL if added["special"] else USER_DEFINED))
    for i, token, kind in found:
        if i < vocabulary:
            tokens[i], kinds[i] = token, kind
    return tokens, kinds


def split_name(told: Mapping[str, object]) -> str:
    """llama.cpp's name of how a tokenizer.json splits text; InputError where it has none.

    >>> split_name({"model": {"type": "BPE"}, "pre_tokenizer": {"type": "ByteLevel", "use_regex": True}})
    'gpt-2'
    """
    model, pre = told.get("model"), told.get("pre_tokenizer")
    if isinstance(model, dict) and model.get("type") == "BPE" and isinstance(pre, dict):
        parts = pre.get("pretokenizers", [pre])
        kinds = [part.get("type") for part in parts]
        if kinds == ["ByteLevel"] and parts[0].get("use_regex", True):
            return "gpt-2"
        if kinds == ["Digits", "ByteLevel"] and parts[0].get("individual_digits"):
            return "smollm"
        pattern = parts[0].get("pattern", {}).get("Regex") if kinds == ["Split", "ByteLevel"] else None
        if pattern in SPLITS:
            return SPLITS[pattern]
    raise InputError(
        "tokenizer.json: GGUF files are written of byte-level BPE that splits text as GPT-2, SmolLM, Llama 3 or Qwen 2"
        " do, and this one does otherwise; give the model as a GGUF file"
    )
