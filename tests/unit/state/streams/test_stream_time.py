"""Streams in time: a moment is a place to read from, and what is older than the retention goes and is told."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

import onefold as of
from onefold import config
from onefold.env import SeededEnv
from onefold.log.memory import MemoryLog
from onefold.shard.memory import MemoryShard
from onefold.state.core.client import StateClient
from onefold.state.fold.machine import StateFold
from onefold.state.streams.stream import Stream


@pytest.fixture
def timed():
    """A client whose clock moves when told."""
    env = SeededEnv(3)
    client = StateClient([MemoryShard(MemoryLog(env=env), [StateFold()], env)])
    yield client, env
    client.close()


def test_a_datetime_starts_at_the_first_record_of_that_time_or_later(timed):
    client, env = timed
    s = Stream(client, "s", partitions=2)
    times = []
    for number in range(60):
        s.append(number, key=number)
        times.append(env.wall_ms())
        env.advance(0.3)
    for number in (0, 1, 30, 59):
        when = datetime.fromtimestamp(times[number] / 1000, UTC)
        assert [record.value for record in s.read(when)] == list(range(number, 60))
        assert [record.value for record in s.read(when + timedelta(microseconds=1))] == list(
            range(number + 1, 60)
        )
    assert list(s.read(datetime(2100, 1, 1, tzinfo=UTC))) == []
    first = next(s.read())
    assert first.time == datetime.fromtimestamp(times[0] / 1000, UTC)
    naive = datetime.fromtimestamp(times[30] / 1000)  # local time, as for db.at
    assert [record.value for record in s.read(naive)] == list(range(30, 60))
    assert list(s.read(datetime.max)) == [] and len(list(s.read(datetime.min))) == 60


def test_retention_removes_and_old_positions_are_too_old(timed):
    client, env = timed
    s = Stream(client, "s", retention="1m")
    position = s.append("old")
    env.advance(61)
    s.append("new")
    assert [record.value for record in s.read()] == ["new"]
    assert s.positions() == {0: (1, 2)} and len(s) == 1
    with pytest.raises(of.TooOld, match="first record is 1"):
        s.read(position)
    with pytest.raises(of.TooOld, match="first record is 1"):
        s.read_frames(position)
    assert next(s.read()).offset == 1


def test_whoever_reads_lets_go_what_is_past_in_a_stream_without_appends(timed):
    client, env = timed
    s = Stream(client, "s", partitions=3, retention="1m")
    for number in range(20):
        s.append(number, key=number)
    assert len(list(s.read())) == 20
    env.advance(59)
    assert len(list(s.read())) == 20
    env.advance(2)
    assert list(s.read()) == [] and len(s) == 0
    assert sum(first for first, _ in s.positions().values()) == 20


def test_a_space_opened_for_reading_only_shows_what_is_still_there(tmp_path):
    with of.connect(tmp_path / "space") as db:
        db.stream("s", retention=0.001).append(1)
    with of.connect(tmp_path / "space", read_only=True) as db:
        s = db.stream("s")
        assert [record.value for record in s.read()] == [1]
        with pytest.raises(of.SpaceError):
            s.append(2)
        with pytest.raises(of.SpaceError):
            s.consumer("g")
    with of.connect(tmp_path / "space") as db:
        assert list(db.stream("s").read()) == []


def test_a_reader_lets_go_all_that_is_past_however_many_records_that_takes(timed, monkeypatch):
    monkeypatch.setattr(config, "STREAM_RETIRE_SEGMENTS_MAX", 2)
    monkeypatch.setattr(config, "STREAM_MERGE_BYTES_MAX", 1)
    client, env = timed
    s = Stream(client, "s", retention="1m")
    for number in range(7):
        s.append(number)
    env.advance(61)
    assert list(s.read()) == []


def test_retention_can_be_changed_and_is_kept_by_the_stream(timed):
    client, env = timed
    Stream(client, "s", retention="1m").append(1)
    assert Stream(client, "s").retention == 60.0
    Stream(client, "s", retention="1h").append(2)
    assert Stream(client, "s").retention == 3600.0
    env.advance(600)
    assert len(list(Stream(client, "s").read())) == 2
    Stream(client, "s").set_retention(None)
    env.advance(1_000_000)
    assert len(list(Stream(client, "s").read())) == 2
    Stream(client, "s").set_retention(60)
    assert list(Stream(client, "s").read()) == []


def test_a_reader_that_falls_behind_the_retention_is_told(timed, monkeypatch):
    monkeypatch.setattr(config, "STREAM_PAGE_BYTES", 1)
    monkeypatch.setattr(config, "STREAM_MERGE_BYTES_MAX", 1)
    client, env = timed
    s = Stream(client, "s", retention="1m")
    for number in range(600):
        s.append(number)
    reader = s.read()
    assert next(reader).value == 0
    env.advance(61)
    s.append("new")
    with pytest.raises(of.TooOld):
        list(reader)
