"""What clients did and saw: operations, the recorder that collects them, and the verdict of a checker.

The nouns are those of Jepsen and Maelstrom. A client (``process``) invokes an operation and later learns one of
three things: ``ok`` (it took effect between invocation and completion), ``fail`` (it certainly had no effect) or
``info`` (unknown: it took effect at some time after its invocation, perhaps long after the client gave up, or never).
Operation A comes before B in real time iff A is ok and completed strictly before B was invoked; equal times are
concurrent, so a coarse clock can hide an anomaly but never make one up.
"""

from __future__ import annotations

import enum
import itertools
import json
import math
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

Status = Literal["ok", "fail", "info"]


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of one client.

    ``value`` is what was asked, ``result`` what was answered (None if nothing was). Times are of one clock, in any unit.
    ``completed`` of an info operation is when its client gave up, or None; no checker takes it as an upper bound.
    """

    process: int
    kind: str
    key: Any
    value: Any
    result: Any
    invoked: float
    completed: float | None
    status: Status

    def __post_init__(self) -> None:
        if self.status not in get_args(Status):
            raise ValueError(f"the status of an operation is ok, fail or info, not {self.status!r}")
        if self.completed is None:
            if self.status == "ok":
                raise ValueError(
                    f"an ok operation needs the time of its completion: {self.kind} of {self.process}"
                )
        elif self.completed < self.invoked:
            raise ValueError(
                f"completed at {self.completed}, before its invocation at {self.invoked}: {self.kind}"
            )

    @property
    def end(self) -> float:
        """The time by which an ok operation had taken effect; infinity for the others."""
        return self.completed if self.status == "ok" and self.completed is not None else math.inf

    def precedes(self, other: Operation) -> bool:
        """Whether this operation came before the other in real time."""
        return self.end < other.invoked

    def __str__(self) -> str:
        key = "" if self.key is None else f" {self.key!r}"
        value = "" if self.value is None else f" {self.value!r}"
        result = "" if self.result is None and self.kind not in {"read", "get"} else f" -> {self.result!r}"
        end = "..." if self.completed is None else f"{self.completed:g}"
        outcome = {"ok": "", "fail": " (failed)", "info": " (outcome unknown)"}[self.status]
        return f"[{self.invoked:g}, {end}] process {self.process}: {self.kind}{key}{value}{result}{outcome}"


class History:
    """Records operations as clients invoke and complete them. Threads may share one.

    ``clock`` gives the times: by default a counter, which is exact within one process. Histories of several processes
    need one clock that all of them share, such as ``time.monotonic`` on one machine.
    """

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        ticks = itertools.count()
        self._clock: Callable[[], float] = (lambda: float(next(ticks))) if clock is None else clock
        self._operations: list[Operation] = []
        self._open: set[int] = set()
        self._lock = threading.Lock()

    def invoke(self, process: int, kind: str, key: Any = None, value: Any = None) -> int:
        """Record that an operation is about to start. The token names it when it ends."""
        with self._lock:
            token = len(self._operations)
            self._operations.append(Operation(process, kind, key, value, None, self._clock(), None, "info"))
            self._open.add(token)
            return token

    def ok(self, token: int, result: Any = None) -> Operation:
        """The operation took effect and answered this. Raises ValueError if it has already ended."""
        return self._end(token, "ok", result)

    def fail(self, token: int, result: Any = None) -> Operation:
        """The operation certainly had no effect. Raises ValueError if it has already ended."""
        return self._end(token, "fail", result)

    def info(self, token: int, result: Any = None) -> Operation:
        """The client does not know what became of the operation. Raises ValueError if it has already ended."""
        return self._end(token, "info", result)

    @property
    def operations(self) -> tuple[Operation, ...]:
        """All operations in the order of their invocation; those still open have an unknown outcome (info)."""
        with self._lock:
            return tuple(self._operations)

    def _end(self, token: int, status: Status, result: Any) -> Operation:
        with self._lock:
            if token not in self._open:
                raise ValueError(f"operation {token} has already ended or was never invoked")
            self._open.discard(token)
            started = self._operations[token]
            ended = replace(started, status=status, result=result, completed=self._clock())
            self._operations[token] = ended
            return ended


class Validity(enum.Enum):
    """What a checker found. UNKNOWN is not a pass."""

    VALID = "valid"
    INVALID = "invalid"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer of a checker. It is true in a condition only if it is VALID.

    ``anomalies`` names what was found, in the words of the literature; ``explanation`` shows the offending operations.
    """

    validity: Validity
    explanation: str = ""
    anomalies: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.validity is Validity.VALID

    def require(self) -> None:
        """Raise AssertionError with the explanation unless the verdict is VALID."""
        if not self:
            raise AssertionError(f"{self.validity.value}: {self.explanation}")


