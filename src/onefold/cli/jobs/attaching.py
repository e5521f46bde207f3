"""``onefold run --attach`` and ``--detach``: leaving runs to a cluster's nodes, and coming back to them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import typer

from onefold.cli import output
from onefold.errors import OnefoldError

if TYPE_CHECKING:
    from onefold.cli.options import Place

INTERRUPTED = 130


def check_detachable(where: Place, workers: int | None) -> None:
    """End with wrong usage where nobody would continue with what is left."""
    from onefold.log.jetstream.client.address import is_nats

    if workers is not None:
        raise typer.BadParameter(
            "with --detach there are none but those of the nodes", param_hint="--workers"
        )
    if not is_nats(where.url or os.environ.get("ONEFOLD_URL") or ""):
        raise typer.BadParameter(
            "only a cluster (nats://…, tls://…) has nodes that continue with the jobs", param_hint="--detach"
        )


def follow_run(where: Place, id: str, *, resume: bool = False, workers: int | None = None) -> int:
    """Show a run until it ends; the exit code. ``resume``: work on it too. Ctrl-C leaves it as it is."""
    from onefold.display import follow

    error: str | None = None
    code = 0
    with where.open() as db:
        run = db.open_run(id)
        try:
            if resume:
                run.resume(workers)
            follow(run)
            run.wait()
            run.raise_if_failed()
        except KeyboardInterrupt:
            error, code = "interrupted", INTERRUPTED
            back = f"onefold runs resume {run.id}" if resume else f"onefold run --attach {run.id}"
            output.say(
                f"onefold: left. What is finished is kept; come back with: {back}"
                if resume
                else f"onefold: left. Run {run.id} continues; come back with: {back}"
            )
        except OnefoldError as problem:
            error, code = str(problem), 1
            output.say(f"onefold: {problem}")
        if code == 0 and run.state not in ("done", "stopped"):
            error, code = f"run {run.id} of {run.table_name!r} is {run.state}", 1
        if where.json:
            output.emit(
                {
                    "program": None,
                    "exit_code": code,
                    "error": error,
                    "runs": [output.run_object(run, errors=True)],
                }
            )
    return code
