"""The shard contract: what compute and state stand on.

A ``Shard`` is one shard of a space, open in this process: it appends operations with exactly-once numbers (group commit over
threads), applies them, and gives consistent views of the folded state. ``open_shard`` chooses the engine by URL.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from onefold.codec import Op
from onefold.env import Env
from onefold.fold.api import StoreView
from onefold.shard.receipts import Receipt
from onefold.shard.requirements import ReadRequirement
from onefold.store.paged_view import Version
from onefold.store.tables import Head


class View(StoreView, Protocol):
    """The state as of one offset. Valid inside its ``with`` block only; used by one thread."""

    @property
    def offset(self) -> int:
        """The offset that this view shows."""
        ...

    def tables(self, prefix: str) -> list[str]:
        """Names of the tables that begin so, in order; some may be empty, or (in a view of the past) younger than it."""
        ...

    def head(self) -> Head:
        """Where the whole state stands at this moment (for a view of the past: of the present)."""
        ...

    def changes(
        self,
        table: str,
        after: int,
        *,
        within: tuple[int, bytes] | None = None,
        start: bytes = b"",
        stop: bytes | None = None,
        limit: int = 1000,
    ) -> list[Version]:
        """What changed beyond an offset; see ``PagedView.changes``."""
        ...


class Shard(Protocol):
    """One shard of a space, open in this process."""

    @property
    def env(self) -> Env:
        """Its clocks and randomness."""
        ...

    @property
    def strong_reads(self) -> bool:
        """Whether every view shows all that was acknowledged before, by any process (log and state in one file). Otherwise a
        view that must show it is given a requirement."""
        ...

    @property
    def reads_here(self) -> bool:
        """Whether the state is in this process or in a file of this machine. Otherwise each read is a question to a node."""
        ...

    @property
    def url(self) -> str:
        """As it can be opened again."""
        ...

    @property
    def directory(self) -> Path | None:
        """Where its files are; None for ``memory://``."""
        ...

    @property
    def incarnation(self) -> str:
        """See ``Log.incarnation``."""
        ...

    @property
    def applied(self) -> int:
        """The last offset applied here."""
        ...

    @property
    def member(self) -> str:
        """This process's id in the space: other processes can ask ``member_alive`` about it."""
        ...

    @property
    def gives_receipts(self) -> bool:
        """Whether it commits in the thread that submits, and a submission that a signal handler interrupts leaves a receipt."""
        ...

    def submit(
        self, ops: Sequence[Op], deadline: float | None = None, receipt: Receipt | None = None
    ) -> list[bytes]:
        """Append the operations in one record (perhaps with other threads' operations), apply it, and return their
        outcomes in order. They commit together.

        ``deadline``: a moment of the boot clock (``env.boot_s``); default: ``config.APPEND_RETRY_S`` from now. Until then a
        failure that passes is tried again, and an append in doubt is tried again under its number. ``receipt``: tells what
        became of it when the caller is interrupted, where ``gives_receipts``; elsewhere it stays as it is.

        Raises TooLarge, Unavailable, Timeout, SpaceError (definite), AppendUnknown (indefinite: the deadline came while it was
        in doubt), Timeout (indefinite: it is in the log, and its outcome did not arrive), LogCorrupt.
        """
        ...

    def check_usable(self) -> None:
        """Raises SpaceError when it is closed or in a forked process, and what it halted with. Cheap; asks nobody."""
        ...

    def view(
        self, at: int | None = None, need: ReadRequirement | None = None
    ) -> AbstractContextManager[View]:
        """A consistent view of what is applied here now; with ``need``, of a state that meets it. With ``at`` as it was at that
        offset (raises TooOld, and InvalidArgument for a later offset, and for a table without history unless nothing was
        written since).

        Where ``reads_here``, this waits until ``need`` is met. Otherwise the view's first read (or ``offset``) asks for it and
        pins the view, so errors come there. Without ``need``: everything that was shown here before, and with
        ``strong_reads`` everything acknowledged before the call, by any process.

        Raises Behind (``need.after``), Unavailable (``need.barrier``) and TooStale (``need.fresh_s``), all definite.
        """
        ...

    def peek(
        self, table: str, key: bytes, need: ReadRequirement | None = None, at: int | None = None
    ) -> tuple[bytes | None, int]:
        """One key's value in the same state as ``view(at, need)``, and that state's offset. The cheapest read."""
        ...

    def barrier(self, timeout: float | None = None) -> int:
        """Append a record, wait until it is applied here, and return its offset: views show from now on what was acknowledged
        before the call. Calls share a barrier only when its append starts after they arrived. Appends nothing with
        ``strong_reads``.

        Raises Unavailable (definite) when the log does not answer within ``timeout`` seconds.
        """
        ...

    def fresh(self, seconds: float, timeout: float | None = None) -> None:
        """Return once views show all that was acknowledged more than ``seconds`` ago: when a record that this replica
        appended at or after that moment of its own boot clock is applied here; else like ``barrier``.

        Raises TooStale (definite) with the age when the log does not answer.
        """
        ...

    def outcome(self, request_id: str, need: ReadRequirement | None = None) -> bytes | None:
        """The kept outcome of the operation with this request id, in a state that meets ``need``; None when there was none
        within the retention. Raises as ``view``."""
        ...

    def pause(self, seconds: float) -> None:
        """Wait. Simulated where time is."""
        ...

    def wait(self, after: int, timeout: float | None) -> int:
        """Wait until something beyond offset ``after`` is applied, or the timeout; return the applied offset.

        Notices other processes' records within milliseconds, without busy polling.
        """
        ...

    def reach(self, offset: int, timeout: float | None) -> bool:
        """Wait until ``offset`` is applied here; False when it was not within ``timeout`` seconds (None: for ever)."""
        ...

    def member_alive(self, member: str) -> bool | None:
        """True or False when that can be known for certain (a process of this machine), None when it cannot."""
        ...

    def close(self) -> None:
        """Release everything. Using the shard afterwards raises SpaceError."""
        ...
