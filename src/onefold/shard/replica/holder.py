"""Which copy of a replica this process uses: another one when others do, or when its own is damaged or held up."""

from __future__ import annotations

from contextlib import suppress

from onefold import config
from onefold.errors import LogCorrupt
from onefold.shard.replica import copy as replica_copy
from onefold.shard.replica.copies import Copies
from onefold.shard.replica.copy import Kind, OpenCopy
from onefold.shard.replica.file import Damaged, Unusable

_DECIDE_S = 10.0


class Holder:
    """The copy in use, and the ones before and after it. Used by the process that applies records, one thread at a time; ``copy``
    by all."""

    def __init__(self, copies: Copies, kind: Kind, timeout: float) -> None:
        """Raises as ``shard.replica.copy.choose``."""
        self._copies = copies
        self._kind = kind
        self.copy = replica_copy.choose(copies, kind, timeout)
        """In use. Never behind an earlier one."""
        self._next: OpenCopy | None = None
        """In use by others, or going to be; not as far as this one yet."""
        self._retired: list[tuple[float, OpenCopy]] = []
        self._stalled_s: float | None = None

    @property
    def stalled(self) -> bool:
        """Whether another process has the lock and does not continue."""
        return self._stalled_s is not None

    @property
    def due(self) -> bool:
        """Whether ``tend`` has something to do before the next batch. Cheap."""
        return self._next is not None or self.copy.file.damaged or self._copies.moved()

    def tend(self, known: int) -> None:
        """Follow others to another copy; bring one forward that replaces a damaged one; close what nobody reads any more.

        ``known``: the offset that this process has shown. Raises LogCorrupt when the present copy has diverged from the
        log, and what applying raises.
        """
        wrong = self._copies.condemned(self.copy.path)
        if wrong is not None:
            raise LogCorrupt(
                f"the local copy {self.copy.path} is not used any more: {wrong}. Open the space again"
            )
        with self._copies.deciding(0.0) as decided:
            if decided:
                self._look_for_next()
        if self._next is not None:
            self._bring(self._next, known)
        if self._retired and self._retired[0][0] < self._kind.env.boot_s():
            self._retired.pop(0)[1].close()
            with self._copies.deciding(0.0) as decided:
                if decided:
                    self._copies.sweep()

    def went_on(self) -> None:
        """A batch was applied."""
        self._stalled_s = None

    def held_up(self, known: int) -> int:
        """The lock was not to be had: somebody applies a batch, or was stopped while doing so. The offset applied now."""
        copy = self.copy
        applied, now_s = copy.applied(), self._kind.env.boot_s()
        if applied > known:
            self._stalled_s = None
        elif self._stalled_s is None:
            self._stalled_s = now_s
        elif now_s - self._stalled_s >= config.REPLICA_STALL_S:
            self._move_away(copy)
            self._stalled_s = None
        return applied

    def close(self) -> None:
        """Release all of them."""
        for copy in (self.copy, self._next, *(copy for _, copy in self._retired)):
            if copy is not None:
                copy.close()

    def _look_for_next(self) -> None:
        path, following = self._copies.current(), self._next
        if following is not None and (following.path != path or following.file.damaged):
            self._drop_next()
        if self._next is not None or (path == self.copy.path and not self.copy.file.damaged):
            return
        if path is not None and path != self.copy.path:
            with suppress(Unusable, Damaged, OSError):
                self._next = OpenCopy(path, self._kind)
                return
        self._next = replica_copy.begin(self._copies, self._kind)
        self._copies.publish(self._next.path)

    def _bring(self, copy: OpenCopy, known: int) -> None:
        """One batch for the next copy, no matter who else does the same; it is used from the moment it is far enough."""
        applied = copy.applied()
        if applied < known:
            entries = self._kind.log.read(applied + 1, config.APPLY_BATCH_BYTES_MAX)
            applied = copy.apply(entries, config.REPLICA_STALL_S).applied
        if applied >= known:
            self._next = None
            self._switch(copy)

    def _move_away(self, copy: OpenCopy) -> None:
        """Continue with another copy than the one whose lock a stopped process holds."""
        with self._copies.deciding(_DECIDE_S) as decided:
            if decided and self._copies.current() != copy.path:
                self._look_for_next()
                return  # somebody else moved away before
            path = self._copies.new()
            copy.file.copy_to(path)
            other = OpenCopy(path, self._kind)
            if decided:
                self._copies.publish(path)
        self._switch(other)

    def _switch(self, other: OpenCopy) -> None:
        old, self.copy = self.copy, other
        self._retired.append((self._kind.env.boot_s() + config.REPLICA_RETIRE_S, old))

    def _drop_next(self) -> None:
        if self._next is not None:
            self._next.close()
            self._next = None
