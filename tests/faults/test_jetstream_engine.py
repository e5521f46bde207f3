"""The JetStream engine on real servers that die, hang and fill up: acknowledged records stay, in order, and reading goes on."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit.cluster.log_ground import (
    SOON_S,
    Ground,
    Shard,
    linked,
    read_all,
    record,
    until,
    wait_for,
)
from onefold.cluster.servers import LocalServers
from onefold.errors import AppendUnknown, SpaceError, Timeout, Unavailable
from onefold.log.jetstream import admin
from onefold.log.jetstream.client.address import parse_address
from onefold.log.jetstream.client.connection import Connection
from onefold.log.jetstream.client.link import Link
from onefold.log.jetstream.client.subscription import Subscription
from onefold.log.jetstream.engine import JetStreamLog
from support.engine_spaces import ground_of_three, space_on_ground  # noqa: F401

pytestmark = pytest.mark.faults


class Writer:
    """A thread that appends records one after the other, each again until it is acknowledged."""

    def __init__(self, log: JetStreamLog, client: str = "c0-aa") -> None:
        self.acknowledged: dict[int, bytes] = {}
        self.tried: set[bytes] = set()
        self.unknown = 0
        self.problem: BaseException | None = None
        self._log = log
        self._client = client
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def count(self) -> int:
        return len(self.acknowledged)

    def wait_more(self, count: int = 20) -> None:
        """Until so many more records are acknowledged."""
        goal = self.count() + count
        wait_for(lambda: self.count() >= goal or self.problem)

    def end(self) -> None:
        self._stop.set()
        self._thread.join(SOON_S)
        assert not self._thread.is_alive()
        if self.problem is not None:
            raise self.problem

    def _run(self) -> None:
        try:
            number = 0
            while not self._stop.is_set():
                number += 1
                data = record(number, client=self._client)
                self.tried.add(data)
                offset = until(lambda data=data: self._append(data))
                assert offset not in self.acknowledged, f"offset {offset} was given twice"
                self.acknowledged[offset] = data
        except BaseException as error:
            self.problem = error

    def _append(self, data: bytes) -> int:
        try:
            return self._log.append(data)
        except AppendUnknown:
            self.unknown += 1
            raise


def check(space: Shard, *writers: Writer) -> None:
    """What was acknowledged is in the log where it was acknowledged, and nothing that nobody appended."""
    acknowledged = {offset: data for writer in writers for offset, data in writer.acknowledged.items()}
    assert len(acknowledged) == sum(writer.count() for writer in writers), (
        "an offset was given to two writers"
    )
    tried = set().union(*(writer.tried for writer in writers))
    with linked(space.servers, space.info.space) as link, space.log(link) as log:
        wait_for(lambda: until(lambda: log.last) >= max(acknowledged))
        for _ in range(3):  # by several servers
            entries = until(lambda: read_all(log))
            assert [entry.offset for entry in entries] == list(range(1, len(entries) + 1))
            found = {entry.offset: entry.data for entry in entries}
            assert {offset: found.get(offset) for offset in acknowledged} == acknowledged
            assert set(found.values()) <= tried


def test_the_leader_is_killed_while_records_are_appended(space: Shard) -> None:
    with space.log() as one, linked(space.servers, space.info.space) as link, space.log(link) as other:
        writers = [Writer(one, "c0-aa"), Writer(other, "c0-bb")]
        try:
            for _ in range(2):
                for writer in writers:
                    writer.wait_more()
                victim = space.leader()
                space.servers.kill(victim)
                for writer in writers:
                    writer.wait_more()
                space.servers.restart(victim)
        finally:
            for writer in writers:
                writer.end()
        check(space, *writers)


def test_a_leader_that_hangs_is_deposed_and_comes_back(space: Shard) -> None:
    """Stopped, it still takes connections and messages and answers none. When it goes on it believes for a while to lead."""
    with space.log() as one, linked(space.servers, space.info.space) as link, space.log(link) as other:
        writers = [Writer(one, "c0-aa"), Writer(other, "c0-bb")]
        try:
            for writer in writers:
                writer.wait_more()
            victim = space.leader()
            space.servers.stop_server(victim)
            for writer in writers:
                writer.wait_more()
            space.servers.cont(victim)
            for writer in writers:
                writer.wait_more(100)
        finally:
            for writer in writers:
                writer.end()
        space.wait_whole()
        check(space, *writers)


def test_all_servers_are_killed_at_once(space: Shard) -> None:
    with space.log() as log:
        writer = Writer(log)
        try:
            writer.wait_more()
            for index in range(3):
                space.servers.kill(index)
            for index in range(3):
                space.servers.restart(index, wait=False)
            writer.wait_more()
        finally:
            writer.end()
        check(space, writer)


def test_without_a_majority_nothing_is_acknowledged_and_reading_goes_on(space: Shard) -> None:
    with space.log() as log:
        for number in range(1, 11):
            until(lambda number=number: log.append(record(number)))
        count = log.last
        space.wait_whole()
        kept = space.leader()
        for index in {0, 1, 2} - {kept}:
            space.servers.kill(index)
        wait_for(lambda: space.link.connected and space.link.server_name == space.servers.servers[kept].name)
        with pytest.raises((Unavailable, AppendUnknown)):
            log.append(record(100))
        assert [entry.offset for entry in until(lambda: read_all(log, 1, count))] == list(range(1, count + 1))
        with space.log() as fresh:
            assert until(lambda: fresh.last) >= count, "opened without a leader"
            assert len(until(lambda: read_all(fresh, 1, count))) == count
        assert admin.find_space(space.link, space.info.space) == space.info

        def unknown() -> bool:  # once the cluster's leader has noticed that it is alone
            try:
                return admin.find_space(space.link, "absent") is not None
            except Unavailable as error:
                return "cannot be determined" in str(error)

        wait_for(unknown)


def test_the_server_of_the_connection_dies(space: Shard) -> None:
    with linked(space.servers, space.info.space) as other, space.log(other) as writer:
        changes: list[bool] = []
        space.link.on_change(changes.append)
        with space.log() as log:
            until(lambda: writer.append(record(1)))
            assert log.wait(0, SOON_S) == 1
            server = space.link.server_name
            assert server is not None
            space.servers.kill(space.index(server))
            for number in range(2, 30):
                until(lambda number=number: writer.append(record(number)))
            last = writer.last
            assert wait_for(lambda: log.wait(last - 1, SOON_S) >= last)
            wait_for(lambda: changes[-2:] == [False, True])
            assert space.link.server_name != server
            assert len(space.link.servers) == 3
            assert [entry.offset for entry in read_all(log)] == list(range(1, last + 1))
            until(lambda: log.append(record(100)))


def test_what_is_sent_without_a_connection_fails_at_once(ground: Ground) -> None:
    with ground.space() as space, space.log() as log:
        until(lambda: log.append(record(1)))
        assert log.wait(0, SOON_S) == 1
        space.wait_whole()
        for index in range(3):
            space.servers.kill(index)
        wait_for(lambda: not space.link.connected)
        with pytest.raises(Unavailable) as error:
            log.append(record(2))
        assert error.value.definite
        assert log.last == 1, "what is known stays known"
        with pytest.raises(Unavailable):
            Link(parse_address(space.servers.url(space.info.space)))
        for index in range(3):
            space.servers.restart(index, wait=False)
        space.wait_whole()  # an append whose outcome is unknown would be made twice
        assert until(lambda: log.append(record(2))) == 2
        assert [entry.data for entry in until(lambda: read_all(log))] == [record(1), record(2)]


@pytest.mark.parametrize("when", ["while it is taken into use", "before anybody listens"])
def test_a_connection_that_breaks_before_it_is_anybodys_is_made_anew(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """All servers are killed one after the other: who fled from the first meets the last one at its end."""
    with ground.space() as space:
        begin, broken = Subscription._begin, []

        async def begin_and_break(self: Subscription, connection: Connection) -> None:
            await begin(self, connection)
            if not broken:
                broken.append(connection)
                connection.lose("planted")

        heard: list[bytes] = []
        link = Link(parse_address(space.servers.url(space.info.space)))
        try:
            if when == "while it is taken into use":
                link.subscribe("planted", lambda msg: heard.append(msg.data))
            monkeypatch.setattr(Subscription, "_begin", begin_and_break)
            if when == "while it is taken into use":
                first = link.connection()
                link.post(first.lose, "the first one broke")
            else:
                with contextlib.suppress(Unavailable):
                    link.subscribe("planted", lambda msg: heard.append(msg.data))

            def said() -> bool:
                with contextlib.suppress(Unavailable):
                    link.publish("planted", b"x")
                return bool(heard)

            assert wait_for(said)
            assert broken and link.connection() is not broken[0]
        finally:
            link.close()


ENDING = """
import atexit, sys
opened = []
atexit.register(lambda: [each.close() for each in opened])
from onefold.log.jetstream import admin
from onefold.log.jetstream.client.address import parse_address
from onefold.log.jetstream.client.connection import Connection
from onefold.log.jetstream.engine import JetStreamLog
from onefold.log.jetstream.client.link import Link
from onefold.log.jetstream.client.subscription import Subscription
link = Link.shared(parse_address(sys.argv[1]))
log = JetStreamLog(link, admin.read_space(link), 0)
opened += [log, link]
assert log.last == 1
"""


def test_a_process_that_ends_says_nothing(space: Shard) -> None:
    """Also one that closes its log after the loop has ended."""
    with space.log() as log:
        until(lambda: log.append(record(1)))
    space.wait_whole()
    for program in (ENDING, ENDING.replace("opened += ", "kept = ")):
        command = [sys.executable, "-X", "dev", "-c", program, space.servers.url(space.info.space)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SOON_S, check=False)
        # That a callback took long is said of a busy machine.
        said = [
            line
            for line in done.stderr.splitlines()
            if not re.fullmatch(r"Executing <.*> took .* seconds", line)
        ]
        assert (done.returncode, said) == (0, [])


def test_a_forked_child_is_told(space: Shard) -> None:
    with space.log() as log:
        until(lambda: log.append(record(1)))
        for use in (
            lambda: log.last,
            lambda: log.append(record(2)),
            lambda: space.link.request("x", b"", timeout=1),
        ):
            child = os.fork()
            if child == 0:
                code = 1
                with contextlib.suppress(BaseException):
                    try:
                        use()
                    except SpaceError as error:
                        code = 0 if "forked" in str(error) else 2
                os._exit(code)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        child = os.fork()
        if child == 0:
            code = 1
            with contextlib.suppress(BaseException):
                log.close()
                space.link.close()
                fresh = Link.shared(parse_address(space.servers.url(space.info.space)))
                with space.log(fresh) as mine:
                    code = 0 if mine.append(record(2)) == 2 and mine.last == 2 else 3
                fresh.close()
            os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert log.wait(1, SOON_S) == 2
        assert until(lambda: log.append(record(3))) == 3, "the parent's connection is whole"


# -- a full disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "disk"
    path.mkdir()
    if os.getuid() != 0:
        pytest.skip("mounting a small disk needs root")
    try:
        command = ["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", str(path)]
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    yield path
    subprocess.run(["umount", "-l", path], check=True)


def test_a_full_disk(disk: Path) -> None:
    """Nothing acknowledged is lost, and appending goes on once there is room and the server was started again."""
    servers = LocalServers.start(disk, 1, secure=False)
    try:
        with linked(servers, "full") as link:
            info = until(lambda: admin.make_space(link, "full", replicas=1))
            log = JetStreamLog(link, info, 0)
            acknowledged = {until(lambda: log.append(record(0, 1000))): record(0, 1000)}
            ballast = disk / "ballast"
            with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(1 << 16))

            def fill() -> None:
                for number in range(1, 1000):
                    data = record(number, 300_000)
                    acknowledged[log.append(data)] = data

            with pytest.raises((AppendUnknown, Unavailable, Timeout)):
                fill()
            ballast.unlink()
            servers.kill(0, signal.SIGKILL)
            servers.restart(0)
            wait_for(lambda: link.connected)
            after = until(lambda: log.append(record(2000)))
            assert after > max(acknowledged)
            with contextlib.closing(JetStreamLog(link, info, 0)) as fresh:
                found = {entry.offset: entry.data for entry in until(lambda: read_all(fresh))}
            assert {offset: found[offset] for offset in acknowledged} == acknowledged
            assert list(found) == list(range(1, after + 1))
            log.close()
    finally:
        servers.stop()
