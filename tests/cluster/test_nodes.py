"""Nodes as processes on a real cluster: they come, take their part, hang, die, come back, and leave."""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

import onefold as of
from onefold import config
from onefold.backup.backup import backup
from onefold.cluster.servers import LocalServers
from onefold.errors import OnefoldError
from onefold.fold.nodes import state
from onefold.log.jetstream.engine import JetStreamLog
from onefold.shard.remote import protocol
from support.node_stand import (
    EVERY,
    PATIENCE_S,
    SHARDS,
    SMALL,
    Process,
    Stand,
    hashes,
    node_stand,  # noqa: F401
    small,  # noqa: F401
)
from support.three_servers import three_servers  # noqa: F401

# -- coming and taking part


def test_nodes_join_take_their_part_and_say_what_they_do(stand: Stand) -> None:
    stand.start("n1", "n2", "n3")
    stand.wait(lambda: stand.settled("n1", "n2", "n3"), "not settled")
    before = stand.hosts()
    assert [len(names) for names in before.values()] == [3, 2, 2, 2]
    stand.db.map("m")["k"] = 1
    metrics = stand.nodes["n1"].metrics()
    mine = {shard for shard, names in before.items() if "n1" in names}
    assert {shard for shard in range(SHARDS) if f'onefold_shard_ready{{shard="{shard}"}}' in metrics} == mine
    assert metrics['onefold_nodes{state="live"}'] == 3
    assert metrics["onefold_node_ready"] == 1
    assert metrics["process_resident_memory_bytes"] > 0
    assert stand.nodes["n1"].get("/live")[0] == 200

    stand.start("n4")
    stand.wait(lambda: stand.settled("n1", "n2", "n3", "n4"), "the fourth has not settled")
    after = stand.hosts()
    for shard in range(1, SHARDS):
        assert after[shard] - before[shard] <= {"n4"}, "something else moved"
        assert len(after[shard]) == 2


def test_a_node_is_ready_only_when_it_has_what_was_acknowledged(stand: Stand) -> None:
    stand.start("n1")
    stand.db.map("m").put_many({f"k{number}": number for number in range(2000)}, atomic=False)
    with stand.asking():
        pass
    stand.nodes["n1"].end()
    ends = [space.barrier(PATIENCE_S) for space in stand.shards]
    stand.start("n2", wait=False)
    stand.wait(lambda: stand.nodes["n2"].get("/ready")[0], "it does not listen")
    stand.wait(lambda: stand.nodes["n2"].ready, "it is not ready")
    for shard, end in enumerate(ends):
        answer = stand.first_answer(shard)
        assert isinstance(answer, protocol.Answer)
        assert answer.offset >= end
    assert stand.nodes["n2"].get("/else")[0] == 404


# -- going


def test_a_killed_node_is_expired_and_its_shards_find_others(stand: Stand) -> None:
    stand.start("n1", "n2", "n3")
    stand.wait(lambda: stand.settled("n1", "n2", "n3"), "not settled")
    with stand.asking() as longest:
        stand.nodes["n2"].end(signal.SIGKILL)
        stand.wait(lambda: stand.states()["n2"] == "expired", "it was not expired")
        stand.wait(lambda: stand.settled("n1", "n3"), "its shards found nobody")
    assert max(longest) < 2.0, "reads stopped"
    said = [line for name in ("n1", "n3") for line in stand.nodes[name].events("node_expired")]
    assert {line["expired"] for line in said} == {"n2"}
    stand.start("n2")
    stand.wait(lambda: stand.settled("n1", "n2", "n3"), "it did not come back")


def test_a_halted_process_comes_back_as_a_zombie_and_harms_nobody(stand: Stand) -> None:
    stand.start("n1", "n2", "n3")
    stand.wait(lambda: stand.settled("n1", "n2", "n3"), "not settled")
    epochs = {name: node.state.epoch for name, node in stand.rows().items()}
    with stand.asking() as longest:
        stand.nodes["n2"].kill(signal.SIGSTOP)
        stand.wait(lambda: stand.states()["n2"] == "expired", "it was not expired")
        stand.wait(lambda: stand.settled("n1", "n3"), "its shards found nobody")
    assert max(longest) < 10.0, "reads stopped"  # one in two questions goes to it until the servers miss it
    time.sleep(SMALL["NODE_LEASE_S"])  # long enough that by its own clock all others have been silent
    stand.nodes["n2"].kill(signal.SIGCONT)
    stand.wait(lambda: stand.settled("n1", "n2", "n3"), "it did not come back")
    rows = stand.rows()
    assert rows["n2"].state.epoch > epochs["n2"]
    assert {name: rows[name].state.epoch for name in ("n1", "n3")} == {
        name: epochs[name] for name in ("n1", "n3")
    }
    assert stand.nodes["n2"].events("expired_by_peer")
    assert not stand.nodes["n2"].events("node_expired"), "it accused those who were never away"
    stand.wait(lambda: stand.nodes["n2"].ready, "it is not ready")


