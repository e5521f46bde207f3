"""Does in other shards what commits have put into the outbox, each message once and in order.

The writes are in one record with a ``MoveCursor``, which is refused unless the target shard stands where the forwarder believes.
So it does not matter how many forwarders there are, or when one dies: what another one did, or what happened with an unknown
outcome, is found by the cursor. Nor does it matter how old the view is in which a forwarder looks for messages: it looks at what
is here, which costs a cluster nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from onefold import config
from onefold.compute.live.client import refused
from onefold.compute.live.output.writers import decode_writes
from onefold.errors import JobFailed
from onefold.machine.undisturbed import let_pass
from onefold.state.fold.live import outbox as outbox_fold
from onefold.state.fold.live import rows as live_rows
from onefold.state.fold.live.ops import Forwarded, MoveCursor
from onefold.state.fold.ops import Commit
from onefold.state.fold.outcomes import Committed, Rejected

if TYPE_CHECKING:
    from onefold.compute.live.client import LiveJob
    from onefold.state.fold.kinds import Write


@dataclass(frozen=True)
class _Waiting:
    """Messages for one shard."""

    shard: int
    first: int
    last: int
    messages: tuple[bytes, ...]


class Forwarder:
    """Of one generation of a job. For one thread."""

    def __init__(self, job: LiveJob, generation: int) -> None:
        self._job = job
        self._generation = generation
        self._key = live_rows.generation_key(job.name, generation)

    def waiting_bytes(self) -> int:
        """What waits for the fullest of the other shards."""
        if self._job.client.shard_count == 1:
            return 0
        with self._job.local() as view:
            return max((head.size for _, head in live_rows.outbox_heads(view, self._key)), default=0)

    def forward(self) -> bool:
        """Do some of what waits for each shard; whether there was anything.

        Raises JobFailed for what a shard refuses, NotRunning when the generation was dropped, and as ``Shard.submit``: then
        nobody knows whether it happened, and calling again finds out.
        """
        if self._job.client.shard_count == 1:
            return False
        since, waiting = self._read()
        for one in waiting:
            self._do(one, since)
        return bool(waiting)

    def settle(self) -> list[str]:
        """Of a generation that takes no more commits: do all that waits. What a shard refuses is given up; why that was.

        Raises as ``Shard.submit``; calling again continues.
        """
        if self._job.client.shard_count == 1:
            return []
        refusals: list[str] = []
        shows_all = True  # the last commits may be of workers elsewhere
        while True:
            since, waiting = self._read(shows_all=shows_all)
            shows_all = False
            if not waiting:
                return refusals
            for one in waiting:
                try:
                    self._do(one, since)
                except JobFailed as error:
                    let_pass(error)
                    refusals.append(str(error))
                    self._give_up(one, since)

    def _give_up(self, waiting: _Waiting, since: int) -> None:
        """Move the cursor without the writes: a forwarder that is late finds them done."""
        job, cursor = self._job, outbox_fold.cursor_key(self._job.name, self._generation, self._job.home)
        with job.client.shards[waiting.shard].view() as view:
            at = live_rows.cursor_of(view, cursor, since)
            is_behind = at < waiting.last and not live_rows.is_old_cursor(view, cursor, since)
        if is_behind:
            move = MoveCursor(job.name, self._generation, job.home, since, at, waiting.last)
            outcome = job.client.submit(waiting.shard, Commit((), (), (move,)))
            if isinstance(outcome, Rejected) and outcome.reason == "forwarded":
                return  # another one was faster: looked at again
            if not isinstance(outcome, Committed):
                raise refused(outcome)
        job.submit(Forwarded(job.name, self._generation, waiting.shard, waiting.last))

    def _read(self, *, shows_all: bool = False) -> tuple[int, list[_Waiting]]:
        """When the generation began, and what waits. ``shows_all``: all of it, otherwise what is here."""
        found: list[_Waiting] = []
        with self._job.view() if shows_all else self._job.local() as view:
            generation = live_rows.generation_of(view, self._job.name, self._generation)
            for shard, head in live_rows.outbox_heads(view, self._key):
                if head.first == head.next:
                    continue
                start = live_rows.outbox_key(self._key, shard, head.first)
                stop = live_rows.outbox_key(self._key, shard, head.next)
                messages: list[bytes] = []
                size = 0
                for _, message in view.scan(live_rows.OUTBOX, start, stop):
                    messages.append(message)
                    size += len(message)
                    if size >= config.LIVE_FORWARD_BYTES:
                        break
                found.append(_Waiting(shard, head.first, head.first + len(messages) - 1, tuple(messages)))
        return (0 if generation is None else generation.offset), found

    def _do(self, waiting: _Waiting, since: int) -> None:
        job = self._job
        writes: list[Write] = [write for data in waiting.messages for write in decode_writes(data)]
        move = MoveCursor(job.name, self._generation, job.home, since, waiting.first - 1, waiting.last)
        outcome = job.client.submit(waiting.shard, Commit((), (), (move, *writes)))
        through = waiting.last
        if not isinstance(outcome, Committed):
            if isinstance(outcome, Rejected) and outcome.reason == "over":
                raise refused(outcome)
            if not isinstance(outcome, Rejected) or outcome.reason != "forwarded":
                raise JobFailed(
                    f"live job {job.name!r}: shard {waiting.shard} refuses its rows: {refused(outcome)}"
                )
            with job.client.shards[waiting.shard].view() as view:
                cursor = outbox_fold.cursor_key(job.name, self._generation, job.home)
                through = live_rows.cursor_of(view, cursor, since)
            if through < waiting.first:
                raise JobFailed(
                    f"live job {job.name!r}: shard {waiting.shard} has its rows up to {through}, and {waiting.first} is the "
                    "first that is left to send: that shard is older than the job's. Restore all shards of a space together"
                )
        job.submit(Forwarded(job.name, self._generation, waiting.shard, through))
