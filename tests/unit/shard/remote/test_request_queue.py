"""Questions that wait at a node: they take no thread, are bounded, and end in time or when it closes."""

import threading
from contextlib import ExitStack, closing

import pytest

from onefold.shard.remote import protocol
from onefold.shard.remote.protocol import Answer, Refusal
from onefold.shard.remote.request_queue import RequestQueue, WorkerPool
from onefold.state.encoding.keys import encode_key
from support.serving_node import SOON_S, TABLE, Replies, refused, until


@pytest.fixture
def office(node):
    with ExitStack() as stack:

        def make(threads=2, queued_max=1000, **options):
            pool = stack.enter_context(closing(WorkerPool(threads, queued_max)))
            return stack.enter_context(closing(RequestQueue(node.server, pool, **options)))

        yield make


def test_a_thousand_waiting_programs_take_no_thread(node, office):
    queue, replies = office(), Replies()
    before = threading.active_count()
    here = node.space.applied
    waiting = node.question(protocol.Beyond(here), wait_s=SOON_S)
    for _ in range(1000):
        queue.take(waiting, replies.take)
        if queue._pool.queued > 500:
            until(lambda: not queue._pool.queued)
    until(lambda: queue.waiting == 1000)
    assert threading.active_count() <= before  # one of an earlier test may have ended meanwhile
    other = Replies()
    queue.take(node.question(protocol.Get(TABLE, (encode_key("a"),))), other.take)
    assert isinstance(other.wait(1)[0], Answer)  # and they are in nobody's way
    node.m.put("a", 9)
    assert {(type(reply), reply.offset) for reply in replies.wait(1000)} == {(Answer, here + 1)}
    assert not queue.waiting


def test_waits_end_in_time(node, office):
    queue, replies = office(), Replies()
    here = node.space.applied
    queue.take(node.question(protocol.Beyond(here), wait_s=0.05), replies.take)
    queue.take(node.question(protocol.Get(TABLE, (b"k",)), after=here + 1, wait_s=0.05), replies.take)
    got = replies.wait(2)
    assert {type(reply) for reply in got} == {Answer, Refusal}
    refused(next(r for r in got if isinstance(r, Refusal)), "was asked for", kind="Behind", elsewhere=True)


def test_strong_reads_that_wait_together_share_a_barrier_and_no_later_one_joins_it(node, office, monkeypatch):
    queue, replies, late = office(), Replies(), Replies()
    append, began, go = node.delivered.append, threading.Event(), threading.Event()

    def slow(data, deadline=None):
        began.set()
        assert go.wait(SOON_S)
        return append(data)

    monkeypatch.setattr(node.delivered, "append", slow)
    strong = node.question(protocol.Get(TABLE, (encode_key("a"),)), barrier=True, wait_s=SOON_S)
    queue.take(strong, replies.take)
    assert began.wait(SOON_S)
    for _ in range(50):
        queue.take(strong, late.take)
    until(lambda: queue.waiting == 50)
    end = node.log.last
    node.m.put(
        "a", 9
    )  # acknowledged before the 50 are answered, after they were asked: they may show it or not
    go.set()
    assert len(late.wait(50)) == 50
    replies.wait(1)
    assert node.log.last == end + 3  # the write, and two barriers


def test_who_comes_when_there_is_too_much_to_do_is_sent_elsewhere(node, office, monkeypatch):
    go, busy = threading.Event(), threading.Event()

    def slow(ask, late):
        busy.set()
        assert go.wait(SOON_S)
        return original(ask, late)

    original = node.server.run
    monkeypatch.setattr(node.server, "run", slow)
    queue, replies = office(threads=1, queued_max=3), Replies()
    question = node.question(protocol.Applied())
    queue.take(question, replies.take)
    assert busy.wait(SOON_S)
    for _ in range(5):
        queue.take(question, replies.take)
    refusals = replies.wait(2)
    for reply in refusals:
        refused(reply, "too many questions", kind="Unavailable", elsewhere=True)
    go.set()
    assert sum(isinstance(reply, Answer) for reply in replies.wait(6)) == 4


def test_parked_questions_are_bounded(node, office):
    queue, replies = office(parked_max=2), Replies()
    for _ in range(3):
        queue.take(node.question(protocol.Beyond(node.space.applied), wait_s=SOON_S), replies.take)
    refused(replies.wait(1)[0], "too many questions", kind="Unavailable", elsewhere=True)
    assert queue.waiting == 2


def test_closing_refuses_what_waits_and_what_comes(node, office):
    queue, replies = office(), Replies()
    queue.take(node.question(protocol.Beyond(node.space.applied), wait_s=SOON_S), replies.take)
    until(lambda: queue.waiting == 1)
    queue.close()
    queue.take(node.question(protocol.Applied()), replies.take)
    for reply in replies.wait(2):
        refused(reply, "stops serving", kind="Unavailable", elsewhere=True)


def test_a_replica_that_fails_answers_all_who_wait(node, office):
    queue, replies = office(), Replies()
    for _ in range(3):
        queue.take(node.question(protocol.Beyond(node.space.applied), wait_s=SOON_S), replies.take)
    until(lambda: queue.waiting == 3)
    node.log._stored[-1].data = b"damaged"
    node.log.append(b"not a record of this log")
    node.log.lose(node.log.last)
    for reply in replies.wait(3):
        refused(reply, "cannot serve", kind="Unavailable", elsewhere=True)


def test_garbage_at_the_desk_is_answered(node, office):
    queue, replies = office(), Replies()
    queue.take(b"garbage", replies.take)
    refused(replies.wait(1)[0], "does not understand")


def test_a_reply_that_cannot_be_sent_ends_no_thread(node, office):
    tried = []

    def unsent(data):
        tried.append(data)
        raise RuntimeError("it cannot be sent")

    queue, replies = office(threads=1), Replies()
    for reply, came in ((unsent, tried), (replies.take, replies.got)):
        queue.take(node.question(protocol.Applied()), reply)
        queue.take(node.question(protocol.Beyond(node.space.applied), wait_s=SOON_S), reply)
        until(lambda: queue.waiting == 1)
        queue.take(node.question(protocol.Applied(), barrier=True, wait_s=SOON_S), reply)
        until(lambda came=came: len(came) == 3)
    assert not any(isinstance(reply, Refusal) for reply in replies.got)
