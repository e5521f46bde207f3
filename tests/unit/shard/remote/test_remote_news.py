"""Threads that wait for news, of which the main thread is interrupted at every instruction."""

from __future__ import annotations

import sys
import threading
from types import FrameType
from typing import Any

import pytest

from onefold.env import SYSTEM
from onefold.errors import SpaceError
from onefold.machine import undisturbed
from onefold.shard.remote import notifications
from onefold.shard.remote.notifications import News

WAIT_S = 120
FILES = {str(module.__file__) for module in (notifications, undisturbed)}


def interrupted_at(number: int, action: Any, met: set[str]) -> bool:
    """Run the action with an interrupt before the given instruction of the waiting; whether it came so far."""
    left = number

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal left
        name = frame.f_code.co_filename
        if name not in FILES:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            left -= 1
            if left == 0:
                met.add(name)
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        action()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    return left <= 0


def test_an_interrupted_waiter_blocks_nobody() -> None:
    shown = 1
    asked = threading.Event()

    def poll(_after: int, _seconds: float) -> bool:
        asked.wait(0.001)
        return True

    number, wedged = 0, []
    met: set[str] = set()
    more = True
    while more:
        number += 1
        news = News(lambda: shown, poll, SYSTEM)
        more = interrupted_at(number, lambda news=news: news.wait(1, 0.0005), met)  # type: ignore[misc]
        done = threading.Event()

        def others(news: News = news, done: threading.Event = done) -> None:
            news.wait(0, WAIT_S)  # there is news
            news.moved()
            news.close()
            done.set()

        threading.Thread(target=others, daemon=True).start()
        if not done.wait(WAIT_S / (1 + 9 * bool(wedged))):
            wedged.append(number)
        if len(wedged) > 3:
            break
    assert not wedged, f"nobody can wait any more after an interrupt at instruction {wedged}"
    assert number > 50
    assert met == FILES


def test_a_question_that_fails_leaves_nobody_waiting() -> None:
    shown, failing = 1, True

    def poll(_after: int, _seconds: float) -> bool:
        nonlocal shown
        if failing:
            raise RuntimeError("it cannot be sent")
        shown = 2
        news.moved()
        return True

    news = News(lambda: shown, poll, SYSTEM)
    with pytest.raises(SpaceError, match="it cannot be sent"):
        news.wait(1, WAIT_S)
    failing = False
    news.wait(1, WAIT_S)
    assert shown == 2
    news.close()
