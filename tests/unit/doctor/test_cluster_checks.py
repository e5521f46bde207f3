"""What the doctor says of a cluster, from facts: each thing that can be wrong is told, and told alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from onefold.doctor.checks import holed, judge, repair, wrong_settings
from onefold.doctor.facts import ClusterFacts, CopyFacts, ServerFacts, StreamFacts, ahead_of
from onefold.doctor.records import Finding, last_server, ranges, said
from onefold.log.jetstream.client.address import parse_address
from onefold.log.jetstream.names import LogNames
from onefold.log.jetstream.regions import region_of
from onefold.log.jetstream.spaces import RegionLogs, SpaceInfo

LOG = LogNames("s", "i_1", 0)
SETTINGS: dict[str, Any] = {
    "name": LOG.stream,
    "subjects": [LOG.subject, LOG.node_subject],
    "retention": "limits",
    "discard": "new",
    "storage": "file",
    "num_replicas": 3,
    "deny_delete": True,
    "allow_direct": True,
    "max_msgs": -1,
    "max_bytes": -1,
    "max_msgs_per_subject": -1,
    "max_msg_size": -1,
    "max_age": 0,
    "republish": {"src": LOG.both_subjects, "dest": LOG.tail},
}
EARLIER = {"subjects": [LOG.subject], "republish": {"src": LOG.subject, "dest": LOG.tail}}
"""As an earlier release made it."""
CLUSTER = {
    "leader": "s1",
    "replicas": [{"name": "s2", "current": True, "active": 1}, {"name": "s3", "current": True, "active": 1}],
}
COPY = CopyFacts(1, 9, 9, 0, 0, "s", "S-R3F-x")


def details(**changed: Any) -> dict[str, Any]:
    config = {"max_storage": 100, "sync_always": True, "store_dir": "/data/jetstream"} | changed.pop(
        "config", {}
    )
    return {"jetstream": {"config": config, "stats": {"storage": changed.pop("storage", 1)}}, **changed}


def server(which: str, /, **changed: Any) -> ServerFacts:
    known = ServerFacts(which, f"{which}:4222", None, "2.15.1", 8 * 1024 * 1024, True, details(), 0.01)
    return known._replace(**changed)


def stream(settings: Mapping[str, Any] = SETTINGS, **cluster: Any) -> StreamFacts:
    state = {"first_seq": 1, "last_seq": 9, "messages": 9}
    info = {"config": settings, "state": state, "cluster": CLUSTER | cluster}
    return StreamFacts(LOG.stream, LOG, info, None, {"s1": COPY, "s2": COPY, "s3": COPY})


WELL = ClusterFacts(
    parse_address("nats://s1,s2,s3/s", {}),
    [server("s1"), server("s2"), server("s3")],
    SpaceInfo("s", "i_1", 1, 3),
    None,
    [stream()],
    True,
    {LOG.stream: 9},
)


def told(facts: ClusterFacts) -> dict[str, str]:
    return {check.name: check.status for check in judge(facts) if check.status not in ("ok", "skipped")}


def with_server(**changed: Any) -> ClusterFacts:
    return replace(WELL, servers=[server("s1"), server("s2", **changed), server("s3")])


def test_all_is_well() -> None:
    assert told(WELL) == {}
    assert {check.name for check in judge(WELL) if check.status == "ok"} >= {
        "servers",
        "sync",
        "disks",
        "copies",
    }


@pytest.mark.parametrize(
    ("facts", "name", "status"),
    [
        (with_server(problem="cannot be reached", name=None), "servers", "problem"),
        (with_server(problem="cannot be reached", name=None, address="elsewhere:1"), "servers", "warn"),
        (with_server(jetstream=False), "servers", "problem"),
        (with_server(version="2.12.9"), "versions", "warn"),
        (with_server(version="2.16.0"), "versions", "warn"),
        (with_server(version="2.15.1-RC.1"), "versions", "warn"),
        (with_server(max_payload=1024), "max_payload", "warn"),
        (with_server(details=details(config={"sync_always": False})), "sync", "problem"),
        (with_server(details=details(storage=70)), "disks", "warn"),
        (with_server(details=details(storage=90)), "disks", "problem"),
        (with_server(ahead_s=0.7), "clocks", "warn"),
        (with_server(ahead_s=-90.0), "clocks", "warn"),
        (replace(WELL, space=None, space_problem="no space"), "space", "problem"),
        (replace(WELL, streams=[stream(leader=None, replicas=[])]), "replicas", "problem"),
        (replace(WELL, streams=[stream(SETTINGS | {"max_age": 5})]), "streams", "problem"),
        (replace(WELL, streams=[StreamFacts(LOG.stream, LOG, None, "no leader")]), "streams", "problem"),
    ],
)  # fmt: skip
def test_each_thing_is_told(facts: ClusterFacts, name: str, status: str) -> None:
    assert told(facts).get(name) == status
    check = next(check for check in judge(facts) if check.name == name)
    assert check.found and check.advice


@pytest.mark.parametrize(
    ("now", "ahead"),
    [
        ("2026-01-01T00:00:10Z", 0.0),
        ("2026-01-01T00:00:10.123456789Z", 0.0),
        ("2026-01-01T00:00:12.5Z", 1.5),
        ("2026-01-01T01:00:12.5+01:00", 1.5),
        ("2026-01-01T00:00:07Z", -2.0),
        ("", None),
        ("None", None),
    ],
)
def test_a_clock_is_ahead_by_what_the_wait_cannot_explain(now: str, ahead: float | None) -> None:
    began = datetime(2026, 1, 1, 0, 0, 9, tzinfo=UTC).timestamp()
    assert ahead_of(now, began, began + 2) == ahead


def test_all_of_one_payload_that_is_small() -> None:
    facts = replace(WELL, servers=[server(name, max_payload=1024 * 1024) for name in ("s1", "s2", "s3")])
    assert told(facts) == {"max_payload": "warn"}


@pytest.mark.parametrize(
    ("other", "status"),
    [
        ({"offline": True, "current": False}, "problem"),
        ({"active": 11_000_000_000}, "problem"),
        ({"current": False, "active": 900_000_000}, "warn"),
        ({"current": False}, "problem"),  # it led, and died: the new leader has never heard of it
        ({"lag": 5}, "warn"),
    ],
)
def test_copies_that_are_away_or_behind(other: dict[str, Any], status: str) -> None:
    replicas = [CLUSTER["replicas"][0], {"name": "s3", "current": True, **other}]  # type: ignore[index]
    assert told(replace(WELL, streams=[stream(replicas=replicas)])) == {"replicas": status}


def test_copies_in_one_place() -> None:
    tagged = [
        server(name, details=details(tags=[f"az:{az}"]))
        for name, az in (("s1", "a"), ("s2", "b"), ("s3", "b"))
    ]
    assert told(replace(WELL, servers=tagged)) == {"places": "warn"}
    apart = [server(name, details=details(tags=[f"az:{name}"])) for name in ("s1", "s2", "s3")]
    assert told(replace(WELL, servers=apart)) == {}


REGIONAL = {
    "eu-1": ["region:eu", "cp"],
    "us-1": ["region:us", "cp"],
    "us-2": ["region:us"],
    "eu-2": ["region:eu"],
    "witness-1": ["region:witness", "cp"],
}
OVER_REGIONS = replace(
    WELL,
    servers=[
        server(name, details=details(tags=tags), place=region_of(name)) for name, tags in REGIONAL.items()
    ],
    space=SpaceInfo(
        "s",
        "i_1",
        1,
        3,
        regions=("eu", "us"),
        format=2,
        region_logs=(RegionLogs("eu", "i_eu", 3), RegionLogs("us", "i_us", 1)),
    ),
)
ONE_COPY = {"space": "warn"}
"""Of what us has for itself."""


def over_regions(
    *holders: str, tags: Mapping[str, list[str]] = REGIONAL, placed: bool = True
) -> ClusterFacts:
    settings = {**SETTINGS, **({"placement": {"tags": ["cp"]}} if placed else {})}
    replicas = [{"name": name, "current": True, "active": 1} for name in holders[1:]]
    made = replace(stream(settings, leader=holders[0], replicas=replicas), copies={})
    servers = [
        server(name, details=details(tags=found), place=region_of(name)) for name, found in tags.items()
    ]
    return replace(OVER_REGIONS, servers=servers, streams=[made])


def test_copies_over_regions() -> None:
    assert told(over_regions("eu-1", "us-1", "witness-1")) == ONE_COPY
    assert told(over_regions("us-1", "us-2", "witness-1")) == ONE_COPY | {"places": "warn"}
    assert told(over_regions("eu-1", "us-1", "witness-1", placed=False)) == ONE_COPY | {"streams": "problem"}


def own_log(region: str, *holders: str, tag: str | None = None, copies: int = 1) -> StreamFacts:
    """A region's own log, on these servers."""
    log = LogNames("s", f"i_{region}", 0)
    settings = SETTINGS | {
        "num_replicas": copies,
        "placement": {"tags": [tag or f"region:{region}"]},
        "subjects": [log.subject, log.node_subject],
        "republish": {"src": log.both_subjects, "dest": log.tail},
    }
    replicas = [{"name": name, "current": True, "active": 1} for name in holders[1:]]
    found = stream(settings, leader=holders[0], replicas=replicas)
    return replace(found, name=log.stream, log=log, copies={}, region=region)


