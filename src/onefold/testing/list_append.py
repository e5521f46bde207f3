"""Are transactions of list appends and reads serializable, and in real-time order?

The method is Elle's (Kingsbury & Alvaro, "Elle: inferring isolation anomalies from experimental observations", VLDB
2020). Every append adds an element that is unique under its key, so one read shows the whole past of its key: the
longest read gives the order of the versions, and with it which transaction must come before which. A cycle of such
edges cannot be explained by any order. Anomalies carry the names of Adya's thesis (1999) and of Elle:

- G1a, aborted read; G1b, intermediate read; "internal": a transaction contradicts itself;
- "unwritten", "duplicate", "incompatible-order", "torn-append": lists that no order of appends gives;
- cycles: G0 (only ww edges: an append after an append), G1c (also wr: a read of an append), G-single (exactly one rw
  edge: a read that lacks an append), G2 (several), each with "-realtime" if it needs the order of real time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from onefold.arguments import check_flag
from onefold.testing.cycles import Graph, Step, find_cycle
from onefold.testing.history import Operation, Verdict, invalid, unknown
from onefold.testing.list_append_reads import Parsed, Transaction, parse, unreadable

Level = Literal["strict-serializable", "serializable", "read-committed"]

_WRITES = frozenset({"ww"})
_READS = frozenset({"ww", "wr"})
_ALL = frozenset({"ww", "wr", "rw"})
_REALTIME = frozenset({"realtime"})

# Each class is looked for after those before it were not found, so a cycle found has every edge its name demands.
_Class = tuple[str, frozenset[str], str | None]
_PLAIN: tuple[_Class, ...] = (
    ("G0", _WRITES, None),
    ("G1c", _READS, None),
    ("G-single", _READS, "rw"),
    ("G2", _ALL, None),
)
_CLASSES: dict[str, tuple[_Class, ...]] = {
    "read-committed": _PLAIN[:2],
    "serializable": _PLAIN,
    "strict-serializable": _PLAIN
    + tuple((f"{name}-realtime", kinds | _REALTIME, once) for name, kinds, once in _PLAIN),
}


def check_list_append(transactions: Sequence[Operation], *, realtime: bool = True) -> Verdict:
    """Whether the transactions are strictly serializable, or without ``realtime`` serializable.

    Inputs: ``value`` of each operation is its list of micro-operations, ``("append", key, element)`` and
    ``("r", key, None)``; ``result`` of an ok one is the same list with the lists read in place of None (an absent
    list may be None or empty). A result of None means that ``value`` itself carries what was read.
    Elements are unique per key. A transaction of unknown outcome counts iff something it appended was seen by one
    that counts. A history in which nothing was read is UNKNOWN.
    Raises ValueError for micro-operations of other forms and elements appended twice.
    """
    check_flag("realtime", realtime)
    return check_weak(transactions, level="strict-serializable" if realtime else "serializable")


def check_weak(transactions: Sequence[Operation], *, level: Level = "strict-serializable") -> Verdict:
    """As check_list_append, for a level: "serializable" allows stale orders, "read-committed" also lost updates.

    The anomalies that are no cycles (G1a, G1b, internal, impossible lists) count at every level.
    """
    if level not in _CLASSES:
        raise ValueError(f"the level is one of {', '.join(_CLASSES)}, not {level!r}")
    parsed = parse(transactions)
    if not any(txn.reads for txn in parsed.committed):
        return unknown("no committed transaction has read anything: nothing could be checked")
    problems = unreadable(parsed)
    if problems:
        return invalid(problems)
    graph = Graph(len(parsed.committed))
    for key in parsed.orders:
        _add_key(graph, parsed, key)
    if level == "strict-serializable":
        _add_real_time(graph, parsed.committed)
    for name, kinds, once in _CLASSES[level]:
        cycle = find_cycle(graph, kinds, once)
        if cycle is not None:
            return invalid([(name, _in_words(parsed.committed, cycle))])
    return invalid([])


def _add_key(graph: Graph, parsed: Parsed, key: object) -> None:
    """The edges that the reads and appends of one key give."""
    order = parsed.orders[key]
    writers = [parsed.writer(key, element).node for element in order]
    for i in range(1, len(order)):
        if writers[i - 1] != writers[i]:
            graph.add(
                writers[i - 1],
                writers[i],
                "ww",
                f"{order[i]!r} was appended to {key!r} right after {order[i - 1]!r}",
            )
    # Elements that nobody has seen come after all that were seen, in an order that nobody knows.
    unseen = sorted({txn.node for txn in parsed.committed if set(txn.appends.get(key, ())) - set(order)})
    before_unseen = _except_itself(graph, unseen)
    if order:
        why = f"its append to {key!r} was seen in the longest read, which lacks an append of the other"
        for target in before_unseen(writers[-1]):
            graph.add(writers[-1], target, "ww", why)
    for reader in parsed.committed:
        for read in reader.reads:
            if read.key != key:
                continue
            # A read of its own appends adds nothing: ww edges say the same.
            seen = len(read.observed)
            if seen and writers[seen - 1] != reader.node:
                graph.add(
                    writers[seen - 1],
                    reader.node,
                    "wr",
                    f"its append of {order[seen - 1]!r} to {key!r} was read",
                )
            if seen == len(order):
                for target in before_unseen(reader.node):
                    graph.add(reader.node, target, "rw", f"it read {key!r} without an append of the other")
            elif writers[seen] != reader.node:
                graph.add(
                    reader.node, writers[seen], "rw", f"it read {key!r} without the other's {order[seen]!r}"
                )


def _except_itself(graph: Graph, nodes: Sequence[int]) -> Callable[[int], list[int]]:
    """A function that gives, for any node, helpers that lead to all these nodes but itself: two chains of helpers,
    one for the nodes up to each place and one for those from there on, instead of an edge for each pair."""
    place = {node: i for i, node in enumerate(nodes)}
    up_to = [graph.helper() for _ in nodes]
    from_on = [graph.helper() for _ in nodes]
    for i, node in enumerate(nodes):
        graph.pass_on(up_to[i], node)
        graph.pass_on(from_on[i], node)
        if i > 0:
            graph.pass_on(up_to[i], up_to[i - 1])
            graph.pass_on(from_on[i - 1], from_on[i])

    def others(node: int) -> list[int]:
        i = place.get(node)
        return from_on[:1] if i is None else up_to[max(i - 1, 0) : i] + from_on[i + 1 : i + 2]

    return others


def _add_real_time(graph: Graph, committed: Sequence[Transaction]) -> None:
    """An edge from every transaction to all that were invoked after it had completed, by a chain of helpers: each
    completion opens a new helper that all before it lead to, and each invocation follows the last helper."""
    events = [(txn.operation.invoked, 0, txn.node) for txn in committed]
    # Equal times are concurrent: invocations go first.
    events += [(txn.operation.end, 1, txn.node) for txn in committed if txn.operation.status == "ok"]
    barrier: int | None = None
    for _, completes, node in sorted(events):
        if completes:
            before, barrier = barrier, graph.helper()
            graph.add(node, barrier, "realtime", "it completed before the other was invoked")
            if before is not None:
                graph.pass_on(before, barrier)
        elif barrier is not None:
            graph.pass_on(barrier, node)


def _in_words(committed: Sequence[Transaction], cycle: Sequence[Step]) -> str:
    names = {step.source: f"T{i + 1}" for i, step in enumerate(cycle)}
    lines = [f"a cycle of {len(cycle)} transactions, each of which must come before the next:"]
    lines += [f"    {names[step.source]} = {committed[step.source].operation}" for step in cycle]
    lines += [
        f"    {names[step.source]} before {names[step.target]} ({step.kind}): {step.why}" for step in cycle
    ]
    return "\n".join(lines)