VALID = Verdict(Validity.VALID)


def invalid(anomalies: Sequence[tuple[str, str]]) -> Verdict:
    """The verdict on a list of (anomaly, explanation): VALID if it is empty."""
    if not anomalies:
        return VALID
    names = tuple(dict.fromkeys(name for name, _ in anomalies))
    shown = "\n".join(f"{name}: {text}" for name, text in anomalies[:_ANOMALIES_SHOWN_MAX])
    more = len(anomalies) - _ANOMALIES_SHOWN_MAX
    return Verdict(Validity.INVALID, shown + (f"\n... and {more} more" if more > 0 else ""), names)


def unknown(explanation: str) -> Verdict:
    """The verdict of a check that could not be finished, or that had nothing to look at."""
    return Verdict(Validity.UNKNOWN, explanation)


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """One verdict of many: INVALID if one is, else UNKNOWN if one is, else VALID."""
    verdicts = list(verdicts)
    for validity in (Validity.INVALID, Validity.UNKNOWN):
        found = [verdict for verdict in verdicts if verdict.validity is validity]
        if found:
            names = dict.fromkeys(name for verdict in found for name in verdict.anomalies)
            return Verdict(validity, "\n".join(verdict.explanation for verdict in found), tuple(names))
    return VALID


def completed_ok(operations: Iterable[Operation], kind: str) -> list[Operation]:
    """The ok operations of one kind, by invocation."""
    chosen = [op for op in operations if op.status == "ok" and op.kind == kind]
    return sorted(chosen, key=lambda op: op.invoked)


def indented(operations: Iterable[object]) -> str:
    """One line each, for explanations."""
    return "".join(f"\n    {operation}" for operation in operations)


def save(operations: Iterable[Operation], path: Path) -> None:
    """Write a history as JSON lines, one operation each. Tuples, sets, bytes and dictionaries come back as they were.

    Raises TypeError for values of other types.
    """
    with path.open("w", encoding="utf-8") as file:
        for op in operations:
            row = {name: _to_json(getattr(op, name)) for name in Operation.__slots__}
            file.write(json.dumps(row, allow_nan=False) + "\n")


def load(path: Path) -> tuple[Operation, ...]:
    """The history that ``save`` wrote there."""
    with path.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return tuple(Operation(**{name: _from_json(value) for name, value in row.items()}) for row in rows)


def _to_json(value: Any) -> Any:
    # Every JSON object in the file is a tagged value, so a dictionary of the history cannot be taken for a tag.
    match value:
        case None | bool() | int() | float() | str():
            return value
        case list():
            return [_to_json(each) for each in value]
        case tuple():
            return {"tuple": [_to_json(each) for each in value]}
        case frozenset():
            return {"frozenset": [_to_json(each) for each in sorted(value, key=repr)]}
        case set():
            return {"set": [_to_json(each) for each in sorted(value, key=repr)]}
        case bytes():
            return {"bytes": value.hex()}
        case dict():
            return {"dict": [[_to_json(name), _to_json(each)] for name, each in value.items()]}
        case _:
            raise TypeError(f"a history cannot be saved with a {type(value).__name__} in it: {value!r}")


def _from_json(value: Any) -> Any:
    if isinstance(value, list):
        return [_from_json(each) for each in value]
    if not isinstance(value, dict):
        return value
    ((tag, content),) = value.items()
    if tag == "bytes":
        return bytes.fromhex(content)
    if tag == "dict":
        return {_from_json(name): _from_json(each) for name, each in content}
    kinds: dict[str, Callable[[list[Any]], Any]] = {"tuple": tuple, "set": set, "frozenset": frozenset}
    return kinds[tag]([_from_json(each) for each in content])


_ANOMALIES_SHOWN_MAX = 5
