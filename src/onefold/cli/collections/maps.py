"""``onefold get``, ``put``, ``del``, ``ls`` and ``watch``: maps from the command line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onefold.cli import keys, output
from onefold.cli.collections.available import MergeOption, choose_region, map_of
from onefold.cli.endings import ended_from_outside, until_nobody_reads
from onefold.cli.keys import AtOption, JsonKeyOption
from onefold.cli.options import (
    ROWS_MAX,
    JsonOption,
    Place,
    RegionOption,
    UrlOption,
    checked_name,
    duration,
    place,
)

if TYPE_CHECKING:
    from onefold.db import Database
    from onefold.state.core.contents import Collection
    from onefold.state.encoding.items import Change, Version
    from onefold.state.maps.watch import Watch

MapArgument = Annotated[
    str, typer.Argument(metavar="MAP", help="The map's name.", callback=checked_name("map"))
]
KeyArgument = Annotated[
    str,
    typer.Argument(metavar="KEY", help="Text, or a tuple as a JSON array: '[\"eu\", 7]'. See --json-key."),
]
VersionOption = Annotated[
    str | None,
    typer.Option("--if-version", metavar="VERSION", help="Only if it has this version.", show_default=False),
]


def _version(text: str | None) -> Version | str | None:
    """The version that was typed; ends with wrong usage for what is none."""
    from onefold.errors import InvalidArgument
    from onefold.state.encoding.items import Version

    if text is not None and text.startswith("@"):
        return text  # of an available map, which reads it
    try:
        return None if text is None else Version.of(text)
    except InvalidArgument as error:
        raise typer.BadParameter(str(error), param_hint="--if-version") from None


@contextlib.contextmanager
def _opened(where: Place, at: str | None) -> Iterator[Database]:
    when = None if at is None else keys.parse_when(at)  # before there need be a space
    with where.reading() as db:
        if when is None:
            yield db
            return
        with db.at(when) as past:
            yield past


def get(
    ctx: typer.Context,
    name: MapArgument,
    key: KeyArgument,
    json_key: JsonKeyOption = False,
    at: AtOption = None,
    region: RegionOption = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the value of a key: text as it is, anything else as JSON. Exit code 1 when there is none.

    JSON: {key, value, version, expires_at}, of an available map also {region}, and {siblings} where all are kept; bytes, times
    and the like as in `onefold export`.
    """
    from onefold.errors import InvalidArgument
    from onefold.state.encoding.json_values import key_to_json, to_json

    where, wanted = place(ctx, url, as_json, region), keys.parse_key(key, as_json=json_key)
    with _opened(where, at) as db:
        item = map_of(db, name).get_item(wanted)
    if item is None:
        raise InvalidArgument(keys.not_there(wanted, name))
    if where.json:
        shown = {"key": key_to_json(item.key), "value": to_json(item.value), "version": str(item.version)}
        shown |= {"expires_at": item.expires_at}
        if item.siblings is not None:
            shown |= {"siblings": to_json(item.siblings)}
        output.emit(shown | ({} if item.region is None else {"region": item.region}))
    else:
        print(keys.shown_value(item.value))


