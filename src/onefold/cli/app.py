"""The program and its commands."""

from __future__ import annotations

from typing import Annotated

import typer

from onefold.cli.cluster import init, node, up
from onefold.cli.collections import available, changing_regions, maps, streams
from onefold.cli.jobs import demo, life, live, programs, runs, tables
from onefold.cli.options import JsonOption, Place, UrlOption
from onefold.cli.space import doctor, explain, keep, status

app = typer.Typer(
    name="onefold",
    help="Many machines, one computer: shared state, and jobs that resume and can be read while they run.",
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


app.command("node", short_help="Run one node of a space on a cluster.")(node.node)
app.command("demo", short_help="A job on real files, watched, with a worker killed.")(demo.demo)
app.command(
    "run",
    short_help="Run a program and follow its jobs to their end.",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)(programs.run)
app.add_typer(runs.app, name="runs", short_help="List the runs of a space; errors, cancel, resume.")
app.command("tables")(tables.tables)
app.command("table", short_help="Show a table, also while it is being computed.")(tables.table)
app.command("live", short_help="List the live jobs of a space, and what holds them back.")(live.live)
app.command("late", short_help="Print the events that came too late for a live job.")(live.late)
app.command("stop", short_help="Stop a live job, and keep its state; or drain it.")(life.stop)
app.command(
    "replay",
    short_help="Compute a live job again, by a changed program, into a hidden table.",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)(life.replay)
app.command("swap", short_help="Make the table of a replay the job's.")(life.swap)
app.command("drop", short_help="Remove a table, a live job, or the items of a map.")(life.drop)
app.command("status")(status.status)
app.command("explain", short_help="Say what a table or collection is, and how it came about.")(
    explain.explain
)
app.command("get", short_help="Print the value of a key of a map.")(maps.get)
app.command("put", short_help="Set a key of a map.", context_settings={"ignore_unknown_options": True})(
    maps.put
)  # so that -7 is a value
app.command("del", short_help="Remove a key of a map.")(maps.delete)
app.command("ls", short_help="List the items of a map, or all collections.")(maps.ls)
app.command("watch", short_help="Print the changes of a map as they come.")(maps.watch)
app.command("counters", short_help="Print counters that every region adds to.")(available.counters)
app.command("sets", short_help="Print sets that every region changes.")(available.sets)
app.add_typer(changing_regions.app, name="region", short_help="The regions of a space.")
app.command("export", short_help="Write maps, queues and streams as JSON lines.")(keep.export)
app.command("import", short_help="Put what was exported into a space.")(keep.import_)
app.command("backup", short_help="Copy a space while programs continue writing.")(keep.backup)
app.command("restore", short_help="Make a space from a backup, also as it was earlier.")(keep.restore)
app.command("up", short_help="Start a cluster on this machine.")(up.up)
app.command("down", short_help="End the cluster that `onefold up` started.")(up.down)
app.command("init", short_help="Make a space on a NATS cluster.")(init.init)
app.command("doctor", short_help="Check a space, and say what to do.")(doctor.doctor)
app.add_typer(streams.app, name="stream", short_help="Streams: list, show, tail, append, retain, groups.")
