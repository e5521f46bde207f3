"""Making a space on servers that run: its record, its logs, and the stream of its blobs."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

from onefold import config
from onefold.backoff import Backoff, retried
from onefold.cluster import shapes
from onefold.errors import InvalidArgument, OnefoldError, SpaceError, Timeout, Unavailable

if TYPE_CHECKING:
    from onefold.log.jetstream.admin import SpaceInfo
    from onefold.log.jetstream.client.link import Link
    from onefold.log.jetstream.region_logs import RegionPlan

T = TypeVar("T")
LEADERS_WAIT_S: Final = 30.0
"""How long the servers may take to elect leaders before it counts as a failure."""
_NOT_FOR_ACCOUNT: Final = (10039, 10076)
"""What the engine answers when streams are not enabled for the account or the server."""
_PAUSE_S: Final = 0.1


def set_up_space(
    url: str,
    *,
    shards: int | None = None,
    replicas: int | None = None,
    blobs: str | None = None,
    regions: Sequence[str] | None = None,
) -> SpaceInfo:
    """Make the space of a URL, or complete the one that is there; needs a credential that may create streams. One of an earlier
    release gets the nodes' subject: its nodes then bring in force that some operations count only there
    (``node.versions``).

    ``shards``, ``replicas``, ``blobs`` (a place of ``compute.blobs.backends``): for a new space (1, 3, jetstream); one that is
    there must have them. ``regions``: likewise, the names with which the servers' begin; ``replicas`` are then 5 where there are
    servers for that, else 3.

    Raises InvalidArgument; SpaceError (wrong credential, no JetStream, too few servers, made otherwise); Unavailable, Timeout: it
    may be half made, do it again.
    """
    from onefold.cluster.region_beginning import first_record
    from onefold.compute.blobs.backends import JETSTREAM, check_place, own_place
    from onefold.log.jetstream import admin, names
    from onefold.log.jetstream.client.address import parse_address
    from onefold.log.jetstream.client.link import Link
    from onefold.log.jetstream.regions import check_regions

    if blobs is not None:
        check_place(blobs)
    if regions:
        check_regions(regions)
    link = Link(parse_address(url), name="onefold-init")
    space = link.address.space
    try:
        with speaking_of_accounts(link):
            check_servers(link, 1)
            found = patiently(lambda: admin.find_space(link, space))
            if found is None:
                copies, own = copies_on(link, replicas, regions or ())
                # Tried again, since another maker may just have made the record's stream, which then has no leader yet.
                found = patiently(
                    lambda: admin.make_space(
                        link,
                        space,
                        shards or 1,
                        copies,
                        blobs=partial(own_place, blobs or JETSTREAM, space),
                        first=partial(first_record, regions or ()),
                        regions=own,
                    )
                )
            _check_same(link, found, shards, replicas, blobs, regions)  # also when another maker was faster
            admin.make_blobs(link, found)
            if found.regions:
                admin.copy_to_regions(link, space)  # which a maker that died has not done
            for shard in range(found.shards):
                admin.let_nodes_publish(link, found, shard)  # of an earlier release
                log = names.LogNames(space, found.incarnation, shard)
                patiently(lambda log=log: check_led(link, log.stream))  # type: ignore[misc]
        return found
    finally:
        link.close()


@contextmanager
def speaking_of_accounts(link: Link) -> Iterator[None]:
    """Raises SpaceError that says so when streams are not enabled for the account."""
    from onefold.log.jetstream.streams import Refused

    try:
        yield
    except Refused as error:
        if error.code in _NOT_FOR_ACCOUNT:
            raise SpaceError(
                f"{link.address}: JetStream is not enabled for its account. Enable it"
            ) from error
        raise


def check_servers(link: Link, replicas: int) -> None:
    """Raises SpaceError where the servers cannot keep a space in so many copies."""
    info = link.connection().info
    if not info.get("jetstream"):
        raise SpaceError(
            f"{link.address}: JetStream is off on {link.server_name}. Switch it on, with `sync_interval: always`"
        )
    if replicas > 1 and not info.get("cluster"):
        raise SpaceError(
            f"{link.address} is one server alone, too few for {replicas} copies. Use a cluster of three, or "
            "--replicas 1, which loses everything with that server"
        )


def copies_on(link: Link, replicas: int | None, regions: Sequence[str]) -> tuple[int, list[RegionPlan]]:
    """How many copies a new space has on these servers, ``replicas`` unless that is None; and the logs of its regions. Raises
    InvalidArgument and SpaceError where they cannot keep it, Unavailable when a server whose region must be known does not
    answer."""
    copies = 3 if replicas is None else replicas
    check_servers(link, copies)
    if not regions:
        return copies, []
    from onefold.cluster.region_beginning import founders

    sizes = _servers_by_region(link, regions)
    return shapes.copies_for(sizes, replicas), founders(sizes, regions)


def _servers_by_region(link: Link, regions: Sequence[str]) -> dict[str, int]:
    """How many servers each region has, and the witness. Raises InvalidArgument for a shape that survives no loss of a region."""
    from onefold.log.jetstream.regions import WITNESS, region_of

    names = link.run(lambda: _server_names(link), None)
    strangers = [name for name in sorted(names) if region_of(name) not in (*regions, WITNESS)]
    if strangers:
        raise InvalidArgument(
            f"server {strangers[0]} of {link.address} is in none of the regions {', '.join(regions)}: a server's name is its "
            f"region, a dash and more, such as {regions[0]}-1; that of one that only votes begins with {WITNESS}-"
        )
    found = Counter(region_of(name) for name in names)
    sizes = {region: found[region] for region in regions}
    if found[WITNESS]:
        sizes[WITNESS] = found[WITNESS]
    shapes.check_survives(sizes)
    return sizes


async def _server_names(link: Link) -> set[str]:
    """The names of all servers. Raises Unavailable when one that is known does not answer."""
    from onefold.log.jetstream.client.connection import Connection

    async def name(server: str) -> str:
        try:
            found = await Connection.open(
                link.address,
                server,
                name="onefold-init",
                env=link.env,
                timeout=config.CONNECT_SERVER_TIMEOUT_S,
            )
        except OnefoldError as error:
            raise Unavailable(
                f"a new space over regions needs all servers, and one does not answer: {error}. Start it"
            ) from error
        found.close()
        return found.server_name

    return set(await asyncio.gather(*(name(server) for server in link.servers)))


def _check_same(
    link: Link,
    found: SpaceInfo,
    shards: int | None,
    replicas: int | None,
    blobs: str | None,
    regions: Sequence[str] | None,
) -> None:
    from onefold.compute.blobs.backends import named_place

    named = named_place(found.blobs, found.space, found.incarnation)
    if regions is not None and tuple(regions) != found.regions:
        lies = f"the regions {', '.join(found.regions)}" if found.regions else "one region"
        raise SpaceError(
            f"{link.address}: there is a space already, over {lies} and not {', '.join(regions) or 'one'}, which is fixed. "
            "Use it as it is, or make one of another name"
        )
    if blobs is not None and blobs not in (named, found.blobs):
        raise SpaceError(
            f"{link.address}: there is a space already, with its blobs in {named} and not {blobs}, which is fixed. "
            "Use it as it is, or make one of another name"
        )
    for what, wanted, has in (("shards", shards, found.shards), ("copies", replicas, found.replicas)):
        if wanted is not None and wanted != has:
            raise SpaceError(
                f"{link.address}: there is a space already, with {has} {what} and not {wanted}, which is fixed. "
                "Use it as it is, or make one of another name"
            )


def check_led(link: Link, stream: str) -> None:
    """Raises Unavailable while a stream has no leader."""
    from onefold.log.jetstream.streams import stream_state

    state = link.run(lambda: stream_state(link, stream), config.ENGINE_REQUEST_TIMEOUT_S)
    if state.leader is None and state.replicas > 1:
        raise Unavailable(
            f"{link.address}: stream {stream} has no leader. Look at its servers with `onefold doctor`"
        )


def patiently(work: Callable[[], T]) -> T:
    """Try again while there is no leader: after a restart of all servers an election takes up to 9 s."""
    return retried(work, (Unavailable, Timeout), LEADERS_WAIT_S, Backoff(_PAUSE_S, _PAUSE_S))
