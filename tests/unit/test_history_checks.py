"""The recorder, and the checkers of single workloads, sessions and prefixes: planted anomalies, then true systems."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest

from onefold.testing.history import VALID, History, Operation, Validity, invalid, load, save, unknown, worst
from onefold.testing.session_checks import check_prefix, check_session
from onefold.testing.synthetic import schedule
from onefold.testing.workload_checks import check_bank, check_counter, check_long_fork, check_queue, check_set


def op(kind, value=None, result=None, at=0, key=None, status="ok", process=0, until=None):
    """An operation of one time unit from ``at``, or until ``until``."""
    return Operation(process, kind, key, value, result, at, at + 1 if until is None else until, status)


# -- the recorder --------------------------------------------------------------------------------------------------


def test_a_history_records_operations_in_the_order_of_invocation():
    history = History()
    first, second = history.invoke(1, "write", "x", 5), history.invoke(2, "read", "x")
    third = history.invoke(3, "read", "x")
    history.ok(second, 5)
    history.fail(first)
    assert history.operations == (
        Operation(1, "write", "x", 5, None, 0, 4, "fail"),
        Operation(2, "read", "x", None, 5, 1, 3, "ok"),
        Operation(3, "read", "x", None, None, 2, None, "info"),
    )
    assert history.info(third).completed == 5
    assert history.operations[2].end == float("inf")


def test_the_times_come_from_the_clock_it_is_given():
    times = iter([10.5, 11.5])
    history = History(clock=lambda: next(times))
    ended = history.ok(history.invoke(1, "read"))
    assert (ended.invoked, ended.completed) == (10.5, 11.5)


def test_an_operation_ends_once():
    history = History()
    token = history.invoke(1, "read")
    history.ok(token)
    for end in (history.ok, history.fail, history.info):
        with pytest.raises(ValueError, match="already ended"):
            end(token)


def test_impossible_operations_raise():
    with pytest.raises(ValueError, match="before its invocation"):
        Operation(0, "read", None, None, None, 5, 4, "ok")
    with pytest.raises(ValueError, match="needs the time"):
        Operation(0, "read", None, None, None, 5, None, "ok")
    with pytest.raises(ValueError, match="ok, fail or info"):
        Operation(0, "read", None, None, None, 5, 6, "maybe")


def test_only_ok_operations_precede_and_equal_times_do_not():
    later = op("read", at=1)
    assert op("read", at=-1).precedes(later)
    assert not op("read", at=0).precedes(later)
    assert not op("read", at=-1, status="info").precedes(later)


def test_a_saved_history_is_read_back_as_it_was(tmp_path):
    values = [
        None,
        1,
        2.5,
        "x",
        b"\x00\xff",
        [1, [2]],
        (1, (2,)),
        {1, 2},
        frozenset({3}),
        {"tuple": [1]},
        {1: {2: 3}},
    ]
    operations = tuple(op("put", value, value, at=i, key=("k", i)) for i, value in enumerate(values))
    operations += (Operation(1, "put", None, None, None, 0, None, "info"),)
    save(operations, tmp_path / "history.jsonl")
    assert load(tmp_path / "history.jsonl") == operations
    assert [type(each.value) for each in load(tmp_path / "history.jsonl")] == [
        type(each.value) for each in operations
    ]
    with pytest.raises(TypeError, match="object"):
        save([op("put", object())], tmp_path / "other.jsonl")


def test_only_a_valid_verdict_is_true_and_the_worst_of_many_counts():
    bad, open_ = invalid([("lost", "x")]), unknown("y")
    assert VALID and not bad and not open_
    assert worst([]) is VALID and worst([VALID, VALID]) is VALID
    assert worst([VALID, open_]).validity is Validity.UNKNOWN
    assert worst([open_, bad, VALID]).anomalies == ("lost",)
    for verdict in (bad, open_):
        with pytest.raises(AssertionError, match=verdict.validity.value):
            verdict.require()
    VALID.require()


# -- planted anomalies ---------------------------------------------------------------------------------------------


def bank(operations):
    return check_bank(operations, 10, ["a", "b"], overdraft=False)


def counter_reads(operations):
    return check_counter(operations, every_read=True)


def set_reads(operations):
    return check_set(operations, every_read=True)


def plain_queue(operations):
    return check_queue(operations, acks=False)


def prefix(operations):
    return check_prefix(operations, [{"x": 1}, {"x": 2, "y": 2}, {"x": 3}, {"y": None}], monotonic=True)


SEEN_X2 = op("write", 1, 1, key="x", at=0), op("write", 2, 2, key="x", at=2)

PLANTED = [
    (check_set, "lost", [op("add", 1), op("add", 2), op("read", result=[2], at=5)]),
    (check_set, "unexpected", [op("add", 1), op("read", result=[1, 9], at=5)]),
    (check_set, "unexpected", [op("add", 1, status="fail"), op("read", result=[1], at=5)]),
    (check_set, "unexpected", [op("read", result=[1], at=0), op("add", 1, at=5)]),
    (check_set, "duplicate", [op("add", 1), op("read", result=[1, 1], at=5)]),
    (set_reads, "lost", [op("add", 1), op("read", result=[], at=3), op("read", result=[1], at=5)]),
    (bank, "wrong-total", [op("read", result={"a": 4, "b": 5})]),
    (bank, "wrong-accounts", [op("read", result={"a": 10})]),
    (bank, "wrong-accounts", [op("read", result={"a": 5, "b": 5, "c": 0})]),
    (bank, "negative-balance", [op("read", result={"a": -1, "b": 11})]),
    (check_counter, "wrong-sum", [op("add", 5), op("read", result=4, at=5)]),
    (check_counter, "wrong-sum", [op("add", 5), op("add", 3, status="fail"), op("read", result=8, at=5)]),
    (check_counter, "wrong-sum", [op("add", 5), op("add", 3, status="info"), op("read", result=11, at=5)]),
    # Between the bounds 5 and 10, and still no sum of 5 and some of {2, 3}.
    (
        check_counter,
        "wrong-sum",
        [op("add", 5), op("add", 2, status="info"), op("add", 3, status="info"), op("read", result=9, at=5)],
    ),
    (counter_reads, "wrong-sum", [op("add", 5), op("read", result=0, at=3), op("read", result=5, at=5)]),
    (counter_reads, "wrong-sum", [op("read", result=5), op("add", 5, at=3), op("read", result=5, at=5)]),
    (check_queue, "lost", [op("put", 1), op("put", 2), op("get", result=1, at=2), op("ack", 1, at=4)]),
    (check_queue, "lost", [op("put", 1), op("get", result=1, at=2)]),
    (check_queue, "lost", [op("put", 1), op("get", result=1, at=2), op("ack", 1, False, at=4)]),
    (check_queue, "unexpected", [op("get", result=1, at=2), op("ack", 1, at=4)]),
    (check_queue, "unexpected", [op("put", 1, status="fail"), op("get", result=1, at=2), op("ack", 1, at=4)]),
    (check_queue, "unexpected", [op("get", result=1), op("put", 1, at=4), op("ack", 1, at=6)]),
    (
        check_queue,
        "unexpected",
        [op("put", 1), op("get", result=1, at=2), op("ack", 1, at=4), op("ack", 7, at=6)],
    ),
    (
        check_queue,
        "redelivered",
        [op("put", 1), op("get", result=1, at=2), op("ack", 1, at=4), op("get", result=1, at=6)],
    ),
    (
        check_queue,
        "duplicate",
        [op("put", 1), op("get", result=1, at=2), op("ack", 1, at=4), op("ack", 1, at=6)],
    ),
    (plain_queue, "lost", [op("put", 1), op("put", 2), op("get", result=1, at=2)]),
    (
        plain_queue,
        "lost",
        [op("put", 1), op("put", 2), op("put", 3), op("get", result=1, at=2), op("get", status="info", at=4)],
    ),
    (plain_queue, "duplicate", [op("put", 1), op("get", result=1, at=2), op("get", result=1, at=4)]),
    (
        check_long_fork,
        "long-fork",
        [
            op("write", 1, key="x"),
            op("write", 1, key="y"),
            op("read", result={"x": 1, "y": None}),
            op("read", result={"x": None, "y": 1}),
        ],
    ),
    (check_long_fork, "unexpected", [op("write", 1, key="x"), op("read", result={"x": 2})]),
    (
        check_session,
        "read-your-writes",
        [op("write", 1, 1, key="x"), op("read", result=(None, 0), key="x", at=2)],
    ),
    (
        check_session,
        "monotonic-reads",
        [
            *SEEN_X2,
            op("read", result=(2, 2), key="x", at=5, process=1),
            op("read", result=(1, 1), key="x", at=7, process=1),
        ],
    ),
    (
        check_session,
        "monotonic-writes",
        [
            op("write", 1, 5, key="x"),
            op("write", 1, 4, key="y", at=2),
            op("read", key="z", result=(None, 0), at=4),
        ],
    ),
    (
        check_session,
        "monotonic-writes",
        [
            op("write", 1, 1, key="x"),
            op("write", 1, 2, key="y", at=2),
            op("read", result=(1, 2), key="y", at=5, process=1),
            op("read", result=(None, 0), key="x", at=7, process=1),
        ],
    ),
    (
        check_session,
        "writes-follow-reads",
        [
            op("write", 1, 5, key="x"),
            op("read", result=(1, 5), key="x", at=2, process=1),
            op("write", 2, 4, key="x", at=4, process=1),
        ],
    ),
    (
        check_session,
        "writes-follow-reads",
        [
            op("write", 1, 1, key="x"),
            op("read", result=(1, 1), key="x", at=2, process=1),
            op("write", 1, 2, key="y", at=4, process=1),
            op("read", result=(1, 2), key="y", at=6, process=2),
            op("read", result=(None, 0), key="x", at=8, process=2),
        ],
    ),
    # The same through a write whose client never learned its outcome.
    (
        check_session,
        "writes-follow-reads",
        [
            op("write", 1, 1, key="x"),
            op("read", result=(1, 1), key="x", at=2, process=1),
            op("write", 1, None, key="y", at=4, process=1, status="info"),
            op("read", result=(1, 2), key="y", at=6, process=2),
            op("read", result=(None, 0), key="x", at=8, process=2),
        ],
    ),
    # A write of unknown outcome that took effect before what its session had read.
    (
        check_session,
        "writes-follow-reads",
        [
            op("write", 1, 5, key="x"),
            op("read", result=(1, 5), key="x", at=2, process=1),
            op("write", 2, key="x", at=4, process=1, status="info"),
            op("read", result=(2, 4), key="x", at=6, process=2),
        ],
    ),
    # What a write depends on does not make its reader forget that it knows more.
    (
        check_session,
        "monotonic-reads",
        [
            op("write", 1, 1, key="x"),
            op("write", 1, 2, key="y", at=2),
            op("write", 2, 3, key="x", at=4),
            op("write", 3, 4, key="x", at=6),
            op("read", result=(3, 4), key="x", at=8, process=1),
            op("read", result=(1, 2), key="y", at=10, process=1),
            op("read", result=(2, 3), key="x", at=12, process=1),
        ],
    ),
    (check_session, "unwritten", [op("read", result=(9, 1), key="x")]),
    (
        check_session,
        "unwritten",
        [op("read", result=(9, 1), key="x"), op("write", 9, 1, key="x", at=4, process=1)],
    ),
    (
        check_session,
        "unwritten",
        [op("write", 9, key="x", status="fail"), op("read", result=(9, 1), key="x", at=2)],
    ),
    (check_session, "wrong-version", [op("write", 9, 1, key="x"), op("read", result=(9, 2), key="x", at=2)]),
    (
        check_session,
        "causal-cycle",
        [
            op("read", result=(1, 1), key="x", process=1, until=9),
            op("write", 1, 2, key="y", at=10, process=1),
            op("read", result=(1, 2), key="y", process=2, until=9),
            op("write", 1, 1, key="x", at=10, process=2),
        ],
    ),
    (prefix, "not-a-prefix", [op("read", result={"x": 2, "y": None})]),
    (prefix, "not-a-prefix", [op("read", result={"x": 1, "y": 2})]),
    (prefix, "not-a-prefix", [op("read", result={"x": 4})]),
    (prefix, "not-a-prefix", [op("read", result={"z": 1})]),
    (prefix, "monotonic-reads", [op("read", result={"x": 3}), op("read", result={"x": 2}, at=2)]),
    (
        prefix,
        "monotonic-reads",
        [
            op("read", result={"x": 1}),
            op("read", result={"y": None}, at=2),
            op("read", result={"x": None}, at=4),
        ],
    ),
]


@pytest.mark.parametrize(
    ("check", "name", "operations"),
    [pytest.param(*case, id=f"{case[0].__name__}-{case[1]}-{i}") for i, case in enumerate(PLANTED)],
)
def test_a_planted_anomaly_is_found_and_named(check, name, operations):
    verdict = check(operations)
    assert verdict.validity is Validity.INVALID
    assert name in verdict.anomalies, verdict
    assert (
        "process 0" in verdict.explanation
        or "process 1" in verdict.explanation
        or "process 2" in verdict.explanation
    )


UNKNOWN = [
    (check_set, [op("add", 1)]),
    (check_set, [op("add", 1), op("read", result=[1], at=2), op("add", 2, at=5)]),
    (bank, [op("read", status="info")]),
    (check_counter, [op("add", 1)]),
    (check_counter, [op("read", result=0), op("add", 1, at=2)]),
    (check_counter, [*(op("add", 3**i, status="info") for i in range(25)), op("read", result=2, at=5)]),
    (check_queue, [op("put", 1)]),
    (lambda operations: check_queue(operations, drained=False), [op("put", 1), op("get", result=1, at=2)]),
    (check_long_fork, [op("write", 1, key="x"), op("read", result={"x": 1})]),
    (check_session, [op("write", 1, 1, key="x")]),
    (prefix, []),
]


@pytest.mark.parametrize(("check", "operations"), UNKNOWN)
def test_a_history_that_shows_too_little_is_unknown(check, operations):
    assert check(operations).validity is Validity.UNKNOWN


CORRECT = [
    (check_set, [op("add", 1), op("add", 2, status="info"), op("read", result=[2, 1], at=5)]),
    (check_set, [op("add", 1), op("read", result=[], at=1), op("read", result=[1], at=5)]),
    (check_set, [op("add", 1, status="fail"), op("add", 1, at=2), op("read", result=[1], at=5)]),
    (check_counter, [op("add", 5), op("add", -2, status="info"), op("read", result=3, at=5)]),
    (check_queue, [op("put", 1), op("get", result=1, at=2), op("get", result=1, at=4), op("ack", 1, at=6)]),
    (check_queue, [op("put", 1), op("get", result=1, at=2), op("ack", 1, at=4, status="info")]),
    (check_queue, [op("put", 1), op("put", 2, status="info"), op("get", result=1, at=2), op("ack", 1, at=3)]),
    (plain_queue, [op("put", 1), op("put", 2), op("get", result=1, at=2), op("get", at=4, status="info")]),
    (prefix, [op("read", result={"x": 2, "y": 2}), op("read", result={"y": None}, at=3)]),
    (prefix, [op("read", result={"x": 3}), op("read", result={"x": 1}, at=3, process=1)]),
    # Versions of different keys that cannot be compared are not, if one says so.
    (
        lambda operations: check_session(operations, global_order=False),
        [
            op("write", 1, 5, key="x"),
            op("write", 1, 4, key="y", at=2),
            op("read", key="z", result=(None, 0), at=4),
        ],
    ),
]


@pytest.mark.parametrize(("check", "operations"), CORRECT)
def test_a_correct_history_passes(check, operations):
    verdict = check(operations)
    assert verdict.validity is Validity.VALID, verdict.explanation


def test_workloads_a_checker_cannot_judge_raise():
    with pytest.raises(ValueError, match="put once"):
        check_queue([op("put", 1), op("put", 1, at=3)])
    with pytest.raises(ValueError, match="written once"):
        check_long_fork([op("write", 1, key="x"), op("write", 2, key="x", at=3)])
    with pytest.raises(ValueError, match="unique per key"):
        check_session([op("write", 1, 1, key="x"), op("write", 1, 2, key="x", at=3)])
    with pytest.raises(ValueError, match="overlaps itself"):
        check_session([op("write", 1, 1, key="x", until=5), op("read", result=(1, 1), key="x", at=3)])


# -- histories of true systems -------------------------------------------------------------------------------------


def answered(slot, kind, value, result, key=None):
    result = result if slot.status == "ok" else None
    return Operation(slot.process, kind, key, value, result, slot.invoked, slot.completed, slot.status)


def last_read(operations, result):
    """A read after everything, answered from what took effect."""
    after = 1 + max(max(each.invoked, each.completed or 0) for each in operations) + 1000
    return [*operations, op("read", result=result, at=after)]


@pytest.mark.parametrize("seed", range(40))
def test_a_true_set_and_a_true_counter_pass_and_one_loss_is_found(seed):
    rng = random.Random(seed)
    elements, total, sets, counts = [], 0, [], []
    for number, slot in enumerate(schedule(rng, 100)):
        if rng.random() < 0.2:
            sets.append(answered(slot, "read", None, list(elements)))
            counts.append(answered(slot, "read", None, total))
            continue
        amount = rng.randint(-5, 5)
        if slot.effect is not None:
            elements.append(number)
            total += amount
        sets.append(answered(slot, "add", number, None))
        counts.append(answered(slot, "add", amount, None))
    assert set_reads(last_read(sets, elements)) and check_set(last_read(sets, elements))
    assert counter_reads(last_read(counts, total)) and check_counter(last_read(counts, total))
    acknowledged = rng.choice([each.value for each in sets if each.kind == "add" and each.status == "ok"])
    assert check_set(last_read(sets, [each for each in elements if each != acknowledged])).anomalies == (
        "lost",
    )
    assert check_counter(last_read(counts, total + 1000)).anomalies == ("wrong-sum",)


def test_the_counter_agrees_with_trying_every_subset():
    verdicts = {True: 0, False: 0}
    for seed in range(300):
        rng = random.Random(seed)
        sure, maybe = rng.choices(range(-4, 9), k=3), rng.choices([-6, -3, 2, 5, 7], k=rng.randint(0, 4))
        result = rng.randint(-10, 30)
        operations = [*(op("add", n) for n in sure), *(op("add", n, status="info") for n in maybe)]
        subsets = itertools.chain.from_iterable(
            itertools.combinations(maybe, n) for n in range(len(maybe) + 1)
        )
        expected = any(sum(sure) + sum(subset) == result for subset in subsets)
        assert bool(check_counter([*operations, op("read", result=result, at=9)])) is expected, f"seed {seed}"
        verdicts[expected] += 1
    assert min(verdicts.values()) >= 20, verdicts


@pytest.mark.parametrize("seed", range(40))
def test_a_true_bank_passes_and_a_torn_transfer_is_found(seed):
    rng = random.Random(seed)
    balances = {"a": 4, "b": 6}
    operations = []
    for slot in schedule(rng, 100):
        if rng.random() < 0.5:
            operations.append(answered(slot, "read", None, dict(balances)))
            continue
        amount = rng.randint(0, balances["a"]) if rng.random() < 0.5 else -rng.randint(0, balances["b"])
        if slot.effect is not None:
            balances["a"] -= amount
            balances["b"] += amount
        operations.append(answered(slot, "transfer", amount, None))
    assert bank(operations)
    torn = rng.choice([i for i, each in enumerate(operations) if each.kind == "read" and each.status == "ok"])
    seen = operations[torn].result
    operations[torn] = replace(operations[torn], result={**seen, "a": seen["a"] + 1})
    assert bank(operations).anomalies == ("wrong-total",)


@pytest.mark.parametrize("seed", range(40))
def test_a_true_queue_passes_and_a_dropped_or_repeated_message_is_found(seed):
    rng = random.Random(seed)
    waiting, leased, operations = [], [], []
    slots = schedule(rng, 120)
    for number, slot in enumerate(slots):
        kind = rng.choice(["put", "put", "get", "ack", "expire"])
        if kind == "expire" and leased:
            waiting.append(leased.pop(rng.randrange(len(leased))))
        elif kind == "put":
            operations.append(answered(slot, "put", number, None))
            if slot.effect is not None:
                waiting.append(number)
        elif kind == "get":
            element = waiting.pop(0) if waiting and slot.effect is not None else None
            operations.append(answered(slot, "get", None, element))
            if element is not None:
                leased.append(element)
        elif kind == "ack" and leased:
            element = rng.choice(leased)
            operations.append(answered(slot, "ack", element, True))
            if slot.effect is not None:
                leased.remove(element)
    at = 10_000
    for element in [*waiting, *leased]:
        operations += [op("get", result=element, at=at), op("ack", element, True, at=at + 2)]
        at += 5
    verdict = check_queue(operations)
    assert verdict, verdict.explanation
    put = rng.choice([each.value for each in operations if each.kind == "put" and each.status == "ok"])
    assert (
        "lost"
        in check_queue(
            [each for each in operations if each.kind == "put" or put not in (each.value, each.result)]
        ).anomalies
    )
    done = rng.choice([each.value for each in operations if each.kind == "ack" and each.status == "ok"])
    assert "redelivered" in check_queue([*operations, op("get", result=done, at=at)]).anomalies


def replicas(rng, *, guard):
    """Sessions over replicas that lag behind a log; with ``guard`` a session waits for what it has seen."""
    log, seen, operations = [], {}, []
    for number, slot in enumerate(schedule(rng, 60, processes=4)):
        key = rng.choice("xy")
        if rng.random() < 0.4:
            version = None
            if slot.effect is not None:
                log.append((key, number))
                version = len(log)
            operations.append(answered(slot, "write", number, version, key))
            if slot.status == "ok":
                seen[slot.process] = version
        else:
            floor = seen.get(slot.process, 0) if guard else 0
            applied = rng.randint(floor, len(log))
            past = [(value, at) for at, (name, value) in enumerate(log[:applied], 1) if name == key]
            operations.append(answered(slot, "read", None, past[-1] if past else (None, 0), key))
            if slot.status == "ok":
                seen[slot.process] = max(applied, seen.get(slot.process, 0))
    return operations, log


@pytest.mark.parametrize("seed", range(60))
def test_sessions_that_wait_for_what_they_saw_pass(seed):
    operations, _ = replicas(random.Random(seed), guard=True)
    verdict = check_session(operations)
    assert verdict, verdict.explanation


def test_sessions_that_ignore_their_token_break_every_read_guarantee():
    broken = set()
    invalid_count = 0
    for seed in range(100):
        operations, _ = replicas(random.Random(seed), guard=False)
        verdict = check_session(operations)
        broken.update(verdict.anomalies)
        invalid_count += verdict.validity is Validity.INVALID
    assert invalid_count >= 90
    assert broken == {"read-your-writes", "monotonic-reads", "monotonic-writes", "writes-follow-reads"}


@pytest.mark.parametrize("seed", range(40))
def test_prefix_reads_pass_and_agree_with_trying_every_prefix(seed):
    rng = random.Random(seed)
    order = [
        {key: rng.choice([None, 1, 2]) for key in rng.sample("xyz", rng.randint(1, 3))} for _ in range(8)
    ]
    states = [dict.fromkeys("xyz")]
    for record in order:
        states.append({**states[-1], **record})
    at = sorted(rng.choices(range(9), k=6))
    reads = [
        op("read", result={key: states[i][key] for key in rng.sample("xyz", 2)}, at=2 * n)
        for n, i in enumerate(at)
    ]
    assert check_prefix(reads, order, monotonic=True)
    for n in range(30):
        result = {key: rng.choice([None, 1, 2]) for key in rng.sample("xyz", 2)}
        expected = any(all(state[key] == value for key, value in result.items()) for state in states)
        assert bool(check_prefix([op("read", result=result)], order)) is expected
        pair = [op("read", result=result), replace(rng.choice(reads), invoked=5, completed=6)]
        fits = [
            [i for i, state in enumerate(states) if each.result.items() <= state.items()] for each in pair
        ]
        grows = any(i <= j for i in fits[0] for j in fits[1])
        assert bool(check_prefix(pair, order, monotonic=True)) is grows, n


def test_a_long_fork_is_judged_like_every_pair_of_reads():
    verdicts = {True: 0, False: 0}
    for seed in range(300):
        rng = random.Random(seed)
        writes = [op("write", 1, key=key) for key in "wxyz"]
        reads = [op("read", result={key: rng.choice([None, 1, 1]) for key in "wxyz"}) for _ in range(3)]
        seen = [{key for key, value in each.result.items() if value} for each in reads]
        expected = all(a <= b or b <= a for a, b in itertools.combinations(seen, 2))
        assert bool(check_long_fork([*writes, *reads])) is expected
        verdicts[expected] += 1
    assert min(verdicts.values()) >= 20, verdicts
