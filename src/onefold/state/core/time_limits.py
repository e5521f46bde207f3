"""One deadline for a whole call, however many steps it takes.

A call of the API may be many reads and appends: a transaction over shards, a read-modify-write that is tried again, a wait for a
message. The outermost call sets the deadline, and every step below it, in the same thread, has what is left. A step that is a
call by itself has a deadline of its own.

How long a caller waits for something to happen (``timeout=`` of a lock, of ``Queue.take``) is not such a deadline: the step that
ends the wait begins when that time is over, or nearly. So each step of a wait is a call of its own. So is a step that cleans up
after others (``cleaning_up``): it is needed most when their time is over.
"""

from __future__ import annotations

import _thread
import functools
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING, Concatenate, NamedTuple, ParamSpec, Protocol, TypeVar

from onefold import config

if TYPE_CHECKING:
    from onefold.backoff import Deadline
    from onefold.state.core.shards_client import ShardsClient

P = ParamSpec("P")
R = TypeVar("R")


class _Limit(NamedTuple):
    client: weakref.ref[ShardsClient]
    end_s: float
    under_way: _thread.LockType
    """Locked while its block runs. A lock enters and leaves the block: it is of C, so an interrupt leaves no limit in force."""
    outer: _Limit | None


_WITHIN: AbstractContextManager[object] = nullcontext()
_latest: ContextVar[_Limit | None] = ContextVar("onefold_limit", default=None)
"""Of this context, and perhaps over."""


class HasClient(Protocol):
    """A handle."""

    @property
    def client(self) -> ShardsClient:
        """The core under it."""
        ...


H = TypeVar("H", bound=HasClient)


def _in_force() -> _Limit | None:
    """Of the innermost call that is under way, of any client."""
    limit = _latest.get()
    while limit is not None and not limit.under_way.locked():
        limit = limit.outer
    return limit


def end_of(client: ShardsClient) -> float | None:
    """The moment of the boot clock at which the call that is under way must end; None: no call that has steps is."""
    limit = _in_force()
    return limit.end_s if limit is not None and limit.client() is client else None


def deadline_of(client: ShardsClient) -> float:
    """The moment of the boot clock until which a write that begins now may be tried."""
    if _latest.get() is not None:
        limit = _in_force()
        if limit is not None and limit.client() is client:
            return limit.end_s
    return client.env.boot_s() + client.write_timeout


def limited(
    client: ShardsClient, end_s: float | None = None, *, own: bool = False
) -> AbstractContextManager[object]:
    """A ``with`` block whose steps have one deadline, unless a call around it has set one. ``end_s``: a moment of the boot clock;
    default: what a write of this connection has, from now. ``own``: also inside another call."""
    outer = _in_force()
    if not own and outer is not None and outer.client() is client:
        return _WITHIN
    end_s = client.env.boot_s() + client.write_timeout if end_s is None else end_s
    under_way = _thread.allocate_lock()
    _latest.set(_Limit(weakref.ref(client), end_s, under_way, outer))
    return under_way


def limited_step(client: ShardsClient, wait: Deadline) -> AbstractContextManager[object]:
    """A ``with`` block for one step of a wait that ends then. The step has what a write has, but at most
    ``config.STEP_OVERTIME_S`` beyond the end of the wait: a step that begins when the time is over, or nearly, can still do
    something."""
    end_s = client.env.boot_s() + client.write_timeout
    return limited(client, end_s if wait.at_s is None else min(end_s, wait.at_s + config.STEP_OVERTIME_S))


def limited_call(client: ShardsClient) -> AbstractContextManager[object]:
    """A ``with`` block for a call of many steps: together they have what the connection gives a call, if it was given a time
    limit (``timeout=`` of ``connect``), and a little more for the last of them. Without one each step has its own."""
    if not client.limited:
        return _WITHIN
    return limited(client, client.env.boot_s() + client.write_timeout + config.STEP_OVERTIME_S)


def wait_s(client: ShardsClient, longest_s: float) -> float:
    """For how many seconds something may be waited for within the call that is under way: so long at most, and so that there is
    time for a step after it."""
    end_s = end_of(client)
    if end_s is None:
        return longest_s
    return max(0.0, min(longest_s, end_s - config.STEP_OVERTIME_S - client.env.boot_s()))


def cleaning_up(client: ShardsClient) -> AbstractContextManager[object]:
    """A ``with`` block for what must be undone also when the time of the call around it is over. It has what a write has."""
    return limited(client, own=True)


def one_call(method: Callable[Concatenate[H, P], R]) -> Callable[Concatenate[H, P], R]:
    """A handle's method whose steps have one deadline."""

    @functools.wraps(method)
    def within(self: H, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with limited(self.client):
            return method(self, *args, **kwargs)

    return within
