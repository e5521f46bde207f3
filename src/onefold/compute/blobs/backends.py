"""Where the machines of a cluster keep blobs together: a shared directory, or an object store.

Chosen by text that is kept in the space (``onefold init --blobs``):

A space has a folder of its own there (``own_place``); those that releases before 0.5.0 made have the place itself.

- ``dir:/shared/path``: a directory that every machine has under this path.
- ``s3://bucket/prefix`` or another fsspec URL; ``?endpoint_url=...&region_name=...`` for stores other than Amazon's. Keys come
  from the environment of each process and are not kept.
- ``jetstream``: an object bucket next to the logs; see ``compute.blobs.jetstream``.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl, urlsplit

from onefold import config
from onefold.arguments import shown
from onefold.backoff import Backoff, retried
from onefold.compute.blobs.shared import Backend
from onefold.compute.blobs.store import BlobStore, BlobsUnavailable
from onefold.errors import InvalidArgument
from onefold.files import sync
from onefold.machine.undisturbed import is_interrupt

T = TypeVar("T")
JETSTREAM: Final = "jetstream"
_OPTIONS: Final = frozenset({"endpoint_url", "region_name"})
_CLAIMS: Final = "spaces"
"""Where a place that several spaces may have says which have blobs in it."""
_TRY_AGAIN_S: Final = 0.2
_TRY_AGAIN_S_MAX: Final = 2.0


class _Failed(Exception):
    """What a client library raised, which may pass."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


def check_place(place: str) -> str:
    """The text if it names a place for blobs. Raises InvalidArgument that says what does."""
    if place == JETSTREAM:
        return place
    if place.startswith("dir:"):
        if Path(place.removeprefix("dir:")).is_absolute():
            return place
        raise InvalidArgument(f"{place}: write dir:/path from the root, the same on every machine")
    parts = urlsplit(place)
    if parts.scheme and parts.scheme not in ("file", "memory", "nats", "tls") and parts.netloc:
        if parts.username or parts.password:
            raise InvalidArgument(
                "keys of the blob store do not belong into its URL, which everybody can read; give them in the environment"
            )
        unknown = {key for key, _ in parse_qsl(parts.query)} - _OPTIONS
        if unknown:
            raise InvalidArgument(f"{place}: unknown option {min(unknown)!r}; there are {sorted(_OPTIONS)}")
        return place
    raise InvalidArgument(
        f"blobs cannot be kept in {shown(place)}; use jetstream, s3://bucket/prefix or dir:/shared/path"
    )


def own_place(place: str, space: str, incarnation: str) -> str:
    """Where a new space keeps its blobs in a place that was named for it: a folder of its own, so that several may be given one
    place, and one that is restored never meets the blobs of the one that it was."""
    if place == JETSTREAM:
        return place
    path, question, options = place.partition("?")
    return f"{path.rstrip('/')}/{space}-{incarnation}{question}{options}"


def named_place(place: str, space: str, incarnation: str) -> str:
    """What ``own_place`` was made from; of a space of an earlier release the place itself, which others may have too."""
    path, question, options = place.partition("?")
    return f"{path.removesuffix(f'/{space}-{incarnation}')}{question}{options}"


def open_backend(place: str, named: str | None = None) -> Backend:
    """The backend of a place other than ``jetstream``, which needs a connection. ``named``: what ``own_place`` has made it from,
    so that it is of one space. Raises InvalidArgument."""
    check_place(place)
    is_own = named is not None and named != place
    if place.startswith("dir:"):
        share = Path(named.removeprefix("dir:")) if is_own and named is not None else None
        return DirectoryBackend(Path(place.removeprefix("dir:")), share)
    if place == JETSTREAM:
        raise InvalidArgument("blobs in jetstream are reached through the space's own connection")
    return ObjectStoreBackend(place, is_of_one_space=is_own)


