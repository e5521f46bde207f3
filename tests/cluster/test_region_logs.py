"""The logs that each region of a cluster has of its own: where they are, who opens them, and what they need while the consistent
logs have no majority."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import onefold as of
from onefold.available import ops
from onefold.available.reading import status
from onefold.available.regions import read_self
from onefold.cluster import daemons
from onefold.cluster.local import LocalCluster
from onefold.cluster.region_beginning import region_plan
from onefold.cluster.setup import set_up_space
from onefold.doctor.facts import look
from onefold.errors import InvalidArgument, SpaceError
from onefold.fold.api import NEWEST_VERSION
from onefold.fold.nodes.regions import Admit, Evict, read_decisions
from onefold.folds import region_folds
from onefold.log.jetstream import admin, region_logs, stream_making
from onefold.log.jetstream.client.address import parse_address
from onefold.log.jetstream.client.link import Link
from onefold.log.jetstream.region_logs import streams_of
from onefold.log.jetstream.regions import region_of
from onefold.log.jetstream.spaces import SpaceInfo
from onefold.shard.api import Shard
from onefold.space.open_cluster import open_region

WAIT_S = 120.0


def await_state(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@contextlib.contextmanager
def region_of_cluster(url: str, region: str, **options: object) -> Iterator[list[Shard]]:
    shards = open_region(url, region, region_folds, **options)  # type: ignore[arg-type]
    try:
        yield shards
    finally:
        for shard in shards:
            shard.close()


def put(shard: Shard, key: bytes, value: bytes) -> ops.Committed:
    done = ops.Do((ops.Put("r", "carts", ((key, value),)),))
    outcome = ops.decode_outcome(shard.submit([ops.available_op(done)])[0])
    assert isinstance(outcome, ops.Committed), outcome
    return outcome


def held(shard: Shard) -> int:
    """How many keys of carts are in a region."""
    with shard.view() as view:
        return sum(view.count(table) for table in view.tables("ap/c/"))


def up(folder: Path, **options: int) -> LocalCluster:
    return LocalCluster.up(folder, nodes=0, regions=2, **options)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """Two regions of three servers, and a witness; no nodes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONEFOLD_CACHE", str(tmp_path_factory.mktemp("cache")))
        found = up(tmp_path_factory.mktemp("regions") / "c", shards=2)
        yield found
        found.down(delete=True)


@pytest.fixture(scope="module")
def as_admin(cluster: LocalCluster) -> Iterator[Link]:
    link = Link(parse_address(cluster.url("admin")))
    yield link
    link.close()


@pytest.fixture(scope="module")
def info(as_admin: Link) -> SpaceInfo:
    return admin.read_space(as_admin)


# -- made with the space


def test_each_region_has_its_logs_and_blobs_inside_itself(as_admin: Link, info: SpaceInfo) -> None:
    assert info.format == 2 and [one.name for one in info.region_logs] == ["dc1", "dc2"]
    assert len({info.incarnation, *(one.incarnation for one in info.region_logs)}) == 3
    for region in info.regions:
        own = [one for one in look(as_admin).streams if one.region == region]
        assert len(own) == 4, "two logs, their blobs, a copy of the space's record"
        for stream in own:
            assert Counter(map(region_of, stream.servers)) == {region: 3}, stream.name
    assert admin.leftover_streams(as_admin) == []


def test_regions_are_decided_when_the_space_is_made(cluster: LocalCluster) -> None:
    with of.connect(cluster.url(), timeout=WAIT_S) as db, db._shards[0].view() as view:
        assert read_decisions(view) == [Admit(1, "dc1", True), Admit(2, "dc2", True)]
        assert view.head().fold_version == NEWEST_VERSION


