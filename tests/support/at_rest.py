"""Waiting until nothing moves any more."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def comes_to_rest(read: Callable[[], T], seconds: float = 0.6, within_s: float = 120.0) -> T:
    """What ``read`` returns once it has not changed for so long. What keeps moving it, however slowly, fails the test.

    A worker that has caught up may have a last commit to make, and a busy machine lets it make it late. So what "appends nothing"
    is not compared with the moment at which the test happens to look.
    """
    end = time.monotonic() + within_s
    found, since = read(), time.monotonic()
    while time.monotonic() - since < seconds:
        assert time.monotonic() < end, f"it moves on: {found}"
        time.sleep(seconds / 20)
        if (now := read()) != found:
            found, since = now, time.monotonic()
    return found