class DirectoryBackend:
    """A directory that all machines see, such as one of a file server."""

    def __init__(self, directory: Path, share: Path | None = None) -> None:
        """``share``: the directory that is there before anything is stored, where this one is in it and of one space."""
        self._files = BlobStore(directory)
        self._directory = directory
        self._share = share

    @property
    def place(self) -> str:
        """For messages."""
        return f"dir:{self._directory}"

    def put(self, name: str, path: Path) -> None:
        """Copy the file there; returns once it is synced."""

        def copy() -> None:
            if self._files.path(name).exists():
                return
            temporary = self._files.temporary()
            try:
                shutil.copyfile(path, temporary)
                self._files.put_file(temporary)
            finally:
                temporary.unlink(missing_ok=True)

        self._now(copy)

    def get(self, name: str, path: Path) -> bool:
        """Copy the blob from there."""

        def copy() -> bool:
            if not self._files.exists(name):  # puts a hidden one back
                self._check_there()
                return False
            try:
                shutil.copyfile(self._files.path(name), path)
            except FileNotFoundError:
                return False
            return True

        return self._now(copy)

    def exists(self, name: str) -> bool:
        """Whether the file is there."""

        def look() -> bool:
            there = self._files.exists(name)
            if not there:
                self._check_there()
            return there

        return self._now(look)

    def delete(self, name: str) -> None:
        """Remove the file."""
        self._now(lambda: self._files.delete(name))

    def hide(self, name: str, ticket: str, folder: Path) -> None:  # noqa: ARG002 - the copy is kept in the place
        """Move the file aside."""
        self._now(lambda: self._files.move_aside(name, ticket))

    def unhide(self, name: str, ticket: str, folder: Path) -> bool:  # noqa: ARG002
        """Move it back."""
        return self._now(lambda: self._files.unhide(name, ticket))

    def drop(self, name: str, ticket: str, folder: Path) -> None:  # noqa: ARG002
        """Remove what was moved aside."""
        self._now(lambda: self._files.drop(name, ticket))

    def hidden(self, folder: Path) -> set[tuple[str, str]]:  # noqa: ARG002
        """What is moved aside."""
        return self._now(self._files.hidden)

    def names(self) -> Iterator[str]:
        """The files there."""

        def look() -> list[str]:
            self._check_there()
            return list(self._files.names())

        return iter(self._now(look))

    def stored_at(self, name: str) -> float | None:
        """When the file was made."""
        return self._now(lambda: self._files.stored_at(name))

    def begins(self, name: str, size: int) -> bytes:
        """How the file begins."""
        return self._now(lambda: self._files.begins(name, size))

    @property
    def is_of_one_space(self) -> bool:
        """Earlier releases may have made two spaces with one directory."""
        return self._share is not None

    def claim(self, space: str) -> None:
        """Leave a file of this name."""

        def make() -> None:
            path = self._directory / _CLAIMS / space
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
                sync(path.parent)

        self._now(make)

    def claims(self) -> set[str]:
        """The files that were left."""

        def look() -> set[str]:
            self._check_there()
            folder = self._directory / _CLAIMS
            return {path.name for path in folder.iterdir()} if folder.is_dir() else set()

        return self._now(look)

    def close(self) -> None:
        """Nothing to release."""

    def _check_there(self) -> None:
        # A share that is not mounted looks like an empty one: its blobs are not lost.
        share = self._share or self._directory
        if not share.is_dir():
            raise BlobsUnavailable(f"the folder of shared blobs {share} is not there; mount it")

    def _now(self, do: Callable[[], T]) -> T:
        try:
            return do()
        except OSError as error:
            if isinstance(error, BlobsUnavailable):
                raise
            raise BlobsUnavailable(
                f"the folder of shared blobs cannot be used: {error.strerror or error} ({error.filename or self._directory})"
            ) from error


