"""A shard that moves when it is told to, and groups of waiters that note what they hear."""

import contextlib
import threading

import onefold as of
from onefold.shard.waiters import NOTHING, Group


class Told:
    """An interest whose check says what it is told to."""

    key = "told"

    def __init__(self, *members):
        self.members = members
        self.notice = NOTHING
        self.asked = []

    def check(self, view, after):
        self.asked.append((after, view.offset))
        if isinstance(self.notice, Exception):
            raise self.notice
        return self.notice


class Silent:
    """A shard that moves when it is told to."""

    def __init__(self):
        self.offset = 0
        self.closed = False
        self.dead = set()
        self.asked = []
        self.changed = threading.Condition()

    def move(self):
        with self.changed:
            self.offset += 1
            self.changed.notify_all()

    def close(self):
        with self.changed:
            self.closed = True
            self.changed.notify_all()

    def wait(self, after, timeout):
        with self.changed:
            self.changed.wait_for(lambda: self.offset > after or self.closed, timeout)
            if self.closed:
                raise of.SpaceError("closed")
            return self.offset

    def member_alive(self, member):
        self.asked.append(member)
        return False if member in self.dead else None

    @contextlib.contextmanager
    def view(self):
        if self.closed:
            raise of.SpaceError("closed")
        yield self


class Noting(Group):
    def __init__(self, interest, offset):
        super().__init__(interest, offset)
        self.notices = []
        self.there = True

    def notify(self, notice):
        self.notices.append((self.checked, notice))
        return self.there

    def tend(self):
        pass


def wait_until(condition):
    for _ in range(24_000):
        if condition():
            return
        threading.Event().wait(0.005)
    raise AssertionError("it did not come to be")
