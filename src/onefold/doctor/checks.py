"""What is wrong with a cluster, judged from facts: pure, so every judgement has a test of its own.

Statuses as in ``doctor.embedded``: a *problem* endangers what is acknowledged or stops somebody, a *warning* may become one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from onefold import config
from onefold.doctor.embedded import Check
from onefold.doctor.facts import SYSTEM_VARIABLE, ClusterFacts, CopyFacts, ServerFacts, StreamFacts
from onefold.log.jetstream.regions import CP_TAG, WITNESS, badly_placed, elsewhere, region_tag
from onefold.log.jetstream.spaces import SpaceInfo
from onefold.log.jetstream.stream_making import placed_by

SERVER_VERSION_MIN: Final = (2, 15, 1)
"""What this was measured with; older servers have known faults of replication."""
MAX_PAYLOAD_BYTES_MIN: Final = 8 * 1024 * 1024
"""Records of this size fit into one message."""
CLOCK_S_MAX: Final = 0.5
"""Clocks that differ by less are taken for set."""
_WITHOUT_SYSTEM: Final = f"Name the file of the system user's seed in {SYSTEM_VARIABLE} for it"


def judge(facts: ClusterFacts) -> Iterator[Check]:
    """All checks, servers first."""
    yield _reached(facts)
    yield _versions(facts)
    yield _payload(facts)
    yield _synced(facts)
    yield _disks(facts)
    yield _clocks(facts)
    if facts.space is None:
        yield Check(
            "space",
            "problem",
            facts.space_problem or "it cannot be read",
            "Start what does not run, then try again",
        )
        return
    yield _copies_made(facts.space)
    yield _configurations(facts)
    yield _replicas(facts)
    yield _places(facts)
    yield _copies(facts)


def _copies_made(space: SpaceInfo) -> Check:
    """How many copies there are to be."""
    found = f"{space.space}, {space.shards} shards, {space.replicas} copies, {space.incarnation}"
    alone = [logs.name for logs in space.region_logs if logs.replicas == 1]
    if space.replicas == 1:
        advice = "It is lost with its one server: use a cluster of three for what must be kept"
        return Check("space", "warn", found, advice)
    if alone:
        advice = "A region's own logs are lost with that server: give each region three servers before the space is made"
        return Check("space", "warn", f"{found}; the own logs of {', '.join(alone)} have one copy", advice)
    return Check("space", "ok", found)


def _reached(facts: ClusterFacts) -> Check:
    lost = [server for server in facts.servers if server.problem is not None]
    off = [_name(server) for server in facts.servers if server.jetstream is False]
    up = [_name(server) for server in facts.servers if server.problem is None]
    if lost:
        found = f"{len(up)} of {len(facts.servers)} answer; " + "; ".join(
            str(server.problem) for server in lost
        )
        known = any(server.address in facts.address.servers for server in lost)
        advice = "Start it, or look at the network; while a majority of three runs nothing is lost"
        return Check("servers", "problem" if known else "warn", found, advice)
    if off:
        return Check(
            "servers",
            "problem",
            f"JetStream is off on {', '.join(off)}",
            "Switch it on: a log may have copies there",
        )
    return Check("servers", "ok", f"{', '.join(up)} answer")


def _versions(facts: ClusterFacts) -> Check:
    versions = {_name(server): server.version for server in facts.servers if server.version}
    found = ", ".join(sorted(set(versions.values()))) or "unknown"
    old = [name for name, version in versions.items() if _version(version) < SERVER_VERSION_MIN]
    wanted = ".".join(map(str, SERVER_VERSION_MIN))
    if old:
        return Check(
            "versions",
            "warn",
            f"{found}; older than {wanted}: {', '.join(old)}",
            "Upgrade them, one at a time",
        )
    if len(set(versions.values())) > 1:
        return Check(
            "versions", "warn", f"different ones: {found}", "Finish the upgrade, one server at a time"
        )
    return Check("versions", "ok", found)


def _payload(facts: ClusterFacts) -> Check:
    sizes = {server.max_payload for server in facts.servers if server.max_payload}
    found = ", ".join(f"{size:,} bytes" for size in sorted(sizes)) or "unknown"
    if len(sizes) > 1:
        return Check(
            "max_payload",
            "warn",
            f"different ones: {found}",
            "Set the same on all servers: a record may fit one and not another",
        )
    if sizes and min(sizes) < MAX_PAYLOAD_BYTES_MIN:
        advice = f"Set max_payload: {MAX_PAYLOAD_BYTES_MIN} on all servers; until then larger transactions are refused"
        return Check("max_payload", "warn", found, advice)
    return Check("max_payload", "ok", found)


def _synced(facts: ClusterFacts) -> Check:
    told = {_name(server): server.details for server in facts.servers if server.details is not None}
    if not told:
        return Check("sync", "skipped", "only the system user can see sync_interval", _WITHOUT_SYSTEM)
    late = [name for name, said in told.items() if not _jetstream(said, "config").get("sync_always")]
    if late:
        advice = "Set jetstream { sync_interval: always } and restart them, one at a time"
        return Check(
            "sync",
            "problem",
            f"{', '.join(late)} acknowledge before the disk has it: a power cut may take it",
            advice,
        )
    return Check("sync", "ok", f"{', '.join(told)} acknowledge what is on disk")


def _disks(facts: ClusterFacts) -> Check:
    shares = {}
    for server in facts.servers:
        limit = _jetstream(server.details, "config").get("max_storage") or 0
        if limit > 0:
            shares[_name(server)] = _jetstream(server.details, "stats").get("storage", 0) / limit
    if not shares:
        return Check("disks", "skipped", "only the system user can see disks", _WITHOUT_SYSTEM)
    found = ", ".join(f"{name} {share:.0%}" for name, share in shares.items()) + " of max_file used"
    advice = "Trim (nodes do, when snapshots are taken), raise max_file or add disk: a full one stops JetStream on its server"
    if max(shares.values()) >= config.ENGINE_DISK_SHARE_MAX:
        return Check("disks", "problem", found, advice)
    if max(shares.values()) >= config.ENGINE_DISK_SHARE_WARN:
        return Check("disks", "warn", found, advice)
    return Check("disks", "ok", found)


def _clocks(facts: ClusterFacts) -> Check:
    told = {_name(server): server.ahead_s for server in facts.servers if server.ahead_s is not None}
    if not told:
        return Check("clocks", "skipped", "only the system user can see clocks", _WITHOUT_SYSTEM)
    off = {name: ahead_s for name, ahead_s in told.items() if abs(ahead_s) >= CLOCK_S_MAX}
    if off:
        found = ", ".join(
            f"{name} is {abs(ahead_s):.3g} s {'ahead of' if ahead_s > 0 else 'behind'} this machine"
            for name, ahead_s in off.items()
        )
        advice = "Set all clocks by NTP: a ttl goes by the earlier of a server's clock and a writer's"
        return Check("clocks", "warn", found, advice)
    return Check("clocks", "ok", f"{', '.join(told)} agree with this machine's")


# -- streams


def _configurations(facts: ClusterFacts) -> Check:
    """Whether logs have the configuration that leaves no holes and removes nothing by itself."""
    wrong = []
    for stream in facts.streams:
        if stream.log is not None and stream.info is not None and facts.space is not None:
            whose = facts.space.of_region(stream.region) if stream.region else facts.space
            found = wrong_settings(stream, whose.replicas, tag=placed_by(whose))
            wrong += [f"{stream.name}: {text}" for text in found]
    asked = [stream for stream in facts.streams if stream.log is not None]
    if wrong:
        advice = (
            "Set it back (`nats stream edit`); a log that lost records to it must be restored from an archive"
        )
        return Check("streams", "problem", "; ".join(wrong), advice)
    silent = [stream for stream in asked if stream.info is None]
    if silent:
        return Check(
            "streams",
            "problem",
            f"{silent[0].problem}",
            "Start what does not run: a stream needs a majority of its servers",
        )
    return Check("streams", "ok", f"{len(asked)} logs, made so that they have no holes")


def wrong_settings(stream: StreamFacts, replicas: int, *, tag: str | None = None) -> list[str]:
    """What in a log's configuration is not as it must be. ``tag``: of the servers that its copies are on; None: any."""
    settings = (stream.info or {}).get("config") or {}
    wanted: dict[str, Any] = {
        "retention": "limits",
        "discard": "new",
        "storage": "file",
        "num_replicas": replicas,
        "deny_delete": True,
        "allow_direct": True,
    }
    unlimited = ("max_msgs", "max_bytes", "max_msgs_per_subject", "max_msg_size")
    forbidden = (
        "max_age",
        "allow_rollup_hdrs",
        "allow_msg_ttl",
        "allow_msg_counter",
        "allow_msg_schedules",
        "sealed",
        "mirror",
        "sources",
    )
    log = stream.log
    earlier = log is not None and settings.get("subjects") == [log.subject]  # until `init` is given again
    if log is not None and not earlier:
        wanted["subjects"] = [log.subject, log.node_subject]
    found = [
        f"{name} is {settings.get(name)!r}, not {value!r}"
        for name, value in wanted.items()
        if settings.get(name) != value
    ]
    found += [f"{name} is {settings[name]}" for name in unlimited if settings.get(name, -1) > 0]
    found += [f"{name} is {settings[name]!r}" for name in forbidden if settings.get(name)]
    tags = (settings.get("placement") or {}).get("tags")
    if tag is not None and tags != [tag]:
        found.append(f"placement.tags is {tags!r}, not {[tag]!r}")
    again = settings.get("republish") or {}
    if log is not None:
        from_ = log.subject if earlier else log.both_subjects
        said = (again.get("src"), again.get("dest"), bool(again.get("headers_only")))
        if said != (from_, log.tail, False):
            found.append(f"republish is {again or None!r}, not from {from_} to {log.tail}")
    return found


