"""Replies in the shapes of OpenAI's API, whole and in pieces."""

import json
import secrets
import time
from dataclasses import dataclass, field
from typing import Literal

from planner.serving.engine import Ended
from planner.yaml_text import Plain

Kind = Literal["chat", "completion"]
DONE = b"data: [DONE]\n\n"


def _id() -> str:
    return secrets.token_hex(12)


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply of a model: `whole` is all of it, the other methods are its parts as they are streamed."""

    kind: Kind
    model: str
    include_usage: bool = False
    created: int = field(default_factory=lambda: int(time.time()))
    id: str = field(default_factory=_id)

    def whole(self, text: str, ended: Ended) -> dict[str, Plain]:
        """The reply in one body."""
        choice: dict[str, Plain] = {"index": 0, "logprobs": None, "finish_reason": ended.reason}
        choice |= {"message": {"role": "assistant", "content": text}} if self.kind == "chat" else {"text": text}
        return {**self._head("chat.completion"), "choices": [choice], "usage": usage(ended)}

    def first(self) -> list[bytes]:
        """What a stream begins with."""
        return [self._chunk({"role": "assistant", "content": ""})] if self.kind == "chat" else []

    def piece(self, text: str) -> bytes:
        """More text."""
        return self._chunk({"content": text} if self.kind == "chat" else text)

    def last(self, ended: Ended) -> list[bytes]:
        """What a stream ends with."""
        end = [self._chunk({} if self.kind == "chat" else "", ended.reason)]
        if self.include_usage:
            end.append(event({**self._head("chat.completion.chunk"), "choices": [], "usage": usage(ended)}))
        return [*end, DONE]

    def _chunk(self, said: Plain, reason: str | None = None) -> bytes:
        choice: dict[str, Plain] = {"index": 0, "logprobs": None, "finish_reason": reason}
        choice["delta" if self.kind == "chat" else "text"] = said
        body: dict[str, Plain] = {**self._head("chat.completion.chunk"), "choices": [choice]}
        return event(body | {"usage": None} if self.include_usage else body)

    def _head(self, name: str) -> dict[str, Plain]:
        chat = self.kind == "chat"
        return {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{self.id}",
            "object": name if chat else "text_completion",
            "created": self.created,
            "model": self.model,
        }


def usage(ended: Ended) -> dict[str, Plain]:
    """How many tokens a request took; the token that ended a reply is one of them.

    >>> usage(Ended("stop", 5, 3, (7, 1)))["total_tokens"]
    7
    """
    return {
        "prompt_tokens": ended.prompt_tokens,
        "completion_tokens": len(ended.tokens),
        "total_tokens": ended.prompt_tokens + len(ended.tokens),
        "prompt_tokens_details": {"cached_tokens": ended.reused_tokens},
    }


def encoded(body: Plain) -> bytes:
    """JSON in ASCII, which carries any text that a model or a client came up with."""
    return json.dumps(body, separators=(",", ":")).encode()


def event(body: Plain) -> bytes:
    """One server-sent event.

    >>> event({"text": "a\\n"})
    b'data: {"text":"a\\\\n"}\\n\\n'
    """
    return b"data: " + encoded(body) + b"\n\n"
