"""``onefold init``."""

from __future__ import annotations

import shlex

import typer

from onefold.cli import output
from onefold.cli.options import (
    BlobsOption,
    JsonOption,
    RegionsOption,
    ReplicasOption,
    ShardsOption,
    UrlOption,
    place,
    region_names,
)


def init(
    ctx: typer.Context,
    shards: ShardsOption = None,
    replicas: ReplicasOption = None,
    regions: RegionsOption = None,
    blobs: BlobsOption = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a space on a NATS cluster that others run, with a credential that may create streams. Again: a space that an
    earlier release made gets what is missing, and nothing else changes.

    JSON: {url, space, incarnation, shards, replicas, regions, region_logs: [{name, incarnation, replicas}], blobs, blobs_at};
    region_logs: what each region has for itself; blobs: as --blobs names the place; blobs_at: where in it this space has its own.
    """
    import os

    from onefold.cli.cluster import describing
    from onefold.cluster.setup import set_up_space
    from onefold.compute.blobs.backends import named_place
    from onefold.errors import InvalidArgument
    from onefold.log.jetstream.client.address import is_nats, parse_address

    where = place(ctx, url, as_json)
    target = where.url or os.environ.get("ONEFOLD_URL") or ""
    try:
        if not is_nats(target):
            raise InvalidArgument(
                "give nats://host:port/SPACE or tls://…; spaces in a folder are made when they are first used"
            )
        shown = parse_address(target).url
    except InvalidArgument as error:
        raise typer.BadParameter(str(error), param_hint="--url") from None
    try:
        names = region_names(regions)
        info = set_up_space(target, shards=shards, replicas=replicas, blobs=blobs, regions=names)
    except InvalidArgument as error:
        raise typer.BadParameter(str(error)) from None
    if where.json:
        output.emit(
            {
                "url": shown,
                "space": info.space,
                "incarnation": info.incarnation,
                "shards": info.shards,
                "replicas": info.replicas,
                "regions": list(info.regions),
                "region_logs": [
                    {"name": one.name, "incarnation": one.incarnation, "replicas": one.replicas}
                    for one in info.region_logs
                ],
                "blobs": named_place(info.blobs, info.space, info.incarnation),
                "blobs_at": info.blobs,
            }
        )
        return
    print(f"space    {info.space}  ({info.shards:,} shards, {info.replicas} copies, {info.incarnation})")
    if info.regions:
        describing.print_regions({one.name: one.replicas for one in info.region_logs})
    print(f"url      {shown}")
    named = " --region NAME" if info.regions else ""
    print(
        f"next     onefold node --url {shlex.quote(shown)}{named} on each machine, with a node's credential"
    )
