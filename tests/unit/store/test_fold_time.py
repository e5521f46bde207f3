"""Folds are asked what fold time brings at the times that they gave, and when what they looked at has changed."""

import apsw
import msgspec
import pytest

from onefold.codec import Op, Record, encode_record
from onefold.fold.api import NEVER
from onefold.fold.system import Register, system_op
from onefold.log.api import Entry
from onefold.state.encoding.values import encode_value
from onefold.state.fold.machine import StateFold
from onefold.state.fold.maps.ops import Put
from onefold.state.fold.ops import Commit, state_op
from onefold.state.fold.queues.ops import Enqueue, Message
from onefold.store.replica import Replica
from onefold.store.snapshot import create_store
from onefold.store.tables import Tables

DUE, OTHER = "alarm/due", "alarm/other"


class Alarm:
    """Ends the entries of a table when their time has come, and notes when it was asked."""

    name, version, history = "alarm", 1, frozenset()

    def __init__(self):
        self.asked = []

    def advance(self, store, context):
        self.asked.append(context.now_ms)
        first = store.first(DUE)
        if first is None:
            return NEVER
        if int.from_bytes(first, "big") > context.now_ms:
            return int.from_bytes(first, "big")
        store.delete(DUE, first)
        return context.now_ms

    def apply(self, store, context, body, fold_version):
        table, at_ms = msgspec.msgpack.decode(body)
        store.put(table, at_ms.to_bytes(8, "big"), b"")
        return b""


class Applier:
    """A replica that is given a record at a time, all of one client."""

    def __init__(self, *folds):
        self.con = apsw.Connection(":memory:")
        create_store(self.con)
        self.tables = Tables()
        self.replica = Replica(self.con, self.tables, folds)
        self.number = 0

    def record(self, now_ms, *ops, foreign=0, fails=False):
        self.con.execute("BEGIN")
        head = self.replica.load(foreign)
        data = encode_record(Record("c0-a", self.number + 1, now_ms, ops))
        self.replica.apply(Entry(head.applied + 1, data, now_ms))
        self.replica.flush()
        self.con.execute("ROLLBACK" if fails else "COMMIT")
        if fails:
            self.replica.rollback()
        else:
            self.number += 1
            self.replica.commit()

    def rows(self, table):
        tid = self.tables.find(self.con, table)
        return [key for (key,) in self.con.execute("SELECT k FROM kv WHERE t = ?", (tid,))]


def put(table, at_ms):
    return Op("alarm", msgspec.msgpack.encode((table, at_ms)))


@pytest.fixture
def alarm():
    return Alarm()


@pytest.fixture
def applier(alarm):
    applier = Applier(alarm)
    applier.record(10, system_op(Register(("alarm",))))
    return applier


def test_a_fold_is_not_asked_before_its_time(alarm, applier):
    applier.record(20, put(DUE, 100))
    for now_ms in (30, 40, 99):
        applier.record(now_ms, put(OTHER, now_ms))
    assert alarm.asked == [20, 30]
    applier.record(100, put(OTHER, 1))
    assert alarm.asked == [20, 30, 100]
    assert not applier.rows(DUE)


def test_one_that_was_late_is_asked_until_nothing_is_due(alarm, applier):
    applier.record(20, put(DUE, 21), put(DUE, 22), put(DUE, 500))
    for now_ms in (30, 31, 32, 33):
        applier.record(now_ms, put(OTHER, 1))
    assert alarm.asked == [20, 30, 31, 32]
    assert applier.rows(DUE) == [(500).to_bytes(8, "big")]


def test_writing_to_what_it_looked_at_has_it_asked_again(alarm, applier):
    applier.record(20, put(OTHER, 1))
    applier.record(30, put(OTHER, 2))
    assert alarm.asked == [20]
    applier.record(40, put(DUE, 45))
    applier.record(50, put(OTHER, 3))
    assert alarm.asked == [20, 50]
    assert not applier.rows(DUE)


@pytest.mark.parametrize("change", [{"foreign": 1}, {"fails": True}], ids=["others", "rollback"])
def test_it_is_asked_again_when_what_is_remembered_may_be_wrong(alarm, applier, change):
    applier.record(20, put(OTHER, 1))
    applier.record(30, put(OTHER, 2), **change)
    applier.record(40, put(OTHER, 3), foreign=change.get("foreign", 0))
    assert alarm.asked == ([20, 30] if "foreign" in change else [20, 40])


def test_a_fold_that_is_registered_later_is_asked_from_then_on(alarm):
    applier = Applier(alarm, StateFold())
    applier.record(10, system_op(Register(("state",))))
    applier.record(20, put_in_map(1000))
    applier.record(30, system_op(Register(("alarm",))))
    applier.record(40, put_in_map(1000))
    assert alarm.asked == [40]


def test_one_that_another_fold_gives_work_in_the_same_record_is_asked_again():
    class Second(Alarm):
        """Comes after the first, and writes to what that has looked at, as no fold of ours does."""

        name = "alarm/second"

        def advance(self, store, context):
            super().advance(store, context)
            if context.now_ms == 20:
                store.turn("alarm", -1)
                store.put(DUE, (25).to_bytes(8, "big"), b"")
            return NEVER

    first = Alarm()
    applier = Applier(first, Second())
    applier.record(10, system_op(Register(("alarm", "alarm/second"))))
    applier.record(20, put(OTHER, 1))
    applier.record(30, put(OTHER, 1))
    assert first.asked == [20, 30]
    assert not applier.rows(DUE)


def put_in_map(ttl_ms):
    return state_op(Commit((), (), (Put("m", ((b"\x02k\0", encode_value(1)),), ttl_ms),)))


def test_an_item_and_a_message_come_in_their_time_among_records_of_no_concern():
    """What the state fold says of its own times: of both kinds, whichever is first."""
    applier = Applier(StateFold())
    applier.record(10, system_op(Register(("state",))))
    delayed = state_op(Commit((), (), (Enqueue("q", (Message(encode_value(1), delay_ms=500),)),)))
    quiet = state_op(Commit((), (), (Put("other", ((b"\x02k\0", encode_value(1)),), None),)))
    applier.record(20, put_in_map(1000), delayed)
    counts = []
    for now_ms in (30, 519, 520, 521, 1019, 1020, 1021):
        applier.record(now_ms, quiet)
        due = applier.rows("state/due"), applier.rows("state/qdue")
        counts.append((now_ms, len(due[0]), len(due[1])))
    assert counts == [
        (30, 1, 1),
        (519, 1, 1),
        (520, 1, 0),
        (521, 1, 0),
        (1019, 1, 0),
        (1020, 0, 0),
        (1021, 0, 0),
    ]
