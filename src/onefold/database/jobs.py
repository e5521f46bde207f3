"""The jobs of an open space: its runs and tables, batch and live, by their names. A part of ``Database``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, get_args

from onefold.errors import Conflict, InvalidArgument
from onefold.machine.first_use import first_use
from onefold.state.encoding.names import check_text

if TYPE_CHECKING:
    from datetime import datetime

    from onefold.compute.dataset import Dataset
    from onefold.compute.engine import Engine
    from onefold.compute.live.client import Found, Listed
    from onefold.compute.live_dataset import LiveDataset
    from onefold.compute.live_starting import LiveHost
    from onefold.compute.results.tables import Table
    from onefold.compute.runs import Run, RunState
    from onefold.state.core.client import StateClient
    from onefold.state.core.consistency import Level
    from onefold.state.encoding.positions import Position


class DatabaseJobs:
    """What ``Database`` does with jobs."""

    _client_options: tuple[Level | None, str | None, float | None]

    @property
    def _engine(self) -> Engine:
        raise NotImplementedError

    @property
    def _state(self) -> StateClient:
        raise NotImplementedError

    def _live_starter(self) -> LiveHost:
        raise NotImplementedError

    def _may_have_live_jobs(self) -> bool:
        """Whether the space has, or had, live jobs, as far as that costs nothing to know. Asked before anything of theirs is
        imported, which takes up to a second."""
        raise NotImplementedError

    def _live_job(self, name: str) -> Found | None:
        """A live job by its name, or one generation of it; None: there is none."""
        if not self._may_have_live_jobs():
            return None
        with first_use:
            from onefold.compute.live.client import generation_by_name

        return generation_by_name(self._state, name)

    def _table_of(self, name: str) -> str:
        """The table that has this name for users: ``NAME@history`` is that of the live job as it is now."""
        if "@" not in name or not self._may_have_live_jobs():  # first what costs nothing
            return name
        with first_use:
            from onefold.compute.live.client import history_by_name

        table = history_by_name(self._state, name)
        return table if self._is_batch(table) else name

    def _check_no_history(self, table: str) -> None:
        """Raise Conflict when a live job has this table for its history."""
        if not self._may_have_live_jobs():
            return
        with first_use:
            from onefold.compute.live.client import live_of_history

        name = live_of_history(table)
        found = None if name is None else self._live_job(name)
        if found is not None:
            raise Conflict(
                f"{table!r} is the history of live job {found.job.name!r}: drop that one, which removes both"
            )

    def _live_jobs(self) -> list[Listed]:
        """All generations of all live jobs."""
        if not self._may_have_live_jobs():
            return []
        with first_use:
            from onefold.compute.live.client import all_generations

        return all_generations(self._state)

    def _is_batch(self, table: str) -> bool:
        """Whether a batch job makes this table."""
        with first_use:
            from onefold.compute.jobs import state as jobs

        with self._engine.shard.view() as view:
            return jobs.read_table(view, table) is not None

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
        with first_use:
            from onefold.compute.dataset import check_dataset

        check_dataset("map_reduce", dataset)
        prepared = dataset.map_reduce(map=map, reduce=reduce, combine=combine).into(into)
        run: Run = prepared.start(**start)
        return run

    def concat(self, history: Dataset, live: LiveDataset, *, at: datetime | Position) -> LiveDataset:
        """One plan over bounded rows and a stream: what happened before ``at`` from ``history``, the rest from ``live``.

        Group it, with windows or without, and put it into a table, a map or a stream. The history is computed by a batch job with
        the table ``NAME@history`` (listed as ``NAME/GENERATION@history``); live rows are taken in from the start, those before
        ``at`` left out and counted (``run.status().before_seam``). Tumbling windows that end by ``at`` are the history's, with
        its estimates while it is computed; everything else of it enters the live job when it is done. Nothing that is later
        becomes final before that, so windows across ``at`` are whole.

        ``history``: its times are in the column that is ``event_time`` of ``live``. ``at``: an event time, naive is UTC; or a
        position of the stream: then live records before it are left out and counted, the history is taken whole, and each window
        may have rows of both, so all of them become final once the history is in.

        Raises:
            InvalidArgument: definite; arguments that cannot be.
            InvalidPlan: definite; ``history`` ends in an aggregate.
        """
        with first_use:
            from onefold.compute.live_starting import concat

        return concat(history, live, at)

    def _catch_up(self) -> None:
        """What is said of jobs next is no older than this call, unless this connection is content with less than strong reads."""
        level = self._client_options[0]
        if level is None or level.kind == "strong":
            self._engine.catch_up()

    def runs(self, state: RunState | None = None, table: str | None = None) -> list[Run]:
        """The runs of this space, newest first; live jobs too, each generation of them (``LiveRun``).

        ``state``: only those in it. ``table``: only those that make it.
        """
        with first_use:
            from onefold.compute.jobs import state as jobs
            from onefold.compute.runs import Run, RunState

        states = get_args(RunState)
        if state is not None and state not in states:
            raise InvalidArgument(f"unknown state {state!r}; use one of {', '.join(states)}")
        if table is not None:
            check_text("table", table)
        self._catch_up()
        made = None if table is None else self._table_of(table)
        with self._engine.shard.view() as view:
            rows = [] if state in ("stopped", "draining") else jobs.list_runs(view, state=state, table=made)
        found = [(row.created_ms, Run(self._engine, row.id)) for row in reversed(rows)]
        live = [
            one
            for one in self._live_jobs()
            if state in (None, one.row.state) and table in (None, one.found.job.name, one.found.id)
        ]
        if live:
            found += [(row.created_ms, run) for row, run in self._live_starter().runs(live)]
        return [run for _, run in sorted(found, key=lambda one: one[0], reverse=True)]

    def open_run(self, id: str) -> Run:
        """A run by its id, to follow, cancel or resume it. A live job (``LiveRun``) has the id ``NAME/GENERATION``; its name
        alone is its present generation.

        Raises:
            InvalidArgument: definite; there is no such run.
        """
        with first_use:
            from onefold.compute.jobs import state as jobs
            from onefold.compute.runs import Run

        check_text("id", id)
        self._catch_up()
        with self._engine.shard.view() as view:
            is_batch = jobs.read_run(view, id) is not None
        found = None if is_batch else self._live_job(id)
        if found is not None:
            return self._live_starter().run(found)
        run = Run(self._engine, id)
        _ = run.state
        return run

    def table(self, name: str) -> Table:
        """A table by its name; of a live job a ``LiveTable``.

        Raises:
            InvalidArgument: definite; no job has made it.
        """
        with first_use:
            from onefold.compute.results.tables import Table

        check_text("name", name)
        self._catch_up()
        name = self._table_of(name)
        if not self._is_batch(name) and self._live_job(name) is not None:
            return self._live_starter().table(name)
        table = Table(self._engine.results, name)
        table.contents()
        return table

    def drop(self, name: str) -> bool:
        """Remove a table; of a live job the job too, with its state. ``NAME/GENERATION`` removes one generation of it, such as
        the one that a swap has replaced. Whether there was one.

        Raises:
            Conflict: definite; the job runs; stop it first.
        """
        check_text("name", name)
        self._catch_up()
        table = self._table_of(name)
        if self._is_batch(table):
            self._check_no_history(table)
            return self._engine.drop_table(table)
        found = self._live_job(name)
        if found is not None:
            self._live_starter().drop(name, found)
            return True
        return self._remove_what_is_left(name)

    def _remove_what_is_left(self, name: str) -> bool:
        """By a program that died while it dropped a live job. Whether there was something of one with this name."""
        if not self._may_have_live_jobs():
            return False
        with first_use:
            from onefold.compute.live.holds import release_if_it_can

        release_if_it_can(self._state)
        return self._live_starter().drop_left(name)

    def tables(self) -> list[Table]:
        """All tables of this space, by name; of a live job that of its present generation (``LiveTable``)."""
        found = self._batch_tables()
        live = self._live_jobs()
        if live:
            found += self._live_starter().tables(live)
        return sorted(found, key=lambda table: table.name)

    def _batch_tables(self) -> list[Table]:
        with first_use:
            from onefold.compute.jobs import state as jobs

        self._catch_up()
        with self._engine.shard.view() as view:
            names = [row.name for row in jobs.list_tables(view) if row.sink == "table"]
        if not names:
            return []  # without importing what reads tables
        with first_use:
            from onefold.compute.results.tables import Table

        return [Table(self._engine.results, name) for name in names]

    def explain(self, name: str) -> list[str]:
        """Sentences that say how a table was made and why its last run computed something again.

        Raises:
            InvalidArgument: definite; there is no such table.
            InvalidValue: definite; a live job whose functions this process cannot load.
        """
        with first_use:
            from onefold.compute.submission import explanation

        check_text("name", name)
        self._catch_up()
        found = self._live_job(name)
        if found is not None:
            return self._live_starter().explain(found)
        name = self._table_of(name)
        with self._engine.shard.view() as view:
            return explanation.explain(view, self._engine.blobs, name)
