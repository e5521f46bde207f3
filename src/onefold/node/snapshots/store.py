"""Where a space's snapshots and archives are: files in a blob store, named by their content.

``--snapshots`` says where: a directory that all nodes see, ``s3://bucket/prefix`` (see ``compute.blobs.backends``), or
``jetstream``, which is not a copy apart from the log: there, nothing is archived.
"""

from __future__ import annotations

import contextlib
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from onefold.compute.blobs.backends import JETSTREAM, check_place, open_backend
from onefold.compute.blobs.store import blob_name, file_blob_name
from onefold.compute.blobs.sweeping import SNAPSHOTS, is_of_space, new_ticket
from onefold.errors import InvalidArgument, LogCorrupt, Unavailable
from onefold.machine.first_use import first_use

if TYPE_CHECKING:
    from onefold.compute.blobs.shared import Backend
    from onefold.log.jetstream.client.link import Link


class Stored(NamedTuple):
    """A file in the blob store."""

    blob: str
    bytes: int


class Vault:
    """Stores and fetches whole files. Thread-safe. Raises Unavailable when the blob store does not answer."""

    def __init__(self, backend: Backend, scratch: Path, *, apart: bool, space: str | None = None) -> None:
        """``scratch``: a directory of this node for files on their way. ``apart``: whether it is elsewhere than the log.
        ``space``: the incarnation of the space that is kept here; others may be kept in the same place."""
        self.apart = apart
        self.scratch = scratch
        self._backend = backend
        self._space = space
        self._numbers = itertools.count()
        scratch.mkdir(parents=True, exist_ok=True)
        for left in scratch.iterdir():  # of a process that ended on the way
            with contextlib.suppress(OSError, Unavailable):
                name, dot, ticket = left.name.partition(".")
                if dot and len(name) == len(
                    blob_name(b"")
                ):  # hidden to be swept: put back, since it may have been named again
                    self.unhide(name, ticket)
                left.unlink(missing_ok=True)

    @property
    def place(self) -> str:
        """For messages."""
        return self._backend.place

    def store(self, path: Path) -> Stored:
        """Put a copy of the file there; returns once it is durable."""
        name = file_blob_name(path)
        self._backend.put(name, path)
        return Stored(name, path.stat().st_size)

    def fetch(self, blob: str) -> Path | None:
        """A copy of the file in the scratch directory, which the caller removes; None when there is none. Raises LogCorrupt when
        its content is not what its name says."""
        path = self.scratch / f"fetched-{next(self._numbers)}-{blob[:16]}"
        if not self._backend.get(blob, path):
            path.unlink(missing_ok=True)
            return None
        if file_blob_name(path) != blob:
            path.unlink()
            raise LogCorrupt(f"blob {blob[:16]}… of {self.place} is damaged. Remove it there")
        return path

    def has(self, blob: str) -> bool:
        """Whether it is there."""
        return self._backend.exists(blob)

    def keep(self, stored: Stored, path: Path) -> None:
        """After the record that names it: store the file again if it was swept before that (see ``compute.blobs.sweeping``)."""
        if not self._backend.exists(stored.blob):
            self._backend.put(stored.blob, path)

    def hide(self, name: str, kind: str = SNAPSHOTS) -> str:
        """Take a blob away, but keep a copy, whose ticket is returned."""
        ticket = new_ticket(kind, self._space)
        self._backend.hide(name, ticket, self.scratch)
        return ticket

    def unhide(self, name: str, ticket: str | None = None) -> bool:
        """Put a hidden blob back; whether there was one."""
        if ticket is None:
            return self._backend.exists(name)
        return self._backend.unhide(name, ticket, self.scratch)

    def hidden(self) -> set[tuple[str, str]]:
        """(name, ticket) of what is hidden. What another space has hidden is left out: only it knows what it needs."""
        found = self._backend.hidden(self.scratch)
        return {one for one in found if self._space is None or is_of_space(one[1], self._space)}

    def other_spaces(self) -> frozenset[str]:
        """None counts: a snapshot and an archive have the incarnation in their bytes, so no other space names them."""
        return frozenset()

    def drop(self, name: str, ticket: str) -> None:
        """Remove the copy of a hidden blob."""
        self._backend.drop(name, ticket, self.scratch)

    def close(self) -> None:
        """Give up what is being tried again."""
        self._backend.close()


def place_of(text: str) -> str:
    """What ``--snapshots`` names, as a place for blobs: a directory may be written without ``dir:``. Raises InvalidArgument."""
    if text != JETSTREAM and "://" not in text and not text.startswith("dir:"):
        if not text:
            raise InvalidArgument("--snapshots is a directory, s3://bucket/prefix or jetstream")
        text = f"dir:{Path(text).absolute()}"
    return check_place(text)


def open_vault(
    place: str, scratch: Path, link: Link | None, space: str, incarnation: str, *, of_region: bool = False
) -> Vault:
    """The vault of a space at a place that ``place_of`` gave. ``of_region``: of a region's own logs, which have a stream of their
    own for it. Raises InvalidArgument."""
    if place != JETSTREAM:
        return Vault(open_backend(place), scratch, apart=True, space=incarnation)
    if link is None:
        raise InvalidArgument("snapshots in jetstream need a cluster")
    with first_use:
        from onefold.compute.blobs.jetstream import JetStreamBackend

    backend = JetStreamBackend(link, space, incarnation if of_region else None)
    return Vault(backend, scratch, apart=False, space=incarnation)
