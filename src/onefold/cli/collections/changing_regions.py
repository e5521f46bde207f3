"""``onefold region evict``, ``rejoin`` and ``accept``: regions go and come."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import typer

from onefold.cli import output
from onefold.cli.collections import available
from onefold.cli.options import JsonOption, UrlOption, place

if TYPE_CHECKING:
    from onefold.db import Database
    from onefold.state.available.client import RegionClient

app = available.app
AGREE_S: Final = 20.0
"""So long a command waits until the regions that are left agree."""
RegionArgument = Annotated[str, typer.Argument(metavar="NAME", help="The region.")]
MineOption = Annotated[
    str | None,
    typer.Option(
        "--region",
        metavar="MINE",
        help="The region in which this is done. Default: the first other one.",
        show_default=False,
    ),
]


def _working_in(db: Database, mine: str | None, name: str) -> RegionClient:
    """The region in which the command works. Raises InvalidArgument."""
    from onefold.errors import InvalidArgument
    from onefold.regions.decisions import region_names

    names = region_names(db._shards)
    if not names:
        raise InvalidArgument("this space has no regions: the first use of an available collection makes one")
    others = [one for one in names if one != name]
    if mine is None:
        if not others:
            raise InvalidArgument(f"region {name} is the only one: there is no other one to work in")
        db._default_region = others[0]
    return db._available


@app.command()
def evict(
    ctx: typer.Context,
    name: RegionArgument,
    reclaim_quota: Annotated[
        bool,
        typer.Option(
            "--reclaim-quota",
            help="Give its rights in counters with a floor to the region in which this is done. If it took something that "
            "nobody has heard of, more may be taken than there is.",
        ),
    ] = False,
    mine: MineOption = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give up a region, for ever or until it rejoins: the others wait for it no longer, and take nothing from it.

    JSON: {name, number, final, missing}: final is the last of its effects that counts, by shard, or null where the other regions
    have not agreed yet; missing: those that have not voted.
    """
    from onefold.regions.changes.deciding import await_final
    from onefold.regions.changes.deciding import evict as decide

    where = place(ctx, url, as_json, mine)
    with where.open() as db:
        client = _working_in(db, mine, name)
        own = client.region.name
        heir = own if reclaim_quota else ""
        number = decide(db._shards[0], client.shards, own, name, heir, client.read_time())
        client.region.look()
        agreed = await_final(client.shards, number, AGREE_S)
    if where.json:
        output.emit({"name": name, "number": number, "final": agreed.final, "missing": agreed.missing})
        return
    if None in agreed.final:
        waits = ", ".join(agreed.missing) or "a region"
        output.say(
            f"region {name} is evicted. How far its effects count is agreed once {waits} can be reached"
        )
    else:
        ends = ", ".join(f"{seq:,} in shard {shard}" for shard, seq in enumerate(agreed.final))
        output.say(f"region {name} is evicted. Of its effects these count: up to {ends}")
    if reclaim_quota:
        output.say(
            f"region {own} has its rights in counters with a floor. What {name} took and nobody has heard of may be taken again"
        )


@app.command()
def accept(
    ctx: typer.Context,
    name: RegionArgument,
    mine: MineOption = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take what a region wrote while its clock was ahead, and what waits for that: until then it wins over all that is written.

    Only in one region; others still wait. JSON: {name, region, ahead_s}.
    """
    from onefold.regions.changes.deciding import accept as take

    where = place(ctx, url, as_json, mine)
    with where.open() as db:
        client = _working_in(db, mine, name)
        ahead_s = take(client.shards, client.region.peers, name)
        own = client.region.name
    if where.json:
        output.emit({"name": name, "region": own, "ahead_s": ahead_s})
    else:
        output.say(f"region {own} takes what {name} wrote up to {ahead_s:.0f} s ahead of now")
