"""The recorder, and the checkers of single workloads, sessions and prefixes: every planted anomaly is found and named."""

from __future__ import annotations

import pytest

from onefold.testing.history import VALID, History, Operation, Validity, invalid, load, save, unknown, worst
from onefold.testing.session_checks import check_prefix, check_session
from onefold.testing.workload_checks import check_counter, check_long_fork, check_queue, check_set
from support.histories import bank, counter_reads, op, set_reads

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
