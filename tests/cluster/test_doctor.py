"""`onefold doctor` and `status` on real servers: what was broken on purpose is found, named, and repaired as it is told."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from onefold.cluster.servers import LocalServers
from onefold.cluster.setup import set_up_space
from onefold.codec import Record, encode_record
from onefold.doctor.cluster import examine
from onefold.doctor.embedded import Check
from onefold.log.jetstream.client.address import parse_address
from onefold.log.jetstream.client.link import Link
from onefold.log.jetstream.names import STREAM_INFO, LogNames

RECORDS = 60
WAIT_S = 60.0


def record(number: int) -> bytes:
    return encode_record(Record("c", number, 0, ()))


class Stand:
    """Servers with a space whose log has records."""

    def __init__(self, directory: Path) -> None:
        self.servers = LocalServers.start(directory, 3, spaces=["main"])
        self.info = set_up_space(self.servers.url("main", "admin"))
        self.log = LogNames("main", self.info.incarnation, 0)
        link = Link(parse_address(self.servers.url("main")))
        for number in range(2, RECORDS + 1):  # the first one is that which a log begins with
            answer = link.append(self.log.subject, record(number), None).wait(WAIT_S)
            assert answer is not None and b"error" not in answer.data
        link.close()

    def checks(self, user: str = "app", *, deep: bool = False) -> dict[str, Check]:
        return {check.name: check for check in examine(self.servers.url("main", user), deep=deep)}

    def wrong(self) -> dict[str, Check]:
        return {name: check for name, check in self.checks().items() if check.status not in ("ok", "skipped")}

    def await_well(self) -> None:
        self.await_state(lambda: not self.wrong())

    def await_state(self, what: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WAIT_S
        while not what():
            assert time.monotonic() < deadline, self.wrong()

    def leader(self) -> int:
        """The index of the server that leads the log."""
        link = Link(parse_address(self.servers.url("main")))
        try:
            info = json.loads(link.request(STREAM_INFO + self.log.stream, b"", timeout=WAIT_S).data)
        finally:
            link.close()
        return [server.name for server in self.servers.servers].index(info["cluster"]["leader"])

    def damage(self, index: int, change: Callable[[bytearray], bytes]) -> None:
        """Change the file in which a server has the log's records while it is down."""
        self.servers.kill(index, signal.SIGTERM)
        try:
            blocks = [*self.servers.servers[index].dir.rglob(f"streams/{self.log.stream}/msgs/*.blk")]
            block = max(blocks, key=lambda path: path.stat().st_size)
            block.write_bytes(change(bytearray(block.read_bytes())))
        finally:
            self.servers.restart(index)
        # It serves its copy again, whatever that is.
        self.await_state(lambda: {check.status for check in self.wrong().values()} == {"problem"})

    def repair(self, advice: str) -> None:
        """Do what the doctor says, to the letter."""
        told = re.search(r"stop (\S+), delete (\S+) and (\S+), start it", advice)
        assert told is not None, advice
        index = [server.name for server in self.servers.servers].index(told[1])
        self.servers.kill(index, signal.SIGTERM)
        for folder in (Path(told[2]), Path(told[3])):
            assert folder.is_dir(), folder
            shutil.rmtree(folder)
        self.servers.restart(index)


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    found = Stand(tmp_path_factory.mktemp("cluster"))
    found.await_well()
    yield found
    found.servers.stop()


