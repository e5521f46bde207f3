"""The queues' fold against a plain model, the fold's contract, and what an operation costs."""

import random

import pytest

from onefold import config
from onefold.fold.api import Context
from onefold.state.fold.machine import StateFold
from onefold.state.fold.ops import Commit, state_op
from onefold.state.fold.outcomes import Answer, Committed, Rejected, decode_outcome
from onefold.state.fold.queues import fold as queue_fold
from onefold.state.fold.queues import rows as queue_rows
from onefold.state.fold.queues.ops import (
    Ack,
    DropDead,
    Enqueue,
    ExpireLease,
    Extend,
    Forwarded,
    Message,
    Nack,
    RetryDead,
    Take,
)
from onefold.testing.fold_suite import check_fold
from onefold.testing.memory_store import MemoryStore


class Machine:
    """The state fold over a store in memory, one operation in each record."""

    def __init__(self, fold_version=1):
        self.fold = StateFold()
        self.fold_version = fold_version
        self.store = MemoryStore()
        self.offset = 0
        self.now_ms = 1000

    def pass_time(self, ms):
        self.now_ms += ms

    def do(self, op):
        self.offset += 1
        self.fold.advance(self.store, Context(self.offset, -1, self.now_ms, "c", None))
        body = state_op(op).body
        return decode_outcome(
            self.fold.apply(
                self.store, Context(self.offset, 0, self.now_ms, "c", None), body, self.fold_version
            )
        )

    def put(self, queue, *messages):
        outcome = self.do(Commit((), (), (Enqueue(queue, messages),)))
        return outcome.results[0] if isinstance(outcome, Committed) else outcome

    def take(self, queue, *, max_attempts=3, dead_letter=None, forward_to=None):
        return self.do(Take(queue, "m_1", 1000, max_attempts, dead_letter, forward_to)).value

    def counts(self, queue):
        return queue_rows.read_counts(self.store, queue_rows.queue_table(queue))


class Model:
    """One queue as a list."""

    def __init__(self):
        self.live = []
        self.dead = []
        self.next = 1

    def put(self, message, now_ms):
        due_ms = now_ms + message.delay_ms if message.delay_ms else 0
        self.live.append(
            {
                "number": self.next,
                "value": message.value,
                "key": message.key,
                "due": due_ms,
                "tries": 0,
                "epoch": 0,
            }
        )
        self.next += 1

    def head_of_its_key(self, one):
        return one["key"] is None or next(m for m in self.live if m["key"] == one["key"]) is one

    def ready(self, now_ms):
        return [m for m in self.live if not m["epoch"] and m["due"] <= now_ms and self.head_of_its_key(m)]

    def in_flight(self):
        return [m for m in self.live if m["epoch"]]

    def find(self, number, epoch):
        return next((m for m in self.in_flight() if m["number"] == number and m["epoch"] == epoch), None)

    def counts(self, now_ms):
        ready, flight = len(self.ready(now_ms)), len(self.in_flight())
        waiting = sum(not self.head_of_its_key(m) for m in self.live)
        return ready, len(self.live) - ready - flight - waiting, waiting, flight, len(self.dead)