def put(
    ctx: typer.Context,
    name: MapArgument,
    key: KeyArgument,
    value: Annotated[
        str, typer.Argument(metavar="VALUE", help="JSON if it is that, else text; - reads it from stdin.")
    ],
    ttl: Annotated[
        str | None, typer.Option(metavar="DURATION", help="It ends after so long: 5m.", show_default=False)
    ] = None,
    if_absent: Annotated[
        bool, typer.Option("--if-absent", help="Only if the key is not there.", show_default=False)
    ] = False,
    if_version: VersionOption = None,
    merge: MergeOption = None,
    json_key: JsonKeyOption = False,
    region: RegionOption = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Set a key and print its new version. Makes the space if there is none.

    A number, true, null, or text in double quotes is JSON: `put m k 7` is a number, `put m k '"7"'` is text.
    Exit code 1 when a condition does not hold; then nothing is written. JSON: {version}.
    """
    if if_absent and if_version is not None:
        raise typer.BadParameter("cannot go together with --if-absent", param_hint="--if-version")
    where, wanted = place(ctx, url, as_json, region), keys.parse_key(key, as_json=json_key)
    ttl_s, given = duration(ttl, "--ttl"), _version(if_version)
    if ttl_s is not None and ttl_s <= 0:
        raise typer.BadParameter("must be more than zero", param_hint="--ttl")
    found = keys.parse_value(value)

    def write(db: Database) -> Version:
        found_map = map_of(db, name, merge)
        return found_map.put(wanted, found, ttl=ttl_s, if_absent=if_absent, if_version=given)  # type: ignore[no-any-return]

    where.rehearse(write)
    with where.open(create=True) as db:
        version = write(db)
    if where.json:
        output.emit({"version": str(version)})
    else:
        print(version)


def delete(
    ctx: typer.Context,
    name: MapArgument,
    key: KeyArgument,
    if_version: VersionOption = None,
    json_key: JsonKeyOption = False,
    region: RegionOption = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove a key. Exit code 1 when it is not there. JSON: {deleted}."""
    from onefold.errors import InvalidArgument

    where, wanted = place(ctx, url, as_json, region), keys.parse_key(key, as_json=json_key)
    given = _version(if_version)
    with where.open() as db:
        deleted = map_of(db, name).delete(wanted, if_version=given)
    if where.json:
        output.emit({"deleted": deleted})
        if not deleted:
            raise typer.Exit(1)
    elif not deleted:
        raise InvalidArgument(keys.not_there(wanted, name))


def ls(
    ctx: typer.Context,
    name: Annotated[
        str | None,
        typer.Argument(metavar="[MAP]", help="The map. Default: list all collections.", show_default=False),
    ] = None,
    prefix: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="Only keys that begin with these elements.", show_default=False),
    ] = None,
    limit: Annotated[int, typer.Option(min=0, max=ROWS_MAX, help="At most so many items.")] = 100,
    json_key: JsonKeyOption = False,
    at: AtOption = None,
    region: RegionOption = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the items of a map in key order; without MAP all collections of the space.

    A prefix matches whole elements: `--prefix eu` lists ["eu", 7], not "europe".
    JSON: [{key, value}]; without MAP: [{kind, name, count, shards, mode}], of available collections also {merge} or {floor}.
    """
    from onefold.state.encoding.json_values import key_to_json, to_json

    where = place(ctx, url, as_json, region)
    with _opened(where, at) as db:
        if name is None:
            choose_region(db)
            _print_collections(db, where)
            return
        start = None if prefix is None else keys.parse_key(prefix, as_json=json_key, name="--prefix")
        found = list(map_of(db, name).scan(prefix=start, limit=limit + 1))
    if where.json:
        output.emit([{"key": key_to_json(key), "value": to_json(value)} for key, value in found[:limit]])
        return
    for key, value in found[:limit]:
        print(f"{keys.shown_key(key)}\t{keys.shown_value(value)}")
    if len(found) > limit:
        output.say(f"… and more; --limit {limit * 10 or 100} shows more of them")


def _print_collections(db: Database, where: Place) -> None:
    from onefold.display import words

    found = db.collections()
    if where.json:
        output.emit([_collection_object(one) for one in found])
    elif not found:
        output.say(f"nothing in {db.url}")
    else:
        tells = any(one.mode == "available" for one in found)
        heads = [("kind", False), ("count", True), *([("mode", False)] if tells else []), ("name", False)]
        rows = [
            (one.kind, f"{one.count:,}", *([_mode(one)] if tells else []), words.visible(one.name))
            for one in found
        ]
        output.grid(heads, rows)


def _collection_object(one: Collection) -> dict[str, Any]:
    shown = {"kind": one.kind, "name": one.name, "count": one.count, "shards": list(one.shards)}
    shown |= {"mode": one.mode}
    shown |= {} if one.merge is None else {"merge": one.merge}
    return shown | ({} if one.floor is None else {"floor": one.floor})


def _mode(one: Collection) -> str:
    floor = "" if one.floor is None else f", floor {one.floor}"
    return one.mode + (f", {one.merge}" if one.merge else "") + floor


def watch(
    ctx: typer.Context,
    name: MapArgument,
    key: Annotated[
        str | None, typer.Argument(metavar="[KEY]", help="Only this key.", show_default=False)
    ] = None,
    prefix: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="Only keys that begin with these elements.", show_default=False),
    ] = None,
    initial: Annotated[
        bool, typer.Option("--initial", help="First what is there now.", show_default=False)
    ] = False,
    start: Annotated[
        str | None,
        typer.Option("--from", metavar="TOKEN", help="What followed this token.", show_default=False),
    ] = None,
    timeout: Annotated[
        str | None,
        typer.Option(metavar="DURATION", help="End when nothing came for so long.", show_default=False),
    ] = None,
    json_key: JsonKeyOption = False,
    region: RegionOption = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the changes of a map as they come, one a line, until it is interrupted (exit code 0).

    JSON, one document a line: {kind, key, value, version, token}, of an available map also {region}; a watch
    with `--from TOKEN` continues after it.
    """
    where = place(ctx, url, as_json, region)
    if key is not None and prefix is not None:
        raise typer.BadParameter("KEY and --prefix cannot go together", param_hint="--prefix")
    if initial and start is not None:
        raise typer.BadParameter("--initial and --from cannot go together", param_hint="--from")
    text = key if key is not None else prefix
    wanted = None if text is None else keys.parse_key(text, as_json=json_key)
    timeout_s = duration(timeout, "--timeout")
    if start is not None:
        keys.parse_token(start, "--from")
    with where.reading() as db:
        changes = map_of(db, name).watch(wanted, start=start, initial=initial, timeout=timeout_s)
        with ended_from_outside(changes.close):
            _print_changes(changes, where, only=wanted if key is not None else None)


def _print_changes(changes: Watch[Any], where: Place, only: object) -> None:
    with until_nobody_reads():
        for change in changes:
            if only is not None and change.key != only:
                continue  # a longer key that begins so
            print(_line(change, as_json=where.json), flush=True)


def _line(change: Change[Any], *, as_json: bool) -> str:
    from onefold.state.encoding.json_values import dump_line, key_to_json, to_json

    if as_json:
        shown = {"kind": change.kind, "key": key_to_json(change.key), "value": to_json(change.value)}
        shown |= {"version": str(change.version), "token": change.token}
        return dump_line(shown | ({} if change.region is None else {"region": change.region}))
    line = f"{change.kind}\t{keys.shown_key(change.key)}"
    return f"{line}\t{keys.shown_value(change.value)}" if change.kind == "put" else line