def flipped(data: bytearray) -> bytes:
    """One bit of a record: the server takes the file for whole, and finds it when it reads the record."""
    data[data.index(record(RECORDS // 2)) + 8] ^= 1
    return bytes(data)


def cut(data: bytearray) -> bytes:
    return bytes(data[: len(data) // 2])


def test_all_is_well(stand: Stand) -> None:
    found = stand.checks()
    assert {check.status for check in found.values()} <= {"ok", "skipped"}
    assert f"{RECORDS} offsets are alike" in found["records"].found
    assert found["sync"].status == found["disks"].status == found["copies"].status == "ok"


@pytest.mark.parametrize("change", [flipped, cut], ids=lambda change: change.__name__)
def test_a_copy_that_rots_is_named_and_repaired_as_told(
    stand: Stand, change: Callable[[bytearray], bytes]
) -> None:
    stand.damage(1, change)
    found = stand.wrong()
    assert found.keys() >= {"records"} and found.keys() <= {"records", "copies"}
    assert all(check.status == "problem" for check in found.values())
    assert "s2 has" in found["records"].found and "s1" not in found["records"].found
    if change is cut:  # which the server itself knows
        assert f"{stand.log.stream} on s2 lacks" in found["copies"].found
    stand.repair(found["records"].advice)
    stand.await_well()


def test_a_rotten_copy_is_found_without_more_than_a_programs_credential(stand: Stand, tmp_path: Path) -> None:
    alone = tmp_path / "alone.nk"  # with no admin's or system user's seed beside it
    shutil.copy(stand.servers.seed_file("main", "app"), alone)
    url = stand.servers.url("main").replace(str(stand.servers.seed_file("main", "app")), str(alone))
    assert {check.name: check.status for check in examine(url)}["records"] == "ok"
    stand.damage(2, flipped)
    try:
        assert "s3 has nothing" in stand.wrong()["records"].found
        found = {check.name: check for check in examine(url)}
        assert found["copies"].status == found["sync"].status == found["disks"].status == "skipped"
        assert found["records"].status == "problem" and "some copy has nothing" in found["records"].found
        assert "admin's credential" in found["records"].advice
    finally:
        stand.repair(stand.checks()["records"].advice)
    stand.await_well()


@pytest.mark.parametrize("leads", [True, False])
def test_a_server_that_is_down(stand: Stand, leads: bool) -> None:
    leader = stand.leader()
    index = leader if leads else (leader + 1) % 3
    name = stand.servers.servers[index].name
    stand.servers.kill(index)
    try:

        def told() -> bool:
            replicas = stand.checks()["replicas"]
            return replicas.status == "problem" and f"{stand.log.stream} on {name}" in replicas.found

        stand.await_state(told)
        servers = stand.wrong()["servers"]
        assert servers.status == "problem" and "2 of 3 answer" in servers.found
    finally:
        stand.servers.restart(index)
    stand.await_well()


def test_a_log_that_was_made_to_forget(stand: Stand) -> None:
    link = Link(parse_address(stand.servers.url("main", "admin")))
    try:
        info = json.loads(link.request(STREAM_INFO + stand.log.stream, b"", timeout=WAIT_S).data)
        for limit, wrong in ((10_000, True), (-1, False)):
            changed = json.dumps(info["config"] | {"max_msgs": limit}).encode()
            answer = link.request(f"$JS.API.STREAM.UPDATE.{stand.log.stream}", changed, timeout=WAIT_S)
            assert "error" not in json.loads(answer.data)

            def told(wrong: bool = wrong) -> bool:
                check = stand.checks()["streams"]
                return (check.status == "problem" and "max_msgs is 10000" in check.found) == wrong

            stand.await_state(told)
    finally:
        link.close()


def test_the_command_line(stand: Stand, tmp_path: Path) -> None:
    environment = {name: text for name, text in os.environ.items() if not name.startswith("ONEFOLD_")}
    environment |= {"ONEFOLD_CACHE": str(tmp_path), "ONEFOLD_URL": stand.servers.url("main")}

    def onefold(*args: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "onefold.cli", *args]
        return subprocess.run(line, capture_output=True, text=True, check=False, timeout=120, env=environment)

    done = onefold("doctor", "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    assert {check["name"] for check in found["checks"]} >= {"servers", "records", "nodes", "leases"}
    status = json.loads(onefold("status", "--json").stdout)
    assert [server["name"] for server in status["servers"]] == ["s1", "s2", "s3"]
    assert all(server["up"] for server in status["servers"])
    (log,) = [stream for stream in status["streams"] if stream["shard"] == 0]
    assert log["name"] == stand.log.stream and len(log["replicas"]) == 2 and log["leader"] is not None
    assert status["nodes"] == [] and status["shards"] == 1
    shown = onefold("status").stdout
    assert "server   s1" in shown and f"shard 0  {stand.log.stream}" in shown


def test_bytes_that_were_appended_as_they_are_damage_no_copy(stand: Stand) -> None:
    """A program with a credential can append anything; replicas refuse it alike."""
    link = Link(parse_address(stand.servers.url("main")))
    answer = link.append(stand.log.subject, b"no record", None).wait(WAIT_S)
    link.close()
    assert answer is not None and b"error" not in answer.data
    stand.await_state(lambda: stand.checks(deep=True)["records"].status == "ok")
    assert stand.checks("admin", deep=True)["records"].status == "ok"


def test_nobody_there(tmp_path: Path) -> None:
    for command in ("doctor", "status"):
        line = [sys.executable, "-m", "onefold.cli", command, "--url", "nats://127.0.0.1:9/x"]
        done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 1 and "cannot be reached" in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
