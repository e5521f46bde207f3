"""Making, reading, listing and deleting the spaces of a cluster.

A space is a record in a stream of its own, and a stream per shard. The streams are made before the record, and of two makers the
record lets one win; so what a record names is there, and a maker that died leaves streams that no record names.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import msgspec

from onefold import config
from onefold.backoff import Deadline
from onefold.env import SYSTEM, Env
from onefold.errors import (
    InvalidArgument,
    OnefoldError,
    SpaceError,
    Unavailable,
)
from onefold.ids import new_id
from onefold.log.jetstream import names
from onefold.log.jetstream.client.link import Link
from onefold.log.jetstream.names import LogNames
from onefold.log.jetstream.region_logs import RegionPlan, delete_region_logs, make_region_logs, streams_of
from onefold.log.jetstream.regions import check_regions
from onefold.log.jetstream.space_record import (
    copy_to_regions,
    find_space,
    led_record,
    replace_record,
    write_first,
)
from onefold.log.jetstream.spaces import FORMAT, Base, SpaceInfo
from onefold.log.jetstream.stream_making import (
    Misplaced,
    begin_log,
    configuration,
    delete,
    let_nodes_publish,
    make,
    make_blobs,
    make_log,
    stream_names,
)

__all__ = [
    "Beginning",
    "RegionPlan",
    "SpaceInfo",
    "copy_to_regions",
    "delete_space",
    "find_space",
    "leftover_streams",
    "let_nodes_publish",
    "list_spaces",
    "make_blobs",
    "make_log",
    "make_space",
    "read_space",
    "renew_region",
    "taken",
]

REPLICAS: Final = (1, 3, 5)


class Beginning(Protocol):
    """What a space is made with that does not begin empty."""

    def store(self, info: SpaceInfo) -> tuple[Base, ...]:
        """Store what its logs continue from, by shard; the stream of its blobs is there. Raises OnefoldError, OSError."""
        ...

    def begin(self, info: SpaceInfo) -> None:
        """Append what its logs begin with; they are there. Raises OnefoldError."""
        ...


def make_space(
    link: Link,
    space: str,
    shards: int = 1,
    replicas: int = 3,
    *,
    blobs: str | Callable[[str], str] = "jetstream",
    env: Env = SYSTEM,
    beginning: Beginning | None = None,
    first: Callable[[int], bytes] | None = None,
    regions: Sequence[RegionPlan] = (),
) -> SpaceInfo:
    """Make a space, or find the one that is there already, whatever shards it has.

    ``blobs``: where results of jobs are kept, or what says that for an incarnation. ``beginning``: what it holds from the first
    moment on; then SpaceError when there is one already. ``first``: the record with which the log of a shard begins, published
    where only nodes may publish. ``regions``: over which it lies. Then its copies are on the servers with the tag ``cp``, and
    each region gets logs of its own too, with copies on its own servers. SpaceError where servers have put copies elsewhere.

    Raises InvalidArgument; SpaceError (the credential may not create streams, too few servers); Unavailable and Timeout: it may
    be half made, so make it again.
    """
    names.check_space(space)
    if not 1 <= shards <= config.SHARDS_MAX:
        raise InvalidArgument(f"shards={shards}: a space has 1 to {config.SHARDS_MAX}")
    if replicas not in REPLICAS:
        raise InvalidArgument(f"replicas={replicas}: a log has 1, 3 or 5 copies")
    found = find_space(link, space)
    if found is not None:
        if beginning is not None:
            raise taken(link)
        return found
    incarnation = new_id("i", env)
    place = blobs if isinstance(blobs, str) else blobs(incarnation)
    made = SpaceInfo(space, incarnation, shards, replicas, env.wall_ms(), blobs=place)
    if regions:
        over = check_regions([region.name for region in regions])
        made = msgspec.structs.replace(made, regions=over, format=FORMAT)
    try:
        made = _make_streams(link, made, regions, env, beginning, first)
    except BaseException as error:
        if isinstance(error, Misplaced):
            with contextlib.suppress(OnefoldError):
                if find_space(link, space) is None:
                    _delete_all(link, made)  # else the next try would find them
        raise
    kept = write_first(link, made)
    if kept != made:
        _delete_logs(link, made)
        if beginning is not None:
            raise taken(link)
    if kept.regions:
        copy_to_regions(link, space)
    return kept


def _make_streams(
    link: Link,
    made: SpaceInfo,
    regions: Sequence[RegionPlan],
    env: Env,
    beginning: Beginning | None,
    first: Callable[[int], bytes] | None,
) -> SpaceInfo:
    """Make all that is there before the record. What that says then."""
    try:
        make(link, made, configuration(made, names.space_stream(made.space), names.space_subject(made.space)))
        make_blobs(link, made)
        if beginning is not None:
            made = msgspec.structs.replace(made, base=beginning.store(made))
        for shard in range(made.shards):
            make_log(link, made, shard)
            if first is not None:
                begin_log(link, LogNames(made.space, made.incarnation, shard), first(shard))
        if beginning is not None:
            beginning.begin(made)
        for region in regions:
            own = make_region_logs(link, made, region, env)
            made = msgspec.structs.replace(made, region_logs=(*made.region_logs, own))
    except BaseException:
        if beginning is not None or regions:  # the next try makes other logs
            with contextlib.suppress(OnefoldError):
                _delete_logs(link, made)
        raise
    return made


def renew_region(
    link: Link, space: str, plan: RegionPlan, replaced: str, env: Env = SYSTEM
) -> tuple[SpaceInfo, bool]:
    """Give a region other logs, which begin as the plan says, in place of those with the incarnation ``replaced``: after it was
    evicted, or lost. The space's record, and whether it was changed: where other logs than those are named there already, it was
    done before, and nothing happens. Those that are replaced stay until ``delete_region_logs``.

    Raises as ``make_space``, and InvalidArgument for a region that the space has not.
    """
    info, sequence = led_record(link, space)
    if plan.name not in info.regions:
        raise InvalidArgument(
            f"space {space} has the regions {', '.join(info.regions) or 'of none'}, not {plan.name!r}. Give one of them"
        )
    if info.of_region(plan.name).incarnation != replaced:
        return info, False
    own = make_region_logs(link, info, plan, env)
    deadline = Deadline.after(config.APPEND_RETRY_S, env)
    while not deadline.passed:
        written = info.with_region_logs(own)
        if replace_record(link, written, sequence):
            copy_to_regions(link, space)
            return written, True
        info, sequence = led_record(link, space)
        named = info.of_region(plan.name).incarnation
        if named == own.incarnation:  # the answer was lost
            copy_to_regions(link, space)
            return info, True
        if named != replaced:  # somebody else was faster
            delete_region_logs(link, info, own)
            return info, False
    raise Unavailable(
        f"{link.address}: the record of the space was not replaced in {config.APPEND_RETRY_S:g} s, or nobody says so. Try again",
        definite=False,
    )


def read_space(link: Link, space: str | None = None) -> SpaceInfo:
    """The record of a space (default: the link's). Raises SpaceError when there is none, and as ``find_space``."""
    found = find_space(link, space or link.address.space)
    if found is None:
        raise SpaceError(
            f"there is no space at {link.address}. Make it with `onefold init --url …` and a credential that may create streams"
        )
    return found


def list_spaces(link: Link) -> list[SpaceInfo]:
    """The spaces of this account, by name. Raises as ``find_space``."""
    found = (find_space(link, space) for space in _space_names(link))
    return [info for info in found if info is not None]


def leftover_streams(link: Link) -> list[str]:
    """Streams of logs, and of regions' blobs, that no space's record names: of makers that died, and of regions whose logs were
    replaced. They can be deleted once nobody makes a space or has a region come again."""
    named = {
        stream
        for info in list_spaces(link)
        for part in (info, *info.each_region())
        for stream in streams_of(part)
    }
    found = {
        *stream_names(link, "of.*.*.log.*"),
        *stream_names(link, names.region_blobs("*", "*").prefix + ".>"),
    }
    return sorted(found - named)


def delete_space(link: Link, info: SpaceInfo) -> None:
    """Delete the record, then the logs, then the blobs. Raises as ``make_space``; then delete it again."""
    _delete_all(link, info)


def taken(link: Link) -> SpaceError:
    """What to raise where a space would be restored over one that is there."""
    return SpaceError(
        f"{link.address}: there is a space already, and nothing is restored over it. Give another name in the URL"
    )


# -- inside


def _delete_all(link: Link, info: SpaceInfo) -> None:
    for region in info.regions:  # first: a copy that is left over would pass for the record
        delete(link, names.region_record_stream(info.space, region))
    delete(link, names.space_stream(info.space))
    _delete_logs(link, info)
    delete(link, names.blobs_stream(info.space))


def _delete_logs(link: Link, info: SpaceInfo) -> None:
    for logs in info.region_logs:
        delete_region_logs(link, info, logs)
    for shard in range(info.shards):
        delete(link, LogNames(info.space, info.incarnation, shard).stream)


def _space_names(link: Link) -> list[str]:
    prefix = names.space_stream("")
    found = [stream.removeprefix(prefix) for stream in stream_names(link, names.space_subject("*"))]
    return sorted(space for space in found if names.SPACE_NAME.fullmatch(space))
