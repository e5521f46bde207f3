"""``open_shard``: the engine by URL."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from onefold.env import SYSTEM, Env
from onefold.errors import InvalidArgument, SpaceError
from onefold.fold.api import Fold
from onefold.shard.api import Shard

_LIKE_URL: Final = re.compile(r"(?i:nats|tls|memory|sqlite):|[A-Za-z][A-Za-z0-9+.-]+:/")
"""How a URL begins of which something was left out, or that ``pathlib`` has changed."""


def open_shard(
    url: str | Path,
    folds: Sequence[Fold],
    *,
    env: Env = SYSTEM,
    create: bool = True,
    read_only: bool = False,
    timeout: float | None = None,
) -> Shard:
    """Open the space at ``url``, with these folds.

    ``memory://`` keeps nothing and is nobody else's; a path, ``sqlite:///absolute/dir`` or ``sqlite:relative/dir`` is a directory
    that processes of this machine share. ``create=False`` refuses to make a new one. ``timeout``: seconds that a writer queues
    behind others (default ``config.WRITE_LOCK_TIMEOUT_S``).

    Raises SpaceError (no such place, another format, not writable), LogCorrupt, Timeout (definite), InvalidArgument.
    """
    text = str(url)
    if isinstance(url, str) and text.startswith("memory:"):
        check_memory(text)
        from onefold.log.memory import MemoryLog
        from onefold.shard.memory import MemoryShard

        return MemoryShard(MemoryLog(env=env), folds, env, url="memory://", read_only=read_only)
    from onefold.shard.embedded import EmbeddedShard

    return EmbeddedShard(directory_of(url), folds, env, create=create, read_only=read_only, timeout=timeout)


def check_memory(url: str) -> None:
    """Raises InvalidArgument for a ``memory:`` URL with more in it."""
    if url not in ("memory:", "memory://"):
        raise InvalidArgument(f"{url[:100]}: a space in memory has no name; use memory://")


def directory_of(url: str | Path) -> Path:
    """The directory that a path or ``sqlite:`` URL names."""
    if isinstance(url, Path):
        return url
    if "://" not in url and not url.startswith("sqlite:"):
        return _folder(url)
    from urllib.parse import unquote, urlsplit

    parts = urlsplit(url)
    scheme = parts.scheme
    if scheme in ("nats", "tls"):
        raise SpaceError(
            f"a {scheme}:// URL names a space on a cluster, and here a folder is needed. Use `onefold.connect(url)`"
        )
    if scheme != "sqlite":
        raise SpaceError(f"{url}: no engine for {scheme}://; this version has memory:// and sqlite:///dir")
    if parts.netloc or not parts.path:
        raise InvalidArgument(f"{url}: write sqlite:///absolute/dir, or give the directory alone")
    if parts.query or parts.fragment:
        raise InvalidArgument(
            f"{url}: a sqlite: URL takes no options; write ? and # in a folder's name as %3F and %23, or give the directory alone"
        )
    path = unquote(parts.path)
    if not path.strip("/"):
        raise InvalidArgument(
            f"{url} names no folder: write sqlite:///absolute/dir, or give the directory alone"
        )
    if "\0" in path:
        raise InvalidArgument(f"{url}: a folder's name cannot hold a zero byte")
    if path.startswith(("/./", "/../", "/~")):
        raise InvalidArgument(
            f"{url}: what follows sqlite:// is the whole path from / on; for another one give the directory alone"
        )
    return _folder(path)


def _folder(text: str) -> Path:
    """The folder of that name, unless it looks like something else. A folder that is there is what is meant."""
    folder = Path(text)
    if not text:
        raise InvalidArgument("an empty URL names no space; give a directory, sqlite:///dir or memory://")
    if text.strip() and os.path.isdir(text):  # noqa: PTH112 - a name that is too long is not there
        return folder
    shown = repr(text.rpartition("@")[2][:100])  # what stands before it may be a secret
    if text != text.strip():
        raise InvalidArgument(f"url {shown} begins or ends with a space or a line break; leave that out")
    if text.startswith("~"):
        raise InvalidArgument(
            f"url {shown}: only a shell replaces ~ by a home folder; give os.path.expanduser({shown}), or put ./ in front for a "
            "folder of that name"
        )
    if _LIKE_URL.match(text):
        raise InvalidArgument(
            f"url {shown} is not a folder, and not the URL of a space. Write a folder, sqlite:///folder, memory:// or "
            "nats://host:port/SPACE"
        )
    return folder
