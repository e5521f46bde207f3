"""The keeper: what a process sees of claims, its own and others', on its own clock.

It renews this process's lease, ends claims whose owner is dead or silent, and finds claims that take so long that a backup
is worth it. Log time is not a clock: a claim has lasted as long as this process has seen it. The keeper only makes
requests; the fold accepts one only while the claim with that epoch is in force.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from onefold import config
from onefold.compute.jobs import ops, state

if TYPE_CHECKING:
    from onefold.compute.client import JobClient

ClaimKey = tuple[int, int, int]
"""(stage, index, epoch)."""
_BACKUP_AFTER_TASKS = 5
_BACKUP_MIN_S = 1.0
_RECENT_TASKS = 101
_PREFIX_CHECK_S = 0.2


class LeaseKeeper:
    """Watches the claims of one run for one process. Thread-safe."""

    def __init__(self, client: JobClient, run: str) -> None:
        self._client = client
        self._run = run
        self._lock = threading.Lock()
        self._held: set[ClaimKey] = set()
        self._durations: dict[int, deque[float]] = {}
        self._first_seen: dict[ClaimKey, float] = {}
        self._unwanted: set[ClaimKey] = set()
        self._silent_since: dict[str, tuple[int, float]] = {}
        self._stray_since: dict[ClaimKey, float] = {}
        self._next_prefix_check = 0.0
        self._observed_at = client.env.boot_s()
        self._next_renewal = client.env.boot_s() + config.LEASE_S / 3

    # -- this process's own claims ----------------------------------------------------------------------------------

    def hold(self, claim: ClaimKey) -> None:
        """A slot of this process works on the claim."""
        with self._lock:
            self._held.add(claim)

    def let_go(self, claim: ClaimKey) -> None:
        """It does not any more."""
        with self._lock:
            self._held.discard(claim)

    def took(self, stage: int, seconds: float) -> None:
        """A task of the stage was finished in this time."""
        with self._lock:
            self._durations.setdefault(stage, deque(maxlen=_RECENT_TASKS)).append(seconds)

    def renew(self) -> None:
        """Say that this process lives, if it holds claims and a third of the lease is over."""
        now = self._client.env.boot_s()
        if now >= self._next_renewal:
            self._next_renewal = now + config.LEASE_S / 3
            if self._held:
                self._client.submit(ops.Renew(self._client.shard.member))

    # -- everybody's claims -----------------------------------------------------------------------------------------

    def observe(self, lost_after_s: float = config.LEASE_S) -> None:
        """Expire claims whose owner is dead for certain, or has not renewed for a lease as this process saw it.

        ``lost_after_s``: when to give up a claim of this process that none of its slots knows of (its answer was lost).
        """
        shard = self._client.shard
        now = self._client.env.boot_s()
        last, self._observed_at = self._observed_at, now
        if now - last > config.LEASE_S / 2:
            # This process was stopped, or the machine slept: it is not a witness of who was silent meanwhile.
            self._silent_since.clear()
        with shard.view() as view:
            claims = state.claims(view, self._run)
            renewals = state.members(view)
        expired: list[ops.Operation] = []
        for claim in claims:
            key = (claim.stage, claim.index, claim.epoch)
            if claim.member == shard.member:
                over = self._is_stray(key, now, lost_after_s)
            else:
                count = renewals[claim.member].renewals if claim.member in renewals else 0
                seen, since = self._silent_since.get(claim.member, (-1, now))
                if count != seen:
                    self._silent_since[claim.member] = (count, now)
                    since = now
                over = shard.member_alive(claim.member) is False or now - since > config.LEASE_S
            if over:
                expired.append(ops.Expire(self._run, *key))
        if expired:
            self._client.submit(*expired)

    def _is_stray(self, key: ClaimKey, now: float, lost_after_s: float) -> bool:
        with self._lock:
            if key in self._held:
                self._stray_since.pop(key, None)
                return False
        return now - self._stray_since.setdefault(key, now) >= lost_after_s

    # -- backups ----------------------------------------------------------------------------------------------------

    def prefix_holder(self, worker: str) -> ClaimKey | None:
        """The claim of the first unfinished task of the dispatch order, if it needs a backup: estimates wait for it."""
        now = time.monotonic()
        if now < self._next_prefix_check:
            return None
        self._next_prefix_check = now + _PREFIX_CHECK_S
        return self.slow_claim(worker, first_only=True)

    def slow_claim(self, worker: str, *, first_only: bool = False) -> ClaimKey | None:
        """A claim of another worker that has lasted more than twice as long as its like take, for a backup."""
        now = time.monotonic()
        with self._client.shard.view() as view:
            claims = state.claims(view, self._run)
        live = {(claim.stage, claim.index, claim.epoch) for claim in claims}
        backed_up = {(claim.stage, claim.index) for claim in claims if claim.backup}
        with self._lock:
            for gone in self._first_seen.keys() - live:
                del self._first_seen[gone]
            for key in live:
                self._first_seen.setdefault(key, now)
            self._unwanted &= live
            candidates = sorted(claims, key=lambda claim: (claim.stage, claim.index))
            for claim in candidates[:1] if first_only else candidates:
                key = (claim.stage, claim.index, claim.epoch)
                if claim.worker == worker or key[:2] in backed_up or key in self._unwanted:
                    continue
                if now - self._first_seen[key] > self._backup_after_s(claim.stage):
                    return key
        return None

    def _backup_after_s(self, stage: int) -> float:
        recent = self._durations.get(stage, ())
        if len(recent) < _BACKUP_AFTER_TASKS:
            return float("inf")
        return max(_BACKUP_MIN_S, config.BACKUP_FACTOR * statistics.median(recent))

    def refused(self, backup: ClaimKey) -> None:
        """The fold does not want a backup of this claim: do not ask again."""
        with self._lock:
            self._unwanted.add(backup)
