"""A space of two shards that an earlier program filled with every kind of shared state: it is read as it was written.

It was made at commit d1db9bf. A difference here is no broken test but a changed format. See ``docs/formats.md``.
"""

import tarfile
from contextlib import closing
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import apsw
import pytest

import onefold as of
from onefold.backup.backup import backup, restore
from onefold.backup.restore_embedded import restore_space
from onefold.doctor.embedded import check_space
from onefold.folds import folds as space_folds
from onefold.log.sqlite import checksums
from onefold.log.sqlite.file import FORMAT
from onefold.space.open_shard import open_shard

ASSET = Path(__file__).parents[2] / "assets" / "space-0.1-state" / "space.tar.gz"
DIGESTS = ["1499ea38936eedcbcb2aebaeb0b21277", "a5073d084b81387dd778d38bddb77707"]
"""Of the state of each shard, as the program computed them that made it."""
TOKEN = "of1.b9hEJpOyaV8xbThhM2Q1ajN0Z2phZWVyggAJAQaA"
"""Of a session, before the transfers."""
VALUES = {
    "none": None,
    "bool": True,
    "int": -7,
    "big": 2**80,
    "float": 1.5,
    "text": "é",
    "bytes": b"\x00\xff",
    "list": [1, [2]],
    "dict": {"a": {"b": 1}},
    "datetime": datetime(2026, 5, 1, 12, 0, 0, 5, tzinfo=UTC),
    "naive": datetime(2026, 5, 1),
    "date": date(2026, 5, 1),
    "time": time(12, 30),
    "timedelta": timedelta(days=1, microseconds=3),
    "decimal": Decimal("1.10"),
    "uuid": UUID(int=5),
}
KEYS = [None, b"x", "x", ("eu", 1), ("eu", ("nested", None)), 0, -1, 2**70, -(2**70), False, True]
BEFORE = {"ann": 100, "bob": 100, "eve": 100, "dan": 100}
AFTER = {"ann": 95, "bob": 105, "eve": 90, "dan": 110, "hits": 2.5}
CLICKS = [(number, f"u{number % 3}") for number in range(10)] + [(10, "u1"), (11, "u2")]


@pytest.fixture
def old(tmp_path):
    with tarfile.open(ASSET) as archive:
        archive.extractall(tmp_path / "space", filter="data")
    return tmp_path / "space"


def check(db):
    """What is in it; works on a restored one and on the past too."""
    assert dict(db.map("kinds")) == VALUES
    assert dict(db.map("keys")) == {key: number for number, key in enumerate(KEYS)}
    assert dict(db.map("accounts")) == AFTER
    assert db.map("lives").get_item("long").expires_at.year == 2126
    queue = db.queue("work")
    assert tuple(queue.counts()) == (3, 1, 1, 0, 1)  # ready, delayed, waiting, in flight, dead
    (letter,) = queue.dead()
    assert (letter.id, letter.value, letter.error) == (1, {"job": 0}, "ValueError: broken")
    clicks = [(record.value["n"], record.key) for record in db.stream("clicks").read()]
    assert sorted(clicks) == CLICKS
    assert sorted(record.value["n"] for record in db.stream("audit").read()) == list(range(5))


def test_it_opens_and_reads_the_same(old):
    with of.connect(old, create=False) as db:
        assert [space.state_digest() for space in db._shards] == DIGESTS
        check(db)
        assert [db.outcome(f"move-{number}") for number in range(6)] == ["committed"] * 5 + [None]
        for space in db._shards:
            space.verify()


def test_it_opens_read_only_and_stays_as_it_is(old, tmp_path):
    before = {path: path.read_bytes() for path in old.rglob("space.db")}
    with of.connect(old, read_only=True) as db:
        assert [space.state_digest() for space in db._shards] == DIGESTS
        check(db)
        assert db.outcome("move-0") == "committed"
        with db.at(TOKEN) as past:
            assert dict(past.map("accounts")) == BEFORE
        changes = list(db.map("accounts").watch(start=TOKEN, timeout=0))
        assert len(changes) == 5 * 4 + 3
        made = [
            space.snapshot(tmp_path / f"{number}.snapshot").state_digest
            for number, space in enumerate(db._shards)
        ]
    assert made == DIGESTS
    assert {path: path.read_bytes() for path in old.rglob("space.db")} == before
    folds = space_folds(0, 2)
    assert restore_space(tmp_path / "0.snapshot", tmp_path / "new", folds).state_digest == DIGESTS[0]
    with closing(open_shard(tmp_path / "new", folds)) as space:
        assert space.applied > 0


def test_writing_brings_it_into_the_present_format(old):
    def formats():
        found = []
        for path in sorted(old.rglob("space.db")):
            con = apsw.Connection(str(path), vfs=checksums.VFS)
            tables = {name for (name,) in con.execute("SELECT name FROM sqlite_schema")}
            found.append((con.execute("PRAGMA user_version").get, "versions" in tables, "history" in tables))
            con.close()
        return found

    assert checksums.available()
    assert formats() == [(2, True, False)] * 2
    with of.connect(old, create=False) as db:
        check(db)
        db.map("m")["k"] = 1
        digests = [space.state_digest() for space in db._shards]
    assert formats() == [(FORMAT, False, True)] * 2
    with of.connect(old, create=False) as db:
        assert [space.state_digest() for space in db._shards] == digests
        check(db)
        with db.at(TOKEN) as past:
            assert dict(past.map("accounts")) == BEFORE


def test_its_log_folds_to_the_same_state_again(old):
    with of.connect(old, create=False) as db:
        checks = {check.name: check for check in check_space(db._shards, space_folds)}
        assert checks["state"].status == "ok" and "folded again" in checks["state"].found, checks["state"]
        assert {check.status for check in checks.values()} <= {"ok", "warn"}, checks


def test_its_tokens_and_its_past_are_read(old):
    with of.connect(old, session=TOKEN) as db, db.at(TOKEN) as past:
        assert dict(past.map("accounts")) == BEFORE
        assert list(past.stream("audit").read()) == []
        changes = [(change.key, change.kind) for change in db.map("accounts").watch(start=TOKEN, timeout=0)]
        assert len(changes) == 5 * 4 + 3
        assert changes[-3:].count(("late", "delete")) == 1


def test_it_is_written_to_as_before(old):
    with of.connect(old) as db:
        with db.transaction() as tx:
            accounts = tx.map("accounts")
            accounts["ann"] += 5
            accounts["eve"] -= 5
        assert db.map("accounts")["ann"] == 100
        db.run_transaction(lambda tx: tx.map("m").put("k", 1), request_id="new")
        assert db.outcome("new") == "committed"
        taken = []
        for _ in range(4):
            with db.queue("work").get(timeout=0) as message:
                taken.append(message.value["job"])
        assert taken == [2, 3, 4, 5]
        with db.stream("clicks").consumer("group") as consumer:
            rest = [record.value["n"] for _, record in zip(range(8), consumer, strict=False)]
        assert rest == list(range(4, 12))
        with db.lock("free") as lock:
            assert lock.fencing_token > 0


def test_it_is_backed_up_and_restored(old, tmp_path):
    with of.connect(old) as db:
        backup(db._shards, tmp_path / "b", blob_tables=("jobs/blob",))
    restore(tmp_path / "b", tmp_path / "new", space_folds, blob_tables=("jobs/blob",))
    with of.connect(tmp_path / "new", create=False) as db:
        check(db)
