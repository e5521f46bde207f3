"""Where the blobs of an open space are, as the space's record says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from onefold.compute.blobs import BlobStore

if TYPE_CHECKING:
    from onefold.fold.space import Space
    from onefold.log.jetstream.link import Link
    from onefold.log.jetstream.spaces import SpaceInfo


def store_of(space: Space) -> BlobStore | None:
    """The blobs that the machines of the space's cluster share; None for a space of one machine, whose directory has them.

    Raises InvalidArgument when this program cannot reach the place that the space's record names.
    """
    log = getattr(space, "log", None)
    info: SpaceInfo | None = getattr(log, "space_info", None)
    link: Link | None = getattr(log, "link", None)
    if info is None or link is None:
        return None
    from onefold.fold.cluster import cache_directory

    return shared_store(link, info, cache_directory() / f"{info.space}-{info.incarnation}" / "blobs")


def shared_store(link: Link, info: SpaceInfo, directory: Path) -> BlobStore:
    """The blobs of a cluster's space, with a cache in ``directory``. The link stays its owner's."""
    from onefold.compute.blob_backends import JETSTREAM, open_backend
    from onefold.compute.blob_jetstream import JetStreamBackend
    from onefold.compute.shared_blobs import SharedBlobs

    if info.blobs == JETSTREAM:
        return SharedBlobs(directory, JetStreamBackend(link, info.space))
    return SharedBlobs(directory, open_backend(info.blobs))
