"""Questions to nodes over a link that loses some of them."""

from __future__ import annotations

import sys
from types import FrameType, SimpleNamespace
from typing import Any

import pytest

from onefold import config
from onefold.env import SYSTEM
from onefold.errors import Timeout
from onefold.shard.remote import asking as asking_module
from onefold.shard.remote.asking import LinkAsking


class LossyLink:
    """Loses the first questions, as a connection does that was cut; the server receives none."""

    address, env = "here", SYSTEM

    def __init__(self, lost: int) -> None:
        self.asked, self._lost = 0, lost

    def check_usable(self) -> None:
        pass

    check_may_wait = check_usable

    def post(self, callback: Any, *args: object) -> bool:
        return True

    def suspect(self) -> None:
        pass

    def question(self, waiter: Any, request: bytes) -> None:
        self.asked += 1
        if self.asked > self._lost:
            waiter.take(b"answer to " + request, None)


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "ASK_AGAIN_S", 0.01)


@pytest.mark.parametrize("lost", [0, 1, config.ASK_HEDGES_MAX + 1, config.ASK_HEDGES_MAX + 4])
def test_a_question_that_was_lost_is_asked_again_within_its_time(lost: int) -> None:
    link = LossyLink(lost)
    asking = LinkAsking(link, SimpleNamespace(ask="ask"))  # type: ignore[arg-type]
    assert asking(b"x", 3600.0, hedge_s=0.001) == b"answer to x"
    assert link.asked >= lost + 1


def test_a_question_is_not_asked_without_end() -> None:
    link = LossyLink(1000)
    with pytest.raises(Timeout):
        LinkAsking(link, SimpleNamespace(ask="ask"))(b"x", 0.3, hedge_s=0.001)  # type: ignore[arg-type]
    assert config.ASK_HEDGES_MAX + 1 < link.asked <= config.ASK_HEDGES_MAX + 8


class Interrupt(BaseException):
    """What a signal handler raises."""


class Connected:
    """What a question is sent on: the questions that still have somebody who waits."""

    def __init__(self) -> None:
        self.open: set[str] = set()

    def forget(self, token: str) -> None:
        self.open.discard(token)


class Ticking:
    """A clock that goes on when it is looked at."""

    now_s = 0.0

    def boot_s(self) -> float:
        self.now_s += 0.0004
        return self.now_s


class SilentLink:
    """Sends questions, at once or when the loop comes to it, and has no answers."""

    address = "here"

    def __init__(self, *, later: bool) -> None:
        self.env = Ticking()
        self.connection, self.later = Connected(), later
        self.posted: list[Any] = []

    def check_usable(self) -> None:
        pass

    check_may_wait = check_usable

    def post(self, callback: Any, *args: object) -> bool:
        return True

    def suspect(self) -> None:
        pass

    def question(self, waiter: Any, request: bytes) -> None:
        token = f"{len(self.posted)}"
        self.posted.append(lambda: (self.connection.open.add(token), waiter.sent(self.connection, token)))
        if not self.later:
            self.posted[-1]()


@pytest.mark.parametrize("later", [False, True])
def test_an_interrupted_question_leaves_nobody_waiting(later: bool) -> None:
    """At every instruction of the asking thread, but for those that end a question."""
    at, passed, asked = 0, True, 0
    while passed:
        at, passed = at + 1, False
        left = at

        def trace(frame: FrameType, event: str, arg: object) -> Any:
            nonlocal left, passed
            frame.f_trace_opcodes = frame.f_code.co_filename == asking_module.__file__
            if event == "opcode" and frame.f_code.co_name not in ("close", "forget", "__call__", "sent"):
                left -= 1
                if left == 0:
                    passed = True
                    raise Interrupt
            return trace

        link = SilentLink(later=later)
        sys.settrace(trace)
        try:
            LinkAsking(link, SimpleNamespace(ask="ask"))(b"x", 0.002, hedge_s=0.001)  # type: ignore[arg-type]
        except (Interrupt, Timeout):
            pass
        finally:
            sys.settrace(None)
        if link.later:
            for send in link.posted:
                send()
        asked += len(link.posted)
        assert not link.connection.open, at
    assert at > 100 and asked > at
