"""What a program holds of an open space. ``onefold.db.connect`` opens one."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, overload

from onefold import config
from onefold.errors import InvalidArgument
from onefold.folds import folds
from onefold.machine import forks
from onefold.machine.undisturbed import undisturbed, wait_until_mended

if TYPE_CHECKING:
    from onefold.compute.dataset import Dataset
    from onefold.compute.engine import Engine
    from onefold.compute.results.tables import Table
    from onefold.compute.runs import Run, RunState
    from onefold.shard.api import Shard
    from onefold.state.catalog import Collection
    from onefold.state.core.client import StateClient
    from onefold.state.core.consistency import Consistency, Level
    from onefold.state.core.tokens import Session
    from onefold.state.locks.lock import Lock
    from onefold.state.maps.map import Map
    from onefold.state.queues.queue import Queue
    from onefold.state.streams.stream import Stream
    from onefold.state.transaction import Transaction

T = TypeVar("T")
R = TypeVar("R")
Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]


class Database:
    """An open space. Thread-safe; close it, or use it as a context manager."""

    def __init__(
        self,
        shards: Sequence[Shard],
        *,
        level: Level | None = None,
        token: str | None = None,
        timeout: float | None = None,
    ) -> None:
        """Programs call ``connect``. ``spaces``: the open shards, in order."""
        self._shards = tuple(shards)
        self._shard = self._shards[0]
        self._jobs: Engine | None = None
        self._client: StateClient | None = None
        self._client_options = (level, token, timeout)
        self._lock = threading.Lock()
        self._pid = forks.process
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
                    self._client = StateClient(
                        self._shards, level=level or STRONG, token=token, timeout=timeout
                    )
        return self._client

    @property
    def _engine(self) -> Engine:
        """Jobs on this space; what they need is imported when they are first used."""
        self._check_process()
        with self._lock:
            if self._jobs is None:
                from onefold.compute.engine import Engine

                self._jobs = Engine(self._shard)
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
        if self._jobs is not None:
            self._jobs.close()
        wait_until_mended()  # what was interrupted is given back while that is possible
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
    def map(self, name: str, *, consistency: Consistency | None = None) -> Map[Any]: ...

    @overload
    def map(self, name: str, *, type: type[T], consistency: Consistency | None = None) -> Map[T]: ...

    def map(
        self, name: str, *, type: type[Any] | None = None, consistency: Consistency | None = None
    ) -> Map[Any]:
        """A shared map: a ``MutableMapping`` whose keys are str, int, bytes, bool, None or tuples of those.

        ``type``: a msgspec Struct, dataclass or other type of its values; new fields of it need defaults. ``consistency``: of its
        reads, instead of the connection's. The map need not exist: it is empty until something is put.
        """
        from onefold.state.core.consistency import parse_level
        from onefold.state.maps.map import Map

        level = None if consistency is None else parse_level(consistency)
        return Map(self._state, name, type=type, level=level)

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
        most about ``ttl`` after its holder died. ``timeout``: how long to wait for it (default: for ever)."""
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
        """One try of a serializable transaction: ``with db.transaction() as tx``. It commits when the block ends and
        raises Conflict (nothing was written) when somebody changed what it had read. ``request_id``: it happens at most
        once under this name. ``read_only``: a snapshot, which is never refused. In a folder it appends nothing; on a cluster
        a strong read appends a record, and a moment of several shards two in each of them (the locks that it takes, and
        their release)."""
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
        ``fn`` may run several times, so it must do nothing outside of ``tx``. Raises Conflict (definite) when every try
        has lost."""
        from onefold.state.transaction import run_transaction

        return run_transaction(self._state, fn, attempts=attempts, request_id=request_id, read_only=read_only)

    @property
    def session(self) -> Session:
        """What this connection has seen; ``session.token`` is text that another process can continue with."""
        return self._state.session

    def outcome(self, request_id: str) -> Literal["committed", "rejected"] | None:
        """What became of a write with this request id whose answer was lost; None when none is known (it did not happen
        so far, or longer ago than ``config.REQUEST_ID_RETENTION_S``)."""
        from onefold.state.core.outcomes import outcome
        from onefold.state.encoding.names import check_request_id

        check_text("request_id", request_id)
        check_request_id(request_id)
        return outcome(self._state, request_id)

    def at(self, when: datetime | str) -> Database:
        """The database as it was at a moment (naive: local time) or at a session token, for reading: writes raise
        SpaceError. This one must stay open meanwhile. Maps are read from the history that is kept anyway; queues, streams
        and tables are folded again from the log, once, into memory.

        What a lifetime has ended since is there again. Raises, all definite: InvalidArgument (the future), TokenError,
        TooOld when the log no longer goes back so far (then the message names the oldest moment).
        """
        from onefold.state.past import PastClient, past_shards

        self._check_process()
        past = Database(past_shards(self._shards, folds, when))
        past._client = PastClient(past._shards)
        return past

    def collections(self) -> list[Collection]:
        """What is in the space: maps, queues and streams, locks that are held, and tables; by kind and name. Counts every
        item, so it takes as long as reading all keys."""
        from onefold.state.catalog import Collection, collections

        tables = [Collection("table", table.name, table.status.done) for table in self.tables()]
        return [*collections(self._state), *tables]

    # -- datasets ---------------------------------------------------------------------------------------------------

    def read_text(
        self,
        paths: Paths,
        *,
        encoding: str = "utf8",
        errors: Literal["strict", "replace", "ignore"] = "strict",
        include_file_paths: str | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> Dataset:
        """Lines of text files: one column ``line``, without the line's end. Compressed files are unpacked.

        ``paths``: files, folders, globs (``**`` too) or fsspec URLs. With ``errors="strict"`` bytes that are not UTF-8 fail the
        job with the file and line.
        """
        return self._read(
            "text",
            paths,
            encoding=encoding,
            errors=errors,
            include_file_paths=include_file_paths,
            storage_options=storage_options,
        )

    def read_csv(
        self,
        paths: Paths,
        *,
        schema: Mapping[str, Any] | None = None,
        schema_overrides: Mapping[str, Any] | None = None,
        include_file_paths: str | None = None,
        storage_options: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Dataset:
        """Rows of CSV files with one schema, fixed when the job is submitted.

        ``options``: ``separator``, ``quote_char``, ``has_header``, ``null_values``, ``infer_schema_length``, … as in Polars.
        """
        return self._read(
            "csv",
            paths,
            schema=schema,
            schema_overrides=schema_overrides,
            include_file_paths=include_file_paths,
            storage_options=storage_options,
            **options,
        )

    def read_jsonl(
        self,
        paths: Paths,
        *,
        schema: Mapping[str, Any] | None = None,
        schema_overrides: Mapping[str, Any] | None = None,
        include_file_paths: str | None = None,
        storage_options: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Dataset:
        """Objects of newline-delimited JSON files with one schema, fixed when the job is submitted."""
        return self._read(
            "jsonl",
            paths,
            schema=schema,
            schema_overrides=schema_overrides,
            include_file_paths=include_file_paths,
            storage_options=storage_options,
            **options,
        )

    def read_parquet(
        self,
        paths: Paths,
        *,
        schema: Mapping[str, Any] | None = None,
        include_file_paths: str | None = None,
        storage_options: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Dataset:
        """Rows of Parquet files, cut into tasks by row group. All files must have the same columns.

        ``schema``: the columns and types that the files must have, in the order that the rows get; columns that are folders
        take their types from it.
        """
        return self._read(
            "parquet",
            paths,
            schema=schema,
            include_file_paths=include_file_paths,
            storage_options=storage_options,
            **options,
        )

    def read_files(self, paths: Paths, *, storage_options: Mapping[str, Any] | None = None) -> Dataset:
        """Whole files: one row each, with the columns ``path``, ``size`` (bytes) and ``data``."""
        return self._read("files", paths, storage_options=storage_options)

    def _read(self, kind: Any, paths: Paths, **options: Any) -> Dataset:
        from onefold.compute.dataset import Dataset
        from onefold.compute.sources import make_source
        from onefold.compute.starting import Starter

        return Dataset(make_source(kind, paths, **options), Starter(self._engine))

    # -- jobs -------------------------------------------------------------------------------------------------------

    def map_reduce(
        self,
        dataset: Dataset,
        *,
        map: Callable[..., Any],
        reduce: Callable[..., Any],
        into: str,
        combine: Callable[..., Any] | None = None,
        **start: Any,
    ) -> Run:
        """Start a classic MapReduce: ``map(record)`` yields (key, value) pairs, ``reduce(key, values)`` gives the key's value.

        The table ``into`` has the columns ``key`` and ``value``. ``combine(key, values)`` shrinks a map task's output and must
        agree with ``reduce``. ``start``: the arguments of ``PreparedJob.start``. Returns the run, which works in the background.
        """
        from onefold.compute.dataset import check_dataset

        check_dataset("map_reduce", dataset)
        prepared = dataset.map_reduce(map=map, reduce=reduce, combine=combine).into(into)
        run: Run = prepared.start(**start)
        return run

    def _catch_up(self) -> None:
        """What is said of jobs next is no older than this call, unless this connection is content with less than strong reads."""
        level = self._client_options[0]
        if level is None or level.kind == "strong":
            self._engine.catch_up()

    def runs(self, state: RunState | None = None, table: str | None = None) -> list[Run]:
        """The runs of this space, newest first."""
        from onefold.compute.jobs import state as jobs
        from onefold.compute.runs import Run

        states = ("running", "done", "failed", "cancelled")
        if state is not None and state not in states:
            raise InvalidArgument(f"unknown state {state!r}; use one of {', '.join(states)}")
        if table is not None:
            check_text("table", table)
        self._catch_up()
        with self._engine.shard.view() as view:
            rows = jobs.list_runs(view, state=state, table=table)
        return [Run(self._engine, row.id) for row in reversed(rows)]

    def open_run(self, id: str) -> Run:
        """A run by its id, to follow, cancel or resume it. Raises InvalidArgument when there is none."""
        from onefold.compute.runs import Run

        check_text("id", id)
        self._catch_up()
        run = Run(self._engine, id)
        _ = run.state
        return run

    def table(self, name: str) -> Table:
        """A table by its name. Raises InvalidArgument when no job has made it."""
        from onefold.compute.results.tables import Table

        check_text("name", name)
        self._catch_up()
        table = Table(self._engine.results, name)
        table.contents()
        return table

    def tables(self) -> list[Table]:
        """All tables of this space, by name."""
        from onefold.compute.jobs import state as jobs
        from onefold.compute.results.tables import Table

        self._catch_up()
        with self._engine.shard.view() as view:
            rows = jobs.list_tables(view)
        return [Table(self._engine.results, row.name) for row in rows if row.sink == "table"]

    def explain(self, name: str) -> list[str]:
        """Sentences that say how a table was made and why its last run computed something again.

        Raises InvalidArgument when there is no such table.
        """
        from onefold.compute.submission import explanation

        check_text("name", name)
        self._catch_up()
        with self._engine.shard.view() as view:
            return explanation.explain(view, self._engine.blobs, name)


def check_text(name: str, value: object) -> None:
    """Raises InvalidArgument for an argument that is not text."""
    if not isinstance(value, str):
        raise InvalidArgument(f"{name} must be text; got {value!r} ({type(value).__name__})")
