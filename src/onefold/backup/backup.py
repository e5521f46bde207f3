"""Backups: a consistent copy of all shards at one instant, taken while programs continue writing; and spaces made from them.

What is copied is what a read transaction on each shard's file shows, all of one instant (see ``cuts``), so no record is in the
copy of one shard that followed a record missing in another. The copying itself holds no lock. Of a cluster it is this machine's
replica that is copied, and the log from its servers as long as nothing of it was trimmed: the rest would lead nowhere.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, NamedTuple

import apsw

from onefold._version import __version__
from onefold.backup.atomic_folder import whole_folder
from onefold.backup.manifest import (
    FileCopy,
    Manifest,
    ShardCopy,
    describe,
    read_manifest,
    verify_files,
    write_manifest,
)
from onefold.env import SYSTEM, Env
from onefold.errors import InvalidArgument, LogCorrupt, SpaceError, TooOld
from onefold.log.api import Log
from onefold.log.sqlite.engine import LOG_SCHEMA, entry_crc, note_untrusted
from onefold.log.sqlite.file import SqliteFile
from onefold.shard.api import Shard
from onefold.shard.embedded import EmbeddedShard
from onefold.shard.log_keep import write_log_keep
from onefold.shard.replica.shard import LocalReplica
from onefold.space import cuts
from onefold.space.late_shard import LateShard
from onefold.space.log_prefix import as_time
from onefold.space.open_space import Folds, open_shards
from onefold.store.formats import copy_in, copy_out
from onefold.store.snapshot import state_digest
from onefold.store.tables import STATE_TABLES, STORE_SCHEMA, Head, SqlView, Tables, read_head

COPY_APPLICATION_ID = 0x4F4E4642
_LOG_TABLES = ("log", "log_first", "log_untrusted")
_BLOBS = "blobs"
_TRIES = 3
_READ_BYTES: Final = 8 << 20
_Shard = EmbeddedShard | LocalReplica
_CANNOT_WRITE = (OSError, apsw.FullError, apsw.CantOpenError, apsw.ReadOnlyError)


class Restored(NamedTuple):
    """What a restored space holds."""

    manifest: Manifest
    offsets: tuple[int, ...]
    """The last record of each shard."""
    missing_blobs: tuple[str, ...]
    """Blobs that the restored state names and the backup has not; tasks of batch jobs run again when needed."""
    lost: tuple[str, ...] = ()
    """What ``lost`` said of them."""


Lost = Callable[[Sequence[Shard], Sequence[str]], tuple[str, ...]]
"""Says of blobs that are not there what nothing computes again by itself."""
Fetch = Callable[[str, Path], bool]
"""Writes the blob of this name to a new file; False when it cannot be had."""


def backup(
    shards: Sequence[Shard],
    target: str | Path,
    *,
    blob_tables: Sequence[str] = (),
    fetch: Fetch | None = None,
) -> Manifest:
    """Copy the open shards of a space, log included, to the folder ``target``, which must be new or empty.

    The shards are of a folder, or of a cluster with a replica here. ``blob_tables``: tables of the shards whose keys are
    names of blobs; those are copied too. ``fetch``: how to have one (default: from the folder ``blobs`` of the space's). The
    backup appears when all is written and synced, or not at all. Raises SpaceError (no such place, nothing here to copy),
    LogCorrupt (the space is damaged), Timeout, Unavailable (the cluster).
    """
    target = Path(target)
    shards = [shard.replica if isinstance(shard, LateShard) else shard for shard in shards]
    local = [shard for shard in shards if isinstance(shard, EmbeddedShard | LocalReplica)]
    if len(local) != len(shards):
        raise SpaceError(
            f"{shards[0].url} has no copy on this machine. Connect with replicas='local', or keep its content with "
            "`onefold export`"
        )
    fetch = fetch or _from_folder(local[0])
    for left in reversed(range(_TRIES)):
        with _writing("backup", target), whole_folder(target, "the backup") as folder:
            copied = _copy_blobs(fetch, folder, _named_now(local, blob_tables), set())
            created_ms, copies, named = _copy_shards(local, folder, blob_tables)
            copied |= _copy_blobs(fetch, folder, named, copied)
            missing = sorted(set(named) - copied)
            if left and set(missing) - set(_named_now(local, blob_tables)):
                raise _Swept
            files = {copy.file: describe(folder, copy.file) for copy in copies}
            files |= {_blob_file(name): _blob_copy(folder, name) for name in copied & set(named)}
            for name in copied - set(named):
                (folder / _blob_file(name)).unlink()
            manifest = Manifest(
                incarnation=local[0].incarnation,
                created_ms=created_ms,
                program=__version__,
                shards=tuple(copies),
                files=files,
                missing_blobs=tuple(missing),
                log_keep=local[0].log_keep.bytes if isinstance(local[0], EmbeddedShard) else None,
            )
            write_manifest(folder, manifest)
            return manifest
    raise AssertionError("the last try keeps no blob back")


class _Swept(Exception):
    """A blob that the cut names was removed after it (nothing names it any more): another cut is taken."""


@contextlib.contextmanager
def _writing(what: str, target: Path) -> Iterator[None]:
    try:
        yield
    except _Swept:
        pass
    except _CANNOT_WRITE as error:
        raise SpaceError(f"the {what} {target} cannot be written: {error}. Nothing is left of it") from error


# -- the copy of the shards


class _Pin(NamedTuple):
    con: apsw.Connection
    head: Head
    wall_ms: int


def _copy_shards(
    shards: Sequence[_Shard], folder: Path, blob_tables: Sequence[str]
) -> tuple[int, list[ShardCopy], list[str]]:
    """When the cut was made, what was copied, and the blobs that the shards name there."""
    with ExitStack() as stack:
        connections = {shard: stack.enter_context(shard.exporting()) for shard in shards}
        names = [f"shard-{number:04d}.db" for number in range(len(shards))]
        for con, name in zip(connections.values(), names, strict=True):
            _attach_new(con, folder / name)

        @contextlib.contextmanager
        def pin(space: Any) -> Iterator[_Pin]:
            con = connections[space]
            wall_ms = space.env.wall_ms()
            con.execute("BEGIN")
            try:
                yield _Pin(con, read_head(con), wall_ms)  # the first read pins what is shown
            finally:
                if con.in_transaction:
                    con.execute("ROLLBACK")

        with cuts.cut(shards, pin, lambda pinned: pinned.head.applied) as pins:
            named = sorted({name for pinned in pins for name in _named(pinned.con, blob_tables)})
            copies = []
            for shard, pinned, name in zip(shards, pins, names, strict=True):
                copies.append(_copy_out(shard, pinned, name))
                pinned.con.execute("DETACH copy")
        return pins[0].wall_ms, copies, named


def _attach_new(con: apsw.Connection, path: Path) -> None:
    path.touch()
    con.execute("ATTACH ? AS copy", (str(path),))
    con.execute("PRAGMA copy.journal_mode=OFF; PRAGMA copy.synchronous=OFF")
    con.execute(f"PRAGMA copy.application_id={COPY_APPLICATION_ID}; PRAGMA copy.user_version=1")


def _copy_out(shard: _Shard, pinned: _Pin, name: str) -> ShardCopy:
    con, head = pinned.con, pinned.head
    if isinstance(shard, EmbeddedShard):
        for table in _LOG_TABLES:
            if _has(con, "main", table):
                con.execute(f"CREATE TABLE copy.{table} AS SELECT * FROM main.{table}")
    else:
        _copy_log(con, shard.log, head.applied)
    copy_out(con, "copy")
    last = con.execute("SELECT max(offset) FROM copy.log").get
    first = con.execute("SELECT first FROM copy.log_first").get
    if not isinstance(first, int) or (last or first - 1) != head.applied:
        raise LogCorrupt(f"the log ends at {last}, but {head.applied} was applied. Run `onefold doctor`")
    expected = first
    for offset, ms, crc, data in con.execute("SELECT offset, ms, crc, data FROM copy.log ORDER BY rowid"):
        if offset != expected or not isinstance(data, bytes) or entry_crc(offset, ms, data) != crc:
            raise LogCorrupt(
                f"the record at offset {expected} is damaged or missing, so this would be no good backup. "
                "Restore the space from an older one"
            )
        expected += 1
    digest = state_digest(con, _kept(con))
    con.execute("COMMIT")
    return ShardCopy(name, head.applied, first, head.now_ms, head.digest.hex(), digest)


def _copy_log(con: apsw.Connection, log: Log, applied: int) -> None:
    """The records that lead to what is applied, in the tables of an embedded log; none when they are not all there any more."""
    con.execute("CREATE TABLE copy.log(offset, ms, crc, data)")
    con.execute("CREATE TABLE copy.log_first(id, first)")
    con.execute("CREATE TABLE copy.log_untrusted(first INTEGER PRIMARY KEY, last)")
    following = 1
    try:
        while log.first == 1 and following <= applied:
            entries = [entry for entry in log.read(following, _READ_BYTES) if entry.offset <= applied]
            con.executemany(
                "INSERT INTO copy.log VALUES(?, ?, ?, ?)",
                (
                    (
                        entry.offset,
                        entry.engine_ms,
                        entry_crc(entry.offset, entry.engine_ms, entry.data),
                        entry.data,
                    )
                    for entry in entries
                ),
            )
            note_untrusted(con, "copy", [entry.offset for entry in entries if not entry.trusted])
            following += len(entries)
    except TooOld:
        pass  # it was trimmed meanwhile
    if following <= applied:
        con.execute("DELETE FROM copy.log; DELETE FROM copy.log_untrusted")
    con.execute("INSERT INTO copy.log_first VALUES(1, ?)", (1 if following > applied else applied + 1,))


def _has(con: apsw.Connection, schema: str, table: str) -> bool:
    """Whether there is such a table: files of earlier releases lack some."""
    sql = f"SELECT EXISTS(SELECT 1 FROM {schema}.sqlite_schema WHERE type = 'table' AND name = ?)"
    return bool(con.execute(sql, (table,)).get)


def _kept(con: apsw.Connection) -> frozenset[str]:
    """The tables whose old versions are kept, as the file itself says."""
    rows = con.execute("SELECT name FROM main.tables WHERE since IS NOT NULL").fetchall()
    return frozenset(str(name) for (name,) in rows)


# -- blobs


def _from_folder(shard: _Shard) -> Fetch:
    if shard.directory is None or not isinstance(shard, EmbeddedShard):
        raise SpaceError(
            f"the blobs of {shard.url} are not in a folder of this machine; say how to fetch them"
        )
    root = shard.directory / _BLOBS

    def fetch(name: str, to: Path) -> bool:
        try:
            shutil.copyfile(root / name[:2] / name, to)
        except FileNotFoundError:
            return False
        return True

    return fetch


def _named_now(shards: Sequence[Shard], tables: Sequence[str]) -> list[str]:
    found: set[str] = set()
    for shard in shards:
        with shard.view() as view:
            found |= {key.decode() for table in tables for key, _ in view.scan(table)}
    return sorted(found)


def _named(con: apsw.Connection, tables: Sequence[str]) -> Iterator[str]:
    view = SqlView(con, Tables())
    return (key.decode() for table in tables for key, _ in view.scan(table))


def _blob_file(name: str) -> str:
    return f"{_BLOBS}/{name[:2]}/{name}"


def _copy_blobs(fetch: Fetch, folder: Path, names: Iterable[str], have: set[str]) -> set[str]:
    """Copy these blobs; those that were there and whole. Never a hard link: a backup shares no disk block with the space."""
    copied = set()
    for name in names:
        if name in have:
            continue
        to = folder / _blob_file(name)
        to.parent.mkdir(parents=True, exist_ok=True)
        # A blob's name is the checksum of its content.
        if fetch(name, to) and describe(folder, _blob_file(name)).blake2b == name:
            copied.add(name)
        else:
            to.unlink(missing_ok=True)
    return copied


def _blob_copy(folder: Path, name: str) -> FileCopy:
    """A blob's checksum is its name, which was compared when it was copied."""
    return FileCopy((folder / _blob_file(name)).stat().st_size, name)


# -- restoring


def restore(
    source: str | Path,
    directory: str | Path,
    folds: Folds,
    *,
    to_ms: int | None = None,
    blob_tables: Sequence[str] = (),
    lost: Lost | None = None,
    env: Env = SYSTEM,
) -> Restored:
    """Make a space in ``directory``, which must be new or empty, from the backup in ``source``.

    ``to_ms``: as it was at that moment (milliseconds since 1970): each log ends with the last record whose fold time is not
    beyond it, and the state is folded again from the log. ``lost``: asked about blobs that the backup has not. The space is a
    new incarnation: tokens of the old one are refused, since what came after the cut is not in it. It appears whole or not at
    all.

    Raises SpaceError (no backup, a newer format, ``directory`` is taken), LogCorrupt (the backup is damaged), TooOld (the log
    does not go back far enough for ``to_ms``), InvalidArgument (a moment that is not in the backup).
    """
    source, directory = Path(source), Path(directory)
    manifest = read_manifest(source)
    verify_files(source, manifest)
    cuts = None if to_ms is None else [_cut(source, manifest, copy, to_ms) for copy in manifest.shards]
    if cuts is not None and to_ms is not None and not any(cuts):
        raise InvalidArgument(
            f"{as_time(to_ms)} is before the first record of this backup. Choose a later moment"
        )
    with _writing("space", directory), whole_folder(directory, "the restored space") as folder:
        places = _make(folder, folds, len(manifest.shards), env)
        for number, (place, copy) in enumerate(zip(places, manifest.shards, strict=True)):
            _fill(place, source / copy.file, copy, None if cuts is None else cuts[number], env, manifest)
        for name in manifest.files:
            if name.startswith(f"{_BLOBS}/"):
                to = places[0] / name
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source / name, to)
        return _look(folder, folds, manifest, blob_tables, lost, env)
    raise AssertionError("nothing is kept back when a space is made")


