"""The record of a space on a cluster: its name, incarnation, shards, copies and regions, and where its blobs are."""

from __future__ import annotations

import msgspec

FORMAT = 2
"""The newest that is read. Spaces of one region have 1, and open with earlier releases too."""
ONE_REGION_FORMAT = 1


class Base(msgspec.Struct, frozen=True):
    """What a shard's log continues from, where it does not begin with the space: a snapshot among the space's blobs."""

    offset: int
    """The log's first record is the next one. 0: it begins with the space, and the rest is empty."""
    hash: str = ""
    blob: str = ""
    bytes: int = 0


class SpaceInfo(msgspec.Struct, frozen=True):
    """What a space's record says. ``made_ms``: when, by the clock of its maker. ``blobs``: where results of jobs are
    kept (see ``compute.blobs.backends``). ``base``: by shard, of a space that was restored. ``regions``: their names, fixed when
    the space is made; none where all is one region."""

    space: str
    incarnation: str
    shards: int
    replicas: int
    made_ms: int = 0
    format: int = ONE_REGION_FORMAT
    blobs: str = "jetstream"
    base: tuple[Base, ...] = ()
    regions: tuple[str, ...] = ()

    def base_of(self, shard: int) -> Base | None:
        """The snapshot that a shard's log continues from; None when it begins with the space."""
        base = self.base[shard] if shard < len(self.base) else None
        return base if base is not None and base.offset else None