def test_a_leaving_node_hands_over_without_a_stop(stand: Stand) -> None:
    stand.start("n1", "n2", "n3")
    stand.wait(lambda: stand.settled("n1", "n2", "n3"), "not settled")
    with stand.asking() as longest:
        assert stand.nodes["n3"].end(signal.SIGTERM) == 0
    assert stand.states()["n3"] == "left"
    assert stand.hosts() == {shard: {"n1", "n2"} for shard in range(SHARDS)}, (
        "it left before others were ready"
    )
    assert max(longest) < 1.0, longest
    assert [line["event"] for line in stand.nodes["n3"].events()][-2:] == ["left", "ended"]


def test_a_second_signal_ends_it_at_once(stand: Stand) -> None:
    stand.start("n1")
    node = stand.nodes["n1"]
    node.kill(signal.SIGSTOP)
    node.kill(signal.SIGTERM)
    node.kill(signal.SIGINT)
    node.kill(signal.SIGCONT)
    assert node.process.wait(60) in (0, 128 + signal.SIGTERM, 128 + signal.SIGINT)


def test_of_two_processes_of_one_name_the_later_stays(stand: Stand) -> None:
    stand.start("n1")
    first = stand.nodes["n1"]
    stand.nodes["n1"] = Process(stand, "n1", "--dir", str(stand.directory / "elsewhere"))
    assert first.process.wait(60) == 1
    assert "another process is the node 'n1'" in first.output.read_text()
    stand.wait(lambda: stand.settled("n1"), "the later one is not there")


# -- coming back


def test_nodes_live_through_the_death_of_all_servers(stand: Stand, servers: LocalServers) -> None:
    stand.start("n1", "n2")
    stand.wait(lambda: stand.settled("n1", "n2"), "not settled")
    stand.db.map("m")["k"] = 1
    for index in range(3):
        servers.kill(index)
    stand.wait(lambda: not any(node.ready for node in stand.nodes.values()), "they say that they are ready")
    assert all(node.get("/live")[0] == 200 for node in stand.nodes.values())
    for index in range(3):
        servers.restart(index, wait=index == 2)
    stand.wait(lambda: all(node.ready for node in stand.nodes.values()), "they did not come back", 120.0)
    assert all(node.process.poll() is None for node in stand.nodes.values())
    assert stand.wait(lambda: _value(stand), "reads did not come back") == 1
    stand.wait(lambda: stand.settled("n1", "n2"), "not settled")


def _value(stand: Stand) -> Any:
    try:
        return stand.db.map("m").get("k", consistency="strong")
    except OnefoldError:
        return None


def test_a_restarted_node_goes_on_with_its_store(stand: Stand) -> None:
    stand.start("n1", "n2")
    stand.db.map("m").put_many({f"k{number}": "v" * 100 for number in range(5000)}, atomic=False)
    ends = [space.barrier(PATIENCE_S) for space in stand.shards]
    stand.wait(lambda: stand.settled("n1", "n2"), "not settled")

    def has_all() -> bool:
        applied = dict(stand.rows()["n2"].state.hosted)
        return all(applied.get(shard, 0) >= end for shard, end in enumerate(ends))

    stand.wait(has_all, "it does not say that it has applied all")
    stand.nodes["n2"].end(signal.SIGTERM)
    stand.start("n2")
    opened = {line["shard"]: line["applied"] for line in stand.nodes["n2"].events("replica_opened")}
    assert all(opened[shard] >= end for shard, end in enumerate(ends)), "it began again from nothing"


