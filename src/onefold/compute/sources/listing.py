"""Which files a source names: paths, globs, directories and fsspec URLs become a sorted list of files.

Rules. A path that exists is taken as it is, also if its name holds glob characters. A directory stands for the regular
files below it at any depth. These are all of them for ``text`` and ``files``; for ``csv``, ``jsonl`` and ``parquet``
those with a suffix of that kind. Left out are names (of files or folders) that begin with ``.``, or with ``_`` unless there is
a ``=`` in them (the folder of a partition column), as Spark does it. In a glob, ``**``
is any number of folders, ``*``, ``?`` and ``[...]`` stay within one name, and a leading dot must be written. Symbolic links
to files are followed; links to folders are followed only where a path or a single-level pattern names them, never while
walking, so loops cannot trap a listing.
"""

from __future__ import annotations

import fnmatch
import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from onefold.compute.plan.nodes import Source, SourceKind
from onefold.compute.sources import compression, etags, remote
from onefold.errors import InvalidArgument

SUFFIXES: dict[SourceKind, tuple[str, ...]] = {
    "csv": tuple(s + c for s in (".csv", ".tsv") for c in compression.SUFFIXES),
    "jsonl": tuple(s + c for s in (".jsonl", ".ndjson") for c in compression.SUFFIXES),
    "parquet": (".parquet", ".pq"),
}
"""What a directory is searched for, by kind; kinds that are not here take every file."""

_SETTLE_TRIES = 3
"""A file that is being written all the time does not settle; reading it will tell."""
_MAGIC = re.compile(r"[*?\[]")


class FileInfo(NamedTuple):
    """A file as it was when it was listed."""

    path: str
    """Local: absolute path. Remote: URL with protocol."""
    size: int
    etag: str
    """Changes when the file changes: see ``etags`` for local files; object stores have their own."""


def list_files(source: Source) -> list[FileInfo]:
    """All files of a source, sorted by path, each once. Raises ``InvalidArgument`` for what names no readable file."""
    found: dict[str, FileInfo] = {}
    for path in source.paths:
        listed = (
            remote.list_remote(source, path) if remote.is_remote(path) else _list_local(source.kind, path)
        )
        for info in listed:
            check_name(info.path)
            found[info.path] = info
    return [found[path] for path in sorted(found)]


def check_name(path: str) -> None:
    """Raise ``InvalidArgument`` for a path whose bytes are not UTF-8: it cannot be stored with the job, nor be a value."""
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgument(
            f"the name of the file {os.fsencode(path)!r} is not UTF-8; rename the file"
        ) from error


def absolute(given: str) -> str:
    """A local path from the root, links and all."""
    return os.path.abspath(Path(given).expanduser())  # noqa: PTH100 - resolve() would follow links


def wanted(kind: SourceKind, relative: Sequence[str]) -> bool:
    """Whether a file at these path parts below a directory belongs to a source of this kind."""
    suffixes = SUFFIXES.get(kind)
    if suffixes is None:
        return True
    return not any(map(_is_hidden, relative)) and relative[-1].lower().endswith(suffixes)


def _is_hidden(name: str) -> bool:
    """Whether a directory's data is not in a file or folder of this name."""
    return name.startswith(".") or (name.startswith("_") and "=" not in name)


def directory_hint(kind: SourceKind) -> str:
    """What a directory of this kind is searched for, for messages."""
    suffixes = SUFFIXES.get(kind)
    return "files" if suffixes is None else "/".join(f"*{s}" for s in suffixes) + " files"


def _list_local(kind: SourceKind, given: str) -> list[FileInfo]:
    path = absolute(given)
    try:
        status = os.stat(path)  # noqa: PTH116 - a Path for each of many files costs more than the call
    except (FileNotFoundError, NotADirectoryError):
        status = None
    except OSError as error:
        raise InvalidArgument(
            f"cannot read {given!r}: {error.strerror}; check the path and its permissions"
        ) from error
    if status is None:
        if _MAGIC.search(path):
            return _list_glob(given, path)
        raise InvalidArgument(f"no such file or directory: {given!r} (looked for {path})")
    if stat.S_ISDIR(status.st_mode):
        listed = [
            info
            for entry, relative in _walk(path, (), _skips_hidden(kind))
            if wanted(kind, relative) and (info := _info(entry.path)) is not None
        ]
        if not listed:
            raise InvalidArgument(
                f"no {directory_hint(kind)} in the directory {given!r}; name the files or use a glob"
            )
        return listed
    if not stat.S_ISREG(status.st_mode):
        raise InvalidArgument(f"{given!r} is not a regular file")
    _check_readable(path)
    return [_listed(path, status)]


