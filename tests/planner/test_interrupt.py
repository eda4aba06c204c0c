"""An interrupt that Python drops is raised again; one that is nobody's business here is left alone."""

import io
import signal
import sys
import weakref
from collections.abc import Iterator

import pytest

from planner.interrupt import check, remembered
from planner.progress import ProgressLine


class Lock:
    """Something whose going is told, as the lock of a module that is being imported."""


@pytest.fixture
def dropped(monkeypatch: pytest.MonkeyPatch) -> list[type[BaseException] | None]:
    """The exceptions that Python dropped."""
    found: list[type[BaseException] | None] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda told: found.append(told.exc_type))
    return found


@pytest.fixture(autouse=True)
def by_default() -> Iterator[None]:
    """The handler of a program that was started by hand; a runner of tests may ignore interrupts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupted_where_nobody_hears() -> None:
    lock = Lock()

    def gone(_: object) -> None:
        signal.raise_signal(signal.SIGINT)
        sum(range(10))

    told = weakref.ref(lock, gone)
    del lock
    assert told() is None


def test_a_dropped_interrupt_is_raised_when_work_goes_on(dropped: list[type[BaseException] | None]) -> None:
    with remembered():
        progress = ProgressLine(io.StringIO())
        progress("work", 0, 2)
        interrupted_where_nobody_hears()
        assert dropped == [KeyboardInterrupt]
        with pytest.raises(KeyboardInterrupt):
            progress("work", 1, 2)
    check()  # the next command knows nothing of it


def test_an_interrupt_is_raised_at_once_where_it_can_be() -> None:
    with pytest.raises(KeyboardInterrupt), remembered():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    check()


def test_ignored_interrupts_stay_ignored() -> None:
    """As in a job that a shell put into the background."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with remembered():
        signal.raise_signal(signal.SIGINT)
        check()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
