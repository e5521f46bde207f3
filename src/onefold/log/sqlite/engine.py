"""The embedded log: rows of the space's SQLite file.

Beyond the ``Log`` contract it offers ``appending``: a transaction that others can join, so that what a record
does to the folded state commits together with the record. Then there is no gap between log and state, and a failed commit
means that neither happened.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import apsw
import google_crc32c

from onefold import config
from onefold.env import SYSTEM, Env
from onefold.errors import LogCorrupt, SpaceError, TooLarge, TooOld
from onefold.log.api import Entry
from onefold.log.sqlite.file import TIP_NAME, SqliteFile
from onefold.machine.undisturbed import Waiters, undisturbed
from onefold.machine.wake import Notifier, Watch

LOG_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS log(offset INTEGER PRIMARY KEY, ms INTEGER NOT NULL, crc INTEGER NOT NULL, data BLOB NOT NULL)",
    "CREATE TABLE IF NOT EXISTS log_first(id INTEGER PRIMARY KEY CHECK(id = 1), first INTEGER NOT NULL)",
    "INSERT OR IGNORE INTO log_first VALUES(1, 1)",
    "CREATE TABLE IF NOT EXISTS log_untrusted(first INTEGER PRIMARY KEY, last INTEGER NOT NULL)",
)
"""``log_untrusted``: ranges of offsets whose records are not trusted (``Entry.trusted``). What is appended here is;
others are in the logs of spaces that were restored from a cluster's backup. Files of earlier releases do not have the table."""
_PLACE = struct.Struct(">QQ")
_NO_RANGE = (1 << 63, 1 << 63)
_FIRST = "SELECT first FROM log_first"
_LAST = "SELECT max(coalesce((SELECT max(offset) FROM log), 0), (SELECT first - 1 FROM log_first))"


def entry_crc(offset: int, ms: int, data: bytes) -> int:
    """CRC32C over offset, stamp and bytes: a record that moved is found too."""
    return google_crc32c.extend(google_crc32c.value(_PLACE.pack(offset, ms)), data)  # type: ignore[no-any-return]


