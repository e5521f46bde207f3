"""What `status` and `doctor` show of a space on a cluster, in addition to what they show of any space."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from onefold.cli.options import Place
    from onefold.db import Database
    from onefold.doctor.embedded import Check
    from onefold.doctor.facts import ClusterFacts
    from onefold.fold.nodes.state import Node


def cluster_url(where: Place) -> str | None:
    """The URL, if it names a space on a cluster."""
    url = where.url or os.environ.get("ONEFOLD_URL") or ""
    return url if url.startswith(("nats://", "tls://")) else None


def shown_url(url: str) -> str:
    """The URL as it may be shown: without a user's name and password. Ends with wrong usage for one that cannot be."""
    from onefold.errors import InvalidArgument
    from onefold.log.jetstream.client.address import parse_address

    try:
        return parse_address(url).url
    except InvalidArgument as error:
        raise typer.BadParameter(str(error), param_hint="--url") from None


# -- status


def servers_and_streams(url: str) -> dict[str, Any]:
    """``servers`` and ``streams`` for `status --json`. Raises Unavailable, SpaceError when nobody can be asked."""
    found = facts(url)
    return {"servers": _servers(found), "streams": _streams(found)}


def facts(url: str) -> ClusterFacts:
    """What there is of a cluster and a space's streams. Raises Unavailable, SpaceError when nobody can be asked."""
    from onefold.doctor import facts as cluster_facts
    from onefold.log.jetstream.client.address import parse_address
    from onefold.log.jetstream.client.link import Link

    shown_url(url)  # wrong usage is reported first
    link = Link(parse_address(url), name="onefold-status")
    try:
        return cluster_facts.look(link)
    finally:
        link.close()


def _servers(facts: ClusterFacts) -> list[dict[str, Any]]:
    return [
        {
            "name": server.name,
            "address": server.address,
            "up": server.problem is None,
            "version": server.version,
            "region": server.region,
            "problem": server.problem,
        }
        for server in facts.servers
    ]


def _streams(facts: ClusterFacts) -> list[dict[str, Any]]:
    return [
        {
            "name": stream.name,
            "shard": None if stream.log is None else stream.log.shard,
            "region": stream.region or None,
            "leader": stream.leader,
            "first": stream.state.get("first_seq"),
            "last": stream.state.get("last_seq"),
            "bytes": stream.state.get("bytes"),
            "replicas": [
                {
                    "server": other.server,
                    "current": other.current,
                    "away": other.away,
                    "lag": other.lag,
                    "silent": other.silent_s,
                }
                for other in stream.replicas
            ],
            "problem": stream.problem,
        }
        for stream in facts.streams
    ]


def print_regions(copies: Mapping[str, int]) -> None:
    """The regions of a space and how many copies the own logs of each have, for people."""
    print(f"regions  {', '.join(copies)}")
    alone = [name for name, count in copies.items() if count == 1]
    if alone:
        print(
            f"         the own logs of {', '.join(alone)} have one copy, and are lost with its server. With three servers in a "
            "region they have three"
        )


def nodes(db: Database) -> list[dict[str, Any]]:
    """``nodes`` for `status --json`: those that are members, or were when they fell silent."""
    with db._shards[0].view() as view:
        from onefold.fold.nodes.state import read_nodes

        return [_node(node) for node in read_nodes(view)]


def _node(node: Node) -> dict[str, Any]:
    return {
        "name": node.name,
        "state": node.state.state,
        "region": node.state.region,
        "zone": node.state.zone,
        "program": node.state.program,
        "shards": {str(shard): applied for shard, applied in node.state.hosted},
        "halted": {str(shard): why for shard, why in node.state.halted},
        "busy": node.state.busy,
        "slots": node.state.slots,
    }