def _replicas(facts: ClusterFacts) -> Check:
    """Whether every stream has a leader and all its copies."""
    gone, behind = [], []
    for stream in facts.streams:
        copies = int(((stream.info or {}).get("config") or {}).get("num_replicas", 1))
        if stream.info is None or (stream.leader is None and copies > 1):
            gone.append(f"{stream.name} has no leader")
            continue
        gone += [f"{stream.name} on {other.server}" for other in stream.replicas if other.away]
        behind += [
            f"{stream.name} on {other.server} by {other.lag:,}"
            for other in stream.replicas
            if not other.away and (not other.current or other.lag)
        ]
    if gone:
        advice = (
            "Start the server; if it will not come back, remove it as a peer, and a new one takes its copies"
        )
        return Check("replicas", "problem", f"away: {'; '.join(gone)}", advice)
    if behind:
        return Check(
            "replicas",
            "warn",
            f"behind: {'; '.join(behind)}",
            "Look again: after a start they catch up; if they do not, see the server's log",
        )
    return Check("replicas", "ok", f"all copies of {len(facts.streams)} streams are current")


def _places(facts: ClusterFacts) -> Check:
    """Where servers say in which place they are, copies must be in different ones, or so that any place may be lost."""
    if facts.space is not None and facts.space.regions:
        return _regions(facts, facts.space)
    regions = {server.name: server.region for server in facts.servers if server.region is not None}
    if not regions:
        return Check("places", "skipped", "no server is known to have a tag az:…")
    for stream in facts.streams:
        here = [regions[name] for name in stream.servers if name in regions]
        if len(here) > len(set(here)):
            advice = "Set unique_tag and move a copy: the loss of that place may take the majority"
            return Check(
                "places",
                "warn",
                f"{stream.name} has several copies in one place: {', '.join(map(str, here))}",
                advice,
            )
    return Check(
        "places",
        "ok",
        f"copies are in different places: {', '.join(sorted({str(region) for region in regions.values()}))}",
    )


