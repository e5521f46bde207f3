"""The log contract: one totally ordered, durable sequence of records.

Offsets are contiguous from 1. A log gives durable total order and nothing else: what a record means, whether it is a
duplicate and whether it is accepted is decided by the fold that reads it. Every engine passes
``onefold.testing.check_log``.

Ownership: an engine is opened once per process and shard and may be used by many threads. ``append`` is called by one
thread at a time (the appender above does group commit); reads may run next to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from onefold.errors import Unavailable


class Entry(NamedTuple):
    """A record as the log gives it back: its bytes are what was appended, checked only by the reader's decoding."""

    offset: int
    data: bytes
    engine_ms: int
    """The engine's own stamp of the append, in ms; the writer's stamp where the engine has none."""
    trusted: bool = True
    """Whether operations that only nodes may append count in this record (see ``onefold.fold.authority``). Engines whose every
    writer has the same rights trust all records; on a cluster those that were published where only nodes may publish."""


@runtime_checkable
class TrustedLog(Protocol):
    """A log whose writers have different rights; other logs trust every record."""

    def append_trusted(self, data: bytes, deadline: float | None = None) -> int:
        """``Log.append`` where only nodes may publish. Raises SpaceError too (definite), when the credential may not."""
        ...

    def takes_trusted(self) -> bool:
        """Whether there is such a place already. Raises Unavailable, Timeout, SpaceError."""
        ...

    def first_trusted(self) -> Entry | None:
        """The oldest trusted record that is left; None proves nothing. Raises Unavailable, Timeout, SpaceError."""
        ...


class NoRoom(Unavailable):
    """The engine's disk, or what of it may be used, is full: nothing was appended, and trying again soon does not help."""


class Log(Protocol):
    """One shard's log."""

    @property
    def incarnation(self) -> str:
        """Changes when a log is restored or recreated; tokens of another incarnation are refused."""
        ...

    @property
    def first(self) -> int:
        """The lowest offset that can still be read (1 until something is trimmed)."""
        ...

    @property
    def last(self) -> int:
        """The highest offset known to be appended (0 when empty)."""
        ...

    def append(self, data: bytes, deadline: float | None = None) -> int:
        """Append one record and return its offset, once it is durable as the engine promises.

        ``deadline``: a moment of the boot clock (``Env.boot_s``) at which to stop waiting for the engine; None: only the
        engine's own limits hold.

        Raises TooLarge, Unavailable, Timeout(definite=True) when it certainly was not appended, and AppendUnknown
        when it may surface later (looking and not finding it proves nothing).
        """
        ...

    def read(self, start: int, max_bytes: int = 1 << 20) -> Sequence[Entry]:
        """Entries from ``start`` on, contiguous, at least one if there is one, up to about ``max_bytes``.

        Empty when ``start`` is beyond the end. Raises TooOld below ``first`` and LogCorrupt when an entry is missing:
        a gap is never skipped.
        """
        ...

    def wait(self, after: int, timeout: float | None) -> int:
        """Wait until ``last > after`` or the timeout (seconds; None: for ever) and return ``last``. Does not busy-poll."""
        ...

    def trim(self, before: int) -> None:
        """Forget entries below ``before``. Only called for a trim record that the fold has accepted."""
        ...

    def close(self) -> None:
        """Release everything; what waits in ``wait`` returns."""
        ...
