"""Questions of another region at a node: answered as soon as there is something to tell, and in the end in any case."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest

from onefold.env import SYSTEM
from onefold.errors import InvalidArgument
from onefold.shard.api import View
from onefold.shard.remote import protocol
from onefold.shard.remote.protocol import Answer
from onefold.shard.remote.request_queue import RequestQueue, WorkerPool
from onefold.shard.remote.shard import RemoteShard
from onefold.shard.requirements import ReadRequirement
from onefold.state.fold.machine import StateFold
from support.serving_node import SOON_S, Node, Replies, refused, until


def exchanging(view: View, question: bytes, late: bool) -> bytes | None:
    """Tells the state's offset once it is beyond the one in question."""
    if not question.isdigit():
        raise InvalidArgument("no number")
    if view.offset > int(question):
        return b"%d" % view.offset + b"." * 3000
    return b"nothing" if late else None


@pytest.fixture
def region() -> Iterator[Node]:
    with closing(Node(exchanging=exchanging, reply_bytes=1000)) as made:
        made.m.put("a", 1)
        made.space.catch_up()
        yield made


def told(node: Node, question: bytes, wait_s: float = 0.0) -> bytes:
    reply = node.ask(protocol.Exchange(question), wait_s=wait_s)
    assert isinstance(reply, Answer), reply
    return reply.body


def test_what_there_is_to_tell_is_told_at_once(region: Node) -> None:
    here = b"%d" % region.space.applied
    assert here in told(region, b"0", wait_s=SOON_S)
    assert told(region, here, wait_s=0.02).endswith(b"nothing")
    refused(region.ask(protocol.Exchange(b"x")), "no number")


def test_other_logs_refuse_it() -> None:
    with closing(Node()) as node:
        refused(node.ask(protocol.Exchange(b"0")), "does not belong to a region")


def test_it_waits_without_a_thread_until_there_is_something(region: Node) -> None:
    with ExitStack() as stack:
        pool = stack.enter_context(closing(WorkerPool(1)))
        queue = stack.enter_context(closing(RequestQueue(region.server, pool)))
        replies, late = Replies(), Replies()
        here = region.space.applied
        queue.take(region.question(protocol.Exchange(b"%d" % (here + 1)), wait_s=SOON_S), replies.take)
        queue.take(region.question(protocol.Exchange(b"%d" % (here + 1)), wait_s=0.05), late.take)
        assert late.wait(1)[0].body.endswith(b"nothing")
        region.m.put("a", 2)
        until(lambda: region.space.catch_up() > here)
        until(lambda: queue.waiting == 1 and not queue._pool.queued)  # there was nothing yet, and it waits on
        assert not replies.got
        region.m.put("a", 3)
        assert replies.wait(1)[0].offset == here + 2
        queue.take(region.question(protocol.Exchange(b"x"), wait_s=SOON_S), replies.take)
        refused(replies.wait(2)[1], "no number")


def test_a_long_answer_comes_in_pieces_of_one_state(region: Node) -> None:
    asked = []

    def asking(request: bytes, timeout: float, *, hedge_s: float) -> bytes:
        asked.append(hedge_s)
        answer = region.server.answer(request)
        region.m.put("a", len(asked))  # it moves between two pieces
        region.space.catch_up()
        return answer

    with closing(RemoteShard(region.delivered, asking, [StateFold()], SYSTEM, url="nats://x/y")) as shard:
        offset, result = shard.ask(protocol.Exchange(b"0"), ReadRequirement(timeout=SOON_S))
    assert result == b"%d" % offset + b"." * 3000
    assert len(asked) == 4 and min(asked) >= SOON_S, "another node knows no more, so none is asked"