@pytest.mark.parametrize(
    ("log", "wrong"),
    [
        (own_log("us", "us-1"), {}),
        (own_log("eu", "eu-1", "eu-2", "eu-3", copies=3), {}),
        (own_log("us", "eu-1"), {"places": "warn"}),
        (own_log("eu", "eu-1", "us-1", "eu-2", copies=3), {"places": "warn"}),
        (own_log("us", "us-1", tag="cp"), {"streams": "problem"}),
        (own_log("us", "us-1", "us-2", "us-3", copies=3), {"streams": "problem"}),
    ],
)
def test_own_logs_of_a_region_are_in_it(log: StreamFacts, wrong: dict[str, str]) -> None:
    well = over_regions("eu-1", "us-1", "witness-1")
    assert told(replace(well, streams=[*well.streams, log])) == ONE_COPY | wrong


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"us-2": ["region:us", "cp"]}, "4 servers have the tag cp, not 3"),
        ({"us-1": ["region:us"]}, "2 servers have the tag cp, not 3"),
        ({"us-2": ["region:eu"]}, "server us-2 has no tag region:us"),
        ({"us-2": []}, "server us-2 has no tag region:us"),
        ({"asia-1": ["region:asia"]}, "server asia-1 is in none of the space's regions"),
        ({"s9": ["region:us"]}, "server s9 is in none of the space's regions"),
    ],
)
def test_servers_whose_names_and_tags_do_not_agree(changed: dict[str, list[str]], said: str) -> None:
    facts = over_regions("eu-1", "us-1", "witness-1", tags={**REGIONAL, **changed})
    (check,) = [check for check in judge(facts) if check.name == "places"]
    assert check.status == "warn" and said in check.found and check.advice


