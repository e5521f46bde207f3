"""``onefold stream``: streams from the command line."""

from __future__ import annotations

import itertools
import sys
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onefold import config
from onefold.cli import keys, output
from onefold.cli.endings import ended_from_outside, until_nobody_reads
from onefold.cli.options import ROWS_MAX, JsonOption, Place, UrlOption, checked_name, duration, place

if TYPE_CHECKING:
    from datetime import datetime

    from onefold.db import Database
    from onefold.state.streams.groups import GroupStanding
    from onefold.state.streams.pages import StreamRecord
    from onefold.state.streams.stream import Stream

NameArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="The stream's name.", callback=checked_name("stream"))
]

app = typer.Typer(
    help="Streams: list and show them, follow one, append to it, say how long its records are kept.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


def _there(db: Database, name: str) -> Stream[Any]:
    """The stream; a command that looks at one makes none. Raises InvalidArgument."""
    from onefold.errors import InvalidArgument

    stream: Stream[Any] = db.stream(name)
    if stream.layout.find() is None:
        raise InvalidArgument(
            f"there is no stream {name!r} in {db.url}; `onefold stream ls` lists what there is, and the first append makes one"
        )
    return stream


@app.command("ls", short_help="List the streams of a space.")
def list_streams(ctx: typer.Context, url: UrlOption = None, as_json: JsonOption = False) -> None:
    """List the streams of a space.

    JSON: a list of {name, records, partitions, retention_s}; records: that are kept; retention_s: null when all are.
    """
    where = place(ctx, url, as_json)
    found: list[dict[str, Any]] = []
    with where.looking() as db:
        for one in db.collections():
            if one.kind == "stream":
                stream: Stream[Any] = db.stream(one.name)
                found.append(
                    {
                        "name": one.name,
                        "records": one.count,
                        "partitions": stream.partitions,
                        "retention_s": stream.retention,
                    }
                )
        if where.json:
            output.emit(found)
            return
        if not found:
            output.say(f"no streams in {db.url}")
            return
    from onefold.display import words

    heads = [("records", True), ("partitions", True), ("kept for", True), ("name", False)]
    output.grid(
        heads,
        [
            (
                f"{one['records']:,}",
                f"{one['partitions']:,}",
                _kept(one["retention_s"]),
                words.visible(one["name"]),
            )
            for one in found
        ],
    )


@app.command("show", short_help="Say what a stream has, by partition, and who reads it.")
def show(ctx: typer.Context, name: NameArgument, url: UrlOption = None, as_json: JsonOption = False) -> None:
    """Say what a stream has, by partition, and how far its consumer groups are.

    JSON: {name, records, retention_s, partitions: [{partition, first, next, records, bytes, shard, oldest}], groups: [...]}, with
    groups as in `onefold stream groups`; oldest: when the oldest records that are kept were appended.
    """
    from onefold.state.streams.groups import groups_of

    where = place(ctx, url, as_json)
    with where.looking() as db:
        stream = _there(db, name)
        positions = stream.positions()
        heads, _ = stream.layout.heads(positions)
        partitions = [
            {
                "partition": number,
                "first": first,
                "next": end,
                "records": end - first,
                "bytes": heads[number].bytes,
                "shard": stream.layout.shard(number),
                "oldest": _time(heads[number].oldest_ms) if end > first else None,
            }
            for number, (first, end) in positions.items()
        ]
        found = {
            "name": name,
            "records": sum(end - first for first, end in positions.values()),
            "retention_s": stream.retention,
            "partitions": partitions,
            "groups": [_group(one) for one in groups_of(stream)],
        }
    if where.json:
        output.emit(found)
        return
    _print_stream(found)


def _print_stream(found: dict[str, Any]) -> None:
    from onefold.display import words

    print(
        f"stream {words.visible(found['name'])}: {found['records']:,} records, kept for {_kept(found['retention_s'])}"
    )
    heads = [("partition", True), ("records", True), ("first", True), ("next", True), ("size", True)]
    output.grid(
        [*heads, ("oldest", False)],
        [
            (
                str(one["partition"]),
                f"{one['records']:,}",
                f"{one['first']:,}",
                f"{one['next']:,}",
                words.size(one["bytes"]),
                "" if one["oldest"] is None else f"{one['oldest'].astimezone():%Y-%m-%d %H:%M:%S}",
            )
            for one in found["partitions"]
        ],
    )
    for one in found["groups"]:
        print(
            f"group {words.visible(one['name'])}: {one['lag']:,} records behind, {one['members']:,} members"
        )


@app.command("groups", short_help="List a stream's consumer groups, and how far they are.")
def groups(
    ctx: typer.Context, name: NameArgument, url: UrlOption = None, as_json: JsonOption = False
) -> None:
    """List the consumer groups of a stream, and how far each is behind.

    JSON: a list of {name, members, lag, partitions: [{partition, next, lag}]}; next: the first offset that is not committed, null
    when nothing is; lag: records that are kept and not committed.
    """
    from onefold.state.streams.groups import groups_of

    where = place(ctx, url, as_json)
    with where.looking() as db:
        found = groups_of(_there(db, name))
    if where.json:
        output.emit([_group(one) for one in found])
        return
    if not found:
        output.say(f"no consumer group has read stream {name!r}")
        return
    from onefold.display import words

    output.grid(
        [("lag", True), ("members", True), ("next, by partition", False), ("group", False)],
        [
            (
                f"{one.lag:,}",
                f"{one.members:,}",
                ", ".join("-" if part.next is None else f"{part.next:,}" for part in one.partitions[:8]),
                words.visible(one.name),
            )
            for one in found
        ],
    )


@app.command("tail", short_help="Print the last records of a stream, and with --follow those that come.")
def tail(
    ctx: typer.Context,
    name: NameArgument,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Wait for more, until it is interrupted (exit code 0).")
    ] = False,
    lines: Annotated[
        int, typer.Option("-n", "--lines", min=0, max=ROWS_MAX, help="How many of the last records.")
    ] = 10,
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="START",
            help="Instead of the last ones all from here on: earliest, latest, a time, `2h ago`, or a position.",
            show_default=False,
        ),
    ] = None,
    partition: Annotated[
        int | None,
        typer.Option(
            min=0, max=config.STREAM_PARTITIONS_MAX - 1, help="Only this partition.", show_default=False
        ),
    ] = None,
    timeout: Annotated[
        str | None,
        typer.Option(metavar="DURATION", help="With --follow: end when nothing came for so long."),
    ] = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print records of a stream, one a line: partition, offset, time, key and value.

    JSON, one document a line: {partition, offset, time, key, value, position}; `--from POSITION` continues with what comes after
    it. Keys and values are as in `onefold export`.
    """
    where = place(ctx, url, as_json)
    if timeout is not None and not follow:
        raise typer.BadParameter("only with --follow, which waits", param_hint="--timeout")
    begin, timeout_s = None if start is None else _start(start), duration(timeout, "--timeout")
    with where.reading() as db:
        stream: Stream[Any] = db.stream(name) if follow else _there(db, name)
        if partition is not None and partition >= stream.partitions:
            raise typer.BadParameter(
                f"stream {name!r} has {stream.partitions} partitions, from 0", param_hint="--partition"
            )
        if begin is None:
            found, begin = _last(stream, lines, partition)
            with until_nobody_reads():
                _print_records(found, where)
        elif not follow:
            with until_nobody_reads():
                _print_records(stream.read(begin, partitions=partition), where)
        if follow:
            reader = stream.read(begin, follow=True, partitions=partition, timeout=timeout_s)
            with ended_from_outside(reader.close), until_nobody_reads():
                _print_records(reader, where)


def _last(stream: Stream[Any], count: int, partition: int | None) -> tuple[list[StreamRecord[Any]], Any]:
    """The last records in order of time, and where reading continues."""
    from onefold.state.encoding.positions import Position

    row = stream.layout.find()
    if row is None:
        return [], "earliest"
    kept = {
        number: bounds
        for number, bounds in stream.positions().items()
        if partition is None or number == partition
    }
    from_ = {number: max(first, end - count) for number, (first, end) in kept.items()}
    reader = stream.read(Position(stream.layout.tag, from_), partitions=list(kept))
    found: deque[StreamRecord[Any]] = deque(reader, maxlen=count)
    return list(found), reader.position


def _start(text: str) -> datetime | str:
    """Where to start, as it was typed: ends with wrong usage for what is not a start."""
    if text in ("earliest", "latest"):
        return text
    if text.startswith("s1."):  # the text of a position; which stream it is of is seen when it is read
        return text
    return keys.parse_time(text, "--from")


def _print_records(records: Iterable[StreamRecord[Any]], where: Place) -> None:
    from onefold.state.encoding.json_values import dump_line, key_to_json, to_json

    for record in records:
        if where.json:
            shown = {
                "partition": record.partition,
                "offset": record.offset,
                "time": _time(record.time_ms).isoformat(),
                "key": None if record.key is None else key_to_json(record.key),
                "value": to_json(record.value),
                "position": str(record.position),
            }
            print(dump_line(shown), flush=True)
        else:
            key = "-" if record.key is None else keys.shown_key(record.key)
            time = output.local_time(record.time_ms)
            print(
                f"{record.partition}\t{record.offset}\t{time}\t{key}\t{keys.shown_value(record.value)}",
                flush=True,
            )


@app.command("append", short_help="Append JSON lines from stdin.")
def append(
    ctx: typer.Context,
    name: NameArgument,
    key: Annotated[
        str | None,
        typer.Option(metavar="FIELD", help="The field of each record that is its key.", show_default=False),
    ] = None,
    partitions: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=config.STREAM_PARTITIONS_MAX,
            help="How many partitions a new stream gets (default 1).",
            show_default=False,
        ),
    ] = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Append what is on stdin to a stream, a record for each line of JSON, as the lines come. Makes the space and the stream.

    Bytes, times and the like are written as in `onefold export`. A line that cannot be a record ends it with exit code 1: the
    message says which line it is, and that those before it are appended. JSON: {appended}.
    """
    from onefold.cli.collections.json_lines import append_lines, read_batches

    where = place(ctx, url, as_json)
    stdin: Any = sys.stdin.buffer
    batches = read_batches(stdin, key)
    first = next(batches, [])
    where.rehearse(lambda new: append_lines(new.stream(name, partitions=partitions), [first[:1]], key))
    with where.open(create=True) as db:
        count = append_lines(db.stream(name, partitions=partitions), itertools.chain([first], batches), key)
    if where.json:
        output.emit({"appended": count})
    else:
        output.say(f"appended {count:,} records to {name}")