def run_against_model(seed, steps=400):
    """Random operations on two queues, the second of which takes dead letters of the first; every answer is compared."""
    rng = random.Random(seed)
    machine, models = Machine(), {"a": Model(), "b": Model()}
    known = [("a", 1, 1)]  # (queue, number, epoch) that were ever given out, so late ones are tried too

    def fail(name, one, delay_ms):
        model, rules = models[name], one["rules"]
        one["tries"] += 1
        one["epoch"] = 0
        one["due"] = machine.now_ms + delay_ms if delay_ms else 0
        if one["tries"] < rules[0]:
            return False
        model.live.remove(one)
        if rules[1]:
            models["b"].put(Message(one["value"], one["key"]), machine.now_ms)
        else:
            model.dead.append(one)
        return True

    for step in range(steps):
        where = f"seed {seed}, step {step}"
        if rng.random() < 0.5:
            machine.pass_time(rng.choice((1, 10, 100, 1000)))
        name = rng.choice("aab")
        model = models[name]
        if known and rng.random() < 0.4:
            which, number, epoch = rng.choice(known[-12:])
            one = models[which].find(number, epoch)
            kind = rng.choice((Ack, Ack, Nack, Extend, ExpireLease))
            extra = {
                Ack: (),
                Nack: ("bad", rng.choice((0, 0, 50))),
                Extend: (500,),
                ExpireLease: (rng.random() < 0.5,),
            }[kind]
            outcome = machine.do(kind(which, number, epoch, *extra))
            if one is None:
                assert outcome == Rejected("lost", which), where
            elif kind is Ack:
                models[which].live.remove(one)
                assert outcome == Answer(None), where
            elif kind is Extend:
                one["epoch"] = machine.offset
                known.append((which, number, machine.offset))
                assert outcome == Answer(machine.offset), where
            else:
                assert outcome == Answer(fail(which, one, extra[1] if kind is Nack else 0)), where
        elif rng.random() < 0.05:
            letters = model.dead[: rng.choice((1, 100))]
            limit = max(1, len(letters))
            if rng.random() < 0.5:
                assert machine.do(RetryDead(name, limit)) == Answer(len(letters)), where
                for letter in sorted(model.dead, key=lambda m: m["number"])[: len(letters)]:
                    model.dead.remove(letter)
                    model.put(Message(letter["value"], letter["key"]), machine.now_ms)
            else:
                assert machine.do(DropDead(name, 1 << 40, limit)) == Answer(len(letters)), where
                for letter in sorted(model.dead, key=lambda m: m["number"])[: len(letters)]:
                    model.dead.remove(letter)
        elif rng.random() < 0.5:
            messages = [
                Message(
                    b"%d" % rng.randrange(1000),
                    rng.choice((None, b"", b"k", b"kk")),
                    rng.choice((0, 0, 0, 5, 500)),
                )
                for _ in range(rng.randrange(1, 4))
            ]
            assert machine.put(name, *messages) == model.next, where
            for message in messages:
                model.put(message, machine.now_ms)
        else:
            rules = (rng.randrange(1, 4), name == "a" and rng.random() < 0.5)
            answer = machine.take(name, max_attempts=rules[0], dead_letter="b" if rules[1] else None)
            ready = model.ready(machine.now_ms)
            if not ready:
                assert answer is None, where
            else:
                one = ready[0]
                one["epoch"], one["rules"] = machine.offset, rules
                known.append((name, one["number"], machine.offset))
                expected = [one["number"], machine.offset, one["tries"] + 1, one["value"], one["key"]]
                assert answer is not None, where
                assert list(answer[:5]) == expected, where
        for other, expected_model in models.items():
            found = machine.counts(other)
            counted = (found.ready, found.delayed, found.waiting, found.flight, found.dead)
            assert counted == expected_model.counts(machine.now_ms), (where, other)
    return machine, models


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.moving(2)
def test_random_operations_do_what_a_plain_model_does(seed):
    run_against_model(seed)


@pytest.mark.parametrize("seed", range(5))
def test_a_queue_that_is_emptied_leaves_one_row_behind(seed):
    machine, models = run_against_model(seed)
    for name in ("a", "b"):
        while models[name].live or machine.counts(name).live:
            machine.pass_time(1000)
            for one in models[name].in_flight():
                machine.do(Ack(name, one["number"], one["epoch"]))
            models[name].live.clear()
            taken = machine.take(name)
            if taken is not None:
                assert machine.do(Ack(name, taken[0], taken[1])) == Answer(None)
        machine.do(DropDead(name, 1 << 40, 10_000))
        assert [key for key, _ in machine.store.scan(queue_rows.queue_table(name))] == [queue_rows.HEAD]
    assert not list(machine.store.scan(queue_rows.QUEUE_DUE))


