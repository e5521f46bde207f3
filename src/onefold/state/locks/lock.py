"""Locks among all programs of a space, with fencing tokens.

A lock is a lease: its holder renews it in the background, and when the holder dies or falls silent for the ttl, others give it
up for lost and the next one gets it (``leases``). A holder that was only slow, or suspended, may therefore believe that it has a
lock that is somebody else's by now. ``lock.check()`` tells, and what must be safe in any case passes ``fencing_token`` on to
whatever it writes to, which refuses a token lower than one it has seen.
"""

from __future__ import annotations

import contextlib
from datetime import timedelta
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, Self

from onefold import config
from onefold.durations import seconds
from onefold.errors import Conflict, InvalidArgument, OnefoldError, Timeout, TransactionError, Unavailable
from onefold.machine import undisturbed
from onefold.machine.undisturbed import Held
from onefold.shard.api import Shard
from onefold.shard.receipts import Receipt
from onefold.state.core import guard
from onefold.state.core.cancelling import GivenUp, never
from onefold.state.core.client import StateClient, rejection
from onefold.state.core.handover import carried_out
from onefold.state.core.leases import Lease, keeper
from onefold.state.core.time_limits import cleaning_up
from onefold.state.encoding.keys import encode_key
from onefold.state.encoding.names import check_name
from onefold.state.fold.locks import fold as lock_fold
from onefold.state.fold.locks import ops as lock_ops
from onefold.state.fold.outcomes import Answer, Rejected
from onefold.state.locks.holds import Hold

_Duration = float | timedelta | str
_MS_MAX = 1 << 50
_ENDS_WITHIN_S = 10.0
"""How long one who takes it again waits for what an interrupt left behind."""


class LockInfo(NamedTuple):
    """Who has a lock."""

    member: str
    """The process, as the space calls it."""
    fencing_token: int
    renewals: int
    waiting: int
    """How many wait for it."""


