"""Blobs that several machines share: a local directory is the cache of a backend that all of them reach.

A blob is durable in the backend before its name is given out, so anyone who reads the name in a record can fetch it. What was
fetched is compared with its name. The cache is bounded and may be removed at any time.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar, Protocol

from onefold import config
from onefold.compute.blobs.store import BlobMissing, BlobStore, BlobsUnavailable, blob_name
from onefold.compute.blobs.sweeping import TASKS, new_ticket

_TIDY_EVERY_BYTES = 256 * 1024 * 1024
"""The cache is measured again when this much has come into it."""
_TIDY_TO_SHARE = 0.8
"""A cache that is too large is brought down to this share of its limit."""


class Backend(Protocol):
    """The place that all machines reach. Thread-safe. Every method raises BlobsUnavailable when it does not answer."""

    @property
    def place(self) -> str:
        """For messages: where it is, without secrets."""
        ...

    def put(self, name: str, path: Path) -> None:
        """Store the file's bytes under the name; returns once they are durable. Sends nothing when they are there already."""
        ...

    def get(self, name: str, path: Path) -> bool:
        """Write the blob's bytes to a new file at ``path``; False when there is no such blob."""
        ...

    def exists(self, name: str) -> bool:
        """Whether there is such a blob."""
        ...

    def delete(self, name: str) -> None:
        """Remove a blob; nothing happens when there is none."""
        ...

    def hide(self, name: str, ticket: str, folder: Path) -> None:
        """Take a blob away, but keep a copy under the ticket (see ``sweeping``): in the place itself, or in a folder of this
        machine."""
        ...

    def unhide(self, name: str, ticket: str, folder: Path) -> bool:
        """Put a hidden blob back; whether there was one."""
        ...

    def drop(self, name: str, ticket: str, folder: Path) -> None:
        """Remove the copy of a hidden blob."""
        ...

    def hidden(self, folder: Path) -> set[tuple[str, str]]:
        """(name, ticket) of the copies in the place, or in that folder."""
        ...

    def names(self) -> Iterator[str]:
        """All blobs in the place."""
        ...

    def stored_at(self, name: str) -> float | None:
        """When a blob was stored, in seconds since 1970; None: there is none such, or the place does not tell."""
        ...

    def begins(self, name: str, size: int) -> bytes:
        """The first bytes of a blob; empty when there is none such."""
        ...

    @property
    def is_of_one_space(self) -> bool:
        """Whether no other space can have blobs in the place."""
        ...

    def claim(self, space: str) -> None:
        """Note in a place that several may have that this space has blobs in it."""
        ...

    def claims(self) -> set[str]:
        """The spaces that have noted so."""
        ...

    def close(self) -> None:
        """Release what belongs to this process."""
        ...


class Claim:
    """What a space leaves in a place that it may have in common with others, before it stores or removes anything there.

    The names of blobs are hashes of their content, so two spaces may name one blob, and each knows only of itself. Both note that
    they are there before they store, and a sweeper looks for others after it has noted so itself: then it removes nothing that
    another one may name. Places of one space need none of this.
    """

    def __init__(self, backend: Backend, space: str | None) -> None:
        """``space``: its incarnation; None: nobody shares the place."""
        self._backend = backend
        self._space = None if backend.is_of_one_space else space
        self._is_made = False

    def make(self) -> None:
        """Once in a process. Raises BlobsUnavailable."""
        if self._space is not None and not self._is_made:
            self._backend.claim(self._space)
            self._is_made = True

    def others(self) -> frozenset[str]:
        """The other spaces in the place. Raises BlobsUnavailable."""
        if self._space is None:
            return frozenset()
        self.make()
        return frozenset(self._backend.claims() - {self._space})