def test_without_the_system_user_regions_are_known_from_names() -> None:
    seen = over_regions("us-1", "us-2", "witness-1")
    blind = replace(seen, servers=[one._replace(details=None) for one in seen.servers], system=False)
    (check,) = [check for check in judge(blind) if check.name == "places"]
    assert check.status == "warn" and "2 of 3 copies are in us" in check.found and "tag" not in check.found


def test_without_the_system_user_what_is_not_seen_is_not_claimed() -> None:
    blind = replace(
        WELL,
        servers=[server(name, details=None, ahead_s=None) for name in ("s1", "s2", "s3")],
        streams=[replace(stream(), copies={})],
        system=False,
    )
    statuses = {check.name: check.status for check in judge(blind)}
    assert all(statuses[name] == "skipped" for name in ("sync", "disks", "clocks", "copies", "places"))
    assert told(blind) == {}


@pytest.mark.parametrize(
    ("copy", "wrong"),
    [
        (COPY, False),
        (CopyFacts(0, 0, 0, 0, 0, "s", None), False),  # empty
        (CopyFacts(10, 9, 0, 0, 0, "s", None), False),  # all trimmed
        (COPY._replace(messages=8), True),
        (COPY._replace(messages=8, deleted=1), True),
        (COPY._replace(lost=1), True),
        (COPY._replace(last=7, messages=7), False),  # behind, or it lost its end
        (COPY._replace(last=12, messages=12), False),
    ],
)
def test_what_a_copy_lacks(copy: CopyFacts, wrong: bool) -> None:
    assert (holed(copy) is not None) == wrong
    if wrong:
        facts = replace(WELL, streams=[replace(stream(), copies={"s1": COPY, "s2": copy, "s3": COPY})])
        (check,) = [check for check in judge(facts) if check.name == "copies"]
        assert check.status == "problem" and "on s2" in check.found
        assert "/data/jetstream/s/streams/OF_s_i_1_0 and /data/jetstream/$SYS/_js_/S-R3F-x" in check.advice
        assert "Only while all other copies are whole" in check.advice


