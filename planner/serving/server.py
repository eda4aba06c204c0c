"""Run the application on a socket until a signal ends it."""

import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

from planner.errors import InputError
from planner.serving.app import application
from planner.serving.engine import Engine

LAST_WORDS_S = 5
"""How long clients get, after a signal, to read what was sent to them."""


class Server(uvicorn.Server):
    """A server that tells its engine to stop with the first signal, so that no reply holds up the end."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(
            uvicorn.Config(
                application(engine),
                lifespan="off",
                log_level="warning",
                access_log=False,
                timeout_graceful_shutdown=LAST_WORDS_S,
            )
        )
        self.engine = engine

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.engine.stop()
        super().handle_exit(sig, frame)


def listen(host: str, port: int) -> socket.socket:
    """A socket on a host and a port; port 0 is any free one."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise InputError(f"--host {host} --port {port}: cannot listen there: {why.lower()}") from error


def serve(engine: Engine, listening: socket.socket, ready: Callable[[str], None] = lambda url: None) -> None:
    """Answer requests until a signal comes; `ready` is told the address."""
    host, port = listening.getsockname()[:2]
    ready(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")
    Server(engine).run(sockets=[listening])