def nodes_only(db: Database, url: str | None = None) -> dict[str, Any]:
    """``nodes_only`` for `status --json`: whether what only nodes may append counts where nodes publish alone, and what of others
    was refused. ``url``: of the space, to ask nodes for its regions' own logs."""
    from onefold.fold import authority

    open_, refused = [], []
    for shard_id, shard in enumerate(db._shards):
        with shard.view() as view:
            if not authority.in_force(view.head().fold_version):
                open_.append(shard_id)
            refused.append(authority.refused_ops(view))
    kinds = dict(sum((Counter(one.kinds) for one in refused), Counter[str]()))
    return {
        "in_force": not open_,
        "open": open_,
        "refused": sum(one.total for one in refused),
        "kinds": kinds,
        "last": [one.offset for one in refused],
        "regions": {} if url is None else _refused_in_regions(db, url),
    }


def _refused_in_regions(db: Database, url: str) -> dict[str, Any]:
    """What was refused in each region's own logs, as a node there says; None where none answers."""
    from onefold.errors import OnefoldError
    from onefold.fold import authority
    from onefold.folds import region_folds
    from onefold.space.open_cluster import open_region

    info = getattr(getattr(db._shards[0], "log", None), "space_info", None)
    found: dict[str, Any] = {}
    for region in () if info is None else info.regions:
        found[region] = None
        with contextlib.suppress(OnefoldError), contextlib.ExitStack() as stack:
            refused = []
            for shard in open_region(url, region, region_folds, replicas="remote", read_only=True):
                stack.callback(shard.close)
                with shard.view() as view:
                    refused.append(authority.refused_ops(view))
            found[region] = {
                "refused": sum(one.total for one in refused),
                "kinds": dict(sum((Counter(one.kinds) for one in refused), Counter[str]())),
            }
    return found


_OPEN_ADVICE = (
    "Upgrade all programs and nodes, give the servers the users' present permissions, then run `onefold init` again with the "
    "admin's credential: a node does the rest"
)


def print_cluster(found: dict[str, Any]) -> None:
    """Servers, streams and nodes, for people."""
    from onefold.display import words

    for server in found["servers"]:
        told = f"up, {server['version']}" if server["up"] else f"DOWN: {server['problem']}"
        region = "" if server["region"] is None else f", region {server['region']}"
        print(f"server   {server['name'] or '?'}  {server['address']}  {told}{region}")
    for stream in found["streams"]:
        own = "" if stream["region"] is None else f"{stream['region']}'s own "
        shard = "" if stream["shard"] is None else f"shard {stream['shard']}  "
        what = f"{own}{shard}{stream['name']}"
        if stream["problem"] is not None:
            print(f"stream   {what}  {stream['problem']}")
            continue
        copies = "".join(f", {other['server']} {_copy(other)}" for other in stream["replicas"])
        print(
            f"stream   {what}  to {stream['last']:,}, {words.size(stream['bytes'])}; leader {stream['leader']}{copies}"
        )
    for node in found.get("nodes") or ():
        halted = f"; HALTED: {next(iter(node['halted'].values()))}" if node["halted"] else ""
        print(
            f"node     {node['name']}  {node['state']}, region {node['region']}, {len(node['shards'])} shards, "
            f"{node['busy']}/{node['slots']} tasks{halted}"
        )
    only = found.get("nodes_only")
    if only is not None and not only["in_force"]:
        shards = ", ".join(map(str, only["open"][:8]))
        print(f"nodes    anybody who can write passes for a node in shard {shards}. {_OPEN_ADVICE}")
    if only is not None and only["refused"]:
        print(f"nodes    {only['refused']:,} operations of programs were refused that only nodes may append")
    for region, said in (only or {}).get("regions", {}).items():
        if said is not None and said["refused"]:
            print(f"nodes    {said['refused']:,} operations of programs were refused in {region}'s own logs")


def _copy(other: dict[str, Any]) -> str:
    if other["away"]:
        silent = other["silent"]
        return "AWAY" if silent is None else f"AWAY, silent for {silent:.0f} s"
    return "current" if other["current"] and not other["lag"] else f"{other['lag']:,} behind"


# -- doctor


