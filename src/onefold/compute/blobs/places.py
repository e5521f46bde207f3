"""Where the blobs of an open space are, as the space's record says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from onefold.compute.blobs.store import BlobStore, file_blob_name

if TYPE_CHECKING:
    from onefold.compute.blobs.shared import Backend
    from onefold.log.jetstream.client.link import Link
    from onefold.log.jetstream.spaces import SpaceInfo
    from onefold.shard.api import Shard


def store_of(shard: Shard) -> BlobStore | None:
    """The blobs that the machines of the space's cluster share; None for a space of one machine, whose directory has them.

    Raises InvalidArgument when this program cannot reach the place that the space's record names.
    """
    log = getattr(shard, "log", None)
    info: SpaceInfo | None = getattr(log, "space_info", None)
    link: Link | None = getattr(log, "link", None)
    if info is None or link is None:
        return None
    from onefold.space.open_cluster import cache_directory

    return shared_store(link, info, cache_directory() / f"{info.space}-{info.incarnation}" / "blobs")


def backend_of(link: Link, info: SpaceInfo) -> Backend:
    """The place itself where the blobs of a cluster's space are. The link stays its owner's. Raises InvalidArgument when this
    program cannot reach it."""
    from onefold.compute.blobs.backends import JETSTREAM, named_place, open_backend
    from onefold.compute.blobs.jetstream import JetStreamBackend

    if info.blobs == JETSTREAM:
        return JetStreamBackend(link, info.space, info.incarnation if info.region else None)
    return open_backend(info.blobs, named_place(info.blobs, info.space, info.incarnation))


def fetch_base(link: Link, info: SpaceInfo, shard: int, path: Path) -> bool:
    """Write the snapshot that a shard's log continues from (see ``spaces.Base``) to ``path``; False when there is none, or it
    cannot be had whole. Raises InvalidArgument, BlobsUnavailable, OSError."""
    base = info.base_of(shard)
    if base is None:
        return False
    backend = backend_of(link, info)
    try:
        if backend.get(base.blob, path) and file_blob_name(path) == base.blob:
            return True
        path.unlink(missing_ok=True)
        return False
    finally:
        backend.close()


def shared_store(link: Link, info: SpaceInfo, directory: Path) -> BlobStore:
    """The blobs of a cluster's space, with a cache in ``directory``. The link stays its owner's."""
    from onefold.compute.blobs.shared import SharedBlobs

    return SharedBlobs(directory, backend_of(link, info), space=info.incarnation)
