"""A wait for a lock: it is asked for once, and then looked at until it was granted."""

from __future__ import annotations

from collections.abc import Collection, Hashable
from typing import Any

from onefold import config
from onefold.backoff import Deadline
from onefold.errors import OnefoldError, Timeout, Unavailable
from onefold.machine import undisturbed
from onefold.shard.api import View
from onefold.shard.receipts import Receipt
from onefold.shard.waiters import ALL, EVERYONE, NOTHING, Notice
from onefold.state.core.client import StateClient, rejection
from onefold.state.core.leases import Lease, Observer, keeper
from onefold.state.core.time_limits import cleaning_up
from onefold.state.core.waiting import Awaited, Pause
from onefold.state.fold.locks import fold as lock_fold
from onefold.state.fold.locks import ops as lock_ops
from onefold.state.fold.outcomes import Answer, Rejected
from onefold.state.locks.holds import Hold

_MS_MAX = 1 << 50


class Asking:
    """One wait. Looks are made one after the other, by any thread."""

    def __init__(
        self,
        client: StateClient,
        shard: int,
        name: str,
        hold: Hold,
        *,
        ttl_s: float,
        limit_s: float | None,
    ) -> None:
        """``limit_s``: of the wait; each operation has the time of a write."""
        self._client = client
        self._shard = shard
        self._name = name
        self._hold = hold
        self._subject = ("lock", shard, name)
        self._deadline = Deadline.after(limit_s, client.env)
        self._ask = lock_ops.Acquire(
            name,
            client.shards[shard].member,
            hold.holder,
            min(max(1, round(ttl_s * 1000)), _MS_MAX),
            limit_s is None or limit_s > 0,
        )
        self._ticket: int | None = None
        """In the line, 0 without; None: it must be asked for."""
        self._seen_at = 0
        self.standing = False
        """Whether the space may know of it, so that it has to be withdrawn when the wait ends without the lock."""
        self.asked_s = 0.0
        """A moment before it was asked for, or seen to be granted."""
        self.token = 0
        """Its fencing token, once it is granted."""

    @property
    def left_s(self) -> float | None:
        """How many seconds the wait may still take."""
        return self._deadline.left_s

    def look(self) -> Pause | None:
        """Ask for the lock if that has to be done, and see whether it is granted; None: it is.

        Raises Timeout (definite) when the time is over or the wait was given up, Unavailable (definite) when too many wait, and
        what ``Shard.submit`` raises. After an error it may be ``standing``.
        """
        while not self.token:
            if self._ticket is None:
                self._ask_for_it()
            else:
                pause = self._see()
                if pause is not None:
                    return pause
        return None

    def _ask_for_it(self) -> None:
        self.asked_s = self._client.env.boot_s()
        self._check_wanted()
        self.standing = True
        self._hold.asked = True
        try:
            outcome = submit(self._client, self._shard, self._ask, self._hold.receipt)
        except OnefoldError as error:
            self.standing = not error.definite or undisturbed.is_interrupt(error)
            raise
        if isinstance(outcome, Rejected):
            self.standing = False
            raise self._refused(outcome)
        token, ticket = outcome
        self.standing = bool(token or ticket)
        self.token, self._ticket = int(token), int(ticket)

    def _see(self) -> Pause | None:
        """Whether it is granted. None: it is, or it must be asked for again, or looked at again."""
        client, env, ask = self._client, self._client.env, self._ask
        shard = client.shards[self._shard]
        observer = keeper(client).observer
        now = env.boot_s()
        with shard.view() as view:
            self._seen_at, row = view.offset, lock_fold.read_row(view, self._name)
            waits = bool(self._ticket) and lock_fold.is_waiting(view, self._name, self._ticket or 0)
        if row is not None and row.by.holder == ask.holder:
            self.token = row.token
            return None
        if row is None or (ask.wait and not waits):
            self._ticket = None  # it was granted, and given up for lost before this saw it; or it is free now
            return None
        self.asked_s = now
        self._check_wanted()
        if observer.due(self._subject) and observer.look(shard, self._subject, [_lease(row)]):
            submit(client, self._shard, lock_ops.ExpireLock(self._name, row.token, row.renewals))
            if not ask.wait:
                self._ticket = None
            return None
        if self._deadline.passed:
            raise Timeout(
                f"the lock {self._name!r} did not become free in time; the process {row.by.member} has it. Wait longer "
                "(timeout=), or find out why it is held so long",
                definite=True,
            )
        news = LockNews(client, self._shard, self._name, row)
        return Pause((Awaited(self._shard, news, self._seen_at, self._ticket or 0),), one_in_s=news.quiet_s())

    def wait(self, pause: Pause) -> None:
        """Wait in this thread until it is time for the next look."""
        # Nobody else looks here whether the holder is dead.
        wait_s = min(pause.one_in_s, config.LEASE_LOOK_S)
        self._client.shards[self._shard].wait(self._seen_at, self._deadline.within(wait_s))

    def withdraw(self) -> None:
        """Have this one stand in no line and have no lock."""
        withdraw(self._client, self._shard, self._name, self._hold.holder)

    def _check_wanted(self) -> None:
        if self._hold.unwanted or self._hold.given_up():
            raise Timeout(
                f"the wait for the lock {self._name!r} was cancelled; it is not held", definite=True
            )

    def _refused(self, outcome: Rejected) -> OnefoldError:
        if outcome.reason == lock_fold.CROWDED:
            return Unavailable(
                f"{config.LOCK_WAITERS_MAX} already wait for the lock {self._name!r}. Try again later"
            )
        return rejection(outcome)


