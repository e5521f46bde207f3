"""Formats stay: what the last release has written is read, and bytes that were written once are written and read alike.

A difference here is no broken test but a changed format. See ``docs/formats.md`` for what that takes.
"""

import tarfile
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import get_args
from uuid import UUID

import apsw
import msgspec
import pytest

import onefold as of
from onefold.backup.backup import backup, restore
from onefold.codec import Op, Record, decode_record, encode_record
from onefold.compute.live.run_bytes import Origin, seal
from onefold.doctor.embedded import check_space
from onefold.fold import system
from onefold.folds import folds as space_folds
from onefold.log.sqlite.engine import entry_crc
from onefold.log.sqlite.file import APPLICATION_ID
from onefold.state.core import tokens
from onefold.state.encoding import keys, values
from onefold.state.fold import ops, outcomes, rows
from onefold.state.fold.live import rows as stored_live_rows
from onefold.state.fold.live.ops import LiveOp, RunId
from onefold.state.fold.locks.ops import Acquire
from onefold.state.fold.maps import ops as map_ops
from onefold.state.fold.ops import Decide, Forget, Resolve
from onefold.state.fold.queues import rows as queue_rows
from onefold.state.fold.queues.ops import Ack, Enqueue, Message, Take
from onefold.state.fold.streams import rows as stream_rows
from onefold.state.fold.streams.ops import Append, MakeStream
from onefold.store.replica import next_digest
from support import live_rows

ASSETS = Path(__file__).parents[2] / "assets"

# -- a space that the release 0.1 made (commit f989cd4): two jobs, record format 1, file format 1


@pytest.fixture
def old(tmp_path):
    with tarfile.open(ASSETS / "space-0.1" / "space.tar.gz") as archive:
        archive.extractall(tmp_path / "space", filter="data")
    return tmp_path / "space"


WORDS = [
    ("1", 1, 1), ("2", 1, 1), ("3", 1, 1), ("brown", 3, 5), ("dog", 3, 3), ("fox", 3, 3), ("lazy", 3, 4), ("quick", 3, 5),
    ("the", 6, 3),
]  # fmt: skip
STATE_DIGEST = "c59aaeb5d3af30d2c14bbb60197cfdfc"
"""As the release itself computed it."""


def read(db):
    assert db.table("word_counts").to_polars().sort("word").rows() == WORDS
    assert db.table("sizes").to_polars().rows() == [(99, 19.0, 2)]


def test_a_space_of_the_last_release_opens_and_reads_the_same(old):
    with of.connect(old, create=False) as db:
        assert db._shard.state_digest() == STATE_DIGEST
        assert db._shard.applied == 11
        read(db)
        assert [run.state for run in db.runs()] == ["done", "done"]
        db._shard.verify()


def test_it_opens_read_only_too(old):
    with of.connect(old, read_only=True) as db:
        read(db)
        assert dict(db.map("m")) == {}


def test_new_state_works_in_it(old, tmp_path):
    with of.connect(old) as db:
        before = db.session.token
        db.map("m")["k"] = 1
        db.queue("q").put(1)
        db.stream("s").append(1)
        with db.transaction() as tx:
            tx.map("m")["l"] = tx.map("m")["k"] + 1
        with db.lock("l"):
            pass
    with of.connect(old) as db:
        assert dict(db.map("m")) == {"k": 1, "l": 2}
        read(db)
        db._shard.verify()
        with db.at(before) as past:
            assert dict(past.map("m")) == {}
            read(past)
        checks = {check.name: check for check in check_space(db._shards, space_folds)}
        assert {check.status for check in checks.values()} <= {"ok", "warn"}, checks
        assert checks["state"].status == "ok"  # the old records, folded again by this program
        assert "no checksums" in checks["file"].found
        backup(db._shards, tmp_path / "b", blob_tables=("jobs/blob",))
    restore(tmp_path / "b", tmp_path / "new", space_folds, blob_tables=("jobs/blob",))
    with of.connect(tmp_path / "new") as db:
        assert dict(db.map("m")) == {"k": 1, "l": 2}
        read(db)


