"""``onefold explain``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from onefold.cli import output
from onefold.cli.options import JsonOption, Place, RegionOption, UrlOption, place
from onefold.cli.space import survived

if TYPE_CHECKING:
    from onefold.db import Database
    from onefold.doctor.facts import ClusterFacts
    from onefold.state.catalog import Collection


def explain(
    ctx: typer.Context,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A table, map, queue, stream, lock, counters or sets.")
    ],
    region: RegionOption = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what has that name, where it is kept, and which failures it survives; of a table how it is made, and why its last
    run computed something again.

    JSON: {name, unread, collections: [{kind, count, shards, sentences, mode, survives: [{failure, writes, reads: {level: bool},
    why, remote: {writes, reads}, kept}]}]}; when there is a table also {table, sentences}. writes and reads are of programs with
    a replica of their own, remote of others; kept: whether all that was acknowledged is there when what failed never comes back.
    writes: yes, no, "majority side" or "living regions" (those that are left); then reads are of programs there. An available
    collection also has {region, merge, floor, lag: [{region, state, writes, seconds}]}: what is not exchanged with each other
    region, which is lost if the disks that have it are.
    unread: null, or why the collections are described as this machine's replica knows them; one that it does not know has kind,
    count and mode null.
    """
    from onefold.cli.cluster import describing
    from onefold.errors import Unavailable

    where = place(ctx, url, as_json, region)
    target = describing.cluster_url(where)
    facts = None if target is None else describing.facts(target)
    unread = None if facts is None else _without_leader(facts)
    if unread is None:
        try:
            found = _found(where, name, facts)
        except Unavailable as error:
            if facts is None:
                raise
            unread = str(error)
    if unread is not None and facts is not None:
        found = _found_weakly(where, name, facts, unread)
    if where.json:
        output.emit(found)
        return
    if unread is not None:
        print(f"What is in it now could not be read: {unread}")
    for collection in found["collections"]:
        for sentence in collection["sentences"]:
            print(sentence)
    for sentence in found.get("sentences", ()):
        print(sentence)


def _without_leader(facts: ClusterFacts) -> str | None:
    """Why reading now would only wait: nobody leads a log. None when each has a leader."""
    away = [one for one in facts.streams if one.log is not None and one.info is None and not one.region]
    if not away:
        return None
    shards = ", ".join(str(one.log.shard) for one in away if one.log is not None)
    return f"nobody leads the log of shard {shards}, since a majority of its copies is away"


def _found(where: Place, name: str, facts: ClusterFacts | None) -> dict[str, Any]:
    """What there is. Raises Unavailable when the log does not answer."""
    from onefold.errors import InvalidArgument

    with where.looking() as db:
        found: dict[str, Any] = {"name": name, "unread": None}
        there = [one for one in db.collections() if one.name == name and one.mode == "consistent"]
        others = [collection for collection in there if collection.kind != "table"]
        available = survived.available(db, name, facts)
        if len(others) < len(there) or not (others or available):
            try:
                found |= {"table": name, "sentences": db.explain(name)}
            except InvalidArgument as error:
                if there:
                    raise
                raise InvalidArgument(
                    f"there is nothing called {name!r} in {db.url}; `onefold ls` and `onefold tables` list what there is"
                ) from error
        found["collections"] = [*(_collection(db, collection, facts) for collection in there), *available]
    return found


def _found_weakly(where: Place, name: str, facts: ClusterFacts, unread: str) -> dict[str, Any]:
    """The same of what this machine's replica knows, which may be nothing; and what any collection there stands on."""
    from onefold.errors import OnefoldError

    found: dict[str, Any] = {"name": name, "unread": unread, "collections": []}
    try:
        with where.open(weakly=True) as db:
            there = [one for one in db.collections() if one.name == name and one.mode == "consistent"]
            found["collections"] = [_collection(db, collection, facts, weakly=True) for collection in there]
            found["collections"] += survived.available(db, name, facts)
    except OnefoldError as error:
        found["unread"] = f"{unread}; this machine's replica: {error}"
    if not found["collections"] and facts.space is not None:
        survives, told = survived.on_cluster(facts, [], list(range(facts.space.shards)), is_table=False)
        unknown = f"Whether there is something called {name!r} is not known here; it would be in these logs."
        found["collections"] = [
            {
                "kind": None,
                "count": None,
                "shards": list(range(facts.space.shards)),
                "sentences": [unknown, *told],
                "mode": None,
                "survives": survived.as_json(survives),
            }
        ]
    return found


def _collection(
    db: Database, collection: Collection, facts: ClusterFacts | None, *, weakly: bool = False
) -> dict[str, Any]:
    survives, told = survived.consistent(db, collection, facts)
    return {
        "kind": collection.kind,
        "count": collection.count,
        "shards": list(collection.shards),
        "sentences": [*_sentences(db, collection, weakly=weakly), *told],
        "mode": "consistent",
        "survives": survived.as_json(survives),
    }


def _sentences(db: Database, collection: Collection, *, weakly: bool) -> list[str]:
    name, count, shards = collection.name, collection.count, len(db._shards)
    match collection.kind:
        case kind if weakly:
            what = f"{kind.capitalize()} {name!r}: this machine's replica knows {count:,} entries of it."
        case "map":
            what = f"Map {name!r}: {count:,} items."
        case "queue":
            counts = db.queue(name).counts()
            parts = ", ".join(
                f"{number:,} {part.replace('_', ' ')}" for part, number in counts._asdict().items()
            )
            what = f"Queue {name!r}: {count:,} messages to be acknowledged ({parts})."
        case "stream":
            partitions = db.stream(name).partitions
            what = f"Stream {name!r}: {count:,} records in {partitions:,} partitions."
        case "table":
            from onefold.compute.live.tables import LiveTable

            is_live = isinstance(db.table(name), LiveTable)
            what = f"Table {name!r}: {count:,} " + ("events are in it." if is_live else "finished tasks.")
        case "live job":
            what = f"Live job {name!r}: its state is in {count:,} bundles of lanes. `onefold live {name}` says how it stands."
        case _:
            what = f"Lock {name!r}: somebody has it, {count:,} wait."
    if shards == 1:
        place_ = "It is in the one log of this space, so it changes together with everything else in one transaction."
    else:
        where = ", ".join(str(shard) for shard in collection.shards)
        place_ = f"It is in shard {where} of {shards}; a transaction that changes several shards is committed in two phases."
    return [what, place_]
