"""What all shards over a log share: appending each record once, levels of reading, halting.

Log and state are apart here: an append may have an unknown outcome, others' records come in between, and the state can be
behind. How the state is kept and brought forward is left to the kinds of shards: ``MemoryShard`` (in memory) and ``LocalReplica``
(in a file that the processes of a machine share).

A *replica* is a space whose log arrives with delay: ``log.last`` is what was delivered here so far, not what was appended. Its
views show that, so they are weaker than strong until ``barrier``, ``fresh`` or ``reach`` has waited for more.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Self, TypeVar

from onefold import config
from onefold.backoff import Backoff, Deadline
from onefold.codec import Op, Record
from onefold.env import Env
from onefold.errors import (
    AppendUnknown,
    Expired,
    InvalidArgument,
    LogCorrupt,
    OnefoldError,
    SpaceError,
    Timeout,
    TooOld,
    TooStale,
    Unavailable,
)
from onefold.fold import authority, system
from onefold.ids import new_id
from onefold.log.api import Log
from onefold.machine.undisturbed import let_pass, undisturbed
from onefold.shard.appender import Appender, Turn
from onefold.shard.freshness import Freshness
from onefold.shard.receipts import Receipt
from onefold.shard.requirements import ReadRequirement, reach_needed
from onefold.shard.writer import LogWriter
from onefold.store.exactly_once import ClientRow

_BARRIER_PAUSE_S = (0.01, 1.0)

T = TypeVar("T")


class ReplicatedShard(ABC):
    """The part of ``onefold.shard.api.Shard`` that does not depend on where the state is. Thread-safe."""

    def __init__(
        self,
        log: Log,
        env: Env,
        *,
        url: str,
        read_only: bool = False,
        pause: Callable[[float], None] | None = None,
        replicates: bool = False,
        turns: Callable[[], Turn] | None = None,
    ) -> None:
        """``pause``: waits between tries of an append, given seconds (default: really waits). ``replicates``: the log is
        delivered with delay. ``turns``: see ``Appender``."""
        self._log = log
        self._env = env
        self._url = url
        self._read_only = read_only
        self._pause = pause or time.sleep
        self._simulated = pause is not None or turns is not None
        self._replicates = replicates
        self._closed = False
        self._halted: OnefoldError | None = None
        self.freshness = Freshness()
        """How fresh this replica is known to be."""
        self._writer = LogWriter(self)
        self._node_writer = LogWriter(self, of_node=True)
        self._appender = Appender(self._commit, env, turns, passes=self._writer.passes, pause=self._pause)
        self.member = new_id("r" if read_only else "m", env)

    def _apart(self, work: Callable[[], T]) -> T:
        """Do it where no signal is delivered: an append, or applying, must not be broken off half-way."""
        return work() if self._simulated else undisturbed(work)

    # -- where the state stands

    @abstractmethod
    def _position(self) -> int:
        """The offset that is known to be applied. Looks at nothing."""

    @abstractmethod
    def _look(self) -> int:
        """The applied offset, after taking in what takes no waiting."""

    @abstractmethod
    def catch_up(self, own: tuple[int, bytes] | None = None, deadline: float | None = None) -> int:
        """Apply what the log has; return the applied offset. ``own``: an acknowledged record that must be found there.
        ``deadline``: of the boot clock; until then at most, where applying can have to wait for others.

        Raises what the replica halts with, and Timeout (definite without ``own``).
        """

    @abstractmethod
    def wait(self, after: int, timeout: float | None) -> int:
        """See ``Shard.wait``."""

    @property
    @abstractmethod
    def fold_version(self) -> int:
        """In force as far as is applied here."""

    @property
    @abstractmethod
    def fold_version_max(self) -> int:
        """The highest one that this program knows."""

    @abstractmethod
    def missing(self, ops: Sequence[Op]) -> Op | None:
        """See ``Replica.missing``."""

    @abstractmethod
    def known(self, client: str) -> ClientRow | None:
        """See ``Replica.known``."""

    def outcomes(self, client: str, number: int) -> tuple[bytes, ...] | None:
        """The outcomes of the client's record, if it is the last one of it that is applied."""
        known = self.known(client)
        return None if known is None or known.number != number else known.outcomes

    def before_append(self, deadline: float) -> int:
        """An applied offset from which a record can be written. Who is far behind catches up first, until ``deadline``: no
        record makes sense whose outcome cannot be read. Errors are definite, as of ``catch_up``."""
        return self.catch_up(deadline=deadline)

    def announce(self, record: Record, deadline: float) -> None:  # noqa: B027
        """The record is about to be appended, before that moment of the boot clock. Most shards have nothing to prepare."""

    # -- the contract

    @property
    def url(self) -> str:
        return self._url

    @property
    def incarnation(self) -> str:
        return self._log.incarnation

    @property
    def applied(self) -> int:
        return self._look()

    @property
    def env(self) -> Env:
        return self._env

    @property
    def strong_reads(self) -> bool:
        return not self._replicates

    @property
    def read_only(self) -> bool:
        """Whether it was opened for reading only."""
        return self._read_only

    @property
    def gives_receipts(self) -> bool:
        return False

    def submit(
        self,
        ops: Sequence[Op],
        deadline: float | None = None,
        receipt: Receipt | None = None,  # noqa: ARG002
    ) -> list[bytes]:
        self.check_usable()
        if self._read_only:
            raise SpaceError(f"{self._url} was opened read-only. Open it without read_only to write")
        return self._apart(lambda: self._appender.submit(ops, deadline))

    def barrier(self, timeout: float | None = None) -> int:
        return self._apart(lambda: self._barrier(timeout))

    def _barrier(self, timeout: float | None) -> int:
        if not self._replicates:
            return self.catch_up()
        self.check_usable()
        if self._read_only:
            raise Unavailable(
                f"{self._url} was opened read-only, and a strong read (as of every transaction) appends a record where this "
                "program has its own replica. Read with consistency='session' or weaker, open it without read_only, or connect "
                "with replicas='remote'"
            )
        timeout_s = config.READ_TIMEOUT_S if timeout is None else timeout
        deadline, backoff = Deadline.after(timeout_s, self._env), Backoff(*_BARRIER_PAUSE_S)
        while True:
            try:
                # The appender's next record is one whose append starts after this call, which is what makes the read strong.
                self._appender.submit([system.system_op(system.Tick())], deadline.at_s)
            except (Unavailable, Timeout, AppendUnknown, Expired) as error:
                let_pass(error)
                if deadline.before(backoff.next_s):
                    raise Unavailable(
                        f"{self._url} gave no answer within {timeout_s:g} s, so what is here may be old: {error}. "
                        "Try again, or read with a weaker consistency",
                        definite=True,
                    ) from error
            else:
                return self._position()
            self._pause(backoff.pause_s())

    def fresh(self, seconds: float, timeout: float | None = None) -> None:
        if not self._replicates:
            self.catch_up()
            return
        self.check_usable()
        now_s = self._env.boot_s()
        if self.freshness.within(seconds, now_s):
            return
        try:
            self.barrier(timeout)
        except Unavailable as error:
            let_pass(error)
            if self.freshness.within(seconds, now_s):
                return  # another thread's record was in time
            age = self.freshness.age(self._env.boot_s())
            known = (
                f"is known to be complete only as of {age:.3g} s ago"
                if age < float("inf")
                else "may be of any age"
            )
            raise TooStale(
                f"what is here of {self._url} {known}, and {seconds:g} s are allowed: {error}", definite=True
            ) from error

    def meet(self, need: ReadRequirement) -> None:
        """Wait until what is applied here meets the requirement. Raises as ``Shard.view``."""
        if need.barrier:
            self.barrier(need.timeout)
        elif need.fresh_s is not None:
            self.fresh(need.fresh_s, need.timeout)
        reach_needed(need, self.reach, lambda: self.applied)

    def pause(self, seconds: float) -> None:
        self._pause(seconds)

    def reach(self, offset: int, timeout: float | None) -> bool:
        self.check_usable()
        if self._position() >= offset:
            return True
        deadline = Deadline.after(timeout, self._env)
        applied = self._look()
        while applied < offset:
            if deadline.passed:
                return False
            applied = self.wait(applied, deadline.left_s)
        return True

    @abstractmethod
    def close(self) -> None:
        """See ``Shard.close``."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- beyond the contract

    @property
    def log(self) -> Log:
        """The log itself, for reading."""
        return self._log

    @property
    def halted(self) -> OnefoldError | None:
        """Why this replica serves nothing any more; None while it does."""
        return self._halted

    def raise_fold_version(self, version: int) -> None:
        """From here on folds apply by ``version``. Raises SpaceError when this program is too old."""
        if version > self.fold_version_max:
            raise SpaceError(f"this program knows fold version {self.fold_version_max}, not {version}")
        self._demand(system.RaiseFoldVersion(version))

    def trim(self, before: int) -> None:
        """Forget the records below ``before``; the state stays. Raises InvalidArgument."""
        self._demand(system.Trim(before))
        self._apart(lambda: self._log.trim(before))

    def check_usable(self) -> None:
        """Raises what the replica halted with, and SpaceError when it is closed."""
        if self._halted is not None:
            raise type(self._halted)(f"this replica halted: {self._halted}", definite=self._halted.definite)
        self.check_open()

    def check_open(self) -> None:
        """Raises SpaceError when it is closed."""
        if self._closed:
            raise SpaceError(f"{self._url} is closed. Open it again")

    # -- inside

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._closed

    @property
    def replicates(self) -> bool:
        """Whether the log is delivered with delay."""
        return self._replicates

    def _commit(self, ops: Sequence[Op], deadline: float) -> Sequence[bytes]:
        """Append the operations in one record: where nodes publish, if one of them counts only there."""
        trusted = authority.needs_trust(ops, self.fold_version)
        return (self._node_writer if trusted else self._writer).commit(ops, deadline)

    def _demand(self, op: system.SystemOp) -> None:
        if self.submit([system.system_op(op)]) != [system.ACCEPTED]:
            raise InvalidArgument(
                f"the space refused {op}: it is behind what is in force, or ahead of the log"
            )

    def _halt(self, error: OnefoldError) -> None:
        """Serve nothing from now on. What was under way may have happened."""
        error.definite = False
        self._halted = error

    def _verify_own(self, offset: int, data: bytes) -> None:
        """An acknowledged record that somebody else has applied must be there as it was appended. Raises LogCorrupt."""
        if not self._holds(offset, data):
            self._halt(self._not_there(offset))
            self.check_usable()

    def _holds(self, offset: int, data: bytes) -> bool:
        """Whether those bytes are in the log at that offset, as far as it can still be read there."""
        try:
            return bool(self._log.read(offset, 1)[0].data == data)
        except TooOld:
            return True

    def _not_there(self, offset: int) -> LogCorrupt:
        return LogCorrupt(
            f"the record acknowledged at offset {offset} of {self._url} is not there", definite=False
        )
