"""One deadline for a whole call, however many steps it takes.

A call of the API may be many reads and appends: a transaction over shards, a read-modify-write that is tried again, a wait for a
message. The outermost call sets the deadline, and every step below it, in the same thread, has what is left. A step that is a
call by itself has a deadline of its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextvars import ContextVar, Token
from types import TracebackType
from typing import TYPE_CHECKING, Concatenate, NamedTuple, ParamSpec, Protocol, TypeVar

if TYPE_CHECKING:
    from onefold.state.client import StateClient

P = ParamSpec("P")
R = TypeVar("R")


class _Limit(NamedTuple):
    client: StateClient
    end_s: float


_current: ContextVar[_Limit | None] = ContextVar("onefold_limit", default=None)


class HasClient(Protocol):
    """A handle."""

    @property
    def client(self) -> StateClient:
        """The core under it."""
        ...


H = TypeVar("H", bound=HasClient)


def end_of(client: StateClient) -> float | None:
    """The moment of the boot clock at which the call that is under way must end; None: no call that has steps is."""
    limit = _current.get()
    return limit.end_s if limit is not None and limit.client is client else None


class Call:
    """A ``with`` block whose steps have one deadline, unless a call around it has set one."""

    __slots__ = ("_client", "_end_s", "_token")

    def __init__(self, client: StateClient, end_s: float | None = None) -> None:
        """``end_s``: a moment of the boot clock; default: what a write of this connection has, from now."""
        self._client = client
        self._end_s = end_s
        self._token: Token[_Limit | None] | None = None

    def __enter__(self) -> None:
        client = self._client
        if end_of(client) is None:
            end_s = client.env.boot_s() + client.write_timeout if self._end_s is None else self._end_s
            self._token = _current.set(_Limit(client, end_s))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._token is not None:
            _current.reset(self._token)


def one_call(method: Callable[Concatenate[H, P], R]) -> Callable[Concatenate[H, P], R]:
    """A handle's method whose steps have one deadline."""

    @functools.wraps(method)
    def limited(self: H, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with Call(self.client):
            return method(self, *args, **kwargs)

    return limited
