"""Nodes as processes on a real cluster, of which one is wrong: it is found, named and halted."""

from __future__ import annotations

import signal
from pathlib import Path

import apsw

from onefold.log.sqlite import checksums
from support.node_stand import (
    EVERY,
    PATIENCE_S,
    Process,
    Stand,
    hashes,
    node_stand,  # noqa: F401
    small,  # noqa: F401
)
from support.three_servers import three_servers  # noqa: F401


def _store(node: Process, shard: int) -> Path:
    (folder,) = (node.directory / "replicas").glob(f"*/{shard}")
    return folder / (folder / "current").read_text().strip() / "replica.db"


_WRONG = """
UPDATE kv SET v = CAST(v || x'00' AS BLOB) WHERE t = (SELECT id FROM tables WHERE name LIKE 'state/m/%')
AND k = (SELECT min(k) FROM kv WHERE t = (SELECT id FROM tables WHERE name LIKE 'state/m/%'))
"""


def _spoil(path: Path, *statements: str) -> None:
    """Change a replica's file as a broken machine does, with good page checksums."""
    con = apsw.Connection(str(path), vfs=checksums.VFS if checksums.available() else None)
    try:
        with con:
            for statement in statements:
                con.execute(statement)
                assert con.changes() > 0, statement
    finally:
        con.close()


def test_a_state_that_went_wrong_is_found_named_and_halted(stand: Stand) -> None:
    stand.start("n1", "n2", "n3")
    stand.wait(lambda: stand.settled("n1", "n2", "n3"), "not settled")
    stand.db.map("m").put_many({f"k{number}": "right" for number in range(200)}, atomic=False)
    stand.nodes["n2"].end(signal.SIGTERM)
    _spoil(_store(stand.nodes["n2"], 0), _WRONG)
    stand.start("n2", wait=False)  # on a slow machine it is found before it was ready
    at = (stand.shards[0].applied // EVERY + 1) * EVERY
    stand.ticks(0, at + 1)
    stand.wait(lambda: stand.nodes["n2"].events("replica_halted"), "it was not found")
    (halted,) = stand.nodes["n2"].events("replica_halted")
    assert halted["shard"] == 0
    assert "this copy is wrong" in halted["reason"].lower()
    assert "n2" in halted["reason"]
    for name in ("n1", "n3"):
        assert not stand.nodes[name].events("replica_halted")
        stand.wait(
            lambda name=name: any(
                "n2" in line["reason"] for line in stand.nodes[name].events("nodes_diverged")
            ),
            "the others do not alarm",
        )
    assert not stand.nodes["n2"].ready
    assert stand.nodes["n2"].metrics()['onefold_shard_halted{shard="0"}'] == 1
    # Without shard 0 it is no node any more; started again, it makes its copy anew, and is sound.
    stand.nodes["n2"].end(signal.SIGTERM)
    stand.start("n2")
    at = (stand.shards[0].applied // EVERY + 1) * EVERY
    stand.ticks(0, at + 1)
    stand.wait(lambda: set(hashes(stand, 0, at)) == {"n1", "n2", "n3"}, "they have not said their hashes")
    assert len(set(hashes(stand, 0, at).values())) == 1


def test_of_two_who_differ_the_one_who_cannot_reproduce_its_word_halts(stand: Stand) -> None:
    stand.start("n1", "n2")
    stand.wait(lambda: stand.settled("n1", "n2"), "not settled")
    stand.db.map("m").put_many({f"k{number}": "right" for number in range(200)}, atomic=False)
    stand.nodes["n2"].end(signal.SIGTERM)
    _spoil(_store(stand.nodes["n2"], 1), _WRONG)
    stand.start("n2", wait=False)  # on a slow machine it is found before it was ready
    stand.ticks(1, (stand.shards[1].applied // EVERY + 1) * EVERY + 1)
    stand.wait(lambda: stand.nodes["n2"].events("replica_halted"), "it was not found")
    looked = {
        name: [line["verdict"] for line in stand.nodes[name].events("recheck_finished")]
        for name in ("n1", "n2")
    }
    stand.wait(lambda: stand.nodes["n1"].events("recheck_finished"), "the other did not look again")
    assert looked["n2"] == ["wrong"]
    assert stand.nodes["n1"].events("recheck_finished")[0]["verdict"] == "sound"
    assert not stand.nodes["n1"].events("replica_halted")
    stand.wait(lambda: [shard for shard, _ in stand.rows()["n2"].state.halted] == [1], "it did not say so")
    assert stand.hosts()[1] == {"n1"}
    stand.wait(lambda: stand.nodes["n1"].metrics()["onefold_divergences"] == 0, "the alarm did not end")


def test_who_cannot_reproduce_its_digest_of_the_log_halts(stand: Stand) -> None:
    stand.start("n1", "n2", "n3")
    stand.wait(lambda: stand.settled("n1", "n2", "n3"), "not settled")
    stand.ticks(0, 32 * 5 + 3)
    stand.nodes["n2"].end(signal.SIGTERM)
    applied = stand.shards[0].applied // 32 * 32
    wrong = f"UPDATE digests SET digest = zeroblob(16) WHERE offset = {applied - 32}"
    _spoil(_store(stand.nodes["n2"], 0), wrong)
    stand.start("n2", wait=False)
    stand.wait(lambda: stand.nodes["n2"].events("replica_halted"), "it was not found")
    (halted,) = stand.nodes["n2"].events("replica_halted")
    assert "the log of shard 0" in halted["reason"]
    for name in ("n1", "n3"):
        stand.wait(
            lambda name=name: stand.nodes[name].events("recheck_finished"), "the others did not look again"
        )
        assert {line["verdict"] for line in stand.nodes[name].events("recheck_finished")} == {"sound"}
        assert not stand.nodes[name].events("replica_halted")


def test_states_that_there_was_no_time_to_compare_are_counted_and_told(stand: Stand) -> None:
    """A node that catches up comes to the next boundaries while it still reads the state at the first."""
    missed, hashed = "onefold_state_hashes_missed_total", "onefold_state_hashes_total"
    stand.start("n1")
    assert stand.nodes["n1"].metrics()[missed] == 0
    stand.db.map("m").put_many(dict.fromkeys(range(20_000), "v" * 1000), atomic=False)
    stand.nodes["n1"].end()
    begin = (stand.shards[1].barrier(PATIENCE_S) // EVERY + 1) * EVERY
    stand.ticks(1, begin + 5 * EVERY)
    stand.start("n1")
    node = stand.nodes["n1"]

    def offsets(event: str) -> list[int]:
        return [line["offset"] for line in node.events(event) if line["shard"] == 1]

    boundaries = [begin + number * EVERY for number in range(6)]
    stand.wait(
        lambda: sorted(offsets("boundary_missed") + offsets("state_hashed"))[: len(boundaries)] == boundaries,
        "a boundary came to nothing without a word",
    )
    told = node.events("boundary_missed")
    assert told and {line["level"] for line in told} == {"warning"}
    for metric, event in ((missed, "boundary_missed"), (hashed, "state_hashed")):
        stand.wait(
            lambda metric=metric, event=event: node.metrics()[metric] == len(node.events(event)),
            f"{metric} is not the number of {event}",
        )
