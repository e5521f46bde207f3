"""Checkers of the weaker levels: session guarantees, and reads that show a prefix of a log."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from onefold.arguments import check_flag
from onefold.testing.history import Operation, Verdict, indented, invalid, unknown
from onefold.testing.models import freeze

Anomaly = tuple[str, str]


@dataclass(frozen=True, slots=True)
class _Known:
    """A version of a key that a session depends on, the guarantee that says so, and the operation it is known from."""

    version: int
    guarantee: str
    source: Operation


@dataclass(slots=True)
class _Session:
    """One process on its way through its operations."""

    todo: deque[Operation]
    known: dict[Hashable, _Known] = field(default_factory=dict)


def check_session(operations: Sequence[Operation], *, global_order: bool = True) -> Verdict:
    """Session guarantees of registers: read your writes, monotonic reads, monotonic writes, writes follow reads.

    Inputs: ``write`` key value -> version; ``read`` key -> (value, version), or (None, 0) if nothing is there. Values
    are unique per key. A version is a positive integer, greater for later writes of the key; with ``global_order`` it
    is one order over all keys, such as the offset in a log. A session is what one process did, one operation after the
    other; operations that failed or whose outcome is unknown tell their session nothing, but a read may still show
    what they wrote.

    Each session keeps the versions it depends on: those it wrote, read, and those the writers of what it read depended
    on (all four guarantees together are causal consistency: Brzezinski et al., "From session causality to causal
    consistency", 2004). Reads must not show less, and writes must get greater versions. The anomaly is named by the
    guarantee that was broken; the last two also when a reader sees a write before what that write depends on.
    Raises ValueError if a process overlaps itself or a value is written twice.
    """
    check_flag("global_order", global_order)
    writes = _unique_writes(operations)
    sessions = _sessions(operations)
    if not any(op.kind == "read" for session in sessions for op in session.todo):
        return unknown("no session has read anything")
    problems: list[Anomaly] = []
    # What each write depended on; a read of it waits until its writer has come that far.
    depends: dict[int, dict[Hashable, _Known]] = {}
    unfinished = {id(op) for session in sessions for op in session.todo if op.kind == "write"}
    moved = True
    while moved:
        moved = False
        for session in sessions:
            while session.todo:
                op = session.todo[0]
                write = writes.get((freeze(op.key), freeze(op.result[0]))) if _answered(op, "read") else None
                if write is not None and id(write) in unfinished:
                    break
                session.todo.popleft()
                moved = True
                if _answered(op, "read"):
                    problems += _read(session, op, write, {} if write is None else depends[id(write)])
                elif op.kind == "write":
                    depends[id(op)] = dict(session.known)
                    unfinished.discard(id(op))
                    if op.status == "ok":
                        problems += _written(session, op, global_order)
    blocked = [session.todo[0] for session in sessions if session.todo]
    if blocked:
        problems.append(
            ("causal-cycle", f"each waits for a write that comes after another:{indented(blocked)}")
        )
    return invalid(problems)


def _answered(op: Operation, kind: str) -> bool:
    return op.kind == kind and op.status == "ok"


def _unique_writes(operations: Sequence[Operation]) -> dict[tuple[Hashable, Hashable], Operation]:
    writes: dict[tuple[Hashable, Hashable], Operation] = {}
    for op in operations:
        if op.kind == "write" and writes.setdefault((freeze(op.key), freeze(op.value)), op) is not op:
            raise ValueError(
                f"values are unique per key, but {op.value!r} is written to {op.key!r} again: {op}"
            )
    return writes


def _sessions(operations: Sequence[Operation]) -> list[_Session]:
    by_process: dict[int, list[Operation]] = defaultdict(list)
    for op in sorted(operations, key=lambda op: op.invoked):
        earlier = by_process[op.process]
        if earlier and earlier[-1].completed is not None and earlier[-1].completed > op.invoked:
            raise ValueError(f"process {op.process} overlaps itself:{indented([earlier[-1], op])}")
        earlier.append(op)
    return [
        _Session(deque(op for op in mine if op.kind == "write" or _answered(op, "read")))
        for mine in by_process.values()
    ]


def _read(
    session: _Session, op: Operation, write: Operation | None, depends: Mapping[Hashable, _Known]
) -> list[Anomaly]:
    """Check a read against what its session depends on, then let the session depend on what was read."""
    value, version = op.result
    key = freeze(op.key)
    problems: list[Anomaly] = []
    if value is not None and (write is None or write.status == "fail" or op.precedes(write)):
        problems.append(
            (
                "unwritten",
                f"a value was read that nobody wrote:{indented([write] if write else [])}\n    {op}",
            )
        )
    elif write is not None and write.status == "ok" and write.result != version:
        problems.append(("wrong-version", f"a value was read with another version:\n    {write}\n    {op}"))
    known = session.known.get(key)
    if known is not None and version < known.version:
        shown = indented([known.source, op])
        problems.append(
            (known.guarantee, f"version {known.version} of {key!r} was known, {version} was read:{shown}")
        )
    for other, need in depends.items():
        # What the writer wrote itself comes first by monotonic writes, what it had read by writes-follow-reads.
        through = _between_writes(need)
        if other == key and version < need.version:
            problems.append((through, f"a write came before one it depends on:{indented([need.source, op])}"))
        _learn(session, other, _Known(need.version, through, need.source))
    _learn(session, key, _Known(version, "monotonic-reads", op))
    return problems


def _written(session: _Session, op: Operation, global_order: bool) -> list[Anomaly]:
    """Check the version a write got against what its session depends on, then let the session depend on the write."""
    key = freeze(op.key)
    problems: list[Anomaly] = []
    for other, known in session.known.items():
        if (global_order or other == key) and op.result <= known.version:
            own = known.guarantee in {"read-your-writes", "monotonic-writes"}
            name = "monotonic-writes" if own else "writes-follow-reads"
            shown = indented([known.source, op])
            problems.append(
                (name, f"a write got version {op.result}, but the session knew {known.version}:{shown}")
            )
    _learn(session, key, _Known(op.result, "read-your-writes", op))
    return problems


def _between_writes(known: _Known) -> str:
    """The guarantee that puts a write of the session after what it knows."""
    own = known.guarantee in {"read-your-writes", "monotonic-writes"}
    return "monotonic-writes" if own else "writes-follow-reads"


def _learn(session: _Session, key: Hashable, known: _Known) -> None:
    before = session.known.get(key)
    if before is None or known.version > before.version:
        session.known[key] = known


def check_prefix(
    reads: Sequence[Operation],
    order: Sequence[Mapping[Any, Any]],
    *,
    initial: Mapping[Any, Any] | None = None,
    monotonic: bool = False,
) -> Verdict:
    """Every read of several keys shows the state after some prefix of the order, in whole records.

    Inputs: ``read`` -> {key: value, or None if absent}; ``order`` are the records in their total order, each a mapping
    of the keys it wrote to their values (None deletes), on top of ``initial``. With ``monotonic`` the prefixes of one
    process must also be able to grow with its reads. Other operations are ignored.
    """
    check_flag("monotonic", monotonic)
    answered = sorted((op for op in reads if _answered(op, "read")), key=lambda op: op.invoked)
    if not answered:
        return unknown("there is no read to check")
    spans = _spans(order, {} if initial is None else initial)
    floors: dict[int, int] = {}
    problems: list[Anomaly] = []
    for op in answered:
        fitting = _prefixes(op.result, spans, len(order))
        if not fitting:
            problems.append(("not-a-prefix", f"no prefix of the {len(order)} records gives\n    {op}"))
            continue
        # The shortest prefix that fits leaves the most room for the reads after it.
        floor = floors.get(op.process, 0)
        later = [max(first, floor) for first, last in fitting if last >= floor]
        if later:
            floors[op.process] = min(later)
        elif monotonic:
            seen = f"an earlier read of the process needs {floor} records, this at most {fitting[-1][1]}"
            problems.append(("monotonic-reads", f"{seen}:\n    {op}"))
    return invalid(problems)


_Span = tuple[int, int]


def _spans(
    order: Sequence[Mapping[Any, Any]], initial: Mapping[Any, Any]
) -> dict[Hashable, dict[Hashable, list[_Span]]]:
    """For each key and each of its values the lengths of the prefixes that give it, as ascending spans (first, last)."""
    changes: dict[Hashable, list[tuple[int, Any]]] = defaultdict(list)
    for key, value in initial.items():
        changes[freeze(key)].append((0, freeze(value)))
    for length, record in enumerate(order, 1):
        for key, value in record.items():
            name = freeze(key)
            if name not in changes:
                changes[name].append((0, None))
            changes[name].append((length, freeze(value)))
    spans: dict[Hashable, dict[Hashable, list[_Span]]] = {}
    for name, values in changes.items():
        ends = [first - 1 for first, _ in values[1:]] + [len(order)]
        by_value = spans[name] = defaultdict(list)
        for (first, each), last in zip(values, ends, strict=True):
            by_value[each].append((first, last))
    return spans


def _prefixes(
    observed: Mapping[Any, Any], spans: Mapping[Hashable, Mapping[Hashable, list[_Span]]], records: int
) -> list[_Span]:
    """The lengths of the prefixes that give what was observed, as ascending spans."""
    whole = [(0, records)]
    fitting: list[_Span] = whole
    for key, value in observed.items():
        of_key = spans.get(freeze(key), {None: whole})
        fitting = [
            (max(first, a), min(last, b))
            for first, last in fitting
            for a, b in of_key.get(freeze(value), ())
            if max(first, a) <= min(last, b)
        ]
    return fitting