def test_a_newcomer_starts_from_a_snapshot_once_the_log_was_trimmed(stand: Stand) -> None:
    stand.start("n1", "n2")
    stand.wait(lambda: stand.settled("n1", "n2"), "not settled")
    stand.db.map("m").put_many({f"k{number}": number for number in range(100)}, atomic=False)
    for shard in (0, 1):
        stand.ticks(shard, 3 * EVERY + 5)

    _await_trimmed(stand, EVERY, 0, 1)
    firsts = {shard: _first(stand, shard) for shard in (0, 1)}
    stand.shards[0].barrier(PATIENCE_S)
    with stand.shards[0].view() as view:
        for shard, first in firsts.items():
            assert state.archived_to(view, shard) is not None
            kept = state.snapshots(view, shard)
            assert len(kept) == config.SNAPSHOTS_KEPT
            assert first <= kept[0].offset + 1, "trimmed beyond the snapshots"
            assert first <= (state.archived_to(view, shard) or 0) + 1, "trimmed beyond the archive"
    stand.start("n3")
    fetched = {line["shard"] for line in stand.nodes["n3"].events("snapshot_fetched")}
    assert 0 in fetched
    opened = {line["shard"]: line["applied"] for line in stand.nodes["n3"].events("replica_opened")}
    assert opened[0] >= EVERY
    stand.wait(lambda: stand.settled("n1", "n2", "n3"), "not settled")
    # What it folds from there is what the others have: at the next boundary all three say the same.
    at = (stand.shards[0].applied // EVERY + 1) * EVERY
    stand.ticks(0, at + 1)
    stand.wait(lambda: set(hashes(stand, 0, at)) == {"n1", "n2", "n3"}, "they have not said their hashes")
    assert len(set(hashes(stand, 0, at).values())) == 1
    assert stand.wait(lambda: _no_garbage(stand), "snapshots that nothing names were not deleted")


def test_a_program_gets_a_snapshot_from_a_node_once_the_log_was_trimmed(
    stand: Stand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand.start("n1", "n2", options=("--snapshots", "jetstream"))
    stand.db.map("m").put_many({f"k{number}": number for number in range(100)}, atomic=False)
    stand.ticks(0, 2 * EVERY + 5)
    _await_trimmed(stand, EVERY, 0)
    with stand.shards[0].view() as view:
        assert state.archived_to(view, 0) is None  # where the log is, an archive would be no second copy
    swept = "onefold_blobs_swept_total"
    stand.ticks(0, 3 * EVERY + 5)
    stand.wait(
        lambda: sum(node.metrics().get(swept, 0) for node in stand.nodes.values()) > 0, "nothing was swept"
    )
    monkeypatch.setenv("ONEFOLD_CACHE", str(tmp_path / "cache"))
    with of.connect(stand.url("app")) as db:
        assert dict(db.map("m").items()) == {f"k{number}": number for number in range(100)}
        db.map("m")["more"] = 1
    assert not list((tmp_path / "cache").rglob("fetched-snapshot*"))
    with of.connect(stand.url("app"), replicas="remote") as db:
        assert db.map("m")["more"] == 1


def test_a_restored_space_is_kept_trimmed_and_joined_as_any_other(
    stand: Stand, servers: LocalServers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONEFOLD_CACHE", str(tmp_path / "cache"))
    stand.start("n1", "n2")
    stand.wait(lambda: stand.settled("n1", "n2"), "not settled")
    content = {f"k{number}": number for number in range(100)}
    stand.db.map("m").put_many(content, atomic=False)
    stand.ticks(0, 2 * EVERY + 5)
    _await_trimmed(stand, EVERY, 0)
    with of.connect(stand.url("app")) as db:
        backup(db._shards, tmp_path / "b", fetch=lambda name, to: False)
    for node in stand.nodes.values():
        node.end(signal.SIGKILL)

    (tmp_path / "other").mkdir()
    other = Stand(servers, tmp_path / "other", f"{stand.info.space}r", tmp_path / "b")
    try:
        base = other.info.base_of(0)
        assert base is not None and base.offset > 2 * EVERY
        assert other.rows() == {}, "nodes of the old cluster are remembered"
        other.start("m1", "m2")
        other.wait(lambda: other.settled("m1", "m2"), "not settled")
        assert {line["shard"] for line in other.nodes["m1"].events("base_fetched")} >= {0}
        with of.connect(other.url("app"), replicas="remote") as db:
            assert dict(db.map("m").items()) == content
        with of.connect(other.url("app")) as db:
            db.map("m")["more"] = 1
        other.ticks(0, base.offset + 4 * EVERY)
        _await_trimmed(other, base.offset + EVERY, 0)
        with other.shards[0].view() as view:
            assert next(state.archives(view, 0)).start == base.offset + 1
            assert state.snapshots(view, 0)[0].offset > base.offset
        assert not [
            line for node in other.nodes.values() for line in node.events() if "missing" in line["event"]
        ]
        other.start("m3")
        other.wait(lambda: other.settled("m1", "m2", "m3"), "not settled")
        at = (other.shards[0].applied // EVERY + 1) * EVERY
        other.ticks(0, at + 1)
        other.wait(lambda: set(hashes(other, 0, at)) == {"m1", "m2", "m3"}, "they have not said their hashes")
        assert len(set(hashes(other, 0, at).values())) == 1
        shutil.rmtree(tmp_path / "cache")
        with of.connect(other.url("app")) as db:
            assert dict(db.map("m").items()) == content | {"more": 1}
    finally:
        other.close()


def _await_trimmed(stand: Stand, beyond: int, *shards: int) -> None:
    """Logs go on meanwhile: of boundaries that come while an earlier one is read some are missed, and others make up for them."""

    def done() -> bool:
        late = [shard for shard in shards if _first(stand, shard) <= beyond]
        for shard in late:
            stand.ticks(shard, stand.shards[shard].applied + 4)
        return not late

    stand.wait(done, "the logs were not trimmed")


def _first(stand: Stand, shard: int) -> int:
    log = JetStreamLog(stand.link, stand.info, shard)
    try:
        return log.first
    finally:
        log.close()


def _no_garbage(stand: Stand) -> bool:
    stand.shards[0].barrier(PATIENCE_S)
    with stand.shards[0].view() as view:
        named = {one.blob for shard in range(SHARDS) for one in state.snapshots(view, shard)}
        named |= {one.blob for shard in range(SHARDS) for one in state.archives(view, shard)}
        left = state.garbage(view, 10)
    there = {path.name for path in (stand.directory / "vault").glob("??/*")}
    return not left and named <= there and len(there) <= len(named) + 2
