"""Whether a worker joins its job, or stands by.

Workers of a job share its keys, but each of them reads the whole input, and a table is as far as the last of them. So a job that
one worker can do is done by one. Others stand by: known as workers, they observe whether the others live, and take a share when

- lanes have no owner, of a job that begins or whose worker is gone, and no other worker takes them;
- the job has been behind for longer than its latency and ``config.LIVE_BEHIND_S``, one after the other until it is not;
- a worker holds so much open state that it reads nothing.

It stands by again when all has been quiet for long enough that fewer can do the job, and when it cannot work, for that long,
where others might: it lives, so nobody expires it, and gives lanes with a commit only. Who was started as one of several in a
process takes its share at once, and keeps it while it can work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from onefold import config
from onefold.state.fold.live import rows as live_rows

if TYPE_CHECKING:
    from onefold.compute.live.bundles import Worker
    from onefold.compute.live.idleness import Place
    from onefold.compute.live.worker.part_worker import PartWorker
    from onefold.state.fold.live.rows import GenerationRow


TAKE_S: Final = 1.0
"""Lanes that have no owner for longer than this are taken by a worker that stands by; before that by those that work."""
TAKE_IN_TROUBLE_S: Final = 3.0
"""And by one that could not work when it tried last."""


class Standby:
    """Of one worker. For one thread, but for ``shares``."""

    def __init__(
        self, worker: Worker, parts: Sequence[PartWorker], latency_s: float, *, shares: bool
    ) -> None:
        self._worker, self._job, self._parts = worker, worker.job, parts
        self.shares = shares
        """It takes its share at once. May be set by other threads."""
        chance = int.from_bytes(self._job.client.env.token(2), "big") / 2**16
        self._patience_s = 2 * latency_s + config.LIVE_BEHIND_S * (1 + chance)
        self._helps = False
        """It wants a share of what the others do not do: it waits until they give lanes."""
        self._workers: frozenset[str] = frozenset()
        self._marks: dict[tuple[str, Place], int] = {}
        """Where the inputs ended when the job was last seen to have read what there was at such a moment ..."""
        self._marked_s = 0.0
        """... and when that was."""
        self._free_s: float | None = None
        """Since when it sees lanes without an owner."""
        self._busy_s = 0.0
        """How long it has worked, without waiting for commits, since it looked last whether all is quiet ..."""
        self._looked_s: float | None = None
        """... which was then. None: since then it has held nothing."""
        self._trouble_s: float | None = None
        """Since when no round of it could be done."""
        self._left_s = 0.0
        """When it gave up its lanes because of that ..."""
        self._away_s = 0.0
        """... and for how long it does not help after it. 0: it has worked since."""

    def worked(self, seconds: float) -> None:
        """A round took it so long, commits included."""
        self._busy_s += seconds - sum(part.committing_s for part in self._parts)
        for part in self._parts:
            part.committing_s = 0.0
        self._trouble_s = None
        if self._committed_s() > self._left_s:
            self._away_s = 0.0

    def met_trouble(self) -> None:
        """A round could not be done, and is tried again. Where that has been so for long, it leaves its share to others, if there
        are any. Raises as ``Shard.submit``."""
        now = self._job.client.env.boot_s()
        if self._trouble_s is None:
            self._trouble_s = now
        if now - max(self._trouble_s, self._committed_s()) < self._patience_s:
            return
        with self._job.local() as view:
            known = live_rows.workers(view, self._job.name, self._worker.generation)
            workers = live_rows.sharing_workers(view, self._job.name, self._worker.generation)
        if self._worker.id not in workers or len(known) < 2:
            return
        self._leave()
        longest_s = max(self._patience_s, config.LIVE_QUIET_S)
        self._away_s = min(longest_s, max(self._patience_s, 2 * self._away_s))
        self._left_s = now

    def works(self, generation: GenerationRow) -> bool:
        """Whether it has, or wants, a share of the work now."""
        is_away = self._away_s > 0 and self._job.client.env.boot_s() - self._left_s < self._away_s
        if (self.shares and not is_away) or (self._holds() and not self._leaves(generation)):
            self._free_s = None
            return True
        if self._joins(generation, is_away=is_away):
            return True
        self._looked_s = self._trouble_s = None
        for part in self._parts:
            part.drop_lost()
        return False

    def _joins(self, generation: GenerationRow, *, is_away: bool) -> bool:
        """Whether one that holds nothing takes, or waits for, a share. ``is_away``: it could not work a moment ago."""
        ready = [one for one in self._parts if generation.state == "draining" or not one.waits_for_streams()]
        with self._job.local() as view:
            known = live_rows.workers(view, self._job.name, self._worker.generation)
            workers = live_rows.sharing_workers(view, self._job.name, self._worker.generation)
            owners = {
                part.name: {one.row.owner for one in live_rows.bundles(view, part.key)}
                for part in self._parts
            }
        if any(self._worker.id in found for found in owners.values()):
            return True
        free = [part for part in ready if "" in owners[part.name]]
        now = self._job.client.env.boot_s()
        free_s = self._free_s = None if not free else now if self._free_s is None else self._free_s
        takes_s = TAKE_IN_TROUBLE_S if is_away else TAKE_S if workers else 0.0
        if free_s is not None and now - free_s >= takes_s:
            return self._claims(free)
        if self._worker.id in workers:
            return self._helps
        if self._worker.id not in known:
            self._worker.stand_by(self._parts[0].name)
        if is_away:
            return False
        is_full = any(row.state_bytes for row in workers.values())
        self._helps = is_full or self._is_behind(generation, frozenset(workers))
        return self._helps

    def _holds(self) -> bool:
        return any(self._worker.held(part.name) for part in self._parts)

    def _committed_s(self) -> float:
        return max((part.committed_s for part in self._parts), default=0.0)

    def _leave(self) -> None:
        self._helps = False
        self._worker.leave()
        for part in self._parts:
            part.drop_lost()

    def _leaves(self, generation: GenerationRow) -> bool:
        """Whether it gave up its lanes: for so long all workers together had so little to do that one without it can do it, and
        read what there was."""
        now = self._job.client.env.boot_s()
        if self._looked_s is None:
            self._busy_s, self._looked_s = 0.0, now
            _, self._marks = self._progress(generation)
            self._marked_s = now
            return False
        passed_s = now - self._looked_s
        if passed_s < config.LIVE_QUIET_S:
            return False
        share, self._busy_s, self._looked_s = self._busy_s / passed_s, 0.0, now
        with self._job.local() as view:
            workers = live_rows.sharing_workers(view, self._job.name, self._worker.generation)
        count, state_bytes = len(workers), sum(part.state_bytes for part in self._parts)
        is_quiet = share * count < config.LIVE_QUIET_SHARE
        fits = state_bytes * count < config.LIVE_STATE_BYTES_MAX / 2
        doubts = any(held.in_doubt for part in self._parts for held in self._worker.held(part.name))
        keeps_up = self._keeps_up(generation, now, passed_s)
        if count < 2 or min(workers) == self._worker.id or not (is_quiet and fits and keeps_up) or doubts:
            return False
        self._leave()
        return True

    def _claims(self, free: Sequence[PartWorker]) -> bool:
        """Take what nobody owns, of all parts before work on the first one begins. Where another one has come first it stands by
        again, before lanes are given."""
        self._helps = False
        held = [self._worker.claim(part.name) for part in free]
        if any(held):
            return True
        self._worker.leave()
        return False

    def _is_behind(self, generation: GenerationRow, workers: frozenset[str]) -> bool:
        """Whether the same workers have not yet read what there was such a time ago."""
        now = self._job.client.env.boot_s()
        read, ends = self._progress(generation)
        if self._has_read(read) or workers != self._workers:
            self._workers, self._marks, self._marked_s = workers, ends, now
        return now - self._marked_s >= self._patience_s

    def _keeps_up(self, generation: GenerationRow, now: float, passed_s: float) -> bool:
        """Whether all workers together have read what there was when it looked last, so long ago, or not much earlier."""
        read, ends = self._progress(generation)
        if not self._has_read(read):
            return False
        marked_s, self._marks, self._marked_s = self._marked_s, ends, now
        return now - marked_s < passed_s + self._patience_s

    def _has_read(self, read: Mapping[tuple[str, Place], int]) -> bool:
        return all(read.get(place, end) >= end for place, end in self._marks.items())

    def _progress(
        self, generation: GenerationRow
    ) -> tuple[dict[tuple[str, Place], int], dict[tuple[str, Place], int]]:
        """How far all workers have read each partition of each part, and where those end."""
        read: dict[tuple[str, Place], int] = {}
        ends: dict[tuple[str, Place], int] = {}
        for part in self._parts:
            for place, (position, end) in part.progress(generation).items():
                read[part.name, place], ends[part.name, place] = position, end
        return read, ends
