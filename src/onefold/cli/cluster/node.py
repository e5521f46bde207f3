"""``onefold node``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from onefold import config
from onefold.arguments import shown
from onefold.cli.options import UrlOption, place

if TYPE_CHECKING:
    from onefold.compute.code.functions import Code


_NAME = "Its name in the space (default: the machine's); nodes of one space have different ones."
_HTTP = "Where /live, /ready and /metrics are (default: a free port on loopback, said in the first line)."
_SNAPSHOTS = (
    "Where snapshots and archives go: jetstream, a directory that all nodes see, s3://bucket/prefix, or none."
)


def node(
    ctx: typer.Context,
    name: Annotated[str | None, typer.Option("--name", metavar="NAME", help=_NAME)] = None,
    region: Annotated[
        str, typer.Option("--region", metavar="NAME", help="Its data center: each has copies of every shard.")
    ] = "local",
    zone: Annotated[
        str, typer.Option("--zone", metavar="NAME", help="Its rack or zone: copies go to different ones.")
    ] = "",
    directory: Annotated[
        Path | None,
        typer.Option(
            "--dir", metavar="DIR", help="Its own folder (default: .onefold-node/NAME). Can be made again."
        ),
    ] = None,
    http: Annotated[str, typer.Option("--http", metavar="HOST:PORT", help=_HTTP)] = "127.0.0.1:0",
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            min=0,
            max=config.JOB_WORKERS_MAX,
            metavar="N",
            help="Tasks at a time (default: processors).",
        ),
    ] = None,
    snapshots: Annotated[str, typer.Option("--snapshots", metavar="PLACE", help=_SNAPSHOTS)] = "jetstream",
    code: Annotated[
        str,
        typer.Option(
            "--code",
            metavar="pickle|reference",
            help="Functions of jobs that it runs: those that a job carries, or only those of packages installed here.",
        ),
    ] = "pickle",
    url: UrlOption = None,
) -> None:
    """Run one node of a space on a NATS cluster: it hosts replicas, answers programs that have none, and works on jobs.

    Says what happens as JSON lines on stderr. SIGTERM: others take over first, then it leaves; again: it ends at once.
    """
    from onefold.compute.execution.runner import cores
    from onefold.errors import InvalidArgument
    from onefold.log.jetstream.client.address import is_nats
    from onefold.node.program import Settings, check_settings, default_name, run_node
    from onefold.node.snapshots.store import place_of
    from onefold.node.telemetry.http import parse_listen

    target = place(ctx, url, False).url or os.environ.get("ONEFOLD_URL") or ""
    named = name or default_name()
    try:
        if not is_nats(target):
            raise InvalidArgument("a node needs a cluster: give --url nats://host:port/SPACE or tls://…")
        if code not in ("pickle", "reference"):
            raise InvalidArgument(f"--code is pickle or reference; got {shown(code)}")
        settings = check_settings(
            Settings(
                target,
                named,
                directory or Path(".onefold-node") / named,
                region,
                zone,
                parse_listen(http),
                workers if workers is not None else cores(),
                None if snapshots == "none" else place_of(snapshots),
                cast("Code", code),
            )
        )
    except InvalidArgument as error:
        raise typer.BadParameter(str(error)) from None
    run_node(settings)
