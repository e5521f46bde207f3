"""The appending side of a shard over a log: one record after the other, each exactly once.

An append may have an unknown outcome. Then it is tried again under the same number, so that at most one copy counts, until
the record is known to be applied or the time is up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from onefold.backoff import Backoff, Deadline
from onefold.codec import Op, Record, encode_record
from onefold.errors import ASK_LATER, AppendUnknown, Expired, OnefoldError, Timeout, Unavailable
from onefold.fold import authority
from onefold.ids import client_id, is_of_node
from onefold.log.api import NoRoom, TrustedLog

if TYPE_CHECKING:
    from onefold.shard.over_log import ReplicatedShard

_ATTEMPTS_MAX = 100
_PAUSE_S = (0.01, 1.0)


class LogWriter:
    """One client of the space: its id, and the number of its last record."""

    def __init__(self, shard: ReplicatedShard, *, of_node: bool = False) -> None:
        """``of_node``: its records hold what only nodes may append, and are published where only nodes may publish."""
        self._shard = shard
        self._of_node = of_node
        self._env = shard.env
        self._client: str | None = None
        self._number = 0

    def passes(self, error: OnefoldError) -> bool:
        """Whether nothing was appended and trying again soon may succeed: no leader, no connection, a replica that is behind."""
        usable = self._shard.halted is None and not self._shard.closed
        passing = isinstance(error, (Unavailable, Timeout)) and not isinstance(error, NoRoom)
        return usable and passing and error.definite

    def commit(self, ops: Sequence[Op], deadline: float) -> Sequence[bytes]:
        """Append the operations as one record and apply it; their outcomes. ``deadline``: a moment of the boot clock. Called by
        one thread at a time. Raises as ``Shard.submit``."""
        shard = self._shard
        applied = shard.before_append(deadline)
        first = shard.missing(ops)
        batch = tuple(ops) if first is None else (first, *ops)
        for _ in range(2):
            of_node = self._of_node and authority.in_force(shard.fold_version)
            if self._client is None or is_of_node(self._client) != of_node:
                self._client, self._number = client_id(applied, self._env, of_node=of_node), 0
            try:
                outcomes = self._append(self._client, self._number + 1, batch, deadline)
                return outcomes[len(outcomes) - len(ops) :]
            except Expired as error:
                self._client = None
                if not error.definite:
                    raise
            except OnefoldError:
                raise
            except (
                BaseException
            ):  # an interrupt: the record may be in the log, so its number must not be given again
                self._client = None
                raise
            # Forgotten after a long rest, and nothing was applied: as a new client.
            applied = shard.catch_up(deadline=deadline)
        raise Expired(
            f"new clients of {self._shard.url} are forgotten at once: its expiry floor is wrong",
            definite=True,
        )

    def _append(self, client: str, number: int, ops: tuple[Op, ...], deadline: float) -> tuple[bytes, ...]:
        """Append until the record is known to be applied, always under the same number."""
        record = Record(client, number, self._env.wall_ms(), ops, self._shard.fold_version)
        data = encode_record(record)
        first_s = self._env.boot_s()
        until, backoff, in_doubt = Deadline(deadline, self._env), Backoff(*_PAUSE_S), False
        for _ in range(_ATTEMPTS_MAX):
            began_s = self._env.boot_s()
            self._shard.announce(record, deadline)
            try:
                offset = self._append_once(data, deadline)
            except AppendUnknown:
                in_doubt = True
            except OnefoldError as error:
                if not in_doubt:
                    raise
                if isinstance(error, (Unavailable, Timeout)) and not until.passed:
                    # This try did not happen, but an earlier one may have.
                    self._shard.pause(until.within(backoff.pause_s()))
                    continue
                self._client = None  # its number stays open; a new client has no open one
                raise AppendUnknown(
                    f"an append may have happened, and trying it again failed: {error}. {ASK_LATER}"
                ) from error
            else:
                outcomes = self._own(client, number, offset, data, deadline)
                if outcomes is None:
                    raise Expired(
                        f"client {client} has been forgotten by the space; its record {number} was not applied at "
                        f"offset {offset}" + (", an earlier try of it may have been" if in_doubt else ""),
                        definite=not in_doubt,
                    )
                self._shard.freshness.prove(began_s)
                return outcomes
            outcomes = self._surfaced(client, number, deadline)
            if outcomes is not None:
                self._shard.freshness.prove(first_s)  # which try it was is not known
                return outcomes  # it had surfaced
            if until.passed:
                break
            # The last try is made when the time is up, not one pause before.
            self._shard.pause(until.within(backoff.pause_s()))
        self._client = None
        raise AppendUnknown(
            f"the log gave no answer to record {number} of {client}; it may surface later. {ASK_LATER}"
        )

    def _append_once(self, data: bytes, deadline: float) -> int:
        log = self._shard.log
        if self._of_node and isinstance(log, TrustedLog):
            return log.append_trusted(data, deadline)
        return log.append(data, deadline)

    def _own(
        self, client: str, number: int, offset: int, data: bytes, deadline: float
    ) -> tuple[bytes, ...] | None:
        """The outcomes of an acknowledged record."""
        with self._may_have_happened():
            self._await_own(offset, data, deadline)
            return self._outcomes(client, number)

    def _surfaced(self, client: str, number: int, deadline: float) -> tuple[bytes, ...] | None:
        """The outcomes of a record that had no answer, if it is in the log."""
        with self._may_have_happened():
            self._shard.catch_up(deadline=deadline)
            return self._outcomes(client, number)

    @contextmanager
    def _may_have_happened(self) -> Iterator[None]:
        """The record was sent, so whatever fails here is indefinite, and its number is not given again."""
        try:
            yield
        except OnefoldError as error:
            self._client = None
            if not error.definite:
                raise
            raise AppendUnknown(
                f"the operation may be in the log of {self._shard.url}, which could not be read: {error}. {ASK_LATER}"
            ) from error

    def _await_own(self, offset: int, data: bytes, deadline: float) -> None:
        """Apply up to an acknowledged record, which must be there as it was appended."""
        if self._shard.replicates:
            while self._shard.log.wait(offset - 1, max(0.0, deadline - self._env.boot_s())) < offset:
                if self._env.boot_s() >= deadline:
                    self._client = None
                    raise Timeout(
                        f"the operation is in the log of {self._shard.url} at offset {offset}, and was not delivered here in "
                        f"time: its outcome is not known. {ASK_LATER}"
                    )
                self._shard.check_usable()
        self._shard.catch_up((offset, data), deadline)

    def _outcomes(self, client: str, number: int) -> tuple[bytes, ...] | None:
        outcomes = self._shard.outcomes(client, number)
        if outcomes is not None:
            self._number = number
        return outcomes