def keep_the_epoch(store, context, op, flight):
    return flight.epoch


def forget_the_key(store, context, name, counts, number, key):
    store.delete(queue_rows.queue_table(name), queue_rows.numbered(queue_rows.MESSAGE, number))


def release_nothing(store, context):
    return 0


@pytest.mark.parametrize(
    ("name", "bug"),
    [("_extend", keep_the_epoch), ("_remove", forget_the_key), ("KIND.advance", release_nothing)],
)
def test_the_model_notices_a_planted_bug(name, bug, monkeypatch):
    monkeypatch.setattr(f"{queue_fold.__name__}.{name}", bug)
    with pytest.raises(AssertionError):
        run_against_model(seed=3)


def every_kind_of_operation():
    many = tuple(Message(b"v%d" % number, (None, b"k")[number % 2]) for number in range(6))
    ops = [Commit((), (), (Enqueue("q", many), Enqueue("r", (Message(b"x", b"k", 700),))))]
    ops += [Take("q", "m_1", 1000, 1, "r"), Take("q", "m_1", 1000, 1), Take("q", "m_2", 1000, 2, None, "far")]
    ops += [Nack("q", 1, offset, "bad") for offset in range(1, 5)]
    ops += [Ack("q", 2, offset) for offset in range(1, 6)]
    ops += [Take("q", "m_1", 1000, 1, None, "far"), Extend("q", 3, 4, 10), Extend("q", 3, 5, 10)]
    ops += [
        ExpireLease("q", number, offset, True) for number in range(1, 5) for offset in range(1, len(ops), 3)
    ]
    ops += [Take("q", "m_3", 9, 2), Take("r", "m_3", 9, 2), Take("r", "m_3", 9, 2), Take("q", "m_3", 9, 2)]
    ops += [RetryDead("q", 1), DropDead("q", 100, 1), Forwarded("q", 3), Take("nothing", "m_3", 9, 2)]
    ops += [
        Take("q", "m", 1, 1, "q"),
        Take("", "m", 1, 1),
        Take("q" * 201, "m", 1, 1),
        Take("q", "m", 1, 1, ""),
    ]
    ops += [Commit((), (), (Enqueue("", many),)), Commit((), (), (Enqueue("q", ()),))]
    return [state_op(op).body for op in ops]


@pytest.mark.parametrize("seed", range(5))
def test_the_fold_meets_its_contract(seed):
    check_fold(StateFold(), every_kind_of_operation(), seed=seed)


@pytest.mark.parametrize("number", [-1, 1 << 53, (1 << 64) - 1])
def test_numbers_out_of_range_are_malformed(number):
    machine = Machine()
    machine.put("q", Message(b"v"))
    for op in (
        Ack("q", number, 1),
        Ack("q", 1, number),
        Nack("q", 1, 1, "", number),
        DropDead("q", number, 1),
        Extend("q", 1, 1, number),
        Take("q", "m", number, 1),
        Take("q", "m", 1, number),
        Commit((), (), (Enqueue("q", (Message(b"", None, number),)),)),
    ):
        assert machine.do(op) == Rejected("malformed")


def test_a_blocked_key_is_not_searched_through():
    machine = Machine()
    machine.put(
        "q", *[Message(b"v", b"busy") for _ in range(3000)], Message(b"other", b"free"), Message(b"no key")
    )
    scanned = []
    plain_scan = machine.store.scan
    machine.store.scan = lambda *args, **kw: scanned.append(kw.get("limit")) or plain_scan(*args, **kw)
    values = [machine.take("q")[3] for _ in range(3)]
    assert values == [b"v", b"other", b"no key"]
    assert set(scanned) == {1}
    assert machine.take("q") is None


