"""The fold contract: a deterministic state machine over the records of one shard.

A fold sees time, identity and order only through ``Context``, and state only through ``Store``: no clock, no
randomness, no hash order, no user code, and floats are never merged in it. So every replica that has applied the same
offsets has the same state, whatever machine it runs on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple, Protocol, runtime_checkable

NEVER: Final = 1 << 63
"""Later than every fold time."""
PASSING = b"\x00"
"""An outcome that begins with this byte is *passing*: it is answered, and not kept under the operation's ``request_id``, so the
same request may be tried again."""

NEWEST_VERSION: Final = 5
"""The fold version that this program's folds know. A fold that a version does not change applies by it as by the one before."""


class Context(NamedTuple):
    """Where in the log an operation stands."""

    offset: int
    index: int  # type: ignore[assignment]  # the name is right here; nobody searches a Context
    """The operation's place in its record."""
    now_ms: int
    """Fold time: max(previous, min(engine's stamp, writer's stamp)). Not a clock."""
    client: str
    request_id: str | None
    trusted: bool = True
    """Whether operations that only nodes may append count here: see ``fold.authority``."""


class StoreView(Protocol):
    """Ordered tables of bytes, read at one offset. Keys are in bytewise order."""

    def get(self, table: str, key: bytes) -> bytes | None:
        """The value, or None."""
        ...

    def get_many(self, table: str, keys: Iterable[bytes]) -> Mapping[bytes, bytes]:
        """The values of those keys that exist."""
        ...

    def scan(
        self,
        table: str,
        start: bytes = b"",
        stop: bytes | None = None,
        *,
        limit: int | None = None,
        reverse: bool = False,
    ) -> Iterator[tuple[bytes, bytes]]:
        """Pairs with ``start <= key < stop`` in key order (``reverse``: from the end). The pairs are read at once or in
        pages; changing the table while iterating gives no error and no promise."""
        ...

    def count(self, table: str, start: bytes = b"", stop: bytes | None = None) -> int:
        """How many keys there are with ``start <= key < stop``. Reads them all."""
        ...

    def changed_since(self, table: str, start: bytes, stop: bytes | None, offset: int) -> bool:
        """Whether any key with ``start <= key < stop`` was written beyond ``offset``. Tables with history only.

        Raises TooOld below the window; InvalidArgument beyond the end.
        """
        ...


class Store(StoreView, Protocol):
    """What a fold writes to while it applies one record. All of a record's writes commit together, or none do."""

    def put(self, table: str, key: bytes, value: bytes) -> None:
        """Set one key."""
        ...

    def put_many(self, table: str, items: Iterable[tuple[bytes, bytes]]) -> None:
        """Set many keys in one statement."""
        ...

    def delete(self, table: str, key: bytes) -> None:
        """Remove one key; no error when it is not there."""
        ...

    def delete_range(self, table: str, start: bytes, stop: bytes | None) -> None:
        """Remove all keys with ``start <= key < stop``."""
        ...

    def first(self, table: str) -> bytes | None:
        """The first key; None when there is none. Cheap where nothing was written to the table since it was asked for last, so a
        fold that looks for what is due may ask at every record."""
        ...


class Fold(Protocol):
    """One state machine: it owns the tables whose names start with its own name and ``/``."""

    @property
    def name(self) -> str:
        """What ``Op.fold`` says when an operation is for this fold."""
        ...

    @property
    def version(self) -> int:
        """The highest ``fold_version`` this code can apply."""
        ...

    @property
    def history(self) -> frozenset[str]:
        """Names of those of its tables whose old versions are kept for the history window."""
        ...

    def apply(self, store: Store, context: Context, body: bytes, fold_version: int) -> bytes:
        """Apply one operation and return its outcome, both opaque to the replica.

        A refusal is an outcome too (and writes nothing). Must not raise for any bytes: what cannot be decoded is
        refused, since one raise would halt every replica.
        """
        ...


@runtime_checkable
class TimedFold(Fold, Protocol):
    """A fold that does something when time has come: expiry, delayed messages."""

    def advance(self, store: Store, context: Context) -> int:
        """Called before the operations of each record that moves fold time (``context.now_ms``), with ``index`` -1, once the
        fold is registered. What it does belongs to that record. Must not raise.

        Returns the fold time at which there is something to do next; ``NEVER`` when nothing waits for a time. Until then it
        need not be called, as long as nobody writes to a table whose first key it has asked for (``Store.first``)."""
        ...


def prefix_stop(prefix: bytes) -> bytes | None:
    """The smallest key above every key that starts with ``prefix``; None when there is none."""
    trimmed = prefix.rstrip(b"\xff")
    return trimmed[:-1] + bytes((trimmed[-1] + 1,)) if trimmed else None
