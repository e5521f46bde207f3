"""Blobs of live jobs that nothing names any more, and those of commits that never happened.

The fold keeps a list of the first kind. They are kept for ``config.LIVE_GARBAGE_S``, for readers that still have a run on their
list, and are then removed as ``compute.blobs.sweeping`` says: a plan may be stored again and be named again meanwhile.

A worker that dies between storing a run and the commit that names it leaves a blob that is on no list. No other run ever has the
same bytes (see ``run_bytes``), so one that nothing names for a day will hardly be named, and is removed at once: a worker that
stood still for so long stores its blobs again after the commit. A start that is refused, or dies before the record that names its
plan, leaves the plan: after a day it is hidden as those on the list are, since another start may store the same one.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Literal

from onefold import config
from onefold.compute.blobs import sweeping
from onefold.compute.code.functions import note_of
from onefold.compute.jobs import rows
from onefold.compute.live.run_bytes import PLAN_NOTE, is_sealed, origin_of, plan_note
from onefold.errors import SpaceError
from onefold.state.core.consistency import SESSION, STRONG
from onefold.state.fold import blobs as named_blobs
from onefold.state.fold.live.ops import Sweep
from onefold.state.fold.outcomes import Answer
from onefold.state.streams.large_frames import is_frame

if TYPE_CHECKING:
    from onefold.compute.blobs.store import BlobStore
    from onefold.state.core.client import StateClient

_HEAD_BYTES = 1024
"""Enough for the origin of a run: three names of a job."""
_BATCH = 10_000
_REMOVED_AT_ONCE = 100
_Kind = Literal["plan", "data", "other"]
"""What a blob is: the plan of a live job, bytes that no other blob ever has, or something else."""


class LiveGarbage:
    """What becomes of the blobs of a space's live jobs. Used by one thread at a time; other processes may do the same."""

    def __init__(self, client: StateClient, blobs: BlobStore) -> None:
        self._client = client
        self._blobs = blobs

    def sweep(self, *, kept_s: float | None = None, settles: bool = True) -> int:
        """Hide the blobs that nothing has named for ``kept_s`` (``config.LIVE_GARBAGE_S``), and settle what was hidden before.

        Returns how many were hidden. ``settles=False``: leave out the second, which lists the copies in the place.

        Appends a record only where there is something to remove. Raises as ``Shard.submit`` and ``BlobStore``.
        """
        kept_s = config.LIVE_GARBAGE_S if kept_s is None else kept_s
        before_ms, removed = self._client.env.wall_ms() - round(kept_s * 1000), 0
        for shard in range(self._client.shard_count):
            while True:
                with self._client.view(shard, SESSION) as view:
                    due = named_blobs.garbage(view, before_ms, config.SWEPT_BLOBS_MAX)
                if not due:
                    break
                swept = partial(self._swept, shard)
                done = sweeping.sweep(self._blobs, due, swept, self._named, kind=sweeping.LIVE)
                removed += done
                if not done:
                    break  # others are at it, or this replica is behind
        if settles:
            self.settle()
        return removed

    def settle(self) -> int:
        """Settle what was hidden long enough ago (``sweeping.tidy``); how many copies. Raises as reading and ``BlobStore``."""
        left = set[str]()
        for shard in range(self._client.shard_count):
            with self._client.view(shard, SESSION) as view:
                left |= set(named_blobs.garbage(view))
        return sweeping.tidy(self._blobs, left, self._named, kind=sweeping.LIVE)

    def hidden(self) -> int:
        """How many hidden copies ``settle`` would look at now. Raises BlobsUnavailable."""
        return len(sweeping.settleable(self._blobs, kind=sweeping.LIVE))

    def unnamed(self, *, age_s: float = config.ORPHAN_BLOB_AGE_S) -> int:
        """How many ``remove_unnamed`` would remove. Lists the place. Raises as that."""
        return sum(len(found) for found in self._unnamed(age_s, None, others=False))

    def remove_unnamed(
        self,
        *,
        age_s: float = config.ORPHAN_BLOB_AGE_S,
        names: Iterator[str] | None = None,
        others: bool = False,
    ) -> int:
        """Remove runs and large frames of commits, and plans of starts, that never happened, and are older than that; how many.

        ``names``: all blobs of the place, where the caller has listed it. ``others``: also what is neither of these, such as
        results of batch jobs; only for a place of one space.

        Raises BlobsUnavailable, and as reading.
        """
        removed = 0
        for old in self._unnamed(age_s, names, others=others):
            for some in _batches(iter(old), _REMOVED_AT_ONCE):
                # Looked for after the blobs: what is named now was stored before. And shortly before they go.
                of_jobs = self._of_batch_jobs(some) if others else set()
                for name in sorted(set(some) - self._known(some) - of_jobs):
                    if old[name] == "data":  # no writer ever stores the same again
                        self._blobs.delete(name)
                        removed += 1
                    else:
                        removed += self._hidden(
                            name, sweeping.LIVE if old[name] == "plan" else sweeping.TASKS
                        )
        return removed

    def _unnamed(
        self, age_s: float, names: Iterator[str] | None, *, others: bool
    ) -> Iterator[dict[str, _Kind]]:
        """What nothing names and is older than that, with what it is."""
        oldest = time.time() - age_s
        for some in _batches(self._blobs.everywhere() if names is None else names):
            # Those of batch jobs, mostly all, are known without asking other shards. The place is asked last: it may charge for
            # each question.
            unknown = set(some) - self._of_batch_jobs(some)
            unknown -= self._known(unknown)
            yield {
                name: kind for name in sorted(unknown) if (kind := self._kind(name, oldest, others=others))
            }

    def _hidden(self, name: str, kind: str) -> bool:
        """Hide what nothing names; whether that is still so. Another writer may store the same meanwhile."""
        ticket = self._blobs.hide(name, kind)
        if self._known([name]) or (kind == sweeping.TASKS and self._of_batch_jobs([name])):
            self._blobs.unhide(name, ticket)
            return False
        return True

    def _of_batch_jobs(self, names: Sequence[str]) -> set[str]:
        with self._client.shards[0].view() as view:
            keys = [name.encode() for name in names]
            return {key.decode() for table in (rows.BLOB, rows.GARBAGE) for key in view.get_many(table, keys)}

    def _kind(self, name: str, oldest: float, *, others: bool) -> _Kind | None:
        """Whether it is a plan, or a run or a frame, of this space, and as old as that; None: neither (which ``others``
        takes too), or younger."""
        stored_at = self._blobs.stored_at(name)
        if stored_at is None or stored_at >= oldest:
            return None
        head = self._blobs.begins(name, _HEAD_BYTES)
        note = note_of(head)
        if self._blobs.is_of_one_space:
            is_plan, is_data = note.startswith(PLAN_NOTE), is_sealed(head) or is_frame(head)
        else:
            incarnation, origin = self._client.shards[0].incarnation, origin_of(head)
            is_plan = note == plan_note(incarnation)
            is_data = (origin is not None and origin.space == incarnation) or is_frame(head, incarnation)
        return "plan" if is_plan else "data" if is_data else "other" if others else None

    def _swept(self, shard: int, names: Sequence[str]) -> Sequence[str]:
        outcome = self._client.submit(shard, Sweep(tuple(names)))
        if not isinstance(outcome, Answer):
            raise SpaceError(f"the space refused to forget blobs of live jobs: {outcome}")
        return [str(name) for name in outcome.value]

    def _named(self, names: Iterable[str]) -> frozenset[str]:
        """Those of the names that something names."""
        return self._found(names, garbage=False)

    def _known(self, names: Iterable[str]) -> frozenset[str]:
        """Those that something names, or that are on a list of garbage."""
        return self._found(names, garbage=True)

    def _found(self, names: Iterable[str], *, garbage: bool) -> frozenset[str]:
        wanted, found = list(names), set[str]()
        for shard in range(self._client.shard_count if wanted else 0):
            # Strong: on a replica that is behind, a blob that was named again would look unnamed.
            with self._client.view(shard, STRONG) as view:
                found |= named_blobs.known(view, wanted, garbage=garbage)
        return frozenset(found)


def _batches(names: Iterator[str], size: int = _BATCH) -> Iterator[list[str]]:
    while batch := list(islice(names, size)):
        yield batch
