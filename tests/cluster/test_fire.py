"""The fire: all processes of one of two data centers are killed at once, while programs in both write collections of every kind,
one counter is sold from both, and a job runs. Then it comes back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest

import onefold as of
from cluster.fire_program import ACCOUNTS, OPENING, RARE, STOCK
from kit.environment import with_tests
from onefold import agg, config
from onefold.available.regions import read_self
from onefold.cluster import daemons
from onefold.cluster.local import LocalCluster
from onefold.doctor.facts import look
from onefold.folds import region_folds
from onefold.log.jetstream import admin
from onefold.log.jetstream.client.address import parse_address
from onefold.log.jetstream.client.link import Link
from onefold.log.jetstream.names import LogNames
from onefold.log.jetstream.regions import region_of
from onefold.log.jetstream.streams import Refused, lead_from
from onefold.space.open_cluster import open_region
from support.fire_history import Done, check_acknowledged, check_sessions, pauses, read, resolve

WAIT_S = 120.0
FILES, LINES = 12, 20
MORE = 25
"""How many operations of a kind are waited for before the next thing happens."""
REGIONS = ("dc1", "dc2")
PROGRAM = Path(__file__).with_name("fire_program.py")
_spaces = count(1)


def await_state(what: Callable[[], Any], problem: Callable[[], object] = lambda: "") -> Any:
    deadline = time.monotonic() + WAIT_S
    while not (found := what()):
        assert time.monotonic() < deadline, problem()
        time.sleep(0.05)
    return found


class Fire:
    """A cluster of ten nodes over two data centers, the programs in them, and a job."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed
        self.names = [f"{region}-{number}" for region in REGIONS for number in (1, 2, 3)]
        self.programs: dict[str, subprocess.Popen[bytes]] = {}
        self.up()
        self.cluster = LocalCluster.open(folder / "c")
        self.url = self.cluster.url()
        with of.connect(self.url, region="dc1", timeout=WAIT_S) as db:
            db.map("accounts").update(dict.fromkeys(range(ACCOUNTS), OPENING))
            stock = db.counters("stock", floor=0)
            stock.add("plenty", STOCK)
            stock.add("rare", RARE)
            stock.move("plenty", STOCK // 2, to="dc2")

    def up(self) -> None:
        """Start what does not run, by the command."""
        kept = {name: text for name, text in os.environ.items() if not name.startswith("ONEFOLD_")}
        line = [sys.executable, "-m", "onefold.cli", "up", "--nodes", "10", "--regions", "2", "--dir"]
        line += [str(self.folder / "c"), "--json"]
        done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=300, env=kept)
        assert done.returncode == 0, done.stderr

    def start(self, name: str) -> None:
        """Start a program in the region that its name begins with."""
        region = region_of(name)
        line = [sys.executable, PROGRAM, self.url, region, name, ",".join(self.names)]
        line += [self.journal(name), str(self.seed)]
        with (self.folder / f"{name}.err").open("wb") as errors:
            self.programs[name] = subprocess.Popen(
                list(map(str, line)), stdin=subprocess.PIPE, stderr=errors, env=with_tests()
            )

    def journal(self, name: str) -> Path:
        return self.folder / f"{name}.journal"

    def did(self, name: str) -> list[Done]:
        return read(self.journal(name))

    def await_more(self, name: str, *threads: str, since: float | None = None) -> None:
        """Wait until a program has done so much in each of its threads that began after a moment."""
        moment = time.monotonic() if since is None else since

        def enough() -> bool:
            done = [one for one in self.did(name) if one.begun >= moment and one.sure]
            assert self.programs[name].poll() is None, self.said(name)
            return all(sum(one.thread == thread for one in done) >= MORE for thread in threads)

        await_state(enough, lambda: f"{name} does nothing: {self.said(name)}")

    def said(self, name: str) -> str:
        lines = [str(one) for one in self.did(name) if not one.sure][-5:]
        return "\n".join([(self.folder / f"{name}.err").read_text()[-2000:], *lines])

    def pids(self, *places: str) -> list[int]:
        """All processes of these places: servers, nodes and programs."""
        found = [server.pid for server in self.cluster.servers.servers if server.region in places]
        found += [node.pid for node in self.cluster.nodes if node.region in places]
        for name, program in self.programs.items():
            if program.poll() is None and region_of(name) in places:
                found.append(program.pid)
        assert None not in found
        return [pid for pid in found if pid is not None]

    def burn(self, *places: str) -> float:
        """SIGKILL of all of these places at once; when that was."""
        lost = [daemons.identify(pid) for pid in self.pids(*places)]
        moment = time.monotonic()
        for one in lost:
            assert daemons.send(one, signal.SIGKILL)
        for one in lost:
            assert daemons.wait_ended(one, WAIT_S)
        return moment

    def end_programs(self) -> None:
        """Let them end what they are about."""
        for program in self.programs.values():
            if program.poll() is None and program.stdin is not None:
                program.stdin.close()
        for name, program in self.programs.items():
            assert program.wait(WAIT_S) in (0, -signal.SIGKILL), self.said(name)

    def close(self) -> None:
        for program in self.programs.values():
            program.kill()
            program.wait()
            if program.stdin is not None:
                with suppress(OSError):
                    program.stdin.close()
        self.cluster.down(delete=True)

    # -- the job

    def job(self, db: of.Database) -> Any:
        """Counts lines by file. Tasks of every second file do not end before there is the file ``gate``."""
        gate, source = str(self.folder / "gate"), self.folder / "in"
        source.mkdir()
        for number in range(FILES):
            (source / f"{number}.txt").write_text("".join(f"{number} {line}\n" for line in range(LINES)))

        def note(record: dict[str, Any]) -> dict[str, Any]:
            number, line = map(int, record["line"].split())
            while number % 2 and line == LINES - 1 and not Path(gate).exists():
                time.sleep(0.02)
            return {"file": number}

        rows = db.read_text(str(source / "*.txt")).map(note)
        return rows.group_by("file").agg(n=agg.count()).into("lines")

    # -- afterwards

    def check(self) -> None:
        """All acknowledged writes are there, both sides are equal, and nobody was told anything else before."""
        self.end_programs()
        done = [one for name in self.programs for one in self.did(name)]
        assert not [one for one in done if one.status == "error"]
        with ExitStack() as stack:
            dbs = {
                region: stack.enter_context(of.connect(self.url, region=region, timeout=WAIT_S))
                for region in REGIONS
            }
            for db in dbs.values():
                db.sync(timeout=WAIT_S)
            resolve(done, lambda one: dbs[region_of(one.program)].outcome(one.id))
            await_state(self.same_everywhere)
            assert rows(dbs["dc1"]) == rows(dbs["dc2"])
            for db in dbs.values():
                check_acknowledged(db, done)
                await_state(lambda: {one.state for one in db.regions()} == {"here", "linked"})  # noqa: B023
        check_sessions(done, self.names)

    def same_everywhere(self) -> bool:
        """Whether both regions know the same effects, and have rows of the same hash."""
        found = []
        for region in REGIONS:
            shards = open_region(self.url, region, region_folds, replicas="remote")
            for shard in shards:
                with shard.view() as view:
                    me = read_self(view)
                    found.append((me.have(), me.content))
                shard.close()
        return found[: len(found) // 2] == found[len(found) // 2 :]


def rows(db: of.Database) -> list[object]:
    """All that a program sees of all available collections."""
    maps = [db.map(name, mode="available") for name in ("registers", "shared", "orders")]
    maps.append(db.map("people", mode="available", merge="fields"))
    maps.append(db.map("drafts", mode="available", merge="keep_both"))
    found: list[object] = [[(key, each.get_item(key)) for key in each] for each in maps]
    counters = (db.counters("likes"), db.counters("totals"), db.counters("stock", floor=0), db.sets("tags"))
    return [*found, *(list(each.items()) for each in counters)]


def failed(done: list[Done], since: float, *threads: str) -> list[Done]:
    """What did not succeed; a refusal to take more than there is, is no failure."""
    return [
        one
        for one in done
        if one.thread in threads and one.ended >= since and one.status not in ("ok", "refused", "open")
    ]


@pytest.fixture
def fire(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fire]:
    monkeypatch.setenv("ONEFOLD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ONEFOLD_PROGRESS", "no")
    found = Fire(tmp_path, request.param)
    yield found
    found.close()


def tell(what: str, done: list[Done], moment: float) -> None:
    """Figures for who runs it with -s; nothing depends on them."""
    for thread in ("available", "sell", "consistent"):
        longest, first = pauses(done, thread, moment)
        print(f"{what}, {thread}: longest {longest:.2f} s, first begun after it ended {first:.2f} s later")


@pytest.mark.moving(13)  # one of these and of test_region_survival.py a day
@pytest.mark.parametrize("lost", REGIONS)
@pytest.mark.parametrize("fire", [1, 2, 3], indirect=True, ids="seed{}".format)
def test_one_data_center_burns_and_the_other_goes_on(fire: Fire, lost: str) -> None:
    (left,) = set(REGIONS) - {lost}
    fire.start(f"{lost}-1"), fire.start(f"{left}-1")
    with of.connect(fire.url, region=left, timeout=WAIT_S) as db:
        run = fire.job(db).start(workers=0, target_splits=FILES)
        for region in REGIONS:
            fire.await_more(f"{region}-1", "available", "sell", "consistent", since=0.0)
        await_state(lambda: run.progress().done >= FILES // 2)
        if fire.seed % 2:  # the worse case
            have_led(fire, lost)
        moment = fire.burn(lost)
        fire.await_more(f"{left}-1", "available", "sell", "consistent", since=moment)
        (fire.folder / "gate").touch()
        fire.start(f"{left}-2")  # a new program
        fire.await_more(f"{left}-2", "available", "sell", "consistent", since=moment)
        run.wait(WAIT_S)
        print(f"the job was over {time.monotonic() - moment:.1f} s after the fire")
        assert run.progress().failed == 0
        table = dict(db.table("lines").to_polars().select("file", "n").iter_rows())
        assert table == dict.fromkeys(range(FILES), LINES), "each record is counted once"
        done = fire.did(f"{left}-1") + fire.did(f"{left}-2")
        assert not failed(done, moment, "available", "sell", "consistent")
        tell("one data center killed", fire.did(f"{left}-1"), moment)
    back = time.monotonic()
    fire.up()
    print(f"up again after {time.monotonic() - back:.1f} s")
    fire.start(f"{lost}-2")
    for name in (f"{lost}-2", f"{left}-1", f"{left}-2"):
        fire.await_more(name, "available", "sell", "consistent", since=back)
    fire.check()


@pytest.mark.moving(13, first=6)
@pytest.mark.parametrize("lost", REGIONS)
@pytest.mark.parametrize("fire", [4], indirect=True, ids="seed{}".format)
def test_a_data_center_and_the_witness_burn_and_the_other_goes_on(fire: Fire, lost: str) -> None:
    (left,) = set(REGIONS) - {lost}
    fire.start(f"{lost}-1"), fire.start(f"{left}-1")
    for region in REGIONS:
        fire.await_more(f"{region}-1", "available", "sell", "consistent", since=0.0)
    moment = fire.burn(lost, "witness")
    fire.await_more(f"{left}-1", "available", "sell", since=moment)
    check_consistent_ones_say_so(fire, left)
    tell("and the witness", fire.did(f"{left}-1"), moment)
    servers = fire.cluster.servers
    here = [at for at, server in enumerate(servers.servers) if server.region == left]
    with as_admin(fire) as link:
        leads = await_state(lambda: leader(link, left))
    (killed,) = [at for at in here if servers.servers[at].name == leads]
    second = time.monotonic()
    servers.kill(killed)
    fire.await_more(f"{left}-1", "available", "sell", since=second)
    tell("the leader of its log killed", fire.did(f"{left}-1"), second)
    third = time.monotonic()
    for at in here:
        servers.kill(at)
    for at in here:
        servers.restart(at, wait=False)
    fire.await_more(f"{left}-1", "available", "sell", since=third)
    tell("all its servers started again", fire.did(f"{left}-1"), third)
    fire.start(f"{left}-2")
    fire.await_more(f"{left}-2", "available", "sell", since=third)
    check_consistent_ones_say_so(fire, left)
    for name in (f"{left}-1", f"{left}-2"):
        assert not failed(fire.did(name), moment, "available", "sell")
    back = time.monotonic()
    fire.up()
    fire.start(f"{lost}-2")
    for name in (f"{lost}-2", f"{left}-1", f"{left}-2"):
        fire.await_more(name, "available", "sell", "consistent", since=back)
    fire.check()


def check_consistent_ones_say_so(fire: Fire, region: str) -> None:
    """A consistent write ends within its time, and says that it cannot be."""
    with of.connect(fire.url, region=region, timeout=2) as db:
        with pytest.raises((of.Unavailable, of.AppendUnknown, of.Timeout)):
            db.map("doubtful")[0] = 1  # which may surface later
        with pytest.raises(of.Unavailable):
            db.map("accounts").get(0, consistency="strong")


@contextmanager
def as_admin(fire: Fire) -> Iterator[Link]:
    link = Link(parse_address(fire.cluster.url("admin")))
    try:
        yield link
    finally:
        link.close()


def leader(link: Link, region: str) -> str:
    """Who leads a region's own log; with an empty name the consistent one. Empty while nobody does."""
    logs = [one for one in look(link).streams if one.log is not None and (one.region or "") == region]
    return next((one.leader for one in logs if one.leader), "")


def have_led(fire: Fire, region: str) -> None:
    """Have the consistent log led from a region."""
    with as_admin(fire) as link:
        info = admin.read_space(link)
        stream = LogNames(info.space, info.incarnation, 0).stream

        def led() -> bool:
            if region_of(leader(link, "")) == region:
                return True
            with suppress(of.Unavailable, of.Timeout, Refused):  # nobody leads it just now
                link.run(lambda: lead_from(link, stream, region), config.ENGINE_REQUEST_TIMEOUT_S)
            return region_of(leader(link, "")) == region

        await_state(led)
