"""What the endpoint asks of an engine that generates text: the request, what comes back, and the protocol."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a token is drawn: the likeliest at temperature 0, else at random; `seed` None is another draw each time."""

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None


GREEDY = Sampling(temperature=0.0)


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: the prompt's tokens, how many new ones at most, and the texts that end the reply."""

    prompt: tuple[int, ...]
    new_tokens: int
    sampling: Sampling = GREEDY
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """More of the reply."""

    text: str


Reason: TypeAlias = Literal["stop", "length", "cancelled", "failed"]


@dataclass(frozen=True, slots=True)
class Ended:
    """The last event of every request.

    `stop`: the model or a stop text ended the reply; `length`: it has as many tokens as were asked for; `cancelled`:
    by the one who asked; `failed`: `problem` says why. `reused_tokens` of the prompt were not read again; `tokens` are
    those that were generated, with the one that ended the reply.
    """

    reason: Reason
    prompt_tokens: int
    reused_tokens: int
    tokens: tuple[int, ...]
    problem: str = ""


Event: TypeAlias = Piece | Ended
Deliver: TypeAlias = Callable[[Event], None]
"""Called with each event of a request, in order, from a thread of the engine; must return at once."""


class Refused(Exception):
    """The engine cannot do what was asked; the message says what was found and what would do."""


class Busy(Exception):
    """As many requests wait as may; later there may be room."""


class Stopped(Exception):
    """The engine takes no requests any more; the message says why."""


@dataclass(frozen=True, slots=True)
class Load:
    """What an engine is doing."""

    sessions: int
    running: int
    waiting: int
    kept_prefixes: int
    kept_prefix_bytes: int


class Ticket(Protocol):
    """A request that was accepted."""

    def cancel(self) -> None:
        """Nobody waits for the reply any more."""


class Engine(Protocol):
    """A model that generates for several requests at once. Every method may be called from any thread."""

    @property
    def name(self) -> str: ...

    @property
    def context_tokens(self) -> int:
        """How many tokens a prompt and its reply may have together."""

    @property
    def vocabulary(self) -> int: ...

    def chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """The tokens of a conversation that asks for a reply; Refused where the model has no such conversations."""

    def raw(self, text: str) -> list[int]:
        """The tokens of a text as it is."""

    def submit(self, ask: Ask, deliver: Deliver) -> Ticket:
        """Queue a request; Busy or Stopped where that is not possible. `deliver` gets pieces, and in the end Ended."""

    def load(self) -> Load:
        """What is going on; Stopped where nothing can any more."""

    def stop(self) -> None:
        """End every request within a step and take no more. Takes no lock, so that a signal handler may call it."""
