"""Connecting: ``connect`` opens a space, ``Database`` is what a program holds of it."""

from __future__ import annotations

import os
import re
from datetime import timedelta
from typing import TYPE_CHECKING, Literal

from onefold.database import Database, check_text
from onefold.errors import InvalidArgument
from onefold.folds import folds

if TYPE_CHECKING:
    from pathlib import Path

    from onefold.log.jetstream.client.link import Link
    from onefold.log.jetstream.spaces import SpaceInfo
    from onefold.state.core.consistency import Consistency

DEFAULT_SPACE = ".onefold"
_PLACES = "a folder, sqlite:///folder, memory:// or nats://host:port/SPACE"


def connect(
    url: str | os.PathLike[str] | None = None,
    *,
    consistency: Consistency = "strong",
    session: str | None = None,
    shards: int | None = None,
    timeout: float | timedelta | str | None = None,
    create: bool = True,
    read_only: bool = False,
    region: str | None = None,
    replicas: Literal["local", "remote"] = "local",
) -> Database:
    """Open a space and make it if it is not there.

    ``url``: a folder, ``sqlite:///folder``, ``memory://`` (nothing kept), or ``nats://host:port/SPACE`` (``tls://…``) on a
    cluster; without it ``ONEFOLD_URL``, else ``./.onefold``.
    ``consistency``: of reads that name none: ``"strong"``, ``"bounded:5s"``, ``"session"``, ``"prefix"``, ``"eventual"``.
    ``session``: the token of a session to continue with (``db.session.token``). ``shards``: how many logs the space has, fixed
    when it is made (default 1); later opens read it from the space. ``timeout``: how long an operation may wait for the write
    lock, and a read for its level. ``create=False``: raise SpaceError when there is no space rather than make one. ``read_only``:
    write nothing.

    On a cluster: ``replicas="local"`` keeps a replica of every shard on this machine, for fast reads; ``"remote"`` keeps none and
    reads from nodes, those of ``region`` first. A space is made there only by a credential that may. Elsewhere both say nothing.

    Raises SpaceError (cannot be opened: read-only folder, newer format, not a space, wrong credential), Unavailable (the cluster
    cannot be reached), InvalidArgument (unknown URL, other number of shards), UnsupportedConsistency, TokenError (the token is
    malformed or of another space).
    """
    from onefold.durations import seconds
    from onefold.machine.undisturbed import undisturbed
    from onefold.space.open_space import open_shards
    from onefold.state.core.consistency import parse_level

    level = parse_level(consistency)
    target = target_of(url)
    if replicas not in ("local", "remote"):
        raise InvalidArgument(f"replicas must be 'local' or 'remote'; got {replicas!r}")
    if region is not None:
        check_text("region", region)
    timeout_s = seconds(timeout, "timeout") if timeout is not None else None

    def opened() -> Database:
        all_shards = open_shards(
            target,
            folds,
            shards=shards,
            create=create,
            read_only=read_only,
            timeout=timeout_s,
            replicas=replicas,
            region=region,
            base=_fetch_base,
        )
        try:
            return Database(all_shards, level=level, token=session, timeout=timeout_s)
        except BaseException:
            for shard in all_shards:
                shard.close()
            raise

    return undisturbed(opened, Database.close)  # an interrupt leaves nothing open


def _fetch_base(link: Link, info: SpaceInfo, shard: int, path: Path) -> bool:
    from onefold.compute.blobs.places import fetch_base

    return fetch_base(link, info, shard, path)


def target_of(url: str | os.PathLike[str] | None) -> str:
    """Where ``connect(url)`` goes, as text. Raises InvalidArgument for what is not a URL of a space."""
    given = url if url is not None else os.environ.get("ONEFOLD_URL") or DEFAULT_SPACE
    target = os.fspath(given) if isinstance(given, os.PathLike) else given
    if not isinstance(target, str) or "\0" in target:
        raise InvalidArgument(f"url must be {_PLACES}; got {given!r}")
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", target)
    if scheme is not None and scheme.group(1) not in ("memory", "sqlite", "nats", "tls"):
        shown = target.rpartition("@")[2]  # what stands before it may be a secret
        raise InvalidArgument(f"unknown engine {scheme.group(1)!r} in {shown!r}; use {_PLACES}")
    return target


__all__ = ["Database", "connect", "target_of"]
