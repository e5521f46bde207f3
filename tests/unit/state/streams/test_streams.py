"""Streams through their handles, in both engines and over several shards: making them, appending, types, transactions."""

from __future__ import annotations

import random
import threading
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count

import msgspec
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import onefold as of
from onefold import config
from onefold.codec import crc32c
from onefold.state.encoding.keys import encode_key
from onefold.state.fold.streams import rows as stream_rows
from support.stream_places import by_partition, rows, streams_db  # noqa: F401

# -- being made


def test_a_stream_that_was_not_made_reads_as_empty(db):
    s = db.stream("clicks")
    assert (list(s.read()), len(s), s.positions(), s.partitions, s.retention) == ([], 0, {0: (0, 0)}, 1, None)
    assert list(s.read_frames()) == [] and s.to_polars().height == 0
    assert db.stream("clicks", partitions=7).partitions == 7


def test_the_number_of_partitions_is_fixed_when_it_is_made(db):
    db.stream("clicks", partitions=4).append(1)
    assert db.stream("clicks").partitions == 4
    assert db.stream("clicks", partitions=4).partitions == 4
    other = db.stream("clicks", partitions=8)
    for use in (lambda: other.append(1), lambda: list(other.read()), lambda: other.partitions, other.create):
        with pytest.raises(of.InvalidArgument, match=r"has 4 partitions.*partitions=8"):
            use()


def test_create_makes_it_with_one_partition_by_default(db):
    db.stream("clicks").create()
    with pytest.raises(of.InvalidArgument, match="has 1 partitions"):
        db.stream("clicks", partitions=2).create()


@pytest.mark.parametrize("partitions", [0, -1, config.STREAM_PARTITIONS_MAX + 1, 1.5, True, "4"])
def test_a_senseless_number_of_partitions_is_told(db, partitions):
    with pytest.raises(of.InvalidArgument, match="partitions must be"):
        db.stream("clicks", partitions=partitions)


@pytest.mark.parametrize("name", ["", None, 5, "x" * 201, "\ud800"])
def test_a_senseless_name_is_told(db, name):
    with pytest.raises(of.InvalidArgument, match="name of a stream"):
        db.stream(name)


def test_a_stream_survives_reopening(tmp_path):
    with of.connect(tmp_path / "space", shards=2) as db:
        db.stream("clicks", partitions=3, retention="1h").append_many(list(range(20)))
        before = rows(db.stream("clicks").read())
    with of.connect(tmp_path / "space") as db:
        s = db.stream("clicks")
        assert (s.partitions, s.retention, len(s)) == (3, 3600.0, 20)
        assert rows(s.read()) == before
        s.append("more")
        assert len(s) == 21


# -- appending and reading


APPENDS = st.lists(
    st.tuples(
        st.sampled_from(["single", "list", "frame"]),
        st.lists(st.tuples(st.sampled_from(["a", "b", "c", "dd", None]), st.integers(-5, 5)), max_size=6),
    ),
    max_size=8,
)


NUMBERS = count()


@pytest.fixture(scope="module")
def of_shards(tmp_path_factory):
    """By number of shards: a space that all examples share. Each has a stream of its own."""
    with ExitStack() as opened:
        yield {
            shards: opened.enter_context(of.connect(tmp_path_factory.mktemp("space"), shards=shards))
            for shards in (None, 3)
        }


@settings(max_examples=40, deadline=None)
@given(appends=APPENDS, data=st.data())
@pytest.mark.parametrize("shards", [None, 3])
def test_what_is_read_is_what_was_appended_in_the_order_of_each_key(of_shards, shards, appends, data):
    db = of_shards[shards]
    s = db.stream(f"s{next(NUMBERS)}", partitions=3)
    expected = {}
    for how, batch in appends:
        records = [{"k": key, "n": number} for key, number in batch]
        if how == "single":
            for record in records:
                s.append(record, key=record["k"])
        elif how == "list":
            s.append_many(records, key="k")
        else:
            s.append_many(pl.DataFrame(records, schema={"k": pl.String, "n": pl.Int64}), key="k")
        for record in records:
            expected.setdefault(record["k"], []).append(record)
    records = list(s.read())
    assert [record.time_ms for record in records] == sorted(record.time_ms for record in records)
    found = {}
    for record in records:
        assert record.key == record.value["k"]
        found.setdefault(record.key, []).append(record.value)
        if record.key is not None:
            assert record.partition == crc32c(encode_key(record.key)) % 3
    loose = sorted(record["n"] for record in expected.pop(None, []))
    assert sorted(record["n"] for record in found.pop(None, [])) == loose
    assert found == expected
    for partition, part in by_partition(records).items():
        assert [offset for offset, _, _ in part] == list(range(len(part)))
        assert s.positions()[partition] == (0, len(part))
    frame = s.to_polars()
    assert frame.height == len(records) == len(s)
    if records:
        ordered = sorted(records, key=lambda record: (record.partition, record.offset))
        got = frame.select("k", "n", "_partition", "_offset", "_time", "_key").rows()
        assert got == [(r.value["k"], r.value["n"], r.partition, r.offset, r.time, r.key) for r in ordered]
        place = data.draw(st.integers(0, len(records) - 1))
        rest = list(s.read(records[place].position))
        assert rows(rest) == rows(records[place + 1 :])
        assert rows(s.read(str(records[place].position))) == rows(rest)


