"""What becomes of a record is asked while it is being appended: it saves a question, and never decides anything alone."""

import queue
import random
from contextlib import closing

import msgspec
import pytest

from kit.ledger import entry, receipt
from kit.remote_world import RemoteWorld, Way
from onefold import config
from onefold.codec import Record
from onefold.env import SYSTEM
from onefold.errors import InvalidArgument, SpaceError, Unavailable
from onefold.log.memory import MemoryLog
from onefold.shard.remote import protocol
from onefold.shard.remote.early_outcome import EarlyOutcome
from onefold.shard.remote.protocol import Answer, Ask, Refusal, Standing
from onefold.shard.remote.request_queue import RequestQueue, WorkerPool
from onefold.shard.remote.server import Server
from onefold.shard.replica.awaited_records import AwaitedRecords
from onefold.store.exactly_once import Verdict
from onefold.store.replica import Applied
from support.replicas import SOON_S, open_replicas  # noqa: F401

RECORD = Record("c0-me", 3, 0, ())
TOLD = Standing(3, 7, (b"done",), None)


def applied(client, number, offset=7):
    return Applied(offset, client, number, Verdict.APPLY, (b"done",))


# -- a program's side


class Early:
    """An ``asking`` that has one reply."""

    def __init__(self, came):
        self.came, self.open, self.asked = came, 0, []

    def begin(self, request):
        self.asked.append(protocol.decode_ask(request))
        self.open += 1
        return self

    def wait(self, timeout):
        return self.came

    def close(self):
        self.open -= 1


def read(data):
    reply = protocol.decode_reply(data)
    if isinstance(reply, Refusal):
        if reply.elsewhere:
            return reply.error()
        raise reply.error()
    return reply


def answer(standing, *, total=None):
    body = protocol.encode_body(standing)
    return protocol.encode(Answer("i", 9, 1, body, len(body) if total is None else total))


def outcome(came, offset=7):
    asking = Early(came)
    early = EarlyOutcome(asking, MemoryLog(), read)
    early.begin(RECORD, 60)
    found = early.outcome(RECORD, offset, 60)
    assert not asking.open, "nobody waits for an answer any more"
    assert early.outcome(RECORD, offset, 60) is None, "it counts once"
    return found


def test_an_answer_that_agrees_with_the_acknowledgement_counts():
    assert outcome(answer(TOLD)) == TOLD


@pytest.mark.parametrize(
    "came",
    [
        answer(TOLD._replace(offset=6)),  # another copy of it, or another record
        answer(TOLD._replace(number=2)),
        answer(TOLD._replace(number=4)),
        answer(TOLD, total=1000),  # a piece of it
        protocol.encode(Refusal("i", 9, "Behind", "not yet", True)),
        Unavailable("nobody answers"),
        None,
        b"garbage",
    ],
)
def test_anything_else_counts_for_nothing(came):
    def forgiving(data):
        try:
            return read(data)
        except protocol.Garbled as error:
            return Unavailable(str(error))

    asking = Early(came)
    early = EarlyOutcome(asking, MemoryLog(), forgiving)
    early.begin(RECORD, 60)
    assert early.outcome(RECORD, 7, 60) is None and not asking.open
    early.begin(RECORD, 60)
    assert len(asking.asked) == 2, "the next record is asked about again"


def test_a_node_of_an_earlier_release_is_not_asked_again():
    refusal = protocol.encode(Refusal("i", 9, InvalidArgument.__name__, "what is that", False))
    asking = Early(refusal)
    early = EarlyOutcome(asking, MemoryLog(), read)
    early.begin(RECORD, 60)
    assert early.outcome(RECORD, 7, 60) is None
    early.begin(RECORD, 60)
    assert len(asking.asked) == 1 and not asking.open


def test_a_put_asks_one_question_and_asks_it_before_it_appends():
    with closing(RemoteWorld(early=True)) as world, world.connect() as db:
        m = db.map("m")
        m.put("k", 1)
        world.asked.clear()
        m.put("k", 2)
        assert world.asked == {"Written": 1}
        assert m.get("k") == 2