class SqliteLog:
    """The log in a space's directory. Thread-safe; other processes may use the same directory."""

    def __init__(
        self,
        directory: str | Path,
        *,
        env: Env = SYSTEM,
        schema: Sequence[str] = (),
        file: SqliteFile | None = None,
    ) -> None:
        """Open or make the log in ``directory``, with the tables of ``schema`` next to it; or use a ``file`` already open."""
        self._env = env
        self.file = file or SqliteFile(Path(directory), (*LOG_SCHEMA, *schema), env)
        self._changed = Waiters()
        self._closing = False
        self._seen = 0
        """An offset that is in the file. Those who wait compare it, instead of all of them reading the file after each commit.
        Set before they are woken; it may be smaller than what another thread has just set, and then they read the file."""
        wake = self.file.directory / "wake"
        if not self.file.read_only:
            try:
                wake.mkdir(exist_ok=True)
            except OSError as error:
                self.file.close()
                raise SpaceError(
                    f"{wake} cannot be made ({error.strerror}). Free some space, or remove what stands there"
                ) from error
        self._notifier = Notifier(wake)
        self._noticed = 0
        self._watch = Watch(wake, self._notifier, self._env, self._notice)
        tip = self.file.read_tip()
        if tip and self.last < tip:
            last = self.last
            self.file.close()
            raise LogCorrupt(
                f"{self.file.path} ends at offset {last}, but {tip} was acknowledged: its end is cut off, or an older copy was "
                f"put there. Restore it from a backup, or remove {self.file.directory / TIP_NAME} to continue without it"
            )

    # -- the contract

    @property
    def incarnation(self) -> str:
        """Made with the file."""
        return self.file.incarnation

    @property
    def first(self) -> int:
        with self.file.reading() as con:
            return _number(con.execute(_FIRST).get)

    @property
    def last(self) -> int:
        with self.file.reading() as con:
            return _number(con.execute(_LAST).get)

    def append(self, data: bytes, deadline: float | None = None) -> int:
        left_s = None if deadline is None else max(0.0, deadline - self._env.boot_s())
        with self.appending(left_s) as con:
            offset = self.append_in(con, data, self._env.wall_ms())
        self.announce(offset)
        return offset

    def read(self, start: int, max_bytes: int = 1 << 20) -> Sequence[Entry]:
        with self.file.reading() as con:
            con.execute("BEGIN")
            try:
                return read_in(con, start, max_bytes, str(self.file.path))
            finally:
                con.execute("COMMIT")

    def offset_at(self, ms: int) -> int:
        """The last offset whose fold time is at most ``ms``: one before the first record with a later stamp (embedded writers
        give a record one stamp). ``first - 1`` when there is none. Looks at every record up to there."""
        with self.file.reading() as con:
            sql = f"SELECT coalesce((SELECT offset FROM log WHERE ms > ? ORDER BY offset LIMIT 1) - 1, ({_LAST}))"
            return _number(con.execute(sql, (ms,)).get)

    def time_at(self, offset: int) -> int:
        """Fold time (ms) at an offset, as far as the kept records tell; 0 when none does."""
        with self.file.reading() as con:
            return _number(
                con.execute("SELECT coalesce(max(ms), 0) FROM log WHERE offset <= ?", (offset,)).get
            )

    def wait(self, after: int, timeout: float | None) -> int:
        try:
            was_watched = self._watch.started
            last = self.last
            if last > after or (timeout is not None and timeout <= 0):
                return last
            if not was_watched:
                undisturbed(self._watch.start)
            # What is committed from here on is noticed; looking again finds what came before the watch began.
            news = _News(self, after, looks=not was_watched)
            self._changed.wait_for(news.are_there, timeout)
            return max(last, news.last)
        except SpaceError:
            if self._closing:
                return after
            raise

    def note_seen(self, last: int) -> None:
        """What waits shall know that this offset is in the file. Wake it afterwards."""
        self._seen = max(self._seen, last)

    @property
    def seen(self) -> int:
        """An offset that is in the file, perhaps not the last."""
        return self._seen

    @property
    def closing(self) -> bool:
        """Whether it is being closed, or is."""
        return self._closing

    def trim(self, before: int) -> None:
        before = min(before, self.last + 1)
        while (first := self.first) < before:
            upto = min(first + config.TRIM_RECORDS_PER_COMMIT, before)
            with self.file.writing() as con:
                con.execute("DELETE FROM log WHERE offset < ?", (upto,))
                con.execute("DELETE FROM log_untrusted WHERE first < ?1 AND last < ?1", (upto,))
                con.execute("UPDATE log_first SET first = max(first, ?)", (upto,))

    def close(self) -> None:
        self._closing = True
        self._changed.notify()
        self._watch.end()
        self.file.close()
        self._notifier.close()

    # -- the transaction that others join

    def appending(self, timeout: float | None = None) -> AbstractContextManager[apsw.Connection]:
        """The write transaction (see ``SqliteFile.writing``). Call ``announce`` after it."""
        return self.file.writing(timeout)

    def append_in(
        self,
        con: apsw.Connection | apsw.Cursor,
        data: bytes,
        ms: int,
        offset: int | None = None,
        *,
        trusted: bool = True,
    ) -> int:
        """Append inside the transaction; ``offset`` when the caller knows the next one. ``trusted``: as it is in the log that the
        record comes from. Raises TooLarge."""
        if len(data) > config.RECORD_BYTES_MAX:
            raise TooLarge(
                f"a record of {len(data)} bytes; the limit is {config.RECORD_BYTES_MAX}. Write less at once"
            )
        if offset is None:
            offset = _number(con.execute(_LAST).get) + 1
        con.execute("INSERT INTO log VALUES(?, ?, ?, ?)", (offset, ms, entry_crc(offset, ms, data), data))
        if not trusted:
            note_untrusted(con if isinstance(con, apsw.Connection) else con.connection, "main", [offset])
        return offset

    def announce(self, last: int) -> None:
        """Wake who waits, in this process and in others, after a commit."""
        self.file.note_tip(last)
        self._seen = max(self._seen, last)
        self._changed.notify()
        self._notifier.notify()

    # -- waiting for other processes

    def _notice(self) -> bool:
        """Wake who waits when others have committed something."""
        last = self.last
        if last > self._noticed:
            self._noticed = last
            self.note_seen(last)
            self._changed.notify()
        return True


