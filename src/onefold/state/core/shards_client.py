"""What a client of several logs has, whatever they are of: its session, its time limits, and views at consistency levels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from onefold import config
from onefold.env import SystemEnv
from onefold.errors import InvalidArgument, TokenAhead, Unavailable
from onefold.fold import system
from onefold.machine import forks
from onefold.shard.api import Shard, View
from onefold.shard.fold_version import reach_version
from onefold.shard.receipts import Receipt
from onefold.shard.requirements import Behind, ReadRequirement
from onefold.state.core.consistency import Level
from onefold.state.core.time_limits import deadline_of, end_of
from onefold.state.core.tokens import Seen
from onefold.state.encoding.keys import shard_of

_WEAK = ("prefix", "eventual")


class ShardsClient:
    """Thread-safe."""

    session: Seen
    """What it has seen of each log."""

    def __init__(self, shards: Sequence[Shard], *, level: Level, timeout: float | None = None) -> None:
        """``shards``: all logs, in order. ``level``: of reads that name none. ``timeout``: seconds that a call may take (default:
        ``config.READ_TIMEOUT_S`` for a read, ``config.APPEND_RETRY_S`` for a write)."""
        self._pid = forks.process
        self.shards = tuple(shards)
        self.shard_count = len(self.shards)
        self.env = self.shards[0].env
        self.level = level
        self.timeout = config.READ_TIMEOUT_S if timeout is None else timeout
        self.write_timeout = config.APPEND_RETRY_S if timeout is None else timeout
        self.limited = timeout is not None
        """Whether the connection was given a time limit."""
        self.always_strong = all(shard.strong_reads for shard in self.shards)
        self.mends_here = tuple(
            shard.gives_receipts and isinstance(self.env, SystemEnv) for shard in self.shards
        )
        """Of each shard, whether what is submitted in the main thread can be interrupted there, and is mended then."""
        self.shared: dict[str, Any] = {}
        """What this client's handles share, such as the cache of session reads."""

    @property
    def shows_all(self) -> bool:
        """Whether every view shows what a strong one does: nothing has to be waited for, nor to be settled."""
        return self.always_strong and self.shard_count == 1 and not self.session.given

    @property
    def forked(self) -> bool:
        """Whether this process was forked after this was made."""
        return self._pid != forks.process

    def check_process(self) -> None:
        """Raises SpaceError in a process that was forked after this was made. Before anything else: the locks of
        threads that were not forked along are never released there."""
        if self._pid != forks.process:
            raise forks.opened_before(self.shards[0].url)

    def __reduce__(self) -> str | tuple[Any, ...]:
        raise InvalidArgument(
            f"a handle on {self.shards[0].url} cannot be sent to another process or stored: it holds open files. Send the URL "
            "(and `db.session.token`), and connect there"
        )

    def receipt(self, shard: int) -> Receipt | None:
        """For what is submitted to the shard and may be interrupted; None where that comes to its end by itself."""
        return Receipt() if self.mends_here[shard] else None

    # -- where things are

    def shard_of(self, key: bytes) -> int:
        """The shard of an encoded key: all keys with the same first element, of all maps, are in one."""
        return shard_of(key, self.shard_count) if self.shard_count > 1 else 0

    def present(self, shards: Iterable[int] | None = None) -> Mapping[int, int]:
        """The applied offsets of these shards (default: all)."""
        wanted = range(self.shard_count) if shards is None else shards
        return {shard: self.shards[shard].applied for shard in wanted}

    # -- time

    def deadline(self) -> float:
        """The moment of the boot clock until which a write that begins now may be tried."""
        return deadline_of(self)

    def read_time(self, timeout: float | None = None) -> float:
        """Seconds that a read which begins now may wait. ``timeout``: instead of the connection's."""
        timeout = self.timeout if timeout is None else timeout
        end_s = end_of(self)
        return timeout if end_s is None else max(0.0, min(timeout, end_s - self.env.boot_s()))

    # -- writing

    def tick(self, shard: int) -> None:
        """Append a record that does nothing but carry this client's time."""
        self.shards[shard].submit([system.system_op(system.Tick())], self.deadline())

    def reach_version(self, shard: int, version: int) -> bool:
        """Whether folds apply by this version in the shard; raises it where it is this program's to raise (embedded, and every
        program that has the space open knows it)."""
        return reach_version(self.shards[shard], version)

    # -- reading

    def view(
        self, shard_id: int, level: Level | None = None, timeout: float | None = None
    ) -> AbstractContextManager[View]:
        """A view of the shard that meets the level (default: the connection's)."""
        raise NotImplementedError

    def _requirement(
        self,
        shard: int,
        level: Level,
        timeout: float | None = None,
        seen: Callable[[int], None] | None = None,
    ) -> ReadRequirement:
        """What a view must show at the level."""
        given, kind = self.session.given, level.kind
        if self.always_strong and (not given or kind in _WEAK):
            return ReadRequirement(seen=seen)
        timeout = self.read_time(timeout)
        if self.always_strong:
            return ReadRequirement(given.get(shard, 0), timeout=timeout, seen=seen)
        match kind:
            case "strong":
                return ReadRequirement(given.get(shard, 0), barrier=True, timeout=timeout, seen=seen)
            case "bounded":
                return ReadRequirement(fresh_s=level.seconds, timeout=timeout, seen=seen)
            case "session":
                return ReadRequirement(self.session.floor(shard), timeout=timeout, seen=seen)
        # A prefix only grows; what converges may come from anybody.
        return ReadRequirement(shown=kind == "prefix", timeout=timeout, seen=seen)

    @contextmanager
    def _plain(self, shard_id: int, level: Level, timeout: float | None) -> Iterator[View]:
        need = self._requirement(
            shard_id, level, timeout, lambda offset: self.session.observe(shard_id, offset)
        )
        try:
            with self.shards[shard_id].view(need=need) as view:
                yield view
        except Behind as error:
            self._explain(shard_id, need, error)
            raise

    def _explain(self, shard_id: int, need: ReadRequirement, error: Behind) -> None:
        """Raises what says that something which the session has seen did not arrive, if that was needed."""
        if need.after:
            raise self._not_reached(shard_id, need.after, error.applied, need.timeout or 0.0) from error

    def reach_given(self, shard: int) -> None:
        """Wait until the shard shows what the token that the session began with has seen. Raises TokenAhead."""
        self._reach(self.shards[shard], shard, self.session.given.get(shard, 0), self.read_time())

    def _reach(self, shard: Shard, shard_id: int, offset: int, timeout: float) -> None:
        if offset and not shard.reach(offset, timeout):
            raise self._not_reached(shard_id, offset, shard.applied, timeout)

    def _not_reached(self, shard: int, offset: int, applied: int, timeout: float) -> Unavailable:
        if offset <= self.session.given.get(shard, 0):
            return TokenAhead(
                f"the session token has seen offset {offset} of shard {shard}; nothing beyond {applied} came within "
                f"{timeout:g} s. Wait longer (timeout=), or start without the token"
            )
        return Unavailable(
            f"what this session has seen (offset {offset} of shard {shard}) did not arrive here within {timeout:g} s. "
            "Try again, or read with consistency='eventual'"
        )

    def close(self) -> None:
        """Close every shard."""
        for shard in self.shards:
            shard.close()
