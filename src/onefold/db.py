"""Connecting: ``connect`` opens a space, ``Database`` is what a program holds of it."""

from __future__ import annotations

import os
import re
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from onefold import config
from onefold.arguments import check_flag, check_whole
from onefold.arguments import shown as shown_value
from onefold.database import Database
from onefold.errors import InvalidArgument
from onefold.folds import folds, region_folds

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from onefold.log.jetstream.client.link import Link
    from onefold.log.jetstream.spaces import SpaceInfo
    from onefold.shard.api import Shard
    from onefold.state.available.client import Region
    from onefold.state.core.consistency import Consistency

DEFAULT_SPACE = ".onefold"
_AS_IT_IS: Final = object()
"""Nothing is said: a space keeps of its log what it kept before."""
_CLUSTER: Final = ("nats://", "tls://")
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
    log_keep: int | str | None = _AS_IT_IS,  # type: ignore[assignment]
) -> Database:
    """Open a space and make it if it is not there.

    ``url``: a folder, ``sqlite:///folder``, ``memory://`` (nothing kept), or ``nats://host:port/SPACE`` (``tls://…``) on a
    cluster; without it ``ONEFOLD_URL``, else ``./.onefold``.
    ``consistency``: of reads that name none: ``"strong"``, ``"bounded:5s"``, ``"session"``, ``"prefix"``, ``"eventual"``.
    ``session``: the token of a session to continue with (``db.session.token``). ``shards``: how many logs the space has, fixed
    when it is made (default 1); later opens read it from the space. ``timeout``: how long an operation may wait for the write
    lock, and a read for its level. ``create=False``: raise SpaceError when there is no space rather than make one. ``read_only``:
    write nothing.

    ``log_keep``: how much of its log the space in a folder keeps from now on, such as ``"1GB"``, in all its shards together; None
    keeps all. The state stays; ``db.at`` and ``onefold restore --to`` need the log. Without it as before: all, and 1 GB once
    the space has had a live job.

    On a cluster: ``replicas="local"`` keeps a replica of every shard on this machine, for fast reads; ``"remote"`` keeps none and
    reads from nodes, those of ``region`` first. A space is made there only by a credential that may. Elsewhere ``"remote"`` is
    refused.

    ``region``: the one in which available collections (``mode="available"``) are read and written: 1 to 32 letters, digits, - and
    _. In a folder a new name makes it. Without it the only one; where there are several, consistent collections work, and the
    first use of an available one raises InvalidArgument.

    Raises:
        SpaceError: definite; it cannot be opened (read-only folder, newer format, not a space, wrong credential).
        Unavailable: definite; the cluster cannot be reached.
        Timeout: definite; others held its lock for too long.
        InvalidArgument: definite; an unknown URL, another number of shards.
        UnsupportedConsistency: definite; the engine cannot serve the level.
        TokenError: definite; the token is malformed or of another space.
    """
    from onefold.durations import wait_seconds
    from onefold.machine.undisturbed import undisturbed
    from onefold.space.open_space import open_shards
    from onefold.state.core.consistency import parse_level

    level = parse_level(consistency)
    target = target_of(url)
    check_flag("create", create)
    check_flag("read_only", read_only)
    if replicas not in ("local", "remote"):
        raise InvalidArgument(f"replicas must be 'local' or 'remote'; got {shown_value(replicas)}")
    if replicas == "remote" and not target.startswith(_CLUSTER):
        raise InvalidArgument(
            "replicas='remote' reads from the nodes of a cluster (nats://host:port/SPACE), and the space is "
            f"{_place_of(target)}: leave replicas out"
        )
    if region is not None:
        _check_region(region, target)
    check_whole("shards", shards, least=1, most=config.SHARDS_MAX, or_none=True)
    if session is not None:
        from onefold.state.core.tokens import decode_token

        decode_token(session)
    timeout_s = wait_seconds(timeout) if timeout is not None else None
    keep = None if log_keep is _AS_IT_IS else _checked_log_keep(log_keep, target, read_only=read_only)

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
            check=None if session is None else partial(_check_session, session),
        )
        try:
            if keep is not None:
                from onefold.space.kept_log import say_log_keep

                say_log_keep(all_shards, keep)
            opener = partial(
                _open_region,
                all_shards,
                _Opening(target, region, create and not read_only, read_only, timeout_s, replicas),
            )
            made = Database(all_shards, level=level, token=session, timeout=timeout_s, open_region=opener)
            made._has_regions = partial(_has_regions, all_shards[0], region)
            if region is not None and create and not read_only and not target.startswith(_CLUSTER):
                made._in_region()  # a new name makes it
            return made
        except BaseException:
            for shard in all_shards:
                shard.close()
            raise

    return undisturbed(opened, Database.close)  # an interrupt leaves nothing open


