"""The HTTP application: routes, bodies, and what each refusal becomes."""

import asyncio
from collections.abc import Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from planner.mismatch import did_you_mean
from planner.serving.engine import Ask, Engine, Refused, Stopped
from planner.serving.errors import (
    BAD_REQUEST,
    FAILED,
    NOT_FOUND,
    TOO_LARGE,
    TOO_MANY,
    UNAVAILABLE,
    WRONG_METHOD,
    HttpError,
)
from planner.serving.feed import EventStream, Feed, trouble
from planner.serving.replies import Reply, encoded
from planner.serving.requests import Wish, chat_request, completion_request, parsed
from planner.yaml_text import Plain

LARGEST_BODY_BYTES = 4 * 2**20


def application(engine: Engine) -> Starlette:
    """The endpoint over an engine."""
    endpoint = Endpoint(engine)
    return Starlette(
        routes=[
            Route("/health", endpoint.health, methods=["GET"]),
            Route("/v1/models", endpoint.models, methods=["GET"]),
            Route("/v1/models/{name:path}", endpoint.model, methods=["GET"]),
            Route("/v1/chat/completions", endpoint.chat, methods=["POST"]),
            Route("/v1/completions", endpoint.completion, methods=["POST"]),
        ],
        exception_handlers={HttpError: refused, HTTPException: unrouted, ClientDisconnect: gone, Exception: failed},
    )


class Endpoint:
    """What the routes lead to."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    async def health(self, request: Request) -> Response:
        """Whether requests are taken, and how many run and wait."""
        try:
            load = self.engine.load()
        except Stopped as error:
            raise HttpError(UNAVAILABLE, str(error)) from error
        return answer(
            {
                "status": "ok",
                "model": self.engine.name,
                "sessions": load.sessions,
                "running": load.running,
                "waiting": load.waiting,
                "kept_prefixes": load.kept_prefixes,
                "kept_prefix_bytes": load.kept_prefix_bytes,
            }
        )

    async def models(self, request: Request) -> Response:
        """The one model there is."""
        return answer({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        """The model of a name."""
        self._check_name(str(request.path_params["name"]))
        return answer(self._model())

    async def chat(self, request: Request) -> Response:
        """Continue a conversation."""
        asked = chat_request(parsed(await body_of(request)))
        self._check_name(asked.wish.model)
        # In a thread: a long prompt takes a while to cut into tokens.
        prompt = await asyncio.to_thread(self._refusals, lambda: self.engine.chat(asked.messages), "messages")
        return await self._reply(request, Reply("chat", self.engine.name, asked.wish.include_usage), prompt, asked.wish)

    async def completion(self, request: Request) -> Response:
        """Continue a text."""
        asked = completion_request(parsed(await body_of(request)), self.engine.vocabulary)
        self._check_name(asked.wish.model)
        given = asked.prompt
        prompt = await asyncio.to_thread(self.engine.raw, given) if isinstance(given, str) else list(given)
        reply = Reply("completion", self.engine.name, asked.wish.include_usage)
        return await self._reply(request, reply, prompt, asked.wish)

    async def _reply(self, request: Request, reply: Reply, prompt: list[int], wish: Wish) -> Response:
        feed = Feed(self.engine, Ask(tuple(prompt), self._room(prompt, wish), wish.sampling, wish.stop))
        if wish.stream:
            return EventStream(feed, reply)
        async with feed.until_hung_up(request.receive):
            text, ended = await feed.whole()
        if problem := trouble(ended):
            raise problem
        return answer(reply.whole(text, ended))

    def _room(self, prompt: list[int], wish: Wish) -> int:
        """How many tokens may be generated."""
        context = self.engine.context_tokens
        if not prompt:
            raise HttpError(BAD_REQUEST, "the prompt has no tokens; give at least one")
        new_tokens = max(context - len(prompt), 1) if wish.new_tokens is None else wish.new_tokens
        if len(prompt) + new_tokens > context:
            raise HttpError(
                BAD_REQUEST,
                f"{len(prompt)} tokens of prompt and {new_tokens} new ones are {len(prompt) + new_tokens}, and this"
                f" server's context is {context} tokens; shorten the prompt or ask for fewer",
                code="context_length_exceeded",
            )
        return new_tokens

    def _check_name(self, name: str) -> None:
        if name != self.engine.name:
            known = did_you_mean(name, (self.engine.name,)) or f"; this server has {self.engine.name!r}"
            raise HttpError(NOT_FOUND, f"model: no model is named {name[:80]!r}{known}", "model", "model_not_found")

    def _model(self) -> dict[str, Plain]:
        context = self.engine.context_tokens
        return {
            "id": self.engine.name,
            "object": "model",
            "created": 0,
            "owned_by": "planner",
            "context_tokens": context,
        }

    @staticmethod
    def _refusals(tokens: Callable[[], list[int]], param: str) -> list[int]:
        try:
            return tokens()
        except Refused as error:
            raise HttpError(BAD_REQUEST, f"{param}: {error}", param) from error


async def body_of(request: Request) -> bytes:
    """The body, within its limit."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > LARGEST_BODY_BYTES:
            raise HttpError(TOO_LARGE, f"the body is larger than {LARGEST_BODY_BYTES >> 20} MiB, the most this takes")
    return bytes(body)


def answer(body: Plain, status: int = 200, retry_after_s: int | None = None) -> Response:
    """A JSON response."""
    headers = {} if retry_after_s is None else {"retry-after": str(retry_after_s)}
    return Response(encoded(body), status, headers, "application/json")


async def refused(request: Request, error: Exception) -> Response:
    """What this application refused."""
    if not isinstance(error, HttpError):
        raise error
    return answer(error.as_json(), error.status, 1 if error.status == TOO_MANY else None)


async def unrouted(request: Request, error: Exception) -> Response:
    """A path or a method that there is not."""
    status = error.status_code if isinstance(error, HTTPException) else FAILED
    told = {
        NOT_FOUND: f"{request.url.path[:80]}: no such path",
        WRONG_METHOD: f"{request.url.path[:80]}: not with {request.method}",
    }
    return answer(HttpError(status, told.get(status, str(error))).as_json(), status)


async def gone(request: Request, error: Exception) -> Response:
    """Nobody is left to read this."""
    return Response(status_code=499)


async def failed(request: Request, error: Exception) -> Response:
    """A bug: the client is told that, the log gets the trace."""
    return answer(HttpError(FAILED, "the server failed; its log says more").as_json(), FAILED)
