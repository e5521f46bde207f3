"""Which lost try of a transaction is followed by another one, and when: the same in the synchronous and the asynchronous API."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from onefold import config
from onefold.arguments import check_whole
from onefold.backoff import Backoff, Deadline
from onefold.errors import Conflict

if TYPE_CHECKING:
    from onefold.state.core.client import StateClient


class Unmet(Conflict):
    """``if_version`` or ``if_absent`` did not hold in the snapshot: trying the same again would not help."""


class Retries:
    """The tries of one ``run_transaction``. Each begins with ``begin``. After a Conflict it is over if ``ended_by`` says so;
    otherwise ``check_request`` and a pause of ``pause_s`` seconds come before the next one."""

    def __init__(self, client: StateClient, attempts: int, request_id: str | None) -> None:
        """``attempts``: how many tries there are at most. On a connection with a time limit none begins after it. Raises
        InvalidArgument."""
        check_whole("attempts", attempts, least=1)
        self._client = client
        self._left = attempts
        self._request_id = request_id
        self._deadline = Deadline(client.deadline() if client.limited else None, client.env)
        self._backoff = Backoff(config.TRANSACTION_BACKOFF_S, config.TRANSACTION_BACKOFF_MAX_S, client.env)

    def begin(self) -> bool:
        """A try begins. Whether it is the last one."""
        self._left -= 1
        return not self._left

    def ended_by(self, error: Conflict) -> bool:
        """Whether no other try follows the one that ended with this."""
        return not self._left or isinstance(error, Unmet) or self._deadline.before(self._backoff.next_s)

    def check_request(self, error: Conflict, kept: Callable[[str], str | None]) -> None:
        """Raises Conflict when an earlier transaction left the request id rejected: then every try loses. ``kept``: what is kept
        under a request id, where the transaction writes; it reads the space."""
        if self._request_id is not None and kept(self._request_id) == "rejected":
            raise Conflict(
                f"the request {self._request_id!r} was rejected before, and stays so. Use another request_id"
            ) from error

    def pause_s(self) -> float:
        """Seconds to wait before the next try: longer each time, with jitter."""
        return self._backoff.pause_s()