def test_values_are_what_maps_hold_and_private_copies(db):
    s = db.stream("s")
    values = [None, True, 5, 1.5, "x", b"y", [1, [2]], {"a": {"b": 1}}, datetime(2024, 1, 1, tzinfo=UTC)]
    for value in values:
        s.append(value)
    assert [record.value for record in s.read()] == values
    assert [record.offset for record in s.read()] == list(range(len(values)))


def test_keys_are_what_map_keys_are(db):
    s = db.stream("s", partitions=5)
    keys = ["text", 7, -3, b"raw", True, ("eu", 5)]
    for key in keys:
        position = s.append({"k": 1}, key=key)
        assert list(position.offsets) == [crc32c(encode_key(key)) % 5]
    assert {record.key for record in s.read()} == set(keys)
    assert set(s.to_polars()["_key"]) == {"text", "7", "-3", "726177", "true", "('eu', 5)"}


@pytest.mark.parametrize(
    "column",
    [
        pl.Series("k", ["a", "b", "a", None]),
        pl.Series("k", [1, -2, 1 << 40, None], dtype=pl.Int64),
        pl.Series("k", [1, 2, 1 << 63, None], dtype=pl.UInt64),
        pl.Series("k", [True, False, True, None]),
        pl.Series("k", [b"a", b"\xff", b"", None]),
        pl.Series("k", ["a", "b", "a", None], dtype=pl.Categorical),
        pl.Series("k", ["a", "b", "a", None], dtype=pl.Enum(["a", "b"])),
    ],
)
def test_a_key_has_the_same_partition_in_a_frame_as_alone(db, column):
    s = db.stream("s", partitions=7)
    s.append_many(pl.DataFrame([column, pl.Series("n", range(4))]), key="k")
    alone = db.stream("alone", partitions=7)
    for record in s.read():
        if record.key is not None:
            assert list(alone.append(1, key=record.key).offsets) == [record.partition]
    assert sorted(record.value["n"] for record in s.read()) == [0, 1, 2, 3]
    assert s.to_polars()["_key"].null_count() == 1


def test_records_without_key_go_to_every_partition(db):
    s = db.stream("s", partitions=3)
    for number in range(100):
        s.append(number)
    assert all(end > 0 for _, end in s.positions().values())


def test_a_pyarrow_table_is_taken_and_a_lazy_frame_is_refused(db):
    s = db.stream("s", partitions=2)
    s.append_many(pa.table({"k": ["a", "b"], "n": [1, 2]}), key="k")
    assert sorted(record.value["n"] for record in s.read()) == [1, 2]
    with pytest.raises(of.InvalidArgument, match="collect"):
        s.append_many(pl.LazyFrame({"n": [1]}))


def test_rows_of_a_frame_keep_their_types(db):
    s = db.stream("s")
    frame = pl.DataFrame(
        {
            "t": [datetime(2024, 1, 1, 12, tzinfo=UTC)],
            "l": [[1, 2]],
            "s": [{"x": 1, "y": "z"}],
            "d": [timedelta(seconds=5)],
        }
    )
    s.append_many(frame)
    assert next(s.read()).value == frame.to_dicts()[0]
    assert s.to_polars().select(frame.columns).equals(frame)


