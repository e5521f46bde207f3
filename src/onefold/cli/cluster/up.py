"""``onefold up`` and ``onefold down``: a cluster on this machine."""

from __future__ import annotations

import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onefold import config
from onefold.cli import output
from onefold.cli.options import BlobsOption, JsonOption, ShardsOption, place

if TYPE_CHECKING:
    from onefold.cluster.local import LocalCluster

DirOption = Annotated[
    Path | None,
    typer.Option(
        "--dir",
        metavar="DIR",
        help="Where the cluster is kept. Default: ./.onefold-cluster.",
        show_default=False,
    ),
]


def up(
    ctx: typer.Context,
    nodes: Annotated[
        int | None,
        typer.Option(
            "--nodes",
            min=0,
            max=config.NODES_MAX,
            metavar="N",
            help="Nodes (default 3); a larger number than before adds some.",
        ),
    ] = None,
    regions: Annotated[
        int | None,
        typer.Option(
            "--regions",
            min=1,
            max=5,
            metavar="N",
            help="Regions over which servers and nodes are spread (default 1); two have a witness, which is a server alone.",
        ),
    ] = None,
    servers: Annotated[
        int | None,
        typer.Option(
            "--servers",
            min=1,
            max=config.NODES_MAX,
            metavar="N",
            help="NATS servers: 1, 3 or 5 (default 3; 1 for one node). With regions an odd number (default 3 each: 7 for two).",
        ),
    ] = None,
    shards: ShardsOption = None,
    space: Annotated[
        str | None, typer.Option("--space", metavar="NAME", help="The name of the space (default main).")
    ] = None,
    blobs: BlobsOption = None,
    restore: Annotated[
        Path | None,
        typer.Option(
            "--restore",
            metavar="BACKUP",
            help="Make the space of a new cluster from this backup.",
            show_default=False,
        ),
    ] = None,
    directory: DirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Start a cluster on this machine: NATS servers and nodes, as daemons on loopback. Returns when all is ready.

    Again on the same directory: starts what does not run; the cluster and its data are the same. `onefold down` ends it.

    JSON: {url, space, dir, servers: [{name, pid, port, dir, region}], nodes: [{name, pid, http, dir, region}]}.
    """
    from onefold.cluster.local import LocalCluster
    from onefold.errors import InvalidArgument

    where = place(ctx, None, as_json)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, _give_up)  # what was started by then is ended
    try:
        cluster = LocalCluster.up(
            _directory(directory),
            nodes=nodes,
            regions=regions,
            servers=servers,
            shards=shards,
            space=space,
            blobs=blobs,
            restore=restore,
        )
    except InvalidArgument as error:
        raise typer.BadParameter(str(error)) from None
    if where.json:
        output.emit(_shown(cluster))
    else:
        _tell(cluster, directory)


def down(
    ctx: typer.Context,
    delete: Annotated[
        bool,
        typer.Option("--delete", help="Delete all that the cluster holds, permanently.", show_default=False),
    ] = False,
    directory: DirOption = None,
    as_json: JsonOption = False,
) -> None:
    """End the cluster that `onefold up` started: its nodes, then its servers. What they hold stays, unless --delete.

    JSON: {dir, ended: [name, ...], deleted}.
    """
    from onefold.cluster.local import LocalCluster

    where = place(ctx, None, as_json)
    cluster = LocalCluster.open(_directory(directory))
    ended = cluster.down(delete=delete)
    if where.json:
        output.emit({"dir": str(cluster.directory), "ended": ended, "deleted": delete})
        return
    print(f"ended    {', '.join(ended) if ended else 'nothing: it did not run'}")
    print(f"deleted  {cluster.directory}" if delete else f"kept     {cluster.directory}")


def _give_up(number: int, _: object) -> None:
    sys.exit(128 + number)


def _directory(given: Path | None) -> Path:
    from onefold.cluster.local import DEFAULT_DIRECTORY

    return (given if given is not None else DEFAULT_DIRECTORY).absolute()


def _shown(cluster: LocalCluster) -> dict[str, Any]:
    return {
        "url": cluster.url(),
        "space": cluster.space,
        "dir": str(cluster.directory),
        "servers": [
            {
                "name": server.name,
                "pid": server.pid,
                "port": server.port,
                "dir": str(server.dir),
                "region": server.region,
            }
            for server in cluster.servers.servers
        ],
        "nodes": [
            {
                "name": node.name,
                "pid": node.pid,
                "http": f"127.0.0.1:{node.port}",
                "dir": str(node.dir),
                "region": node.region,
            }
            for node in cluster.nodes
        ],
    }


def _tell(cluster: LocalCluster, directory: Path | None) -> None:
    for server in cluster.servers.servers:
        print(f"server   {server.name}  pid {server.pid}, port {server.port}{_of(server.region)}")
    for node in cluster.nodes:
        print(f"node     {node.name}  pid {node.pid}, http://127.0.0.1:{node.port}/metrics{_of(node.region)}")
    if cluster.servers.space_regions:
        from onefold.cli.cluster.describing import print_regions

        print_regions(cluster.servers.region_copies)
    print(f"kept in  {cluster.directory}")
    print(f"url      {cluster.url()}")
    print()
    print(f"  export ONEFOLD_URL={shlex.quote(cluster.url())}")
    print("  onefold status")
    print("  onefold down" + ("" if directory is None else f" --dir {shlex.quote(str(directory))}"))


def _of(region: str | None) -> str:
    return "" if region is None else f", region {region}"
