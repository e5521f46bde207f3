"""Readers of streams: where they start, what they follow, and what they cannot read."""

from __future__ import annotations

import threading

import polars as pl
import pytest

import onefold as of
from onefold import config
from onefold.codec import crc32c
from onefold.state.encoding.keys import encode_key
from onefold.state.encoding.positions import Position
from onefold.state.fold.streams.ops import Append
from support.stream_places import by_partition, rows, streams_db  # noqa: F401


def test_a_page_boundary_loses_and_repeats_nothing(db, monkeypatch):
    monkeypatch.setattr(config, "STREAM_PAGE_BYTES", 300)
    monkeypatch.setattr(config, "STREAM_MERGE_BYTES_MAX", 100)
    s = db.stream("s", partitions=2)
    for number in range(120):
        s.append(number, key=number % 7)
    for start in (0, 1, 17):
        reader = s.read()
        for _ in range(start):
            next(reader)
        assert sorted(record.value for record in s.read(reader.position)) == sorted(
            record.value for record in reader
        )
    assert sorted(record.value for record in s.read()) == list(range(120))


# -- starts


def test_reading_starts_with_the_record_of_a_position(db):
    s = db.stream("s", partitions=3)
    positions = [s.append(number, key=number) for number in range(30)]
    for number in (0, 7, 29):
        found = list(s.read(positions[number]))
        mine = crc32c(encode_key(number)) % 3
        assert number in [record.value for record in found]
        assert [r.value for r in found if r.partition == mine] == [
            n for n in range(number, 30) if crc32c(encode_key(n)) % 3 == mine
        ]
        assert {record.value for record in found} >= set(range(number, 30))
        assert rows(s.read(str(positions[number]))) == rows(found)


def test_a_position_of_many_starts_with_the_first_of_each_partition(db):
    s = db.stream("s", partitions=3)
    s.append_many([{"k": n, "old": True} for n in range(20)], key="k")
    position = s.append_many(pl.DataFrame({"k": range(20), "old": [False] * 20}), key="k")
    mine = [record for record in s.read(position) if record.partition in position.offsets]
    assert sorted(record.value["k"] for record in mine) == list(range(20))
    assert not any(record.value["old"] for record in mine)


def test_latest_is_what_comes_after_the_call(db):
    s = db.stream("s", partitions=2)
    s.append("before")
    reader = s.read("latest", follow=True, timeout=0.2)
    s.append("after")
    assert [record.value for record in reader] == ["after"]
    assert list(s.read("latest")) == []


def test_a_position_text_parses_to_the_same_position():
    for position in (
        Position(5, {0: 7, 3: 1 << 50}, 1_700_000_000_000),
        Position(1 << 31, {}, None),
        Position(0, {0: 0}, 0),
    ):
        assert Position.of(str(position), position._tag, 4) == position
        assert hash(Position.of(str(position), position._tag, 4)) == hash(position)


@pytest.mark.parametrize(
    "start", ["first", "", "s1", "s1.x", "s1.0..-", "s1.0.._1-2", "s2.0..0-0", 5, None, b"earliest", [0]]
)
def test_an_unknown_start_is_told(db, start):
    s = db.stream("s")
    s.append(1)
    with pytest.raises(of.InvalidArgument):
        s.read(start)


def test_positions_of_other_streams_and_beyond_the_end_are_refused(db):
    s, other = db.stream("s", partitions=2), db.stream("other", partitions=2)
    position = s.append(1)
    other.append(1)
    with pytest.raises(of.InvalidArgument, match="another stream"):
        other.read(position)
    tag = position._tag
    with pytest.raises(of.InvalidArgument, match="beyond the end"):
        s.read(Position(tag, {0: 99}))
    with pytest.raises(of.InvalidArgument, match="partitions that this stream does not have"):
        s.read(Position(tag, {7: 0}))


def test_chosen_partitions_are_read_alone(db):
    s = db.stream("s", partitions=3)
    for number in range(30):
        s.append(number, key=number)
    whole = by_partition(s.read())
    for chosen in (1, [0, 2], (2,)):
        wanted = [chosen] if isinstance(chosen, int) else chosen
        assert by_partition(s.read(partitions=chosen)) == {p: whole[p] for p in wanted}
    assert set(s.to_polars(partitions=1)["_partition"]) == {1}
    for wrong in (-1, [0, -1], "0", 1.5, [None], True):
        with pytest.raises(of.InvalidArgument, match="partition"):
            s.read(partitions=wrong)
    with pytest.raises(of.InvalidArgument, match="partition 3 does not exist"):
        s.read(partitions=3)


# -- following


def test_a_reader_that_follows_gives_what_others_append(db):
    s = db.stream("s", partitions=3)
    s.append_many(list(range(10)))
    reader = s.read(follow=True)
    found = [next(reader).value for _ in range(10)]

    def write():
        for number in range(10, 60):
            db.stream("s").append(number, key=number)
        db.stream("s").append_many(pl.DataFrame({"n": range(60, 80)}), key="n")

    writer = threading.Thread(target=write)
    writer.start()
    while len(found) < 80:
        value = next(reader).value
        found.append(value["n"] if isinstance(value, dict) else value)
    writer.join()
    assert sorted(found) == list(range(80))
    assert list(s.read(reader.position)) == []


def test_following_ends_after_silence_only(db):
    s = db.stream("s")
    s.append(1)
    reader = s.read(follow=True, timeout=0.05)
    assert [record.value for record in reader] == [1]
    s.append(2)
    assert [record.value for record in reader] == [2]


def test_a_reader_follows_a_stream_that_is_not_made_yet(db):
    for start in ("earliest", "latest"):
        name = f"s-{start}"
        reader = db.stream(name).read(start, follow=True)
        db.stream(name, partitions=2).append("first")
        assert next(reader).value == "first"


def test_reading_page_by_page_goes_on_while_others_append(db, monkeypatch):
    monkeypatch.setattr(config, "STREAM_PAGE_BYTES", 200)
    s = db.stream("s", partitions=2)
    for number in range(50):
        s.append(number, key=number)
    found = []
    for record in s.read():
        s.append(1000)
        found.append(record.value)
    assert sorted(found) == list(range(50))
    assert len(s) == 100


# -- what cannot be read


def test_columns_that_do_not_fit_are_told_by_frames_and_read_by_records(db):
    s = db.stream("s")
    s.append({"a": 1})
    s.append({"a": "text"})
    s.append({"_offset": 5})
    assert len(list(s.read())) == 3
    with pytest.raises(of.InvalidValue, match="Use read"):
        s.to_polars()


def test_a_batch_with_fewer_records_than_announced_is_not_read_as_if_whole(db):
    s = db.stream("s")
    s.append(1)
    client = s.client
    shard = s.layout.shard(0)
    frame = _append(client, 2).frame
    client.commit(shard, (Append("s", 0, 5, frame),))
    reader = s.read()
    assert next(reader).value == 1
    with pytest.raises(of.InvalidValue, match="2 records where 5"):
        next(reader)
    client.commit(shard, (Append("s", 0, 1, frame, 77),))
    with pytest.raises(of.InvalidValue, match="newer program"):
        list(s.read(Position(s.layout.tag, {0: 6})))


def _append(client, count):
    from onefold.state.streams.appending import Appending, StreamCodec

    (write,) = Appending(client, "s", 1, StreamCodec(None), None).many(list(range(count)), None)
    return write
