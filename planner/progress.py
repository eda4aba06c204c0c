"""How far a long stage is and how long it still takes, on one line of the error stream.

Stages under two seconds say nothing. On a terminal the line is rewritten; elsewhere (a log) a new line comes at most
every ten seconds.
"""

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

from planner import interrupt

QUIET_S = 2.0
TERMINAL_EVERY_S = 0.2
LOG_EVERY_S = 10.0


class ProgressLine:
    """The callback (stage, done, of) of everything that takes long; as a context it leaves a clean line behind."""

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._rewrites = self._stream.isatty()
        self._stage = ""
        self._began = self._written = 0.0
        self._first = self._width = 0

    def __call__(self, stage: str, done: int, of: int) -> None:
        interrupt.check()
        now = self._clock()
        if stage != self._stage:
            self._clear()
            # What was done before the first call (a resumed stage) says nothing about the pace.
            self._stage, self._began, self._written, self._first = stage, now, 0.0, done
        due = now - self._written >= (TERMINAL_EVERY_S if self._rewrites else LOG_EVERY_S)
        if now - self._began >= QUIET_S and (due or done >= of):
            self._show(line(stage, done, of, now - self._began, done - self._first))
            self._written = now

    def _show(self, text: str) -> None:
        if self._rewrites:
            self._stream.write(f"\r{text.ljust(self._width)}")
            self._width = len(text)
        else:
            self._stream.write(f"{text}\n")
        self._stream.flush()

    def _clear(self) -> None:
        if self._rewrites and self._width:
            self._stream.write(f"\r{' ' * self._width}\r")
            self._stream.flush()
            self._width = 0

    def __enter__(self) -> "ProgressLine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._clear()


def line(stage: str, done: int, of: int, elapsed_s: float, done_since: int) -> str:
    """One progress line; the time left goes by the pace since the stage began.

    >>> line("anchors", 12, 36, elapsed_s=60, done_since=12)
    'anchors  12/36  33%  2 min left'
    >>> line("anchors", 36, 36, elapsed_s=80, done_since=36)
    'anchors  36/36  100%  took 80 s'
    """
    head = f"{stage}  {done}/{of}  {100 * done // max(of, 1)}%"
    if done >= of:
        return f"{head}  took {duration(elapsed_s)}"
    if done_since <= 0:
        return head
    return f"{head}  {duration(elapsed_s / done_since * (of - done))} left"


def duration(seconds: float) -> str:
    """A duration as people say it.

    >>> duration(7.4), duration(119), duration(150), duration(7500)
    ('7 s', '119 s', '2.5 min', '2.1 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.2g} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
