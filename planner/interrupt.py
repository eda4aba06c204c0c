"""An interrupt that cannot be lost.

Python drops a KeyboardInterrupt that is raised in a callback which it calls itself, of a weak reference or a finaliser,
and every import of a module has one: a user who presses Ctrl-C while a library loads would be ignored. So it is
remembered, and raised again when the work next tells how far it is.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_dropped = False


def _interrupted(number: int, frame: FrameType | None) -> None:
    global _dropped
    _dropped = True
    signal.default_int_handler(number, frame)


@contextmanager
def remembered() -> Iterator[None]:
    """Remember interrupts while the block runs, where they end the program: not where somebody else handles or ignores
    them."""
    global _dropped
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, _interrupted)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _dropped = False


def check() -> None:
    """Raise the interrupt that came since the block began."""
    if _dropped:
        raise KeyboardInterrupt
