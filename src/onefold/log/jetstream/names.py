"""Every subject, stream and bucket of a space on NATS, in one place.

Permissions (``cluster/permissions.py``) are written in terms of these names.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from onefold.arguments import shown
from onefold.errors import InvalidArgument

SPACE_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,32}")
INBOX_PREFIX: Final = "_INBOX.of"
"""What inboxes begin with unless the URL says otherwise."""
NODES_QUEUE: Final = "nodes"
"""The queue group in which nodes take questions."""

STREAM_CREATE: Final = "$JS.API.STREAM.CREATE."
STREAM_DELETE: Final = "$JS.API.STREAM.DELETE."
STREAM_INFO: Final = "$JS.API.STREAM.INFO."
STREAM_NAMES: Final = "$JS.API.STREAM.NAMES"
STREAM_PURGE: Final = "$JS.API.STREAM.PURGE."
STREAM_STEPDOWN: Final = "$JS.API.STREAM.LEADER.STEPDOWN."
STREAM_UPDATE: Final = "$JS.API.STREAM.UPDATE."
MESSAGE_GET: Final = "$JS.API.STREAM.MSG.GET."
DIRECT_GET: Final = "$JS.API.DIRECT.GET."


def check_space(space: str) -> str:
    """The name itself. Raises InvalidArgument when it cannot be the name of a space."""
    if not SPACE_NAME.fullmatch(space):
        raise InvalidArgument(
            f"{shown(space)} cannot be the name of a space: 1 to 32 letters, digits, _ and -"
        )
    return space


def space_stream(space: str) -> str:
    """The stream that holds the space's record."""
    return f"OF_{space}"


def space_subject(space: str) -> str:
    """The subject of the space's record."""
    return f"of.{space}.space"


def region_record_stream(space: str, region: str) -> str:
    """The stream that holds a region's copy of the space's record. Its name cannot be that of another space's stream."""
    return f"{space_stream(space)}@{region}"


def region_record(space: str, region: str) -> str:
    """The subject of a region's copy of the space's record."""
    return f"{space_subject(space)}.{region}"


def space_of(subject: str) -> str | None:
    """The space whose record has this subject; None when it is not such a subject."""
    parts = subject.split(".")
    if len(parts) == 3 and parts[0] == "of" and parts[2] == "space" and SPACE_NAME.fullmatch(parts[1]):
        return parts[1]
    return None


def blobs_bucket(space: str) -> str:
    """The object store of a space whose blobs are kept in JetStream."""
    return f"of_{space}_blobs"


def blobs_stream(space: str) -> str:
    """The stream below that bucket."""
    return f"OBJ_{blobs_bucket(space)}"


class BlobNames(NamedTuple):
    """Where blobs are kept in JetStream."""

    place: str
    """For messages."""
    stream: str
    prefix: str
    """What the subjects of the stream begin with."""


def space_blobs(space: str) -> BlobNames:
    """Of a space whose blobs are kept in JetStream."""
    bucket = blobs_bucket(space)
    return BlobNames(f"bucket {bucket}", blobs_stream(space), f"$O.{bucket}")


def region_blobs(space: str, incarnation: str) -> BlobNames:
    """Of the logs of a region: their snapshots. No bucket: permissions could not name those of all incarnations."""
    stream = f"OF_{space}_{incarnation}_blobs"
    return BlobNames(f"stream {stream}", stream, f"of.{space}.{incarnation}.blobs")


class LogNames(NamedTuple):
    """The names of one shard's log."""

    space: str
    incarnation: str
    shard: int

    @property
    def stream(self) -> str:
        """The stream of the log."""
        return f"OF_{self.space}_{self.incarnation}_{self.shard}"

    @property
    def subject(self) -> str:
        """What is published there is appended."""
        return f"of.{self.space}.{self.incarnation}.log.{self.shard}"

    @property
    def node_subject(self) -> str:
        """The same for records with operations that only nodes may append: programs may not publish there."""
        return f"of.{self.space}.{self.incarnation}.nodelog.{self.shard}"

    @property
    def both_subjects(self) -> str:
        """A filter for both of them, and for nothing else of the log's stream."""
        return f"of.{self.space}.{self.incarnation}.*.{self.shard}"

    @property
    def tail(self) -> str:
        """Where what was appended is published again. Only servers may publish there."""
        return f"of.{self.space}.{self.incarnation}.tail.{self.shard}"

    @property
    def ask(self) -> str:
        """Questions to any node that hosts the shard."""
        return f"of.{self.space}.{self.incarnation}.ask.{self.shard}"

    def ask_region(self, region: str) -> str:
        """Questions to nodes of one region that host the shard."""
        return f"{self.ask}.{region}"


def node_subject(space: str, incarnation: str, node: str) -> str:
    """Questions to one node."""
    return f"of.{space}.{incarnation}.node.{node}"
