"""The record of a space on a cluster: its name, incarnation, shards, copies and regions, and where its blobs are."""

from __future__ import annotations

import msgspec

from onefold.log.jetstream import names

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


class RegionLogs(msgspec.Struct, frozen=True):
    """The logs that a region has of its own, for what every region can write: one for each shard of the space."""

    name: str
    incarnation: str
    """Of these logs: other ones after the region was lost and came again."""
    replicas: int


class SpaceInfo(msgspec.Struct, frozen=True):
    """What a space's record says. ``made_ms``: when, by the clock of its maker. ``blobs``: where results of jobs are
    kept (see ``compute.blobs.backends``). ``base``: by shard, of a space that was restored. ``regions``: their names, fixed when
    the space is made; none where all is one region. ``region_logs``: of each of them, in the same order. ``region``: whose logs
    these are, where it is one of those; in no record."""

    space: str
    incarnation: str
    shards: int
    replicas: int
    made_ms: int = 0
    format: int = ONE_REGION_FORMAT
    blobs: str = "jetstream"
    base: tuple[Base, ...] = ()
    regions: tuple[str, ...] = ()
    region_logs: tuple[RegionLogs, ...] = ()
    region: str = ""

    def of_region(self, name: str) -> SpaceInfo:
        """The logs of a region, as a space by itself. Raises KeyError for a region that the space has not."""
        for logs in self.region_logs:
            if logs.name == name:
                return msgspec.structs.replace(
                    self,
                    incarnation=logs.incarnation,
                    replicas=logs.replicas,
                    blobs="jetstream",
                    base=(),
                    regions=(),
                    region_logs=(),
                    region=name,
                )
        raise KeyError(name)

    def with_region_logs(self, own: RegionLogs) -> SpaceInfo:
        """The same, with other logs of one of its regions."""
        logs = tuple(own if one.name == own.name else one for one in self.region_logs)
        return msgspec.structs.replace(self, region_logs=logs)

    def each_region(self) -> list[SpaceInfo]:
        """The logs of each region, as spaces by themselves."""
        return [self.of_region(logs.name) for logs in self.region_logs]

    @property
    def blob_names(self) -> names.BlobNames:
        """Where its blobs are in JetStream, if they are there. A region has a stream of its own for them."""
        return (
            names.region_blobs(self.space, self.incarnation) if self.region else names.space_blobs(self.space)
        )

    def base_of(self, shard: int) -> Base | None:
        """The snapshot that a shard's log continues from; None when it begins with the space."""
        base = self.base[shard] if shard < len(self.base) else None
        return base if base is not None and base.offset else None
