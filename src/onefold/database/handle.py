"""What a program holds of an open space. ``onefold.db.connect`` opens one."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, overload

from onefold import config
from onefold.backoff import Deadline
from onefold.database.available import DatabaseAvailable
from onefold.database.jobs import DatabaseJobs
from onefold.database.maps import DatabaseMaps
from onefold.database.sources import DatabaseSources
from onefold.database.sweeping import Sweeping
from onefold.errors import InvalidArgument
from onefold.folds import folds, has_live_jobs, is_named
from onefold.machine import forks
from onefold.machine.first_use import first_use
from onefold.machine.undisturbed import undisturbed, wait_until_mended
from onefold.state.encoding.names import check_text

if TYPE_CHECKING:
    from onefold.compute.blobs.store import BlobStore
    from onefold.compute.bounded.stream_ranges import StreamRanges
    from onefold.compute.engine import Engine
    from onefold.compute.live_starting import LiveHost
    from onefold.shard.api import Shard
    from onefold.state.available.client import Region, RegionClient
    from onefold.state.catalog import Collection
    from onefold.state.core.client import StateClient
    from onefold.state.core.consistency import Level
    from onefold.state.core.tokens import Session
    from onefold.state.locks.lock import Lock
    from onefold.state.queues.queue import Queue
    from onefold.state.streams.large_frames import LargeFrames
    from onefold.state.streams.stream import Stream
    from onefold.state.transaction import Transaction

T = TypeVar("T")
R = TypeVar("R")


class Database(DatabaseMaps, DatabaseJobs, DatabaseSources, DatabaseAvailable):
    """An open space. Thread-safe; close it, or use it as a context manager."""

    def __init__(
        self,
        shards: Sequence[Shard],
        *,
        level: Level | None = None,
        token: str | None = None,
        timeout: float | None = None,
        open_region: Callable[[str | None], Region] | None = None,
    ) -> None:
        """Programs call ``connect``. ``shards``: those of the space, open, in order. ``open_region``: opens the region in which
        available collections are used; called when the first is, with the one to take where the connection names none."""
        self._shards = tuple(shards)
        self._shard = self._shards[0]
        self._jobs: Engine | None = None
        self._live: LiveHost | None = None
        self._client: StateClient | None = None
        self._client_options = (level, token, timeout)
        self._lock = threading.Lock()
        self._sweeping = Sweeping(self._shards, lambda: self._state, lambda: self._engine.blobs)
        self._pid = forks.process
        self._open_region = open_region
        self._default_region: str | None = None
        """Of a connection that names none, for those who do not care: set before the first use."""
        self._has_regions: Callable[[], bool] | None = None
        """Whether the region that would be opened is clear, and is there."""
        self._region_client: RegionClient | None = None
        self._region_lock = threading.Lock()
        self._present: Database | None = None
        """Of a database as it was: the one that it is the past of."""
        if token is not None:
            _ = self._state  # a wrong token is reported at once

    @property
    def _state(self) -> StateClient:
        """Shared state in this space; imported when first used."""
        self._check_process()
        if self._client is None:
            from onefold.state.core.client import StateClient
            from onefold.state.core.consistency import STRONG

            level, token, timeout = self._client_options
            with self._lock:
                if self._client is None:
                    client = StateClient(self._shards, level=level or STRONG, token=token, timeout=timeout)
                    client.large_frames = self._large_frames
                    client.session.open_region = lambda: self._available
                    self._client = client
            self._sweeping.look()
        return self._client

    @property
    def _available(self) -> RegionClient:
        """Collections for every region, in this connection's; the region is opened when the first is used.

        Raises InvalidArgument (which region is not clear), SpaceError, Unavailable, TokenError: all definite.
        """
        space = self._state
        if self._region_client is None:
            if self._open_region is None:
                raise InvalidArgument(
                    "this space has no collections for every region: it is read as it was, or its engine has none"
                )
            with first_use:
                import onefold.state.available.client  # noqa: F401 - what follows holds a lock

            with self._region_lock:
                if self._region_client is None:
                    self._region_client = self._opened_region(space)
        return self._region_client

    def _in_region(self) -> None:
        """Open the region of this connection now, which its first available collection does otherwise. Raises as that does."""
        _ = self._available

    def _opened_region(self, space: StateClient) -> RegionClient:
        from onefold.state.available.client import RegionClient

        assert self._open_region is not None
        region = self._open_region(self._default_region)
        try:
            client = RegionClient(space, region)
            space.session.in_region(client)
        except BaseException:
            region.close()
            raise
        return client

    @property
    def _engine(self) -> Engine:
        """Jobs on this space; what they need is imported when they are first used."""
        self._check_process()
        with self._lock:
            if self._jobs is None:
                with first_use:
                    from onefold.compute.engine import Engine

                blobs = None if self._present is None else self._present._past_blobs()
                self._jobs = Engine(
                    self._shard, blobs=blobs, tidies=blobs is None and not self._sweeping.is_left
                )
                self._jobs.streams = self._stream_ranges
                self._jobs.check_name = self._check_no_live_job
                self._jobs.free_name = self._free_name
            return self._jobs

    def _check_process(self) -> None:
        # Before anything that takes a lock: its holder may not have been forked along.
        if self._pid != forks.process:
            raise forks.opened_before(self._shard.url)

    @property
    def url(self) -> str:
        """As it can be opened again."""
        return self._shard.url

    def close(self) -> None:
        """Stop this process's work (runs stay and can be resumed) and release the space. Does nothing in a forked process."""
        if self._pid == forks.process:
            undisturbed(self._close)  # to its end, even when the caller is interrupted

    def _close(self) -> None:
        deadline = Deadline.after(config.LIVE_END_WAIT_S)
        if self._live is not None:
            self._live.close()
        self._sweeping.close(deadline)
        if self._jobs is not None:
            self._jobs.close()
        wait_until_mended()  # what was interrupted is given back while that is possible
        if self._region_client is not None:
            self._region_client.region.close()
        for shard in self._shards:
            shard.close()

    def __reduce__(self) -> str | tuple[Any, ...]:
        raise InvalidArgument(
            f"{self!r} cannot be sent to another process or stored: it holds open files. Send the URL (and "
            "`db.session.token`), and connect there"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Database {self.url}>"

    # -- shared state -----------------------------------------------------------------------------------------------

    @overload
    def queue(
        self,
        name: str,
        *,
        lease: float | timedelta | str = "30s",
        max_attempts: int = 5,
        dead_letter: str | None = None,
    ) -> Queue[Any]: ...

    @overload
    def queue(
        self,
        name: str,
        *,
        type: type[T],
        lease: float | timedelta | str = "30s",
        max_attempts: int = 5,
        dead_letter: str | None = None,
    ) -> Queue[T]: ...

    def queue(
        self,
        name: str,
        *,
        type: type[Any] | None = None,
        lease: float | timedelta | str = "30s",
        max_attempts: int = 5,
        dead_letter: str | None = None,
    ) -> Queue[Any]:
        """A durable queue. A message that is taken and not acknowledged within ``lease`` is given out again, up to
        ``max_attempts`` times; then it goes to the queue ``dead_letter`` (default: kept aside in this one, see
        ``Queue.dead``). ``type``: of its values, as for ``map``."""
        from onefold.state.queues.queue import Queue

        return Queue(
            self._state, name, lease=lease, max_attempts=max_attempts, dead_letter=dead_letter, type=type
        )

    def lock(
        self,
        name: str,
        *,
        ttl: float | timedelta | str = "30s",
        timeout: float | timedelta | str | None = None,
    ) -> Lock:
        """A lock among all programs of the space, for a ``with`` block. It is renewed while it is held, and free again at
        most about ``ttl`` after its holder died. ``timeout``: how long to wait for it (default: for ever).

        Raises:
            InvalidArgument: definite; a name or a time is not valid. Waiting raises what ``Lock.acquire`` does.
        """
        from onefold.state.locks.lock import Lock

        return Lock(self._state, name, ttl=ttl, timeout=timeout)

    def stream(
        self,
        name: str,
        *,
        partitions: int | None = None,
        type: type[Any] | None = None,
        retention: float | timedelta | str | None = None,
    ) -> Stream[Any]:
        """A durable stream of records in ``partitions`` (fixed when it is made; default 1). ``retention``: how long records are
        kept (default: for ever)."""
        from onefold.state.streams.stream import Stream

        return Stream(self._state, name, partitions=partitions, type=type, retention=retention)

    def transaction(self, request_id: str | None = None, *, read_only: bool = False) -> Transaction:
        """One try of a serializable transaction: ``with db.transaction() as tx``. It commits when the block ends.

        ``request_id``: it happens at most once under this name. ``read_only``: a snapshot, which is never refused. In a
        folder it appends nothing. On a cluster a strong read appends a record, and a moment of several shards two in each.

        Raises:
            Conflict: definite, when the block ends; somebody changed what it had read.
            TooOld: definite; its snapshot has left the kept history.
            TransactionError: definite; inside another block.
            Unavailable, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        from onefold.state.transaction import Transaction

        return Transaction(self._state, request_id=request_id, read_only=read_only)

    def run_transaction(
        self,
        fn: Callable[[Transaction], R],
        *,
        attempts: int = config.TRANSACTION_ATTEMPTS,
        request_id: str | None = None,
        read_only: bool = False,
    ) -> R:
        """Run ``fn(tx)`` in a transaction and commit; tried again with backoff when it loses, up to ``attempts`` times.
        ``fn`` may run several times, so it must do nothing outside of ``tx``.

        Raises:
            Conflict: definite; every try has lost.
            TooOld: definite; its snapshot has left the kept history.
            TransactionError: definite; inside another block, or ``fn`` is asynchronous.
            Unavailable, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        from onefold.state.running import run_transaction

        return run_transaction(self._state, fn, attempts=attempts, request_id=request_id, read_only=read_only)

    @property
    def session(self) -> Session:
        """What this connection has seen; ``session.token`` is text that another process can continue with."""
        return self._state.session

    def outcome(self, request_id: str) -> Literal["committed", "rejected"] | None:
        """What became of a write with this request id whose answer was lost; None when none is known (it did not happen
        so far, or longer ago than ``config.REQUEST_ID_RETENTION_S``).

        Writes of collections for every region are found if they were done in this connection's region, or this region has heard
        of them. That needs no majority of the space: only for an id that the region does not know the rest of it is asked too.

        Raises:
            Unavailable: definite; a shard cannot be asked now. The message says what the region knows.
        """
        from onefold.state.core.outcomes import outcome
        from onefold.state.encoding.names import check_request_id

        check_text("request_id", request_id)
        check_request_id(request_id)
        space = self._state
        if self._region_client is None and not (self._has_regions is not None and self._has_regions()):
            return outcome(space, request_id)
        from onefold.state.available.outcomes import outcome_of_both

        return outcome_of_both(self._available, request_id)

    def at(self, when: datetime | str) -> Database:
        """The database as it was at a moment (naive: local time) or at a session token, for reading: writes raise
        SpaceError. This one must stay open meanwhile. Maps are read from the history that is kept anyway; queues, streams
        and tables are folded again from the log, once, into memory. What a lifetime has ended since is there again.

        Raises:
            InvalidArgument, TokenError: definite; a moment in the future; a malformed token, or one of another space.
            TooOld: definite; the log no longer goes back so far. The message names the oldest moment. Reading raises it too, for
                records of a stream that retention has removed since, and for data of a table that a later run has replaced:
                what is in blobs is kept for some minutes only.
        """
        from onefold.state.past import PastClient, past_shards

        self._check_process()
        past = Database(past_shards(self._shards, folds, when))
        past._present = self
        past._client = PastClient(past._shards)
        past._client.large_frames = past._large_frames
        return past

    def collections(self) -> list[Collection]:
        """What is in the space: maps, queues and streams, locks that are held, live jobs, and tables, by
        kind and name; then the available collections of this connection's region, by name. Where there are several regions and
        none was named, these are left out. Counts every item, so it takes as long as reading all keys."""
        from onefold.state.catalog import Collection, available_collections, collections

        counted = [(table.name, table.status.done) for table in self._batch_tables()]
        live = self._live_jobs()
        if live:
            counted += self._live_starter().counted(live)
        found = [*collections(self._state), *(Collection("table", *one) for one in sorted(counted))]
        return found + available_collections(self._available) if self._region_is_there() else found

    def _region_is_there(self) -> bool:
        """Whether it is clear which region this connection uses, and there is one. Makes none."""
        named = self._region_client is not None or self._default_region is not None
        return named or (self._has_regions is not None and self._has_regions())

    def _large_frames(self) -> LargeFrames | None:
        with first_use:
            from onefold.compute.live.inputs.stream_blobs import large_frames

        if self._present is None:
            return large_frames(self._shard, lambda: self._engine.blobs, self._sweeping.keep)
        frames = large_frames(self._present._shard, lambda: self._engine.blobs)
        return frames and dataclasses.replace(frames, present=self._present._state)

    def _past_blobs(self) -> BlobStore:
        """The blobs, for the past of this database."""
        with first_use:
            from onefold.compute.blobs.past import PastBlobs
        from onefold.space.kept_log import reach_of

        return PastBlobs(self._engine.blobs, partial(is_named, self._shards), partial(reach_of, self._shards))

    def _stream_ranges(self) -> StreamRanges:
        with first_use:
            from onefold.compute.bounded.stream_ranges import StreamRanges

        return StreamRanges(lambda: self._state)

    def _check_no_live_job(self, table: str) -> None:
        if self._may_have_live_jobs():
            with first_use:
                from onefold.compute.live.client import check_free

            check_free(self._state, table)

    def _free_name(self, table: str) -> None:
        with first_use:
            from onefold.compute.live import names

        names.free_abandoned(self._engine, self._state, table)

    def _may_have_live_jobs(self) -> bool:
        # Elsewhere a view shows what a level asks for, which shared state knows.
        given = self._client is not None and bool(self._client.session.given)
        if given or not all(shard.strong_reads for shard in self._shards):
            return True
        return any(map(has_live_jobs, self._shards))

    def _live_starter(self) -> LiveHost:
        with self._lock:
            if self._live is None:
                with first_use:
                    from onefold.compute.live_starting import LiveHost

                self._live = LiveHost(lambda: self._state, lambda: self._engine, self._sweeping.keep)
            return self._live
