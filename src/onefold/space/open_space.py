"""The shards of a space, opened together: here those of a folder or in memory, those of a cluster in ``open_cluster``.

Shard 0 lives in the space's own directory, and shard n in ``shards/<n>`` below it, each with a log and a state of its own.
How many there are is written into shard 0's file in the transaction that makes it, so of two who make a space at once one
decides. When all the others are made too, that is noted there: until then an opener continues making them, and afterwards one
that is missing is lost.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from onefold import config
from onefold.arguments import check_whole
from onefold.env import SYSTEM, Env
from onefold.errors import InvalidArgument, OnefoldError, SpaceError
from onefold.files import sync
from onefold.fold.api import Fold
from onefold.fold.authority import AVAILABLE_FOLD
from onefold.machine.undisturbed import let_pass, undisturbed
from onefold.shard.api import Shard
from onefold.space.open_shard import directory_of, open_shard

if TYPE_CHECKING:
    from onefold.log.sqlite.file import SqliteFile
    from onefold.shard.embedded import EmbeddedShard
    from onefold.shard.remote.snapshot_fetch import BaseFetch

Folds = Callable[[int, int], Sequence[Fold]]
"""Given a shard's number and how many there are, its folds."""
CLUSTER_SCHEMES: Final = ("nats://", "tls://")
"""What the URLs of spaces on clusters begin with."""
Check = Callable[[str | None, int | None], None]
"""Given a space's incarnation and how many shards it has, before anything is made or written: raises what speaks against opening
it. None, None: the space is not there and would be made."""
_FOLDER = "shards"


def open_shards(
    url: str | Path,
    folds: Folds,
    *,
    shards: int | None = None,
    env: Env = SYSTEM,
    create: bool = True,
    read_only: bool = False,
    timeout: float | None = None,
    replicas: Literal["local", "remote"] = "local",
    region: str | None = None,
    base: BaseFetch | None = None,
    check: Check | None = None,
) -> list[Shard]:
    """Open every shard of the space at ``url``, and make it with ``shards`` of them (default 1) if it is not there.

    ``shards`` must agree with a space that is there (InvalidArgument). ``replicas``, ``region``, ``base``: of a space on a
    cluster, see ``open_cluster``. ``check``: see ``Check``. Other arguments and errors as ``open_shard``; SpaceError also when
    a shard is lost.
    """
    _check_shards(shards)

    def opened() -> list[Shard]:
        return _open_all(
            url,
            folds,
            shard_count=shards,
            env=env,
            create=create,
            read_only=read_only,
            timeout=timeout,
            replicas=replicas,
            region=region,
            base=base,
            check=check,
        )

    return undisturbed(opened, _close_all)


def _close_all(shards: Sequence[Shard]) -> None:
    for shard in shards:
        shard.close()


def _open_all(
    url: str | Path,
    folds: Folds,
    *,
    shard_count: int | None,
    env: Env,
    create: bool,
    read_only: bool,
    timeout: float | None,
    replicas: Literal["local", "remote"],
    region: str | None,
    base: BaseFetch | None,
    check: Check | None,
) -> list[Shard]:
    if isinstance(url, str) and url.startswith(CLUSTER_SCHEMES):
        from onefold.space.open_cluster import open_cluster

        return open_cluster(
            url,
            folds,
            shard_count=shard_count,
            env=env,
            create=create,
            read_only=read_only,
            timeout=timeout,
            replicas=replicas,
            region=region,
            base=base,
            check=check,
        )
    if isinstance(url, str) and url.startswith("memory:"):
        count = shard_count or 1
        return [
            open_shard(url, folds(shard, count), env=env, create=create, read_only=read_only, timeout=timeout)
            for shard in range(count)
        ]
    from onefold.shard.embedded import EmbeddedShard

    directory = directory_of(url)
    if not read_only and (shard_count is not None or check is not None):
        _check_first(directory, shard_count, check, create=create)
    shards: list[Shard] = []
    try:
        first = EmbeddedShard(
            directory,
            lambda count: folds(0, count),
            env,
            create=create,
            read_only=read_only,
            timeout=timeout,
            shards=shard_count or 1,
        )
        shards.append(first)
        _check_kind(first, folds)
        made = first.log.file.shard_count
        _check_count(directory, shard_count, made)
        if made > 1:
            _open_others(shards, first.log.file, folds, env, timeout)
    except BaseException:
        _close_all(shards)
        raise
    return shards


