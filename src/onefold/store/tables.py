"""The store: ordered tables of bytes in SQLite, and the old versions of those that keep history.

All fold tables are rows of one table ``kv(t, k, v)``: a new fold table needs no DDL, and small tables share pages, so a
commit writes few. Measured against one SQLite table per fold table: the same rates for gets and bulk puts.

**History.** ``history(t, span, k, offset, idx, v)`` says what key ``k`` held *before* the write at (offset, idx); NULL: it was
not there. So reading at offset o takes the oldest row beyond o, else the present value; an unchanged key costs nothing and
removing old rows never touches a live one. What lies before the window is ``TooOld``. A *span* is ``SPAN`` offsets: inside of
one the rows are in key order. So what one key held takes a look into each span since, what a span changed is read at once,
what is new goes to one page at the end, and what is old is removed from the front. By key alone every write would touch a page
of its own, and need an index by offset besides.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, cast

import apsw

from onefold import config
from onefold.errors import InvalidArgument, LogCorrupt, SpaceError, TooOld
from onefold.store.paged_view import PagedView, Version
from onefold.store.pending import SPAN, fetch

STORE_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS tables(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, since INTEGER)",
    "CREATE TABLE IF NOT EXISTS kv(t INTEGER, k BLOB, v BLOB NOT NULL, PRIMARY KEY(t, k)) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS history(t INTEGER, span INTEGER, k BLOB, offset INTEGER, idx INTEGER, v BLOB,"
    " PRIMARY KEY(t, span, k, offset, idx)) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS clients(client TEXT PRIMARY KEY, number INTEGER NOT NULL, offset INTEGER NOT NULL,"
    " outcomes BLOB NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS requests(request TEXT PRIMARY KEY, until_ms INTEGER NOT NULL, outcome BLOB NOT NULL)"
    " WITHOUT ROWID",
    "CREATE INDEX IF NOT EXISTS requests_by_end ON requests(until_ms)",
    "CREATE TABLE IF NOT EXISTS folds(name TEXT PRIMARY KEY, since INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS digests(offset INTEGER PRIMARY KEY, digest BLOB NOT NULL)",
    "CREATE TABLE IF NOT EXISTS refused(offset INTEGER PRIMARY KEY, reason TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS head(id INTEGER PRIMARY KEY CHECK(id = 1), applied INTEGER NOT NULL,"
    " now_ms INTEGER NOT NULL, fold_version INTEGER NOT NULL, client_floor INTEGER NOT NULL,"
    " log_first INTEGER NOT NULL, digest BLOB NOT NULL, refused INTEGER NOT NULL,"
    " client TEXT, number INTEGER, client_offset INTEGER, outcomes BLOB)",
    "INSERT OR IGNORE INTO head(id, applied, now_ms, fold_version, client_floor, log_first, digest, refused)"
    " VALUES(1, 0, 0, 1, 0, 1, x'', 0)",
)
STATE_TABLES = ("tables", "kv", "history", "clients", "requests", "folds", "digests", "refused", "head")

_GET_MANY = 256
GET = "SELECT v FROM kv WHERE t = ? AND k = ?"
_SPANS = (
    "WITH RECURSIVE spans(n) AS (SELECT min(span) FROM history WHERE t = ?1 AND span >= ?2 UNION ALL"
    " SELECT (SELECT min(span) FROM history WHERE t = ?1 AND span > n) FROM spans WHERE n IS NOT NULL) "
)
"""The spans from ?2 on in which the table ?1 was written."""
_AT = (
    f"{_SPANS}SELECT v FROM spans CROSS JOIN history ON t = ?1 AND span = n AND k = ?3 AND (offset, idx) > (?4, ?5)"
    " ORDER BY offset, idx LIMIT 1"
)
_LAST_IDX = (1 << 63) - 1
_PEEK = (
    "SELECT (SELECT v FROM kv WHERE t = ? AND k = ?), applied, now_ms, fold_version, client_floor, log_first, digest, refused"
    " FROM head"
)
_HEAD = "SELECT applied, now_ms, fold_version, client_floor, log_first, digest, refused FROM head"


class Head(NamedTuple):
    """Where the folded state stands."""

    applied: int
    now_ms: int
    fold_version: int
    client_floor: int
    log_first: int
    digest: bytes
    refused: int
    """How many records were refused so far."""


def read_head(con: apsw.Connection) -> Head:
    """The store's head as of the connection's transaction."""
    row = con.execute(_HEAD).fetchone()
    if row is None or not isinstance(row[5], bytes):
        raise LogCorrupt("the store has lost its head. Rebuild it from the log or a snapshot")
    return Head(*row)


def peek(con: apsw.Connection, tid: int, key: bytes) -> tuple[bytes | None, Head]:
    """The newest value and the head, in one statement, so they belong together without a transaction."""
    row = con.execute(_PEEK, (tid, key)).fetchone()
    if row is None or not isinstance(row[6], bytes):
        raise LogCorrupt("the store has lost its head. Rebuild it from the log or a snapshot")
    return row[0], Head(*row[1:])


def oldest_readable(applied: int) -> int:
    """The lowest offset that can be read when ``applied`` is the last one: the window, moved in steps."""
    step = config.HISTORY_PRUNE_EVERY_OFFSETS
    return max(0, applied // step * step - config.HISTORY_WINDOW_OFFSETS)


def check_readable(head: Head, version_max: int, at: int | None) -> None:
    """Whether this program may read the state, and at that offset. Raises SpaceError, InvalidArgument and TooOld."""
    if head.fold_version > version_max:
        raise SpaceError(
            f"the space is at fold version {head.fold_version}; this program knows {version_max}. "
            "Upgrade: pip install -U onefold"
        )
    if at is not None and at > head.applied:
        raise InvalidArgument(f"offset {at} is beyond the applied offset {head.applied}")
    if at is not None and at < oldest_readable(head.applied):
        raise TooOld(f"offset {at}: history is kept from offset {oldest_readable(head.applied)} on")


class Tables:
    """Ids of the fold tables by name: they never change, so one cache serves all connections to a store."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}

    def find(self, con: apsw.Connection, name: str) -> int:
        """The table's id; 0 when nothing was ever written to it."""
        found = self._ids.get(name)
        if found is None:
            row = con.execute("SELECT id FROM tables WHERE name = ?", (name,)).fetchone()
            if row is None:
                return 0
            found = int(row[0])
            self._ids[name] = found
        return found

    def learn(self, ids: Mapping[str, int]) -> None:
        """Ids that a transaction made, once it is committed."""
        self._ids.update(ids)