def test_a_copy_that_ends_before_others_is_behind_or_has_lost_its_end() -> None:
    behind = {"s1": COPY, "s2": COPY._replace(last=7, messages=7), "s3": COPY}
    facts = replace(WELL, streams=[replace(stream(), copies=behind)])
    assert told(facts) == {"copies": "warn"}
    (check,) = [check for check in judge(facts) if check.name == "copies"]
    assert "s2 ends at 7" in check.found and "Look again" in check.advice and "stop s2" in check.advice


def test_the_repair_is_told_as_far_as_it_is_known() -> None:
    assert "<its store_dir>" in repair("s2", "X", None, None)


@pytest.mark.parametrize(
    "changed",
    [
        {"retention": "workqueue"},
        {"discard": "old"},
        {"storage": "memory"},
        {"num_replicas": 1},
        {"deny_delete": False},
        {"allow_direct": False},
        {"max_msgs": 100},
        {"max_bytes": 100},
        {"max_msgs_per_subject": 1},
        {"max_msg_size": 10},
        {"max_age": 1},
        {"allow_rollup_hdrs": True},
        {"allow_msg_ttl": True},
        {"sealed": True},
        {"subjects": ["of.s.i_1.log.>"]},
        {"sources": [{"name": "other"}]},
        {"republish": None},
        {"republish": {"src": LOG.both_subjects, "dest": LOG.tail, "headers_only": True}},
        {"republish": {"src": LOG.subject, "dest": LOG.tail}},
        EARLIER | {"republish": {"src": LOG.subject, "dest": "x"}},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_a_log_must_not_lose_anything_by_itself(changed: dict[str, Any]) -> None:
    assert len(wrong_settings(stream(SETTINGS | changed), 3)) == 1
    assert told(replace(WELL, streams=[stream(SETTINGS | changed)])) == {"streams": "problem"}


def test_a_log_of_an_earlier_release_is_in_order() -> None:
    assert wrong_settings(stream(SETTINGS | EARLIER), 3) == []


def test_who_answered_a_traced_question() -> None:
    came = {"type": "in", "kind": 0}
    on = {"type": "eg", "kind": 1, "name": "s2"}
    first = {"server": {"name": "s1"}, "events": [came, on]}
    second = {"server": {"name": "s2"}, "events": [{"type": "in", "kind": 1}]}
    assert last_server([]) is None and last_server([first]) is None
    assert last_server([first, second]) == last_server([second, first]) == "s2"
    assert last_server([{"server": {"name": "s1"}, "events": [came]}]) == "s1"


def test_what_is_compared() -> None:
    assert ranges(1, 0, deep=False) == []
    assert ranges(5, 10, deep=False) == [(5, 10)]
    assert ranges(1, 1000, deep=False) == [(1, 200), (801, 1000)]
    assert ranges(1, 1000, deep=True) == [(1, 1000)]


def test_findings_are_said_by_server() -> None:
    found = [Finding("s2", 5, "has nothing"), Finding("s2", 6, "has nothing"), Finding(None, 7, "has bytes")]
    assert said(found) == "s2 has nothing at offset 5 and 1 more; some copy has bytes at offset 7"
