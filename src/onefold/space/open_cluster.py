"""Opening the shards of a space on a cluster: each with a replica on this machine, or read from nodes."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from onefold import config
from onefold.env import SYSTEM, Env
from onefold.errors import InvalidArgument, OnefoldError, SpaceError, Timeout, Unavailable
from onefold.fold import authority
from onefold.fold.api import Fold
from onefold.log.jetstream import admin
from onefold.log.jetstream.client.address import Address, parse_address
from onefold.log.jetstream.client.link import Link
from onefold.log.jetstream.engine import JetStreamLog
from onefold.log.jetstream.regions import check_region_of
from onefold.log.jetstream.spaces import SpaceInfo
from onefold.shard.api import Shard
from onefold.shard.remote import snapshot_fetch
from onefold.shard.remote.shard import RemoteShard
from onefold.shard.remote.snapshot_fetch import BaseFetch
from onefold.shard.replica.shard import LocalReplica
from onefold.space.late_shard import LateShard

Folds = Callable[[int, int], Sequence[Fold]]
Replicas = Literal["local", "remote"]
Check = Callable[[str | None, int | None], None]
"""See ``open_space.Check``."""


def open_cluster(
    url: str,
    folds: Folds,
    *,
    shard_count: int | None = None,
    env: Env = SYSTEM,
    create: bool = True,
    read_only: bool = False,
    timeout: float | None = None,
    replicas: Replicas = "local",
    region: str | None = None,
    base: BaseFetch | None = None,
    check: Check | None = None,
) -> list[Shard]:
    """Open every shard of the space at ``url`` (``nats://`` or ``tls://``), in order.

    Where there is no space it is made with ``shards`` logs (default 1) if ``create`` and the credential may; ``onefold init``
    makes it with more say. ``replicas="local"``: a replica of each shard in ``cache_directory()``, shared by the processes of
    this machine, brought up to what the log has now before this returns; ``timeout``: how long nothing may happen meanwhile.
    ``"remote"``: none; nodes are asked, those of ``region`` first. In a space of several regions it is one of them, and its
    servers are preferred. ``base``: fetches what the logs of a restored space continue from. ``check``: see ``Check``.

    In a space of several regions, shards whose logs do not answer are ``LateShard``: a region's own logs may work meanwhile.

    Raises Unavailable (no server, no progress), SpaceError (credential, no space, folder, newer program), InvalidArgument,
    LogCorrupt.
    """
    address = parse_address(url)
    if region is not None:
        check_region_of(address.space, (), region)  # before anybody is asked
        address = dataclasses.replace(address, region=region)
    # Each shard has a share of the connection, and gives it back when it is closed.
    link = Link.shared(address, env=env)
    try:
        info = _space_at(link, shard_count, env, create=create and not read_only, check=check)
        if region is not None and info.regions:
            check_region_of(info.space, info.regions, region)
            link.stay_in_region()
        opening = _Opening(address, info, env, read_only, timeout, region, base)
        return _all_open(opening, folds, replicas)
    finally:
        link.close()


def open_region(
    url: str,
    region: str,
    folds: Folds,
    *,
    env: Env = SYSTEM,
    read_only: bool = False,
    timeout: float | None = None,
    replicas: Replicas = "local",
) -> list[Shard]:
    """Open every shard of a region's own logs, in order. ``folds``: such as ``folds.region_folds``. Arguments and errors as
    ``open_cluster``.

    Nothing of this needs the consistent logs, or a leader of the cluster: the space's record is read from any server that has it.
    Raises InvalidArgument too for a region that the space has not.
    """
    check_region_of("", (), region)
    address = dataclasses.replace(parse_address(url), region=region)
    link = Link.shared(address, env=env)
    try:
        info = admin.read_space(link)
        if not info.regions:
            raise InvalidArgument(
                f"space {info.space} is one region, which has no logs of its own. A space gets its regions when it is made: "
                "`onefold init --regions`"
            )
        check_region_of(info.space, info.regions, region)
        link.stay_in_region()
        opening = _Opening(address, info.of_region(region), env, read_only, timeout, region, None)
        return _all_open(opening, folds, replicas)
    finally:
        link.close()


class _Opening(NamedTuple):
    """What all shards are opened with."""

    @property
    def patience_s(self) -> float:
        """How long nothing may happen while a replica is brought up."""
        return config.APPEND_RETRY_S if self.timeout is None else self.timeout

    @property
    def url(self) -> str:
        """For messages."""
        own = f" (what {self.info.region} has for itself)" if self.info.region else ""
        return f"{self.address.url}{own}"

    address: Address
    info: SpaceInfo
    env: Env
    read_only: bool
    timeout: float | None
    region: str | None
    base: BaseFetch | None


def _all_open(opening: _Opening, folds: Folds, replicas: Replicas) -> list[Shard]:
    """Every shard, each up to what its log has now. Raises as ``open_cluster``; then none is left open."""
    count = opening.info.shards
    if replicas == "remote":
        return _together(count, lambda shard: _remote(opening, shard, folds(shard, count)))
    problem: OnefoldError | None = None

    def local(shard: int) -> Shard:
        nonlocal problem
        mine = folds(shard, count)
        try:
            if problem is None:  # else each would be waited for
                return _local(opening, shard, mine)
        except (Unavailable, Timeout) as error:
            if not opening.info.regions:
                raise
            problem = error
        assert problem is not None
        return _late(opening, shard, mine, problem)

    shards = _together(count, local)
    try:
        for shard_id, shard in enumerate(shards):
            if not isinstance(shard, LocalReplica):
                continue
            try:
                _bring_up(shard, opening.patience_s)
            except (Unavailable, Timeout) as error:
                if not opening.info.regions:
                    raise
                shard.close()
                shards[shard_id] = _late(opening, shard_id, folds(shard_id, count), error)
    except BaseException:
        _close_all(shards)
        raise
    return shards


def _together(count: int, opened: Callable[[int], Shard]) -> list[Shard]:
    """All shards, or none."""
    shards: list[Shard] = []
    try:
        for shard in range(count):
            shards.append(opened(shard))
    except BaseException:
        _close_all(shards)
        raise
    return shards


def _close_all(shards: Sequence[Shard]) -> None:
    for shard in shards:
        shard.close()


def cache_directory() -> Path:
    """Where local replicas live: ``ONEFOLD_CACHE``, else ``onefold`` in ``XDG_CACHE_HOME``, else in ``~/.cache``."""
    if given := os.environ.get("ONEFOLD_CACHE"):
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "onefold"


def replica_directory(info: SpaceInfo, shard: int) -> Path:
    """Where the local replica of a shard lives."""
    return cache_directory() / f"{info.space}-{info.incarnation}" / str(shard)


def _space_at(
    link: Link, shards: int | None, env: Env, *, create: bool, check: Check | None = None
) -> SpaceInfo:
    space = link.address.space
    info = admin.find_space(link, space)
    if check is not None and (info is not None or create):
        check(*((None, None) if info is None else (info.incarnation, info.shards)))
    if info is None and create:
        copies = 3 if len(link.servers) >= 3 else 1
        try:
            info = admin.make_space(
                link, space, shards or 1, copies, env=env, first=lambda _: authority.first_record(env)
            )
        except SpaceError as error:
            raise SpaceError(
                f"there is no space at {link.address}, and it cannot be made: {error}. Make it with "
                "`onefold init --url …` and a credential that may create streams"
            ) from error
    elif info is None:
        info = admin.read_space(link)  # says what to do
    if shards is not None and shards != info.shards:
        raise InvalidArgument(
            f"the space at {link.address} was made with {info.shards} shard(s), which is fixed; got shards={shards}. "
            "Leave shards out, or use another space"
        )
    return info


def _local(opening: _Opening, shard: int, folds: Sequence[Fold]) -> LocalReplica:
    address, info, env = opening.address, opening.info, opening.env
    link = Link.shared(address, env=env)
    log = JetStreamLog(link, info, shard, env)
    directory = replica_directory(info, shard)
    try:
        return LocalReplica(
            log,
            folds,
            env,
            directory=directory,
            url=opening.url,
            timeout=opening.timeout,
            read_only=opening.read_only,
            on_close=link.close,
            snapshots=snapshot_fetch.finder(link, info, shard, log, directory, opening.base),
        )
    except BaseException:
        log.close()
        link.close()
        raise
    finally:
        with contextlib.suppress(OSError):
            snapshot_fetch.fetched(directory).unlink(missing_ok=True)


def _remote(opening: _Opening, shard: int, folds: Sequence[Fold]) -> RemoteShard:
    from onefold.shard.remote.asking import LinkAsking

    env = opening.env
    link = Link.shared(opening.address, env=env)
    log = _ClosesLink(link, opening.info, shard, env)
    asking = LinkAsking(link, log.names, opening.region)
    return RemoteShard(log, asking, folds, env, url=opening.url, read_only=opening.read_only)


class _ClosesLink(JetStreamLog):
    """A log that gives its share of the connection back with itself, once."""

    def __init__(self, link: Link, info: SpaceInfo, shard: int, env: Env) -> None:
        super().__init__(link, info, shard, env)
        self._share = threading.Lock()

    def close(self) -> None:
        super().close()
        if self._share.acquire(blocking=False):
            self._link.close()


def _late(opening: _Opening, shard: int, folds: Sequence[Fold], problem: OnefoldError) -> LateShard:
    link = Link.shared(opening.address, env=opening.env)
    return LateShard(
        _ClosesLink(link, opening.info, shard, opening.env),
        opening.env,
        partial(_brought_up, opening, shard, folds),
        url=opening.url,
        directory=replica_directory(opening.info, shard),
        read_only=opening.read_only,
        problem=problem,
    )


def _brought_up(opening: _Opening, shard: int, folds: Sequence[Fold]) -> LocalReplica:
    """A local replica to which everything is applied that the log has now."""
    found = _local(opening, shard, folds)
    try:
        _bring_up(found, opening.patience_s)
    except BaseException:
        found.close()
        raise
    return found


def _bring_up(shard: LocalReplica, timeout_s: float) -> None:
    """Wait until everything is applied that the log has now. Raises Unavailable when nothing happens within ``timeout_s``."""
    target = shard.log.last
    while True:
        before = shard.applied
        if shard.reach(target, timeout_s):
            return
        if shard.applied == before:
            raise Unavailable(
                f"the local replica of {shard.url} stands at offset {before} of {target}, and nothing came within "
                f"{timeout_s:g} s. Connect again: it continues from there"
            )
