"""``onefold runs``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, cast

import typer

from onefold.cli import output
from onefold.cli.options import JsonOption, UrlOption, place

if TYPE_CHECKING:
    from onefold.compute.runs import RunState


def runs(
    ctx: typer.Context,
    state: Annotated[
        str | None, typer.Option(help="Only those: running, done, failed or cancelled.", show_default=False)
    ] = None,
    table: Annotated[str | None, typer.Option(help="Only those of this table.", show_default=False)] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most this many.")] = 50,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the runs of a space, newest first.

    JSON: a list of {id, table, state, created, progress: {done, total, rows, bytes, failed, retried, reused,
    workers, elapsed, eta, skipped}, errors: [{message, traceback, record, location, ...}], refusals:
    [{node, reason, stage, index}]}.
    """
    where = place(ctx, url, as_json)
    with where.open() as db:
        found = db.runs(state=cast("RunState | None", state), table=table)[:limit]
        if where.json:
            output.emit([output.run_object(run, errors=True) for run in found])
            return
        if not found:
            output.say(f"no runs in {db.url}")
            return
        from onefold.display import words

        rows = []
        for run in found:
            progress = run.progress()
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
            ("tasks", True),
            ("reused", True),
            ("rows", True),
            ("took", True),
        ]
        output.grid([*heads, ("started", False), ("table", False)], rows)
        for run in found:
            for refusal in run.refusals() if run.state == "running" else ():
                output.say(f"node {refusal.node} leaves run {run.id} to others: {refusal.reason}")
