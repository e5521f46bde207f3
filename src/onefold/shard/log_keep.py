"""How much of its log an embedded shard keeps, and the trimming beyond it.

The bound is a number in the shard's file, so every process that has it open obeys it: ``None`` while nobody has said anything,
``KEEP_ALL``, or bytes. A process that commits looks periodically, in a thread of its own.

Where the log is cut is a record like any other, so each process cuts at the same place. Records are deleted in steps, and writers
do not queue behind more than one of them.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from onefold import config
from onefold.arguments import shown
from onefold.errors import InvalidArgument, OnefoldError

if TYPE_CHECKING:
    from onefold.log.sqlite.engine import SqliteLog
    from onefold.log.sqlite.file import SqliteFile

KEEP_ALL: Final = -1
"""The log is never trimmed."""
_RECORD_BYTES: Final = 40
"""What a record takes in the file beyond its bytes."""
_READ_OFFSETS: Final = 16_384
"""So many records are measured in one read transaction."""
_BUCKET_OFFSETS: Final = 64
"""The log is cut at a multiple of so many offsets."""
_UNITS: Final = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


class _Bucket(NamedTuple):
    first: int
    """Its first offset."""
    bytes: int


def log_keep_bytes(given: object) -> int:
    """The bound that ``log_keep=`` names: bytes, text like ``"500MB"``, or None for all. Raises InvalidArgument."""
    if given is None:
        return KEEP_ALL
    found: float | None = None
    if isinstance(given, int) and not isinstance(given, bool):
        found = given
    elif isinstance(given, str):
        text = given.strip().upper()
        unit = next((unit for unit in ("TB", "GB", "MB", "KB", "B") if text.endswith(unit)), "")
        try:
            found = float(text.removesuffix(unit)) * _UNITS.get(unit, 1)
        except ValueError:
            found = None
    if found is None or not config.LOG_KEEP_BYTES_MIN <= found < 1 << 62:
        raise InvalidArgument(
            f"log_keep must be bytes or text like '500MB', at least {config.LOG_KEEP_BYTES_MIN:,} bytes, or None to keep the "
            f"whole log; got {shown(given)}"
        )
    return int(found)


def write_log_keep(file: SqliteFile, keep: int, *, only_if_unsaid: bool = False) -> bool:
    """Say it; whether that changed anything. ``only_if_unsaid``: not where something was said before."""
    with file.writing() as con:
        how = "IGNORE" if only_if_unsaid else "REPLACE"
        con.execute(f"INSERT OR {how} INTO meta VALUES('log_keep', ?)", (keep,))
        return bool(con.changes())


class LogKeep:
    """How much of its log one shard keeps; and the trimming, in this process. Thread-safe."""

    def __init__(self, file: SqliteFile, log: SqliteLog, trim: Callable[[int], object]) -> None:
        """``trim``: appends the record that says from which offset on the log is kept."""
        self._file = file
        self._log = log
        self._trim = trim
        self._buckets: deque[_Bucket] = deque()
        """What was measured of the log, the oldest first, without gaps."""
        self._measured = 0
        """The last offset in them."""
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self.appended = 0
        """Bytes of this process, since it looked. The caller of each commit counts them: a call would cost more than that."""

    @property
    def bytes(self) -> int | None:
        """How many bytes of the log are kept (``KEEP_ALL``: all); None: nobody has said anything, so all."""
        with self._file.reading() as con:
            found = con.execute("SELECT value FROM meta WHERE key = 'log_keep'").get
        return found if isinstance(found, int) else None

    def say(self, keep: int, *, only_if_unsaid: bool = False) -> bool:
        """Say how many; whether that changed anything. What is too long is trimmed soon."""
        changed = write_log_keep(self._file, keep, only_if_unsaid=only_if_unsaid)
        self.look_soon()
        return changed

    def look_soon(self) -> None:
        """Trim what is to be trimmed, in a thread; nothing where one is at it."""
        self.appended = 0
        if (self._thread is None or not self._thread.is_alive()) and not self._closing.is_set():
            self._thread = threading.Thread(target=self._look, name="onefold-log-trimming", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """End, after the step that is under way."""
        self._closing.set()
        thread = self._thread
        if thread is not None and thread.is_alive() and thread is not threading.current_thread():
            thread.join()

    def trim(self) -> int:
        """Trim the log to what is kept of it, now; from which offset on the log is kept. Raises as ``Shard.submit``."""
        keep = self.bytes
        first = self._log.first
        if keep is None or keep == KEEP_ALL:
            self._buckets.clear()
            return first
        cut = self._cut(first, keep)
        if cut <= first:
            return first
        self._trim(cut)
        for upto in self._steps(first, cut):
            if self._closing.is_set():
                return upto  # the next one who opens the space continues
            self._log.trim(upto)
        return cut

    def _look(self) -> None:
        try:
            self.trim()
        except OnefoldError:
            return  # another process trimmed it, or it is being closed, or the disk is full: looked at again

    def _cut(self, first: int, keep: int) -> int:
        """From which offset on the log has at most ``keep`` bytes; ``first`` while it is not much more than that."""
        self._measure(first, keep)
        while self._buckets and self._buckets[0].first + _BUCKET_OFFSETS <= first:
            self._buckets.popleft()  # another process has trimmed it
        total = sum(bucket.bytes for bucket in self._buckets)
        whole = not self._buckets or self._buckets[0].first <= first
        if whole and total <= keep + keep // 16:
            return first
        cut = first
        for bucket in self._buckets:
            cut = bucket.first
            if total <= keep:
                break
            total -= bucket.bytes
        return max(first, cut)

    def _measure(self, first: int, keep: int) -> None:
        """Measure what came since, or everything that may be kept: backwards from the end."""
        last = self._log.last
        end = (
            last // _BUCKET_OFFSETS * _BUCKET_OFFSETS - 1
        )  # whole buckets: what is in the last one counts next time
        if self._buckets and self._measured >= first - 1:
            while self._measured < end and not self._closing.is_set():
                upto = min(end, self._measured + _READ_OFFSETS)
                self._buckets.extend(self._read(self._measured + 1, upto))
                self._measured = upto
            return
        self._buckets.clear()
        self._measured = end
        at, total = end, 0
        while at >= first and total <= keep + keep // 16 and not self._closing.is_set():
            start = max(0, at + 1 - _READ_OFFSETS)
            found = self._read(start, at)
            self._buckets.extendleft(reversed(found))
            total += sum(bucket.bytes for bucket in found)
            at = start - 1

    def _read(self, start: int, stop: int) -> list[_Bucket]:
        sql = (
            f"SELECT offset / {_BUCKET_OFFSETS}, sum(length(data) + {_RECORD_BYTES}) FROM log "
            "WHERE offset BETWEEN ? AND ? GROUP BY 1 ORDER BY 1"
        )
        with self._file.reading() as con:
            rows = con.execute(sql, (start, stop)).fetchall()
        return [_Bucket(int(str(number)) * _BUCKET_OFFSETS, int(str(size))) for number, size in rows]

    def _steps(self, first: int, cut: int) -> list[int]:
        """Offsets up to which records are deleted in turn, so that each step is about ``LOG_TRIM_STEP_BYTES``."""
        steps, size = list[int](), 0
        for bucket in self._buckets:
            if bucket.first >= cut:
                break
            size += bucket.bytes
            if size >= config.LOG_TRIM_STEP_BYTES and bucket.first > first:
                steps.append(bucket.first)
                size = 0
        while self._buckets and self._buckets[0].first < cut:
            self._buckets.popleft()
        unmeasured = range(first + _READ_OFFSETS // 16, (steps or [cut])[0], _READ_OFFSETS // 16)
        return [*unmeasured, *steps, cut]
