"""A model's chat template as plain text around messages, so that a runner needs no template language.

Found by rendering conversations with marked contents and cutting them at the marks; what was found is kept only if it
renders other conversations exactly as the template does.
"""

import tempfile
from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import TypedDict

from jinja2 import TemplateError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from backends.onnxruntime.runner import Template, rendered
from planner.errors import InputError
from planner.executor import Artifact

Render = Callable[[Sequence[dict[str, str]], bool], str]

ROLES = ("user", "assistant", "system")
MARKS = {role: f"<{role}'s words>" for role in ROLES}
REFUSALS = (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What a template may raise on a conversation that it does not like."""


class ChatFile(TypedDict):
    """chat.json."""

    template: Template | None
    stop: list[int]


def chat_json(companions: Sequence[Artifact]) -> ChatFile:
    """chat.json of a model whose tokenizer is among these files."""
    if not any(file.path == "tokenizer.json" for file in companions):
        raise InputError("the model's tokenizer has no tokenizer.json, which the onnxruntime runner reads")
    with tempfile.TemporaryDirectory() as scratch:
        for file in companions:
            if isinstance(file.content, bytes) and "/" not in file.path:
                (Path(scratch) / file.path).write_bytes(file.content)
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(scratch)
    stop = {tokenizer.eos_token_id} - {None}
    template = None
    if tokenizer.chat_template:

        def render(messages: Sequence[dict[str, str]], reply: bool) -> str:
            return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=reply))

        template = template_of(render)
        if template is not None:
            follows = template["after"]["assistant"] + template["before"]["user"]
            ends = tokenizer(follows, add_special_tokens=False).input_ids
            stop |= {token for token in ends[:1] if token in tokenizer.all_special_ids}
    return {"template": template, "stop": sorted(stop)}


def template_of(render: Render) -> Template | None:
    """The parts of a template, or None where it is not of that form.

    >>> def render(messages, reply):
    ...     said = "".join(f"<{m['role']}>{m['content']}</>" for m in messages)
    ...     return "<s>" + said + ("<assistant>" if reply else "")
    >>> found = template_of(render)
    >>> found["before"]["user"], found["after"]["user"], found["reply"], found["default_system"]
    ('<user>', '</>', '<assistant>', '<s>')
    """
    try:
        found = _cut(render)
        good = all(rendered(found, messages, True) == render(messages, True) for messages in _conversations(found))
    except REFUSALS:
        return None
    return found if good else None


def _cut(render: Render) -> Template:
    """The parts between the marks of a few conversations.

    Only what stands between two messages shows, so where one part ends and the next begins is a choice: where a
    conversation can end, if it can end there.
    """
    user, assistant = ({"role": role, "content": MARKS[role]} for role in ("user", "assistant"))
    opening = render([user], False).partition(MARKS["user"])[0]
    asked = render([user], True).partition(MARKS["user"])[2]
    to_assistant = _between(render([user, assistant], False), "user", "assistant")
    to_user = _between(render([user, assistant, user], False), "assistant", "user")
    user_end = render([user], False).rpartition(MARKS["user"])[2]
    if not (asked.startswith(user_end) and to_assistant.startswith(user_end)):
        user_end = _common(asked, to_assistant)
    assistant_end = render([user, assistant], False).rpartition(MARKS["assistant"])[2]
    if not (to_user.startswith(assistant_end) and opening.endswith(to_user.removeprefix(assistant_end))):
        shared = _common(opening[::-1], to_user[::-1])[::-1]
        assistant_end = to_user.removesuffix(shared)
    user_begin = to_user.removeprefix(assistant_end)
    found: Template = {
        "before": {"assistant": to_assistant.removeprefix(user_end), "user": user_begin},
        "after": {"assistant": assistant_end, "user": user_end},
        "stripped": [],
        "default_system": opening.removesuffix(user_begin),
        "reply": asked.removeprefix(user_end),
    }
    _add_system(found, render)
    for role, messages in _padded(found).items():
        if rendered(found, messages, True) != render(messages, True):
            found["stripped"].append(role)
    return found


def _add_system(found: Template, render: Render) -> None:
    """Add the parts around a system message, where the template takes one and puts it before the user's."""
    messages = [{"role": role, "content": MARKS[role]} for role in ("system", "user")]
    try:
        told = render(messages, False)
    except REFUSALS:
        return
    begin, mark, rest = told.partition(MARKS["system"])
    to_user, user_begin = rest.partition(MARKS["user"])[0], found["before"]["user"]
    if mark and to_user.endswith(user_begin):
        found["before"]["system"], found["after"]["system"] = begin, to_user.removesuffix(user_begin)


def _between(text: str, first: str, second: str) -> str:
    """What stands between the last messages of two roles."""
    return text.rpartition(MARKS[second])[0].rpartition(MARKS[first])[2]


def _common(a: str, b: str) -> str:
    """The text that both begin with."""
    return "".join(x for x, _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def _padded(found: Template) -> dict[str, list[dict[str, str]]]:
    """For each role a conversation whose message of that role has blanks around it."""

    def say(role: str, padded: str) -> dict[str, str]:
        return {"role": role, "content": " \n So. \n" if role == padded else "So."}

    orders = {"user": ["user"], "assistant": ["user", "assistant", "user"], "system": ["system", "user"]}
    return {role: [say(each, role) for each in orders[role]] for role in found["before"]}


def _conversations(template: Template) -> list[list[dict[str, str]]]:
    turns = [
        {"role": "user", "content": "How many?"},
        {"role": "assistant", "content": "Seven.\nOr eight"},
        {"role": "user", "content": "Why {{ so }} many"},
        {"role": "assistant", "content": "Because."},
        {"role": "user", "content": "Thanks"},
    ]
    found = [turns[:1], turns[:3], turns]
    if "system" in template["before"]:
        found += [[{"role": "system", "content": "Be brief."}, *each] for each in found]
    return [*found, *_padded(template).values()]
