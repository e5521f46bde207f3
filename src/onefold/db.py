"""Connecting: ``connect`` opens a space, ``Database`` is what a program holds of it."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from onefold.errors import InvalidArgument, UnsupportedConsistency

if TYPE_CHECKING:
    from onefold.compute.dataset import Dataset
    from onefold.compute.engine import Engine
    from onefold.compute.plan import Job
    from onefold.compute.runs import Run, RunState
    from onefold.compute.tables import Table
    from onefold.fold.api import Context, Fold, Store
    from onefold.fold.space import Space

Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]
DEFAULT_SPACE = ".onefold"
run_started: list[Callable[[str, Run], None]] = []
"""Called with the space's URL and the run for each run that this process starts. The command line uses it."""
_LEVELS = ("strong", "session", "prefix", "eventual")


def connect(
    url: str | os.PathLike[str] | None = None,
    *,
    consistency: str = "strong",
    timeout: float | str | None = None,
    create: bool = True,
) -> Database:
    """Open a space and make it if it is not there.

    ``url``: a folder, ``sqlite:///folder``, or ``memory://`` (nothing kept); without it ``ONEFOLD_URL``, else ``./.onefold``.
    ``timeout``: seconds (or ``"5s"``) that an operation may wait for the write lock. ``create=False``: raise SpaceError when
    there is no space rather than make one.

    Raises SpaceError (cannot be opened: read-only folder, newer format, not a space), InvalidArgument (unknown URL).
    """
    from onefold.durations import seconds
    from onefold.fold.open import open_space

    _check_consistency(consistency)
    given = url if url is not None else os.environ.get("ONEFOLD_URL") or DEFAULT_SPACE
    target = os.fspath(given) if isinstance(given, os.PathLike) else given
    if not isinstance(target, str) or "\0" in target:
        raise InvalidArgument(f"url must be a folder, sqlite:///folder or memory://; got {given!r}")
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", target)
    if scheme is not None and scheme.group(1) not in ("memory", "sqlite"):
        raise InvalidArgument(
            f"unknown engine {scheme.group(1)!r} in {target!r}; use a folder, sqlite:///folder or memory://"
        )
    space = open_space(
        target,
        [_LazyJobsFold()],
        create=create,
        timeout=seconds(timeout, "timeout") if timeout is not None else None,
    )
    return Database(space)


def _check_consistency(level: str) -> None:
    from onefold.durations import seconds

    if isinstance(level, str) and level.startswith("bounded:"):
        seconds(level.removeprefix("bounded:"), "consistency: the bound")
    elif level not in _LEVELS:
        raise UnsupportedConsistency(
            f"unknown consistency {level!r}; use 'strong', 'bounded:5s', 'session', 'prefix' or 'eventual'"
        )


class _LazyJobsFold:
    """The jobs fold, imported when the first operation is applied: connecting and reading need only its name."""

    name = "jobs"
    version = 1
    history: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self._fold: Fold | None = None

    def apply(self, store: Store, context: Context, body: bytes, fold_version: int) -> bytes:
        if self._fold is None:
            from onefold.compute.jobs.fold import JobsFold

            self._fold = JobsFold()
        return self._fold.apply(store, context, body, fold_version)


class Database:
    """An open space. Thread-safe; close it, or use it as a context manager."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self._jobs: Engine | None = None
        self._lock = threading.Lock()

    @property
    def _engine(self) -> Engine:
        """Jobs on this space; what they need is imported when they are first used."""
        with self._lock:
            if self._jobs is None:
                from onefold.compute.engine import Engine

                self._jobs = Engine(self._space)
            return self._jobs

    @property
    def url(self) -> str:
        """As it can be opened again."""
        return self._space.url

    def close(self) -> None:
        """Stop this process's work (runs stay and can be resumed) and release the space."""
        if self._jobs is not None:
            self._jobs.close()
        else:
            self._space.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Database {self.url}>"

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
        """Lines of text files: one column ``line``, without the line's end. ``.gz`` and ``.zst`` are unpacked.

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
        include_file_paths: str | None = None,
        storage_options: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Dataset:
        """Rows of Parquet files, cut into tasks by row group. All files must have the same columns."""
        return self._read(
            "parquet",
            paths,
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

        return Dataset(make_source(kind, paths, **options), _Starter(self._engine))

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
        from onefold.compute import arguments

        arguments.dataset("map_reduce", dataset)
        prepared = dataset.map_reduce(map=map, reduce=reduce, combine=combine).into(into)
        run: Run = prepared.start(**start)
        return run

    def runs(self, state: RunState | None = None, table: str | None = None) -> list[Run]:
        """The runs of this space, newest first."""
        from onefold.compute.jobs import state as jobs
        from onefold.compute.runs import Run

        states = ("running", "done", "failed", "cancelled")
        if state is not None and state not in states:
            raise InvalidArgument(f"unknown state {state!r}; use one of {', '.join(states)}")
        if table is not None:
            _check_text("table", table)
        with self._engine.space.view() as view:
            rows = jobs.list_runs(view, state=state, table=table)
        return [Run(self._engine, row.id) for row in reversed(rows)]

    def open_run(self, id: str) -> Run:
        """A run by its id, to follow, cancel or resume it. Raises InvalidArgument when there is none."""
        from onefold.compute.runs import Run

        _check_text("id", id)
        run = Run(self._engine, id)
        _ = run.state
        return run

    def table(self, name: str) -> Table:
        """A table by its name. Raises InvalidArgument when no job has made it."""
        from onefold.compute.tables import Table

        _check_text("name", name)
        table = Table(self._engine, name)
        table.contents()
        return table

    def tables(self) -> list[Table]:
        """All tables of this space, by name."""
        from onefold.compute.jobs import state as jobs
        from onefold.compute.tables import Table

        with self._engine.space.view() as view:
            rows = jobs.list_tables(view)
        return [Table(self._engine, row.name) for row in rows if row.sink == "table"]

    def explain(self, name: str) -> list[str]:
        """Sentences that say how a table was made and why its last run computed something again.

        Raises InvalidArgument when there is no such table.
        """
        from onefold.compute import explanation

        _check_text("name", name)
        with self._engine.space.view() as view:
            return explanation.explain(view, self._engine.blobs, name)


class _Starter:
    """What a prepared job calls to become a run."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def start(self, job: Job, **options: Any) -> Run:
        run = self._engine.start(job, **options)
        for started in run_started:
            started(self._engine.space.url, run)
        return run

    def run(self, job: Job, *, progress: bool = True, **options: Any) -> Run:
        import sys

        shown = progress and not _quiet()
        if shown:  # imported before the run is there: Python may lose a Ctrl-C that meets an import
            from onefold.display import follow, screens  # noqa: F401
        run = self.start(job, **options)
        try:
            if shown:
                follow(run)
            run.wait()
        except KeyboardInterrupt:
            run.cancel()
            done = run.progress()
            print(
                f"\nRun {run.id} is cancelled; {done.done} of {done.total} tasks are finished and kept. "
                f"Go on with db.open_run({run.id!r}).resume(), or run the program again.",
                file=sys.stderr,
            )
            raise
        run.raise_if_failed()
        return run


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise InvalidArgument(f"{name} must be text; got {value!r} ({type(value).__name__})")


def _quiet() -> bool:
    return os.environ.get("ONEFOLD_PROGRESS", "").lower() in ("0", "no", "off")


__all__ = ["Database", "connect"]
