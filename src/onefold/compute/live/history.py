"""The history of a live job: the result of a batch job over what was before the seam."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import polars as pl

from onefold.compute.jobs import ops, state
from onefold.compute.live.operators.running import RunningAggregate
from onefold.compute.plan.windows import END
from onefold.compute.results.tables import Table
from onefold.errors import InvalidArgument, JobFailed
from onefold.machine.undisturbed import let_pass

if TYPE_CHECKING:
    from onefold.compute.client import JobClient
    from onefold.compute.jobs.read_rows import RunRow
    from onefold.compute.live.plan import LivePart
    from onefold.compute.results.reading import Results


def cancel_history(client: JobClient, table: str, deadline: float | None = None) -> str | None:
    """End the batch job of a history, if it runs; the run that was ended. ``deadline``: as of ``Shard.submit``."""
    with client.shard.view() as view:
        run = state.last_run(view, table)
    if run is None or run.state != "running":
        return None
    client.submit(ops.Cancel(run.id, "the live job was cancelled"), deadline=deadline)
    return run.id


def _why(run: RunRow) -> str:
    """Why a run failed or was cancelled, with the place."""
    if run.error is None:
        return "no reason was kept"
    failure = run.error.failure
    if failure is None:
        return run.error.reason or "no reason was kept"
    return f"{failure.message} at {failure.location}" if failure.location else failure.message


class History:
    """Of one part of a generation. For one thread."""

    def __init__(self, results: Callable[[], Results], part: LivePart, generation: int) -> None:
        """``results``: those of the space's batch jobs."""
        found = part.history
        assert found is not None
        assert part.operator is not None
        self._results = results
        self._operator = part.operator
        self.table_name = found[1].history_of(generation)
        self._at_us = found[1].since_us

    @property
    def has_windows(self) -> bool:
        """Whether windows that end by the seam are the batch job's alone. A seam at a position ends none, a slice is in windows
        on both sides, and a session may grow over it: these all enter the state."""
        operator = self._operator
        return (
            self._at_us is not None
            and not isinstance(operator, RunningAggregate)
            and operator.spec.kind == "tumbling"
        )

    def state(self) -> str:
        """``missing``, or the state of the batch run."""
        run = self._run()
        return "missing" if run is None else run.state

    def _run(self) -> RunRow | None:
        with self._results().shard.view() as view:
            return state.last_run(view, self.table_name)

    def partial(self) -> pl.DataFrame | None:
        """The groups that are still open at the seam, as partials; None while the batch job is not done.

        Raises JobFailed when it has failed, and what the blob store raises.
        """
        last = self._run()
        if last is not None and last.state in ("failed", "cancelled"):
            raise JobFailed(
                f"its history is {last.state}: {_why(last)} (run {last.id} of table {self.table_name!r}). Fix that, and start "
                "the job again"
            )
        if last is None or last.state != "done":
            return None
        results = self._results()
        contents = self.table().contents()
        with results.shard.view() as view:
            run = state.read_run(view, contents.run)
        assert run is not None
        found = results.merged(contents.results, results.result_of(run.plan))
        if found is None:
            return pl.DataFrame()
        if not self.has_windows:
            return found
        return found.filter(pl.col(END).dt.epoch("us") > self._at_us)

    def table(self) -> Table:
        """The table of the batch job."""
        return Table(self._results(), self.table_name)

    def moment(self) -> object:
        """Equal while its rows are."""
        try:
            contents = self.table().contents()
        except InvalidArgument as error:
            let_pass(error)
            return None
        return contents.run, len(contents.results)

    def rows(self, *, only_whole: bool) -> pl.DataFrame | None:
        """The windows that end by the seam: with values as far as the batch job is. ``only_whole``: none before it is done."""
        if not self.has_windows:
            return None
        now = self.state()
        if now == "missing" or (only_whole and now != "done"):
            return None
        return self._ended(self.table().to_polars())

    def estimate(self, name: str, level: float) -> pl.DataFrame | None:
        """The estimates of these windows, as of a batch job."""
        if not self.has_windows or self.state() == "missing":
            return None
        return self._ended(self.table().estimate(name, level))

    def _ended(self, rows: pl.DataFrame) -> pl.DataFrame:
        if rows.schema[END] == pl.Null:
            return rows.clear()
        return rows.filter((pl.col(END).dt.epoch("us") <= self._at_us).fill_null(True))