def _regions(facts: ClusterFacts, space: SpaceInfo) -> Check:
    """Whether a space of several regions survives the loss of each: by the servers' names, their tags where those are known, and
    the servers that hold copies."""
    wrong = [text for stream in facts.streams if (text := _misplaced(stream, space)) is not None]
    for server in facts.servers:
        if server.name is not None and server.place not in (*space.regions, WITNESS):
            wrong.append(f"server {server.name} is in none of the space's regions, by its name")
        elif server.tags is not None and region_tag(server.place or "").lower() not in _lower(server.tags):
            wrong.append(f"server {server.name} has no tag {region_tag(server.region or '')}")
    known = [server for server in facts.servers if server.tags is not None]
    placed = sum(CP_TAG in (server.tags or ()) for server in known)
    if len(known) == len(facts.servers) and placed != space.replicas:
        wrong.append(f"{placed} servers have the tag {CP_TAG}, not {space.replicas}")
    if wrong:
        advice = "Give the servers their names and tags, see docs/cluster.md, and move copies: a region that is lost may take all"
        return Check("places", "warn", "; ".join(wrong), advice)
    return Check("places", "ok", f"copies survive the loss of any of {', '.join(space.regions)}")


def _misplaced(stream: StreamFacts, space: SpaceInfo) -> str | None:
    if stream.region:
        strangers = elsewhere(stream.servers, stream.region)
        return f"{stream.name} of {stream.region}: a copy is on {', '.join(strangers)}" if strangers else None
    wrong = badly_placed(stream.servers, space.replicas)
    return None if wrong is None else f"{stream.name}: {wrong}"