class _Ended:
    """Stands for the connection of a view whose block has ended."""

    def __getattr__(self, name: str) -> object:
        raise SpaceError("a view is valid inside its `with` block only; open another")


class SqlView(PagedView):
    """A ``StoreView`` over one connection; anyone who lends the connection says what it shows."""

    def __init__(self, con: apsw.Connection, tables: Tables) -> None:
        self._con = con
        self._tables = tables

    def end(self) -> None:
        """The view is over: using it from now on raises SpaceError."""
        self._con = cast(apsw.Connection, _Ended())

    def _id(self, table: str) -> int:
        return self._tables.find(self._con, table)

    def get(self, table: str, key: bytes) -> bytes | None:
        row = self._con.execute(GET, (self._id(table), key)).fetchone()
        return None if row is None else row[0]

    def get_many(self, table: str, keys: Iterable[bytes]) -> Mapping[bytes, bytes]:
        tid, wanted = self._id(table), list(keys)
        found: dict[bytes, bytes] = {}
        for at in range(0, len(wanted), _GET_MANY):
            found.update(fetch(self._con, tid, wanted[at : at + _GET_MANY]))
        return found

    def _page(
        self, table: str, start: bytes, stop: bytes | None, rows: int, reverse: bool
    ) -> tuple[list[tuple[bytes, bytes]], bool]:
        tid = self._id(table)
        page = (
            self._pairs(tid, start, stop, rows, reverse) if tid else []
        )  # 0: nothing was ever written to it
        return page, len(page) == rows

    def _pairs(
        self, tid: int, start: bytes, stop: bytes | None, rows: int, reverse: bool
    ) -> list[tuple[bytes, bytes]]:
        bound, args = between(tid, start, stop)
        order = "DESC" if reverse else "ASC"
        sql = f"SELECT k, v FROM kv WHERE {bound} ORDER BY k {order} LIMIT ?"
        return _rows(self._con, sql, (*args, rows))

    def count(self, table: str, start: bytes = b"", stop: bytes | None = None) -> int:
        bound, args = between(self._id(table), start, stop)
        return int(str(self._con.execute(f"SELECT count(*) FROM kv WHERE {bound}", args).get))

    def tables(self, prefix: str) -> list[str]:
        """Names of the tables that begin so, in order."""
        stop = prefix + "\U0010ffff"
        found = _rows(
            self._con, "SELECT name FROM tables WHERE name >= ? AND name < ? ORDER BY name", (prefix, stop)
        )
        return [str(name) for (name,) in found if str(name).startswith(prefix)]

    def head(self) -> Head:
        """Where the state stands that this view shows."""
        return read_head(self._con)

    # -- history

    def get_at(self, table: str, key: bytes, offset: int) -> bytes | None:
        """The value as of ``offset``. Raises TooOld; InvalidArgument when the table keeps no history."""
        tid = self._kept_id(table, offset)
        row = self._con.execute(GET, (tid, key)).fetchone()
        # The present value first, then older ones: a write in between is then seen as its old value.
        old = self._con.execute(_AT, (tid, offset // SPAN, key, offset, _LAST_IDX)).fetchone()
        if old is not None:
            row = old
        return None if row is None else row[0]

    def _changes_page(
        self,
        table: str,
        after: int,
        within: tuple[int, bytes] | None,
        start: bytes,
        stop: bytes | None,
        rows: int,
    ) -> tuple[list[Version], bool]:
        tid = self._kept_id(table, after)
        bound, args = between(tid, start, stop)
        sql = (
            f"SELECT offset, idx, k FROM history WHERE {bound} AND span = ? AND (offset, idx, k) > (?, ?, ?)"
            " ORDER BY offset, idx, k LIMIT ?"
        )
        beyond = (after, _LAST_IDX, b"") if within is None else (after + 1, *within)
        found: list[Any] = []
        spans = _rows(self._con, f"{_SPANS}SELECT n FROM spans WHERE n IS NOT NULL", (tid, after // SPAN))
        for (span,) in spans:
            found += _rows(self._con, sql, (*args, span, *beyond, rows - len(found)))
            if len(found) >= rows:
                break
        changes = [
            Version(offset, idx, key, self._value_after(tid, key, offset, idx)) for offset, idx, key in found
        ]
        return changes, False

    def changed_since(self, table: str, start: bytes, stop: bytes | None, offset: int) -> bool:
        tid = self._kept_id(table, offset)
        if not tid:
            return False  # never written; and the offset, which was not looked at, may be none that SQLite can hold
        return bool(self._written_since(tid, "1", "LIMIT 1", start, stop, offset))

    def _written_since(
        self, tid: int, columns: str, tail: str, start: bytes, stop: bytes | None, beyond: int
    ) -> list[Any]:
        bound = "k >= ?3" if stop is None else "k >= ?3 AND k < ?5"
        sql = f"{_SPANS}SELECT {columns} FROM spans CROSS JOIN history ON t = ?1 AND span = n AND {bound} AND offset > ?4 {tail}"
        args = (tid, beyond // SPAN, start, beyond)
        return _rows(self._con, sql, args if stop is None else (*args, stop))

    def _value_after(self, tid: int, key: bytes, offset: int, idx: int) -> bytes | None:
        row = self._con.execute(_AT, (tid, offset // SPAN, key, offset, idx)).fetchone()
        row = row or self._con.execute(GET, (tid, key)).fetchone()
        return None if row is None else row[0]

    def _applied(self) -> int:
        return read_head(self._con).applied

    def _kept_id(self, table: str, offset: int) -> int:
        tid = self._id(table)
        if not tid:
            return 0
        since = self._con.execute("SELECT since FROM tables WHERE id = ?", (tid,)).get
        if since is None:
            raise InvalidArgument(f"the table {table} keeps no history; list it in its fold's `history`")
        applied = self._applied()
        if offset > applied:
            raise InvalidArgument(f"offset {offset} is beyond the applied offset {applied}")
        oldest = max(int(str(since)), oldest_readable(applied))
        if offset < oldest:
            raise TooOld(
                f"{table} at offset {offset}: history is kept from offset {oldest} on. Read a newer version"
            )
        return tid


class PresentView(SqlView):
    """A view of the newest state: its connection is in a read transaction, whose snapshot is at ``offset``."""

    def __init__(self, con: apsw.Connection, tables: Tables, offset: int) -> None:
        super().__init__(con, tables)
        self.offset = offset


class PastView(SqlView):
    """A ``StoreView`` of an earlier offset: the present corrected by the old versions."""

    def __init__(self, con: apsw.Connection, tables: Tables, offset: int) -> None:
        super().__init__(con, tables)
        self.offset = offset

    def get(self, table: str, key: bytes) -> bytes | None:
        return self.get_at(table, key, self.offset)

    def count(self, table: str, start: bytes = b"", stop: bytes | None = None) -> int:
        return sum(1 for _ in self.scan(table, start, stop))

    def get_many(self, table: str, keys: Iterable[bytes]) -> Mapping[bytes, bytes]:
        pairs = ((key, self.get_at(table, key, self.offset)) for key in set(keys))
        return {key: value for key, value in pairs if value is not None}

    def _page(
        self, table: str, start: bytes, stop: bytes | None, rows: int, reverse: bool
    ) -> tuple[list[tuple[bytes, bytes]], bool]:
        tid, wanted = self._kept_id(table, self.offset), rows
        while True:
            page = self._pairs(tid, start, stop, rows, reverse)
            end = len(page) < rows
            low, high = start, stop
            if not end and reverse:
                low = page[-1][0]
            elif not end:
                high = page[-1][0] + b"\x00"
            past = dict(page)
            for key, value in self._written_since(
                tid, "k, v", "ORDER BY k, offset DESC, idx DESC", low, high, self.offset
            ):
                past[key] = value  # the oldest beyond the offset comes last and wins
            rows_then = sorted((key, value) for key, value in past.items() if value is not None)
            if reverse:
                rows_then.reverse()
            if end or len(rows_then) >= wanted:
                return rows_then[:wanted], len(rows_then) >= wanted
            rows *= 2  # most of the page did not exist then


def in_history(history: frozenset[str], table: str) -> bool:
    """Whether the set names the table, itself or by a ``name/`` above it."""
    return table in history or any(name.endswith("/") and table.startswith(name) for name in history)


def _rows(con: apsw.Connection, sql: str, args: tuple[apsw.SQLiteValue, ...]) -> list[Any]:
    return con.execute(sql, args).fetchall()


def between(tid: int, start: bytes, stop: bytes | None) -> tuple[str, tuple[apsw.SQLiteValue, ...]]:
    """The condition for the rows of a table with ``start <= key < stop``, and its arguments."""
    if stop is None:
        return "t = ? AND k >= ?", (tid, start)
    return "t = ? AND k >= ? AND k < ?", (tid, start, stop)
