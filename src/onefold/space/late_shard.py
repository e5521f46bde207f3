"""A shard whose log nobody answered for when its space was opened, in a space over regions.

While the consistent logs have no majority, servers that were restarted do not answer for them at all, not even with what they
have. A region's own logs work all the same, so a program must come up. These shards are Unavailable until their logs answer:
threads try to open them, and from then on they are what was opened.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from onefold import config
from onefold.backoff import Backoff
from onefold.codec import Op
from onefold.env import Env
from onefold.errors import OnefoldError, SpaceError, Unavailable
from onefold.log.api import Log
from onefold.machine import forks
from onefold.machine.undisturbed import Waiters, undisturbed
from onefold.shard.api import View
from onefold.shard.receipts import Receipt
from onefold.shard.replica.shard import LocalReplica
from onefold.shard.requirements import ReadRequirement

_PAUSE_S, _PAUSE_S_MAX = 0.25, 2.0


class LateShard:
    """See ``onefold.shard.api.Shard``. Thread-safe. Closes its log with itself."""

    strong_reads = False
    gives_receipts = False

    def __init__(
        self,
        log: Log,
        env: Env,
        open_now: Callable[[], LocalReplica],
        *,
        url: str,
        directory: Path,
        read_only: bool,
        problem: OnefoldError,
    ) -> None:
        """``log``: for its names and its link; nobody is asked. ``open_now``: raises OnefoldError where it cannot be opened.
        ``problem``: why it could not be before."""
        self._log = log
        self.env = env
        self.url = url
        self.directory = directory
        self.read_only = read_only
        self._open_now = open_now
        self._problem = problem
        self._process = forks.process
        self._shard: LocalReplica | None = None
        self._tried = False
        self._closed = False
        self._changed = Waiters()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._try_on, name="onefold-late", daemon=True)
        self._thread.start()

    # -- opening

    def _try_on(self) -> None:
        backoff = Backoff(_PAUSE_S, _PAUSE_S_MAX, self.env)
        while not self._closed and not self._try():
            self._changed.wait_for(lambda: self._closed, backoff.pause_s())

    def _try(self) -> bool:
        """Try to open it; whether that is done."""
        found = None
        try:
            found = self._open_now()
        except OnefoldError as error:
            self._problem = error
        with self._lock:
            if not self._closed:
                self._shard = found
        self._tried = True
        self._changed.notify()
        if found is not None and self._shard is not found:
            found.close()
        return found is not None

    @property
    def replica(self) -> LocalReplica:
        """What was opened. Raises Unavailable (definite) until then."""
        return self._opened(0.0)

    def _opened(self, wait_s: float | None, *, once: bool = False) -> LocalReplica:
        """What was opened, within so many seconds. ``once``: only the first try is waited for. Raises Unavailable (definite)."""
        self._check_open()
        shard = self._shard
        if shard is None:
            self._changed.wait_for(
                lambda: self._shard is not None or self._closed or (once and self._tried), wait_s
            )
            shard = self._shard
        if shard is None:
            self._check_open()
            raise Unavailable(
                f"{self.url} has not answered since it was opened: {self._problem}", definite=True
            )
        return shard

    def _for_reading(self, need: ReadRequirement | None) -> LocalReplica:
        timeout = None if need is None else need.timeout
        weak = need is None or not (need.barrier or need.after or need.fresh_s is not None)
        return self._opened(config.READ_TIMEOUT_S if timeout is None else timeout, once=weak)

    def _check_open(self) -> None:
        if self._process != forks.process:
            raise forks.opened_before(self.url)
        if self._closed:
            raise SpaceError(f"{self.url} is closed. Open it again")

    # -- the contract

    @property
    def reads_here(self) -> bool:
        return self._shard is not None

    @property
    def incarnation(self) -> str:
        return self._log.incarnation

    @property
    def log(self) -> Log:
        """The log itself, for reading."""
        return self._log if self._shard is None else self._shard.log

    @property
    def applied(self) -> int:
        return self._for_reading(None).applied

    @property
    def member(self) -> str:
        return self._opened(config.READ_TIMEOUT_S).member

    def submit(
        self, ops: Sequence[Op], deadline: float | None = None, receipt: Receipt | None = None
    ) -> list[bytes]:
        if deadline is None:
            deadline = self.env.boot_s() + config.APPEND_RETRY_S
        return self._opened(max(0.0, deadline - self.env.boot_s())).submit(ops, deadline, receipt)

    def check_usable(self) -> None:
        self._check_open()
        if self._shard is not None:
            self._shard.check_usable()

    def view(
        self, at: int | None = None, need: ReadRequirement | None = None
    ) -> AbstractContextManager[View]:
        return self._for_reading(need).view(at, need)

    def peek(
        self, table: str, key: bytes, need: ReadRequirement | None = None, at: int | None = None
    ) -> tuple[bytes | None, int]:
        return self._for_reading(need).peek(table, key, need, at)

    def barrier(self, timeout: float | None = None) -> int:
        return self._opened(config.READ_TIMEOUT_S if timeout is None else timeout).barrier(timeout)

    def fresh(self, seconds: float, timeout: float | None = None) -> None:
        self._opened(config.READ_TIMEOUT_S if timeout is None else timeout).fresh(seconds, timeout)

    def outcome(self, request_id: str, need: ReadRequirement | None = None) -> bytes | None:
        return self._for_reading(need).outcome(request_id, need)

    def pause(self, seconds: float) -> None:
        time.sleep(seconds)

    def wait(self, after: int, timeout: float | None) -> int:
        return self._opened(timeout).wait(after, timeout)

    def reach(self, offset: int, timeout: float | None) -> bool:
        try:
            return self._opened(timeout).reach(offset, timeout)
        except Unavailable:
            if self._shard is not None:
                raise
            return False

    def member_alive(self, member: str) -> bool | None:
        return None if self._shard is None else self._shard.member_alive(member)

    def close(self) -> None:
        if self._process == forks.process:
            undisturbed(self._close)

    def _close(self) -> None:
        with self._lock:
            self._closed = True
        self._changed.notify()
        self._log.close()
        self._thread.join(config.APPEND_RETRY_S)
        if self._shard is not None:
            self._shard.close()

    def __getattr__(self, name: str) -> Any:
        """What a local replica has beyond the contract."""
        if name.startswith("_") or not hasattr(LocalReplica, name):
            raise AttributeError(name)
        return getattr(self._opened(0.0), name)
