"""The linearizability checker on histories by hand: planted anomalies are found, and correct histories pass."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from onefold.testing.history import Validity
from onefold.testing.linearizability import check_linearizable
from onefold.testing.models import (
    counter,
    fifo_queue,
    grow_and_shrink_set,
    mutex,
    nondeterministic,
    register,
    unordered_queue,
)
from support.object_histories import brute_force, op, simulate


def sequential(*steps):
    """Operations one after the other, each (kind, value, result)."""
    return [
        op(0, kind, value, result, at=(2 * i, 2 * i + 1)) for i, (kind, value, result) in enumerate(steps)
    ]


# -- planted anomalies ----------------------------------------------------------------------------------------------

PLANTED = {
    "a stale read": (register(0), sequential(("write", 1, None), ("read", None, 0))),
    "a lost update": (register(0), sequential(("cas", (0, 1), True), ("cas", (0, 2), True))),
    "a refused cas that should have passed": (register(0), sequential(("cas", (0, 1), False))),
    "a read of a value nobody wrote": (register(0), sequential(("write", 1, None), ("read", None, 7))),
    "a read of a failed write": (
        register(0),
        [op(0, "write", 5, at=(0, 1), status="fail"), op(1, "read", None, 5, at=(2, 3))],
    ),
    "a read of a write of unknown outcome that comes later": (
        register(0),
        [op(0, "read", None, 5, at=(0, 1)), op(1, "write", 5, at=(2, None), status="info")],
    ),
    "a write of unknown outcome that takes effect twice": (
        register(0),
        [op(9, "write", 5, at=(0, None), status="info")]
        + [
            replace(each, invoked=each.invoked + 10, completed=each.completed + 10)
            for each in sequential(
                ("read", None, 5), ("write", 1, None), ("read", None, 1), ("read", None, 5)
            )
        ],
    ),
    "two readers that see two writes in opposite orders": (
        register(0),
        [
            op(0, "write", 1, at=(0, 9)),
            op(1, "write", 2, at=(0, 9)),
            op(2, "read", None, 1, at=(10, 11)),
            op(2, "read", None, 2, at=(12, 13)),
        ],
    ),
    "a new value and then the old one": (
        register(0),
        [op(0, "write", 1, at=(0, 9)), op(1, "read", None, 1, at=(1, 2)), op(2, "read", None, 0, at=(3, 4))],
    ),
    "an increment that is lost": (
        counter(),
        sequential(("add", 1, None), ("add", 2, None), ("read", None, 2)),
    ),
    "an increment that answers wrongly": (counter(), sequential(("add", 1, 1), ("add", 1, 1))),
    "an element that is lost": (
        grow_and_shrink_set(),
        sequential(("add", 1, None), ("add", 2, None), ("read", None, [1])),
    ),
    "an element shown twice": (
        grow_and_shrink_set(),
        sequential(("add", 1, None), ("add", 2, None), ("read", None, [1, 1])),
    ),
    "an element that comes back": (
        grow_and_shrink_set(),
        sequential(("add", 1, None), ("remove", 1, None), ("contains", 1, True)),
    ),
    "messages out of order": (fifo_queue(), sequential(("put", 1, None), ("put", 2, None), ("get", None, 2))),
    "an empty answer of a full queue": (fifo_queue(), sequential(("put", 1, None), ("get", None, None))),
    "a message delivered twice": (
        unordered_queue(),
        sequential(("put", 1, None), ("get", None, 1), ("get", None, 1)),
    ),
    "a bag that says it is empty": (unordered_queue(), sequential(("put", 1, None), ("get", None, None))),
    "a lock held by two": (
        mutex(),
        [op(0, "acquire", result=True, at=(0, 1)), op(1, "acquire", result=True, at=(2, 3))],
    ),
    "a lock released by another": (
        mutex(),
        [op(0, "acquire", result=True, at=(0, 1)), op(1, "release", result=True, at=(2, 3))],
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_anomaly_is_found(name):
    model, operations = PLANTED[name]
    verdict = check_linearizable(operations, model)
    assert verdict.validity is Validity.INVALID
    assert verdict.anomalies == ("nonlinearizable",)
    assert not brute_force(operations, model)


CORRECT = {
    "overlapping reads may differ": (
        register(0),
        [op(0, "write", 1, at=(0, 9)), op(1, "read", None, 0, at=(1, 5)), op(2, "read", None, 1, at=(1, 5))],
    ),
    "equal times are concurrent": (
        register(0),
        [op(0, "write", 1, at=(0, 1)), op(1, "read", None, 0, at=(1, 2))],
    ),
    "a write of unknown outcome may take effect long after": (
        register(0),
        [
            op(0, "write", 5, at=(0, 1), status="info"),
            op(1, "read", None, 0, at=(2, 3)),
            op(1, "read", None, 5, at=(4, 5)),
        ],
    ),
    "a write of unknown outcome may never take effect": (
        register(0),
        [op(0, "write", 5, at=(0, 1), status="info"), op(1, "read", None, 0, at=(2, 3))],
    ),
    "a cas of unknown outcome explains a value": (
        register(0),
        [op(0, "cas", (0, 5), at=(0, None), status="info"), op(1, "read", None, 5, at=(2, 3))],
    ),
    "a write that nobody read explains a refused cas": (
        register(0),
        [op(0, "write", 5, at=(0, None), status="info"), op(1, "cas", (0, 1), False, at=(2, 3))],
    ),
    # The way through the write of unknown outcome that is tried first uses it up too early.
    "a write of unknown outcome is not used up before it is needed": (
        register(0),
        [
            op(0, "write", 1, at=(0, 8)),
            op(1, "cas", (0, 1), True, at=(0, 9)),
            op(2, "write", 0, at=(0, None), status="info"),
            op(3, "read", None, 0, at=(10, 11)),
        ],
    ),
    "a bag may hold an element twice": (
        unordered_queue(),
        sequential(
            ("put", 1, None), ("put", 1, None), ("get", None, 1), ("get", None, 1), ("get", None, None)
        ),
    ),
    "a get of unknown outcome may have taken any message": (
        unordered_queue(),
        [
            *sequential(("put", 1, None), ("put", 2, None), ("put", 3, None)),
            op(1, "get", at=(10, None), status="info"),
            op(2, "get", None, 3, at=(20, 21)),
            op(2, "get", None, 1, at=(22, 23)),
            op(2, "get", None, None, at=(24, 25)),
        ],
    ),
    "lists and sets are values too": (
        register([]),
        sequential(("read", None, []), ("write", [1, {2}], None), ("read", None, [1, {2}])),
    ),
    "keys are independent": (
        register(0),
        [op(0, "write", 1, at=(0, 1), key=["a"]), op(1, "read", None, 0, at=(2, 3), key=["b"])],
    ),
}


@pytest.mark.parametrize("name", CORRECT)
def test_a_correct_history_passes(name):
    model, operations = CORRECT[name]
    verdict = check_linearizable(operations, model)
    assert verdict.validity is Validity.VALID, verdict.explanation


def test_the_explanation_shows_the_key_the_state_and_the_stuck_operation():
    operations = [
        op(0, "write", 1, at=(0, 1), key="balance"),
        op(7, "read", None, 0, at=(2, 3), key="balance"),
    ]
    text = check_linearizable(operations, register(0)).explanation
    assert "'balance'" in text
    assert "state 1" in text
    assert "process 7: read 'balance' -> 0" in text


def test_one_bad_key_among_good_ones_is_invalid():
    good = [
        replace(each, key=i) for i in range(5) for each in sequential(("write", 1, None), ("read", None, 1))
    ]
    bad = [replace(each, key=9) for each in sequential(("write", 1, None), ("read", None, 0))]
    assert check_linearizable(good, register()).validity is Validity.VALID
    assert check_linearizable(good + bad, register()).validity is Validity.INVALID


def test_a_search_that_runs_out_of_budget_is_unknown_and_no_pass():
    operations = simulate(register(0), random.Random(1), 50, keys=1)
    verdict = check_linearizable(operations, register(0), budget_steps=20)
    assert verdict.validity is Validity.UNKNOWN
    assert not verdict
    assert "budget" in verdict.explanation


def test_an_invalid_key_outweighs_an_unknown_one():
    long = [replace(each, key="long") for each in simulate(register(0), random.Random(1), 50, keys=1)]
    bad = [replace(each, key="bad") for each in sequential(("write", 1, None), ("read", None, 0))]
    assert check_linearizable(long + bad, register(0), budget_steps=20).validity is Validity.INVALID


def test_a_history_without_an_ok_operation_is_unknown():
    assert check_linearizable([], register()).validity is Validity.UNKNOWN
    only = [op(0, "read", None, 5, status="fail"), op(1, "write", 5, at=(0, None), status="info")]
    assert check_linearizable(only, register()).validity is Validity.UNKNOWN


@pytest.mark.parametrize(
    "model", [register(), counter(), grow_and_shrink_set(), fifo_queue(), unordered_queue(), mutex()]
)
def test_a_kind_the_model_does_not_know_raises(model):
    with pytest.raises(ValueError, match="no operation 'juggle'"):
        check_linearizable([op(0, "juggle")], model)


def test_a_cas_that_answers_no_boolean_raises():
    with pytest.raises(ValueError, match="True or False"):
        check_linearizable([op(0, "cas", (0, 1), None)], register(0))


def test_a_get_of_unknown_outcome_may_say_what_it_took():
    puts = [op(0, "put", 1, at=(0, 1)), op(0, "put", 2, at=(2, 3))]
    maybe = op(1, "get", None, 1, at=(4, None), status="info")
    assert check_linearizable([*puts, maybe, op(2, "get", None, 1, at=(6, 7))], fifo_queue())
    assert check_linearizable([*puts, maybe, op(2, "get", None, 2, at=(6, 7))], fifo_queue())
    assert not check_linearizable(
        [*puts, replace(maybe, result=2), op(2, "get", None, 2, at=(6, 7))], fifo_queue()
    )
    silent, late = op(2, "get", at=(4, None), status="info"), replace(maybe, invoked=8)
    assert check_linearizable([*puts, silent, op(3, "get", None, 2, at=(6, 7)), late], fifo_queue())
    assert not check_linearizable([*puts, op(3, "get", None, 2, at=(6, 7)), late], fifo_queue())


def test_a_queue_that_holds_an_element_twice_is_checked_without_looking_ahead():
    twice = [("put", 1, None), ("put", 2, None), ("put", 1, None), ("get", None, 1), ("get", None, 2)]
    assert check_linearizable(sequential(*twice, ("get", None, 1)), fifo_queue())
    assert not check_linearizable(sequential(*twice, ("get", None, 2)), fifo_queue())


def test_a_nondeterministic_model_keeps_every_state_it_may_be_in():
    dice = nondeterministic(
        "dice",
        0,
        lambda state, each: range(1, 7) if each.kind == "roll" else [state] * (state == each.result),
    )
    assert check_linearizable(sequential(("roll", None, None), ("look", None, 6)), dice)
    assert not check_linearizable(sequential(("roll", None, None), ("look", None, 7)), dice)
    assert not check_linearizable(
        sequential(("roll", None, None), ("look", None, 6), ("look", None, 5)), dice
    )
