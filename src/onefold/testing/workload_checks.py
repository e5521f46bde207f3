"""Checkers of single workloads, each in linear time or nearly: set, bank, counter, queue, long fork.

Each says which kinds of operations it reads; others are ignored. A history that shows nothing is UNKNOWN.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any

from onefold.arguments import check_flag
from onefold.testing.history import Operation, Verdict, completed_ok, indented, invalid, unknown
from onefold.testing.models import freeze

_SUMS_MAX = 1_000_000

Anomaly = tuple[str, str]


def check_set(operations: Sequence[Operation], *, every_read: bool = False) -> Verdict:
    """``add`` element; ``read`` -> all elements. Acknowledged elements must be in the last read, and none that was not
    added by then, or whose add failed; no element twice.

    The last read must be invoked after the last acknowledged add, or the verdict is UNKNOWN at best. With
    ``every_read`` every read must have what was acknowledged before it was invoked (a linearizable set's reads do).
    """
    check_flag("every_read", every_read)
    reads = completed_ok(operations, "read")
    if not reads:
        return unknown("the set was never read")
    adds: dict[Hashable, list[Operation]] = defaultdict(list)
    for op in operations:
        if op.kind == "add":
            adds[freeze(op.value)].append(op)
    problems = [
        problem for read in (reads if every_read else reads[-1:]) for problem in _set_problems(read, adds)
    ]
    return invalid(problems) if problems else _unless_early(reads[-1], completed_ok(operations, "add"))


def _set_problems(read: Operation, adds: dict[Hashable, list[Operation]]) -> Iterator[Anomaly]:
    seen = Counter(freeze(element) for element in read.result)
    for element, times in seen.items():
        if times > 1:
            yield "duplicate", f"{element!r} is {times} times in\n    {read}"
        if not any(op.status != "fail" and not read.precedes(op) for op in adds.get(element, ())):
            yield (
                "unexpected",
                f"{element!r} had not been added when it was read:{indented(adds.get(element, ()))}\n    {read}",
            )
    for element, attempts in adds.items():
        done = [op for op in attempts if op.precedes(read)]
        if done and element not in seen:
            yield "lost", f"{element!r} is missing:\n    {done[0]}\n    {read}"


def check_bank(
    operations: Sequence[Operation], total: int, accounts: Iterable[Hashable], *, overdraft: bool = True
) -> Verdict:
    """``read`` -> {account: balance}. Every read shows every account, and the balances sum to the total.

    Without ``overdraft`` no balance may be negative.
    """
    check_flag("overdraft", overdraft)
    reads = completed_ok(operations, "read")
    if not reads:
        return unknown("the accounts were never read")
    expected = set(accounts)
    problems: list[Anomaly] = []
    for read in reads:
        balances: dict[Hashable, int] = read.result
        if set(balances) != expected:
            problems.append(("wrong-accounts", f"not the accounts of the bank:\n    {read}"))
        elif sum(balances.values()) != total:
            problems.append(("wrong-total", f"{sum(balances.values())} in all, not {total}:\n    {read}"))
        elif not overdraft and min(balances.values(), default=0) < 0:
            problems.append(("negative-balance", f"a balance is negative:\n    {read}"))
    return invalid(problems)


def check_counter(operations: Sequence[Operation], *, initial: int = 0, every_read: bool = False) -> Verdict:
    """``add`` amount; ``read`` -> value. The last read is exactly the acknowledged sum, plus some of the unknown adds.

    The last read must be invoked after the last acknowledged add, or the verdict is UNKNOWN at best. With
    ``every_read`` every read must be the sum of all adds acknowledged before it and some of those not yet completed.
    """
    check_flag("every_read", every_read)
    reads = completed_ok(operations, "read")
    if not reads:
        return unknown("the counter was never read")
    adds = [op for op in operations if op.kind == "add" and op.status != "fail"]
    problems: list[Anomaly] = []
    undecided = 0
    for read in reads if every_read else reads[-1:]:
        acknowledged = initial + sum(op.value for op in adds if op.precedes(read))
        possible = [op for op in adds if not op.precedes(read) and not read.precedes(op)]
        reachable = _is_some_sum([op.value for op in possible], read.result - acknowledged)
        undecided += reachable is None
        if reachable is False:
            problems.append(
                (
                    "wrong-sum",
                    f"{acknowledged} was acknowledged; with any of the {len(possible)} adds that may or may not count,"
                    f" {read.result} is not a possible sum:{indented(possible[:10])}\n    {read}",
                )
            )
    if undecided and not problems:
        return unknown(f"{undecided} reads have too many adds of unknown outcome to try all sums")
    return invalid(problems) if problems else _unless_early(reads[-1], completed_ok(operations, "add"))


def _is_some_sum(amounts: Sequence[int], wanted: int) -> bool | None:
    """Whether some of the amounts sum to this; None if there are too many sums to tell."""
    lowest = sum(amount for amount in amounts if amount < 0)
    highest = sum(amount for amount in amounts if amount > 0)
    if not lowest <= wanted <= highest:
        return False
    sums = {0}
    for amount in amounts:
        sums |= {each + amount for each in sums}
        if len(sums) > _SUMS_MAX:
            return None
    return wanted in sums


def _unless_early(read: Operation, acknowledged: Sequence[Operation]) -> Verdict:
    """VALID, unless the last read came too early to judge every acknowledged operation."""
    later = [op for op in acknowledged if not op.precedes(read)]
    if later:
        return unknown(
            f"there is no read after these were acknowledged:{indented(later[:5])}\n  the last is\n    {read}"
        )
    return invalid([])


def check_queue(operations: Sequence[Operation], *, acks: bool = True, drained: bool = True) -> Verdict:
    """``put`` element (unique); ``get`` -> element, or None if the queue is empty; ``ack`` element -> None or True, or
    False if refused. Jepsen's total queue, for a queue whose messages may be delivered again until acknowledged.

    Nothing is delivered that was not put; after an acknowledgement an element is neither delivered nor acknowledged
    again; every put element is acknowledged in the end. Without ``acks`` a get is its own acknowledgement; then each
    get of unknown outcome may have taken one element. ``drained`` says that the clients got until nothing was left;
    if they did not, missing elements make the verdict UNKNOWN.
    """
    check_flag("acks", acks)
    check_flag("drained", drained)
    puts: dict[Hashable, Operation] = {}
    gets: dict[Hashable, list[Operation]] = defaultdict(list)
    acked: dict[Hashable, list[Operation]] = defaultdict(list)
    maybe_acked: set[Hashable] = set()
    excused = 0
    for op in sorted(operations, key=lambda op: op.invoked):
        if op.kind == "put":
            if puts.setdefault(freeze(op.value), op) is not op:
                raise ValueError(f"elements are put once, but {op.value!r} is put again: {op}")
        elif op.kind == "get" and op.status == "ok" and op.result is not None:
            gets[freeze(op.result)].append(op)
        elif op.kind == "get" and op.status == "info":
            excused += not acks
        elif op.kind == "ack" and op.status == "ok" and op.result is not False:
            acked[freeze(op.value)].append(op)
        elif op.kind == "ack" and op.status == "info":
            maybe_acked.add(freeze(op.value))
    if not gets:
        return unknown("nothing was taken from the queue")
    problems = [*_unexpected(puts, gets), *_unexpected(puts, acked)]
    problems += _repeated(gets, acked) if acks else _repeated(gets, gets)
    taken = (acked.keys() | maybe_acked) if acks else gets.keys()
    missing = [op for element, op in puts.items() if op.status == "ok" and element not in taken]
    if len(missing) > excused and drained:
        problems.append(("lost", f"{len(missing)} elements, {excused} excused:{indented(missing[:10])}"))
    if missing and not problems and not drained:
        return unknown(f"the queue was not drained, and {len(missing)} elements are still missing")
    return invalid(problems)


def _unexpected(puts: dict[Hashable, Operation], gets: dict[Hashable, list[Operation]]) -> Iterator[Anomaly]:
    for element, deliveries in gets.items():
        put = puts.get(element)
        for get in deliveries:
            if put is None or put.status == "fail" or get.precedes(put):
                yield (
                    "unexpected",
                    f"{element!r} had not been put:{indented([put] if put else [])}\n    {get}",
                )


def _repeated(gets: dict[Hashable, list[Operation]], acked: dict[Hashable, list[Operation]]) -> list[Anomaly]:
    problems: list[Anomaly] = []
    for element, acknowledgements in acked.items():
        if len(acknowledgements) > 1:
            problems.append(
                (
                    "duplicate",
                    f"{element!r} was taken permanently more than once:{indented(acknowledgements)}",
                )
            )
            continue
        again = [get for get in gets.get(element, ()) if acknowledgements[0].precedes(get)]
        if again:
            shown = indented([acknowledgements[0], *again])
            problems.append(
                ("redelivered", f"{element!r} was delivered again after its acknowledgement:{shown}")
            )
    return problems


def check_long_fork(operations: Sequence[Operation]) -> Verdict:
    """``write`` key value, each key at most once; ``read`` -> {key: value or None} of several keys.

    Two reads of the same keys fork if each saw a write that the other lacks: no order of the writes explains both.
    Parallel snapshot isolation allows it, (strict) serializability and snapshot isolation do not. Reads of different
    sets of keys are not compared. Raises ValueError if a key is written twice.
    """
    written: dict[Hashable, Operation] = {}
    for op in operations:
        if op.kind == "write" and written.setdefault(freeze(op.key), op) is not op:
            raise ValueError(f"keys are written once, but {op.key!r} is written again: {op}")
    problems: list[Anomaly] = []
    groups: dict[Hashable, list[tuple[frozenset[Hashable], Operation]]] = defaultdict(list)
    for read in completed_ok(operations, "read"):
        found: dict[Any, Any] = {freeze(key): value for key, value in read.result.items()}
        seen = frozenset(key for key, value in found.items() if value is not None)
        for key in seen:
            write = written.get(key)
            if write is None or write.status == "fail" or write.value != found[key]:
                problems.append(("unexpected", f"{key!r} shows a value that was not written:\n    {read}"))
        groups[frozenset(found)].append((seen, read))
    if all(len(reads) < 2 for reads in groups.values()):
        return invalid(problems) if problems else unknown("no two reads are of the same keys")
    for reads in groups.values():
        # Sets that grow along a chain are pairwise comparable; a fork breaks the chain at neighbours.
        reads.sort(key=lambda item: len(item[0]))
        for i in range(1, len(reads)):
            if not reads[i - 1][0] <= reads[i][0]:
                fork = indented([reads[i - 1][1], reads[i][1]])
                problems.append(("long-fork", f"each of two reads lacks a write that the other saw:{fork}"))
    return invalid(problems)