def _list_glob(given: str, path: str) -> list[FileInfo]:
    listed = [info for match in _glob(path) if (info := _info(match)) is not None]
    if not listed:
        raise InvalidArgument(f"no file matches {given!r} (looked for {path})")
    return listed


def _info(path: str) -> FileInfo | None:
    """The file, or None for what is not a regular file or has gone since it was listed."""
    try:
        status = os.stat(path)  # noqa: PTH116
    except FileNotFoundError:
        return None
    except OSError as error:
        if isinstance(error, PermissionError):
            raise InvalidArgument(f"cannot read {path!r}: {error.strerror}; check its permissions") from error
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    # A file that nobody may read is found here, once, instead of by every attempt of a task.
    if status.st_mode & 0o444 != 0o444:
        _check_readable(path)
    try:
        return _listed(path, status)
    except FileNotFoundError:
        return None


def _listed(path: str, status: os.stat_result) -> FileInfo:
    """The file, once its times are sure to show any further change."""
    for _ in range(_SETTLE_TRIES):
        wait_s = etags.settles_in_s(status, time.time_ns())
        if not wait_s:
            break
        time.sleep(wait_s)
        status = os.stat(path)  # noqa: PTH116
    return FileInfo(path, status.st_size, etags.etag(path, status))


def _check_readable(path: str) -> None:
    if not os.access(path, os.R_OK):
        raise InvalidArgument(f"cannot read {path!r}: permission denied; check its permissions")


def _skips_hidden(kind: SourceKind) -> bool:
    return kind in SUFFIXES


def _scandir(path: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            return list(entries)
    except PermissionError as error:
        raise InvalidArgument(f"cannot list {path!r}: permission denied; check its permissions") from error
    except (FileNotFoundError, NotADirectoryError):
        return []


def _walk(
    path: str, relative: tuple[str, ...], skip_hidden: bool
) -> Iterator[tuple[os.DirEntry[str], tuple[str, ...]]]:
    """Everything below a directory that is not a directory, with its path parts."""
    pending = [(path, relative)]
    while pending:
        folder, parts = pending.pop()
        for entry in _scandir(folder):
            if skip_hidden and _is_hidden(entry.name):
                continue
            below = (*parts, entry.name)
            if entry.is_dir(follow_symlinks=False):
                pending.append((entry.path, below))
            else:
                yield entry, below


def _matcher(pattern: str) -> Callable[[str], bool]:
    matches = re.compile(fnmatch.translate(pattern)).match
    hidden = pattern.startswith(".")
    return lambda name: matches(name) is not None and (hidden or not name.startswith("."))


def _glob(pattern: str) -> Iterator[str]:
    """Paths that match an absolute pattern; folders are expanded level by level."""
    parts = Path(pattern).parts
    yield from _glob_below(parts[0], parts[1:])


def _glob_below(folder: str, parts: Sequence[str]) -> Iterator[str]:
    if not parts:
        yield folder
        return
    head, rest = parts[0], parts[1:]
    if head == "**":
        if not rest:
            for entry in _scandir(folder):
                if entry.is_dir(follow_symlinks=False):
                    if not entry.name.startswith("."):
                        yield from _glob_below(entry.path, parts)
                elif not entry.name.startswith("."):
                    yield entry.path
            return
        yield from _glob_below(folder, rest)
        if rest[0] == "**":
            return  # "**/**" is "**"; descending in both would find everything many times
        for entry in _scandir(folder):
            if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
                yield from _glob_below(entry.path, parts)
        return
    if not _MAGIC.search(head):
        joined = str(Path(folder) / head)
        if os.path.lexists(joined):
            yield from _glob_below(joined, rest)
        return
    matches = _matcher(head)
    for entry in _scandir(folder):
        if matches(entry.name) and (not rest or entry.is_dir()):
            yield from _glob_below(entry.path, rest)