def _make(folder: Path, folds: Folds, shard_count: int, env: Env) -> list[Path]:
    shards = open_shards(folder, folds, shards=shard_count, env=env)
    try:
        places = [shard.directory for shard in shards]
    finally:
        for shard in shards:
            shard.close()
    return [place for place in places if place is not None]


def _cut(source: Path, manifest: Manifest, copy: ShardCopy, to_ms: int) -> int:
    """Where this shard's log ends for that moment."""
    if to_ms > manifest.created_ms:
        raise InvalidArgument(
            f"the backup was made at {as_time(manifest.created_ms)}; it knows nothing of {as_time(to_ms)}. "
            "Use a later backup, or restore all of this one (without a time)"
        )
    if copy.first > 1:
        raise TooOld(
            f"the log in this backup begins at offset {copy.first} (it was trimmed, or began from a snapshot), so an earlier "
            "state cannot be folded again. Restore all of the backup (without a time), or use an older one"
        )
    con = apsw.Connection(str(source / copy.file), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        found = con.execute("SELECT min(offset) FROM log WHERE ms > ?", (to_ms,)).get
    finally:
        con.close()
    return copy.offset if found is None else int(str(found)) - 1


def _fill(place: Path, file: Path, copy: ShardCopy, cut: int | None, env: Env, manifest: Manifest) -> None:
    """Put the copied log and state into the empty space at ``place``; with ``cut`` the log up to there alone."""
    made = SqliteFile(place, (*LOG_SCHEMA, *STORE_SCHEMA), env, create=False)
    try:
        if manifest.log_keep is not None:
            write_log_keep(made, manifest.log_keep)
        with made.maintaining() as con:
            con.execute("ATTACH ? AS copy", (str(file.absolute()),))
            try:
                if con.execute("PRAGMA copy.application_id").get != COPY_APPLICATION_ID:
                    raise LogCorrupt(f"{file} is not a shard's copy. Use another backup")
                con.execute("BEGIN IMMEDIATE")
                for table in _LOG_TABLES:
                    con.execute(f"DELETE FROM main.{table}")
                    if _has(con, "copy", table):
                        con.execute(f"INSERT INTO main.{table} SELECT * FROM copy.{table}")
                if cut is None:
                    copy_in(con, "copy")
                    if state_digest(con, _kept(con)) != copy.state_digest:
                        raise LogCorrupt(f"the state in {file} is not what was copied. Use another backup")
                else:
                    con.execute("DELETE FROM main.log WHERE offset > ?", (cut,))
                    for table in STATE_TABLES:
                        con.execute(f"DELETE FROM main.{table}")
                    for statement in STORE_SCHEMA:
                        con.execute(statement)  # the empty state's own rows
                con.execute("COMMIT")
            finally:
                if con.in_transaction:
                    con.execute("ROLLBACK")
                con.execute("DETACH copy")
            con.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
    finally:
        made.close()


def _look(
    folder: Path,
    folds: Folds,
    manifest: Manifest,
    blob_tables: Sequence[str],
    lost: Lost | None,
    env: Env,
) -> Restored:
    """Open what was made (which folds what is not folded yet), and check it."""
    shards = open_shards(folder, folds, env=env, create=False)
    try:
        local = [shard for shard in shards if isinstance(shard, EmbeddedShard)]
        for shard in local:
            shard.verify()
        named = set(_named_now(local, blob_tables))
        there = {Path(name).name for name in manifest.files}
        offsets = tuple(shard.applied for shard in local)
        missing = tuple(sorted(named - there))
        said = lost(local, missing) if lost is not None and missing else ()
    finally:
        for opened in shards:
            opened.close()
    return Restored(manifest, offsets, missing, said)
