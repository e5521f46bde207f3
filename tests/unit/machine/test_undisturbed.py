"""Work of the main thread that is done in another one, when the main thread is interrupted between any two of its lines."""

from __future__ import annotations

import sys
import threading
from queue import SimpleQueue
from types import FrameType
from typing import Any

import pytest

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