class ObjectStoreBackend:
    """A bucket of an object store, through fsspec. An object appears whole or not at all."""

    def __init__(self, url: str, *, is_of_one_space: bool = False) -> None:
        """``is_of_one_space``: whether the prefix was made for this space."""
        import fsspec

        self._is_of_one_space = is_of_one_space

        parts = urlsplit(url)
        self._url = url.split("?", maxsplit=1)[0].rstrip("/")
        options: dict[str, Any] = dict(parse_qsl(parts.query))
        region = options.pop("region_name", None)
        if region is not None:
            options["client_kwargs"] = {"region_name": region}
        try:
            self._fs, self._root = fsspec.core.url_to_fs(
                self._url, use_listings_cache=False, skip_instance_cache=True, **options
            )
        except ImportError as error:
            extra = 'pip install "onefold[s3]"' if parts.scheme in ("s3", "s3a") else str(error)
            raise InvalidArgument(
                f"blobs in {self._url} need a package that is not installed: {extra}"
            ) from error
        except ValueError as error:
            raise InvalidArgument(f"blobs cannot be kept in {self._url}: {error}") from error
        self._closed = threading.Event()

    @property
    def place(self) -> str:
        """For messages."""
        return self._url

    def put(self, name: str, path: Path) -> None:
        """Upload the file unless it is there; an object store answers when it is durable."""
        if not self._is_there(self._key(name)):
            self._patiently(f"stored in {self._url}", lambda: self._fs.put_file(str(path), self._key(name)))

    def get(self, name: str, path: Path) -> bool:
        """Download the object."""

        def download() -> bool:
            try:
                self._fs.get_file(self._key(name), str(path))
            except FileNotFoundError:
                return False
            return True

        def fetch() -> bool:
            return self._patiently(f"fetched from {self._url}", download)

        return fetch() or (self._found_aside(name) and fetch())

    def exists(self, name: str) -> bool:
        """Whether the object is there. One that a sweeper has hidden is put back."""
        return self._is_there(self._key(name)) or self._found_aside(name)

    def _is_there(self, key: str) -> bool:
        def look() -> bool:
            try:
                self._fs.info(key)
            except FileNotFoundError:
                return False
            return True

        return self._patiently(f"looked for in {self._url}", look)

    def delete(self, name: str) -> None:
        """Remove the object."""
        self._remove(self._key(name))

    def hide(self, name: str, ticket: str, folder: Path) -> None:  # noqa: ARG002 - the copy is kept in the bucket
        """Copy the object aside, on the server, and remove it."""
        if self._copy(self._key(name), self._aside(name, ticket)):
            self._remove(self._key(name))

    def unhide(self, name: str, ticket: str, folder: Path) -> bool:  # noqa: ARG002
        """Copy it back. What is aside is removed after that, so that one of them is always there."""
        if not self._copy(self._aside(name, ticket), self._key(name)):
            return False
        self._remove(self._aside(name, ticket))
        return True

    def drop(self, name: str, ticket: str, folder: Path) -> None:  # noqa: ARG002
        """Remove what was copied aside."""
        self._remove(self._aside(name, ticket))

    def hidden(self, folder: Path) -> set[tuple[str, str]]:  # noqa: ARG002
        """What is copied aside."""

        def look() -> list[str]:
            try:
                return [str(key) for key in self._fs.find(f"{self._root}/hidden")]
            except FileNotFoundError:
                return []

        keys = [key.split("/") for key in self._patiently(f"looked for in {self._url}", look)]
        return {(parts[-2], parts[-1]) for parts in keys if len(parts) > 2 and parts[-3] == "hidden"}

    def names(self) -> Iterator[str]:
        """The objects there, but for those that are aside."""

        def look() -> list[str]:
            try:
                return [str(key) for key in self._fs.find(self._root)]
            except FileNotFoundError:
                return []

        for key in self._patiently(f"listed in {self._url}", look):
            folder, _, name = key.rpartition("/")
            if folder.endswith(f"{self._root}/{name[:2]}"):  # not those of a space whose prefix is below
                yield name

    def stored_at(self, name: str) -> float | None:
        """When the object was made, if the store tells."""

        def look() -> float | None:
            try:
                return float(self._fs.modified(self._key(name)).timestamp())
            except (FileNotFoundError, NotImplementedError):
                return None

        return self._patiently(f"looked for in {self._url}", look)

    def begins(self, name: str, size: int) -> bytes:
        """How the object begins."""

        def look() -> bytes:
            try:
                return bytes(self._fs.cat_file(self._key(name), start=0, end=size))
            except FileNotFoundError:
                return b""

        return self._patiently(f"fetched from {self._url}", look)

    @property
    def is_of_one_space(self) -> bool:
        """Earlier releases may have made two spaces with one prefix."""
        return self._is_of_one_space

    def claim(self, space: str) -> None:
        """Leave an object of this name."""
        key = f"{self._root}/{_CLAIMS}/{space}"
        if not self._is_there(key):
            self._patiently(f"stored in {self._url}", lambda: self._fs.pipe_file(key, b"1"))

    def claims(self) -> set[str]:
        """The objects that were left."""

        def look() -> set[str]:
            try:
                return {str(key).rpartition("/")[2] for key in self._fs.find(f"{self._root}/{_CLAIMS}")}
            except FileNotFoundError:
                return set()

        return self._patiently(f"looked for in {self._url}", look)

    def _found_aside(self, name: str) -> bool:
        """Put back any copy of a hidden object; whether there was one. It stays aside, as in ``BlobStore.unhide``."""

        def tickets() -> list[str]:
            try:
                return [
                    str(key).rpartition("/")[2] for key in self._fs.ls(self._aside(name, ""), detail=False)
                ]
            except FileNotFoundError:
                return []

        found = self._patiently(f"looked for in {self._url}", tickets)
        return any(self._copy(self._aside(name, ticket), self._key(name)) for ticket in found if ticket)

    def _copy(self, source: str, target: str) -> bool:
        def copy() -> bool:
            try:
                self._fs.info(source)  # stores differ in what they raise when there is nothing to copy
                self._fs.cp_file(source, target)
            except FileNotFoundError:
                return False
            return True

        return self._patiently(f"moved in {self._url}", copy)

    def _remove(self, key: str) -> None:
        def remove() -> None:
            with contextlib.suppress(FileNotFoundError):
                self._fs.rm_file(key)

        self._patiently(f"removed from {self._url}", remove)

    def _aside(self, name: str, ticket: str) -> str:
        return f"{self._root}/hidden/{name}/{ticket}"

    def close(self) -> None:
        """Give up what is being tried again."""
        self._closed.set()

    def _key(self, name: str) -> str:
        return f"{self._root}/{name[:2]}/{name}"

    def _patiently(self, what: str, do: Callable[[], T]) -> T:
        """Try again while the store does not answer, up to ``config.BLOB_RETRY_S``."""

        def once() -> T:
            try:
                return do()
            except PermissionError as error:
                raise BlobsUnavailable(
                    f"a blob cannot be {what}: {error}; give this process credentials for it"
                ) from error
            except Exception as error:  # client libraries raise errors of their own, such as botocore's
                if is_interrupt(error):
                    raise
                raise _Failed(error) from error

        backoff = Backoff(_TRY_AGAIN_S, _TRY_AGAIN_S_MAX)
        try:
            return retried(once, _Failed, config.BLOB_RETRY_S, backoff, self._closed.wait)
        except _Failed as failed:
            error = failed.error
            raise BlobsUnavailable(
                f"a blob cannot be {what}: {type(error).__name__}: {error}; check endpoint, bucket and credentials"
            ) from error
