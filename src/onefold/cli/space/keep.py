"""``onefold backup``, ``restore``, ``export`` and ``import``."""

from __future__ import annotations

import contextlib
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

from onefold.cli import keys, output
from onefold.cli.options import (
    BlobsOption,
    JsonOption,
    RegionOption,
    RegionsOption,
    ReplicasOption,
    UrlOption,
    place,
    region_names,
)

if TYPE_CHECKING:
    from onefold.db import Database
    from onefold.state.export.region_writing import OnConflict


def backup(
    ctx: typer.Context,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder.")],
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy the space, as it is at one instant, into a folder, while programs continue writing.

    Everything is in it: state, log, and what jobs have computed. The folder appears when all is written and on the
    disk, or not at all. Of a space on a cluster the log is in it as long as none of it was trimmed.
    Exit code 1 when blobs are missing or damaged that nothing computes again by itself: the rest is in the backup.
    JSON: {directory, incarnation, created, shards: [{offset, ...}], bytes, missing_blobs, lost}.
    """
    from onefold.backup.backup import backup as make
    from onefold.display import words
    from onefold.doctor.lost_blobs import what_is_lost
    from onefold.folds import blob_tables
    from onefold.space.log_prefix import as_time

    where = place(ctx, url, as_json)
    with where.reading() as db:
        made = make(db._shards, directory, blob_tables=blob_tables(), fetch=_fetching(db))
        lost = what_is_lost(db._shards, made.missing_blobs)
    size = sum(file.bytes for file in made.files.values())
    if where.json:
        shown = {
            "directory": str(directory),
            "incarnation": made.incarnation,
            "created": as_time(made.created_ms),
        }
        shards = [{"offset": shard.offset, "state_digest": shard.state_digest} for shard in made.shards]
        missing = {"missing_blobs": list(made.missing_blobs), "lost": list(lost)}
        output.emit(shown | {"shards": shards, "bytes": size} | missing)
        _fail_if(lost)
        return
    offsets = ", ".join(str(shard.offset) for shard in made.shards)
    output.say(
        f"backup of {words.size(size)} in {directory}, as of {as_time(made.created_ms)} (offset {offsets})"
    )
    _say_missing(made.missing_blobs, lost, "were missing or damaged in the space already")
    _fail_if(lost)


def restore(
    ctx: typer.Context,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A backup.")],
    to: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="As it was then: an ISO 8601 time, or `2h ago`.", show_default=False
        ),
    ] = None,
    replicas: ReplicasOption = None,
    regions: RegionsOption = None,
    blobs: BlobsOption = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a space at --url, which must hold none, from a backup; all checksums are compared first.

    A backup of a folder can be restored on a cluster, and one of a cluster in a folder. On a cluster it takes a credential
    that may create streams. Session tokens of the old space are refused by the new one. It appears whole or not at all.
    Exit code 1 when the backup lacks blobs that nothing computes again by itself: the space is there without them.
    JSON: {url, offsets, missing_blobs, lost}.
    """
    from onefold.db import target_of
    from onefold.doctor.lost_blobs import what_is_lost
    from onefold.errors import InvalidArgument
    from onefold.log.jetstream.client.address import is_nats, parse_address
    from onefold.space.open_shard import directory_of

    where = place(ctx, url, as_json)
    to_ms = None if to is None else int(keys.parse_time(to, "--to").timestamp() * 1000)
    target = target_of(where.url)
    if target.startswith("memory:"):
        raise InvalidArgument("a space in memory cannot be restored into. Give a folder: --url DIR")
    if is_nats(target):
        from onefold.cluster.restore_cluster import restore_space

        place_ = parse_address(target).url
        _, made = restore_space(
            directory,
            target,
            to_ms=to_ms,
            replicas=replicas,
            blobs=blobs,
            regions=region_names(regions) or (),
            lost=what_is_lost,
        )
    else:
        from onefold.backup.backup import restore as make
        from onefold.folds import blob_tables, folds

        for name, given in (("--replicas", replicas), ("--regions", regions), ("--blobs", blobs)):
            if given is not None:
                raise typer.BadParameter("it is for a space on a cluster (nats://…)", param_hint=name)
        folder = directory_of(target)
        place_ = str(folder)
        made = make(directory, folder, folds, to_ms=to_ms, blob_tables=blob_tables(), lost=what_is_lost)
    if where.json:
        shown = {"url": place_, "offsets": list(made.offsets)}
        output.emit(shown | {"missing_blobs": list(made.missing_blobs), "lost": list(made.lost)})
        _fail_if(made.lost)
        return
    output.say(f"restored {place_} (offset {', '.join(map(str, made.offsets))})")
    _say_missing(made.missing_blobs, made.lost, "are not in the backup")
    if is_nats(target):
        output.say(
            f"next: onefold node --url {shlex.quote(place_)} on each machine, with a node's credential"
        )
    _fail_if(made.lost)


def _fetching(db: Database) -> Callable[[str, Path], bool]:
    """How a backup has a blob of this space."""
    from onefold.compute.blobs.store import BlobMissing

    def fetch(name: str, to: Path) -> bool:
        try:
            shutil.copyfile(db._engine.blobs.open_path(name), to)
        except (BlobMissing, FileNotFoundError):
            return False
        return True

    return fetch


def _say_missing(blobs: tuple[str, ...], lost: tuple[str, ...], what: str) -> None:
    """``lost``: what nothing computes again by itself."""
    if not blobs:
        return
    if not lost:
        output.say(f"{len(blobs)} blobs {what}: results of batch jobs, which are computed again when needed")
        return
    output.say(
        f"{len(blobs)} blobs {what}. All else is there; of these, results of batch jobs are computed again"
    )
    for one in lost:
        output.say(f"  {one}")
    output.say("an older backup may have them: keep it")


def _fail_if(lost: tuple[str, ...]) -> None:
    if lost:
        raise typer.Exit(1)


def export(
    ctx: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE", help="A new file; - is stdout.")],
    region: RegionOption = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write maps, queues, streams, and the available collections of a region as JSON lines, as of one instant.

    Locks, consumer groups and the tables of jobs are not in it (a backup has everything).
    JSON: {items, messages, records, counters, elements}; on stderr when FILE is -.
    """
    from onefold.cli.collections.available import choose_region
    from onefold.state.export.exporting import export as write

    where = place(ctx, url, as_json, region)
    with where.reading() as db, _writing(file) as out:
        counts = write(db._state, out.write, db._available if choose_region(db) else None)
    if where.json and file != "-":
        output.emit(counts._asdict())
    else:
        output.say(
            f"exported {counts.items:,} items, {counts.messages:,} messages, {counts.records:,} records"
            + _of_region(counts.counters, counts.elements)
        )


def _of_region(counters: int, elements: int) -> str:
    """Counts of collections for every region are shown only where there are some."""
    return (f", {counters:,} counters" if counters else "") + (
        f", {elements:,} elements of sets" if elements else ""
    )


@contextlib.contextmanager
def _writing(file: str) -> Iterator[IO[str]]:
    """Where to write; a file appears whole or not at all."""
    from onefold.errors import SpaceError
    from onefold.files import whole_file

    if file == "-":
        sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
        yield sys.stdout
        sys.stdout.flush()
        return
    target = Path(file)
    if target.exists():
        raise SpaceError(f"{target} is there already. Remove it, or give another name")
    try:
        with whole_file(target) as half_made, half_made.open("x", encoding="utf-8", newline="\n") as out:
            yield out
    except OSError as error:
        raise SpaceError(f"{target} cannot be written: {error.strerror}. Nothing is left of it") from error


def import_(
    ctx: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE", help="Made by `onefold export`; - is stdin.")],
    on_conflict: Annotated[
        str,
        typer.Option(
            metavar="error|replace|skip",
            help="When a key is there already: stop before anything is written, "
            "replace it, or skip the line.",
        ),
    ] = "error",
    region: RegionOption = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put what was exported into a space; makes the space if there is none.

    The whole file is checked before anything is written. Cut short, it can be run again with `--on-conflict replace`:
    messages and records are not added twice. Available collections become new writes of a region; of values side by side `error`
    refuses the file, and the others take the latest. JSON: {items, messages, records, skipped, ended, counters, elements}.
    """
    from onefold.state.export.importing import check_file, import_file
    from onefold.state.export.region_writing import Target

    def target(db: Database) -> Target:
        from onefold.cli.collections.available import choose_region

        return Target(lambda: db._available, bool(choose_region(db)))

    where = place(ctx, url, as_json, region)
    if on_conflict not in ("error", "replace", "skip"):
        raise typer.BadParameter("must be error, replace or skip", param_hint="--on-conflict")
    chosen: OnConflict = on_conflict  # type: ignore[assignment]  # checked above
    with _reading(file) as lines:
        where.rehearse(lambda new: check_file(new._state, lines, chosen, target(new)))
        with where.open(create=True) as db:
            done = import_file(db._state, lines, chosen, target(db))
    if where.json:
        output.emit(done._asdict())
        return
    left = f"; {done.skipped:,} were there" if done.skipped else ""
    left += f"; {done.ended:,} had ended" if done.ended else ""
    more = _of_region(done.counters, done.elements)
    output.say(
        f"imported {done.items:,} items, {done.messages:,} messages, {done.records:,} records{more}{left}"
    )


@contextlib.contextmanager
def _reading(file: str) -> Iterator[IO[str]]:
    """A file that can be read twice."""
    from onefold.errors import SpaceError

    if file != "-":
        try:
            with Path(file).open(encoding="utf-8", newline="\n") as lines:
                yield lines
        except OSError as error:
            raise SpaceError(f"{file} cannot be read: {error.strerror}. Check the path") from error
        return
    with tempfile.TemporaryFile("w+", encoding="utf-8", newline="\n") as lines:
        sys.stdin.reconfigure(encoding="utf-8", newline="\n")  # type: ignore[union-attr]
        for line in sys.stdin:
            lines.write(line)
        yield lines
