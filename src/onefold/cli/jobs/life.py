"""``onefold stop``, ``replay``, ``swap`` and ``drop``: the life of live jobs and their tables."""

from __future__ import annotations

import contextlib
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onefold.cli import keys, output
from onefold.cli.jobs.live import live_object, open_live
from onefold.cli.jobs.programs import INTERRUPTED, Session
from onefold.cli.options import JsonOption, UrlOption, duration, place
from onefold.errors import Conflict, InvalidArgument

if TYPE_CHECKING:
    from onefold.compute.live_runs import LiveRun
    from onefold.db import Database

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The live job, as in `onefold live`.")]
TimeoutOption = Annotated[
    str | None,
    typer.Option(metavar="DURATION", help="Give up after so long; it continues.", show_default=False),
]


def stop(
    ctx: typer.Context,
    name: NameArgument,
    drain: Annotated[
        bool,
        typer.Option("--drain", help="Read what is there, close all windows, and end as done."),
    ] = False,
    timeout: TimeoutOption = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Stop a live job, wherever its workers are. Its state is kept: starting its program again continues it.

    With --drain it ends for ever, with all windows closed; when nobody works on it, this command does. JSON: as of one job of
    `onefold live`.
    """
    where = place(ctx, url, as_json)
    timeout_s = duration(timeout, "--timeout")
    with where.open() as db:
        run = open_live(db, name)
        if drain:
            _drain(run, timeout_s)
        else:
            run.stop()
        if where.json:
            output.emit(live_object(run))
        else:
            output.say(f"live job {run.id} is {run.state}")


def _drain(run: LiveRun, timeout_s: float | None) -> None:
    if run.state == "stopped" or run.abandoned:
        output.say(f"nobody works on live job {run.id}: this command does, until it is drained")
        run.resume(workers=1)
    run.stop(drain=True, timeout=timeout_s)


def replay(
    ctx: typer.Context,
    name: NameArgument,
    job: Annotated[
        Path,
        typer.Argument(
            metavar="JOB.py", exists=True, dir_okay=False, readable=True, help="The program that starts it."
        ),
    ],
    start: Annotated[
        str,
        typer.Option("--from", metavar="START", help="Where in its input: earliest, a time, or `2h ago`."),
    ] = "earliest",
    swap: Annotated[
        bool, typer.Option("--swap", help="Once it has caught up, make its table the job's.")
    ] = False,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Workers of this command.")] = 1,
    timeout: TimeoutOption = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compute a live job again, by the plan of a program, into a hidden table next to the present one.

    The program is executed as it is; where it starts the job of that name, a replay begins instead. What follows JOB.py goes to
    the program. The command works on the replay until it has caught up with the input, and ends; then `onefold swap NAME` makes
    its table the job's (--swap does it at once). Look at it before as `onefold table NAME/GENERATION`. After the swap start the
    changed program, which works on it from then on.

    JSON: as of one job of `onefold live`; the program's own output goes to stderr then.
    """
    where = place(ctx, url, as_json)
    begin, timeout_s = _start(start), duration(timeout, "--timeout")
    session = Session(where)
    with contextlib.ExitStack() as stack:
        if where.json:
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        stack.enter_context(session.watching(None))
        stack.enter_context(_replayed(name, begin))
        try:
            code = session.program(job, ctx.args)
            run = _replay_of(session, name, code)
            if run is not None:
                run.resume(workers)
                _catch_up(run, name, timeout_s, swap=swap)
        except KeyboardInterrupt:
            output.say(f"onefold: interrupted. `onefold swap {name}` continues with the replay")
            raise typer.Exit(INTERRUPTED) from None
    if run is None:
        raise typer.Exit(code)
    if where.json:
        output.emit(live_object(run))
    session.close()


@contextlib.contextmanager
def _replayed(name: str, start: Any) -> Any:
    from onefold.compute import live_dataset

    live_dataset.replayed[name] = start
    try:
        yield
    finally:
        live_dataset.replayed.pop(name, None)


def _start(text: str) -> str | datetime:
    return text if text == "earliest" else keys.parse_time(text, "--from")


def _replay_of(session: Session, name: str, code: int) -> LiveRun | None:
    """The replay that the program has begun; None: the program failed, which is said."""
    from onefold.compute.live_runs import LiveRun

    for run in session.reachable():
        if isinstance(run, LiveRun) and run.name == name:
            return run
    if code:
        return None
    there = ", ".join(repr(run.table_name) for run in session.reachable()) or "no job"
    raise InvalidArgument(
        f"the program did not start a live job {name!r}; it started {there}. Nothing was replayed"
    )


def _catch_up(run: LiveRun, name: str, timeout_s: float | None, *, swap: bool) -> None:
    output.say(f"{run.id} replays; look at it with: onefold table {run.id}")
    point = run.point()
    run.caught_up(point, timeout_s)
    if swap:
        run.swap(point=point)
        output.say(f"{run.id} is now the job {name!r}. Start its program again to work on it")
    else:
        output.say(f"{run.id} has caught up. Make its table the job's with: onefold swap {name}")


def swap(
    ctx: typer.Context,
    name: NameArgument,
    force: Annotated[
        bool, typer.Option("--force", help="Without waiting for the replay to catch up.")
    ] = False,
    timeout: TimeoutOption = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make the table of a replay the job's, and stop the generation that was there, in one step.

    It waits until the replay has committed what is in the input now; when nobody works on the replay, this command does. What
    was there is kept as NAME/GENERATION until `onefold drop live NAME/GENERATION`. JSON: as of one job of `onefold live`.
    """
    where = place(ctx, url, as_json)
    timeout_s = duration(timeout, "--timeout")
    with where.open() as db:
        run = _hidden(db, name)
        if force:
            run.swap(force=True)
        else:
            point = run.point()
            if run.abandoned:
                run.resume(workers=1)
            run.caught_up(point, timeout_s)
            run.swap(point=point)
        if where.json:
            output.emit(live_object(run))
        else:
            output.say(f"{run.id} is now the job {run.name!r}")


def _hidden(db: Database, name: str) -> LiveRun:
    """The replay of a job. Raises Conflict when there is none."""
    from onefold.compute.live_runs import LiveRun

    open_live(db, name)
    for run in db.runs():
        if isinstance(run, LiveRun) and run.name == name and run.role == "replay":
            return run
    raise Conflict(
        f"nothing replays live job {name!r}: begin with `onefold replay {name} JOB.py`, or job.replay() in a program"
    )


def drop(
    ctx: typer.Context,
    kind: Annotated[str, typer.Argument(metavar="KIND", help="table, live or map.")],
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Its name; of a live job also NAME/GENERATION.")
    ],
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove a table with its runs, a live job with its state and table, or all items of a map.

    Exit code 1 when it is not there, or while a job that makes it runs. JSON: {kind, name, dropped}.
    """
    where = place(ctx, url, as_json)
    if kind not in ("table", "live", "map"):
        instead = {
            "stream": "`onefold stream retain NAME 1s` empties one",
            "queue": "take its messages, or delete its dead ones",
        }
        raise typer.BadParameter(
            f"{kind!r} is not table, live or map" + (f"; {instead[kind]}" if kind in instead else ""),
            param_hint="KIND",
        )
    with where.open() as db:
        dropped = _dropped(db, kind, name)
    if where.json:
        output.emit({"kind": kind, "name": name, "dropped": dropped})
    elif dropped:
        output.say(f"dropped {kind} {name!r}")
    if not dropped:
        output.say(f"onefold: there is no {'live job' if kind == 'live' else kind} {name!r}")
        raise typer.Exit(1)


def _dropped(db: Database, kind: str, name: str) -> bool:
    from onefold.compute.live_runs import LiveRun

    if kind == "map":
        there = any((one.kind, one.name, one.mode) == ("map", name, "consistent") for one in db.collections())
        if there:
            db.map(name).clear()
        return there
    if kind == "live":
        with contextlib.suppress(InvalidArgument):
            return isinstance(db.open_run(name), LiveRun) and db.drop(name)
        return False
    return db.drop(name)
