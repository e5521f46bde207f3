"""What the transactions of a list-append history say by themselves, before any graph: who appended what, which
transactions count, the order of each key's versions, and the lists that no order of appends can give."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field

from onefold.testing.history import Operation
from onefold.testing.models import freeze

Anomaly = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Read:
    """One read of a transaction: what it observed, and the transaction's own appends to the key before it."""

    key: Hashable
    observed: tuple[Hashable, ...]
    own: int


@dataclass(slots=True)
class Transaction:
    """A parsed transaction. ``node`` is its place among the committed ones, or -1."""

    operation: Operation
    reads: list[Read] = field(default_factory=list)
    appends: dict[Hashable, list[Hashable]] = field(default_factory=dict)
    node: int = -1


@dataclass(slots=True)
class Parsed:
    """A whole history. ``orders`` gives the longest list read of each key; keys only appended to have an empty one."""

    committed: list[Transaction]
    writers: dict[tuple[Hashable, Hashable], Transaction]
    orders: dict[Hashable, tuple[Hashable, ...]]

    def writer(self, key: Hashable, element: Hashable) -> Transaction:
        """The transaction that appended the element."""
        return self.writers[key, element]


def parse(operations: Sequence[Operation]) -> Parsed:
    """Read the micro-operations. Raises ValueError for other forms and for an element appended twice."""
    transactions = [_transaction(op) for op in operations]
    writers: dict[tuple[Hashable, Hashable], Transaction] = {}
    for txn in transactions:
        for key, elements in txn.appends.items():
            for element in elements:
                other = writers.setdefault((key, element), txn)
                if other is not txn or elements.count(element) > 1:
                    raise ValueError(
                        f"elements are unique per key, but {element!r} is appended to {key!r} twice"
                    )
    committed = _committed(transactions, writers)
    for node, txn in enumerate(committed):
        txn.node = node
    orders: dict[Hashable, tuple[Hashable, ...]] = {key: () for txn in committed for key in txn.appends}
    for txn in committed:
        for read in txn.reads:
            orders[read.key] = max(orders.get(read.key, ()), read.observed, key=len)
    return Parsed(committed, writers, orders)


def unreadable(parsed: Parsed) -> list[Anomaly]:
    """The anomalies that need no graph; with any of them the order of versions cannot be relied on."""
    found = [problem for txn in parsed.committed for problem in _own_problems(txn, parsed.writers)]
    found += _incompatible(parsed)
    return found or list(_torn(parsed))


def _transaction(op: Operation) -> Transaction:
    txn = Transaction(op)
    for micro in op.value if op.result is None else op.result:
        kind, key, value = micro
        key = freeze(key)
        if kind == "append":
            txn.appends.setdefault(key, []).append(freeze(value))
        elif kind != "r":
            raise ValueError(f"a micro-operation is an append or an r, not {kind!r}: {op}")
        elif value is not None or op.status == "ok":
            # Without an answer a list of None is a list that nobody has told us.
            txn.reads.append(Read(key, tuple(freeze(value or ())), len(txn.appends.get(key, ()))))
    return txn


def _committed(
    transactions: Sequence[Transaction], writers: dict[tuple[Hashable, Hashable], Transaction]
) -> list[Transaction]:
    """The ok transactions, and those of unknown outcome that one of these saw, directly or through others."""
    counted = {id(txn) for txn in transactions if txn.operation.status == "ok"}
    work = [txn for txn in transactions if txn.operation.status == "ok"]
    while work:
        for read in work.pop().reads:
            for element in read.observed:
                writer = writers.get((read.key, element))
                if writer is not None and writer.operation.status == "info" and id(writer) not in counted:
                    counted.add(id(writer))
                    work.append(writer)
    return [txn for txn in transactions if id(txn) in counted]


def _own_problems(
    txn: Transaction, writers: dict[tuple[Hashable, Hashable], Transaction]
) -> Iterator[Anomaly]:
    """What is wrong with the reads of one transaction, whatever the others read."""
    last: dict[Hashable, Read] = {}
    for read in txn.reads:
        key, observed = read.key, read.observed
        if len(set(observed)) < len(observed):
            yield "duplicate", f"a read of {key!r} shows an element twice:\n    {txn.operation}"
        for element in observed:
            writer = writers.get((key, element))
            if writer is None:
                yield (
                    "unwritten",
                    f"{element!r} was read from {key!r} and never appended:\n    {txn.operation}",
                )
            elif writer.operation.status == "fail":
                yield (
                    "G1a",
                    (
                        f"{element!r} was read from {key!r}, but its transaction failed:"
                        f"\n    {writer.operation}\n    {txn.operation}"
                    ),
                )
        writer = writers.get((key, observed[-1])) if observed else None
        if writer is not None and writer is not txn and writer.appends[key][-1] != observed[-1]:
            yield (
                "G1b",
                (
                    f"a read of {key!r} ends in {observed[-1]!r}, in the middle of another transaction:"
                    f"\n    {writer.operation}\n    {txn.operation}"
                ),
            )
        if not _agrees_with_itself(txn, read, last.get(key)):
            yield "internal", f"a read of {key!r} contradicts its own transaction:\n    {txn.operation}"
        last[key] = read


def _agrees_with_itself(txn: Transaction, read: Read, before: Read | None) -> bool:
    """The read is what the transaction read before, if it did, and then its own appends; none of its later ones."""
    own = tuple(txn.appends.get(read.key, ()))
    seen = len(read.observed) - read.own
    if seen < 0 or read.observed[seen:] != own[: read.own]:
        return False
    if before is not None and read.observed[:seen] != before.observed[: len(before.observed) - before.own]:
        return False
    return not set(read.observed[:seen]) & set(own)


def _incompatible(parsed: Parsed) -> Iterator[Anomaly]:
    longest: dict[Hashable, Transaction] = {}
    for txn in parsed.committed:
        for read in txn.reads:
            if read.observed == parsed.orders[read.key]:
                longest.setdefault(read.key, txn)
    for txn in parsed.committed:
        for read in txn.reads:
            if read.observed != parsed.orders[read.key][: len(read.observed)]:
                yield (
                    "incompatible-order",
                    (
                        f"two reads of {read.key!r} cannot belong to one order of its appends:"
                        f"\n    {longest[read.key].operation}\n    {txn.operation}"
                    ),
                )


def _torn(parsed: Parsed) -> Iterator[Anomaly]:
    """Appends of one transaction to one key that are seen in another order, or without those before them."""
    for key, order in parsed.orders.items():
        seen: dict[int, list[Hashable]] = defaultdict(list)
        for element in order:
            seen[parsed.writer(key, element).node].append(element)
        for node, elements in seen.items():
            txn = parsed.committed[node]
            if txn.appends[key][: len(elements)] != elements:
                yield "torn-append", f"of one transaction {key!r} shows {elements!r}:\n    {txn.operation}"
