"""What ``onefold doctor`` looks at in the files of an embedded space: the disk, the log, the state, and whether they agree.

Nothing is repaired here. Every check says what it saw and, when that is not well, what to do.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from onefold import config
from onefold.compute.blobs.store import BlobStore, file_blob_name
from onefold.compute.live.garbage import LiveGarbage
from onefold.errors import LogCorrupt, OnefoldError
from onefold.fold.api import Fold
from onefold.folds import BlobTable
from onefold.log.sqlite.file import FORMAT_UNCHECKED
from onefold.machine import members
from onefold.shard.api import Shard
from onefold.shard.embedded import EmbeddedShard
from onefold.space.log_prefix import as_time
from onefold.space.open_space import Folds
from onefold.state.core.client import StateClient
from onefold.store import exactly_once
from onefold.store.replica import next_digest, read_digests
from onefold.store.snapshot import state_digest
from onefold.store.tables import read_head

Status = Literal["ok", "warn", "problem", "skipped"]
Lost = Literal["missing", "damaged"]
_READ_BYTES = 8 << 20
_DAMAGE_SHOWN = 3
_RECORDS_SHOWN = 5


class Check(NamedTuple):
    """One thing that was looked at."""

    name: str
    status: Status
    found: str
    advice: str = ""
    """What to do; empty when it is well."""


def check_space(
    shards: Sequence[Shard],
    folds: Folds,
    *,
    deep: bool = False,
    blob_tables: Sequence[BlobTable] = (),
    fix: bool = False,
) -> Iterator[Check]:
    """Look at every shard, then at what the shards share. Checks come as they are done.

    ``deep``: fold again also logs over ``config.DOCTOR_REPLAY_BYTES_MAX``, and compare all blobs. ``blob_tables``: tables of the
    shards whose keys are names of blobs; ``fix`` removes blobs that none of them names and that are older than
    ``config.ORPHAN_BLOB_AGE_S``.
    """
    local = [shard for shard in shards if isinstance(shard, EmbeddedShard)]
    if len(local) != len(shards):
        yield Check("files", "skipped", f"{shards[0].url} keeps nothing on a disk of this machine")
        return
    for number, shard in enumerate(local):
        yield from check_shard(shard, number, lambda number=number: folds(number, len(local)), deep=deep)  # type: ignore[misc]
    yield _processes(local[0])
    yield _disk(local[0])
    yield readable("size", lambda: _size(local))
    try:
        yield from check_blobs(local, blob_tables, fix=fix, deep=deep)
    except OnefoldError as error:
        yield Check("blobs", "skipped", f"cannot be read: {error}".rstrip("."))


def check_shard(
    shard: EmbeddedShard, number: int, folds: Callable[[], Sequence[Fold]], *, deep: bool
) -> Iterator[Check]:
    """One shard: its file, its log, its state, and whether they agree."""
    in_shard = f" of shard {number}" if number else ""
    whole = True
    for name, look in (
        ("file", _integrity),
        ("log", _log),
        ("refused", _refused),
        ("clients", _clients),
        ("time", _time),
    ):
        check = _guarded(name + in_shard, lambda look=look: look(shard))  # type: ignore[misc]
        whole = whole and check.status != "problem"
        yield check
    if whole:
        yield _guarded("state" + in_shard, lambda: _rebuilt(shard, folds(), deep=deep))
    else:
        yield Check(
            "state" + in_shard, "skipped", "not compared with the log, which is damaged or cannot be read"
        )


def _guarded(name: str, look: Callable[[], Check]) -> Check:
    try:
        return look()._replace(name=name)
    except OnefoldError as error:
        return Check(name, "problem", str(error).rstrip("."), _RESTORE)


def readable(name: str, look: Callable[[], Check]) -> Check:
    """The check, or that it cannot be made. (The checks of the files say why.)"""
    try:
        return look()
    except OnefoldError as error:
        return Check(name, "skipped", f"cannot be read: {error}".rstrip("."))


_RESTORE = "Stop all programs, keep a copy of the folder, and restore the last backup into another (`onefold restore`)"


def _integrity(shard: EmbeddedShard) -> Check:
    with shard.log.file.reading() as con:
        found = [str(row[0]) for row in con.execute(f"PRAGMA integrity_check({_DAMAGE_SHOWN})").fetchall()]
        format_ = con.execute("PRAGMA user_version").get
    if found != ["ok"]:
        return Check("", "problem", f"{shard.log.file.path} is damaged: {'; '.join(found)}", _RESTORE)
    if format_ in (1, FORMAT_UNCHECKED):
        return Check(
            "",
            "ok",
            f"{shard.log.file.path} is whole (its pages have no checksums: an older program made it; a restored backup has them)",
        )
    return Check("", "ok", f"{shard.log.file.path} is whole")


def _log(shard: EmbeddedShard) -> Check:
    """Read every record, and compare the chain of digests with what was noted when the records were applied."""
    with shard.log.file.reading() as con:
        con.execute("BEGIN")
        head, first = read_head(con), shard.log.first
        noted = read_digests(con)
    noted[head.applied] = head.digest
    digest = b"" if first == 1 else noted.get(first - 1)
    offset, compared = first - 1, first - 1
    while offset < head.applied:
        entries = shard.log.read(offset + 1, _READ_BYTES)
        if not entries:
            raise LogCorrupt(f"the log ends at offset {offset}, but {head.applied} was applied")
        for entry in entries[: head.applied - offset]:
            offset = entry.offset
            digest = None if digest is None else next_digest(digest, entry.data)
            known = noted.get(offset)
            if digest is None:
                digest = known  # where it begins is gone: compared from the first note on
            elif known is not None:
                if known != digest:
                    raise LogCorrupt(f"the records up to offset {offset} are not those that were applied")
                compared = offset
    kept = f"offsets {first} to {head.applied}" if first <= head.applied else "empty"
    digests = "" if compared == head.applied else f"; compared with what was applied up to offset {compared}"
    return Check("", "ok", f"all records are readable ({kept}){digests}")


def _refused(shard: EmbeddedShard) -> Check:
    with shard.log.file.reading() as con:
        head = read_head(con)
        last = con.execute("SELECT offset, reason FROM refused ORDER BY offset DESC LIMIT 1").fetchone()
    if not head.refused:
        return Check("", "ok", "no record was refused")
    where = "" if last is None else f", the last at offset {last[0]} ({last[1]})"
    return Check(
        "",
        "warn",
        f"{head.refused} records could not be read by any program and were skipped{where}",
        "Find out what writes to the log in addition to Onefold",
    )


def _clients(shard: EmbeddedShard) -> Check:
    with shard.log.file.reading() as con:
        count = exactly_once.count(con)
    if count <= 2 * config.CLIENTS_KEPT_MAX:
        return Check("", "ok", f"{count} clients are remembered")
    return Check(
        "",
        "warn",
        f"{count} clients are remembered, more than {config.CLIENTS_KEPT_MAX}",
        "Keep connections open rather than connect for each operation; the oldest are forgotten by and by",
    )


def _time(shard: EmbeddedShard) -> Check:
    with shard.log.file.reading() as con:
        head = read_head(con)
    ahead_s = (head.now_ms - shard.env.wall_ms()) / 1000
    if ahead_s <= config.FOLD_TIME_AHEAD_S:
        return Check("", "ok", f"the log's time is {as_time(head.now_ms) if head.now_ms else 'not begun'}")
    return Check(
        "",
        "warn",
        f"the log's time is {ahead_s:.0f} s ahead of this machine's clock: a clock was ahead when something was written",
        "Set the clock right. Until it has caught up, lifetimes and delays that are set now end so much later, and those set "
        "before ended so much earlier",
    )


def _rebuilt(shard: EmbeddedShard, folds: Sequence[Fold], *, deep: bool) -> Check:
    """Fold the whole log again into a file of its own, and compare."""
    with shard.log.file.reading() as con:
        size = int(str(con.execute("SELECT coalesce(sum(length(data)), 0) FROM log").get))
    first = shard.log.first
    if first > 1:
        return Check(
            "",
            "skipped",
            f"not folded again: the log begins at offset {first} (trimmed, or restored from a snapshot)",
        )
    if size > config.DOCTOR_REPLAY_BYTES_MAX and not deep:
        return Check("", "skipped", f"not folded again: the log has {size / 1e6:.0f} MB (use --deep)")
    history = frozenset[str]().union(*(fold.history for fold in folds))
    with shard.log.file.reading() as con:
        con.execute("BEGIN")
        applied, expected = read_head(con).applied, state_digest(con, history)
    with tempfile.TemporaryDirectory(prefix="onefold-doctor-") as folder:
        again = EmbeddedShard(Path(folder) / "space", folds, shard.env)
        try:
            offset = 0
            while offset < applied:
                entries = shard.log.read(offset + 1, _READ_BYTES)[: applied - offset]
                with again.log.appending() as con:
                    for entry in entries:
                        again.log.append_in(
                            con, entry.data, entry.engine_ms, entry.offset, trusted=entry.trusted
                        )
                again.catch_up()
                offset = entries[-1].offset
            found = again.state_digest()
        finally:
            again.close()
    if found == expected:
        return Check("", "ok", f"the state is what the log gives (folded again up to offset {applied})")
    return Check(
        "",
        "problem",
        f"the state at offset {applied} is not what the log gives when it is folded again ({expected} and {found})",
        "Make a backup; `onefold restore DIR --to TIME` folds the state again from the log. Please report this: it is a bug, "
        "or the disk or memory of this machine is bad",
    )


# -- what the shards share


def _processes(shard: EmbeddedShard) -> Check:
    notes = members.notes(shard.directory / "members")
    others = len([member for member in notes if member != shard.member])
    waiting = len([path for path in (shard.directory / "wake").glob("*") if not path.name.startswith(".")])
    return Check(
        "processes",
        "ok",
        f"{others} others have the space open, {waiting} wait for records",
    )


def _disk(shard: EmbeddedShard) -> Check:
    usage = shutil.disk_usage(shard.directory)
    found = f"{usage.free / 1e9:.1f} GB of {usage.total / 1e9:.1f} GB are free"
    advice = "Free some space: when the disk is full, writes fail (nothing is lost)"
    if usage.free < config.DISK_FREE_BYTES_MIN:
        return Check("disk", "problem", found, advice)
    if usage.free < usage.total * config.DISK_FREE_SHARE_MIN:
        return Check("disk", "warn", found, advice)
    return Check("disk", "ok", found)


def _size(shards: Sequence[EmbeddedShard]) -> Check:
    log = state = 0
    for shard in shards:
        with shard.log.file.reading() as con:
            log += int(str(con.execute("SELECT coalesce(sum(length(data)), 0) FROM log").get))
            state += int(str(con.execute("SELECT coalesce(sum(length(k) + length(v)), 0) FROM kv").get))
    found = f"the log has {log / 1e6:.1f} MB, the state {state / 1e6:.1f} MB"
    if log <= config.LOG_BYTES_LARGE or log <= 10 * state:
        return Check("size", "ok", found)
    return Check(
        "size",
        "warn",
        found,
        'It is kept for db.at and `onefold restore --to`. Keep less of it with onefold.connect(path, log_keep="1GB")',
    )


def lost_blobs(
    needed: int,
    lost: Mapping[str, Lost],
    live: Collection[str],
    shards: Sequence[Shard],
    not_compared: str = "",
) -> Check:
    """What it means that blobs are lost. ``needed``: how many there should be. ``live``: those of the lost ones that no task
    makes again. ``not_compared``: what was not looked at."""
    if live:
        from onefold.doctor.lost_blobs import records_of

        records = records_of(shards, live)
        shown = records[:_RECORDS_SHOWN]
        if len(records) > len(shown):
            shown.append(f"those of {len(records) - len(shown)} more blobs")
        example = sorted(live)[0]
        what = "; with records of " + ", ".join(shown) if shown else ""
        return Check(
            "blobs",
            "problem",
            f"{len(live)} blobs with the state or the results of live jobs, or with large records of streams, are missing or "
            f"damaged, for example {example[:16]}… ({lost[example]}){what}",
            "Restore a backup that has them: nothing can compute records again. What else live jobs lack, job.replay() and then "
            "run.swap() compute again from their streams",
        )
    if lost:
        example = sorted(lost)[0]
        return Check(
            "blobs",
            "warn",
            f"{len(lost)} of {needed} results of jobs are missing or damaged, for example {example[:16]}… ({lost[example]})",
            "Remove the files of damaged ones; then resume or start the job again: tasks that made them run again by themselves",
        )
    return Check("blobs", "ok", f"all {needed} blobs that the state names are there{not_compared}")


def _damaged(files: Mapping[str, Path], live: Collection[str], *, deep: bool) -> tuple[dict[str, Lost], str]:
    """Those whose content is not what their name says, and what was not compared, in words. First those in ``live``."""
    found: dict[str, Lost] = {}
    left, skipped, skipped_bytes = config.DOCTOR_BLOBS_BYTES_MAX, 0, 0
    for name, path in sorted(files.items(), key=lambda item: (item[0] not in live, item[0])):
        with contextlib.suppress(FileNotFoundError):  # swept meanwhile
            size = path.stat().st_size
            if size > left and not deep:
                skipped, skipped_bytes = skipped + 1, skipped_bytes + size
                continue
            left -= size
            if file_blob_name(path) != name:
                found[name] = "damaged"
    if skipped:
        return (
            found,
            f"; the content of {skipped} ({skipped_bytes / 1e6:.0f} MB) was not compared (use --deep)",
        )
    return found, ", and whole"


def check_blobs(
    shards: Sequence[EmbeddedShard], tables: Sequence[BlobTable], *, fix: bool, deep: bool = False
) -> Iterator[Check]:
    """Whether every blob that the state names is there and whole, and whether there are others. ``deep``: compare the content of
    all, also of more than ``config.DOCTOR_BLOBS_BYTES_MAX``."""
    folder = shards[0].directory / "blobs"
    # Files first: one that is named by a record was there before the record.
    files = {path.name: path for path in folder.glob("??/*") if path.is_file()}
    named: set[str] = set()
    needed: dict[str, bool] = {}
    """What is not only waiting to be swept -> whether shared state names it."""
    for shard in shards:
        with shard.view() as view:
            for table in tables:
                found = [key.decode() for key, _ in view.scan(table.name)]
                named.update(found)
                if not table.garbage:
                    needed |= dict.fromkeys(found, table.live)
    missing = [
        name for name in sorted(needed.keys() - files.keys()) if not (folder / name[:2] / name).exists()
    ]
    there = {name: path for name, path in files.items() if name in needed}
    lost, not_compared = _damaged(there, {name for name, live in needed.items() if live}, deep=deep)
    lost |= dict.fromkeys(missing, "missing")
    yield lost_blobs(len(needed), lost, {name for name in lost if needed[name]}, shards, not_compared)
    oldest = time.time() - config.ORPHAN_BLOB_AGE_S
    orphans = [path for name, path in files.items() if name not in named and path.stat().st_mtime < oldest]
    size = sum(path.stat().st_size for path in orphans)
    if not orphans:
        yield Check("orphans", "ok", "no blobs that nothing refers to")
    elif not fix:
        yield Check(
            "orphans",
            "warn",
            f"{len(orphans)} files ({size / 1e6:.1f} MB) in {folder} are of no job any more",
            "`onefold doctor --fix` removes them",
        )
    else:
        garbage = LiveGarbage(StateClient(shards), BlobStore(folder))
        removed = garbage.remove_unnamed(age_s=config.ORPHAN_BLOB_AGE_S, others=True)
        yield Check(
            "orphans",
            "ok",
            f"{removed} files (of {len(orphans)}, {size / 1e6:.1f} MB) that were of no job any more were removed; what a program "
            f"may be storing again is kept aside for {config.SWEPT_KEPT_S:.0f} s",
        )
