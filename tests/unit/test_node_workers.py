"""Nodes that work on the runs of a space. Two connections of one embedded space stand for two nodes."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import onefold as of
from onefold import agg, config
from onefold.compute import requirements, runs
from onefold.compute.blob_backends import DirectoryBackend
from onefold.compute.blobs import BlobStore, BlobsUnavailable
from onefold.compute.engine import Engine
from onefold.compute.jobs import ops, state
from onefold.compute.node_worker import NodeWorkers
from onefold.compute.shared_blobs import SharedBlobs
from onefold.compute.slots import Slots
from onefold.fold.shards import open_shards
from onefold.folds import folds as space_folds

PATIENCE_S = 60.0


def until(holds: Callable[[], Any], what: str = "it") -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while not (found := holds()):
        assert time.monotonic() < deadline, f"{what} did not come about"
        time.sleep(0.02)
    return found


@pytest.fixture
def lines(tmp_path: Path) -> str:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(8):
        (folder / f"{number}.txt").write_text("".join(f"w{i % 5}\n" for i in range(20 + number)))
    return str(folder / "*.txt")


def expected() -> dict[str, int]:
    found: dict[str, int] = {}
    for number in range(8):
        for i in range(20 + number):
            found[f"w{i % 5}"] = found.get(f"w{i % 5}", 0) + 1
    return found


def result(db: of.Database, table: str = "words") -> dict[str, int]:
    return dict(db.table(table).to_polars().select("line", "n").iter_rows())


def counting(
    db: of.Database, paths: str, fn: Callable[[Any], Any] | None = None, table: str = "words"
) -> Any:
    rows = db.read_text(paths)
    if fn is not None:
        rows = rows.map(fn)
    return rows.group_by("line").agg(n=agg.count()).into(table)


class Machine:
    """A machine of its own, but for the space's file: its blobs are in its own cache of a shared directory."""

    def __init__(self, tmp_path: Path, name: str, **options: Any) -> None:
        self.name = name
        self.notes: list[tuple[str, dict[str, Any]]] = []
        (tmp_path / "shared").mkdir(exist_ok=True)
        (space,) = open_shards(str(tmp_path / "space"), space_folds)
        self.blobs = SharedBlobs(tmp_path / f"cache-{name}", DirectoryBackend(tmp_path / "shared"))
        code = options.pop("code", "pickle")
        self.engine = Engine(space, blobs=self.blobs, code=code)
        self.workers = NodeWorkers(
            self.engine, node=name, note=lambda event, fields: self.notes.append((event, fields)), **options
        )

    def events(self, event: str) -> list[dict[str, Any]]:
        return [fields for found, fields in list(self.notes) if found == event]

    def close(self) -> None:
        self.workers.stop()
        self.engine.close()
        self.blobs.close()


@contextmanager
def machine(tmp_path: Path, name: str, *, start: bool = True, **options: Any) -> Iterator[Machine]:
    made = Machine(tmp_path, name, **options)
    try:
        if start:
            made.workers.start()
        yield made
    finally:
        made.close()


@pytest.fixture
def db(tmp_path: Path) -> Iterator[of.Database]:
    """The submitting program; its blobs are shared as well, so that nodes can have them."""
    (tmp_path / "shared").mkdir(exist_ok=True)
    with of.connect(tmp_path / "space") as database:
        blobs = SharedBlobs(tmp_path / "cache-app", DirectoryBackend(tmp_path / "shared"))
        database._jobs = Engine(database._space, blobs=blobs, owns_space=False)
        yield database


def workers_of(db: of.Database, run: runs.Run) -> set[str]:
    """Members that have a claim now."""
    with db._engine.space.view() as view:
        return {claim.member for claim in state.claims(view, run.id)}


# -- working


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
        members = {db._engine.space.member, one.engine.space.member, two.engine.space.member}
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
    gate = tmp_path / "gate"

    def slow(record: dict[str, Any]) -> dict[str, Any]:
        while not gate.exists():
            time.sleep(0.01)
        return {"line": record["line"]}

    with machine(tmp_path, "n1", slots=1) as one, machine(tmp_path, "n2", slots=1, start=False) as two:
        run = counting(db, lines, slow).start(workers=0)
        until(lambda: one.workers.busy == 1)
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


# -- what a node cannot do