@app.command("retain", short_help="Say how long a stream keeps its records.")
def retain(
    ctx: typer.Context,
    name: NameArgument,
    retention: Annotated[str, typer.Argument(metavar="DURATION", help="7d, 12h, …, or `forever`.")],
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Keep the records of a stream for so long from now on. Older ones go with the next append or read.

    JSON: {name, retention_s}; null: for ever.
    """
    where = place(ctx, url, as_json)
    kept = None if retention == "forever" else duration(retention, "DURATION")
    if kept is not None and kept <= 0:
        raise typer.BadParameter("must be longer than nothing, or `forever`", param_hint="DURATION")
    with where.open() as db:
        stream = _there(db, name)
        stream.set_retention(kept)
        found = {"name": name, "retention_s": stream.retention}
    if where.json:
        output.emit(found)
    else:
        output.say(f"stream {name!r} keeps its records for {_kept(found['retention_s'])}")


def _group(one: GroupStanding) -> dict[str, Any]:
    return {
        "name": one.name,
        "members": one.members,
        "lag": one.lag,
        "partitions": [asdict(part) for part in one.partitions],
    }


def _kept(seconds: Any) -> str:
    from onefold.display import words

    return "ever" if seconds is None else words.duration(float(seconds))


def _time(ms: int) -> datetime:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(ms / 1000, UTC)
