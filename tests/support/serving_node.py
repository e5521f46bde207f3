"""A node's server over a shard in memory, and questions to it."""

import threading

import msgspec

from kit.remote_world import Delivered
from onefold.env import SYSTEM
from onefold.log.memory import MemoryLog
from onefold.shard.memory import MemoryShard
from onefold.shard.remote import protocol
from onefold.shard.remote.protocol import Answer, Ask, Refusal
from onefold.shard.remote.server import Server
from onefold.state.core.client import StateClient
from onefold.state.encoding.keys import encode_key
from onefold.state.fold import rows
from onefold.state.fold.machine import StateFold
from onefold.state.maps.map import Map

TABLE = rows.map_table("m")
SOON_S = 60.0
"""Longer than anything here takes."""


class Node:
    """A replica of a log in memory with a map ``m`` that is written by another."""

    def __init__(self, **options):
        self.log = MemoryLog()
        self.writer = MemoryShard(Delivered(self.log), [StateFold()], SYSTEM)
        self.client = StateClient([self.writer])
        self.m = Map(self.client, "m")
        self.delivered = Delivered(self.log)
        self.space = MemoryShard(self.delivered, [StateFold()], SYSTEM, replica=True)
        self.server = Server(self.space, **options)

    def ask(self, what, **fields):
        return self.reply(self.question(what, **fields))

    def question(self, what, **fields):
        return protocol.encode(Ask(protocol.PROTOCOL, self.log.incarnation, what, **fields))

    def reply(self, request):
        return protocol.decode_reply(self.server.answer(request))

    def result(self, what, **fields):
        reply = self.ask(what, **fields)
        assert isinstance(reply, Answer), reply
        return protocol.decode_body(what, reply.body)

    def get(self, key, **fields):
        data = self.result(protocol.Get(TABLE, (encode_key(key),)), **fields)[0]
        return None if data is None else msgspec.msgpack.decode(rows.read_row(data).value)

    def close(self):
        self.space.close()
        self.client.close()


def refused(reply, match, *, kind="InvalidArgument", elsewhere=False):
    assert isinstance(reply, Refusal), reply
    assert match in reply.message, reply
    assert (reply.kind, reply.elsewhere, reply.error().definite) == (kind, elsewhere, True)


class Replies:
    """Collects replies."""

    def __init__(self):
        self.changed = threading.Condition()
        self.got = []

    def take(self, data, deadline=None):
        with self.changed:
            self.got.append(protocol.decode_reply(data))
            self.changed.notify_all()

    def wait(self, count):
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.got) >= count, SOON_S), (len(self.got), count)
            return list(self.got)


def until(condition):
    waited = threading.Event()
    for _ in range(int(SOON_S / 0.005)):
        if condition():
            return
        waited.wait(0.005)
    raise AssertionError("it did not come")
