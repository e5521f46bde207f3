"""Blobs of an open space as ``state.streams.large_frames`` has them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from onefold import config
from onefold.compute.blobs.store import BlobMissing, BlobStore, had_later
from onefold.state.streams.large_frames import LargeFrames

if TYPE_CHECKING:
    from onefold.log.jetstream.client.link import Link
    from onefold.log.jetstream.spaces import SpaceInfo
    from onefold.shard.api import Shard

_RECORD_ROOM_BYTES = 256 * 1024
"""What a record has next to its frames, at most."""


class FrameStore:
    """See ``large_frames.Blobs``."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs

    def put(self, data: bytes) -> str:
        """Store bytes; returns their name once they are durable for everybody."""
        return self._blobs.put(data)

    def find(self, name: str) -> bytes | None:
        """The blob's bytes; None: there is no such blob."""
        try:
            with had_later(name):
                return self._blobs.get(name)
        except BlobMissing:
            return None

    def keeps(self, name: str) -> bool:
        """Whether the blob is there for everybody."""
        return self._blobs.keeps(name)

    def prefetch(self, names: Iterable[str]) -> None:
        """Bring blobs here that will be read soon."""
        self._blobs.prefetch(names)

    def discard(self, name: str) -> None:
        """Remove a blob that nothing names and nothing will name; programs of a cluster leave that to the nodes."""
        if not self._blobs.shared:
            self._blobs.delete(name)


def large_frames(
    shard: Shard, blobs: Callable[[], BlobStore], stored: Callable[[], None] = lambda: None
) -> LargeFrames | None:
    """What a client of the space does with large frames; None: it has no place for them.

    In a folder and where blobs are in files or objects, frames over ``config.STREAM_BLOB_BYTES_MIN`` are blobs. Blobs in
    JetStream go through the same servers as the records, in more steps: there only what does not fit into a record is one.
    """
    log = getattr(shard, "log", None)
    info: SpaceInfo | None = getattr(log, "space_info", None)
    link: Link | None = getattr(log, "link", None)
    if shard.directory is None and (info is None or link is None):
        return None
    in_jetstream = info is not None and info.blobs == "jetstream"

    def record_bytes() -> int:
        payload = config.RECORD_BYTES_MAX if link is None else link.max_payload
        return max(0, min(config.RECORD_BYTES_MAX, payload) - _RECORD_ROOM_BYTES)

    return LargeFrames(
        lambda: FrameStore(blobs()),
        lambda: config.RECORD_BYTES_MAX if in_jetstream else config.STREAM_BLOB_BYTES_MIN,
        record_bytes,
        stored,
    )
