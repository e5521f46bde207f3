"""The list-append checker: planted anomalies are named, correct histories pass, and it agrees with brute force."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest

from kit.synthetic import schedule
from onefold.testing.history import Operation, Validity
from onefold.testing.list_append import check_list_append, check_weak

PARALLEL = (0, 100)


def txn(*micros, at=PARALLEL, status="ok", process=0):
    """Micro-operations in short: "x+1" appends 1 to x, "x:12" read the list [1, 2], "x:" the empty list."""
    value = []
    for micro in micros:
        if "+" in micro:
            key, element = micro.split("+")
            value.append(("append", key, int(element)))
        else:
            key, seen = micro.split(":")
            value.append(("r", key, [int(each) for each in seen]))
    return Operation(process, "txn", None, value, None, at[0], at[1], status)


PLANTED = {
    "G0": [txn("x+1", "y+1"), txn("x+2", "y+2"), txn("x:12"), txn("y:21")],
    "G1a": [txn("x+1", status="fail"), txn("x:1")],
    "G1b": [txn("x+1", "x+2"), txn("x:1"), txn("x:12")],
    "G1c": [txn("x+1", "y:1"), txn("y+1", "x:1")],
    "G-single": [txn("x:", "x+1"), txn("x:", "x+2"), txn("x:12")],
    "G2": [txn("x:", "y+1"), txn("y:", "x+1"), txn("x:1", "y:1")],
    "internal": [txn("x+1", "x:")],
    "unwritten": [txn("x:7")],
    "duplicate": [txn("x+1"), txn("x:11")],
    "incompatible-order": [txn("x+1"), txn("x+2"), txn("x:12"), txn("x:21")],
    "torn-append": [txn("x+1", "x+2"), txn("x:2")],
    "G0-realtime": [txn("x+1", at=(0, 1)), txn("x+2", at=(2, 3)), txn("x:21", at=(4, 5))],
    "G1c-realtime": [txn("x:1", at=(0, 1)), txn("x+1", at=(2, 3))],
    "G-single-realtime": [txn("x+1", at=(0, 1)), txn("x:", at=(2, 3))],
    "G2-realtime": [txn("y:1", "x:"), txn("x+1", at=(0, 1)), txn("y:", at=(2, 3)), txn("y+1")],
}

MORE = [
    ("internal", [txn("x:", "x+1", "x:")], "its own append is missing after an earlier read"),
    ("internal", [txn("x+1"), txn("x+2"), txn("x:1", "x:12")], "two reads of one transaction differ"),
    ("internal", [txn("x:1", "x+1")], "an append is read before it is made"),
    ("internal", [txn("x+1", "x+2", "x:1")], "only the first of its own appends is there"),
    (
        "incompatible-order",
        [txn("x+1"), txn("x+2"), txn("x:1"), txn("x:2")],
        "each read shows one append alone",
    ),
    ("torn-append", [txn("x+1", "x+2", "x+3"), txn("x:213")], "appends of one transaction out of order"),
    ("G0", [txn("x+1", "x+2"), txn("x+3"), txn("x:132")], "an append between two of one transaction"),
    ("G-single", [txn("x+1", "y+1"), txn("x:1", "y:")], "half of a transaction is visible"),
    (
        "G-single-realtime",
        [txn("x+1", at=(0, 1)), txn("x+2"), txn("x:2", at=(5, 6))],
        "a lost acknowledged append",
    ),
    (
        "G-single-realtime",
        [txn("x+1", at=(0, 1)), txn("x:1", at=(2, 3)), txn("x:", at=(4, 5))],
        "a read that goes back in time",
    ),
    (
        "G-single",
        [txn("x+1", "y+1", status="info"), txn("x:1", "y:")],
        "half of a transaction of unknown outcome is visible",
    ),
    (
        "G-single",
        [txn("x+1", "z+1", status="info"), txn("x:1", "y+1", status="info"), txn("y:1", "z:")],
        "half of a transaction of unknown outcome is visible through another one",
    ),
    (
        "G1c-realtime",
        [txn("x:1", at=(0, 1)), txn("x+1", at=(2, None), status="info")],
        "a transaction of unknown outcome is seen before it was invoked",
    ),
    (
        "G2",
        [txn("x+1"), txn("y+1"), txn("x:1", "y:"), txn("x:", "y:1")],
        "a long fork",
    ),
]


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_anomaly_is_found_and_named(name):
    verdict = check_list_append(PLANTED[name])
    assert verdict.validity is Validity.INVALID
    assert verdict.anomalies == (name,), verdict.explanation
    assert verdict.explanation.startswith(name)
    assert not brute_force(PLANTED[name], realtime=True)


@pytest.mark.parametrize(("name", "operations"), [pytest.param(*case[:2], id=case[2]) for case in MORE])
def test_another_form_of_an_anomaly_is_found_and_named(name, operations):
    verdict = check_list_append(operations)
    assert name in verdict.anomalies, verdict
    assert not brute_force(operations, realtime=True)


@pytest.mark.parametrize("name", PLANTED)
def test_what_needs_real_time_is_serializable_without_it(name):
    verdict = check_list_append(PLANTED[name], realtime=False)
    assert bool(verdict) is name.endswith("-realtime") is brute_force(PLANTED[name], realtime=False)
    assert check_weak(PLANTED[name], level="serializable") == verdict


@pytest.mark.parametrize("name", PLANTED)
def test_read_committed_allows_cycles_with_anti_dependencies_only(name):
    allowed = name.startswith(("G-single", "G2")) or name.endswith("-realtime")
    assert bool(check_weak(PLANTED[name], level="read-committed")) is allowed


def test_a_level_that_does_not_exist_raises():
    with pytest.raises(ValueError, match="serializable"):
        check_weak([txn("x:")], level="best-effort")


CORRECT = {
    "reads of its own appends": [txn("x+1", "x:1", "x+2", "x:12"), txn("x:12")],
    "an own append nobody else saw": [txn("x+1", "x:1", "x+2")],
    "concurrent transactions in any order": [txn("x+1"), txn("x+2"), txn("x:21")],
    "concurrent appends that nobody saw": [txn("x:", "x+1"), txn("y:", "x+2"), txn("y+1", "y:1")],
    "equal times are concurrent": [txn("x+1", at=(0, 1)), txn("x:", at=(1, 2))],
    "an unknown transaction that never happened": [
        txn("x+1", at=(0, 1), status="info"),
        txn("x:", at=(2, 3)),
    ],
    "an unknown transaction that happened late": [
        txn("x+1", at=(0, 1), status="info"),
        txn("x:", at=(2, 3)),
        txn("x:1", at=(4, 5)),
    ],
    "unknown transactions seen through one another": [
        replace(txn("x+1", status="info"), value=[("append", "x", 1), ("r", "y", None)]),
        txn("x:1", "y+1", status="info"),
        txn("y:1"),
    ],
    "failed transactions that nobody saw": [txn("x+1", "x:9", status="fail"), txn("x:")],
}


@pytest.mark.parametrize("name", CORRECT)
def test_a_correct_history_passes(name):
    verdict = check_list_append(CORRECT[name])
    assert verdict.validity is Validity.VALID, verdict.explanation
    assert brute_force(CORRECT[name], realtime=True)


def test_the_cycle_is_shown_in_words_and_is_a_shortest_one():
    noise = [txn(f"z+{i}", f"z:{''.join(map(str, range(1, i + 1)))}") for i in range(1, 6)]
    text = check_list_append(
        [*noise, txn("x:", "x+1", process=7), txn("x:", "x+2", process=8), txn("x:12")]
    ).explanation
    assert "a cycle of 2 transactions" in text
    assert "process 7" in text and "process 8" in text
    assert "T1 before T2 (rw): it read 'x' without the other's 1" in text
    assert "T2 before T1 (ww): 2 was appended to 'x' right after 1" in text


def test_real_time_is_shown_as_one_edge_however_many_transactions_ended_between():
    between = [txn("y:", at=(10 * i, 10 * i + 1)) for i in range(1, 20)]
    text = check_list_append([txn("x+1", at=(0, 1)), *between, txn("x:", at=(300, 301))]).explanation
    assert "a cycle of 2 transactions" in text
    assert "(realtime): it completed before the other was invoked" in text


def test_the_results_hold_the_reads_and_the_values_what_was_asked():
    asked = [("r", "x", None), ("append", "x", 1)]
    first = Operation(0, "txn", None, asked, [("r", "x", []), ("append", "x", 1)], 0, 1, "ok")
    good = Operation(1, "txn", None, [("r", "x", None)], [["r", "x", [1]]], 2, 3, "ok")
    bad = replace(good, result=[["r", "x", None]])
    assert check_list_append([first, good]).validity is Validity.VALID
    assert check_list_append([first, bad]).anomalies == ("G-single-realtime",)


def test_a_history_that_read_nothing_is_unknown():
    assert check_list_append([]).validity is Validity.UNKNOWN
    assert check_list_append([txn("x+1"), txn("x:1", status="fail")]).validity is Validity.UNKNOWN


def test_bad_workloads_raise():
    with pytest.raises(ValueError, match="appended to 'x' twice"):
        check_list_append([txn("x+1"), txn("x+1")])
    with pytest.raises(ValueError, match="appended to 'x' twice"):
        check_list_append([txn("x+1", "x+1")])
    with pytest.raises(ValueError, match="append or an r"):
        check_list_append([replace(txn(), value=[("w", "x", 1)])])


# -- histories of a true database ------------------------------------------------------------------------------------


def simulate(rng, count, *, keys=4, processes=5, info=0.1, fail=0.1, micros=4, isolation="strict"):
    """Run random transactions at their moments of effect. "stale" reads an older prefix now and then."""
    lists = {key: [] for key in range(keys)}
    operations, number = [], 0
    for slot in schedule(rng, count, processes=processes, info=info, fail=fail):
        asked, answered = [], []
        staged = {key: list(elements) for key, elements in lists.items()}
        for _ in range(rng.randint(1, micros)):
            key = rng.randrange(keys)
            if rng.random() < 0.5:
                seen = list(staged[key])
                if isolation == "stale" and rng.random() < 0.3:
                    seen = seen[: rng.randint(0, len(seen))]
                asked.append(("r", key, None))
                answered.append(("r", key, seen))
            else:
                number += 1
                staged[key].append(number)
                asked.append(("append", key, number))
                answered.append(asked[-1])
        if slot.effect is not None:
            lists = staged
        # A client that lost the answer may still have got the reads before.
        told = slot.status == "ok" or (
            slot.status == "info" and slot.effect is not None and rng.random() < 0.3
        )
        result = answered if told else None
        operations.append(
            Operation(slot.process, "txn", None, asked, result, slot.invoked, slot.completed, slot.status)
        )
    rng.shuffle(operations)
    return operations


def test_histories_of_a_true_database_pass():
    for seed in range(200):
        rng = random.Random(seed)
        operations = simulate(rng, rng.randint(10, 60), keys=rng.randint(1, 5), processes=rng.randint(1, 8))
        verdict = check_list_append(operations)
        assert verdict.validity is not Validity.INVALID, f"seed {seed}: {verdict.explanation}"
        assert verdict or not any(
            micro[0] == "r" for each in operations if each.status == "ok" for micro in each.value
        )


def test_a_long_history_passes_and_one_stale_read_in_it_is_found():
    rng = random.Random(11)
    operations = simulate(rng, 1000, keys=8, processes=10)
    assert check_list_append(operations)
    # The first read of the last transaction that reads, made a read of nothing.
    last = max(
        (each for each in operations if each.status == "ok" and each.result[0][0] == "r"),
        key=lambda o: o.invoked,
    )
    stale = replace(last, value=[last.value[0]], result=[("r", last.result[0][1], [])])
    verdict = check_list_append([stale if each is last else each for each in operations])
    assert verdict.anomalies[0].startswith(("G-single", "G2")), verdict
    assert "a cycle of 2 transactions" in verdict.explanation


# -- agreement with brute force ----------------------------------------------------------------------------------


def brute_force(operations, *, realtime):
    """Try every subset of the transactions of unknown outcome in every order."""
    certain = [each for each in operations if each.status == "ok"]
    maybe = [each for each in operations if each.status == "info"]
    for count in range(len(maybe) + 1):
        for chosen in itertools.combinations(maybe, count):
            if any(explains(order, realtime) for order in itertools.permutations([*certain, *chosen])):
                return True
    return False


def explains(order, realtime):
    if realtime and any(later.precedes(earlier) for i, later in enumerate(order) for earlier in order[:i]):
        return False
    lists = {}
    for each in order:
        for kind, key, value in each.value if each.result is None else each.result:
            if kind == "append":
                lists[key] = [*lists.get(key, []), value]
            elif (value is not None or each.status == "ok") and lists.get(key, []) != (value or []):
                return False
    return True


def mutate(operations, rng):
    operations = list(operations)
    i, j = rng.randrange(len(operations)), rng.randrange(len(operations))
    one, other = operations[i], operations[j]
    micros = list(one.value if one.result is None else one.result)
    reads = [at for at, micro in enumerate(micros) if micro[0] == "r" and micro[2]]
    match rng.randrange(6):
        case 0 if reads:
            at = rng.choice(reads)
            micros[at] = ("r", micros[at][1], micros[at][2][:-1])
            operations[i] = replace(one, result=micros)
        case 1 if reads:
            at = rng.choice(reads)
            micros[at] = ("r", micros[at][1], rng.sample(micros[at][2], len(micros[at][2])))
            operations[i] = replace(one, result=micros)
        case 2 if one.completed is not None:
            operations[i] = replace(one, completed=rng.uniform(one.invoked, one.completed))
        case 3 if one.completed is not None:
            operations[i] = replace(one, invoked=rng.uniform(one.invoked, one.completed))
        case 4:
            operations[i] = replace(one, status="fail", completed=one.completed or one.invoked)
        case 5 if len(micros) > 1 and other.result is None:
            operations[i] = replace(one, result=rng.sample(micros, len(micros)))
    return operations


@pytest.mark.parametrize("isolation", ["strict", "stale"])
@pytest.mark.parametrize("realtime", [True, False])
def test_it_agrees_with_brute_force_on_mutated_histories(isolation, realtime):
    verdicts = {True: 0, False: 0}
    for seed in range(1500):
        rng = random.Random(seed)
        count = rng.randint(2, 5)
        operations = simulate(rng, count, keys=2, processes=3, info=0.15, micros=3, isolation=isolation)
        for _ in range(rng.randint(0, 5)):
            operations = mutate(operations, rng)
        verdict = check_list_append(operations, realtime=realtime)
        if verdict.validity is Validity.UNKNOWN:
            continue
        expected = brute_force(operations, realtime=realtime)
        assert bool(verdict) is expected, f"seed {seed}: {verdict}\n{operations}"
        verdicts[expected] += 1
    # Both kinds are among the histories, or the agreement would show little.
    assert min(verdicts.values()) >= 100, verdicts


def test_the_brute_force_histories_show_many_kinds_of_anomalies():
    seen = set()
    for seed in range(1500):
        rng = random.Random(seed)
        operations = simulate(rng, rng.randint(2, 7), keys=2, processes=3, isolation="stale")
        for _ in range(rng.randint(0, 3)):
            operations = mutate(operations, rng)
        seen.update(check_list_append(operations).anomalies)
    assert seen >= {"G1a", "G-single", "G-single-realtime", "G2", "internal", "incompatible-order"}, seen