def checks(where: Place, url: str, *, deep: bool, fix: bool) -> Iterator[Check]:
    """The servers, the streams, the records, the nodes, shared state, and the regions."""
    from onefold.doctor.cluster import examine
    from onefold.doctor.embedded import Check
    from onefold.doctor.regions import check_regions_of
    from onefold.doctor.state import check_state
    from onefold.doctor.state_blobs import check_garbage, check_named
    from onefold.errors import InvalidArgument, OnefoldError

    try:
        yield from examine(url, deep=deep)
    except InvalidArgument as error:
        raise typer.BadParameter(str(error), param_hint="--url") from None
    except OnefoldError as error:
        yield Check(
            "servers", "problem", str(error), "Start what does not run, or use a credential that they take"
        )
        return
    try:
        with where.open() if fix else where.looking() as db:
            yield _nodes(db)
            yield _nodes_only(db, url)
            yield from check_state(db._state)
            if deep:
                yield check_named(db._state, db._engine.blobs)
            else:
                yield Check("blobs", "skipped", "not looked at (use --deep)")
            yield check_garbage(db._state, db._engine.blobs, fix=fix, deep=deep)
            yield from check_regions_of(db)
    except OnefoldError as error:
        yield Check("state", "problem", str(error), "See the checks above; then run the doctor again")


def _nodes(db: Database) -> Check:
    from onefold.doctor.embedded import Check
    from onefold.fold.nodes.state import digests, hashes, read_nodes

    with db._shards[0].view() as view:
        known = read_nodes(view)
        said = [("log", digests(view)), ("state", hashes(view))]
    halted = [f"{node.name}: {why}" for node in known if node.member for _, why in node.state.halted]
    if halted:
        return Check("nodes", "problem", "; ".join(halted), "Do what it says; others answer meanwhile")
    for what, reported in said:
        for (shard, offset), words in reported.items():
            if len(set(words.values())) > 1:
                told = ", ".join(f"{name} {word[:8]}" for name, word in sorted(words.items()))
                return Check(
                    "nodes",
                    "problem",
                    f"they have another {what} of shard {shard} at {offset:,}: {told}",
                    "Remove the folder of the one that differs and start it again; keep a copy and report it",
                )
    members = [node.name for node in known if node.member]
    gone = [node.name for node in known if node.state.state == "expired"]
    if not members:
        return Check(
            "nodes",
            "warn",
            "no node runs",
            "Start one: without nodes there are no snapshots, and no remote reads",
        )
    found = f"{', '.join(members)} are members" + (f"; {', '.join(gone)} fell silent" if gone else "")
    return Check(
        "nodes",
        "warn" if gone else "ok",
        found,
        "Start what fell silent, or leave it: its work has moved" if gone else "",
    )


def _kinds(kinds: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {kind}" for kind, count in sorted(kinds.items()))


def _nodes_only(db: Database, url: str | None = None) -> Check:
    from onefold.doctor.embedded import Check

    found = nodes_only(db, url)
    said = []
    if found["refused"]:
        places = ", ".join(f"{last:,} of shard {shard}" for shard, last in enumerate(found["last"]) if last)
        said.append(f"{_kinds(found['kinds'])}; the last at offset {places}")
    for region, there in found["regions"].items():
        if there is not None and there["refused"]:
            said.append(f"in {region}'s own logs {_kinds(there['kinds'])}")
    if said:
        return Check(
            "nodes only",
            "warn",
            f"operations that only nodes may append were refused: {'; '.join(said)}",
            "They had no effect. A program with an app's credential appended them: find it, and give the app another credential",
        )
    if not found["in_force"]:
        shards = ", ".join(map(str, found["open"][:8]))
        return Check(
            "nodes only",
            "warn",
            f"anybody who can write can join nodes, expire them and trim: in shard {shards}",
            _OPEN_ADVICE,
        )
    return Check("nodes only", "ok", "what only nodes may append counts from them alone; nothing was refused")
