"""``onefold explain``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from onefold.cli import output
from onefold.cli.options import JsonOption, UrlOption, place

if TYPE_CHECKING:
    from onefold.db import Database
    from onefold.state.catalog import Collection


def explain(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="A table, map, queue, stream or lock.")],
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what has that name, where it is kept, and which failures it survives; of a table how it is made, and why its last
    run computed something again.

    JSON: {name, collections: [{kind, count, shards, sentences}]}; when there is a table also {table, sentences}.
    """
    from onefold.errors import InvalidArgument

    where = place(ctx, url, as_json)
    with where.open() as db:
        found: dict[str, Any] = {"name": name}
        there = [collection for collection in db.collections() if collection.name == name]
        others = [collection for collection in there if collection.kind != "table"]
        if len(others) < len(there) or not others:
            try:
                found |= {"table": name, "sentences": db.explain(name)}
            except InvalidArgument as error:
                if there:
                    raise
                raise InvalidArgument(
                    f"there is nothing called {name!r} in {db.url}; `onefold ls` and `onefold tables` list what there is"
                ) from error
        found["collections"] = [
            {
                "kind": collection.kind,
                "count": collection.count,
                "shards": list(collection.shards),
                "sentences": _sentences(db, collection),
            }
            for collection in others
        ]
    if where.json:
        output.emit(found)
        return
    for collection in found["collections"]:
        for sentence in collection["sentences"]:
            print(sentence)
    for sentence in found.get("sentences", ()):
        print(sentence)


def _sentences(db: Database, collection: Collection) -> list[str]:
    name, count, shards = collection.name, collection.count, len(db._spaces)
    match collection.kind:
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
        case _:
            what = f"Lock {name!r}: somebody has it, {count:,} wait."
    if shards == 1:
        place_ = "It is in the one log of this space, so it changes together with everything else in one transaction."
    else:
        where = ", ".join(str(shard) for shard in collection.shards)
        place_ = f"It is in shard {where} of {shards}; a transaction that changes several shards is committed in two phases."
    return [what, place_, *_survives(db)]


def _survives(db: Database) -> list[str]:
    consistency = (
        "It is CP: every operation is linearizable, whichever program of this machine asks, and transactions are "
        "strictly serializable."
    )
    if db.url.startswith("memory:"):
        return [consistency, "It is kept in memory: it ends with this process."]
    return [
        consistency,
        "What was acknowledged is on the disk: it survives the kill of any process (kill -9 too), a crash of the machine, and a "
        "full disk.",
        "It does not survive the loss of the disk, and is not there while the machine is down: `onefold backup` makes a copy for "
        "another disk.",
    ]
