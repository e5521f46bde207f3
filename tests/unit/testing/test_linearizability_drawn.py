"""The linearizability checker on drawn histories: those of true objects pass, and on any it agrees with brute force."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from onefold.testing.history import Validity
from onefold.testing.linearizability import check_linearizable
from onefold.testing.models import register
from support.object_histories import MODELS, brute_force, op, simulate

# -- histories of a true object ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_histories_of_a_true_object_pass(name):
    model = MODELS[name][0]
    for seed in range(60):
        operations = simulate(model, random.Random(seed), 80, name=name)
        verdict = check_linearizable(operations, model)
        assert verdict.validity is Validity.VALID, f"seed {seed}: {verdict.explanation}"


def test_long_histories_of_many_processes_are_decided_within_the_budget():
    for seed in range(10):
        operations = simulate(register(0), random.Random(seed), 1000, keys=8, processes=10)
        verdict = check_linearizable(operations, register(0), budget_steps=100_000)
        assert verdict.validity is Validity.VALID, f"seed {seed}: {verdict.explanation}"


def test_a_plain_history_costs_a_few_steps_per_operation():
    for name, (model, _) in MODELS.items():
        operations = simulate(model, random.Random(3), 300, keys=1, info=0, name=name)
        verdict = check_linearizable(operations, model, budget_steps=30 * len(operations))
        assert verdict.validity is Validity.VALID, f"{name}: {verdict.explanation}"


# -- agreement with brute force ------------------------------------------------------------------------------------


def mutate(operations, rng):
    """Change one answer, time or status, or leave an operation out."""
    operations = list(operations)
    i, j = rng.randrange(len(operations)), rng.randrange(len(operations))
    one, other = operations[i], operations[j]
    match rng.randrange(7):
        case 0 if one.kind == other.kind and one.status == other.status == "ok":
            operations[i], operations[j] = (
                replace(one, result=other.result),
                replace(other, result=one.result),
            )
        case 1 if one.completed is not None:
            operations[i] = replace(one, completed=rng.uniform(one.invoked, one.completed))
        case 2 if one.completed is not None:
            operations[i] = replace(one, invoked=rng.uniform(one.invoked, one.completed))
        case 3:
            del operations[i]
        case 4:
            operations[i] = replace(one, status="fail", completed=one.completed or one.invoked)
        case 5 | 6 if one.status == "ok" and isinstance(one.result, bool):
            operations[i] = replace(one, result=not one.result)
        case 5 | 6 if one.status == "ok" and isinstance(one.result, int):
            operations[i] = replace(one, result=rng.randrange(6))
        case 5 | 6 if one.status == "ok" and isinstance(one.result, list):
            operations[i] = replace(one, result=rng.sample(range(1, 6), rng.randrange(3)))
    return operations


@pytest.mark.parametrize("name", MODELS)
def test_it_agrees_with_brute_force_on_mutated_histories(name):
    model = MODELS[name][0]
    verdicts = {True: 0, False: 0}
    for seed in range(1000):
        rng = random.Random(seed)
        operations = simulate(model, rng, rng.randint(3, 6), name=name, keys=1, processes=3, info=0.2)
        for _ in range(rng.randint(1, 3)):
            operations = mutate(operations, rng) or operations
        if not any(each.status == "ok" for each in operations):
            continue
        expected = brute_force(operations, model)
        verdict = check_linearizable(operations, model)
        assert verdict.validity is (Validity.VALID if expected else Validity.INVALID), (
            f"seed {seed}: {operations}"
        )
        verdicts[expected] += 1
    # Both kinds are among the histories, or the agreement would show little.
    assert min(verdicts.values()) >= 100, verdicts


def test_it_agrees_with_brute_force_when_most_outcomes_are_unknown():
    model = register(0)
    verdicts = {True: 0, False: 0}
    for seed in range(600):
        rng = random.Random(seed)
        operations = []
        for process in range(6):
            kind = rng.choice(["read", "write", "cas", "write"])
            status = "ok" if process < 3 else "info"
            answers = {"read": rng.randrange(3), "write": None, "cas": rng.random() < 0.5}
            invoked = rng.randrange(6)
            value = {"read": None, "write": rng.randrange(3), "cas": (rng.randrange(3), rng.randrange(3))}[
                kind
            ]
            result = answers[kind] if status == "ok" else None
            operations.append(op(process, kind, value, result, (invoked, invoked + rng.randrange(4)), status))
        expected = brute_force(operations, model)
        assert bool(check_linearizable(operations, model)) is expected, f"seed {seed}: {operations}"
        verdicts[expected] += 1
    assert min(verdicts.values()) >= 50, verdicts


@pytest.mark.parametrize("name", ["register", "fifo"])
def test_looking_ahead_changes_no_verdict(name):
    model = MODELS[name][0]
    plain = replace(model, specialise=None)
    verdicts = {Validity.VALID: 0, Validity.INVALID: 0}
    for seed in range(600):
        rng = random.Random(seed)
        operations = simulate(model, rng, 14, name=name, keys=1, processes=4, info=0.2)
        for _ in range(rng.randint(0, 2)):
            operations = mutate(operations, rng)
        verdict = check_linearizable(operations, model).validity
        expected = check_linearizable(operations, plain, budget_steps=20_000).validity
        if expected is Validity.UNKNOWN:
            continue  # Without looking ahead a queue is often too hard.
        assert verdict is expected, f"seed {seed}: {operations}"
        verdicts[verdict] += 1
    assert min(verdicts.values()) >= 50, verdicts
