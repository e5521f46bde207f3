"""Spaces that releases filled with every kind of shared state: read as they were written, folded again, and written to.

``support/space_of_state.py`` made them. A difference here is a changed format, not a broken test; see ``docs/formats.md``.
"""

import json
import tarfile
from pathlib import Path

import pytest

import onefold as of
from onefold.doctor.embedded import check_space
from onefold.env import SystemEnv
from onefold.folds import folds as space_folds
from support.space_of_state import shown

ASSETS = Path(__file__).parents[2] / "assets"
KEPT = sorted(path.name for path in ASSETS.glob("space-*-state") if (path / "expected.json").exists())
EXACT = ("token", "digests", "version")


@pytest.fixture(params=KEPT)
def kept(request):
    return ASSETS / request.param


@pytest.fixture
def expected(kept):
    return json.loads((kept / "expected.json").read_text())


@pytest.fixture
def space(kept, tmp_path):
    with tarfile.open(kept / "space.tar.gz") as archive:
        archive.extractall(tmp_path / "space", filter="data")
    return tmp_path / "space"


@pytest.fixture
def a_moment_later(space, monkeypatch):
    """The clock goes on from where the space was left: what releases keep for a day only is still there."""
    with of.connect(space, read_only=True) as db:
        views = [shard.view() for shard in db._shards]
        left_ms = 0
        for opened in views:
            with opened as view:
                left_ms = max(left_ms, view.head().now_ms)
    began_s = SystemEnv.boot_s()
    monkeypatch.setattr(
        SystemEnv, "wall_ms", lambda _: left_ms + 1000 + int(1000 * (SystemEnv.boot_s() - began_s))
    )


def as_json(db):
    return json.loads(json.dumps(shown(db)))


def test_every_release_since_0_2_is_kept():
    assert "space-0.2-state" in KEPT


def test_it_reads_as_it_was_written(space, expected):
    with of.connect(space, create=False) as db:
        assert as_json(db) == {key: value for key, value in expected.items() if key not in EXACT}
        assert [one.state_digest() for one in db._shards] == expected["digests"]
        with db.at(expected["token"]) as past:
            assert dict(past.map("accounts")) == dict.fromkeys(("ann", "bob", "eve", "dan"), 100)


def test_it_reads_alike_without_being_written_to(space, expected):
    before = {path: path.read_bytes() for path in space.rglob("space.db")}
    with of.connect(space, read_only=True) as db:
        assert as_json(db) == {key: value for key, value in expected.items() if key not in EXACT}
    assert {path: path.read_bytes() for path in space.rglob("space.db")} == before


def test_its_log_folds_to_the_same_state_again(space):
    with of.connect(space, create=False) as db:
        checks = {check.name: check for check in check_space(db._shards, space_folds)}
        assert checks["state"].status == "ok" and "folded again" in checks["state"].found, checks["state"]


def test_it_is_written_to_as_before(space, a_moment_later):
    with of.connect(space) as db:

        def move(tx):
            tx.map("accounts")["ann"] += 15

        db.run_transaction(move, request_id="move-0")  # was done by the release
        assert db.map("accounts")["ann"] == 85
        db.run_transaction(move, request_id="new")
        assert db.map("accounts")["ann"] == 100
        jobs = []
        for _ in range(5):
            with db.queue("work").get(timeout=0) as message:
                jobs.append(message.value["job"])
        assert jobs == ["moved", "moved", 1, 2, 3]
        with db.stream("clicks").consumer("group", timeout=0.1) as consumer:
            assert len([record.value for record in consumer]) == 6
            consumer.commit()
        with db.lock("free") as lock:
            assert lock.fencing_token > 1