@pytest.mark.parametrize("replicas", ["local"])
def test_regions_know_each_other_from_the_first_record_on(cluster: LocalCluster, replicas: str) -> None:
    for number, region in enumerate(("dc1", "dc2"), start=1):
        with region_of_cluster(cluster.url(), region, replicas=replicas) as shards:
            assert len(shards) == 2
            for shard in shards:
                with shard.view() as view:
                    known = [(one.number, one.name, one.state) for one in status(view, 0).regions]
                    assert view.head().fold_version == NEWEST_VERSION
                assert known == [
                    (1, "dc1", "here" if number == 1 else "live"),
                    (2, "dc2", "here" if number == 2 else "live"),
                ]
            assert put(shards[1], b"k", region.encode()).region == number


def test_a_region_is_opened_by_its_name_only(cluster: LocalCluster) -> None:
    for region in ("dc3", "witness", "DC1", "x/y", ""):
        with pytest.raises(InvalidArgument, match="region"):
            open_region(cluster.url(), region, region_folds)
    url = cluster.servers.url("plain", "admin")
    set_up_space(url, replicas=1)
    with pytest.raises(InvalidArgument, match="is one region, which has no logs of its own"):
        open_region(url, "dc1", region_folds)
    with pytest.raises(SpaceError, match="there is no space"):
        open_region(cluster.servers.url("absent", "admin"), "dc1", region_folds)


def test_a_space_that_is_deleted_leaves_nothing(cluster: LocalCluster) -> None:
    url = cluster.servers.url("gone", "admin")
    made = set_up_space(url, regions=["dc1", "dc2"])
    link = Link(parse_address(url))
    try:
        assert len(stream_making.stream_names(link, ">")) == 9
        admin.delete_space(link, made)
        assert stream_making.stream_names(link, ">") == []
        assert admin.find_space(link, "gone") is None
    finally:
        link.close()