class _News:
    """What one waiter looks for."""

    __slots__ = ("_after", "_asked", "_log", "_looks", "last")

    def __init__(self, log: SqliteLog, after: int, *, looks: bool) -> None:
        """``looks``: whether to read the file at once."""
        self._log = log
        self._after = after
        self._looks = looks
        self._asked = 0
        self.last = 0
        """The last offset that is known."""

    def are_there(self) -> bool:
        """Whether there is a record beyond the offset, or never will be. For ``Waiters.wait_for``, which asks at first, after it
        has queued up, when it is woken, after it has queued up again, and so on."""
        self._asked += 1
        self.last = self._log.seen
        woken = self._asked > 1 and self._asked % 2
        if self.last <= self._after and (woken or self._looks) and not self._log.closing:
            self.last, self._looks = self._log.last, False
        return self.last > self._after or self._log.closing


def note_untrusted(con: apsw.Connection, schema: str, offsets: Iterable[int]) -> None:
    """Note that the records at these offsets, in ascending order and beyond those that were noted before, are not trusted."""
    newest = f"first = (SELECT max(first) FROM {schema}.log_untrusted)"
    for offset in offsets:
        con.execute(
            f"UPDATE {schema}.log_untrusted SET last = ?1 WHERE {newest} AND last = ?1 - 1", (offset,)
        )
        if not con.changes():
            con.execute(f"INSERT INTO {schema}.log_untrusted VALUES(?1, ?1)", (offset,))


def _untrusted(con: apsw.Connection, start: int) -> Iterator[tuple[int, int]]:
    """The ranges of untrusted records that end at or beyond ``start``, ascending; read as far as they are asked for. Perhaps one
    that ends before comes first. They do not overlap, so the key by ``first`` is enough to find them."""
    before = "SELECT max(first) FROM log_untrusted WHERE first <= ?1"
    sql = f"SELECT first, last FROM log_untrusted WHERE first >= coalesce(({before}), ?1) ORDER BY first"
    try:
        found = con.execute(sql, (start,))
    except apsw.SQLError:
        return  # of an earlier release, opened for reading
    with contextlib.closing(found):  # an error keeps this frame, and so what it has left open
        for first, last in found:
            yield _number(first), _number(last)


def read_in(con: apsw.Connection, start: int, max_bytes: int, where: str) -> list[Entry]:
    """Entries from ``start`` on inside a read transaction, checked. Raises TooOld and LogCorrupt."""
    first = _number(con.execute(_FIRST).get)
    if start < first:
        raise TooOld(
            f"offset {start} of {where} was trimmed; the oldest kept is {first}. Start from a snapshot"
        )
    entries: list[Entry] = []
    size, expected = 0, start
    untrusted = _untrusted(con, start)
    low, high = next(untrusted, _NO_RANGE)
    for offset, ms, crc, data in con.execute(
        "SELECT offset, ms, crc, data FROM log WHERE offset >= ? ORDER BY offset", (start,)
    ):
        if offset != expected:
            raise LogCorrupt(
                f"offset {expected} is missing in {where}. Restore it from a snapshot or a backup"
            )
        if (
            not isinstance(data, bytes)
            or not isinstance(ms, int)
            or ms < 0
            or entry_crc(offset, ms, data) != crc
        ):
            raise LogCorrupt(
                f"the record at offset {offset} of {where} is damaged. Restore it from a snapshot or a backup"
            )
        while high < offset:
            low, high = next(untrusted, _NO_RANGE)
        entries.append(Entry(offset, data, ms, offset < low))
        size += len(data)
        expected += 1
        if size >= max_bytes:
            break
    return entries


def _number(value: object) -> int:
    if not isinstance(value, int):
        raise LogCorrupt(
            f"a number was expected in the space's file, found {value!r}. Restore it from a snapshot or a backup"
        )
    return value
