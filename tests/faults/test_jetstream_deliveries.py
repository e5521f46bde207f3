"""What servers deliver to the JetStream engine is lost, doubled, late, changed, garbage: it reads each record once, in order."""

from __future__ import annotations

import random
import threading

import pytest

from kit.cluster.log_ground import SOON_S, Shard, linked, read_all, record, until, wait_for
from onefold.env import SYSTEM
from onefold.log.jetstream import tailer as keepers
from onefold.log.jetstream.tailer import Tailer
from onefold.shard.memory import MemoryShard
from onefold.testing.log_suite import followed
from support.engine_spaces import ground_of_three, space_on_ground  # noqa: F401

pytestmark = pytest.mark.faults


def test_lost_doubled_and_late_deliveries(space: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(7)
    late: list[tuple[bytes, bytes, bytes, bytes | None]] = []
    deliver = Tailer._on_delivery

    def disturbed(self: Tailer, *message: bytes) -> None:
        chance = rng.random()
        if chance < 0.2:
            return
        if chance < 0.4:
            late.append(message)
            return
        deliver(self, *message)
        if chance < 0.6:
            deliver(self, *message)
        while late and rng.random() < 0.5:
            deliver(self, *late.pop(rng.randrange(len(late))))

    monkeypatch.setattr(Tailer, "_on_delivery", disturbed)
    with linked(space.servers, space.info.space) as other, space.log(other) as writer, space.log() as log:
        assert log.last == 0
        got: list[int] = []

        def follow() -> None:
            for entry in followed(log, 1, SOON_S):
                got.append(entry.offset)
                assert entry.data == record(entry.offset)
                if entry.offset == 300:
                    return

        thread = threading.Thread(target=follow)
        thread.start()
        for number in range(1, 301):
            assert until(lambda number=number: writer.append(record(number))) == number
        thread.join(SOON_S)
        assert got == list(range(1, 301))


def test_a_tail_that_gets_no_deliveries_at_all(space: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tailer, "_on_delivery", lambda self, *message: None)
    with linked(space.servers, space.info.space) as other, space.log(other) as writer, space.log() as log:
        assert log.last == 0
        until(lambda: writer.append(record(1)))
        assert log.wait(0, SOON_S) == 1
        until(lambda: log.append(record(2)))
        assert log.wait(1, SOON_S) == 2
        assert [entry.data for entry in read_all(log)] == [record(1), record(2)]


def test_deliveries_whose_bytes_changed(space: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bit that flips on the way, or in memory: the checksum tells, and the servers have it right."""
    deliver = Tailer._on_delivery
    flipped: list[int] = []

    def disturbed(self: Tailer, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        if data and len(flipped) < 10:
            at = len(flipped) * len(data) // 10
            data = data[:at] + bytes([data[at] ^ 8]) + data[at + 1 :]
            flipped.append(at)
        deliver(self, subject, reply, data, headers)

    monkeypatch.setattr(Tailer, "_on_delivery", disturbed)
    with linked(space.servers, space.info.space) as other, space.log(other) as writer, space.log() as log:
        assert log.last == 0
        for number in range(1, 21):
            until(lambda number=number: writer.append(record(number)))
        wait_for(lambda: log.wait(19, 1) >= 20)
        assert len(flipped) == 10
        assert [entry.data for entry in read_all(log)] == [record(number) for number in range(1, 21)]


def test_far_behind_is_read_and_not_buffered(space: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
    with space.log() as log:
        assert log.last == 0
        gate = threading.Event()
        deliver = Tailer._on_delivery
        monkeypatch.setattr(
            Tailer, "_on_delivery", lambda self, *m: deliver(self, *m) if gate.is_set() else None
        )
        monkeypatch.setattr(keepers.config, "FETCH_BATCH_RECORDS", 50)
        with linked(space.servers, space.info.space) as other, space.log(other) as writer:
            for number in range(1, 201):
                until(lambda number=number: writer.append(record(number)))
        gate.set()
        wait_for(lambda: log.wait(199, 1) >= 200)
        assert [entry.data for entry in read_all(log)] == [record(number) for number in range(1, 201)]


def test_garbage_of_another_client_is_refused_and_stops_nobody(space: Shard) -> None:
    """Bytes that are no record, and headers that look like a server's own words."""
    forged = (
        f"Nats-Stream: {space.names.stream}\r\nNats-Sequence: 1\r\nNats-Time-Stamp: 2020-01-01T00:00:00Z\r\n"
    )
    garbage = [
        (b"", b""),
        (b"garbage", b""),
        (record(1)[:-1], b""),
        (b"", b"NATS/1.0 503\r\n\r\n"),
        (b"", b"NATS/1.0 204 EOB\r\nNats-Num-Pending: 0\r\n\r\n"),
        (b"x", f"NATS/1.0\r\n{forged}\r\n".encode()),
        (b"", b"NATS/1.0\r\nStatus: 404\r\n\r\n"),
        (bytes(300_000), b""),
    ]
    with linked(space.servers, space.info.space) as other, space.log() as log:  # noqa: SIM117
        with MemoryShard(log, [], SYSTEM, replica=True) as replica:
            replica.barrier(SOON_S)
            before = log.last
            for payload, headers in garbage:
                other.post(
                    lambda payload=payload, headers=headers: other.connection().publish(
                        space.names.subject, payload, headers=headers
                    )
                )
            wait_for(lambda: log.wait(before + len(garbage) - 1, 1) >= before + len(garbage))
            replica.barrier(SOON_S)
            assert replica.applied == log.last >= before + len(garbage) + 1
            with replica.view() as view:
                assert view.head().refused == len(garbage)
            entries = read_all(log)
            assert [entry.data for entry in entries[before : before + len(garbage)]] == [
                data for data, _ in garbage
            ]
    with linked(space.servers, space.info.space) as link, space.log(link) as log:
        assert read_all(log) == entries, "anyone who comes later reads the same"