def _check_region(region: object, target: str) -> None:
    if target.startswith(_CLUSTER):  # where all is one region, any place of its nodes can be named
        from onefold.log.jetstream.regions import check_place

        check_place("region", region)
    else:
        from onefold.ids import check_region

        check_region(region)


class _Opening(NamedTuple):
    """How a region is opened: as its space was."""

    target: str
    region: str | None
    create: bool
    read_only: bool
    timeout: float | None
    replicas: Literal["local", "remote"]


def _open_region(shards: Sequence[Shard], asked: _Opening, default: str | None = None) -> Region:
    """Open the region in which a connection uses available collections. ``default``: where none was named."""
    from onefold.machine.first_use import first_use

    region = default if asked.region is None else asked.region
    env, read_only, timeout = shards[0].env, asked.read_only, asked.timeout
    if asked.target.startswith("memory:"):
        with first_use:
            from onefold.regions.in_memory import open_in_memory
        return open_in_memory(len(shards), region, env, folds=region_folds)
    if asked.target.startswith(_CLUSTER):
        with first_use:
            from onefold.regions.open_cluster import open_in_cluster
        return open_in_cluster(
            asked.target,
            region,
            env,
            folds=region_folds,
            read_only=read_only,
            timeout=timeout,
            replicas=asked.replicas,
        )
    with first_use:
        from onefold.regions.folder import open_folder
    return open_folder(
        shards,
        shards[0].directory or "",
        region,
        env,
        folds=region_folds,
        create=asked.create,
        read_only=read_only,
        timeout=timeout,
    )


def _has_regions(first: Shard, region: str | None) -> bool:
    """Whether it is clear which region this connection uses, and that region is there. Makes none."""
    from onefold.errors import Unavailable
    from onefold.regions.decisions import region_names

    try:
        names = region_names([first])
    except Unavailable:  # consistent logs cannot be read now, which a region does not need
        return region is not None
    return region in names if region is not None else len(names) == 1


def _place_of(target: str) -> str:
    return "in memory" if target.startswith("memory:") else "in a folder"


def _checked_log_keep(given: object, target: str, *, read_only: bool) -> int:
    from onefold.shard.log_keep import log_keep_bytes

    keep = log_keep_bytes(given)
    if target.startswith(_CLUSTER):
        raise InvalidArgument(
            "log_keep is for a space in a folder: on a cluster the nodes trim the log below their snapshots"
        )
    if given is not None and target.startswith("memory:"):
        raise InvalidArgument(
            "log_keep is for a space in a folder: one in memory keeps its whole log while it is open. Leave log_keep out, or "
            "open a folder"
        )
    if read_only:
        raise InvalidArgument("log_keep is written into the space: open it without read_only=True")
    return keep


def _check_session(token: str, incarnation: str | None, shards: int | None) -> None:
    """Raises TokenError before the space is opened, or made: a token is never of a space that is not there."""
    from onefold.state.core.tokens import decode_token

    decode_token(token, incarnation or "", shards)


def _fetch_base(link: Link, info: SpaceInfo, shard: int, path: Path) -> bool:
    from onefold.compute.blobs.places import fetch_base

    return fetch_base(link, info, shard, path)


def target_of(url: str | os.PathLike[str] | None) -> str:
    """Where ``connect(url)`` goes, as text. Raises InvalidArgument for what is not a URL of a space."""
    given = url if url is not None else os.environ.get("ONEFOLD_URL") or DEFAULT_SPACE
    target = os.fspath(given) if isinstance(given, os.PathLike) else given
    if not isinstance(target, str):
        raise InvalidArgument(f"url must be {_PLACES}; got {shown_value(given)}")
    shown = target.rpartition("@")[2]  # what stands before it may be a secret
    if "\0" in target:
        raise InvalidArgument(f"url must be {_PLACES}; got {shown[:200]!r}")
    try:
        target.encode()
    except UnicodeEncodeError:
        raise InvalidArgument(
            f"url must be text that UTF-8 can encode, also where it is a folder; got {shown[:200]!r}"
        ) from None
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", target)
    if scheme is not None and scheme.group(1) not in ("memory", "sqlite", "nats", "tls"):
        raise InvalidArgument(f"unknown engine {scheme.group(1)[:60]!r} in {shown[:200]!r}; use {_PLACES}")
    if not target.startswith(_CLUSTER):
        from onefold.space.open_shard import check_memory, directory_of

        (check_memory if target.startswith("memory:") else directory_of)(target)
    return target


__all__ = ["Database", "connect", "target_of"]
