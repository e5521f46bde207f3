"""Histories of client processes that may be killed at any moment: each event is a line, written before and after the operation.

All processes of one machine share the clock (``time.monotonic``), so their histories are one history. What was invoked and
never ended has an unknown outcome.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from onefold.testing.history import History, Operation, Status, _from_json, _to_json
from support.whole_lines import whole_lines


class EventLog(History):
    """A history that is also written to a file, line by line. Threads may share one."""

    def __init__(self, path: Path) -> None:
        super().__init__(clock=time.monotonic)
        self._file = path.open("a", encoding="utf-8", buffering=1)
        self._file_lock = threading.Lock()

    def invoke(self, process: int, kind: str, key: Any = None, value: Any = None) -> int:
        token = super().invoke(process, kind, key, value)
        op = self.operations[token]
        self._write(
            {"id": token, "process": process, "kind": kind, "key": _to_json(key), "value": _to_json(value)}
            | {"at": op.invoked}
        )
        return token

    def _end(self, token: int, status: Status, result: Any) -> Operation:
        ended = super()._end(token, status, result)
        self._write({"id": token, "status": status, "result": _to_json(result), "at": ended.completed})
        return ended

    def _write(self, event: dict[str, Any]) -> None:
        with self._file_lock:
            self._file.write(json.dumps(event, allow_nan=False) + "\n")


class Recorded(History):
    """What was recorded by others, with room for more operations of one's own."""

    def __init__(self, operations: Iterable[Operation]) -> None:
        super().__init__(clock=time.monotonic)
        self._operations = sorted(operations, key=lambda op: op.invoked)


def load_events(paths: Iterable[Path]) -> list[Operation]:
    """The operations in these files, by invocation. A last line that was cut off by a kill counts as not written."""
    found: list[Operation] = []
    for path in paths:
        found += _load(path)
    return sorted(found, key=lambda op: op.invoked)


def _load(path: Path) -> list[Operation]:
    begun: dict[int, dict[str, Any]] = {}
    ended: dict[int, dict[str, Any]] = {}
    for line in whole_lines(path):
        try:
            event = json.loads(line)
        except json.JSONDecodeError:
            continue
        (ended if "status" in event else begun)[event["id"]] = event
    return [_operation(event, ended.get(token)) for token, event in begun.items()]


def _operation(begun: dict[str, Any], ended: dict[str, Any] | None) -> Operation:
    status: Status
    result, completed, status = (
        (None, None, "info") if ended is None else (_from_json(ended["result"]), ended["at"], ended["status"])
    )
    return Operation(
        begun["process"],
        begun["kind"],
        _from_json(begun["key"]),
        _from_json(begun["value"]),
        result,
        begun["at"],
        completed,
        status,
    )
