"""Views of a store in a file: each lends one of the file's pooled connections, so reading needs no lock of ours."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

import apsw

from onefold.log.sqlite.pooled_file import PooledFile
from onefold.store import tables as store
from onefold.store.tables import PastView, PresentView, Tables, check_readable, read_head


class Viewing:
    """The ``with`` block of a view."""

    __slots__ = ("_at", "_con", "_file", "_seen", "_tables", "_version_max", "_view")

    def __init__(
        self,
        file: PooledFile,
        tables: Tables,
        at: int | None,
        version_max: int,
        seen: Callable[[int], None] | None = None,
    ) -> None:
        """``at``: the offset (None: the present). ``version_max``: the highest fold version that this program knows. ``seen``:
        called with the offset of the present."""
        self._file = file
        self._tables = tables
        self._at = at
        self._version_max = version_max
        self._seen = seen
        self._view: PresentView | PastView | None = None
        self._con: apsw.Connection | None = None

    def __enter__(self) -> PresentView | PastView:
        con = self._file.take_reader()
        try:
            con.execute("BEGIN")
            head = read_head(con)  # the first read pins the snapshot
            check_readable(head, self._version_max, self._at)
        except BaseException as error:
            self._file.give_reader(con)
            if isinstance(error, apsw.Error):
                raise self._file.translated(error) from error
            raise
        self._con = con
        if self._at is None or self._at == head.applied:  # nothing was written since: cheaper than the past
            self._view = PresentView(con, self._tables, head.applied)
        else:
            self._view = PastView(con, self._tables, self._at)
        if self._seen is not None and self._at is None:
            self._seen(head.applied)
        return self._view

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._view is not None:
            self._view.end()
        if self._con is not None:
            self._file.give_reader(self._con)
            self._con = None
        if isinstance(error, apsw.Error):
            raise self._file.translated(error) from error


def peek(
    file: PooledFile, tables: Tables, version_max: int, table: str, key: bytes, at: int | None = None
) -> tuple[bytes | None, int]:
    """One key's value in the newest state (``at``: as of that offset) and that state's offset. Raises as a view."""
    con = file.take_reader()
    try:
        tid = tables.find(con, table)
        value, head = store.peek(con, tid, key)
        if not tid and (tid := tables.find(con, table)):
            # Made between the two statements: nothing was read, while the head may cover what was written.
            value, head = store.peek(con, tid, key)
    except apsw.Error as error:
        raise file.translated(error) from error
    finally:
        file.give_reader(con)
    if head.fold_version > version_max:
        check_readable(head, version_max, None)
    if at is not None and at != head.applied:
        with Viewing(file, tables, at, version_max) as past:
            return past.get(table, key), at
    return value, head.applied