class LockNews:
    """What wakes those who wait for a lock: those who stand in its line no longer are, and one when the holder may be lost."""

    def __init__(self, client: StateClient, shard: int, name: str, row: lock_fold.Row) -> None:
        """``row``: the lock as it was seen when the wait began."""
        self._client = client
        self._shard = shard
        self._name = name
        self._subject = ("lock", shard, name)
        self._row: bytes | None = b""
        self._holder: tuple[str, ...] = (row.by.member,)
        self._token = row.token

    @property
    def key(self) -> Hashable:
        return lock_fold.LOCKS, self._name

    @property
    def members(self) -> Collection[str]:
        return self._holder

    def quiet_s(self) -> float:
        """How long the holder may stay silent from now on, without being given up for lost while its process lives."""
        left_s = self._observer.left_s(self._subject, self._token)
        # A lease that was just seen for the first time ends a moment later than it was looked at.
        return config.LEASE_LOOK_S if left_s is None else max(left_s, config.LEASE_LOOK_S)

    def check(self, view: View, after: int) -> Notice:  # noqa: ARG002
        data = view.get(lock_fold.LOCKS, self._name.encode())
        row = lock_fold.read_row(view, self._name)
        if row is not None and data == self._row:
            return NOTHING  # a free one may have been held meanwhile, when one of the group looked
        self._row = data
        if row is None:
            self._holder = ()
            return ALL
        self._holder = (row.by.member,)
        self._token = row.token
        # A renewal is noted as of now, without a look: the next one is due when the lease is over.
        over = self._observer.look(self._client.shards[self._shard], self._subject, [_lease(row)])
        first = lock_fold.first_waiting(view, self._name)
        look_s = config.LEASE_LOOK_S if over else self.quiet_s()
        return Notice(EVERYONE, look_s, below=first)

    @property
    def _observer(self) -> Observer:
        return keeper(self._client).observer


def _lease(row: lock_fold.Row) -> Lease:
    return Lease(row.token, row.renewals, row.by.ttl_ms / 1000, row.by.member)


def withdraw(client: StateClient, shard: int, name: str, holder: str) -> object:
    """Have the holder of that name stand in no line and have no lock."""
    with cleaning_up(client):
        return submit(client, shard, lock_ops.Withdraw(name, holder))


def submit(client: StateClient, shard: int, op: lock_ops.LockOp, receipt: Receipt | None = None) -> Any:
    """What the fold answers; the rejection when the grant that the operation names is over."""
    outcome = client.submit(shard, op, receipt=receipt)
    if isinstance(outcome, Answer):
        return outcome.value
    if isinstance(outcome, Rejected) and outcome.reason in (lock_fold.LOST, lock_fold.CROWDED):
        return outcome
    raise rejection(outcome)


def is_mended(hold: Hold, error: BaseException) -> bool:
    """Whether that has interrupted a caller whose hold is mended then."""
    return hold.receipt is not None and undisturbed.is_interrupt(error)