@pytest.mark.moving(3)
def test_a_million_rows_travel_as_frames(db, monkeypatch):
    s = db.stream("s", partitions=4)
    count = 1_000_000
    frame = pl.DataFrame({"k": pl.int_range(count, eager=True) % 1000, "v": pl.int_range(count, eager=True)})

    def refuse(*_args, **_named):
        raise AssertionError("a row was made into a Python object")

    with monkeypatch.context() as patch:
        for name in ("iter_rows", "rows", "to_dicts", "row", "rows_by_key"):
            patch.setattr(pl.DataFrame, name, refuse)
        s.append_many(frame, key="k")
        parts = list(s.read_frames())
        with pytest.raises(AssertionError, match="Python object"):
            next(s.read())  # the plant: reading single records does make objects
    assert sum(part.height for part in parts) == count
    assert len(parts) < 40
    whole = pl.concat(parts)
    assert whole["v"].sum() == frame["v"].sum()
    assert whole.group_by("k").agg(pl.col("_partition").n_unique())["_partition"].max() == 1
    for part in whole.partition_by("_partition"):
        assert part["_offset"].equals(pl.int_range(part.height, eager=True).alias("_offset"))
        assert part["v"].is_sorted()


def test_large_frames_are_cut_into_pieces(db, monkeypatch):
    monkeypatch.setattr(config, "STREAM_FRAME_BYTES_MAX", 10_000)
    s = db.stream("s")
    noise = [random.Random(number).randbytes(400).hex() for number in range(100)]
    s.append_many(pl.DataFrame({"text": noise}))
    s.append_many([{"text": text} for text in noise])
    assert [record.value["text"] for record in s.read()] == noise + noise
    frames = [frame for frame in s.read_frames() if frame.height]
    assert len(frames) > 8


def test_an_append_of_nothing_writes_nothing(db):
    s = db.stream("s")
    s.append(1)
    for nothing in ([], pl.DataFrame({"n": []})):
        position = s.append_many(nothing)
        assert list(s.read(position)) == []
    assert len(s) == 1


# -- request ids


def test_a_request_id_appends_once(db):
    s = db.stream("s", partitions=8)
    first = s.append({"n": 1}, request_id="r1")
    assert s.append({"n": 1}, request_id="r1") == first
    assert len(s) == 1
    frame = pl.DataFrame({"k": ["a", "b", "c"], "n": [1, 2, 3]})
    s.append_many(frame, key="k", request_id="r2")
    s.append_many(frame, key="k", request_id="r2")
    s.append_many([1, 2, 3], request_id="r3")
    s.append_many([1, 2, 3], request_id="r3")
    assert len(s) == 7
    for wrong in ("", 5):
        with pytest.raises(of.InvalidArgument, match="request_id"):
            s.append(1, request_id=wrong)


# -- retention


def test_retention_reaches_every_shard(db):
    s = db.stream("s", partitions=6, retention="1h")
    s.append_many([{"k": n} for n in range(60)], key="k")
    db.stream("s").set_retention("2h")
    db.stream("s").append(1)
    for shard in s.layout.by_shard(range(6)):
        with s.client.shards[shard].view() as view:
            row = stream_rows.read_stream(view.get(stream_rows.STREAMS, b"s"))
        assert (row.partitions, row.retention_ms, row.version) == (6, 7_200_000, 2)
    for wrong in (0, "-1s", "soon", float("inf")):
        with pytest.raises(of.InvalidArgument, match="retention"):
            s.set_retention(wrong)


# -- types


class Click(msgspec.Struct):
    user: str
    n: int = 0


@dataclass
class Visit:
    user: str
    at: datetime


def test_a_typed_stream_gives_its_type_back(db):
    s = db.stream("s", type=Click)
    s.append(Click("a", 1), key="a")
    s.append_many([Click("b", 2), Click("c")], key="user")
    s.append_many(pl.DataFrame({"user": ["d"], "n": [4]}), key="user")
    assert [record.value for record in s.read()] == [Click("a", 1), Click("b", 2), Click("c"), Click("d", 4)]
    assert [record.key for record in s.read()] == ["a", "b", "c", "d"]
    assert s.to_polars()["user"].to_list() == ["a", "b", "c", "d"]
    v = db.stream("v", type=Visit)
    visit = Visit("a", datetime(2024, 1, 1, tzinfo=UTC))
    v.append(visit)
    v.append_many(pl.DataFrame({"user": ["a"], "at": [visit.at]}))
    assert [record.value for record in v.read()] == [visit, visit]


