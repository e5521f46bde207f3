"""Where a stream and its partitions live, and what the stream is like.

The **home** shard of a stream is that of its name; the number of partitions is decided there, and its consumer groups live there.
Partition p lives in the shard of the key ``((name, p),)``: one element, a nested tuple, since a key's first element alone chooses
the shard. So the partitions spread over the shards of a space, and in a space of one shard all are in shard 0.
"""

from __future__ import annotations

from collections.abc import Iterable

from onefold import config
from onefold.arguments import check_whole
from onefold.codec import crc32c
from onefold.errors import InvalidArgument, SpaceError, TooOld
from onefold.machine.undisturbed import let_pass
from onefold.state.core.client import StateClient, rejection
from onefold.state.core.consistency import PREFIX, SESSION, STRONG, Level
from onefold.state.encoding.keys import encode_key
from onefold.state.encoding.names import check_name
from onefold.state.fold.outcomes import Answer
from onefold.state.fold.streams import rows as stream_rows
from onefold.state.fold.streams.fold import is_due
from onefold.state.fold.streams.ops import MakeStream, Retain
from onefold.state.fold.streams.rows import HOP_PREFIX, Head, StreamRow


def stream_tag(name: str) -> int:
    """What positions in the stream of this name have in common."""
    return crc32c(name.encode())


