"""A signal that comes while SQLite steps is handled before the row is fetched: the read it leaves open must not stay."""

from contextlib import suppress

import pytest

import onefold as of
from kit.ledger import entry
from onefold.log.memory import MemoryLog
from support.replicas import SOON_S, open_replicas  # noqa: F401


class Interrupting:
    """A cursor whose next read is interrupted when its statement has stepped once."""

    def __init__(self, cursor):
        self._cursor, self.armed = cursor, True

    def execute(self, sql, *arguments):
        stepped = self._cursor.execute(sql, *arguments)
        if self.armed and sql.startswith("SELECT"):
            self.armed = False
            raise KeyboardInterrupt
        return stepped

    def __getattr__(self, name):
        return getattr(self._cursor, name)


def interrupt_next_read(replica):
    replica._store._cursor = cursor = Interrupting(replica._store._cursor)
    return cursor


def replica_of(db):
    return db._client.shards[0]._replica


def test_an_interrupted_read_of_a_commit_does_not_end_the_writing(tmp_path):
    with of.connect(tmp_path / "space") as db, of.connect(tmp_path / "space") as other:
        m = db.map("m")
        m.put("k", 0)
        m.increment("k")
        cursor = interrupt_next_read(replica_of(db))
        with pytest.raises(KeyboardInterrupt) as kept:  # its traceback lives on
            m.increment("k")
        assert not cursor.armed and kept.value.__traceback__ is not None
        other.map("m").put("by another", 1)
        assert m.increment("k") == 2
        assert m.get("by another") == 1


@pytest.mark.parametrize("whose", ["_store", None])
def test_nor_does_one_of_a_copy_of_a_replica(opened, whose):
    log = MemoryLog()
    space, other = opened(log), opened(log)
    space.submit([entry(b"first")])
    copy = space._holder.copy
    cursor = copy.replica.cursor if whose is None else copy.replica._store._cursor
    with suppress(KeyboardInterrupt), copy.file.writing(SOON_S):
        cursor.execute("SELECT applied FROM head, (SELECT 1 UNION ALL SELECT 2)")
        raise KeyboardInterrupt
    other.submit([entry(b"second")])
    assert space.reach(other.catch_up(), SOON_S)
    with other._holder.copy.file.writing(SOON_S) as con:
        con.execute(
            "UPDATE meta SET value = value"
        )  # whoever has applied the second, this one writes after the read
    with copy.file.writing(SOON_S):
        pass