def _check_kind(first: EmbeddedShard, folds: Folds) -> None:
    """Raises SpaceError for the folder of a region where a space is to be opened: what a space's folds append would stop all
    others that have the region."""
    file = first.log.file
    with file.reading() as con:
        is_region = con.execute("SELECT EXISTS(SELECT 1 FROM folds WHERE name = ?)", (AVAILABLE_FOLD,)).get
    if is_region and all(fold.name != AVAILABLE_FOLD for fold in folds(0, file.shard_count)):
        place = file.directory.absolute()
        raise SpaceError(
            f"{place} is the folder of a region, not of a space. Open the space in {place.parent.parent}, with "
            f"region={place.name!r}"
        )


def _check_first(directory: Path, asked: int | None, check: Check | None, *, create: bool) -> None:
    """Raise what speaks against opening the space, before that writes to it or makes it. What this cannot see, opening does."""
    from onefold.log.sqlite.file import SqliteFile

    if not is_there(directory):
        if create and check is not None:
            check(None, None)
        return
    try:
        file = SqliteFile(directory, (), SYSTEM, create=False, read_only=True)
    except OnefoldError as error:
        let_pass(error)
        return  # opening says why, or completes what is being made
    try:
        _check_count(directory, asked, file.shard_count)
        if check is not None:
            check(file.incarnation, file.shard_count)
    finally:
        file.close()


def is_there(url: str | Path) -> bool:
    """Whether there is a space in a folder, or what was begun of one."""
    from onefold.log.sqlite.file import FILE_NAME

    return os.path.exists(directory_of(url) / FILE_NAME)  # noqa: PTH110 - a name that is too long is not there


def _check_count(directory: Path, asked: int | None, made: int) -> None:
    if asked is not None and asked != made:
        raise InvalidArgument(
            f"the space in {directory} was made with {made} shard(s), which is fixed; got shards={asked}. "
            "Leave shards out, or use another directory"
        )


def _open_others(
    shards: list[Shard], file: SqliteFile, folds: Folds, env: Env, timeout: float | None
) -> None:
    """Open the shards after the first; make those that are not there yet, if they never all were."""
    directory, making = file.directory, not file.shards_made and not file.read_only
    if making:
        _make_folder(directory / _FOLDER)
    for shard in range(1, file.shard_count):
        place = shard_directory(directory, shard)
        if not making and not (place / file.path.name).exists():
            raise _missing(directory, shard, file)
        opened = open_shard(
            place,
            folds(shard, file.shard_count),
            env=env,
            create=making,
            read_only=file.read_only,
            timeout=timeout,
        )
        shards.append(opened)
    if making:
        _note_made(file)


def shard_count(directory: str | Path) -> int:
    """How many shards the space in ``directory`` was made with. Writes nothing. Raises SpaceError when there is no space."""
    from onefold.log.sqlite.file import SqliteFile

    file = SqliteFile(Path(directory), (), SYSTEM, create=False, read_only=True)
    try:
        return file.shard_count
    finally:
        file.close()


def shard_directory(directory: str | Path, shard: int) -> Path:
    """Where a shard of the space in ``directory`` lives."""
    return Path(directory) if shard == 0 else Path(directory) / _FOLDER / str(shard)


def _check_shards(shards: object) -> None:
    check_whole("shards", shards, least=1, most=config.SHARDS_MAX, or_none=True)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(exist_ok=True)
        sync(folder.parent)
    except OSError as error:
        raise SpaceError(
            f"{folder} cannot be made: {error.strerror}. Choose a place you may write to"
        ) from error


def _note_made(file: SqliteFile) -> None:
    with file.writing() as con:
        con.execute("INSERT OR REPLACE INTO meta VALUES('shards_made', 1)")


def _missing(directory: Path, shard: int, file: SqliteFile) -> SpaceError:
    if file.shards_made:
        return SpaceError(
            f"shard {shard} of {file.shard_count} is missing in {directory}: {shard_directory(directory, shard)} was lost. "
            "Restore the space from a backup"
        )
    return SpaceError(f"the space in {directory} is not complete yet. Open it for writing once")
