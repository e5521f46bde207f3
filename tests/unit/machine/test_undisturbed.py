"""Work of the main thread that is done in another one, when the main thread is interrupted between any two of its lines."""

from __future__ import annotations

import functools
import signal
import sys
import threading
from collections.abc import Callable
from queue import SimpleQueue
from types import FrameType
from typing import Any

import pytest

from onefold.errors import Conflict
from onefold.machine import undisturbed


class Counted(SimpleQueue[Any]):
    """A queue that counts what is put into it."""

    puts = 0

    def put(self, *arguments: Any) -> None:
        self.puts += 1
        super().put(*arguments)


@pytest.fixture
def no_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has made no call yet."""
    monkeypatch.setattr(undisturbed, "_calls", Counted())
    monkeypatch.setattr(undisturbed, "_idle", {})


def interrupted_at(line: int, done: threading.Event) -> bool:
    """Make one call, interrupted before the given line event of it; whether it came so far."""
    seen = 0

    def local(_frame: FrameType, event: str, _argument: Any) -> Any:
        nonlocal seen
        if event == "line":
            seen += 1
            if seen == line:
                sys.settrace(None)
                raise KeyboardInterrupt
        return local

    before = sys.gettrace()
    sys.settrace(lambda frame, _event, _: local if frame.f_code is undisturbed.undisturbed.__code__ else None)
    try:
        undisturbed.undisturbed(done.set)
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


@pytest.mark.parametrize("line", range(1, 12))
def test_abandoned_work_is_done_at_once_or_never(line: int, no_servers: None) -> None:
    undisturbed.prepare()
    done, later = threading.Event(), threading.Event()
    calls = undisturbed._calls
    assert isinstance(calls, Counted)
    if interrupted_at(line, done):
        if calls.puts:
            assert done.wait(60), "it waits for the next call"
    else:
        assert done.is_set()
    done_before = done.is_set()
    undisturbed.undisturbed(later.set)
    assert later.is_set() and done.is_set() == done_before


def raised(by: Callable[[], object]) -> Conflict:
    with pytest.raises(Conflict) as met:
        by()
    return met.value


def caught(handler: Any) -> Conflict:
    """What a handler raised that is not installed any more when the question comes."""
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        return raised(lambda: signal.raise_signal(signal.SIGUSR1))
    finally:
        signal.signal(signal.SIGUSR1, before)


def plain(number: int, frame: FrameType | None) -> None:
    raise Conflict("a signal")


def wrapped(*them: Any) -> None:
    plain(*them)


def with_rest(*_: Any) -> None:
    raise Conflict("a signal")


class Handler:
    def __call__(self, number: int, frame: FrameType | None, more: int = 0) -> None:
        raise Conflict("a signal")

    def method(self, number: int, *rest: Any) -> None:
        raise Conflict("a signal")


def with_more(more: str, number: int, frame: FrameType | None) -> None:
    raise Conflict("a signal")


HANDLERS = [plain, wrapped, with_rest, Handler(), Handler().method, functools.partial(with_more, "x")]


@pytest.mark.parametrize("handler", HANDLERS)
def test_what_a_handler_raises_is_an_interrupt(handler: Any) -> None:
    assert undisturbed.is_interrupt(caught(handler))


def test_what_a_trace_function_raises_is_an_interrupt() -> None:
    def trace(_frame: FrameType, _event: str, _argument: Any) -> Any:
        sys.settrace(None)
        raise Conflict("a limit")

    def traced() -> None:
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            plain_work()
        finally:
            sys.settrace(before)

    def plain_work() -> None:
        """Whose call is traced."""

    assert undisturbed.is_interrupt(raised(traced))


def keeps_its_caller() -> None:
    caller = sys._getframe(1)
    callers = (signal.SIGUSR1, caller)
    raise Conflict(f"a conflict, of {caller and callers}")


def is_given_its_caller(number: int, stack: FrameType | None, label: str = "x") -> None:
    raise Conflict("a conflict")


def is_given_it_among_others(*them: Any) -> None:
    raise Conflict("a conflict")


@pytest.mark.parametrize(
    "function",
    [
        keeps_its_caller,
        lambda: is_given_its_caller(10**6, sys._getframe()),
        lambda: is_given_its_caller(True, sys._getframe()),
        lambda: is_given_it_among_others("x", sys._getframe()),
        lambda: is_given_it_among_others(sys._getframe()),
    ],
)
def test_a_function_that_has_its_callers_frame_is_no_handler(function: Callable[[], object]) -> None:
    assert not undisturbed.is_interrupt(raised(function))