def _lower(tags: list[str]) -> set[str]:
    return {tag.lower() for tag in tags}


def _copies(facts: ClusterFacts) -> Check:
    """Compare what the servers, each by itself, hold of each log."""
    if not facts.system:
        return Check(
            "copies", "skipped", "only the system user can see what each server holds", _WITHOUT_SYSTEM
        )
    details = {server.name: server.details for server in facts.servers}
    behind = []
    for stream in facts.streams:
        for server, copy in stream.copies.items() if stream.log is not None else ():
            problem = holed(copy)
            if problem is not None:
                advice = repair(server, stream.name, copy, details.get(server))
                return Check("copies", "problem", f"{stream.name} on {server} {problem}", advice)
            earlier = facts.earlier.get(stream.name, 0)
            if copy.last < earlier:
                made_anew = repair(server, stream.name, copy, details.get(server))
                advice = f"Look again: it may be catching up. If it stays so, its end is lost. {made_anew}"
                found = f"{stream.name} on {server} ends at {copy.last:,}, and others had {earlier:,} before"
                behind.append(Check("copies", "warn", found, advice))
    return behind[0] if behind else Check("copies", "ok", "no server has a hole in a log")


def holed(copy: CopyFacts) -> str | None:
    """What a server's copy of a log lacks between its first and its last record, by its own account."""
    if copy.lost:
        return f"has lost {copy.lost:,} records"
    missing = max(copy.deleted, copy.last - copy.first + 1 - copy.messages) if copy.messages else 0
    return f"lacks {missing:,} records between {copy.first:,} and {copy.last:,}" if missing > 0 else None


def repair(server: str, stream: str, copy: CopyFacts | None, details: Mapping[str, Any] | None) -> str:
    """How to have a rotten copy recreated from the others."""
    store = str(_jetstream(details, "config").get("store_dir") or "<its store_dir>/jetstream")
    account = "*" if copy is None else copy.account
    group = "<the stream's Raft group>" if copy is None or copy.raft_group is None else copy.raft_group
    return (
        f"Only while all other copies are whole: stop {server}, delete {store}/{account}/streams/{stream} and "
        f"{store}/$SYS/_js_/{group}, start it; it copies the log from the others. Then run the doctor again"
    )


def _jetstream(details: Mapping[str, Any] | None, part: str) -> Mapping[str, Any]:
    return ((details or {}).get("jetstream") or {}).get(part) or {}


def _name(server: ServerFacts) -> str:
    return server.name or server.address


def _version(text: str | None) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", (text or "0").split("-")[0])[:3])
