"""A backup becomes a space on a cluster: what was saved is what its logs continue from.

The backup is restored into a folder first, so all that is checked and folded there (checksums, another moment) is here too. Each
shard's state is then a snapshot among the new space's blobs, and its log begins with the offset after it. The space's record,
which names the snapshots, is written last: the space is there whole, or not at all. It is a new incarnation; tokens of the old
one are refused. Nodes of the old cluster are forgotten, with all that they have said.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from onefold.backup.atomic_folder import scratch_folder
from onefold.backup.backup import Lost, Restored, restore
from onefold.backup.manifest import read_manifest
from onefold.cluster import setup
from onefold.cluster.region_beginning import first_record
from onefold.compute.blobs.places import backend_of
from onefold.compute.blobs.store import file_blob_name
from onefold.env import SYSTEM
from onefold.errors import LogCorrupt, SpaceError
from onefold.fold import authority
from onefold.fold.nodes import rows
from onefold.folds import blob_tables, folds
from onefold.log.jetstream import admin
from onefold.log.jetstream.engine import JetStreamLog
from onefold.log.jetstream.spaces import Base, SpaceInfo
from onefold.log.sqlite.engine import LOG_SCHEMA
from onefold.log.sqlite.file import SqliteFile
from onefold.space.open_space import shard_directory
from onefold.store.snapshot import write_snapshot
from onefold.store.tables import STORE_SCHEMA

if TYPE_CHECKING:
    from onefold.compute.blobs.shared import Backend
    from onefold.log.jetstream.client.link import Link

_OF_NODES: Final = (
    rows.NODE,
    rows.DIGEST,
    rows.HASH,
    rows.AGREED,
    rows.ARCHIVE,
    rows.GARBAGE,
    rows.REGION,
    *authority.UNTRUSTED_TABLES,
)
_FORGET = (
    f"DELETE FROM kv WHERE t IN (SELECT id FROM tables WHERE name IN ({', '.join('?' * len(_OF_NODES))}))",
    f"DELETE FROM history WHERE t IN (SELECT id FROM tables WHERE name IN ({', '.join('?' * len(_OF_NODES))}))",
)


def restore_space(
    source: str | Path,
    url: str,
    *,
    to_ms: int | None = None,
    replicas: int | None = None,
    blobs: str | None = None,
    regions: Sequence[str] = (),
    lost: Lost | None = None,
) -> tuple[SpaceInfo, Restored]:
    """Make the space of a URL from the backup in ``source``; needs a credential that may create streams, and room for the backup
    in the folder for temporary files.

    ``to_ms``, ``lost``: as ``backup.backup.restore``. ``replicas``, ``blobs``, ``regions``: as ``setup.set_up_space``; shards
    are those of the backup. Raises as both, and SpaceError when there is a space of that name.
    """
    from onefold.compute.blobs.backends import JETSTREAM, check_place, own_place
    from onefold.log.jetstream.client.address import parse_address
    from onefold.log.jetstream.client.link import Link

    if blobs is not None:
        check_place(blobs)
    manifest = read_manifest(Path(source))
    link = Link(parse_address(url), name="onefold-restore")
    try:
        with setup.speaking_of_accounts(link):
            copies, own = setup.copies_on(link, replicas, regions)
            if setup.patiently(lambda: admin.find_space(link, link.address.space)) is not None:
                raise admin.taken(link)
            with scratch_folder("onefold-restore") as folder:
                made = restore(
                    source, folder / "space", folds, to_ms=to_ms, blob_tables=blob_tables(), lost=lost
                )
                beginning = _FromFolder(link, folder, len(manifest.shards), tuple(manifest.files))
                info = admin.make_space(
                    link,
                    link.address.space,
                    len(manifest.shards),
                    copies,
                    blobs=partial(own_place, blobs or JETSTREAM, link.address.space),
                    beginning=beginning,
                    regions=own,
                )
        return info, made
    finally:
        link.close()


class _FromFolder:
    """See ``admin.Beginning``."""

    def __init__(self, link: Link, folder: Path, shards: int, files: Sequence[str]) -> None:
        self._link = link
        self._folder = folder
        self._space = folder / "space"
        self._shard_count = shards
        self._files = files

    def store(self, info: SpaceInfo) -> tuple[Base, ...]:
        backend = backend_of(self._link, info)
        try:
            for name in self._files:
                if name.startswith("blobs/"):
                    backend.put(Path(name).name, self._space / name)
            return tuple(self._base(backend, info, shard) for shard in range(self._shard_count))
        finally:
            backend.close()

    def begin(self, info: SpaceInfo) -> None:
        for shard in range(self._shard_count):
            base = info.base_of(shard)
            after = 0 if base is None else base.offset
            log = JetStreamLog(self._link, info, shard)
            try:
                setup.patiently(lambda log=log: setup.check_led(self._link, log.names.stream))  # type: ignore[misc]
                record = first_record(info.regions, shard, after)
                at = setup.patiently(partial(log.append_trusted, record))
            finally:
                log.close()
            if at <= after:
                raise LogCorrupt(
                    f"{self._link.address}: the log of shard {shard} begins at offset {at}, not after {after}. "
                    "Its servers are too old, or broken"
                )

    def _base(self, backend: Backend, info: SpaceInfo, shard: int) -> Base:
        place = shard_directory(self._space, shard)
        file = SqliteFile(place, (*LOG_SCHEMA, *STORE_SCHEMA), SYSTEM, create=False)
        path = self._folder / f"base-{shard}"
        try:
            with file.maintaining() as con:
                for statement in _FORGET:
                    con.execute(statement, _OF_NODES)
                con.execute("UPDATE head SET log_first = applied + 1")
            history = frozenset[str]().union(*(fold.history for fold in folds(shard, self._shard_count)))
            with file.exporting() as con:
                made = write_snapshot(con, path, history, info.incarnation)
        finally:
            file.close()
        if made.offset == 0:
            return Base(0)
        name = file_blob_name(path)
        backend.put(name, path)
        size = path.stat().st_size
        path.unlink()
        return Base(made.offset, made.state_digest, name, size)


__all__ = ["Restored", "SpaceError", "restore_space"]
