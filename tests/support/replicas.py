"""Persistent replicas of a ledger, over logs in memory that end or hold records back when a test says so."""

import time
from contextlib import ExitStack, closing

import pytest

from kit.ledger import Ledger, entry, lines
from onefold.env import SYSTEM
from onefold.shard.memory import MemoryShard
from onefold.shard.replica.shard import LocalReplica

SOON_S = 60


class Tail:
    """A log as one process has it open: it ends by itself, holds back what is not let go on, and counts."""

    def __init__(self, log, upto=10**9):
        self.real, self.held, self.ended = log, log.hold(upto), False
        self.reads, self.appends = [], 0

    def __getattr__(self, name):
        return getattr(self.held, name)

    def append(self, data, deadline=None):
        self.appends += 1
        return self.held.append(data, deadline)

    def read(self, start, max_bytes=1 << 20):
        self.reads.append(start)
        return self.held.read(start, max_bytes)

    def wait(self, after, timeout):
        self.real._moved.wait_for(
            lambda: self.ended or self.held._seen(self.real._end()) > after or self.real._closed, timeout
        )
        return self.held._seen(self.real._end())

    def close(self):
        self.ended = True
        self.real._moved.notify()


@pytest.fixture(name="opened")
def open_replicas(tmp_path):
    """Opens replicas that share a folder, and closes them in the end."""
    with ExitStack() as stack:

        def open_one(log, *, folds=None, **options):
            tail = log if isinstance(log, Tail) else Tail(log)
            options.setdefault("directory", tmp_path / "replica")
            space = LocalReplica(tail, folds or [Ledger()], SYSTEM, url="nats://here/space", **options)
            return stack.enter_context(closing(space))

        yield open_one


def fill(log, count, name=b"t"):
    with closing(MemoryShard(log.hold(10**9), [Ledger()], SYSTEM)) as space:
        for number in range(count):
            space.submit([entry(b"%s%d" % (name, number))])


def ledger_of(space):
    with space.view() as view:
        return set(lines(view))


def until(condition):
    end = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.005)


def copies(tmp_path):
    return sorted(path.name for path in (tmp_path / "replica").glob("copy_*"))