class Lock:
    """A lock, for a ``with`` block: ``with db.lock("nightly") as lock``. Several times over, by one holder at a time.

    Those who wait get it in the order of asking. It is not re-entrant. Those who wait also observe the holder: one that is known
    to be dead (a process of this machine) loses the lock at once, any other one after a ttl without renewal. A dead waiter is
    passed over likewise, when its turn has come. While nobody waits, a dead holder's lock stays as it is.
    """

    def __init__(
        self,
        client: StateClient,
        name: str,
        *,
        ttl: _Duration = "30s",
        timeout: _Duration | None = None,
        renew: bool = True,
    ) -> None:
        """Programs call ``db.lock``. ``renew``: in the background while it is held; else only by ``renew()``.

        Raises InvalidArgument."""
        self._client = client
        self._name = check_name("lock", name)
        self._ttl_s = seconds(ttl, "ttl")
        if self._ttl_s < 0.001:
            raise InvalidArgument(f"ttl must be a millisecond at least; got {ttl!r}")
        self._timeout_s = None if timeout is None else seconds(timeout, "timeout")
        self._renew = renew
        self._shard = client.shard_of(encode_key(name))
        self._subject = ("lock", self._shard, name)
        self._user = Held()
        """Which ``Hold`` has it through this object, or waits for it."""
        self._hold: Hold | None = None
        """The same, for callers that may call nothing."""
        self._token: int | None = None
        self._lost = False
        self._renewed_s = 0.0

    @property
    def name(self) -> str:
        """Its name."""
        return self._name

    @property
    def fencing_token(self) -> int:
        """The number of this grant: larger than that of every grant before. Raises InvalidArgument unless it was acquired."""
        token = self._token
        if token is None:
            raise InvalidArgument(f"the lock {self._name!r} is not held, so it has no fencing token")
        return token

    @property
    def held(self) -> bool:
        """Whether it is held as far as is known here, without asking: acquired, not found lost, and renewed within the ttl."""
        self._client.check_process()  # a forked child has none of its parent's locks
        silent_s = self._client.env.boot_s() - self._renewed_s
        return self._token is not None and not self._lost and silent_s < self._ttl_s

    def holder(self) -> LockInfo | None:
        """Who has it now; None when it is free."""
        with self._client.view(self._shard) as view:
            row = lock_fold.read_row(view, self._name)
        return None if row is None else LockInfo(row.by.member, row.token, row.renewals, row.waiting)

    # -- the block

    def __enter__(self) -> Self:
        hold = self._new_hold()
        try:
            hold.in_block = True
            self._acquire_for(hold, None, never)
            return self
        except BaseException:
            hold.unwanted = True
            undisturbed.mend_later(hold)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        hold, token = self._hold, self._token
        try:
            self._release()
        except BaseException as failure:
            if hold is not None and token is not None:
                hold.unwanted = True
                undisturbed.mend_later(hold)  # without effect when it is over
            # Of other failures the block's own error is the one to see.
            if error is None or not isinstance(failure, OnefoldError) or undisturbed.is_interrupt(failure):
                raise

    def acquire(self, timeout: _Duration | None = None, *, given_up: GivenUp = never) -> None:
        """Wait for the lock and take it. The ``with`` block does this.

        ``timeout``: instead of the lock's own; 0 does not wait. ``given_up``: whether the wait was ended from elsewhere.

        Raises Timeout (definite: it is not held), Unavailable (definite) when too many wait, InvalidArgument when this object has
        it already, TransactionError inside a transaction's block.
        """
        hold = self._new_hold()
        try:
            self._acquire_for(hold, timeout, given_up)
        except BaseException:
            hold.unwanted = True
            undisturbed.mend_later(hold)
            raise

    def _acquire_for(self, hold: Hold, timeout: _Duration | None, given_up: GivenUp) -> None:
        limit_s = self._timeout_s if timeout is None else seconds(timeout, "timeout")
        try:
            guard.check_plain(self._client, f"lock({self._name!r})")
        except TransactionError:
            raise TransactionError(
                f"the lock {self._name!r} was asked for inside a transaction's block. Take it around the transaction"
            ) from None
        carried_out(self._client, self._shard, partial(self._take, hold, limit_s, given_up))

    def _new_hold(self) -> Hold:
        client, shard = self._client, self._shard
        receipt = Receipt() if client.gives_receipts(shard) else None
        return Hold(self, client, partial(_withdraw, client, shard, self._name), receipt)

    def _take(self, hold: Hold, limit_s: float | None, given_up: GivenUp, _by: object) -> None:
        """Wait for it, hold it and have it renewed; until the caller is interrupted."""
        hold.given_up = given_up
        while not self._user.take(hold):
            latest = self._user.holder()
            if not isinstance(latest, Hold):
                continue
            leaves = latest.unwanted or latest.given_up()
            if not leaves or not latest.wait_until_over(_ENDS_WITHIN_S):
                raise InvalidArgument(
                    f"this object holds the lock {self._name!r} already (or waits for it), and locks are not re-entrant. "
                    "To wait for it, use another db.lock(...)"
                )
        self._hold = hold
        try:
            asked_s, token = self._acquire(hold, limit_s, given_up)
            self._renewed_s, self._lost, self._token = asked_s, False, token
            if self._renew:
                keeper(self._client).renewer.add(self)
        except BaseException as error:
            if not _is_mended(hold, error):
                self._end(hold)
            raise
        hold.keep(token)

    def release(self) -> None:
        """Give it up. Leaving the ``with`` block does this.

        Raises Conflict (definite) when it was lost before, so that somebody else may have had it meanwhile; InvalidArgument when
        it was not held."""
        hold, token = self._hold, self._token
        try:
            self._release()
        except BaseException:
            if hold is not None and token is not None:
                hold.unwanted = True
                undisturbed.mend_later(hold)  # without effect when it is over
            raise

    def _release(self) -> None:
        self._client.check_process()
        hold, _ = self._hold, self.fencing_token
        carried_out(self._client, self._shard, partial(self._release_by, hold))

    def _release_by(self, hold: Hold | None, by: object) -> None:
        token = self._token
        if hold is None or token is None or not hold.ends(by):
            raise InvalidArgument(f"the lock {self._name!r} is not held, so it cannot be released")
        keeper(self._client).renewer.remove(self)
        self._token = None
        try:
            with cleaning_up(self._client):
                released = self._submit(lock_ops.Release(self._name, token), hold.receipt)
        except BaseException as error:
            if not _is_mended(hold, error):
                self._end(hold)
            raise
        self._end(hold)
        if isinstance(released, Rejected):
            raise self._was_lost(token)

    def _end(self, hold: Hold) -> None:
        self.forget(hold)
        hold.end()

    def lose(self, hold: Hold) -> None:
        """It is about to be released for an interrupted caller: it is not held from here on."""
        if self._user.held_by(hold):
            self._token = None

    def forget(self, hold: Hold) -> None:
        """It was released, or not granted: another one may have it through this object."""
        if self._user.held_by(hold):
            self._token = self._hold = None  # it dies before this object, whose end is not news to it
            self._user.release(hold)

    def check(self) -> None:
        """Make sure that it is held still. Raises Conflict (definite) when it was lost, InvalidArgument when it is not held."""
        self._client.check_process()
        token = self.fencing_token
        if self._client.env.boot_s() - self._renewed_s >= self.renew_every_s:
            self.renew()  # where no thread does it
        with self._client.view(self._shard) as view:
            row = lock_fold.read_row(view, self._name)
        if row is None or row.token != token:
            self._lost = True
            raise self._was_lost(token)

    def renew(self) -> bool:
        """Say that the holder lives. Raises Conflict (definite) when it was lost; False when it is not held."""
        token, now = self._token, self._client.env.boot_s()
        if token is None:
            return False
        if isinstance(self._submit(lock_ops.Renew(self._name, token)), Rejected):
            if self._token != token:
                return False  # released meanwhile
            self._lost = True
            raise self._was_lost(token)
        self._renewed_s = max(now, self._renewed_s)
        return True

    @property
    def renew_every_s(self) -> float:
        """How often it is renewed."""
        return self._ttl_s / 3

    # -- waiting

    def _acquire(self, hold: Hold, limit_s: float | None, given_up: GivenUp) -> tuple[float, int]:
        """The moment before it was asked for or seen to be granted, and the fencing token. ``limit_s`` is for the wait; each
        operation has the time of a write."""
        client, shard = self._client, self._client.shards[self._shard]
        deadline = None if limit_s is None else client.env.boot_s() + limit_s
        ask = lock_ops.Acquire(
            self._name,
            shard.member,
            hold.holder,
            min(max(1, round(self._ttl_s * 1000)), _MS_MAX),
            limit_s is None or limit_s > 0,
        )

        def unwanted() -> bool:
            return hold.unwanted or given_up()

        standing = False
        try:
            while True:
                asked_s = client.env.boot_s()
                self._check_wanted(unwanted)
                standing = True
                hold.asked = True
                try:
                    outcome = self._submit(ask, hold.receipt)
                except OnefoldError as error:
                    standing = not error.definite
                    raise
                if isinstance(outcome, Rejected):
                    standing = False
                    raise self._refused(outcome)
                token, ticket = outcome
                standing = bool(token or ticket)
                if not token:
                    found = self._wait(shard, ask, ticket, asked_s, deadline, unwanted)
                    asked_s, token = (asked_s, token) if found is None else found
                if token:
                    return asked_s, int(token)
        except BaseException as error:
            if standing and not _is_mended(hold, error):
                # If it fails, the lock is granted to this one some time, and expires.
                with contextlib.suppress(OnefoldError):
                    _withdraw(client, self._shard, self._name, hold.holder)
            raise

    def _wait(
        self,
        shard: Shard,
        ask: lock_ops.Acquire,
        ticket: int,
        before_s: float,
        deadline: float | None,
        given_up: GivenUp,
    ) -> tuple[float, int] | None:
        """Wait for the grant: a moment before it, and the token; None when one must ask again. Raises Timeout."""
        env = self._client.env
        observer = keeper(self._client).observer
        while True:
            now = env.boot_s()
            with shard.view() as view:
                offset, row = view.offset, lock_fold.read_row(view, self._name)
                waits = bool(ticket) and lock_fold.is_waiting(view, self._name, ticket)
            if row is not None and row.by.holder == ask.holder:
                return before_s, row.token
            if row is None or (ask.wait and not waits):
                return None  # it was granted, and given up for lost before this saw it; or it is free now
            before_s = now
            self._check_wanted(given_up)
            if observer.due(self._subject):
                lease = Lease(row.token, row.renewals, row.by.ttl_ms / 1000, row.by.member)
                if observer.look(shard, self._subject, [lease]):
                    self._submit(lock_ops.ExpireLock(self._name, row.token, row.renewals))
                    if not ask.wait:
                        return None  # ask again
                    continue
            left = None if deadline is None else deadline - env.boot_s()
            if left is not None and left <= 0:
                raise Timeout(
                    f"the lock {self._name!r} did not become free in time; the process {row.by.member} has it. Wait longer "
                    "(timeout=), or find out why it is held so long",
                    definite=True,
                )
            shard.wait(offset, config.LEASE_LOOK_S if left is None else min(left, config.LEASE_LOOK_S))

    def _check_wanted(self, given_up: GivenUp) -> None:
        if given_up():
            raise Timeout(
                f"the wait for the lock {self._name!r} was cancelled; it is not held", definite=True
            )

    def _submit(self, op: lock_ops.LockOp, receipt: Receipt | None = None) -> Any:
        return _submit(self._client, self._shard, op, receipt)

    def _refused(self, outcome: Rejected) -> OnefoldError:
        if outcome.reason == lock_fold.CROWDED:
            return Unavailable(
                f"{config.LOCK_WAITERS_MAX} already wait for the lock {self._name!r}. Try again later"
            )
        return rejection(outcome)

    def _was_lost(self, token: int) -> Conflict:
        return Conflict(
            f"the lock {self._name!r} (fencing token {token}) was lost before this: others saw no renewal for its ttl of "
            f"{self._ttl_s:g} s, so somebody else may have had it. Check what was done under it, or use a longer ttl"
        )

    def __repr__(self) -> str:
        state = "free" if self._token is None else f"fencing token {self._token}"
        return f"<Lock {self._name!r}, {state}>"


def _is_mended(hold: Hold, error: BaseException) -> bool:
    """Whether that has interrupted a caller whose hold is mended then."""
    return hold.receipt is not None and undisturbed.is_interrupt(error)


def _submit(client: StateClient, shard: int, op: lock_ops.LockOp, receipt: Receipt | None = None) -> Any:
    """What the fold answers; the rejection when the grant that the operation names is over."""
    outcome = client.submit(shard, op, receipt=receipt)
    if isinstance(outcome, Answer):
        return outcome.value
    if isinstance(outcome, Rejected) and outcome.reason in (lock_fold.LOST, lock_fold.CROWDED):
        return outcome
    raise rejection(outcome)


def _withdraw(client: StateClient, shard: int, name: str, holder: str) -> object:
    """Have the holder of that name stand in no line and have no lock."""
    with cleaning_up(client):
        return _submit(client, shard, lock_ops.Withdraw(name, holder))
