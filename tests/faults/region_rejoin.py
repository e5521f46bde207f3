"""``onefold region rejoin`` that kills itself: ``region_rejoin.py FOLDER REGION MODULE.FUNCTION:before|after:COUNT``."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from typing import Any

PLACES = (
    "onefold.regions.changes.deciding.rejoin",
    "onefold.regions.making._retire",
    "onefold.regions.making._move_away",
    "onefold.regions.making._build",
    "onefold.regions.making._note",
    "onefold.state.available.unseen._continue",
    "onefold.state.available.unseen._find",
    "onefold.state.available.unseen._do_again",
    "onefold.state.available.unseen._lines",
    "onefold.regions.changes.old_logs.finish",
)


def die_at(place: str) -> None:
    name, when, count = place.split(":")
    owner, _, function = name.rpartition(".")
    module = importlib.import_module(owner)
    real = getattr(module, function)
    calls = 0

    def killed(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == int(count) and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        found = real(*args, **options)
        if calls == int(count):
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    setattr(module, function, killed)


if __name__ == "__main__":
    from onefold.cli.app import app

    die_at(sys.argv[3])
    app(["region", "rejoin", sys.argv[2], "--url", sys.argv[1], "--json"])