def test_values_that_the_type_refuses_are_not_appended(db):
    s = db.stream("s", type=Click)
    with pytest.raises(of.InvalidValue):
        s.append({"user": "a"})
    with pytest.raises(of.InvalidValue):
        s.append(Click("a", "many"))
    with pytest.raises(of.InvalidValue):
        s.append_many([Click("a"), Click(5)])
    with pytest.raises(of.InvalidValue, match="row 1"):
        s.append_many(pl.DataFrame({"user": ["a", None]}))
    assert len(s) == 0


# -- bad input


def test_bad_records_are_told_and_nothing_is_appended(db):
    s = db.stream("s")
    with pytest.raises(of.InvalidValue):
        s.append({1, 2})
    with pytest.raises(of.InvalidKey):
        s.append(1, key=1.5)
    with pytest.raises(of.InvalidKey):
        s.append_many(pl.DataFrame({"k": [1.5]}), key="k")
    with pytest.raises(of.InvalidArgument, match="no column 'user'"):
        s.append_many(pl.DataFrame({"k": [1]}), key="user")
    with pytest.raises(of.InvalidArgument, match="record 1 has no field 'k'"):
        s.append_many([{"k": 1}, {"n": 1}], key="k")
    with pytest.raises(of.InvalidArgument, match="key must be the name"):
        s.append_many([{"k": 1}], key=0)
    with pytest.raises(of.InvalidArgument, match="_offset"):
        s.append_many(pl.DataFrame({"_offset": [1]}))
    with pytest.raises(of.InvalidArgument, match="no columns"):
        s.append_many(pl.DataFrame())
    with pytest.raises(of.InvalidValue, match="Python objects"):
        s.append_many(pl.DataFrame({"o": pl.Series([object()], dtype=pl.Object)}))
    for wrong in ("text", b"bytes", {"k": 1}, 5, None):
        with pytest.raises(of.InvalidArgument, match="append_many takes"):
            s.append_many(wrong)
    with pytest.raises(of.TooLarge) as caught:
        s.append(b"x" * (config.VALUE_BYTES_MAX + 1))
    assert caught.value.definite
    with pytest.raises(of.TooLarge, match="several calls"):
        s.append_many([b"x" * (config.VALUE_BYTES_MAX - 100)] * 40)
    with pytest.raises(of.InvalidArgument, match="timeout"):
        s.read(timeout="soon")
    with pytest.raises(of.UnsupportedConsistency):
        s.read(consistency="best")
    assert len(s) == 0


# -- transactions


def test_a_transaction_appends_all_or_nothing(db):
    s = db.stream("audit", partitions=4)
    s.create()
    with db.transaction() as tx:
        tx.map("m")["k"] = 1
        for number in range(20):
            tx.stream("audit").append({"n": number}, key=number)
        tx.stream(s).append_many(pl.DataFrame({"n": range(20, 30)}), key="n")
    assert sorted(record.value["n"] for record in s.read()) == list(range(30))
    with pytest.raises(ZeroDivisionError), db.transaction() as tx:  # noqa: PT012
        tx.stream("audit").append(1)
        raise ZeroDivisionError
    with pytest.raises(of.Conflict), db.transaction() as tx:  # noqa: PT012
        tx.map("m")["k"] = tx.map("m")["k"] + 1
        tx.stream("audit").append(1)
        done = threading.Thread(target=lambda: db.map("m").put("k", 7))
        done.start()
        done.join()
    assert len(s) == 30


def test_plain_handles_are_refused_in_a_transactions_block(db):
    s = db.stream("s")
    s.append(1)
    for use in (lambda: s.append(1), lambda: s.append_many([1]), s.read, s.to_polars, s.positions):
        with pytest.raises(of.TransactionError, match=r"tx\.stream"), db.transaction():
            use()


def test_two_threads_that_append_lose_nothing(db):
    s = db.stream("s", partitions=2)

    def write(start):
        for number in range(start, start + 100):
            s.append(number, key=number % 5)

    threads = [threading.Thread(target=write, args=(1000 * at,)) for at in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [record.value for record in s.read()]
    assert sorted(found) == sorted(1000 * at + n for at in range(4) for n in range(100))
    for at in range(4):
        for key in range(5):
            mine = [value for value in found if value // 1000 == at and value % 5 == key]
            assert mine == sorted(mine)
