"""Locks among all programs of a space, with fencing tokens.

A lock is a lease: its holder renews it in the background, and when the holder dies or falls silent for the ttl, others give it
up for lost and the next one gets it (``leases``). A holder that was only slow, or suspended, may therefore believe that it has a
lock that is somebody else's by now. ``lock.check()`` tells, and what must be safe in any case passes ``fencing_token`` on to
whatever it writes to, which refuses a token lower than one it has seen.
"""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, Self

from onefold.durations import seconds, wait_seconds
from onefold.errors import Conflict, InvalidArgument, OnefoldError, TransactionError
from onefold.machine import undisturbed
from onefold.machine.undisturbed import Held, if_possible
from onefold.shard.receipts import Receipt
from onefold.state.core import guard
from onefold.state.core.cancelling import GivenUp, never
from onefold.state.core.client import StateClient
from onefold.state.core.handover import carried_out
from onefold.state.core.leases import keeper
from onefold.state.core.time_limits import cleaning_up
from onefold.state.core.waiting import Pause
from onefold.state.encoding.keys import encode_key
from onefold.state.encoding.names import check_name
from onefold.state.fold.locks import fold as lock_fold
from onefold.state.fold.locks import ops as lock_ops
from onefold.state.fold.outcomes import Rejected
from onefold.state.locks.asking import Asking, is_mended, submit, withdraw
from onefold.state.locks.holds import Hold

_Duration = float | timedelta | str
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
        self._timeout_s = None if timeout is None else wait_seconds(timeout)
        self._renew = renew
        self._shard = client.shard_of(encode_key(name))
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
        """The number of this grant: larger than that of every grant before.

        Raises:
            InvalidArgument: definite; it was not acquired.
        """
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
        hold = self.new_hold()
        try:
            hold.in_block = True
            self._acquire_for(hold, None)
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

    def acquire(self, timeout: _Duration | None = None) -> None:
        """Wait for the lock and take it. The ``with`` block does this.

        ``timeout``: instead of the lock's own; 0 does not wait.

        Raises:
            Timeout: definite; it did not become free in time and is not held.
            Unavailable: definite; too many wait, or the space cannot be reached.
            AppendUnknown: indefinite; it may be granted, and is then free again after its ttl.
            InvalidArgument: definite; this object has it already.
            TransactionError: definite; inside a transaction's block.
        """
        hold = self.new_hold()
        try:
            self._acquire_for(hold, timeout)
        except BaseException:
            hold.unwanted = True
            undisturbed.mend_later(hold)
            raise

    def _acquire_for(self, hold: Hold, timeout: _Duration | None) -> None:
        limit_s = self._timeout_s if timeout is None else wait_seconds(timeout)
        try:
            guard.check_plain(self._client, f"lock({self._name!r})")
        except TransactionError:
            raise TransactionError(
                f"the lock {self._name!r} was asked for inside a transaction's block. Take it around the transaction"
            ) from None
        carried_out(self._client, self._shard, partial(self._take, hold, limit_s))

    def new_hold(self) -> Hold:
        """For one wait."""
        client, shard = self._client, self._shard
        return Hold(self, client, partial(withdraw, client, shard, self._name), client.receipt(shard))

    def _take(self, hold: Hold, limit_s: float | None, _by: object) -> None:
        """Wait for it, hold it and have it renewed; until the caller is interrupted."""
        self.claim(hold)
        try:
            asking = self.asking(hold, limit_s)
            try:
                while (pause := asking.look()) is not None:
                    asking.wait(pause)
            except BaseException as error:
                if asking.standing and not is_mended(hold, error):
                    # If it fails, the lock is granted to this one some time, and expires.
                    with if_possible:
                        asking.withdraw()
                raise
            self.note_granted(asking)
        except BaseException as error:
            if not is_mended(hold, error):
                self.end(hold)
            raise
        hold.keep(asking.token)

    # -- the steps of a wait

    def claim(self, hold: Hold, given_up: GivenUp = never) -> None:
        """The hold is the one that has the lock through this object, or waits for it. Raises InvalidArgument when another is."""
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

    def asking(self, hold: Hold, limit_s: float | None) -> Asking:
        """A wait of the hold. ``limit_s``: seconds; None: however long it takes."""
        return Asking(
            self._client,
            self._shard,
            self._name,
            hold,
            ttl_s=self._ttl_s,
            limit_s=limit_s,
        )

    def note_granted(self, asking: Asking) -> None:
        """The wait has come to its end: it is held from here on, and renewed."""
        self._renewed_s, self._lost, self._token = asking.asked_s, False, asking.token
        if self._renew:
            keeper(self._client).renewer.add(self)

    def acquisition(self, timeout: _Duration | None) -> Acquisition:
        """``acquire`` in steps, for callers that wait without a thread."""
        return Acquisition(self, self._timeout_s if timeout is None else wait_seconds(timeout))

    def release(self) -> None:
        """Give it up. Leaving the ``with`` block does this.

        Raises:
            Conflict: definite; it was lost before, so somebody else may have had it meanwhile.
            InvalidArgument: definite; it is not held.
            Unavailable, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
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
            if not is_mended(hold, error):
                self.end(hold)
            raise
        self.end(hold)
        if isinstance(released, Rejected):
            raise self._was_lost(token)

    def end(self, hold: Hold) -> None:
        """It was released, or not granted."""
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
        """Make sure that it is held still.

        Raises:
            Conflict: definite; it was lost.
            InvalidArgument: definite; it is not held.
        """
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
        """Say that the holder lives. False when it is not held.

        Raises:
            Conflict: definite; it was lost.
            Unavailable, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
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

    def _submit(self, op: lock_ops.LockOp, receipt: Receipt | None = None) -> Any:
        return submit(self._client, self._shard, op, receipt)

    def _was_lost(self, token: int) -> Conflict:
        return Conflict(
            f"the lock {self._name!r} (fencing token {token}) was lost before this: others saw no renewal for its ttl of "
            f"{self._ttl_s:g} s, so somebody else may have had it. Check what was done under it, or use a longer ttl"
        )

    def __repr__(self) -> str:
        state = "free" if self._token is None else f"fencing token {self._token}"
        return f"<Lock {self._name!r}, {state}>"


