"""What is due for the whole space, in the order in which it is done: what was kept for jobs that are over, and blobs.

One list for all: a program that opens the space looks whether anything waits, the keeper does it, and the doctor says what waits
and does it with ``--fix``.

What a duty needs is imported when it is asked for: neither a program that appends a large frame nor a node without blobs pays
for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from onefold import config
from onefold.machine.first_use import first_use
from onefold.state.fold.blobs import LIVE_JOBS, garbage

if TYPE_CHECKING:
    from onefold.compute.blobs.store import BlobStore
    from onefold.compute.garbage import Garbage
    from onefold.compute.live.garbage import LiveGarbage
    from onefold.state.core.client import StateClient

Note = Callable[[str, dict[str, Any]], None]
"""An event, with its fields."""


class Space:
    """What a duty is done on."""

    def __init__(
        self,
        client: StateClient,
        blobs: Callable[[], BlobStore],
        note: Note = lambda *_: None,
        listed: Iterator[str] | None = None,
    ) -> None:
        """``note``: takes what is given up. ``listed``: all blobs of the place, where it was listed already; for one use."""
        self.client = client
        self.blobs = blobs
        self.note = note
        self.listed = listed

    @property
    def garbage(self) -> LiveGarbage:
        """Blobs of live jobs and streams."""
        with first_use:
            from onefold.compute.live.garbage import LiveGarbage
        return LiveGarbage(self.client, self.blobs())

    @property
    def results(self) -> Garbage | None:
        """Blobs of batch jobs; None on a cluster, where nodes that work on them remove those."""
        if not self.client.always_strong:
            return None
        with first_use:
            from onefold.compute.client import JobClient
            from onefold.compute.garbage import Garbage
        shard, env = self.client.shards[0], self.client.env
        return Garbage(JobClient(shard, env=env, blobs=self.blobs(), code="reference"))


class Duty(NamedTuple):
    """One thing that is done periodically for the whole space."""

    name: str
    """What it is called in logs."""
    what: str
    """What waits, in words behind a count."""
    waits: Callable[[Space], int]
    """How many of these there are to be done now. Changes nothing. Raises as reading, and BlobsUnavailable."""
    do: Callable[[Space], int]
    """Do it, for how many. Others may do the same at this moment. Raises as ``Shard.submit``, BlobsUnavailable and OSError."""
    removes_blobs: bool = False
    """Whether these are blobs: then copies of them are to be settled later."""
    lists_place: bool = False
    """Whether it has to list the place that has the blobs, which may take long, and cost."""
    settles_copies: bool = False
    """Whether these are copies of blobs that were removed."""


def _held(space: Space) -> int:
    from onefold.state.fold.streams.rows import holders

    for shard in space.client.shards:  # where nothing is held at all, that costs a look
        with shard.view() as view:
            if next(iter(holders(view)), None) is not None:
                break
    else:
        return 0
    with first_use:
        from onefold.compute.live.holds import left_over
    return left_over(space.client)


def _release(space: Space) -> int:
    with first_use:
        from onefold.compute.live.holds import release
    return release(space.client)


def _sends(client: StateClient) -> bool:
    """Whether there are, or were, live jobs, and other shards that they may have sent rows to."""
    if client.shard_count > 1:
        for shard in client.shards:
            with shard.view() as view:
                if next(iter(view.scan(LIVE_JOBS, limit=1)), None) is not None:
                    return True
    return False


def _unsent(space: Space) -> int:
    if not _sends(space.client):
        return 0
    with first_use:
        from onefold.compute.live.output.left import unsent
    return sum(1 for _ in unsent(space.client))


def _send(space: Space) -> int:
    if not _unsent(space):
        return 0
    with first_use:  # with Polars
        from onefold.compute.live.output.settling import settle_left
    return settle_left(space.client, lambda why: space.note("live_rows_given_up", {"why": why}))


def _cursors(space: Space) -> int:
    if not _sends(space.client):
        return 0
    with first_use:
        from onefold.compute.live.output.left import stale_cursors
    return sum(1 for _ in stale_cursors(space.client))


def _drop_cursors(space: Space) -> int:
    if not _cursors(space):
        return 0
    with first_use:  # with Polars
        from onefold.compute.live.output.settling import drop_cursors
    return drop_cursors(space.client)


def _garbage(space: Space) -> int:
    before_ms, found = space.client.env.wall_ms() - round(config.LIVE_GARBAGE_S * 1000), 0
    for shard in space.client.shards:
        with shard.view() as view:
            found += len(garbage(view, before_ms))
    return found


def _results(space: Space) -> int:
    from onefold.compute.jobs import GARBAGE

    if not space.client.always_strong:
        return 0
    with space.client.shards[0].view() as view:
        return sum(1 for _ in view.scan(GARBAGE))


def _sweep_results(space: Space) -> int:
    found = space.results if _results(space) else None
    return 0 if found is None else found.sweep(settles=False)


def _copies(space: Space) -> int:
    found = space.results
    return space.garbage.hidden() + (0 if found is None else found.hidden())


def _settle_copies(space: Space) -> int:
    found = space.results
    return space.garbage.settle() + (0 if found is None else found.settle())


def _remove_unnamed(space: Space) -> int:
    names, space.listed = space.listed, None
    return space.garbage.remove_unnamed(names=names)


DUTIES: Final = (
    Duty("holds", "parts of live jobs that are over still keep records of streams", _held, _release),
    Duty("endings", "live jobs that are over have rows to send to other shards", _unsent, _send),
    Duty("cursors", "shards have cursors of live jobs that were dropped", _cursors, _drop_cursors),
    Duty(
        "garbage",
        "blobs that nothing names any more can be removed",
        _garbage,
        lambda space: space.garbage.sweep(settles=False),
        removes_blobs=True,
    ),
    Duty(
        "results",
        "results of jobs that nothing names can be removed",
        _results,
        _sweep_results,
        removes_blobs=True,
    ),
    Duty(
        "unnamed",
        "blobs of commits and starts that never happened can be removed",
        lambda space: space.garbage.unnamed(),
        _remove_unnamed,
        removes_blobs=True,
        lists_place=True,
    ),
    Duty(
        "copies",
        "copies of blobs that were removed can be dropped",
        _copies,
        _settle_copies,
        lists_place=True,
        settles_copies=True,
    ),
)
"""All of them. What lets blobs go comes before what removes them, and dropping the copies last."""
