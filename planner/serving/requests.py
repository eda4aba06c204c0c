"""The body of a request as what it asks for; whatever would change the reply and is not done here is refused."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

from planner.mismatch import did_you_mean
from planner.serving.engine import Sampling
from planner.serving.errors import BAD_REQUEST, HttpError, unsupported, wrong
from planner.yaml_text import Plain

HOTTEST = 2.0
MOST_STOPS = 4
SEED_BITS = 64
SEED_MASK = (1 << SEED_BITS) - 1
COMPLETION_TOKENS = 16
"""How many tokens a completion has where nothing is said, as OpenAI's does."""

READ = frozenset(
    ("model", "messages", "prompt", "max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "stop")
) | {"stream", "stream_options"}
HARMLESS = frozenset(
    ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention")
) | {"parallel_tool_calls"}
NEUTRAL: Mapping[str, tuple[Plain, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logprobs": (False,),
    "top_logprobs": (),
    "frequency_penalty": (0, 0.0),
    "presence_penalty": (0, 0.0),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": ("none",),
    "verbosity": (),
    "web_search_options": (),
}
"""Fields that are not carried out, with the values under which that makes no difference; null is always one."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked besides the prompt; `new_tokens` None is as many as the context holds."""

    model: str
    new_tokens: int | None
    sampling: Sampling
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A conversation to be continued."""

    messages: tuple[Mapping[str, str], ...]
    wish: Wish


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """A text, or tokens, to be continued."""

    prompt: str | tuple[int, ...]
    wish: Wish


def parsed(body: bytes) -> dict[str, Plain]:
    """The JSON object that a body holds.

    >>> parsed(b'{"n": 1}')
    {'n': 1}
    """
    try:
        data: Plain = json.loads(body)
        # Half of a surrogate pair can be escaped in JSON, and is no text that a tokenizer reads.
        json.dumps(data, ensure_ascii=False).encode()
    except UnicodeError as error:
        raise HttpError(BAD_REQUEST, f"the body is not UTF-8 text: {error}") from error
    except (ValueError, RecursionError) as error:
        raise HttpError(BAD_REQUEST, f"the body is not JSON: {str(error) or 'nested too deeply'}") from error
    if not isinstance(data, dict):
        raise wrong("body", data, "give a JSON object")
    return data


def chat_request(data: dict[str, Plain]) -> ChatRequest:
    """A body of /v1/chat/completions."""
    wish = _wish(data, "messages")
    given = data.get("messages")
    if not isinstance(given, list) or not given:
        raise wrong("messages", given, "give a list of at least one message")
    return ChatRequest(tuple(_message(f"messages[{i}]", each) for i, each in enumerate(given)), wish)


def completion_request(data: dict[str, Plain], vocabulary: int) -> CompletionRequest:
    """A body of /v1/completions."""
    wish = _wish(data, "prompt", COMPLETION_TOKENS)
    given = data.get("prompt")
    if isinstance(given, list) and len(given) == 1 and not isinstance(given[0], int):
        given = given[0]
    if isinstance(given, str) and given:
        return CompletionRequest(given, wish)
    if not isinstance(given, list) or not given:
        raise wrong("prompt", given, "give a text, or a list of token numbers")
    if not all(isinstance(each, int) for each in given):
        raise unsupported("prompt", f"{len(given)} prompts; give one prompt a request")
    tokens = []
    for each in given:
        if not isinstance(each, int) or isinstance(each, bool) or not 0 <= each < vocabulary:
            raise wrong("prompt", each, f"give token numbers from 0 to {vocabulary - 1}")
        tokens.append(each)
    return CompletionRequest(tuple(tokens), wish)


def _wish(data: dict[str, Plain], prompt: str, new_tokens: int | None = None) -> Wish:
    other = {"messages", "prompt"} - {prompt}
    for name, value in data.items():
        if name in NEUTRAL:
            if value is not None and not any(_same(value, neutral) for neutral in NEUTRAL[name]):
                raise unsupported(name, f"found {_short(value)}, which this server does not carry out; leave it out")
        elif name in other or name not in READ | HARMLESS:
            known = sorted((READ | HARMLESS | NEUTRAL.keys()) - other)
            raise unsupported(name, f"is not a field of this request{did_you_mean(name, known)}")
    model = data.get("model")
    if not isinstance(model, str):
        raise wrong("model", model, "give a name that /v1/models lists")
    limit = _whole(data, "max_completion_tokens", 1) or _whole(data, "max_tokens", 1) or new_tokens
    sampling = Sampling(
        _number(data, "temperature", 1.0, 0.0, HOTTEST),
        _number(data, "top_p", 1.0, 0.0, 1.0),
        _seed(data),
    )
    stream = _flag(data, "stream")
    options = data.get("stream_options")
    if options is None:
        return Wish(model, limit, sampling, _stops(data.get("stop")), stream, False)
    if not isinstance(options, dict):
        raise wrong("stream_options", options, "give an object")
    if not stream:
        raise HttpError(BAD_REQUEST, "stream_options: given without stream: true", "stream_options")
    for name in options.keys() - {"include_usage", "include_obfuscation"}:
        raise unsupported(f"stream_options.{name}", "is not known; give include_usage")
    return Wish(model, limit, sampling, _stops(data.get("stop")), stream, _flag(options, "include_usage"))


def _message(where: str, given: Plain) -> Mapping[str, str]:
    """A message's role and text."""
    if not isinstance(given, dict):
        raise wrong(where, given, "give an object with role and content")
    for name, value in given.items():
        if name not in ("role", "content", "name") and value not in (None, []):
            raise unsupported(f"{where}.{name}", "is not carried out; give role and content")
    role = given.get("role")
    if not isinstance(role, str):
        raise wrong(f"{where}.role", role, "give a text such as user")
    # OpenAI's newer name for what models were trained to know as the system's words.
    return {"role": "system" if role == "developer" else role, "content": _content(where, given.get("content"))}


def _content(where: str, given: Plain) -> str:
    """The text of a message: itself, or parts of type text."""
    if isinstance(given, str):
        return given
    if not isinstance(given, list) or not given:
        raise wrong(f"{where}.content", given, "give a text, or a list of parts of type text")
    texts = []
    for part in given:
        text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
        if not isinstance(text, str):
            raise unsupported(f"{where}.content", "holds a part that is not of type text; this model reads text only")
        texts.append(text)
    return "".join(texts)


def _stops(given: Plain) -> tuple[str, ...]:
    if given is None:
        return ()
    listed = [given] if isinstance(given, str) else given
    needed = f"give a text, or up to {MOST_STOPS} texts, none of them empty"
    if not isinstance(listed, list) or len(listed) > MOST_STOPS:
        raise wrong("stop", given, needed)
    texts = []
    for each in listed:
        if not isinstance(each, str) or not each:
            raise wrong("stop", given, needed)
        texts.append(each)
    return tuple(texts)


def _number(data: dict[str, Plain], name: str, default: float, low: float, high: float) -> float:
    value = data.get(name)
    if value is None:
        return default
    # Not a number compares with nothing, so this refuses it too.
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise wrong(name, value, f"give a number from {low:g} to {high:g}")
    return float(value)


def _whole(data: dict[str, Plain], name: str, low: int) -> int | None:
    value = data.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise wrong(name, value, f"give a whole number of at least {low}")
    return value


def _seed(data: dict[str, Plain]) -> int | None:
    value = data.get("seed")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value.bit_length() > SEED_BITS:
        raise wrong("seed", value, f"give a whole number of at most {SEED_BITS} bits")
    # A generator takes no negative seed.
    return value & SEED_MASK


def _flag(data: dict[str, Plain], name: str) -> bool:
    value = data.get(name)
    if value is not None and not isinstance(value, bool):
        raise wrong(name, value, "give true or false")
    return bool(value)


def _same(a: Plain, b: Plain) -> bool:
    """Equal, and not a truth value that equals a number."""
    return isinstance(a, bool) == isinstance(b, bool) and a == b


def _short(value: Plain) -> str:
    text = json.dumps(value) if not isinstance(value, float) or math.isfinite(value) else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
