"""Writes of a transaction on their way into SQLite: one table's, as a handful of statements in key order.

A statement for each key spends more time on its way into SQLite than there, and keys in the order in which they come touch a page
of the tree each. So what a transaction writes stays in a dict until somebody scans the table or the transaction ends. In between
nobody can tell: reads of single keys look here first, and the history that comes out is that of the writes one by one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import chain

import apsw

SPAN = 16
"""Offsets of history whose rows are together (see ``store.tables``). Part of the format."""
_FEW = 8
"""Up to so many keys are written one by one, by fewer and shorter statements."""
_ROWS = 64
Place = tuple[int, int]
"""Offset, and the operation's index in its record."""

_UPSERT = " ON CONFLICT(t, k) DO UPDATE SET v = excluded.v"
_PUT = f"INSERT INTO kv VALUES(?, ?, ?){_UPSERT}"
_DELETE = "DELETE FROM kv WHERE t = ? AND k = ?"
_KEEP = "INSERT OR IGNORE INTO history VALUES(?1, ?3, ?2, ?4, ?5, (SELECT v FROM kv WHERE t = ?1 AND k = ?2))"
_KEEP_IF_THERE = "INSERT OR IGNORE INTO history SELECT t, ?3, k, ?4, ?5, v FROM kv WHERE t = ?1 AND k = ?2"
_KEEP_THIS = "INSERT OR IGNORE INTO history VALUES(?, ?, ?, ?, ?, ?)"


class Pending:
    """What a transaction wrote to one table and SQLite does not have yet."""

    __slots__ = ("_first", "_gone", "_later", "kept", "tid", "values")

    def __init__(self, tid: int, *, kept: bool) -> None:
        """``tid``: the table's id. ``kept``: whether its old versions are kept."""
        self.tid = tid
        self.kept = kept
        self.values: dict[bytes, bytes | None] = {}
        """The newest value of each key that was written; None: it was removed."""
        self._first: dict[bytes, Place] = {}
        """Where each key was written first since the last flush: what it held before that is in SQLite."""
        self._gone: set[bytes] = set()
        """Those of them that were removed there: when they were not there, nothing has changed."""
        self._later: list[tuple[bytes, Place, bytes | None]] = []
        """The other changes: key, where, and what it held before."""

    def __len__(self) -> int:
        return len(self.values) + len(self._later)

    def put(self, key: bytes, value: bytes, place: Place) -> None:
        """Set a key."""
        values = self.values
        if self.kept:
            if key in values:
                self._later.append((key, place, values[key]))
            else:
                self._first[key] = place
        values[key] = value

    def put_many(self, items: Collection[tuple[bytes, bytes]], place: Place) -> None:
        """Set many."""
        if self.kept and self.values.keys().isdisjoint([key for key, _ in items]):
            self._first.update([(key, place) for key, _ in items])
        elif self.kept:
            for key, value in items:
                self.put(key, value, place)
            return
        self.values.update(items)

    def delete(self, key: bytes, place: Place) -> None:
        """Remove a key."""
        values = self.values
        if key in values:
            old = values[key]
            if old is None:
                return
            if self.kept:
                self._later.append((key, place, old))
        elif self.kept:
            self._first[key] = place
            self._gone.add(key)
        values[key] = None

    def drop(self) -> None:
        """Forget it all."""
        self.values.clear()
        self._first.clear()
        self._gone.clear()
        self._later.clear()

    def flush(self, con: apsw.Cursor, oldest: int) -> None:
        """Write it all. ``oldest``: versions at or below that offset are read by nobody any more."""
        if not self.values:
            return
        keys = sorted(self.values)
        if len(keys) <= _FEW:
            self._flush_few(con, keys, oldest)
        else:
            if self.kept:
                self._keep_many(
                    con, [key for key in keys if key in self._first and self._first[key][0] > oldest]
                )
                self._keep_later(con, oldest)
            self._set(con, keys)
        self.drop()

    def _flush_few(self, con: apsw.Cursor, keys: Sequence[bytes], oldest: int) -> None:
        """One by one: by statements that are short and always the same."""
        tid, values = self.tid, self.values
        if self.kept:
            for key in keys:
                place = self._first.get(key)
                if place is not None and place[0] > oldest:
                    keep = _KEEP_IF_THERE if key in self._gone else _KEEP
                    con.execute(keep, (tid, key, place[0] // SPAN, *place))
            if self._later:
                self._keep_later(con, oldest)
        for key in keys:
            value = values[key]
            if value is None:
                con.execute(_DELETE, (tid, key))
            else:
                con.execute(_PUT, (tid, key, value))

    def _keep_many(self, con: apsw.Cursor, keys: Sequence[bytes]) -> None:
        first, gone = self._first, self._gone
        for asked in _pages(keys, _ROWS):
            old = dict(fetch(con, self.tid, asked))
            page = [key for key in asked if key in old or key not in gone] if gone else asked
            places = [first[key] for key in page]
            columns = (
                [offset // SPAN for offset, _ in places],
                page,
                [offset for offset, _ in places],
                [index for _, index in places],
                map(old.get, page),
            )
            _insert(con, "INSERT OR IGNORE INTO history", "", self.tid, columns, len(page))

    def _keep_later(self, con: apsw.Cursor, oldest: int) -> None:
        # The first of an operation's writes to a key counts (OR IGNORE), so their order must stay.
        self._later.sort(key=lambda change: change[0])
        tid = self.tid
        con.executemany(
            _KEEP_THIS,
            [
                (tid, offset // SPAN, key, offset, index, old)
                for key, (offset, index), old in self._later
                if offset > oldest
            ],
        )

    def _set(self, con: apsw.Cursor, keys: Sequence[bytes]) -> None:
        tid, values = self.tid, self.values
        there = [key for key in keys if values[key] is not None]
        for page in _pages(there, _ROWS):
            _insert(con, "INSERT INTO kv", _UPSERT, tid, (page, map(values.get, page)), len(page))
        if len(there) < len(keys):
            con.executemany(_DELETE, [(tid, key) for key in keys if values[key] is None])


def fetch(con: apsw.Connection | apsw.Cursor, tid: int, keys: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
    """The rows of those keys (at most ``_ROWS``) that SQLite has."""
    page = list(keys)
    page += page[-1:] * (_pow2(len(page)) - len(page))  # few lengths, so statements stay prepared
    marks = ",".join("?" * len(page))
    sql = f"SELECT k, v FROM kv WHERE t = ? AND k IN ({marks})"
    return con.execute(sql, (tid, *page)).fetchall()  # type: ignore[return-value]


def _insert(
    con: apsw.Cursor,
    into: str,
    tail: str,
    tid: int,
    columns: Sequence[Iterable[apsw.SQLiteValue]],
    rows: int,
) -> None:
    """Insert rows of a table, given as columns after the id, by one statement."""
    if not rows:
        return
    marks = ", ".join(["(?1" + ", ?" * len(columns) + ")"] * rows)
    con.execute(f"{into} VALUES {marks}{tail}", (tid, *chain.from_iterable(zip(*columns, strict=True))))


def _pages(keys: Sequence[bytes], size: int) -> Iterator[Sequence[bytes]]:
    """The keys in pages of ``size``, then in halves of it down to one: few lengths, so statements stay prepared."""
    at, left = 0, len(keys)
    while left:
        while size > left:
            size //= 2
        yield keys[at : at + size]
        at += size
        left -= size


def _pow2(number: int) -> int:
    return 1 << (number - 1).bit_length()