@pytest.mark.parametrize("seed", range(4))
def test_writes_count_once_whatever_happens_to_early_questions(seed, monkeypatch):
    monkeypatch.setattr(config, "ASK_HEDGE_S", 0.001)
    rng = random.Random(seed)
    with (
        closing(RemoteWorld(early=True, seed=seed, nodes=3, pause=lambda _: None)) as world,
        world.connect() as db,
    ):
        m, total = db.map("m"), 0
        for _ in range(40):
            world.way = Way(
                lost=rng.choice([0, 0.4]), lost_reply=rng.choice([0, 0.4]), nobody=rng.choice([0, 0.3])
            )
            by = rng.randrange(1, 9)
            total += by
            assert m.increment("n", by) == total
        world.way = Way()
        assert m.get("n") == total and world.asked["Written"] >= 40


# -- a node's side


class Told:
    def __init__(self):
        self.came = queue.SimpleQueue()

    def __call__(self, what):
        self.came.put(what)

    @property
    def one(self):
        return self.came.get(timeout=SOON_S)


def test_it_is_told_when_it_is_applied_and_when_it_was():
    awaited, told = AwaitedRecords(SYSTEM), Told()
    awaited.ask("c0-a", 1, SOON_S, told)
    assert awaited.any and told.came.empty()
    awaited.applied({"c0-b": applied("c0-b", 1), "c0-a": applied("c0-a", 1)})
    assert told.one == applied("c0-a", 1) and not awaited.any
    awaited.ask("c0-a", 1, SOON_S, told)
    assert told.one == applied("c0-a", 1)
    awaited.ask("c0-a", 2, SOON_S, told)
    assert told.came.empty()
    awaited.applied({"c0-a": applied("c0-a", 3)})
    assert told.one is None, "what became of the second is not known any more"


def test_a_client_asks_for_one_record_and_only_so_long():
    class Env(type(SYSTEM)):
        now_s = 1000.0

        def boot_s(self):
            return self.now_s

    env, told, other = Env(), Told(), Told()
    awaited = AwaitedRecords(env)
    awaited.ask("c0-a", 1, 5, told)
    awaited.ask("c0-a", 2, 5, other)
    assert told.one is None and other.came.empty()
    env.now_s += 4
    awaited.expire()
    assert other.came.empty()
    env.now_s += 2
    awaited.expire()
    assert other.one is None and not awaited.any
    awaited.ask("c0-a", 2, 5, told)
    awaited.close()
    assert told.one is None


def test_what_it_remembers_and_keeps_is_bounded(monkeypatch):
    monkeypatch.setattr(config, "AWAITED_CLIENTS_MAX", 3)
    monkeypatch.setattr(config, "ASKS_PARKED_MAX", 2)
    awaited, told = AwaitedRecords(SYSTEM), Told()
    awaited.ask("c0-early", 1, 0, told)
    awaited.applied({"c0-early": applied("c0-early", 1)})
    assert told.one.client == "c0-early"
    for n in range(5):
        awaited.applied({f"c0-{n}": applied(f"c0-{n}", 1)})
    for n in range(5):
        awaited.ask(f"c0-{n}", 1, SOON_S, told)
    assert sorted(told.one.client for _ in range(3)) == ["c0-2", "c0-3", "c0-4"]
    assert told.came.empty()
    awaited.ask("c0-more", 1, SOON_S, told)
    assert told.one is None


def test_it_keeps_small_outcomes_only_and_none_until_somebody_asks():
    def large(client):
        return applied(client, 1)._replace(outcomes=(b"x" * config.AWAITED_BYTES_MAX, b"x"))

    awaited, told = AwaitedRecords(SYSTEM), Told()
    awaited.applied({"c0-a": applied("c0-a", 1)})
    awaited.ask("c0-a", 1, SOON_S, told)
    assert told.one is None, "it is told at once that it has to ask again"
    awaited.applied({"c0-a": applied("c0-a", 2), "c0-large": large("c0-large")})
    awaited.ask("c0-large", 1, SOON_S, told)
    assert told.one is None
    awaited.ask("c0-a", 2, SOON_S, told)
    assert told.one == applied("c0-a", 2)
    awaited.ask("c0-waits", 1, SOON_S, told)
    awaited.applied({"c0-waits": large("c0-waits")})
    assert told.one == large("c0-waits"), "who waits is told, whatever its size"
    assert not any("x" * 9 in str(kept) for kept in awaited._last.values())


