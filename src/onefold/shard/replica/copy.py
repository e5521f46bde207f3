"""One copy of a replica, open in this process: its file, the folds that bring it forward, and how it is chosen at opening."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from onefold import config
from onefold.codec import Record, encode_record
from onefold.env import Env
from onefold.errors import LogCorrupt, OnefoldError, SpaceError, TooOld, Unavailable
from onefold.fold import system
from onefold.fold.api import Fold
from onefold.ids import client_id
from onefold.log.api import Entry, Log
from onefold.shard.replica.copies import Copies, Use
from onefold.shard.replica.file import Damaged, ReplicaFile, Unusable
from onefold.store.exactly_once import Verdict
from onefold.store.replica import Applied, Replica, agrees
from onefold.store.snapshot import load_snapshot
from onefold.store.tables import Head, Tables, read_head

_ABOUT = "1"
"""Of what a copy says of itself; another one is not opened."""


class Kind:
    """What the copies of a replica are copies of."""

    def __init__(
        self,
        log: Log,
        folds: Sequence[Fold],
        env: Env,
        *,
        url: str,
        keep_all: bool,
        read_only: bool,
        snapshots: Callable[[], Path | None] | None,
    ) -> None:
        """``keep_all``: see ``SqlStore``. ``snapshots``: gives a file to begin from (None: there is none)."""
        self.log = log
        self.folds = folds
        self.env = env
        self.url = url
        self.keep_all = keep_all
        self.read_only = read_only
        self.snapshots = snapshots

    @property
    def about(self) -> dict[str, str]:
        """As it is written into each copy."""
        return {"about": _ABOUT, "incarnation": self.log.incarnation, "keep_all": str(int(self.keep_all))}


class OpenCopy:
    """One copy in use by this process. Reading is thread-safe; ``apply`` is for one thread at a time."""

    def __init__(self, path: Path, kind: Kind, *, make: bool = False) -> None:
        """Raises as ``ReplicaFile``, SpaceError when its state is beyond this program, and OSError."""
        self.path = path
        self._use = Use(path)
        self.applied_last: dict[str, Applied] = {}
        """What the last batch that was applied here did: of each client its last record."""
        file = None
        try:
            self.file = file = ReplicaFile(path, kind.about, make=make)
            self.tables = Tables()
            with self.file.resting_writer() as con:
                self.replica = Replica(con, self.tables, kind.folds, keep_all=kind.keep_all)
                self.file.end_statements = self.replica.end_statements
                self.replica.load()
        except BaseException:
            if file is not None:
                file.close()
            self._use.close()
            raise

    def applied(self) -> int:
        """The offset at which it stands now, no matter who brought it there."""
        with self.file.reading() as con:
            return read_head(con).applied

    def apply(self, entries: Sequence[Entry], timeout: float) -> Head:
        """Apply those of the entries that come next, in one transaction that crosses no multiple of
        ``config.SNAPSHOT_EVERY_OFFSETS``; where it stands then.

        Raises Timeout when others were applying for ``timeout`` seconds, LogCorrupt, SpaceError, Unavailable (disk full);
        nothing was applied then.
        """
        replica = self.replica
        last: dict[str, Applied] = {}
        try:
            with self.file.writing(timeout):
                before = replica.load(self.file.foreign).applied
                every = config.SNAPSHOT_EVERY_OFFSETS
                stop = (before // every + 1) * every
                for entry in entries:
                    if before < entry.offset <= stop:
                        applied = replica.apply(entry)
                        if applied.client is not None and applied.verdict is Verdict.APPLY:
                            last[applied.client] = applied
                replica.flush()
        except BaseException:
            replica.rollback()
            raise
        replica.commit()
        self.applied_last = last
        return replica.head

    def close(self, timeout_s: float = 1.0) -> None:
        """Release it. ``timeout_s``: seconds to wait for a transaction of another thread."""
        self.file.timeout = timeout_s
        self.file.close()
        self._use.close()


def choose(copies: Copies, kind: Kind, timeout: float) -> OpenCopy:
    """The copy in use, if it agrees with the log; else a new one, which is in use from now on.

    Where another process was looking for ``timeout`` seconds and did not come to an end, it is a new one that nobody else uses.
    Raises Unavailable (the log does not answer, disk full), SpaceError, LogCorrupt, TooOld.
    """
    with copies.deciding(timeout) as decided:
        current = copies.current() if decided else None
        copy = None if current is None else _open(copies, kind, current)
        if copy is None:
            copy = begin(copies, kind)
            if decided:
                copies.publish(copy.path)
        if decided:
            copies.sweep()
        return copy


def begin(copies: Copies, kind: Kind) -> OpenCopy:
    """A new copy, as a snapshot has it or empty. Raises TooOld when neither leads to the log, and as ``OpenCopy``."""
    try:
        copy = OpenCopy(copies.new(), kind, make=True)
    except OSError as error:
        raise SpaceError(
            f"{copies.directory} cannot be used ({error.strerror}). Check its owner and mode, or give ONEFOLD_CACHE another place"
        ) from error
    try:
        path = None if kind.snapshots is None else kind.snapshots()
        if path is not None:
            _load(copy, kind, path)
        if copy.applied() + 1 < kind.log.first:
            raise TooOld(
                f"the log of {kind.url} begins at offset {kind.log.first}, and no snapshot leads there: its state cannot be "
                "folded here. Read from the nodes (replicas='remote'), or wait for a snapshot"
            )
    except BaseException:
        copy.close()
        raise
    return copy


def _load(copy: OpenCopy, kind: Kind, path: Path) -> None:
    with copy.file.maintaining() as con:
        made = load_snapshot(con, path, copy.replica.history, keep_all=kind.keep_all)
    if made.incarnation != kind.log.incarnation:
        raise LogCorrupt(
            f"the snapshot {path} is of another incarnation of {kind.url} ({made.incarnation}). Remove it"
        )
    if not (_delivered(kind, made.offset) and _agrees(copy, kind)):
        raise LogCorrupt(
            f"the snapshot {path} stands at offset {made.offset} of another log than {kind.url}. Remove it"
        )


def _open(copies: Copies, kind: Kind, path: Path) -> OpenCopy | None:
    """The copy, if it can be used; condemned where it has diverged from the log."""
    if copies.condemned(path) is not None:
        return None
    try:
        copy = OpenCopy(path, kind)
    except (Unusable, Damaged, OSError):
        return None
    try:
        applied = copy.applied()
        if applied + 1 < kind.log.first:
            good = False  # it stands so far back that the log no longer leads on from there
        elif _delivered(kind, applied) and _agrees(copy, kind):
            good = True
        else:
            good = False
            copies.condemn(path, f"it disagrees with the log of {kind.url} at offset {applied}")
    except Damaged:
        copy.close()
        return None
    except BaseException:
        copy.close()
        raise
    if not good:
        copy.close()
        return None
    return copy


def _agrees(copy: OpenCopy, kind: Kind) -> bool:
    with copy.file.reading() as con:
        con.execute("BEGIN")
        return agrees(con, kind.log)


def _delivered(kind: Kind, offset: int) -> bool:
    """Wait until the log is delivered up to there; False when it ends before, which only an append of one's own can prove.

    Raises Unavailable when neither comes about.
    """
    log = kind.log
    if log.wait(offset - 1, config.REPLICA_OPEN_WAIT_S) >= offset:
        return True
    late = f"{kind.url} was not delivered up to offset {offset}, where the local copy stands"
    if kind.read_only:
        raise Unavailable(f"{late}, within {config.REPLICA_OPEN_WAIT_S:g} s. Try again")
    tick = Record(client_id(0, kind.env), 1, kind.env.wall_ms(), (system.system_op(system.Tick()),))
    try:
        at = log.append(encode_record(tick))
    except OnefoldError as error:
        raise Unavailable(f"{late}, and answers no append: {error}. Try again") from error
    if at <= offset:
        return False
    if log.wait(offset - 1, config.APPEND_RETRY_S) < offset:
        raise Unavailable(f"{late}, although it has it. Try again")
    return True