def test_an_operation_writes_few_rows_however_long_the_queue_is():
    machine = Machine()
    machine.put("q", *[Message(b"v", (None, b"k")[number % 2]) for number in range(20_000)])
    for _ in range(20):
        before = machine.store.writes
        number, epoch, *_ = machine.take("q")
        machine.do(Ack("q", number, epoch))
        assert machine.store.writes - before <= 9


def test_delayed_messages_are_released_in_bounded_parts(monkeypatch):
    monkeypatch.setattr(config, "EXPIRATIONS_PER_RECORD_MAX", 3)
    machine = Machine()
    machine.put("q", *[Message(b"%d" % number, None, 10 - number) for number in range(8)])
    assert machine.take("q") is None
    machine.pass_time(10)
    first = machine.take("q")  # its record has released the three that are due earliest
    assert (first[3], machine.counts("q").ready, machine.counts("q").delayed) == (b"5", 2, 5)
    machine.take("q")
    machine.take("q")
    assert machine.counts("q").delayed == 0


def test_a_dead_letter_goes_to_its_queue_with_its_history():
    machine = Machine()
    machine.put("q", Message(b"v", b"k"))
    for error in ("first", "second"):
        number, epoch, *_ = machine.take("q", max_attempts=2, dead_letter="dead")
        machine.do(Nack("q", number, epoch, error))
    assert machine.counts("q").live == 0
    (body,) = queue_rows.bodies(machine.store, queue_rows.queue_table("dead"))
    assert (body.origin, body.errors, body.key) == (("q", 1, 2), ("first", "second"), b"k")
    assert machine.take("dead")[5] == ["first", "second"]


def test_a_dead_letter_for_another_shard_waits_until_it_is_forwarded():
    machine = Machine()
    machine.put("q", Message(b"v"))
    number, epoch, *_ = machine.take("q", max_attempts=1, forward_to="far")
    assert machine.do(Nack("q", number, epoch, "bad")) == Answer(True)
    assert (machine.counts("q").outbox, machine.counts("q").dead) == (1, 0)
    for _ in range(2):  # two observers may forward it
        machine.do(Forwarded("q", number))
    assert machine.counts("q").outbox == 0


def test_of_two_who_end_a_lease_one_is_refused():
    machine = Machine()
    machine.put("q", Message(b"v"))
    number, epoch, *_ = machine.take("q")
    assert machine.do(ExpireLease("q", number, epoch, False)) == Answer(False)
    again = machine.take("q")
    assert again[:3] == [number, machine.offset, 2]
    for late in (
        Ack,
        lambda *at: Nack(*at, "x"),
        lambda *at: Extend(*at, 9),
        lambda *at: ExpireLease(*at, True),
    ):
        assert machine.do(late("q", number, epoch)) == Rejected("lost", "q")
    assert machine.do(Ack("q", number, again[1])) == Answer(None)


@pytest.mark.parametrize("fold_version", [1, 2])
def test_a_message_given_back_uncounted_is_as_before_from_version_2_on(fold_version):
    machine = Machine(fold_version)
    machine.put("q", Message(b"a", b"k"), Message(b"b", b"k"), Message(b"c"))
    number, epoch, *_ = machine.take("q", max_attempts=2)
    assert machine.do(Nack("q", number, epoch, "counts")) == Answer(False)
    number, epoch, attempt, *_ = machine.take("q", max_attempts=2)
    assert (number, attempt) == (1, 2)
    before = machine.counts("q").encode()
    outcome = machine.do(Nack("q", number, epoch, "nobody got it", 0, False))
    counts = machine.counts("q")
    if fold_version == 1:  # as programs of the first release fold it
        assert outcome == Answer(True) and counts.dead == 1
        return
    assert outcome == Answer(False) and counts.dead == 0
    again = machine.take("q", max_attempts=2)
    # The first again, by number and key.
    assert (again[0], again[2], again[3], list(again[5])) == (1, 2, b"a", ["counts"])
    assert machine.counts("q").encode() == before
    assert machine.do(Nack("q", number, epoch, "late", 0, False)) == Rejected(queue_fold.LOST, "q")
