"""``onefold run``: a program against a space, its jobs followed to their end."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
import types
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onefold import config
from onefold.cli import output
from onefold.cli.jobs import attaching
from onefold.cli.options import JsonOption, Place, UrlOption, place
from onefold.errors import OnefoldError

if TYPE_CHECKING:
    from onefold.compute.runs import Run
    from onefold.db import Database

INTERRUPTED = 130


def is_live(run: Run) -> bool:
    """Whether it is a live job, which is left when a program ends, and not cancelled."""
    from onefold.compute.live_runs import LiveRun

    return isinstance(run, LiveRun)


def run(
    ctx: typer.Context,
    job: Annotated[
        Path | None,
        typer.Argument(
            metavar="JOB.py",
            exists=True,
            dir_okay=False,
            readable=True,
            help="The program.",
            show_default=False,
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=config.JOB_WORKERS_MAX,
            help="Worker processes of jobs that do not say. Default: cores.",
            show_default=False,
        ),
    ] = None,
    detach: Annotated[
        bool,
        typer.Option(
            "--detach",
            help="On a cluster: leave the jobs to its nodes. The program ends where it would wait for one.",
            show_default=False,
        ),
    ] = False,
    attach: Annotated[
        str | None,
        typer.Option(
            "--attach", metavar="RUN", help="Instead of a program: follow this run.", show_default=False
        ),
    ] = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run a program whose jobs use this space, and follow its jobs to their end.

    What follows JOB.py and is not an option of this command goes to the program (after `--` everything does).
    Jobs that the program started and did not wait for are waited for; a live job, which has no end, is worked on and
    shown until it is stopped. Ctrl-C cancels what runs; what is finished is kept, and the same command continues
    from there. It leaves live jobs as they are.

    On a cluster its nodes work on the jobs too. With `--detach` only they do: the command ends when a job is
    submitted, and the same command without it, or `--attach RUN`, follows the job again. Ctrl-C after
    `--attach` leaves the run as it is.

    JSON: {program, exit_code, error, runs: [run, ...]} with runs as in `onefold runs`; the program's own
    output goes to stderr then.
    """
    # Imported before any run is there: Python may lose a Ctrl-C that meets an import.
    from onefold.display import screens  # noqa: F401

    where = place(ctx, url, as_json)
    if attach is not None:
        if job is not None or detach or workers is not None or ctx.args:
            raise typer.BadParameter("it follows a run and takes no program", param_hint="--attach")
        raise typer.Exit(attaching.follow_run(where, attach))
    if job is None:
        raise typer.BadParameter("give a program, or --attach RUN", param_hint="JOB.py")
    session = Session(where)
    if detach:
        attaching.check_detachable(where, workers)
        session.detach()
    with session.watching(workers), contextlib.ExitStack() as stack:
        if where.json:
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        code = session.execute(job, ctx.args)
    if where.json:
        output.emit(
            {
                "program": str(job),
                "exit_code": code,
                "error": session.error,
                "runs": [output.run_object(run, errors=True) for run in session.reachable()],
            }
        )
    if detach and not code:
        session.tell_left()
    session.close()
    raise typer.Exit(code)


def _leave(run: Run) -> None:
    """End the program rather than wait for a run that nodes work on."""
    if run.state == "running":
        raise SystemExit(0)


