"""From a prepared job to a run: started in the background, or followed to its end."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onefold.compute.engine import Engine
    from onefold.compute.plan.nodes import Job
    from onefold.compute.runs import Run


class Starter:
    """What a prepared job calls to become a run."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def start(self, job: Job, **options: Any) -> Run:
        """See ``PreparedJob.start``."""
        begun: list[Run] = []
        self._begin(job, begun, options)
        return begun[-1]

    def run(self, job: Job, *, progress: bool = True, **options: Any) -> Run:
        """See ``PreparedJob.run``."""
        from onefold.compute.runs import about_to_wait

        shown = progress and not _quiet()
        if shown:  # imported before the run is there: Python may lose a Ctrl-C that meets an import
            from onefold.display import follow, screens  # noqa: F401
        begun: list[Run] = []
        try:
            self._begin(job, begun, options)
            run = begun[-1]
            about_to_wait(run)
            if shown:
                follow(run)
            run.wait()
        except KeyboardInterrupt:
            for run in begun:
                run.cancel()
                done = run.progress()
                print(
                    f"\nRun {run.id} is cancelled; {done.done} of {done.total} tasks are finished and kept. "
                    f"Continue with db.open_run({run.id!r}).resume(), or run the program again.",
                    file=sys.stderr,
                )
            raise
        run.raise_if_failed()
        return run

    def _begin(self, job: Job, begun: list[Run], options: dict[str, Any]) -> None:
        """Start the run and add it to ``begun``.

        A Ctrl-C may meet the moment in which the run is on the log, even worked on, and this call has not returned.
        Anyone who handles it must know of the run to cancel it, so it is found on the log then.
        """
        from onefold.compute import launching
        from onefold.compute.runs import Run

        submitted: list[str] = []
        try:
            begun.append(launching.start(self._engine, job, submitting=submitted.append, **options))
            self._announce(begun)
        except KeyboardInterrupt:
            if not begun:
                begun += [run for run in (Run(self._engine, name) for name in submitted) if run.exists]
            self._announce(begun)  # perhaps for the second time
            raise

    def _announce(self, runs: list[Run]) -> None:
        from onefold.compute.runs import run_started

        for run in runs:
            for started in run_started:
                started(self._engine.shard.url, run)


def _quiet() -> bool:
    return os.environ.get("ONEFOLD_PROGRESS", "").lower() in ("0", "no", "off")
