"""Questions to nodes over a link that loses some of them."""

from __future__ import annotations

import asyncio
import sys
import warnings
from types import FrameType, SimpleNamespace
from typing import Any

import pytest

from onefold import config
from onefold.errors import Timeout
from onefold.log.jetstream.client.link import Link
from onefold.shard.remote.asking import LinkAsking


class LossyLink:
    """Loses the first questions, as a connection does that was cut; the server receives none."""

    address = "here"

    def __init__(self, lost: int) -> None:
        self.asked, self._lost = 0, lost

    def run(self, call: Any, timeout: float) -> Any:
        return asyncio.run(call())

    async def ask(self, subject: str, request: bytes, *, timeout: float) -> Any:
        self.asked += 1
        if self.asked <= self._lost:
            await asyncio.sleep(timeout)
            raise Timeout("no answer", definite=True)
        return SimpleNamespace(data=b"answer to " + request)


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


def test_an_interrupted_question_leaves_no_coroutine_that_is_never_awaited() -> None:
    """At every instruction of the asking thread until the question is handed over."""

    class DeafLink(Link):
        def __init__(self) -> None:  # nothing of a connection
            self.address = "nowhere"

        def check_usable(self) -> None:
            pass

        def post(self, callback: Any, *args: object) -> bool:
            raise Interrupt

    asking = LinkAsking(DeafLink(), SimpleNamespace(ask="ask"))  # type: ignore[arg-type]
    at = 0
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        passed = True
        while passed:
            at += 1
            left = at
            passed = False

            def trace(frame: FrameType, event: str, arg: object) -> Any:
                nonlocal left, passed
                frame.f_trace_opcodes = True
                if event == "opcode":
                    left -= 1
                    if left == 0:
                        passed = True
                        raise Interrupt
                return trace

            sys.settrace(trace)
            try:
                asking(b"x", 1.0, hedge_s=0.1)
            except Interrupt:
                pass
            finally:
                sys.settrace(None)
    assert at > 20 and not [str(one.message) for one in warned]