def test_another_version_is_refused_by_name(
    tmp_path: Path, db: of.Database, lines: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as other:
        found = requirements.of_job(None)
        newer = tuple((name, "99.1" if name == "polars" else version) for name, version in found.packages)
        other.setattr(requirements, "of_job", lambda job: requirements.Requirements("3.99.1", newer))
        run = counting(db, lines).start(workers=0)
    with machine(tmp_path, "n1") as one:
        (refusal,) = until(run.refusals)
        assert refusal.node == "n1" and refusal.stage == -1
        assert "Python 3.99.1 (here 3." in refusal.reason
        assert f"polars 99.1 (here {pl.__version__})" in refusal.reason
        assert one.events("run_refused")[0]["why"] == refusal.reason
        assert one.workers.status().refused == {run.id: refusal.reason}
        assert not workers_of(db, run) and run.state == "running"
        # Others go on, and it is no business of the refusing node any more.
        run.resume(workers=1)
        run.wait(PATIENCE_S)
        until(lambda: not one.workers.status().refused)
    assert result(db) == expected()


def test_a_node_that_has_the_right_versions_now_takes_its_refusal_back(
    tmp_path: Path, db: of.Database, lines: str
) -> None:
    run = counting(db, lines).start(workers=0)
    db._engine.submit(ops.Unfit(run.id, "n1", "polars 99"), ops.Unfit(run.id, "n2", "polars 99"))
    with machine(tmp_path, "n1"):
        run.wait(PATIENCE_S)
    assert [refusal.node for refusal in run.refusals()] == ["n2"]


def test_a_node_that_takes_no_code_runs_what_is_installed(
    tmp_path: Path, db: of.Database, lines: str
) -> None:
    import msgspec
    from polars.testing import assert_frame_equal

    with machine(tmp_path, "n1", code="reference") as one:
        run = counting(db, lines).start(workers=0)  # expressions only
        run.wait(PATIENCE_S)
        assert result(db) == expected()
        installed = db.read_text(lines).map(msgspec.to_builtins, schema={"line": pl.String})
        run = installed.group_by("line").agg(n=agg.count()).into("installed").start(workers=0)
        run.wait(PATIENCE_S)
        run.raise_if_failed()
        assert result(db, "installed") == expected()
        evil = tmp_path / "evil"
        run = counting(db, lines, lambda record: evil.touch() or record, "mine").start(workers=0)
        (refusal,) = until(run.refusals)
        assert "code of its own" in refusal.reason
        run.cancel()
        run = db.read_text(lines).map(eval).into("eval").start(workers=0)
        (refusal,) = until(run.refusals)
        assert "Python's own library" in refusal.reason
        run.cancel()
        run = db.map_reduce(
            db.read_text(lines), map=msgspec.to_builtins, reduce=assert_frame_equal, into="mr", workers=0
        )
        (refusal,) = until(run.refusals)
        assert "pickled" in refusal.reason
        run.cancel()
        assert not evil.exists() and len(one.events("run_refused")) == 3


def test_a_file_that_one_node_has_not_is_read_by_another(
    tmp_path: Path, db: of.Database, lines: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onefold.compute import reachable

    honest = reachable.why_not
    blind = threading.Event()
    blind.set()

    def without(stage: Any, item: Any) -> str | None:
        """As if this machine had not these two files."""
        if blind.is_set() and any(unit.path.endswith(("1.txt", "3.txt")) for unit in item.units):
            return f"the file {item.units[0].path} is not there"
        return honest(stage, item)

    monkeypatch.setattr(reachable, "why_not", without)
    with machine(tmp_path, "n1", slots=2) as one:
        run = counting(db, lines).start(workers=0, target_splits=8)
        until(lambda: run.progress().done == run.progress().total - 2)
        (refusal,) = until(run.refusals)
        assert refusal.node == "n1" and refusal.stage == 0 and "is not there" in refusal.reason
        before = db._engine.space.applied
        time.sleep(1.0)
        assert db._engine.space.applied - before <= 5  # it does not claim and give back for ever
        assert run.state == "running" and run.progress().failed == 0
        blind.clear()
        assert one.workers.status().runs == (run.id,)
        run.resume(workers=1)  # somebody who has the files
        run.wait(PATIENCE_S)
    assert result(db) == expected()


def test_files_that_are_missing_or_others_are_told_by_name(
    tmp_path: Path, db: of.Database, lines: str
) -> None:
    files = sorted((tmp_path / "in").iterdir())
    run = counting(db, lines).start(workers=0, target_splits=8)
    files[0].rename(tmp_path / "away")
    (tmp_path / "copy").write_bytes(files[1].read_bytes())
    (tmp_path / "copy").replace(files[1])  # the same content, but not the file that was listed
    with machine(tmp_path, "n1", slots=1) as one:
        until(lambda: run.progress().done == run.progress().total - 2)
        (refusal,) = until(run.refusals)
        told = {
            f"the file {files[0]} is not there",
            f"the file {files[1]} is another one (its size, time or inode differ)",
        }
        assert refusal.node == "n1" and refusal.reason in told
        assert one.workers.status().runs == (run.id,) and run.progress().failed == 0
        run.cancel()


# -- a blob store that does not answer


def test_a_blob_store_that_does_not_answer_fails_no_job(
    tmp_path: Path, db: of.Database, lines: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "NODE_RETRY_S", 0.1)
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
    with db._engine.space.view() as view:
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
        until(lambda: not one.engine.garbage())
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
    from onefold.compute.keeper import Keeper
    from onefold.env import SeededEnv

    env = SeededEnv(1)
    with of.connect("memory://") as db:
        engine = db._engine
        run = counting(db, lines).start(workers=0)
        monkeypatch.setattr(engine.space, "member_alive", lambda member: None)
        engine.submit(ops.Claim(run.id, "m_elsewhere/0"))
        engine.env = env
        keeper = Keeper(engine, run.id)
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
