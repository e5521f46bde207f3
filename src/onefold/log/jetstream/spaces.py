"""The record of a space on a cluster: its name, incarnation, shards and copies, and where its blobs are."""

from __future__ import annotations

import msgspec

FORMAT = 1


class SpaceInfo(msgspec.Struct, frozen=True):
    """What a space's record says. ``made_ms``: when, by the clock of whoever made it. ``blobs``: where results of jobs are kept
    (see ``compute.blob_backends``)."""

    space: str
    incarnation: str
    shards: int
    replicas: int
    made_ms: int = 0
    format: int = FORMAT
    blobs: str = "jetstream"
