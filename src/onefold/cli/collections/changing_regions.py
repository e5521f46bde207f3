"""``onefold region evict``, ``rejoin`` and ``accept``: regions go and come."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import typer

from onefold.cli import output
from onefold.cli.collections import available
from onefold.cli.options import JsonOption, Place, UrlOption, place

if TYPE_CHECKING:
    from onefold.db import Database
    from onefold.shard.embedded import EmbeddedShard
    from onefold.state.available.client import RegionClient

app = available.app
LEAVE_S: Final = 20.0
"""So long programs may take to leave a region that comes again."""
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


@app.command()
def rejoin(
    ctx: typer.Context,
    name: RegionArgument,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Have an evicted region come again, under a new number, with what the others have. A file has what nobody took of it.

    After a failure, do it again: it continues. JSON: {name, number, files, writes, again, missing}: writes that nobody took are
    in the files; again: how many of them were done again; missing: effects that were not kept.
    """
    from onefold.errors import InvalidArgument
    from onefold.log.jetstream.client.address import is_nats
    from onefold.regions.changes import deciding, old_logs

    where = place(ctx, url, as_json)
    with where.open() as db:
        if is_nats(db._shards[0].url):
            raise InvalidArgument("on a cluster no region can come again yet. Make another cluster")
        client = _working_in(db, None, name)
        first = old_logs.embedded(db._shards[0])
        if old_logs.must_decide(first, name):
            deciding.rejoin(first, name, client.read_time())
        client.region.look()
        with _in_region(where, name) as again:
            number, files, found = _brought(again, first, name)
    if where.json:
        output.emit({"name": name, "number": number, "files": files, **found})
        return
    output.say(f"region {name} has come again, with the number {number}")
    for file in files:
        output.say(
            f"{found['writes']:,} writes that nobody took are in {file}; {found['again']:,} of them were done again"
        )
    if found["missing"]:
        output.say(f"{found['missing']:,} more effects were not kept")


def _in_region(where: Place, name: str) -> Database:
    """Connect in a region that comes again, which makes it. Programs that leave it are waited for. Raises as ``connect``."""
    from onefold.backoff import Backoff, retried
    from onefold.db import connect
    from onefold.errors import SpaceError

    return retried(
        lambda: connect(where.url, region=name, create=True), (SpaceError,), LEAVE_S, Backoff(0.1, 0.5)
    )


def _brought(db: Database, first: EmbeddedShard, name: str) -> tuple[int, list[str], dict[str, int]]:
    from onefold.errors import Unavailable
    from onefold.folds import region_folds
    from onefold.regions.changes import old_logs
    from onefold.state.available.unseen import bring_back

    client = db._available
    db.sync(timeout=AGREE_S)
    end_s = client.env.boot_s() + AGREE_S
    for shard, log in enumerate(client.shards):
        while not client.known(shard).may_write():
            if client.env.boot_s() > end_s:
                raise Unavailable(
                    f"region {name} is not admitted by all others yet. Do it again when they can be reached"
                )
            log.wait(log.applied, 0.2)
    db.sync(timeout=AGREE_S)
    files: list[str] = []
    found = {"writes": 0, "again": 0, "missing": 0}
    for number, at in old_logs.unfinished(first, name):
        with old_logs.opened(at, region_folds, client.env) as old:
            brought = bring_back(client, number, old, at / old_logs.UNSEEN_NAME)
        old_logs.finish(at)
        files.append(str(at / old_logs.UNSEEN_NAME))
        for key, value in brought._asdict().items():
            found[key] += value
    return client.known(0).number, files, found
