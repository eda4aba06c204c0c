"""The way from an engine's thread to a client: events in the event loop, streams, and what happens at a hang-up."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from planner.serving.engine import Ask, Busy, Ended, Engine, Event, Piece, Refused, Stopped, Ticket
from planner.serving.errors import BAD_REQUEST, FAILED, TOO_MANY, UNAVAILABLE, HttpError
from planner.serving.replies import Reply, event


class Feed:
    """The events of one request, in the event loop."""

    def __init__(self, engine: Engine, ask: Ask) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        try:
            self._ticket: Ticket = engine.submit(ask, self._deliver)
        except Refused as error:
            raise HttpError(BAD_REQUEST, str(error)) from error
        except Busy as error:
            raise HttpError(TOO_MANY, str(error)) from error
        except Stopped as error:
            raise HttpError(UNAVAILABLE, str(error)) from error

    def _deliver(self, each: Event) -> None:
        # The loop may be closed by now; then nobody listens.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._events.put_nowait, each)

    async def next(self) -> Event:
        """The next event; the last is Ended."""
        return await self._events.get()

    async def whole(self) -> tuple[str, Ended]:
        """All of the reply."""
        text = ""
        while isinstance(each := await self.next(), Piece):
            text += each.text
        return text, each

    @asynccontextmanager
    async def until_hung_up(self, receive: Receive) -> AsyncIterator[None]:
        """The request is cancelled as soon as its client hangs up, and in any case at the end."""

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            self._ticket.cancel()

        watching = asyncio.create_task(watch())
        try:
            yield
        finally:
            watching.cancel()
            self._ticket.cancel()


class EventStream(Response):
    """A reply as server-sent events."""

    media_type = "text/event-stream"

    def __init__(self, feed: Feed, reply: Reply) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        # Its length is not known beforehand.
        del self.headers["content-length"]
        self.feed, self.reply = feed, reply

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self.feed.until_hung_up(receive):
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            for part in self.reply.first():
                await send({"type": "http.response.body", "body": part, "more_body": True})
            while isinstance(each := await self.feed.next(), Piece):
                await send({"type": "http.response.body", "body": self.reply.piece(each.text), "more_body": True})
            problem = trouble(each)
            parts = self.reply.last(each) if problem is None else [event(problem.as_json())]
            await send({"type": "http.response.body", "body": b"".join(parts), "more_body": False})


def trouble(ended: Ended) -> HttpError | None:
    """What to tell about a reply that did not come to its end."""
    if ended.reason == "failed":
        return HttpError(FAILED, ended.problem)
    return HttpError(UNAVAILABLE, "the request was cancelled") if ended.reason == "cancelled" else None
