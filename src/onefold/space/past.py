"""The past of a space: its state as of one offset, read-only.

What keeps history (maps) is read through the history window of the live store, which costs next to nothing. Everything else,
and what is older than the window, is folded again from the log into memory: once, when it is first asked for. That needs a
log that still goes back to its first record.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Protocol

from onefold.codec import Op
from onefold.env import Env
from onefold.errors import InvalidArgument, SpaceError, TooOld
from onefold.fold.api import Fold
from onefold.log.api import Log
from onefold.shard.api import Shard, View
from onefold.shard.memory import MemoryShard
from onefold.shard.receipts import Receipt
from onefold.shard.requirements import ReadRequirement, reach_needed
from onefold.space.log_prefix import LogPrefix, as_time, time_at
from onefold.store.paged_view import PagedView, Version
from onefold.store.tables import Head, oldest_readable


class LoggedShard(Shard, Protocol):
    """A space whose log can be read here."""

    @property
    def log(self) -> Log:
        """The log itself, for reading."""
        ...


class _StoppedEnv:
    """The environment with the wall clock stopped at a moment."""

    def __init__(self, env: Env, wall_ms: int) -> None:
        self._env = env
        self._wall_ms = wall_ms

    def wall_ms(self) -> int:
        return self._wall_ms

    def boot_s(self) -> float:
        return self._env.boot_s()

    def token(self, nbytes: int) -> bytes:
        return self._env.token(nbytes)


class PastShard:
    """See ``onefold.shard.api.Shard``: one shard as of an offset. Thread-safe. The live space must stay open meanwhile.

    Its wall clock stands at the fold time of the offset, so whatever had not ended then has not ended here.
    """

    def __init__(
        self, shard: LoggedShard, offset: int, folds: Sequence[Fold], *, use_history: bool = True
    ) -> None:
        """``folds``: fresh ones, as the space was opened with. ``use_history``: read from the live store what it still has; else
        everything comes from ``replay()``. Raises TooOld when no part of that state can be had any more, InvalidArgument beyond
        the end."""
        applied = shard.applied
        if not 0 <= offset <= applied:
            raise InvalidArgument(f"offset {offset} is beyond the applied offset {applied}")
        self._shard = shard
        self._offset = offset
        self._folds = folds
        self._use_history = use_history
        self._lock = threading.Lock()
        self._closed = False
        self._replay: MemoryShard | None = None
        first = shard.log.first
        if first > 1 and offset < oldest_readable(applied):
            raise self._too_old(first)
        self._env = _StoppedEnv(shard.env, time_at(shard.log, offset))

    # -- the contract

    @property
    def env(self) -> Env:
        return self._env

    @property
    def strong_reads(self) -> bool:
        return True

    @property
    def url(self) -> str:
        return self._shard.url

    @property
    def directory(self) -> Path | None:
        return self._shard.directory

    @property
    def incarnation(self) -> str:
        return self._shard.incarnation

    @property
    def applied(self) -> int:
        return self._offset

    @property
    def member(self) -> str:
        return self._shard.member

    @property
    def gives_receipts(self) -> bool:
        return False

    def submit(
        self,
        ops: Sequence[Op],  # noqa: ARG002
        deadline: float | None = None,  # noqa: ARG002
        receipt: Receipt | None = None,  # noqa: ARG002
    ) -> list[bytes]:
        raise SpaceError(
            f"this is the database as it was at {as_time(self._env.wall_ms())}: it can only be read. "
            "Write to the database itself"
        )

    @property
    def reads_here(self) -> bool:
        return True

    def check_usable(self) -> None:
        self._check_open()

    def view(
        self, at: int | None = None, need: ReadRequirement | None = None
    ) -> AbstractContextManager[View]:
        if need is not None:
            self._meet(need)
            if need.seen is not None and at is None:
                need.seen(self._offset)
        return self._viewing(self._offset if at is None else at)

    def peek(
        self, table: str, key: bytes, need: ReadRequirement | None = None, at: int | None = None
    ) -> tuple[bytes | None, int]:
        with self.view(at, need) as view:
            return view.get(table, key), view.offset

    def _meet(self, need: ReadRequirement) -> None:
        reach_needed(need, self.reach, lambda: self._offset)

    def barrier(self, timeout: float | None = None) -> int:  # noqa: ARG002
        return self._offset

    def fresh(self, seconds: float, timeout: float | None = None) -> None:
        """Nothing is fresher than the past."""

    def outcome(self, request_id: str, need: ReadRequirement | None = None) -> bytes | None:
        if need is not None:
            self._meet(need)
        return self.replay().outcome(request_id)

    def pause(self, seconds: float) -> None:
        self._shard.pause(seconds)

    def wait(self, after: int, timeout: float | None) -> int:
        if self._offset <= after:
            if timeout is None:
                raise SpaceError("the past does not change: there is nothing to wait for. Give a timeout")
            self._shard.pause(timeout)
        return self._offset

    def reach(self, offset: int, timeout: float | None) -> bool:  # noqa: ARG002
        return offset <= self._offset

    def member_alive(self, member: str) -> bool | None:
        return self._shard.member_alive(member)

    def close(self) -> None:
        """Release what was folded again. The live space stays open."""
        with self._lock:
            self._closed = True
            replay, self._replay = self._replay, None
        if replay is not None:
            replay.close()

    # -- beyond the contract

    def replay(self) -> MemoryShard:
        """The state folded again from the log. Raises TooOld when the log no longer goes back to its first record."""
        with self._lock:
            self._check_open()
            if self._replay is None:
                log = self._shard.log
                if log.first > 1:
                    raise self._too_old(log.first)
                prefix = LogPrefix(log, self._offset, self._env)
                self._replay = MemoryShard(prefix, self._folds, self._env, url=self.url)
            return self._replay

    def folded(self, offset: int) -> AbstractContextManager[View]:
        """A view of ``replay()`` at an offset."""
        return self.replay().view(None if offset == self._offset else offset)

    def _check_open(self) -> None:
        if self._closed:
            raise SpaceError("this view of the past is closed. Ask `db.at(...)` again")

    @contextmanager
    def _viewing(self, offset: int) -> Iterator[View]:
        self._check_open()
        if not 0 <= offset <= self._offset:
            raise InvalidArgument(f"offset {offset} is beyond the offset {self._offset} of this past")
        with ExitStack() as stack:
            near: View | None = None
            if self._use_history:
                with suppress(TooOld):  # beyond the window
                    near = stack.enter_context(self._shard.view(at=offset))
            if near is None:
                near = stack.enter_context(self.folded(offset))
            yield _PastView(self, stack, near, offset)

    def _too_old(self, first: int) -> TooOld:
        oldest = max(oldest_readable(self._shard.applied), first)
        return TooOld(
            f"the state at offset {self._offset} cannot be had any more: the log of {self.url} begins at offset {first} (it was "
            f"trimmed, or restored from a snapshot). Maps can be read from {as_time(time_at(self._shard.log, oldest))} on, "
            "queues, streams and tables only as they are now; for the rest restore a backup of that time"
        )


class _PastView(PagedView):
    """A ``View`` that reads each table where its past can be had: in the history window, else folded again."""

    def __init__(self, past: PastShard, stack: ExitStack, near: View, offset: int) -> None:
        self.offset = offset
        self._past = past
        self._stack = stack
        self._near = near
        self._far: View | None = None
        self._chosen: dict[str, View] = {}

    def _of(self, table: str) -> View:
        chosen = self._chosen.get(table)
        if chosen is None:
            try:
                self._near.changes(table, self.offset, limit=1)
                chosen = self._near
            except (TooOld, InvalidArgument):  # beyond the window; no history
                if self._far is None:
                    self._far = self._stack.enter_context(self._past.folded(self.offset))
                chosen = self._far
            self._chosen[table] = chosen
        return chosen

    def get_many(self, table: str, keys: Iterable[bytes]) -> Mapping[bytes, bytes]:
        return self._of(table).get_many(table, keys)

    def count(self, table: str, start: bytes = b"", stop: bytes | None = None) -> int:
        return self._of(table).count(table, start, stop)

    def _page(
        self, table: str, start: bytes, stop: bytes | None, rows: int, reverse: bool
    ) -> tuple[list[tuple[bytes, bytes]], bool]:
        page = list(self._of(table).scan(table, start, stop, limit=rows, reverse=reverse))
        return page, len(page) == rows

    def _changes_page(
        self,
        table: str,
        after: int,
        within: tuple[int, bytes] | None,
        start: bytes,
        stop: bytes | None,
        rows: int,
    ) -> tuple[list[Version], bool]:
        """Nothing beyond this view's offset."""
        found = self._of(table).changes(table, after, within=within, start=start, stop=stop, limit=rows)
        return [version for version in found if version.offset <= self.offset], False

    def tables(self, prefix: str) -> list[str]:
        return self._near.tables(prefix)

    def head(self) -> Head:
        now = self._near.head()
        return now._replace(applied=self.offset, now_ms=self._past.env.wall_ms())
