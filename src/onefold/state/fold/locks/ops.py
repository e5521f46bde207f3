"""Operations of locks: see ``state.fold.locks.fold``."""

from __future__ import annotations

from onefold.state.fold.kind import Natural, Operation, Positive


class Acquire(Operation, frozen=True, array_like=True, tag="acq"):
    """Ask for a lock. Answer: ``(token, ticket)``: the fencing token when it is granted, else 0 and the place in the waiting
    list; (0, 0) when it is held and ``wait`` is false. Rejected (``crowded``) when too many wait."""

    lock: str
    member: str
    """The process that asks (``Shard.member``): when it is known to be dead, its lease ends."""
    holder: str
    """A name for this one try."""
    ttl_ms: Positive
    wait: bool


class Renew(Operation, frozen=True, array_like=True, tag="lockren"):
    """The holder lives. Rejected (``lost``) unless the token is that of the present grant. Answer: None."""

    lock: str
    token: Natural


class Release(Operation, frozen=True, array_like=True, tag="lockrel"):
    """Give the lock up, to the first who waits. Rejected (``lost``) as ``Renew``. Answer: None."""

    lock: str
    token: Natural


class Withdraw(Operation, frozen=True, array_like=True, tag="lockwd"):
    """Stop waiting; if the lock was granted meanwhile, give it up. Answer: whether there was anything to withdraw."""

    lock: str
    holder: str


class ExpireLock(Operation, frozen=True, array_like=True, tag="explock"):
    """An observer saw no renewal for the ttl, or knows the holder to be dead.

    Rejected (``lost``) unless token and renewals are as the observer saw them. Answer: None.
    """

    lock: str
    token: Natural
    renewals: Natural


LockOp = Acquire | Renew | Release | Withdraw | ExpireLock