def test_a_job_of_it_goes_on(old, tmp_path):
    for number in (1, 2, 3):
        (tmp_path / f"{number}.txt").write_text("the end\n")
    with of.connect(old) as db:
        job = (
            db.read_text(str(tmp_path / "[123].txt"))
            .group_by("line")
            .agg(n=of.agg.count())
            .into("word_counts", mode="replace")
        )
        job.run(progress=False, workers=1)
        assert db.table("word_counts").to_polars().rows() == [("the end", 3)]


def test_a_file_of_a_newer_format_is_refused(old):
    con = apsw.Connection(str(old / "space.db"))
    assert con.execute("PRAGMA application_id").get == APPLICATION_ID
    con.execute("PRAGMA user_version=99")
    con.close()
    with pytest.raises(of.SpaceError, match=r"format 99.*Upgrade"):
        of.connect(old)


# -- golden bytes

VALUE = {
    "text": "ü",
    "numbers": [0, -1, 255, 1 << 62, 1 << 70, -(1 << 70), 1.5, -0.0, float("inf")],
    "rest": [None, True, b"\x00\xff", datetime(2024, 5, 1, 12, 30, 0, 5), datetime(2024, 5, 1, tzinfo=UTC)],
    "more": [date(2024, 5, 1), time(1, 2, 3, 4), timedelta(-1, 2, 3), Decimal("1.10"), UUID(int=7)],
}
KEYS = [
    "a", "", "a\0b", "ü", b"", b"\x00\xff", 0, 1, -1, 255, 256, -256, 1 << 63, -(1 << 63), 1 << 64, -(1 << 64), True, False, None,
    ("eu", 7), ("a", None, (1, None, ("x",)), b"y"), ((1, 2),),
]  # fmt: skip
PUT = map_ops.Put("m", ((b"\x02k\x00", b"\xa1v"),), 5000)
COMMIT = ops.Commit((ops.Read("m", b"\x02k\x00", 3, 1),), (ops.Span("m", b"", b"\xff", 9),), (PUT,))
STATE_OPS = {
    "commit": COMMIT,
    "delete": ops.Commit(
        (), (), (map_ops.Delete("m", (b"k",)), map_ops.Clear("m", b"", b"\xff")), last_try=False
    ),
    "increment": ops.Commit((), (), (map_ops.Increment("m", b"k", b"\x01", 7),)),
    "enqueue": ops.Commit(
        (), (), (Enqueue("q", (Message(b"v"), Message(b"w", b"k", 5, ("p", 1, 2), ("e",)))),)
    ),
    "append": ops.Commit((), (), (Append("s", 3, 1, b"frame"),)),
    "take": Take("q", "m_1", 30000, 5),
    "ack": Ack("q", 1, 2),
    "make stream": MakeStream("s", 8, 1000),
    "acquire": Acquire("l", "m_1", "h", 30000, True),
    "decide": Decide("t", True),
    "resolve": Resolve("t", True),
    "forget": Forget("t"),
    **live_rows.OPS,
}
RECORD = Record("c0-00", 1, 1_700_000_000_000, (Op("state", b"body"), Op("jobs", b"x", "request")))
TOKEN = tokens.Token("i_1", {0: 5, 2: 7}, {2: (1, b"k")})


