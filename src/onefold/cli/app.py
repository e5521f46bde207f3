"""The program and its commands."""

from __future__ import annotations

from typing import Annotated

import typer

from onefold.cli import demo, explain, programs, runs, status, tables
from onefold.cli.options import JsonOption, Place, UrlOption

app = typer.Typer(
    name="onefold",
    help="Many machines, one computer: jobs that resume, and results that can be read while they run.",
    epilog="Exit codes: 0 done, 1 the operation failed, 2 wrong usage, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        from onefold._version import __version__

        typer.echo(f"onefold {__version__}")
        raise typer.Exit


@app.callback()
def _everywhere(
    ctx: typer.Context,
    url: UrlOption = None,
    as_json: JsonOption = False,
    version: Annotated[  # noqa: ARG001 - handled by its callback
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    ctx.obj = Place(url, as_json)


app.command("demo", short_help="A job on real files, watched, with a worker killed.")(demo.demo)
app.command(
    "run",
    short_help="Run a program and follow its jobs to their end.",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)(programs.run)
app.command("runs")(runs.runs)
app.command("tables")(tables.tables)
app.command("table", short_help="Show a table, also while it is being computed.")(tables.table)
app.command("status")(status.status)
app.command("explain", short_help="Say how a table is made, and what was recomputed.")(explain.explain)