def test_a_maker_that_died_leaves_streams_that_are_listed(
    cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = cluster.servers.url("half", "admin")
    monkeypatch.setattr(admin, "write_first", lambda *_: (_ for _ in ()).throw(SpaceError("died")))
    with pytest.raises(SpaceError, match="died"):
        set_up_space(url, regions=["dc1", "dc2"])
    monkeypatch.undo()
    link = Link(parse_address(url))
    try:
        left = admin.leftover_streams(link)
        assert len(left) == 5, "a log, and of each region a log and its blobs"
        set_up_space(url, regions=["dc1", "dc2"])
        assert admin.leftover_streams(link) == left
    finally:
        link.close()


def test_init_completes_copies_of_the_record(cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    url = cluster.servers.url("copied", "admin")
    monkeypatch.setattr(admin, "copy_to_regions", lambda *_: [])
    made = set_up_space(url, regions=["dc1", "dc2"])
    monkeypatch.undo()
    link = Link(parse_address(url))
    try:
        assert sum("@" in stream for stream in stream_making.stream_names(link, ">")) == 0
        assert set_up_space(url) == made
        assert sum("@" in stream for stream in stream_making.stream_names(link, ">")) == 2
    finally:
        link.close()


def test_a_region_of_one_server_has_one_copy_and_init_says_so(tmp_path: Path) -> None:
    small = up(tmp_path / "c", servers=3)
    try:
        kept = {name: text for name, text in os.environ.items() if not name.startswith("ONEFOLD_")}
        line = [sys.executable, "-m", "onefold.cli", "init", "--url", small.url("admin")]
        said = subprocess.run(line, capture_output=True, text=True, check=True, timeout=120, env=kept).stdout
        assert "the own logs of dc1, dc2 have one copy" in said
        line.append("--json")
        said = subprocess.run(line, capture_output=True, text=True, check=True, timeout=120, env=kept).stdout
        assert [one["replicas"] for one in json.loads(said)["region_logs"]] == [1, 1]
        with region_of_cluster(small.url(), "dc2") as (shard,):
            assert put(shard, b"k", b"v").region == 2
        link = Link(parse_address(small.url("admin")))
        own = [one for one in look(link).streams if one.region]
        link.close()
        assert {(one.region, region_of(one.leader or "")) for one in own} == {("dc1", "dc1"), ("dc2", "dc2")}
        assert all(len(one.servers) == 1 for one in own)
    finally:
        small.down(delete=True)


# -- without the consistent logs


def lose(cluster: LocalCluster, regions: tuple[str | None, ...]) -> None:
    """SIGKILL of all servers of these places at once."""
    for server in cluster.servers.servers:
        if server.region in regions:
            assert server.pid is not None and daemons.send(daemons.identify(server.pid), signal.SIGKILL)


def opened(url: str, region: str) -> list[Shard]:
    """Open a region, again and again until its own logs have leaders."""
    found: list[Shard] = []

    def is_open() -> bool:
        with contextlib.suppress(of.Unavailable):
            found.extend(open_region(url, region, region_folds))
        return bool(found)

    await_state(is_open)
    return found


def unavailable(use: Callable[[], object]) -> float:
    """How long it took until it was said that a consistent collection does not answer."""
    begun = time.monotonic()
    with pytest.raises((of.Unavailable, of.AppendUnknown, of.Timeout)):
        use()
    return time.monotonic() - begun


def check_consistent_ones_say_so(db: of.Database) -> None:
    """Nobody takes what cannot be read for what is not there, and nobody waits for longer than its time."""
    counts = db.map("counts")
    for level in ("eventual", "prefix", "session"):
        with contextlib.suppress(of.Unavailable):
            assert counts.get("before", consistency=level) == 1  # type: ignore[arg-type]
    assert unavailable(lambda: counts.get("before", consistency="strong")) < 30
    assert unavailable(lambda: counts.get("before", consistency="bounded:5s")) < 30
    assert unavailable(lambda: counts.put("lost", 2)) < 30


def use_available_ones(url: str, region: str, *, before: int) -> None:
    """A new program uses collections for every region; ``before``: how many programs did so before."""
    with of.connect(url, region=region) as db:
        seen = db.map("programs", mode="available")
        assert len(seen) == before
        seen[before] = "was here"
        assert seen[before] == "was here" and len(seen) == before + 1
        assert db.counters("likes").add("page") == before + 1 == db.counters("likes").get("page")
        tags = db.sets("tags")
        tags.add("page", f"t{before}")
        assert len(tags.get("page")) == before + 1


def test_a_region_alone_is_written_and_opened(
    cluster: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other region and the witness are killed at once; then all servers of this one are restarted."""
    with of.connect(cluster.url(), region="dc2", timeout=WAIT_S) as db:
        db.map("counts")["before"] = 1
    with region_of_cluster(cluster.url(), "dc2") as shards:
        lose(cluster, ("dc1", "witness"))
        before = put(shards[0], b"during", b"1").seq
    monkeypatch.setenv("ONEFOLD_CACHE", str(tmp_path / "another machine's"))
    shards = opened(cluster.url(), "dc2")
    assert put(shards[0], b"new program", b"2").seq == before + 1
    for shard in shards:
        shard.close()
    for region in ("dc2", None):
        with of.connect(cluster.url(), region=region, timeout=1) as db:
            check_consistent_ones_say_so(db)
    use_available_ones(cluster.url(), "dc2", before=0)
    with region_of_cluster(cluster.url(), "dc2") as shards:
        before = put(shards[0], b"before the restart", b"3").seq
        count = held(shards[0])
    here = [index for index, server in enumerate(cluster.servers.servers) if server.region == "dc2"]
    for index in here:
        cluster.servers.kill(index)
    for index in here:
        cluster.servers.restart(index, wait=False)
    monkeypatch.setenv("ONEFOLD_CACHE", str(tmp_path / "a third machine's"))
    shards = opened(cluster.url(), "dc2")
    assert held(shards[0]) == count
    assert put(shards[0], b"restarted", b"4").seq == before + 1
    for shard in shards:
        shard.close()
    use_available_ones(cluster.url(), "dc2", before=1)
    with (
        of.connect(cluster.url(), region="dc2", timeout=1, create=False) as db,
        of.connect(cluster.url(), timeout=1) as other,
    ):
        check_consistent_ones_say_so(db)
        check_consistent_ones_say_so(other)
        LocalCluster.up(cluster.directory)
        for each in (db, other):  # which are open since before
            counts = each.map("counts")
            await_state(lambda counts=counts: _is_written(counts))  # type: ignore[misc]
            assert counts.get("before", consistency="strong") == 1
    shards = opened(cluster.url(), "dc1")
    assert put(shards[0], b"back", b"5").region == 1
    for shard in shards:
        shard.close()


def _is_written(counts: of.Map[int]) -> bool:
    try:
        counts.put("after", 3)
    except (of.Unavailable, of.AppendUnknown, of.Timeout):
        return False
    return True


# -- a region that comes again


def test_a_region_gets_other_logs(cluster: LocalCluster, as_admin: Link) -> None:
    url = cluster.servers.url("again", "admin")
    set_up_space(url, regions=["dc1", "dc2"])
    link = Link(parse_address(url))
    try:
        made = admin.read_space(link)
        with region_of_cluster(cluster.servers.url("again"), "dc2") as (shard,):
            put(shard, b"old", b"1")
        decisions = [Admit(1, "dc1", True), Admit(2, "dc2", True), Evict(2, 1), Admit(3, "dc2")]
        plan = region_plan("dc2", 3, decisions, 3)
        old = made.of_region("dc2").incarnation
        info, changed = admin.renew_region(link, "again", plan, old)
        assert changed and info.of_region("dc1") == made.of_region("dc1")
        assert info.of_region("dc2").incarnation != old and info.incarnation == made.incarnation
        assert admin.renew_region(link, "again", plan, old) == (info, False), "it was done before"
        await_state(lambda: admin.read_space(link) == info)
        left = admin.leftover_streams(link)
        assert left == sorted(streams_of(made.of_region("dc2")))
        with region_of_cluster(cluster.servers.url("again"), "dc2") as (shard,):
            assert held(shard) == 0
            with shard.view() as view:
                me = read_self(view)
            assert me.number == 3 and sorted(me.regions) == [1, 2, 3] and me.regions[2].round == 1
        region_logs.delete_region_logs(link, made, made.region_logs[1])
        assert admin.leftover_streams(link) == []
        with pytest.raises(InvalidArgument, match="has the regions dc1, dc2, not 'dc3'"):
            admin.renew_region(link, "again", plan._replace(name="dc3"), old)
    finally:
        link.close()


def test_of_two_that_renew_a_region_one_wins(cluster: LocalCluster) -> None:
    url = cluster.servers.url("race", "admin")
    made = set_up_space(url, regions=["dc1", "dc2"])
    decisions = [Admit(1, "dc1", True), Admit(2, "dc2", True), Evict(2, 1), Admit(3, "dc2")]
    plan = region_plan("dc2", 3, decisions, 3)

    def renew(region: str) -> tuple[SpaceInfo, bool]:
        link = Link(parse_address(url))
        try:
            its = plan._replace(name=region)
            return admin.renew_region(link, "race", its, made.of_region(region).incarnation)
        finally:
            link.close()

    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(renew, ["dc2", "dc2", "dc2", "dc1"]))
    assert [changed for _, changed in found].count(True) == 2, "one of dc2, and that of dc1"
    link = Link(parse_address(url))
    try:
        await_state(lambda: admin.read_space(link) in [info for info, _ in found])
        now = admin.read_space(link)
        for region in ("dc1", "dc2"):
            assert now.of_region(region).incarnation != made.of_region(region).incarnation
        left = {stream for region in ("dc1", "dc2") for stream in streams_of(made.of_region(region))}
        assert set(admin.leftover_streams(link)) == left, "the losers removed theirs"
        for region in ("dc1", "dc2"):
            copied = admin.copy_to_regions(link, "race")
            assert copied == [], region
    finally:
        link.close()
