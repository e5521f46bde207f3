"""A persistent replica: the state of a log, in a file that the processes of a machine share.

The process that gets the file's lock applies the next batch, in one transaction with the offset and the log's digest there. So it
does not matter who does it, nor whether one dies meanwhile; and the others, who find it done, are rung. Each process has a thread
that applies what its log delivers: at once while somebody waits, else a few milliseconds later, with what came meanwhile, since a
transaction costs many times what a record in it does. A writer applies its own record itself. Reads lend a pooled connection
each and take no lock.

What of the file cannot be trusted is not used. A copy that is damaged is replaced by a new one: a read that meets the damage
fails, others continue. One that has diverged from the log, which an opener finds out, is replaced too, and who still uses it
halts. A process that is stopped (SIGSTOP) while it holds the lock holds the others up for ``config.REPLICA_STALL_S``: then one of
them copies what was committed last, and all continue with that. Until then their weak reads continue and their strong reads and
writes wait, and say so when their time is up.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeVar

import apsw

from onefold import config
from onefold.backoff import Backoff
from onefold.codec import Op
from onefold.env import Env
from onefold.errors import ASK_LATER, LogCorrupt, OnefoldError, SpaceError, Timeout, TooOld, Unavailable
from onefold.fold.api import Fold
from onefold.ids import new_id
from onefold.log.api import Entry, Log
from onefold.machine import forks, members, wake
from onefold.machine.undisturbed import Waiters, undisturbed
from onefold.machine.wake import Notifier, Watch
from onefold.shard.over_log import ReplicatedShard
from onefold.shard.replica.awaited_records import AwaitedRecords, Told
from onefold.shard.replica.boundaries import Boundaries, Boundary, Missed
from onefold.shard.replica.copies import Copies
from onefold.shard.replica.copy import Kind, OpenCopy
from onefold.shard.replica.file import Damaged
from onefold.shard.replica.holder import Holder
from onefold.shard.replica.recent_records import RecentRecords
from onefold.shard.requirements import ReadRequirement
from onefold.shard.state_here import StateHere
from onefold.store import exactly_once
from onefold.store import views as file_views
from onefold.store.exactly_once import ClientRow
from onefold.store.replica import read_digests
from onefold.store.snapshot import Snapshot, write_snapshot
from onefold.store.tables import PastView, PresentView

_LOCK_SLICE_S = 0.25
_OPEN_TIMEOUT_S = 30.0
_RETRY_S, _RETRY_S_MAX = 0.05, 1.0

T = TypeVar("T")


class LocalReplica(ReplicatedShard, StateHere):
    """See ``onefold.shard.api.Shard``. Thread-safe. Closes its log with itself."""

    mending = "Open the space again: then its state is folded again"

    def __init__(
        self,
        log: Log,
        folds: Sequence[Fold],
        env: Env,
        *,
        directory: Path,
        url: str,
        timeout: float | None = None,
        read_only: bool = False,
        keep_all: bool = False,
        on_boundary: Boundary | None = None,
        on_missed: Missed | None = None,
        snapshots: Callable[[], Path | None] | None = None,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        """``directory``: where the copies are kept, shared by processes of this machine that give the same ``folds`` and
        ``keep_all``. It does not wait until everything is applied: ``reach`` does. ``timeout``: seconds to wait for others who
        are opening it. ``keep_all``: keep the history of every table. ``snapshots``: gives a file to begin a new copy from.
        ``on_close``: called once, when everything else is released.

        ``on_boundary(offset, con)``: called in a thread of its own when this process has applied a multiple of
        ``config.SNAPSHOT_EVERY_OFFSETS``, with a connection whose read transaction shows just that. Boundaries that come while it
        runs wait, or are missed: see ``Boundaries``; then ``on_missed(offset)`` is called.

        Raises SpaceError (folder, newer program), Unavailable (the log does not answer), LogCorrupt, TooOld.
        """
        super().__init__(log, env, url=url, read_only=read_only, replicates=True)
        undisturbed(
            lambda: self._begin(
                folds,
                directory=directory,
                timeout=timeout,
                keep_all=keep_all,
                on_boundary=on_boundary,
                on_missed=on_missed,
                snapshots=snapshots,
                on_close=on_close,
            ),
            lambda _: self.close(),
        )

    def _begin(
        self,
        folds: Sequence[Fold],
        *,
        directory: Path,
        timeout: float | None,
        keep_all: bool,
        on_boundary: Boundary | None,
        on_missed: Missed | None,
        snapshots: Callable[[], Path | None] | None,
        on_close: Callable[[], None] | None,
    ) -> None:
        log, env, url, read_only = self._log, self._env, self._url, self._read_only
        self._pid = forks.process
        self._directory = directory
        self._boundaries = None if on_boundary is None else Boundaries(on_boundary, on_missed)
        self._on_close = on_close
        kind = Kind(log, folds, env, url=url, keep_all=keep_all, read_only=read_only, snapshots=snapshots)
        self._changed = threading.Condition(threading.Lock())
        """Guards what follows, and tells when something was applied, halted or closed. Not for the main thread, which could leave
        it locked when it is interrupted."""
        self._moved = Waiters()
        """The same, for ``wait``."""
        self._closing = threading.Lock()
        self._applying = False
        self._waiting: dict[int, bool] = {}
        """The threads that wait for more to be applied."""
        self._wanted = Waiters()
        """Tells when the first of them begins to."""
        self._recent = RecentRecords()
        self._awaited = AwaitedRecords(env)
        self._registered: frozenset[str] = frozenset()
        self._trouble: OnefoldError | None = None
        self._ended = threading.Event()
        self._member: members.Member | None = None
        self._copies = Copies(directory, env)
        self._notifier = Notifier(directory / "wake")
        self._watch = Watch(directory / "wake", self._notifier, env, self._notice)
        try:
            self._holder = Holder(self._copies, kind, _OPEN_TIMEOUT_S if timeout is None else timeout)
        except BaseException:
            self._copies.close()
            raise
        self._known = self._holder.copy.applied()
        self._join(read_only)
        self._applier = threading.Thread(target=self._run, name="onefold-apply", daemon=True)
        self._applier.start()

    def _join(self, read_only: bool) -> None:
        folder = self._directory / "members"
        members.sweep(folder)
        wake.sweep(self._directory / "wake")
        if not read_only:
            self._member = members.Member(folder, new_id(f"m_{self._copies.place}", self._env), "")
            self.member = self._member.id

    # -- the contract

    @property
    def directory(self) -> Path:
        return self._directory

    def peek(
        self, table: str, key: bytes, need: ReadRequirement | None = None, at: int | None = None
    ) -> tuple[bytes | None, int]:
        if need is not None:
            self.meet(need)
        self.check_usable()
        copy = self._holder.copy
        return file_views.peek(copy.file, copy.tables, copy.replica.version_max, table, key, at)

    def _viewing(
        self, at: int | None, seen: Callable[[int], None] | None
    ) -> AbstractContextManager[PresentView | PastView]:
        self.check_usable()
        copy = self._holder.copy
        return file_views.Viewing(copy.file, copy.tables, at, copy.replica.version_max, seen)

    def wait(self, after: int, timeout: float | None) -> int:
        self.check_usable()
        if self._known <= after and self._look() <= after:
            if not self._watch.started:
                undisturbed(self._watch.start)
            me = threading.get_ident()
            try:
                self._waiting[me] = True
                self._wanted.notify()
                self._moved.wait_for(
                    lambda: self._known > after or self._closed or self._halted is not None, timeout
                )
            finally:
                self._waiting.pop(me, None)
            if self._halted is not None:
                self.check_usable()
        return self._known

    def member_alive(self, member: str) -> bool | None:
        self.check_usable()
        if member == self.member:
            return True
        here = member.startswith(f"m_{self._copies.place}_")  # otherwise it is on another machine
        return members.alive(self._directory / "members", member) if here else None

    def close(self) -> None:
        if self._pid == forks.process:
            undisturbed(self._close)

    def _close(self) -> None:
        with self._closing:  # one that was interrupted continues; the next one waits for it
            if not self._closed:
                self._release()

    def _release(self) -> None:
        with self._changed:
            self._closed = True
            self._tell()
        self._ended.set()
        self._wanted.notify()
        self._log.close()
        self._awaited.close()
        self._watch.end(config.APPEND_RETRY_S)
        if self._applier is not threading.current_thread():
            self._applier.join(config.APPEND_RETRY_S)
        for part in (self._boundaries, self._holder, self._copies, self._notifier, self._member):
            if part is not None:
                part.close()
        if self._on_close is not None:
            self._on_close()

    # -- beyond the contract

    @property
    def history(self) -> frozenset[str]:
        return self._holder.copy.replica.history

    def state_digest(self) -> str:
        self.catch_up()
        return super().state_digest()

    def snapshot(self, path: str | Path) -> Snapshot:
        """Write the state to a file that replicas can start from. Atomic."""
        self.catch_up()
        with self._holder.copy.file.exporting() as con:
            return write_snapshot(con, Path(path), self.history, self.incarnation)

    def exporting(self) -> AbstractContextManager[apsw.Connection]:
        """A connection of one's own to the state, which can write to files attached to it only."""
        self.check_usable()
        return self._holder.copy.file.exporting()

    def digests(self) -> Mapping[int, bytes]:
        """The log's digests at multiples of ``config.DIGEST_EVERY_OFFSETS``, as they were applied."""
        self.check_usable()
        with self._holder.copy.file.reading() as con:
            return read_digests(con)

    def when_written(self, client: str, number: int, wait_s: float, told: Told) -> None:
        """Have ``told`` called once, from any thread, with what became of the client's record: as soon as this process has
        applied it; with None after ``wait_s`` seconds, or somewhat later. It must not block or raise. Raises what the replica
        halted with, and SpaceError when it is closed."""
        self.check_usable()
        self._awaited.ask(client, number, wait_s, told)
        self._wanted.notify()

    def check_usable(self) -> None:
        if self._halted is None and not self._closed and self._pid == forks.process:
            return  # before every read
        if self._pid != forks.process:
            raise forks.opened_before(self._url)
        super().check_usable()

    # -- for the writer

    @property
    def fold_version(self) -> int:
        return self._holder.copy.replica.head.fold_version

    @property
    def fold_version_max(self) -> int:
        return self._holder.copy.replica.version_max

    def missing(self, ops: Sequence[Op]) -> Op | None:
        names = frozenset(op.fold for op in ops)
        if names <= self._registered:
            return None
        copy = self._holder.copy
        with copy.file.resting_writer():
            first = copy.replica.missing(ops)
        if first is None:
            self._registered |= names
        return first

    def known(self, client: str) -> ClientRow | None:
        with self._holder.copy.file.reading() as con:
            return exactly_once.load(con, client)

    def outcomes(self, client: str, number: int) -> tuple[bytes, ...] | None:
        applied = self._holder.copy.applied_last.get(client)
        if applied is not None and applied.number == number:
            return applied.outcomes  # by this process, in its last batch
        return super().outcomes(client, number)

    def before_append(self, deadline: float) -> int:
        self.check_usable()
        if self._log.last - self._known > config.REPLICA_BEHIND_OFFSETS_MAX:
            self.catch_up(deadline=deadline)
        return self._known

    # -- where it stands

    def _position(self) -> int:
        return self._known

    def _look(self) -> int:
        self.check_usable()
        applied = self._holder.copy.applied()
        if applied > self._known:
            undisturbed(lambda: self._note(applied))
        return self._known

    def _tell(self) -> None:
        """Something was applied, halted or closed. With ``_changed`` held."""
        self._changed.notify_all()
        self._moved.notify()

    def _note(self, applied: int) -> None:
        with self._changed:
            if applied > self._known:
                self._known = applied
                self._tell()

    def _halt(self, error: OnefoldError) -> None:
        super()._halt(error)
        with self._changed:
            self._tell()

    def _in_snapshot(self, read: Callable[[apsw.Connection], T]) -> T:
        self.check_usable()
        with self._holder.copy.file.reading() as con:
            con.execute("BEGIN")
            return read(con)

    def _holds(self, offset: int, data: bytes) -> bool:
        recent = self._recent.get(offset)
        return recent == data if recent is not None else super()._holds(offset, data)

    # -- applying

    def catch_up(self, own: tuple[int, bytes] | None = None, deadline: float | None = None) -> int:
        self.check_usable()
        undisturbed(lambda: self._advance(self._log.last if own is None else own[0], own, deadline))
        if own is not None:
            self._verify_own(*own)
        return self._known

    def _advance(self, target: int, own: tuple[int, bytes] | None, deadline: float | None) -> None:
        """Apply up to ``target``, which is delivered; or see others do it."""
        while self._known < target:
            with self._changed:
                while self._applying and self._known < target:
                    self.check_usable()
                    self._changed.wait(self._left(deadline, own))
                self.check_usable()
                if self._known >= target:
                    return
                self._applying = True
            left, applied = None, self._known
            try:
                left = self._left(deadline, own)
                applied = self._apply_next(target, min(left or _LOCK_SLICE_S, _LOCK_SLICE_S))
            except Damaged:
                raise  # another copy will do
            except (LogCorrupt, SpaceError, TooOld) as error:
                self.check_open()
                self._halt(error)
                raise
            finally:
                with self._changed:
                    self._applying = False
                    self._known = max(self._known, applied)
                    self._tell()

    def _left(self, deadline: float | None, own: tuple[int, bytes] | None) -> float | None:
        """Seconds until the deadline. Raises Timeout when there are none."""
        if deadline is None:
            return None
        left = deadline - self._env.boot_s()
        if left > 0:
            return left
        why = "another process is applying records, or was stopped" if self._holder.stalled else ""
        why = f" ({self._trouble or why})" if self._trouble or why else ""
        if own is None:
            raise Timeout(
                f"what {self._url} has delivered was not applied here in time{why}; nothing was done. Try again",
                definite=True,
            )
        raise Timeout(
            f"the operation is in the log of {self._url} at offset {own[0]}, and was not applied here in time{why}: its outcome "
            f"is not known. {ASK_LATER}"
        )

    def _apply_next(self, target: int, timeout: float) -> int:
        """Apply the next batch; the offset that is applied then. By one thread at a time. ``target`` is delivered here."""
        if self._holder.due:
            self._holder.tend(self._known)
        copy, before = self._holder.copy, self._known
        if before >= target:
            # A reader saw meanwhile how far others are: further, maybe, than was delivered here.
            return before
        entries = self._read(copy, before)
        try:
            head = copy.apply(entries, timeout)
        except Timeout:
            return self._holder.held_up(before)
        self._holder.went_on()
        if head.applied > before:
            self._notifier.notify()
            self._awaited.applied(copy.applied_last)
            if self._boundaries is not None and head.applied % config.SNAPSHOT_EVERY_OFFSETS == 0:
                self._boundaries.at(copy, head.applied)
        return head.applied

    def _read(self, copy: OpenCopy, before: int) -> Sequence[Entry]:
        """The entries after ``before``. None when others have applied what the log no longer has."""
        try:
            entries = self._log.read(before + 1, config.APPLY_BATCH_BYTES_MAX)
        except TooOld:
            if copy.applied() > before:
                return ()
            raise
        if not entries:
            raise LogCorrupt(f"offset {before + 1} of {self._url} was announced and is not there")
        self._recent.add(entries)
        return entries

    def _run(self) -> None:
        """What the applying thread does."""
        backoff = Backoff(_RETRY_S, _RETRY_S_MAX)
        while not self._closed and self._halted is None:
            try:
                last = self._log.wait(self._known, config.REPLICA_LOOK_S)
                if last > self._known:
                    self._wanted.wait_for(self._is_wanted, config.REPLICA_GATHER_S)
                    self._advance(self._log.last, None, None)
                else:
                    self._tend()
                backoff.reset()
                self._trouble = None
            except (Unavailable, Timeout, Damaged) as error:
                self._trouble = error  # told to who waits; tried again for ever
                self._ended.wait(backoff.pause_s())
            except OnefoldError:
                pass  # it has halted, or is being closed: both end the loop
            except BaseException as error:
                self._halt(SpaceError(f"applying failed with {type(error).__name__}: {error}"))
                raise

    def _is_wanted(self) -> bool:
        """Whether somebody waits for more to be applied."""
        return bool(self._waiting) or self._awaited.any or self._closed

    def _tend(self) -> None:
        """While nothing else is to do."""
        self._awaited.expire()
        with self._changed:
            if self._applying:
                return  # the process that has it does this too
            self._applying = True
        try:
            self._holder.tend(self._known)
        except Damaged:
            raise
        except (LogCorrupt, SpaceError, TooOld) as error:
            self.check_open()
            self._halt(error)
            raise
        finally:
            with self._changed:
                self._applying = False
                self._tell()

    # -- other processes

    def _notice(self) -> bool:
        """What others have applied; False when nothing will be any more."""
        looks = not self._closed and self._halted is None
        if looks:
            self._look()
        return looks