class Session:
    """One program's runs, from its start until all of them have ended."""

    def __init__(self, where: Place) -> None:
        self._where = where
        self._started: dict[str, tuple[str, Run]] = {}
        self._reopened: dict[str, Database] = {}
        self._left: set[str] = set()
        self._detached = False
        self.error: str | None = None

    @contextlib.contextmanager
    def watching(self, workers: int | None) -> Any:
        """The environment of the program; remembers the runs that it starts."""
        from onefold import db
        from onefold.compute import runs

        target = self._where.url or os.environ.get("ONEFOLD_URL") or db.DEFAULT_SPACE
        # A relative folder must stay the same space when the program changes its directory.
        os.environ["ONEFOLD_URL"] = target if "://" in target else str(Path(target).absolute())
        if workers is not None:
            os.environ["ONEFOLD_WORKERS"] = str(workers)
        runs.run_started.append(self._remember)
        if self._detached:
            runs.leave_to_nodes.append(_leave)
        try:
            yield
        finally:
            runs.run_started.remove(self._remember)
            if self._detached:
                runs.leave_to_nodes.remove(_leave)

    def detach(self) -> None:
        """Leave all runs to the cluster's nodes: nothing is worked on here, and nothing is waited for."""
        self._detached = True

    def tell_left(self) -> None:
        """Say how to get back to what was left."""
        for run in self.reachable():
            output.say(
                f"run {run.id} of {run.table_name!r} is {run.state}. Follow it with: onefold run --attach {run.id}"
            )

    def _remember(self, url: str, run: Run) -> None:
        self._started[run.id] = (url, run)

    def execute(self, job: Path, args: list[str]) -> int:
        """Run the program and wait for its jobs; the exit code of both."""
        try:
            code = self.program(job, args)
            return code if self._detached else self._jobs() or code
        except KeyboardInterrupt:
            return self._interrupted(job)

    def program(self, job: Path, args: list[str]) -> int:
        """Execute the file as ``__main__``, as ``python JOB.py`` does."""
        path = str(job.absolute())
        module = types.ModuleType("__main__")
        module.__dict__.update(__file__=path, __cached__=None, __builtins__=__builtins__)
        sys.modules["__main__"] = module
        sys.path.insert(0, str(job.absolute().parent))
        sys.argv = [str(job), *args]
        try:
            exec(compile(job.read_bytes(), path, "exec"), module.__dict__)
        except SystemExit as end:
            if end.code is None or isinstance(end.code, int):
                return end.code or 0
            output.say(str(end.code))
            self.error = str(end.code)
            return 1
        except KeyboardInterrupt:
            raise
        except OnefoldError as error:
            self.error = str(error)
            output.say(f"onefold: {error}")
            return 1
        except BaseException as error:
            self.error = f"{type(error).__name__}: {error}"
            trace = error.__traceback__
            # The program's own frames are what helps, not ours above them.
            while (
                trace is not None and trace.tb_frame.f_code.co_filename != path and trace.tb_next is not None
            ):
                trace = trace.tb_next
            traceback.print_exception(type(error), error, trace, file=sys.stderr)
            return 1
        return 0

    def _jobs(self) -> int:
        """Follow what still runs; 1 when any run has failed."""
        from onefold.display import follow
        from onefold.display.text import ACTIVE

        code = 0
        for run in self.reachable():
            if run.state in ACTIVE:
                if run.id in self._left:
                    # Its connection is closed, which stopped the work on it.
                    run.resume()
                    self._left.discard(run.id)
                try:
                    follow(run)
                    run.wait()
                    run.raise_if_failed()
                except OnefoldError as error:
                    self.error = self.error or str(error)
                    output.say(f"onefold: {error}")
            if run.state in ("failed", *ACTIVE):
                self.error = self.error or f"run {run.id} of {run.table_name!r} is {run.state}"
                code = 1
        return code

    def _interrupted(self, job: Path) -> int:
        from onefold.display.text import ACTIVE

        self.error = "interrupted"
        for run in self.reachable():
            if is_live(run):
                if run.state in ACTIVE:
                    output.say(
                        f"live job {run.id} is left as it is: what is committed is kept. It continues with other workers that it "
                        f"has, and with the same command; to end it: onefold stop {run.table_name}"
                    )
            elif run.state == "running":
                run.cancel()
                progress = run.progress()
                output.say(
                    f"run {run.id} of {run.table_name!r} is cancelled; "
                    f"{progress.done:,} of {progress.total:,} tasks are finished and kept"
                )
        output.say(f"onefold: interrupted. Continue with: onefold run {job}")
        return INTERRUPTED

    def reachable(self) -> list[Run]:
        """The program's runs, those of connections that it has closed opened again. A closed ``memory://`` is
        gone."""
        found = []
        for url, run in list(self._started.values()):
            try:
                _ = run.state
                found.append(run)
            except OnefoldError:
                if url.startswith("memory:"):
                    continue
                again = self._reopen(url).open_run(run.id)
                self._started[run.id] = (url, again)
                self._left.add(run.id)
                found.append(again)
        return found

    def _reopen(self, url: str) -> Database:
        from onefold.db import connect

        if url not in self._reopened:
            self._reopened[url] = connect(url, create=False)
        return self._reopened[url]

    def close(self) -> None:
        for database in self._reopened.values():
            database.close()