def test_a_node_answers_from_the_thread_that_applies_the_record(opened):
    """No thread of the pool takes part."""
    log = MemoryLog()
    space = opened(log)
    pool = WorkerPool(threads=0)
    with closing(pool), closing(RequestQueue(Server(space), pool)) as asked:
        space.submit([entry(b"first")])
        record = protocol.encode(
            Ask(protocol.PROTOCOL, log.incarnation, protocol.Written(space._writer._client, 2), wait_s=SOON_S)
        )
        replies = queue.SimpleQueue()
        asked.take(record, replies.put)
        assert replies.empty()
        space.submit([entry(b"second")])
        got = protocol.decode_reply(replies.get(timeout=SOON_S))
        standing = Standing(*protocol.decode_body(protocol.Written("c", 1), got.body))
        assert standing == (2, 2, (receipt(2, 0),), None) and got.offset == 2


def unsent(_reply):
    raise RuntimeError("it cannot be sent")


def test_a_reply_that_cannot_be_sent_halts_nothing(opened):
    """It is sent by the thread that applies records."""
    log = MemoryLog()
    space = opened(log)
    pool = WorkerPool(threads=0)
    with closing(pool), closing(RequestQueue(Server(space), pool)) as asked:
        space.submit([entry(b"first")])
        what = protocol.Written(space._writer._client, 2)
        asked.take(
            protocol.encode(Ask(protocol.PROTOCOL, log.incarnation, what, wait_s=SOON_S)),
            unsent,
        )
        space.submit([entry(b"second")])
        space.submit([entry(b"third")])
        assert space.halted is None and not space._awaited.any


def test_a_node_without_an_answer_in_time_says_so(opened, monkeypatch):
    monkeypatch.setattr(config, "ASK_EARLY_S", 0.0)
    monkeypatch.setattr("onefold.shard.replica.awaited_records._LOOK_S", 0.0)
    monkeypatch.setattr(config, "REPLICA_LOOK_S", 0.01)
    log = MemoryLog()
    space = opened(log)
    with closing(WorkerPool(threads=1)) as pool, closing(RequestQueue(Server(space), pool)) as asked:
        space.submit([entry(b"first")])
        question = Ask(protocol.PROTOCOL, log.incarnation, protocol.Written("c0-nobody", 1), wait_s=SOON_S)
        replies = queue.SimpleQueue()
        asked.take(protocol.encode(question), replies.put)
        space.submit([entry(b"second")])  # ends the wait for the log
        refusal = protocol.decode_reply(replies.get(timeout=SOON_S))
        assert isinstance(refusal, Refusal) and refusal.elsewhere
        elsewhere = msgspec.structs.replace(question, incarnation="another")
        asked.take(protocol.encode(elsewhere), replies.put)
        assert protocol.decode_reply(replies.get(timeout=SOON_S)).kind == "SpaceError"


def test_a_halted_replica_tells_nothing(opened):
    log = MemoryLog()
    space = opened(log)
    with closing(WorkerPool(threads=1)) as pool, closing(RequestQueue(Server(space), pool)) as asked:
        space.submit([entry(b"first")])
        space._halt(SpaceError("it has diverged"))
        what, replies = protocol.Written(space._writer._client, 1), queue.SimpleQueue()
        asked.take(protocol.encode(Ask(protocol.PROTOCOL, log.incarnation, what, wait_s=SOON_S)), replies.put)
        refusal = protocol.decode_reply(replies.get(timeout=SOON_S))
        assert isinstance(refusal, Refusal) and refusal.elsewhere and "diverged" in refusal.message