class Acquisition:
    """The getting of a lock in looks, which are made one after the other in threads that no signal interrupts."""

    def __init__(self, lock: Lock, limit_s: float | None) -> None:
        """See ``Lock.acquisition``."""
        self._lock = lock
        self._limit_s = limit_s
        self._hold: Hold | None = None
        self._asking: Asking | None = None
        self._given_up = False

    @property
    def left_s(self) -> float | None:
        """How many seconds the wait may still take."""
        return None if self._asking is None else self._asking.left_s

    def look(self) -> Pause | None:
        """Ask for it, or see whether it was granted; None: it is held. Raises as ``Lock.acquire``; then nothing is left of it."""
        lock = self._lock
        try:
            if self._asking is None:
                hold = lock.new_hold()
                lock.claim(hold, lambda: self._given_up)
                self._hold = hold
                self._asking = lock.asking(hold, self._limit_s)
            pause = self._asking.look()
            if pause is None and self._hold is not None:
                lock.note_granted(self._asking)
                self._hold.keep(self._asking.token)
            return pause
        except BaseException:
            self.undo()
            raise

    def give_up(self) -> bool:
        """Nobody wants it any more; a look under way ends soon. Whether there is nothing to undo."""
        self._given_up = True
        return self._hold is None

    def undo(self) -> None:
        """Release it, or leave the line. While no look is under way."""
        hold, self._hold = self._hold, None
        if hold is None:
            return
        if hold.token is not None:
            self._lock.release()
            return
        if self._asking is not None and self._asking.standing:
            # If it fails, the lock is granted to this one some time, and expires.
            with if_possible:
                self._asking.withdraw()
        self._lock.end(hold)