def encoded():
    """Every format, by name."""
    found = {
        "record": encode_record(RECORD),
        "digest": next_digest(next_digest(b"", b"one"), b"two"),
        "entry crc": entry_crc(7, 1_700_000_000_000, b"data").to_bytes(4, "big"),
        "token": tokens.encode_token(TOKEN).encode(),
        "value": values.encode_value(VALUE),
        "row": rows.row_head(5, 3, None) + b"v",
        "row that ends": rows.row_head(5, 3, 1_700_000_000_000) + b"v",
        "due": rows.due_key(1_700_000_000_000, "ü", b"k"),
        "queue due": queue_rows.due_key(1_700_000_000_000, "q", 9),
        "queue message": queue_rows.encode(queue_rows.Body(b"v", b"k", 5, ("p", 1, 2), ("e",))),
        "queue flight": queue_rows.encode(
            queue_rows.Flight(3, "m_1", 30000, 5, queue_rows.Tries(1, ("e",)), None, None)
        ),
        "queue letter": queue_rows.encode(queue_rows.Letter(b"v", None, queue_rows.Tries(5))),
        "queue counts": queue_rows.Counts(None).encode(),
        "stream head": stream_rows.write_head(stream_rows.Head(1, 2, 3, 4, 5, 6, 7)),
        "stream hold key": stream_rows.hold_key(stream_rows.Holder("s", 1, "j", 2, "p")),
        "stream hold": stream_rows.write_hold(stream_rows.Hold(700, 86_400_000)),
        "stream segment": stream_rows.new_segment(
            stream_rows.write_run(1_700_000_000_000, 2, 0, b"frame"), 2, 1_700_000_000_000
        ),
        "committed": outcomes.encode_outcome(outcomes.Committed(5, 1, (None, 3))),
        "rejected": outcomes.encode_outcome(outcomes.Rejected("conflict", "m", b"k"), passing=True),
    }
    for name, op in (
        ("register", system.Register(("jobs", "state"))),
        ("fold version", system.RaiseFoldVersion(2)),
        ("expire clients", system.ExpireClients(9)),
        ("trim", system.Trim(9)),
        ("tick", system.Tick()),
    ):
        found[f"system {name}"] = system.system_op(op).body
    for name, op in STATE_OPS.items():
        found[f"op {name}"] = ops.state_op(op).body
    for name, row in live_rows.ROWS.items():
        found[name] = msgspec.msgpack.encode(row)
    found["live run key"] = stored_live_rows.run_key(b"part", RunId(7, 1, 8, 65536))
    found["live run bytes"] = seal(Origin("j", 2, "p", 3, 4, 5, 6, 7), b"frame")
    for key in KEYS:
        found[f"key {key!a}"] = keys.encode_key(key)
    return found


LONGER = ", longer"
"""What got more fields at its end since it was written first. Its earlier bytes are still read."""


def golden():
    lines = (ASSETS / "formats.txt").read_text().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
    return {name: bytes.fromhex(data) for name, data in pairs}


def test_what_is_written_has_the_bytes_that_it_always_had():
    now, then = encoded(), golden()
    assert now.keys() == {name.removesuffix(LONGER) for name in then}
    changed = [name for name, data in now.items() if data != then.get(name + LONGER, then[name])]
    assert not changed, f"the format of {changed} has changed; see docs/formats.md"


def test_every_operation_of_live_jobs_is_held_to_its_bytes():
    assert set(get_args(LiveOp)) <= {type(op) for op in live_rows.OPS.values()}


def test_bytes_that_were_written_once_mean_the_same():
    then = golden()
    assert decode_record(then["record"]) == RECORD
    assert tokens.decode_token(then["token"].decode()) == TOKEN
    assert values.decode_value(then["value"]) == VALUE
    assert rows.read_row(then["row"]) == rows.Row(5, 3, None, b"v")
    assert rows.read_row(then["row that ends"]) == rows.Row(5, 3, 1_700_000_000_000, b"v")
    assert rows.read_due_key(then["due"]) == (1_700_000_000_000, "ü", b"k")
    assert queue_rows.read_due_key(then["queue due"]) == (1_700_000_000_000, "q", 9)
    for name, op in STATE_OPS.items():
        assert ops.decode_op(then[f"op {name}"]) == op
    for key in KEYS:
        data = then[f"key {key!a}"]
        decoded = keys.decode_key(data)
        assert decoded == key and type(decoded) is type(key)
    assert outcomes.decode_outcome(then["committed"]) == outcomes.Committed(5, 1, (None, 3))


def test_a_row_of_a_newer_program_with_more_fields_is_read():
    """Structs that are arrays may grow at their end: that is how a format is added to."""
    assert (
        ops.decode_op(msgspec.msgpack.encode([*msgspec.msgpack.decode(golden()["op ack"]), "new"]))
        == STATE_OPS["ack"]
    )
