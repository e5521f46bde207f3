"""``onefold runs``: the runs of a space, and what may be done with one."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, cast

import typer

from onefold.cli import output
from onefold.cli.jobs import attaching
from onefold.cli.options import ROWS_MAX, JsonOption, UrlOption, place

if TYPE_CHECKING:
    from onefold.compute.runs import RunState


app = typer.Typer(invoke_without_command=True, rich_markup_mode=None)


@app.callback()
def runs(
    ctx: typer.Context,
    state: Annotated[
        str | None,
        typer.Option(
            help="Only those: running, draining, stopped, done, failed or cancelled.", show_default=False
        ),
    ] = None,
    table: Annotated[str | None, typer.Option(help="Only those of this table.", show_default=False)] = None,
    limit: Annotated[int, typer.Option(min=1, max=ROWS_MAX, help="At most this many.")] = 50,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the runs of a space, newest first; of live jobs each generation (`onefold live` says more of them).

    Of a live job done and total count records of its input, and progress is null where its functions cannot be loaded here.
    JSON: a list of {id, table, state, created, progress: {done, total, rows, bytes, failed, retried, reused,
    workers, elapsed, eta, skipped}, errors: [{message, traceback, record, location, ...}], refusals:
    [{node, reason, stage, index}]}.
    """
    where = ctx.obj = place(ctx, url, as_json)
    if ctx.invoked_subcommand is not None:
        return
    with where.looking() as db:
        found = db.runs(state=cast("RunState | None", state), table=table)[:limit]
        if where.json:
            output.emit([output.run_object(run, errors=True) for run in found])
            return
        if not found:
            output.say(f"no runs in {db.url}")
            return
        from onefold.display import words
        from onefold.errors import InvalidValue

        rows = []
        for run in found:
            try:
                progress = run.progress()
            except InvalidValue:  # a live job whose functions cannot be loaded here
                blank = ("", "", "", "")
                rows.append(
                    (
                        run.id,
                        run.state,
                        *blank,
                        output.local_time(run.created_ms),
                        words.visible(run.table_name),
                    )
                )
                continue
            rows.append(
                (
                    run.id,
                    run.state,
                    f"{progress.done:,}/{progress.total:,}",
                    words.count(progress.reused),
                    words.count(progress.rows),
                    words.duration(progress.elapsed),
                    output.local_time(run.created_ms),
                    words.visible(run.table_name),
                )
            )
        heads = [
            ("run", False),
            ("state", False),
            ("tasks or records", True),
            ("reused", True),
            ("rows", True),
            ("took", True),
        ]
        output.grid([*heads, ("started", False), ("table", False)], rows)
        for run in found:
            for refusal in run.refusals() if run.state == "running" else ():
                output.say(f"node {refusal.node} leaves run {run.id} to others: {refusal.reason}")


RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="A run, as in `onefold runs`; of a live job its name will do.")
]


@app.command("errors", short_help="Print why a run failed, and the records that were set aside.")
def errors(ctx: typer.Context, run: RunArgument, url: UrlOption = None, as_json: JsonOption = False) -> None:
    """Print why a run failed, and the records that it has set aside.

    JSON: {run, state, complete, errors: [{message, traceback, record, location, skipped, ...}]}; not complete: there are more.
    """
    from onefold.display import words

    where = place(ctx, url, as_json)
    with where.looking() as db:
        opened = db.open_run(run)
        found, state = opened.errors(), opened.state
    if where.json:
        shown = {"run": opened.id, "state": state, "complete": found.complete}
        output.emit(shown | {"errors": [asdict(error) for error in found]})
        return
    for error in found:
        what = "set aside" if error.skipped else "failed"
        print(f"{what}: {words.visible(error.message, 1000)}")
        for name, text in (("at", error.location), ("record", error.record)):
            if text is not None:
                print(f"  {name:7} {words.visible(text)}")
        for line in error.traceback.rstrip().splitlines():
            print(f"  │ {words.visible(line)}")
    output.say(
        f"run {opened.id} is {state}: {len(found):,} errors"
        + ("" if found.complete else " are kept, of more")
    )


@app.command("cancel", short_help="End a run, wherever its workers are.")
def cancel(ctx: typer.Context, run: RunArgument, url: UrlOption = None, as_json: JsonOption = False) -> None:
    """End a run, wherever its workers are. Finished tasks are kept, and a later run takes them over.

    A live job ends for ever: its state is freed, windows that are open are never shown (`onefold stop` keeps them). Exit code 1
    when it has ended in another way. JSON: {id, state}.
    """
    from onefold.errors import Conflict

    where = place(ctx, url, as_json)
    with where.open() as db:
        opened = db.open_run(run)
        opened.cancel()
        state = opened.state
    if where.json:
        output.emit({"id": opened.id, "state": state})
    else:
        output.say(f"run {opened.id} is {state}")
    if state != "cancelled":
        raise Conflict(f"run {opened.id} is {state}, and was not cancelled")


@app.command("resume", short_help="Work on a run that was left, and follow it.")
def resume(
    ctx: typer.Context,
    run: RunArgument,
    workers: Annotated[
        int | None, typer.Option(min=1, max=64, help="Workers of this command.", show_default=False)
    ] = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Work on a run whose program is gone, with the plan that is stored, and follow it to its end.

    A live job is followed until it is stopped. Ctrl-C leaves it: what is finished is kept. JSON: as `onefold run`.
    """
    raise typer.Exit(attaching.follow_run(place(ctx, url, as_json), run, resume=True, workers=workers))
