"""What folds write to: the tables of ``store.tables``, and the writes of this transaction that are not in SQLite yet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import apsw

from onefold.errors import SpaceError
from onefold.store.pending import SPAN, Pending, Place
from onefold.store.tables import GET, SqlView, Tables, between, in_history, oldest_readable

_PENDING_ROWS_MAX = 200_000


class SqlStore(SqlView):
    """What folds write to, inside the write transaction of its connection.

    Writes are in SQLite after ``flush``; until then only this store shows them (see ``Pending``).
    """

    def __init__(
        self, con: apsw.Connection, tables: Tables, history: frozenset[str], *, keep_all: bool = False
    ) -> None:
        """``history``: names of tables whose old versions are kept; a name that ends in ``/`` stands for all below it.
        ``keep_all``: keep them for every table (stores whose views read the past instead of a snapshot)."""
        super().__init__(con, tables)
        self._cursor = con.cursor()
        """For what is written: a cursor for each statement is a third of what a statement costs."""
        self._history = history
        self._keep_all = keep_all
        self._made: dict[str, int] = {}
        self._pending: dict[str, Pending] = {}
        """Of each table that this store wrote to."""
        self._absent: set[str] = set()
        """Tables that were looked for and are not there, as long as nobody else can have made one."""
        self._firsts: dict[str, bytes | None] = {}
        """The first keys of tables that nobody has written to since they were looked for."""
        self.quiet_until_ms = 0
        """Before this fold time, none of the folds has anything to do but operations (see ``TimedFold.advance``)."""
        self._prunes = False
        self._owner = ""
        self._offset = 0
        self._place: Place = (0, 0)

    @property
    def made(self) -> Mapping[str, int]:
        """Ids of the tables that this transaction made."""
        return self._made

    def start(self, offset: int) -> None:
        """The writes that follow belong to this offset."""
        self._offset = offset

    def turn(self, owner: str, index: int) -> None:
        """The writes that follow are ``owner``'s, for the operation at ``index``."""
        self._owner = owner + "/"
        self._place = (self._offset, index)

    def flush(self) -> None:
        """Bring everything into SQLite. The caller does it before it commits."""
        oldest = oldest_readable(self._offset)
        for pending in self._pending.values():
            if pending.values:
                pending.flush(self._cursor, oldest)
        if self._prunes:
            self._prunes = False
            ids = self._con.execute("SELECT id FROM tables WHERE since IS NOT NULL").fetchall()
            self._con.executemany(
                "DELETE FROM history WHERE t = ? AND span < ?", [(*row, (oldest + 1) // SPAN) for row in ids]
            )

    def relieve(self) -> None:
        """Flush when much is pending, so that memory stays bounded in transactions of any size."""
        if sum(map(len, self._pending.values())) > _PENDING_ROWS_MAX:
            self.flush()

    def forget(self) -> None:
        """The transaction was rolled back."""
        self._made = {}
        self.look_again()
        self._pending = {}
        self._prunes = False

    def end_statements(self) -> None:
        """Close the statements that were broken off in the middle. The caller does it before it rolls back.

        A read of which a row is left stays open beyond a rollback, and with it the snapshot that it reads: nothing can be written
        on that connection once others have written.
        """
        self._cursor.close(True)
        self._cursor = self._con.cursor()

    def settle(self) -> None:
        """The transaction was committed."""
        if self._made:
            self._tables.learn(self._made)
            self._made = {}

    def look_again(self) -> None:
        """Others may have made tables, and written to them."""
        self._absent = set()
        self._firsts = {}
        self.quiet_until_ms = 0

    # -- reading

    def get(self, table: str, key: bytes) -> bytes | None:
        pending = self._pending.get(table)
        if pending is not None and key in pending.values:
            return pending.values[key]
        # ``get`` reads to the end: a statement that is not over would keep the read transaction open.
        return self._cursor.execute(GET, (self._id(table), key)).get  # type: ignore[no-any-return]

    def get_many(self, table: str, keys: Iterable[bytes]) -> Mapping[bytes, bytes]:
        pending = self._pending.get(table)
        if pending is None or not pending.values:
            return super().get_many(table, keys)
        written, wanted = pending.values, list(keys)
        found = dict(super().get_many(table, [key for key in wanted if key not in written]))
        for key in wanted:
            value = written.get(key)
            if value is not None:
                found[key] = value
        return found

    def count(self, table: str, start: bytes = b"", stop: bytes | None = None) -> int:
        self._flush(table)
        return super().count(table, start, stop)

    def _page(
        self, table: str, start: bytes, stop: bytes | None, rows: int, reverse: bool
    ) -> tuple[list[tuple[bytes, bytes]], bool]:
        self._flush(table)
        return super()._page(table, start, stop, rows, reverse)

    def first(self, table: str) -> bytes | None:
        if table not in self._firsts:
            self._firsts[table] = next((key for key, _ in self.scan(table, limit=1)), None)
        return self._firsts[table]

    def _applied(self) -> int:
        return self._offset - 1  # the head in SQLite is that of the last flush

    def _kept_id(self, table: str, offset: int) -> int:
        self._flush(table)
        return super()._kept_id(table, offset)

    def _flush(self, table: str) -> None:
        pending = self._pending.get(table)
        if pending is not None and pending.values:
            pending.flush(self._cursor, oldest_readable(self._offset))

    def _id(self, table: str) -> int:
        if table in self._absent:
            return 0
        found = self._made.get(table) or self._tables.find(self._con, table)
        if not found:
            self._absent.add(table)
        return found

    # -- writing

    def put(self, table: str, key: bytes, value: bytes) -> None:
        self._own(table).put(key, value, self._place)

    def put_many(self, table: str, items: Iterable[tuple[bytes, bytes]]) -> None:
        self._own(table).put_many(list(items), self._place)

    def delete(self, table: str, key: bytes) -> None:
        self._own(table).delete(key, self._place)

    def delete_range(self, table: str, start: bytes, stop: bytes | None) -> None:
        pending = self._own(table)
        pending.flush(self._cursor, oldest_readable(self._offset))
        bound, args = between(pending.tid, start, stop)
        if pending.kept:
            self._con.execute(
                f"INSERT OR IGNORE INTO history SELECT t, ?, k, ?, ?, v FROM kv WHERE {bound}",
                (self._offset // SPAN, *self._place, *args),
            )
        self._con.execute(f"DELETE FROM kv WHERE {bound}", args)

    def prune(self) -> None:
        """Forget the versions that no read in the window needs (those at or below its oldest offset), at the next flush."""
        self._prunes = True

    def keeps(self, table: str) -> bool:
        """Whether old versions of the table are kept."""
        return self._keep_all or in_history(self._history, table)

    def _own(self, table: str) -> Pending:
        if not table.startswith(self._owner):
            raise SpaceError(
                f"a fold wrote to the table {table}, which is not below {self._owner}: a bug in that fold"
            )
        if table in self._firsts:
            del self._firsts[table]
            self.quiet_until_ms = 0
        pending = self._pending.get(table)
        if pending is None:
            pending = self._pending[table] = self._begin(table)
        return pending

    def _begin(self, table: str) -> Pending:
        kept, tid = self.keeps(table), self._id(table)
        if not tid:
            since = 0 if kept else None
            self._con.execute("INSERT INTO tables(name, since) VALUES(?, ?)", (table, since))
            tid = self._made[table] = self._con.last_insert_rowid()
            self._absent.discard(table)
        else:
            since = self._con.execute("SELECT since FROM tables WHERE id = ?", (tid,)).get
            if kept != (since is not None):
                # The fold's code has begun (or ceased) to keep history: reads before this offset are impossible.
                self._con.execute("DELETE FROM history WHERE t = ?", (tid,))
                self._con.execute(
                    "UPDATE tables SET since = ? WHERE id = ?", (self._offset - 1 if kept else None, tid)
                )
        return Pending(tid, kept=kept)
