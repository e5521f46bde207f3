"""Available collections from the command line: which kind a name is, ``onefold counters``, ``onefold sets``, ``region list``."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from onefold.cli import keys, output
from onefold.cli.keys import JsonKeyOption
from onefold.cli.options import ROWS_MAX, JsonOption, RegionOption, UrlOption, checked_name, place

if TYPE_CHECKING:
    from onefold.db import Database

MERGES: Final = {"r": "last_writer_wins", "f": "fields", "k": "keep_both"}
"""By the letter of the kind."""
OTHERS: Final = {"s": "sets", "n": "counters", "b": "counters"}
Merge = Literal["last_writer_wins", "fields", "keep_both"]
MergeOption = Annotated[
    Merge | None,
    typer.Option(
        "--merge",
        metavar="HOW",
        help="Make it an available map, merged so: last_writer_wins, fields or keep_both. One that is there is known.",
        show_default=False,
    ),
]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", callback=checked_name("collection"))]
KeyArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="[KEY]",
        help="Text, or a tuple as a JSON array: '[\"eu\", 7]'. See --json-key.",
        show_default=False,
    ),
]
app = typer.Typer(no_args_is_help=True)


def map_of(db: Database, name: str, merge: Merge | None = None) -> Any:
    """The map of that name: the available one if the region has one. Of a connection that names no region it is the first one's.
    ``merge``: it is, or becomes, an available one."""
    from onefold.errors import InvalidArgument

    letter = None if merge is not None else _letter(db, name)
    if letter in OTHERS:
        raise InvalidArgument(f"{name!r} is not a map: see `onefold {OTHERS[letter]} {name}`")
    if merge is None and letter is None:
        return db.map(name)
    choose_region(db)
    return db.map(name, mode="available", merge=merge or MERGES[letter or "r"])  # type: ignore[call-overload]


def choose_region(db: Database) -> list[str]:
    """The names of the regions. Of a connection that names none, the first one's view is used."""
    from onefold.regions.decisions import region_names

    names = region_names(db._shards)
    if names and db._default_region is None:
        db._default_region = names[0]
    return names


def _letter(db: Database, name: str) -> str | None:
    """Of the kind that the name is in the region; None when nothing available has it, as far as the region knows."""
    if not choose_region(db):
        return None
    from onefold.state.available.places import places_of

    found = places_of(db._available, name)
    return found[0][0] if found else None


def _floor(db: Database, name: str) -> int | None:
    from onefold.available.kinds.places import split_place
    from onefold.state.available.places import places_of

    found = places_of(db._available, name)
    return split_place(found[0])[2] if found else None


def counters(
    ctx: typer.Context,
    name: NameArgument,
    key: KeyArgument = None,
    limit: Annotated[int, typer.Option(min=0, max=ROWS_MAX, help="At most so many.")] = 100,
    json_key: JsonKeyOption = False,
    region: RegionOption = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the counters of a collection with their values, or the value of one.

    JSON: [{key, value}]; of one: {key, value, here}, where here is what the region may take of a counter with a floor by itself.
    """
    from onefold.errors import InvalidArgument
    from onefold.state.encoding.json_values import key_to_json

    where = place(ctx, url, as_json, region)
    wanted = None if key is None else keys.parse_key(key, as_json=json_key)
    with where.reading() as db:
        _must_be(db, name, "counters")
        floor = _floor(db, name)
        found = db.counters(name, floor=floor)
        if key is None:
            rows = list(islice(found.items(), limit + 1))
            _print_pairs(rows[:limit], as_json=where.json, more=len(rows) > limit, limit=limit)
            return
        value = found.get(wanted, None)
        if value is None:
            raise InvalidArgument(keys.not_there(wanted, name))
        here = None if floor is None else found.here(wanted)
    if where.json:
        output.emit({"key": key_to_json(wanted), "value": value, "here": here})
    else:
        print(value)


def sets(
    ctx: typer.Context,
    name: NameArgument,
    key: KeyArgument = None,
    limit: Annotated[int, typer.Option(min=0, max=ROWS_MAX, help="At most so many.")] = 100,
    json_key: JsonKeyOption = False,
    region: RegionOption = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the sets of a collection, or the elements of one, one a line.

    JSON: [{key, elements}]; of one: {key, elements}. Elements are in no order of their own; here they are sorted as keys.
    """
    from onefold.errors import InvalidArgument
    from onefold.state.encoding.json_values import key_to_json

    where = place(ctx, url, as_json, region)
    wanted = None if key is None else keys.parse_key(key, as_json=json_key)
    with where.reading() as db:
        _must_be(db, name, "sets")
        found = db.sets(name)
        rows = list(islice(found.items(), limit + 1)) if key is None else [(wanted, found.get(wanted))]
    if key is not None and not rows[0][1]:
        raise InvalidArgument(keys.not_there(wanted, name))
    shown = [
        {"key": key_to_json(at), "elements": [key_to_json(one) for one in _sorted(of)]} for at, of in rows
    ]
    if where.json:
        output.emit(shown[0] if key is not None else shown[:limit])
        return
    if key is not None:
        for one in _sorted(rows[0][1]):
            print(keys.shown_key(one))
        return
    for at, of in rows[:limit]:
        print(f"{keys.shown_key(at)}\t{', '.join(keys.shown_key(one) for one in _sorted(of))}")
    if len(rows) > limit:
        output.say(f"… and more; --limit {limit * 10 or 100} shows more of them")


def _sorted(elements: set[Any]) -> list[Any]:
    from onefold.state.encoding.keys import encode_key

    return sorted(elements, key=encode_key)


def _must_be(db: Database, name: str, kind: str) -> None:
    from onefold.errors import InvalidArgument

    letter = _letter(db, name)
    if letter is None:
        raise InvalidArgument(f"there are no {kind} of the name {name!r} in this region")
    if OTHERS.get(letter) != kind:
        other = (
            "a map: see `onefold ls`"
            if letter in MERGES
            else f"{OTHERS[letter]}: see `onefold {OTHERS[letter]}`"
        )
        raise InvalidArgument(f"{name!r} is {other}")


def _print_pairs(rows: list[tuple[Any, Any]], *, as_json: bool, more: bool, limit: int) -> None:
    from onefold.state.encoding.json_values import key_to_json, to_json

    if as_json:
        output.emit([{"key": key_to_json(key), "value": to_json(value)} for key, value in rows])
        return
    for key, value in rows:
        print(f"{keys.shown_key(key)}\t{keys.shown_value(value)}")
    if more:
        output.say(f"… and more; --limit {limit * 10 or 100} shows more of them")


@app.command("list")
def list_regions(
    ctx: typer.Context,
    region: RegionOption = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the regions of a space, as one of them sees the others.

    JSON: [{name, state, behind_writes, behind_s, clock_ahead_s, gone_bytes}].
    """
    import dataclasses

    where = place(ctx, url, as_json, region)
    with where.reading() as db:
        found = db.regions() if choose_region(db) else []
    if where.json:
        output.emit([dataclasses.asdict(one) for one in found])
    elif not found:
        output.say("this space has no regions: the first use of an available collection makes one")
    else:
        heads = [
            ("region", False),
            ("state", False),
            ("behind", True),
            ("seconds", True),
            ("gone bytes", True),
        ]
        output.grid(
            heads,
            [
                (one.name, one.state, f"{one.behind_writes:,}", f"{one.behind_s:.1f}", f"{one.gone_bytes:,}")
                for one in found
            ],
        )
