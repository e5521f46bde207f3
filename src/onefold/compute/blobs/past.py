"""The blobs of a space as its past reads them (``db.at``). Nothing is written, and what was freed since is not called lost.

What nothing names any more is removed after some minutes, while the log that once named it is kept for longer. So the past may
name blobs that are gone, and nothing is damaged by that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from onefold.compute.blobs.store import BlobMissing, BlobStore
from onefold.errors import SpaceError, TooOld


class BlobFreed(BlobMissing, TooOld):
    """A blob that the past names was removed since, as the present does not need it. Definite."""

    def __init__(self, name: str, reach: str) -> None:
        super().__init__(name)
        self.args = (
            f"blob {name[:16]}…, which has data of that time, was removed: a later run, compaction or retention has replaced it, "
            f"and such data is kept for some minutes only. {reach}Ask for a later moment, or restore a backup of that time",
        )


class PastBlobs(BlobStore):
    """Reads from the store of the present. Thread-safe."""

    def __init__(self, present: BlobStore, is_named: Callable[[str], bool], reach: Callable[[], str]) -> None:
        """``is_named``: whether the present needs a blob. ``reach``: a sentence that says how far back the log itself reaches, or
        nothing."""
        super().__init__(present.directory)
        self._store = present if present.shared else BlobStore(present.directory, read_only=True)
        self._is_named = is_named
        self._reach = reach

    def get(self, name: str) -> bytes:
        """The blob's bytes; raises BlobFreed, BlobMissing and BlobsUnavailable."""
        with self._explained():
            return self._store.get(name)

    def open_path(self, name: str) -> Path:
        """The path of a local copy; raises as ``get``."""
        with self._explained():
            return self._store.open_path(name)

    def exists(self, name: str) -> bool:
        """Whether the blob can be had."""
        return self._store.exists(name)

    def missing(self, names: Iterable[str]) -> set[str]:
        """Which of these blobs cannot be had."""
        return self._store.missing(names)

    def prefetch(self, names: Iterable[str]) -> None:
        """Bring blobs here that will be read soon."""
        self._store.prefetch(names)

    def put(self, data: bytes | memoryview) -> str:  # noqa: ARG002
        """Refused."""
        raise SpaceError("this is a space as it was: nothing can be written. Write to the present one")

    def put_file(self, path: Path) -> str:
        """Refused."""
        return self.put(path.name.encode())

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except BlobMissing as error:
            if self._is_named(error.name):
                raise  # the present lacks it too
            raise BlobFreed(error.name, self._reach()) from None