class CachedBlobs(BlobStore, ABC):
    """A local directory in front of something that has more: what ``SharedBlobs`` and a worker's store have in common."""

    shared: ClassVar[bool] = True

    @abstractmethod
    def _upload(self, name: str) -> None:
        """Make a blob of the local directory durable for everybody."""

    @abstractmethod
    def _download(self, name: str) -> None:
        """Bring a blob to its local path. Raises BlobMissing and BlobsUnavailable."""

    def put(self, data: bytes | memoryview) -> str:
        """Store bytes; returns their name once they are durable for everybody. Raises BlobsUnavailable."""
        return self.share(super().put(data))

    def put_file(self, path: Path) -> str:
        """Move a finished file into the store; returns its name once it is durable for everybody."""
        return self.share(super().put_file(path))

    def share(self, name: str) -> str:
        """Give a blob of ``scratch`` to everybody; returns its name once it is durable for them."""
        self._upload(name)
        return name

    @property
    def scratch(self) -> BlobStore:
        """The local directory alone."""
        return BlobStore(self.directory)

    def get(self, name: str) -> bytes:
        """The blob's bytes; raises BlobMissing and BlobsUnavailable."""
        try:
            return self.open_path(name).read_bytes()
        except FileNotFoundError:  # another process has just tidied the cache
            self._download(name)
            return self.path(name).read_bytes()

    def open_path(self, name: str) -> Path:
        """The path of a local copy, which is fetched if it is not there; raises BlobMissing and BlobsUnavailable."""
        path = self.path(name)
        try:
            os.utime(path)  # in use: tidying leaves it alone
        except FileNotFoundError:
            self._download(name)
        return path