class Layout:
    """A stream as clients find it. Thread-safe."""

    def __init__(
        self, client: StateClient, name: str, partitions: int | None = None, *, internal: bool = False
    ) -> None:
        """``partitions``: what the stream must have, if it is there. ``internal``: it may be one of a live job. Raises
        InvalidArgument."""
        self.client = client
        self.name = name if internal else check_stream_name(name)
        self.wanted = check_partitions(partitions)
        self.home = client.shard_of(encode_key(name))
        self.tag = stream_tag(name)
        self._ready: set[tuple[int, int]] = set()

    def shard(self, partition: int) -> int:
        """Where the partition lives."""
        return (
            self.client.shard_of(encode_key(((self.name, partition),))) if self.client.shard_count > 1 else 0
        )

    def by_shard(self, partitions: Iterable[int]) -> dict[int, list[int]]:
        """The partitions in order, by shard."""
        found: dict[int, list[int]] = {}
        for partition in partitions:
            found.setdefault(self.shard(partition), []).append(partition)
        return found

    def find(self, level: Level | None = None, timeout: float | None = None) -> StreamRow | None:
        """What the stream is like, None when it was not made yet. Raises InvalidArgument when it has another number of partitions
        than wanted, and what reads at the level raise."""
        key = self.name.encode()
        return self._checked(
            stream_rows.read_stream(
                self.client.peek(self.home, stream_rows.STREAMS, key, level or STRONG, timeout)
            )
        )

    def make(self, default: int | None = None, retention_ms: int | None = None) -> StreamRow:
        """What the stream is like; made now if it is not there, with ``default`` partitions unless another number is wanted, and
        with this retention. Raises as ``find``."""
        return self.known() or self._made(MakeStream(self.name, self.wanted or default or 1, retention_ms))

    def known(self) -> StreamRow | None:
        """What the stream is like as far as is known here, without waiting. Raises as ``find``."""
        # The number of partitions never changes, so a copy of any age will do.
        data, _ = self.client.shards[self.home].peek(stream_rows.STREAMS, self.name.encode())
        return self._checked(stream_rows.read_stream(data))

    def set_retention(self, retention_ms: int | None) -> StreamRow:
        """Make the stream or change its retention, in every shard."""
        row = self._made(MakeStream(self.name, self.wanted or 1, retention_ms, change=True))
        for shard in self.by_shard(range(row.partitions)):
            self.copy_to(shard, row)
        return row

    def copy_to(self, shard: int, row: StreamRow) -> None:
        """See to it that the shard knows the stream."""
        if shard == self.home or (shard, row.version) in self._ready:
            return
        data, _ = self.client.shards[shard].peek(stream_rows.STREAMS, self.name.encode())
        there = stream_rows.read_stream(data)
        if there is None or there.version < row.version:
            op = MakeStream(self.name, row.partitions, row.retention_ms, version=row.version)
            outcome = self.client.submit(shard, op)
            if not isinstance(outcome, Answer):
                raise rejection(outcome)
        self._ready.add((shard, row.version))

    @property
    def local(self) -> Level:
        """The level for looking again: what is here; over several shards also what transactions have decided."""
        return PREFIX if self.client.shard_count == 1 else SESSION

    def heads(
        self, partitions: Iterable[int], level: Level | None = None, timeout: float | None = None
    ) -> tuple[dict[int, Head], dict[int, int]]:
        """Where the partitions stand, and the offset of each shard at which this was seen."""
        heads: dict[int, Head] = {}
        seen: dict[int, int] = {}
        for shard, members in self.by_shard(partitions).items():
            with self.client.view(shard, level, timeout) as view:
                seen[shard] = view.offset
                for partition in members:
                    heads[partition] = stream_rows.head_of(view, self.name, partition)
        return heads, seen

    def kept(self, row: StreamRow, partitions: Iterable[int], level: Level | None = None) -> dict[int, Head]:
        """Where the partitions stand, once what is past its retention by this client's clock is gone."""
        chosen = list(partitions)
        heads, _ = self.heads(chosen, level)
        if row.retention_ms is None:
            return heads
        now_ms = self.client.env.wall_ms()
        old = [
            p for p, at in heads.items() if at.first < at.next and at.oldest_ms < now_ms - row.retention_ms
        ]
        due: list[int] = []
        for shard, members in self.by_shard(old).items():
            with self.client.view(shard, self.local) as view:
                due += [p for p in members if is_due(view, self.name, p, row.retention_ms, now_ms)]
        try:
            for partition in due:
                while True:
                    outcome = self.client.submit(self.shard(partition), Retain(self.name, partition))
                    if not isinstance(outcome, Answer) or not outcome.value:
                        break
        except SpaceError as error:
            let_pass(error)
            return heads  # read-only: retention says what may go, and reading what is still there is right
        return self.heads(chosen, level)[0] if due else heads

    def _made(self, op: MakeStream) -> StreamRow:
        outcome = self.client.submit(self.home, op)
        if not isinstance(outcome, Answer):
            raise rejection(outcome)
        partitions, retention_ms, version = outcome.value
        row = self._checked(StreamRow(partitions, retention_ms, version))
        if row is None:
            raise SpaceError(f"the stream {self.name!r} was made and is not there")
        return row

    def _checked(self, row: StreamRow | None) -> StreamRow | None:
        if row is not None and self.wanted is not None and row.partitions != self.wanted:
            raise InvalidArgument(
                f"the stream {self.name!r} has {row.partitions} partitions, fixed when it was made; partitions={self.wanted} was "
                "asked for. Leave it out, or use another name"
            )
        return row


def check_partitions(partitions: object) -> int | None:
    """The number of partitions, None when none is given. Raises InvalidArgument."""
    if partitions is None:
        return None
    check_whole("partitions", partitions, least=1, most=config.STREAM_PARTITIONS_MAX)
    return partitions  # type: ignore[return-value]


def check_stream_name(name: object) -> str:
    """The name of a stream that a user gives. Raises InvalidArgument (definite), also for one of a live job."""
    checked = check_name("stream", name)
    if checked.startswith(HOP_PREFIX):
        raise InvalidArgument(
            f"streams whose name begins with {HOP_PREFIX!r} belong to live jobs, which alone read and write them; got {name!r}"
        )
    return checked


def check_offset(head: Head, stream: str, partition: int, offset: int) -> None:
    """Raises TooOld when the offset lies before the first record that is kept."""
    if offset < head.first:
        raise TooOld(
            f"partition {partition} of stream {stream!r}: offset {offset} has been removed by retention, the first record is "
            f"{head.first}. Start at 'earliest', or at a later position"
        )
