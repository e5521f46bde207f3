"""The checkers of single workloads, sessions and prefixes on histories of true systems, and on the same with one error."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest

from kit.synthetic import schedule
from onefold.testing.history import Operation, Validity
from onefold.testing.session_checks import check_prefix, check_session
from onefold.testing.workload_checks import check_counter, check_long_fork, check_queue, check_set
from support.histories import bank, counter_reads, op, set_reads


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