class SharedBlobs(CachedBlobs):
    """A cache of a backend. Thread-safe; processes of a machine may share the directory."""

    def __init__(
        self,
        directory: Path,
        backend: Backend,
        *,
        space: str | None = None,
        cache_bytes_max: int = config.BLOB_CACHE_BYTES_MAX,
    ) -> None:
        """``space``: the incarnation of the space whose blobs these are."""
        super().__init__(directory)
        self.backend = backend
        self._claim = Claim(backend, space)
        self._cache_bytes_max = cache_bytes_max
        self._came_in = 0
        self._fetching: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None

    def exists(self, name: str) -> bool:
        """Whether the blob can be had."""
        return self.path(name).exists() or self.backend.exists(name)

    def missing(self, names: Iterable[str]) -> set[str]:
        """Which of these blobs cannot be had; asks for several at a time."""
        unknown = [name for name in set(names) if not self.path(name).exists()]
        found = self._transfers().map(self.backend.exists, unknown) if unknown else ()
        return {name for name, there in zip(unknown, found, strict=True) if not there}

    def prefetch(self, names: Iterable[str]) -> None:
        """Bring blobs here that will be read soon, several at a time. Those that cannot be had raise when they are read."""
        wanted = [name for name in set(names) if not self.path(name).exists()]

        def fetch(name: str) -> None:
            with contextlib.suppress(BlobMissing, BlobsUnavailable):
                self._download(name)

        if len(wanted) > 1:  # a single one is fetched when it is read
            list(self._transfers().map(fetch, wanted))

    def keeps(self, name: str) -> bool:
        """Whether the blob is there for everybody, after storing it again if only this machine has it."""
        if self.backend.exists(name):
            return True
        path = self.path(name)
        if not path.exists():
            return False
        self._claim.make()
        self.backend.put(name, path)
        return True

    def delete(self, name: str) -> None:
        """Remove a blob that no other process stores or reads, here and for everybody."""
        super().delete(name)
        self.backend.delete(name)

    def hide(self, name: str, kind: str = TASKS) -> str:
        """Take a blob away for everybody, but keep a copy. Caches stay: no writer looks into another machine's."""
        ticket = new_ticket(kind)
        folder = self.directory / "hidden"
        folder.mkdir(parents=True, exist_ok=True)
        self.backend.hide(name, ticket, folder)
        return ticket

    def unhide(self, name: str, ticket: str | None = None) -> bool:
        """Put a hidden blob back. Without a ticket: the backend does that when it is asked for the blob."""
        if ticket is None:
            return self.backend.exists(name)
        return self.backend.unhide(name, ticket, self.directory / "hidden")

    def hidden(self) -> set[tuple[str, str]]:
        """(name, ticket) of what is hidden, as far as copies can be seen from here."""
        return self.backend.hidden(self.directory / "hidden")

    def drop(self, name: str, ticket: str) -> None:
        """Remove the copy of a hidden blob."""
        self.backend.drop(name, ticket, self.directory / "hidden")

    def everywhere(self) -> Iterator[str]:
        """All blobs in the place that has them. Raises BlobsUnavailable."""
        return self.backend.names()

    def stored_at(self, name: str) -> float | None:
        """When a blob was stored in that place, in seconds since 1970; None: nobody knows. Raises BlobsUnavailable."""
        return self.backend.stored_at(name)

    def begins(self, name: str, size: int) -> bytes:
        """The first bytes of a blob in that place; empty when it is not there. Raises BlobsUnavailable."""
        return self.backend.begins(name, size)

    @property
    def is_of_one_space(self) -> bool:
        """Whether no other space can have blobs in that place."""
        return self.backend.is_of_one_space

    def other_spaces(self) -> frozenset[str]:
        """Other spaces that have blobs in that place. Raises BlobsUnavailable."""
        return self._claim.others()

    def close(self) -> None:
        """Release what belongs to this process."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(cancel_futures=True)
        self.backend.close()

    def tidy(self) -> int:
        """Bring the cache under its limit: the blobs that were used longest ago go, and their bytes are returned.

        None that was used within ``config.BLOB_CACHE_KEEP_S``, so a cache that is smaller than what its tasks read grows beyond.
        """
        files: list[tuple[float, int, Path]] = []
        for name in self.names():
            with contextlib.suppress(FileNotFoundError):
                status = self.path(name).stat()
                files.append((status.st_mtime, status.st_size, self.path(name)))
        total, freed = sum(size for _, size, _ in files), 0
        if total <= self._cache_bytes_max:
            return 0
        oldest_in_use = time.time() - config.BLOB_CACHE_KEEP_S
        for used_at, size, path in sorted(files):
            if used_at > oldest_in_use or total - freed <= self._cache_bytes_max * _TIDY_TO_SHARE:
                break
            path.unlink(missing_ok=True)
            freed += size
        return freed

    def _upload(self, name: str) -> None:
        path = self.path(name)
        self._grew(path)
        self._claim.make()
        self.backend.put(name, path)

    def _download(self, name: str) -> None:
        with self._lock:
            mine = self._fetching.setdefault(name, threading.Lock())
        try:
            with mine:  # several slots of a process may want the same blob
                if not self.path(name).exists():
                    self._fetch(name)
        finally:
            with self._lock:
                self._fetching.pop(name, None)

    def _fetch(self, name: str) -> None:
        temporary = self.temporary()
        try:
            if not self.backend.get(name, temporary):
                raise BlobMissing(name)
            found = super().put_file(temporary)
        except OSError as error:
            if isinstance(error, BlobMissing | BlobsUnavailable) or error.filename is not None:
                raise
            error.filename = str(self.directory)  # a write does not tell where the disk is full
            raise
        finally:
            temporary.unlink(missing_ok=True)
        if found != name:
            self.path(found).unlink(missing_ok=True)
            raise BlobMissing(name)  # what the backend has under this name is not it: it has to be made again
        self._grew(self.path(name))

    def _grew(self, path: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            size = path.stat().st_size
            with self._lock:
                self._came_in += size
                due = self._came_in >= min(_TIDY_EVERY_BYTES, self._cache_bytes_max // 4)
                if due:
                    self._came_in = 0
            if due:
                self.tidy()

    def _transfers(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(config.BLOB_TRANSFERS_MAX, "onefold blobs")
            return self._pool


__all__ = ["Backend", "BlobMissing", "BlobsUnavailable", "CachedBlobs", "SharedBlobs", "blob_name"]
