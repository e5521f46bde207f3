"""Membership of a consumer in its group: joining, showing to be alive, and seeing after the others.

No lease uses the log's time. A member that iterates appends a beat periodically, which moves its epoch; another member that
saw no new epoch for ``config.CONSUMER_SESSION_S`` on its own clock appends an expiry that carries the epoch it saw. A
process of this machine that is known to be dead is expired at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from onefold import config
from onefold.errors import Conflict
from onefold.state.core.client import rejection
from onefold.state.core.consistency import PREFIX, STRONG
from onefold.state.core.time_limits import cleaning_up
from onefold.state.fold.outcomes import Answer
from onefold.state.fold.streams import rows as stream_rows
from onefold.state.fold.streams.ops import Beat, Expire, Join, Leave
from onefold.state.fold.streams.rows import Group
from onefold.state.streams.layout import Layout


class Share(NamedTuple):
    """What is a member's."""

    generation: int
    committed: Mapping[int, int]
    """Its partitions, and what the group has committed there; -1: nothing."""


class Membership:
    """One member of a group. For one thread."""

    def __init__(self, layout: Layout, group: str) -> None:
        self._layout = layout
        self._client = layout.client
        self._shard = layout.client.shards[layout.home]
        self._group = group
        self.id = ""
        self.generation = 0
        self.joined = False
        self._beat_due_s = 0.0
        self._look_due_s = 0.0
        self._seen: dict[str, tuple[int, float]] = {}
        """Of the other members: the epoch, and when it was first seen."""

    def join(self, start: tuple[tuple[int, int], ...] = ()) -> Share | None:
        """Become a member; see ``Join``. Its share."""
        self.id = self._client.env.token(8).hex()
        op = Join(self._layout.name, self._group, self.id, self._shard.member, start)
        outcome = self._client.submit(self._layout.home, op)
        if not isinstance(outcome, Answer):
            raise rejection(outcome)
        self.joined = True
        self._beat_due_s = self._client.env.boot_s() + config.CONSUMER_SESSION_S / 3
        self._look_due_s = 0.0
        return self.refresh()

    def leave(self) -> None:
        """Leave the group."""
        if self.joined:
            self.joined = False
            with cleaning_up(self._client):
                self._client.submit(self._layout.home, Leave(self._layout.name, self._group, self.id))

    def refresh(self) -> Share | None:
        """The share as it is now; joins again when the others took this member for dead. None: not a member yet."""
        if not self.joined:
            return None
        with self._client.view(self._layout.home, STRONG) as view:
            group = stream_rows.read_group(view.get(stream_rows.GROUPS, self._key))
            place = group.place(self.id)
            if place is not None:
                row = stream_rows.read_stream(view.get(stream_rows.STREAMS, self._layout.name.encode()))
                count = 0 if row is None else row.partitions
                mine = [partition for partition in range(count) if group.owns(place, partition)]
                keys = {p: stream_rows.offset_key(self._layout.name, self._group, p) for p in mine}
                found = view.get_many(stream_rows.OFFSETS, keys.values())
        if place is None:
            return self.join()
        self.generation = group.generation
        return Share(
            group.generation, {p: stream_rows.read_offset(found.get(key)) for p, key in keys.items()}
        )

    def has_committed(self, offsets: Mapping[int, int]) -> bool:
        """Whether its partitions stand at these offsets, and are still its own.

        Who moved them there is not known: the transaction of an earlier owner may have been prepared before the partition was
        given to this member, and decided after.
        """
        keys = {p: stream_rows.offset_key(self._layout.name, self._group, p) for p in offsets}
        with self._client.view(self._layout.home, STRONG) as view:
            group = stream_rows.read_group(view.get(stream_rows.GROUPS, self._key))
            found = view.get_many(stream_rows.OFFSETS, keys.values())
        if group.generation != self.generation or group.place(self.id) is None:
            return False
        return all(stream_rows.read_offset(found.get(keys[p])) == to for p, to in offsets.items())

    def look_now(self) -> None:
        """Have the next ``keep`` look at the group."""
        self._look_due_s = 0.0

    def is_due(self) -> bool:
        """Whether ``keep`` has anything to do now."""
        now_s = self._client.env.boot_s()
        return now_s >= self._look_due_s or now_s >= self._beat_due_s

    def keep(self) -> Share | None:
        """Beat when it is time, look at the group when it is time, expire who is silent; the share if it may have changed."""
        now_s = self._client.env.boot_s()
        if now_s >= self._beat_due_s:
            self._beat_due_s = now_s + config.CONSUMER_SESSION_S / 3
            self._client.submit(self._layout.home, Beat(self._layout.name, self._group, self.id))
        if now_s < self._look_due_s:
            return None
        self._look_due_s = now_s + config.CONSUMER_WATCH_S
        data = self._client.peek(self._layout.home, stream_rows.GROUPS, self._key, PREFIX)
        group = stream_rows.read_group(data)
        if self._expire_silent(group, now_s):
            return self.refresh()
        if group.generation != self.generation:
            # A copy that is behind may show an older generation than this member's own; what is in force decides.
            before = self.generation
            share = self.refresh()
            return share if share is None or share.generation != before else None
        return None

    @property
    def _key(self) -> bytes:
        return stream_rows.group_key(self._layout.name, self._group)

    def _expire_silent(self, group: Group, now_s: float) -> bool:
        expired = False
        seen: dict[str, tuple[int, float]] = {}
        for member in group.members:
            if member.id == self.id:
                continue
            epoch, since_s = self._seen.get(member.id, (-1, now_s))
            if epoch != member.epoch:
                since_s = now_s
            seen[member.id] = (member.epoch, since_s)
            silent = now_s - since_s > config.CONSUMER_SESSION_S
            if silent or self._shard.member_alive(member.process) is False:
                op = Expire(self._layout.name, self._group, member.id, member.epoch)
                expired |= self._client.submit(self._layout.home, op) == Answer(True)
        self._seen = seen
        return expired


def rebalanced(group: str, stream: str) -> Conflict:
    """What a commit raises when partitions were given to other members."""
    return Conflict(
        f"the partitions of stream {stream!r} were reassigned in group {group!r} since records were given here; nothing was "
        "committed. Continue iterating: it begins after what was committed last"
    )
