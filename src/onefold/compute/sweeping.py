"""Removing blobs that nothing names any more, while others may store and name the same content again.

A blob's name is its content's hash, so a writer whose blob is there already writes nothing, and its record names what was there.
The fold decides whether a blob is named; the store cannot be asked together with it. So both sides make their move first and look
at the other's after it, and at least one of them sees the other:

- The sweeper *hides* the blob, which keeps a copy aside, and only then appends ``Swept``. Accepted: nothing named it at that
  point of the log, and the copy is dropped. Not accepted: it was named again, and the copy is put back.
- The writer stores the blob, appends the record that names it, and only then looks whether the blob is there (``keeps``). If not,
  it was hidden before the record and dropped: the writer stores it again, or reopens its task with ``Lost``.

A sweeper that dies between hiding and the answer leaves the copy, and whoever misses the blob puts it back.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Protocol


class Blobs(Protocol):
    """What a submission stores blobs in and reads earlier ones from."""

    def put(self, data: bytes | memoryview) -> str:
        """Store bytes; returns their name once they are durable."""

    def get(self, name: str) -> bytes:
        """The blob's bytes; raises BlobMissing."""

    def keeps(self, name: str) -> bool:
        """Whether the blob is there for everybody."""


class Remembered:
    """A store that remembers what is put into it, until a record has named it."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self._put: dict[str, bytes | memoryview] = {}

    def put(self, data: bytes | memoryview) -> str:
        """Store bytes; returns their name once they are durable."""
        name = self._blobs.put(data)
        self._put[name] = data
        return name

    def get(self, name: str) -> bytes:
        """The blob's bytes; raises BlobMissing."""
        return self._blobs.get(name)

    def keeps(self, name: str) -> bool:
        """Whether the blob is there for everybody."""
        return self._blobs.keeps(name)

    def keep(self) -> None:
        """After the record: store those again that were swept before it."""
        for name, data in self._put.items():
            if not self._blobs.keeps(name):
                self._blobs.put(data)


class Hiding(Protocol):
    """A store that can hide blobs. Each hiding has a ticket of its own, so that no sweeper drops what another one has hidden."""

    def hide(self, name: str) -> str:
        """Take a blob away, so that writers of the same content store it again, but keep a copy. A missing one is no error.

        Returns the ticket of this copy.
        """

    def unhide(self, name: str, ticket: str | None = None) -> bool:
        """Put a hidden blob back (without a ticket: any copy of it); whether there was one."""

    def drop(self, name: str, ticket: str) -> None:
        """Remove the copy of a hidden blob. One that was stored since stays."""


class HidingHere(Hiding, Protocol):
    """One that can tell what is hidden."""

    def hidden(self) -> set[tuple[str, str]]:
        """(name, ticket) of every copy."""


def sweep(
    store: Hiding,
    names: Sequence[str],
    swept: Callable[[Sequence[str]], Collection[str]],
    named: Callable[[Iterable[str]], Collection[str]],
) -> int:
    """Remove those of the blobs that nothing names; returns how many.

    ``swept`` appends ``Swept`` and gives the names that it was accepted for. ``named`` tells which blobs something names now.
    """
    tickets = {name: store.hide(name) for name in names}
    taken = set(swept(names))
    for name in taken:
        store.drop(name, tickets[name])
    others = [name for name in names if name not in taken]
    kept = set(named(others)) if others else set()
    for name in others:
        if name in kept:
            store.unhide(name, tickets[name])
        else:  # another sweeper has taken it off the list
            store.drop(name, tickets[name])
    return len(taken)


def tidy(
    store: HidingHere, garbage: Collection[str], named: Callable[[Iterable[str]], Collection[str]]
) -> None:
    """Settle what a sweeper that died has left hidden: put back what is named, and drop what nothing names.

    ``garbage``: what is still to be swept stays as it is. A living sweeper's copy is treated as it would treat it.
    """
    left = {(name, ticket) for name, ticket in store.hidden() if name not in garbage}
    kept = set(named(name for name, _ in left)) if left else set()
    for name, ticket in left:
        if name in kept:
            store.unhide(name, ticket)
        else:
            store.drop(name, ticket)
