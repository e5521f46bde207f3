"""``open_shard``: the engine by URL."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from onefold.env import SYSTEM, Env
from onefold.errors import InvalidArgument, SpaceError
from onefold.fold.api import Fold
from onefold.shard.api import Shard


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
        if text not in ("memory:", "memory://"):
            raise InvalidArgument(f"{text}: a space in memory has no name; use memory://")
        from onefold.log.memory import MemoryLog
        from onefold.shard.memory import MemoryShard

        return MemoryShard(MemoryLog(env=env), folds, env, url="memory://", read_only=read_only)
    from onefold.shard.embedded import EmbeddedShard

    return EmbeddedShard(directory_of(url), folds, env, create=create, read_only=read_only, timeout=timeout)


def directory_of(url: str | Path) -> Path:
    """The directory that a path or ``sqlite:`` URL names."""
    if isinstance(url, Path):
        return url
    if "://" not in url and not url.startswith("sqlite:"):
        if not url:
            raise InvalidArgument("an empty URL names no space; give a directory, sqlite:///dir or memory://")
        return Path(url)
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
    return Path(unquote(parts.path))
