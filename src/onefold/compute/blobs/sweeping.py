"""Removing blobs that nothing names any more, while others may store and name the same content again.

A blob's name is its content's hash, so a writer whose blob is there already writes nothing, and its record names what was there.
The fold decides whether a blob is named; the store cannot be asked together with it. So both sides make their move first and look
at the other's after it, and at least one of them sees the other:

- The sweeper *hides* the blob, which keeps a copy aside, and only then appends ``Swept``. Not accepted: it was named again, and
  the copy is put back. Accepted: nothing named it at that point of the log.
- The writer stores the blob, appends the record that names it, and only then looks whether the blob is there (``keeps``). A copy
  that is aside is put back by that. If there is none, the writer stores the blob again, or reopens its task with ``Lost``.

A writer may die between its record and the look. So the sweeper drops no copy: that is left to the process that tidies up
``config.SWEPT_KEPT_S`` later, and puts back what was named meanwhile. A process that misses the blob before puts it back, too,
without knowing whether something names it: a reader may have begun before the run was replaced. So the copy stays aside as well,
and what was put back and is still not named is hidden again when the copy is settled.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Protocol

from onefold import config
from onefold.errors import Unavailable

TASKS, LIVE, SNAPSHOTS = "t", "l", "v"
"""Whose copies they are, where all are kept in one place: the names of tickets begin with it. Who settles copies asks only one
fold what is named, so it must leave those of the others alone."""
_TICKET = re.compile("([a-z])([0-9a-f]+)-[0-9a-f]{16}(?:-([0-9a-f]{8}))?")


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
        """After the record: store those again that were swept before it. Where the place cannot be asked now, they count as kept:
        what the record says has begun, and hardly ever was one swept."""
        with contextlib.suppress(Unavailable, OSError):
            for name, data in self._put.items():
                if not self._blobs.keeps(name):
                    self._blobs.put(data)


class Hiding(Protocol):
    """A store that can hide blobs. Each hiding has a ticket of its own, so that no sweeper drops what another one has hidden."""

    def hide(self, name: str, kind: str = ...) -> str:
        """Take a blob away, so that writers of the same content store it again, but keep a copy. A missing one is not an error.

        Returns the ticket of this copy.
        """

    def unhide(self, name: str, ticket: str | None = None) -> bool:
        """Put a hidden blob back; whether there was one. Without a ticket: from any copy of it, which stays aside."""

    def drop(self, name: str, ticket: str) -> None:
        """Remove the copy of a hidden blob. One that was stored since stays."""

    def other_spaces(self) -> Collection[str]:
        """Other spaces whose blobs are in the same place."""


class HidingHere(Hiding, Protocol):
    """One that can tell what is hidden, by any process."""

    def hidden(self) -> set[tuple[str, str]]:
        """(name, ticket) of every copy."""


def new_ticket(kind: str = TASKS, space: str | None = None) -> str:
    """A ticket of its own, which tells when it was made; ``space``: and in which space, where several are in one place."""
    ticket = f"{kind}{int(time.time() * 1000):x}-{os.urandom(8).hex()}"
    return ticket if space is None else f"{ticket}-{_mark(space)}"


def is_of_space(ticket: str, space: str) -> bool:
    """Whether a ticket is of a space, or does not tell: releases before 0.5.0 made such."""
    found = _TICKET.fullmatch(ticket)
    return found is not None and found[3] in (None, _mark(space))


def _mark(space: str) -> str:
    return hashlib.blake2s(space.encode(), digest_size=4).hexdigest()


def sweep(
    store: Hiding,
    names: Sequence[str],
    swept: Callable[[Sequence[str]], Collection[str]],
    named: Callable[[Iterable[str]], Collection[str]],
    *,
    kind: str = TASKS,
) -> int:
    """Hide those of the blobs that nothing names; returns how many. ``tidy`` removes them later.

    Nothing is hidden where other spaces have the place too: one of them may name the same content. ``swept`` appends ``Swept``
    and gives the names that it was accepted for. ``named`` tells which blobs something names now.
    """
    if not names or store.other_spaces():
        return 0
    tickets = {name: store.hide(name, kind) for name in names}
    taken = set(swept(names))
    others = [name for name in names if name not in taken]
    # What nothing names either was taken off the list by another sweeper.
    for name in named(others) if others else ():
        store.unhide(name, tickets[name])
    return len(taken)


def settleable(store: HidingHere, *, kind: str = TASKS, kept_s: float | None = None) -> set[tuple[str, str]]:
    """(name, ticket) of the copies that were hidden ``kept_s`` (``config.SWEPT_KEPT_S``) ago or longer."""
    hidden_before = time.time() * 1000 - 1000 * (config.SWEPT_KEPT_S if kept_s is None else kept_s)
    return {
        (name, ticket)
        for name, ticket in store.hidden()
        if (found := _TICKET.fullmatch(ticket)) is not None
        and found[1] == kind
        and int(found[2], 16) <= hidden_before
    }


def tidy(
    store: HidingHere,
    garbage: Collection[str],
    named: Callable[[Iterable[str]], Collection[str]],
    *,
    kind: str = TASKS,
    kept_s: float | None = None,
) -> int:
    """Settle what has been hidden for ``kept_s`` (``config.SWEPT_KEPT_S``): put back what is named, and drop what nothing names.
    Returns how many copies that was.

    ``garbage``: what is still to be swept stays as it is.
    """
    left = {one for one in settleable(store, kind=kind, kept_s=kept_s) if one[0] not in garbage}
    if left and store.other_spaces():
        return 0  # copies of another space look the same, and so may the blobs behind them
    kept = set(named(name for name, _ in left)) if left else set()
    for name, ticket in left:
        if name in kept:
            store.unhide(name, ticket)
        else:
            store.hide(name, kind)  # a reader that began before it was swept may have put it back
            store.drop(name, ticket)
    return len(left)
