"""Nodes that work on the runs of a space. Two connections of one embedded space stand for two nodes."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import onefold as of
from onefold import agg, config
from onefold.compute.blobs.store import BlobStore, BlobsUnavailable
from onefold.compute.execution.slots import Slots
from onefold.compute.jobs import ops, state
from support.node_machines import (
    PATIENCE_S,
    counting,
    expected,
    lines_to_count,  # noqa: F401
    machine,
    result,
    submitting_program,  # noqa: F401
    until,
    workers_of,
)
from support.times import scaled

# -- working


@pytest.mark.moving(3)
@pytest.mark.parametrize("kind", ["expressions", "python", "map_reduce"])
def test_a_run_that_is_left_to_nodes_is_done_by_them(
    tmp_path: Path, db: of.Database, lines: str, kind: str
) -> None:
    with machine(tmp_path, "n1", slots=2), machine(tmp_path, "n2", slots=2):
        if kind == "map_reduce":
            run = db.map_reduce(
                db.read_text(lines),
                map=lambda record: [(record["line"], 1)],
                reduce=lambda key, values: sum(values),
                into="words",
                workers=0,
            )
            frame = run.wait(PATIENCE_S).result().to_polars()
            assert dict(frame.select("key", "value").iter_rows()) == expected()
        else:
            fn = (lambda record: {"line": record["line"]}) if kind == "python" else None
            run = counting(db, lines, fn).start(workers=0)
            run.wait(PATIENCE_S)
            run.raise_if_failed()
            assert result(db) == expected()
        assert run.state == "done" and db._engine.runner(run.id) is None
        assert run.worker_pids == []


def test_both_nodes_and_the_program_take_tasks(tmp_path: Path, db: of.Database, lines: str) -> None:
    gate = tmp_path / "gate"

    def slow(record: dict[str, Any]) -> dict[str, Any]:
        while not gate.exists():
            time.sleep(0.01)
        return {"line": record["line"]}

    with machine(tmp_path, "n1", slots=1) as one, machine(tmp_path, "n2", slots=1) as two:
        run = counting(db, lines, slow).start(workers=1)
        members = {db._engine.shard.member, one.engine.shard.member, two.engine.shard.member}
        until(lambda: workers_of(db, run) == members, "a task at each")
        assert one.workers.busy == two.workers.busy == 1
        gate.touch()
        run.wait(PATIENCE_S)
        assert result(db) == expected()
        until(lambda: not one.workers.status().runs and not two.workers.status().runs)
        until(lambda: one.events("run_left"))
        assert one.events("run_joined")[0]["run"] == run.id
        assert run.progress().failed == 0


def test_a_node_joins_a_run_that_is_under_way(tmp_path: Path, db: of.Database, lines: str) -> None:
    gate = tmp_path / "gate"

    def slow(record: dict[str, Any]) -> dict[str, Any]:
        while not gate.exists():
            time.sleep(0.01)
        return {"line": record["line"]}

    run = counting(db, lines, slow).start(workers=1)
    until(lambda: workers_of(db, run))
    with machine(tmp_path, "n1", slots=3) as one:
        until(lambda: one.workers.busy == 3)
        gate.touch()
        run.wait(PATIENCE_S)
    assert result(db) == expected()


def test_runs_of_a_node_share_its_slots(tmp_path: Path, db: of.Database, lines: str) -> None:
    gate = tmp_path / "gate"

    def slow(record: dict[str, Any]) -> dict[str, Any]:
        while not gate.exists():
            time.sleep(0.01)
        return {"line": record["line"]}

    with machine(tmp_path, "n1", slots=2) as one:
        started = [counting(db, lines, slow, f"t{number}").start(workers=0) for number in range(3)]
        until(lambda: one.workers.busy == 2 and len(one.workers.status().runs) == 3)
        held = [claim for run in started for claim in workers_of(db, run)]
        assert len(held) <= 2
        gate.touch()
        for number, run in enumerate(started):
            run.wait(PATIENCE_S)
            assert result(db, f"t{number}") == expected()
        until(lambda: one.workers.busy == 0)


def test_draining_finishes_what_is_in_hand_and_others_go_on(
    tmp_path: Path, db: of.Database, lines: str
) -> None:
    gate, begun = tmp_path / "gate", tmp_path / "begun"

    def slow(record: dict[str, Any]) -> dict[str, Any]:
        begun.touch()
        while not gate.exists():
            time.sleep(0.01)
        return {"line": record["line"]}

    with machine(tmp_path, "n1", slots=1) as one, machine(tmp_path, "n2", slots=1, start=False) as two:
        run = counting(db, lines, slow).start(workers=0)
        until(begun.exists)  # what was claimed and not begun is given back
        assert one.workers.busy == 1 and workers_of(db, run)
        done: list[bool] = []
        draining = threading.Thread(target=lambda: done.append(one.workers.drain(PATIENCE_S)))
        draining.start()
        until(one.workers._draining.is_set)
        gate.touch()
        draining.join(PATIENCE_S)
        assert done == [True] and not one.workers.alive
        assert run.progress().done >= 1 and not workers_of(db, run)  # the task in hand was finished
        two.workers.start()
        run.wait(PATIENCE_S)
        assert result(db) == expected() and run.progress().failed == 0


def test_draining_gives_back_what_does_not_end(tmp_path: Path, db: of.Database, lines: str) -> None:
    gate = tmp_path / "gate"

    def slow(record: dict[str, Any]) -> dict[str, Any]:
        (tmp_path / f"begun-{os.getpid()}").touch()
        while not gate.exists():
            time.sleep(0.01)
        return {"line": record["line"]}

    with machine(tmp_path, "n1", slots=2) as one:
        run = counting(db, lines, slow).start(workers=0)
        until(lambda: one.workers.busy == 2 and len(list(tmp_path.glob("begun-*"))) == 2)
        assert one.workers.drain(0.2) is False
        assert not workers_of(db, run) and run.progress().done == 0 and run.state == "running"
        gate.touch()
        with machine(tmp_path, "n2", slots=2):
            run.wait(PATIENCE_S)
        assert result(db) == expected() and run.progress().failed == 0


def test_a_failing_function_fails_the_run_as_ever(tmp_path: Path, db: of.Database, lines: str) -> None:
    def bad(record: dict[str, Any]) -> dict[str, Any]:
        raise LookupError("no such word")

    with machine(tmp_path, "n1", slots=1):
        run = counting(db, lines, bad).start(workers=0, max_attempts=1)
        run.wait(PATIENCE_S)
        with pytest.raises(of.JobFailed, match="no such word"):
            run.raise_if_failed()


# -- a blob store that does not answer


def test_a_blob_store_that_does_not_answer_fails_no_job(
    tmp_path: Path, db: of.Database, lines: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "NODE_RETRY_S", scaled(0.1))
    monkeypatch.setattr(config, "PARTIAL_INLINE_BYTES_MAX", 10)

    with machine(tmp_path, "n1", slots=2) as one:
        store = one.blobs.backend.put
        down = threading.Event()
        down.set()

        def put(name: str, path: Path) -> None:
            if down.is_set():
                raise BlobsUnavailable("the share is not mounted")
            store(name, path)

        monkeypatch.setattr(one.blobs.backend, "put", put)
        run = counting(db, lines).start(workers=0)
        (refusal,) = until(run.refusals)
        assert "not mounted" in refusal.reason
        assert run.state == "running" and run.progress().failed == 0
        down.clear()
        run.wait(PATIENCE_S)
    assert result(db) == expected()


def test_lost_blobs_are_made_again_by_nodes(
    tmp_path: Path, db: of.Database, lines: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "PARTIAL_INLINE_BYTES_MAX", 10)
    with machine(tmp_path, "n1", slots=2):
        counting(db, lines).start(workers=0).wait(PATIENCE_S)
    shared = BlobStore(tmp_path / "shared")
    with db._engine.shard.view() as view:
        row = state.read_table(view, "words")
        assert row is not None
        lost = [one.result.blob for one in state.results(view, row.head, 0).values() if one.result.blob]
    assert len(lost) > 3
    for cache in ("cache-n1", "cache-app"):
        for name in lost[:3]:
            BlobStore(tmp_path / cache).delete(name)
    for name in lost[:3]:
        shared.delete(name)
    with machine(tmp_path, "n2", slots=2):
        again = counting(db, lines).start(workers=0)
        again.wait(PATIENCE_S)
        assert again.progress().done - again.progress().reused in (2, 3)  # equal partials have one blob
    assert result(db) == expected()


def test_garbage_is_swept_by_a_node_after_a_while(
    tmp_path: Path, db: of.Database, lines: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "PARTIAL_INLINE_BYTES_MAX", 10)
    monkeypatch.setattr(config, "GARBAGE_SWEEP_S", 0.3)
    with machine(tmp_path, "n1", slots=2) as one:
        counting(db, lines).start(workers=0).wait(PATIENCE_S)
        before = set(BlobStore(tmp_path / "shared").names())
        job = (
            db.read_text(lines)
            .group_by("line")
            .agg(n=agg.count(), m=agg.count())
            .into("words", mode="replace")
        )
        job.start(workers=0).wait(PATIENCE_S)
        until(lambda: one.events("blobs_swept"))
        until(lambda: not one.engine.garbage.names())
        after = set(BlobStore(tmp_path / "shared").names())
        assert before - after
        assert result(db) == expected()


# -- slots


def test_slots_are_handed_out_in_order() -> None:
    slots = Slots(1)
    assert slots.take(0) and not slots.take(0) and slots.in_use == 1
    order: list[int] = []

    def wait(number: int) -> None:
        assert slots.take(30)
        order.append(number)
        slots.give_back()

    threads = []
    for number in range(5):
        thread = threading.Thread(target=wait, args=(number,))
        thread.start()
        threads.append(thread)
        until(lambda number=number: len(slots._waiting) == number + 1)
    slots.give_back()
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 3, 4] and slots.in_use == 0
    assert slots.take(0)
    assert not slots.take(0.01)


# -- leases


def test_who_was_stopped_is_no_witness(lines: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A keeper that sees another machine's claim ends it after a lease of silence, but not for a time that it was not there."""
    from onefold.compute.execution.lease_keeper import LeaseKeeper
    from onefold.env import SeededEnv

    env = SeededEnv(1)
    with of.connect("memory://") as db:
        engine = db._engine
        run = counting(db, lines).start(workers=0)
        monkeypatch.setattr(engine.shard, "member_alive", lambda member: None)
        engine.submit(ops.Claim(run.id, "m_elsewhere/0"))
        engine.env = env
        keeper = LeaseKeeper(engine, run.id)
        keeper.observe()
        env.advance(100 * config.LEASE_S)  # stopped, or asleep
        keeper.observe()
        assert workers_of(db, run) == {"m_elsewhere"}
        for _ in range(int(config.LEASE_S) - 1):
            env.advance(1.0)
            keeper.observe()
        assert workers_of(db, run) == {"m_elsewhere"}
        engine.submit(ops.Renew("m_elsewhere"))
        for _ in range(int(config.LEASE_S)):
            env.advance(1.0)
            keeper.observe()
        assert workers_of(db, run) == {"m_elsewhere"}  # it has renewed
        for _ in range(3):
            env.advance(1.0)
            keeper.observe()
        assert workers_of(db, run) == set()
