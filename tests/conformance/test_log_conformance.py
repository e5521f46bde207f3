"""Both engines keep the log contract."""

import apsw
import pytest

from onefold.log.memory import MemoryLog
from onefold.log.sqlite import checksums
from onefold.log.sqlite.engine import SqliteLog
from onefold.testing import check_log


def _flip(path, log, offset, bit):
    con = apsw.Connection(str(path / "space.db"), vfs=checksums.VFS)
    data = bytearray(con.execute("SELECT data FROM log WHERE offset = ?", (offset,)).get)
    data[bit // 8] ^= 1 << bit % 8
    con.execute("UPDATE log SET data = ? WHERE offset = ?", (bytes(data), offset))
    con.close()


def _lose(path, log, offset):
    con = apsw.Connection(str(path / "space.db"), vfs=checksums.VFS)
    con.execute("DELETE FROM log WHERE offset = ?", (offset,))
    con.close()


MEMORY = check_log(
    lambda path: MemoryLog(),
    damage=lambda path, log, offset, bit: log.flip(offset, bit),
    lose=lambda path, log, offset: log.lose(offset),
)
SQLITE = check_log(SqliteLog, shared=True, durable=True, damage=_flip, lose=_lose)


@pytest.mark.parametrize("check", MEMORY, ids=str)
def test_memory(check, tmp_path):
    check(tmp_path)


@pytest.mark.parametrize("check", SQLITE, ids=str)
def test_sqlite(check, tmp_path):
    check(tmp_path)
