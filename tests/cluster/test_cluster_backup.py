"""Backups of spaces on a cluster: of one instant, restored in folders and on clusters, whole or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import pytest

import onefold as of
from onefold import agg
from onefold.backup.backup import backup, restore
from onefold.backup.manifest import MANIFEST_NAME
from onefold.cluster.restore_cluster import restore_space
from onefold.cluster.servers import LocalServers
from onefold.cluster.setup import set_up_space
from onefold.compute.jobs.rows import BLOB
from onefold.errors import LogCorrupt, SpaceError, TokenError, TooOld
from onefold.folds import folds as space_folds
from onefold.log.jetstream import admin
from onefold.log.jetstream.client.address import parse_address
from onefold.log.jetstream.client.link import Link
from onefold.log.jetstream.engine import JetStreamLog
from onefold.log.jetstream.tailer import Tailer
from onefold.space import cuts
from onefold.state.encoding.keys import encode_key
from onefold.state.export.exporting import export
from onefold.state.export.importing import import_file

SHARDS = 3
ACCOUNTS, EACH = 20, 100
_numbers = count()


def onefold(*args: object, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: text for name, text in os.environ.items() if name not in ("ONEFOLD_URL", "ONEFOLD_WORKERS")}
    line = [sys.executable, "-m", "onefold.cli", *map(str, args)]
    return subprocess.run(
        line, capture_output=True, text=True, check=False, timeout=120, env=kept | environment, cwd=cwd
    )


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServers]:
    found = LocalServers.start(tmp_path_factory.mktemp("servers"), 3)
    yield found
    found.stop(delete=True)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEFOLD_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def new(servers: LocalServers) -> Any:
    """Gives a space's name that nobody has, known to the servers."""

    def make() -> str:
        space = f"b{os.getpid()}_{next(_numbers)}"
        servers.url(space, "admin")
        return space

    return make


@pytest.fixture
def space(servers: LocalServers, new: Any) -> str:
    made: str = new()
    set_up_space(servers.url(made, "admin"), shards=SHARDS)
    return made


def fill(db: of.Database, folder: Path) -> None:
    db.map("m").put_many({f"k{number}": number for number in range(200)}, atomic=False)
    db.map("m").put("short", 1, ttl="1h")
    for number in range(20):
        db.queue("q").put(number)
        db.stream("s", partitions=4).append(number, key=number)
    (folder / "in").mkdir()
    for number in range(3):
        (folder / "in" / f"{number}.txt").write_text("the quick fox\n" * (number + 1))
    job = db.read_text(f"{folder}/in/*.txt").group_by("line").agg(n=agg.count()).into("lines")
    job.run(progress=False, workers=1, target_splits=3)


def seen(db: of.Database) -> Any:
    return (
        dict(db.map("m")),
        sorted(r.value for r in db.stream("s").read()),
        db.queue("q").counts(),
        db.table("lines").to_polars().to_dicts(),
    )


def states(db: of.Database) -> list[str]:
    return [space.state_digest() for space in db._shards]  # type: ignore[attr-defined]


def streams(url: str) -> list[str]:
    link = Link(parse_address(url))
    try:
        return admin.leftover_streams(link)
    finally:
        link.close()


def saved(servers: LocalServers, space: str, target: Path) -> dict[str, Any]:
    done = onefold("backup", target, "--url", servers.url(space), "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_backup_of_a_cluster_is_a_space_in_a_folder(
    servers: LocalServers, space: str, tmp_path: Path
) -> None:
    with of.connect(servers.url(space)) as db:
        fill(db, tmp_path)
        expected, token = seen(db), db.session.token
        time.sleep(0.01)
        between = time.time()
        time.sleep(0.01)
        db.map("m")["late"] = "yes"
        made = saved(servers, space, tmp_path / "b")
    assert made["missing_blobs"] == [] and len(made["shards"]) == SHARDS
    done = onefold("restore", tmp_path / "b", "--url", tmp_path / "folder")
    assert done.returncode == 0, done.stderr
    with of.connect(tmp_path / "folder") as db:
        assert db.map("m").pop("late") == "yes"
        assert seen(db) == expected
        for one in db._shards:
            one.verify()  # type: ignore[attr-defined]
        ran = db.read_text(f"{tmp_path}/in/*.txt").group_by("line").agg(n=agg.count()).into("lines")
        assert ran.run(progress=False, workers=1, target_splits=3).progress().reused == 3
    with pytest.raises(TokenError):
        of.connect(tmp_path / "folder", session=token)
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(between)) + f"{between % 1:.6f}"[1:] + "Z"
    done = onefold("restore", tmp_path / "b", "--to", moment, "--url", tmp_path / "then")
    assert done.returncode == 0, done.stderr
    with of.connect(tmp_path / "then") as db:
        assert seen(db) == expected


def test_a_backup_becomes_a_space_on_a_cluster(
    servers: LocalServers, space: str, new: Any, tmp_path: Path
) -> None:
    with of.connect(servers.url(space)) as db:
        fill(db, tmp_path)
        expected, token = seen(db), db.session.token
        digests = states(db)
        saved(servers, space, tmp_path / "b")
    other = new()
    done = onefold("restore", tmp_path / "b", "--url", servers.url(other, "admin"), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["missing_blobs"] == []
    with of.connect(servers.url(other)) as db:  # no node is there
        assert seen(db) == expected
        assert len(states(db)) == len(digests)
        db.map("m")["new"] = 1
        assert db.map("m")["new"] == 1
        ran = db.read_text(f"{tmp_path}/in/*.txt").group_by("line").agg(n=agg.count()).into("lines")
        assert ran.run(progress=False, workers=1, target_splits=3).progress().reused == 3
        with pytest.raises(TokenError):
            of.connect(servers.url(other), session=token)
    with of.connect(servers.url(other)) as db:  # the copy that was made, again
        assert db.map("m")["new"] == 1
    # And back again, although its log begins in the middle.
    saved(servers, other, tmp_path / "b2")
    with pytest.raises(TooOld, match="began from a snapshot"):
        restore_space(tmp_path / "b2", servers.url(new(), "admin"), to_ms=1)
    assert onefold("restore", tmp_path / "b2", "--url", tmp_path / "folder").returncode == 0
    with of.connect(tmp_path / "folder") as db:
        assert db.map("m").pop("new") == 1
        assert seen(db) == expected


def test_a_folder_moves_to_a_cluster_as_it_was_at_a_moment(
    servers: LocalServers, new: Any, tmp_path: Path
) -> None:
    with of.connect(tmp_path / "space", shards=SHARDS) as db:
        fill(db, tmp_path)
        expected = seen(db)
        time.sleep(0.01)
        to_ms = int(time.time() * 1000)
        time.sleep(0.01)
        db.map("m").clear()
        backup(db._shards, tmp_path / "b", blob_tables=(BLOB,))
    places = set()
    for _ in range(2):  # both are given one place, and share nothing there
        space = new()
        info, made = restore_space(
            tmp_path / "b", servers.url(space, "admin"), to_ms=to_ms, blobs=f"dir:{tmp_path}/shared"
        )
        assert (info.shards, made.missing_blobs) == (SHARDS, ())
        with of.connect(servers.url(space)) as db:
            assert seen(db) == expected
        places.add(info.blobs)
    assert {Path(place.removeprefix("dir:")) for place in places} == {*(tmp_path / "shared").iterdir()}
    assert len(places) == 2


def test_an_empty_space_and_untouched_shards(servers: LocalServers, new: Any, tmp_path: Path) -> None:
    with of.connect(tmp_path / "space", shards=SHARDS) as db:
        backup(db._shards, tmp_path / "b")
    space = new()
    restore_space(tmp_path / "b", servers.url(space, "admin"))
    with of.connect(servers.url(space)) as db:
        assert dict(db.map("m")) == {}
        db.map("m").put_many({number: number for number in range(50)}, atomic=False)
        assert len(dict(db.map("m"))) == 50


@pytest.mark.parametrize("way", ["backup", "export"])
def test_a_copy_made_while_programs_write_elsewhere_is_of_one_instant(
    servers: LocalServers, space: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """A bank, and a number put into one shard after the other: whatever the cut, nothing is made or lost, and no number is there
    without those before it, although one shard's records come late to who makes the copy."""
    url = servers.url(space)
    stop, failures = threading.Event(), []
    delivered = Tailer._on_delivery

    def late(self: Tailer, *args: Any) -> None:
        if self._names.shard == 1:
            asyncio.get_running_loop().call_later(0.1, delivered, self, *args)
        else:
            delivered(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Tailer, "_on_delivery", late)
        mine = of.connect(url)
    with mine:
        mine.map("bank").update(dict.fromkeys(range(ACCOUNTS), EACH))
        keys = [
            next(key for key in (f"a{n}" for n in count()) if mine._state.shard_of(encode_key(key)) == shard)
            for shard in range(SHARDS)
        ]
        monkeypatch.setenv("ONEFOLD_CACHE", str(tmp_path / "of another machine"))
        other = of.connect(url)

        def move(rng: random.Random) -> None:
            def transfer(tx: Any) -> None:
                bank = tx.map("bank")
                source, target = rng.sample(range(ACCOUNTS), 2)
                bank[source] -= 1
                bank[target] += 1

            with contextlib.suppress(of.Conflict):
                other.run_transaction(transfer, attempts=100)

        def write() -> None:
            rng = random.Random(1)
            try:
                for value in count(1):
                    if stop.wait(0.05):
                        return
                    other.map("row")[keys[value % SHARDS]] = value
                    if value % 10 == 0:
                        move(rng)
            except BaseException as error:
                failures.append(error)

        barriers, pairs = cuts._Marks.barriers, []

        def then_written(marks: cuts._Marks) -> None:
            """After each copy's first barriers: one record into the late shard, then one that is here at once."""
            barriers(marks)
            if len(pairs) <= turn:
                pairs.append(turn)
                other.map("pair")[keys[1]] = turn
                other.map("pair")[keys[2]] = turn
                while mine.map("pair").get(keys[2], consistency="eventual") != turn:
                    time.sleep(0.001)

        monkeypatch.setattr(cuts._Marks, "barriers", then_written)
        turn = 0
        writer = threading.Thread(target=write)
        writer.start()
        try:
            for turn in range(6):
                time.sleep(0.1)
                target = tmp_path / f"b{turn}"
                if way == "backup":
                    backup(mine._shards, target, fetch=lambda name, to: False)
                else:
                    with target.open("w") as file:
                        export(mine._state, file.write)
        finally:
            stop.set()
            writer.join()
            other.close()
    assert not failures, failures
    for turn in range(6):
        folder = tmp_path / f"r{turn}"
        if way == "backup":
            restore(tmp_path / f"b{turn}", folder, space_folds)
        with of.connect(folder) as db:
            if way == "export":
                with (tmp_path / f"b{turn}").open() as file:
                    import_file(db._state, file, "error")
            bank = dict(db.map("bank"))
            assert len(bank) == ACCOUNTS and sum(bank.values()) == ACCOUNTS * EACH, (turn, bank)
            pair = db.map("pair")
            assert pair.get(keys[2], -1) <= pair.get(keys[1], -1), turn
            there = sorted(db.map("row").values())
            assert len(there) < SHARDS or there[-1] - there[0] == SHARDS - 1, (turn, there)


def test_a_log_that_was_trimmed_is_not_in_the_backup(
    servers: LocalServers, space: str, tmp_path: Path
) -> None:
    before = datetime.now(UTC)
    with of.connect(servers.url(space)) as db:
        db.map("m").put_many({number: number for number in range(300)}, atomic=False)
        for number in range(10):
            db.map("m")[number] = -number
        offsets = [one.barrier() for one in db._shards]
        link = Link(parse_address(servers.url(space, "node")))
        try:
            info = admin.read_space(link)
            for shard, offset in enumerate(offsets):
                log = JetStreamLog(link, info, shard)
                log.trim(offset)
                log.close()
        finally:
            link.close()
        expected = dict(db.map("m"))
    with of.connect(servers.url(space)) as db:
        backup(db._shards, tmp_path / "b", fetch=lambda name, to: False)
    done = onefold("restore", tmp_path / "b", "--to", before.isoformat(), "--url", tmp_path / "then")
    assert done.returncode == 1 and "began from a snapshot" in done.stderr
    assert onefold("restore", tmp_path / "b", "--url", tmp_path / "folder").returncode == 0
    with of.connect(tmp_path / "folder") as db:
        assert dict(db.map("m")) == expected


# -- what cannot be, and what is cut short


@pytest.fixture
def made(tmp_path: Path) -> Path:
    with of.connect(tmp_path / "space", shards=2) as db:
        fill(db, tmp_path)
        backup(db._shards, tmp_path / "b", blob_tables=(BLOB,))
    return tmp_path / "b"


def test_nothing_is_restored_over_a_space(servers: LocalServers, space: str, made: Path) -> None:
    done = onefold("restore", made, "--url", servers.url(space, "admin"))
    assert done.returncode == 1
    assert "there is a space already" in done.stderr and "another name" in done.stderr
    assert streams(servers.url(space, "admin")) == []


def test_a_credential_that_may_not(servers: LocalServers, new: Any, made: Path) -> None:
    for user in ("app", "node"):
        done = onefold("restore", made, "--url", servers.url(new(), user))
        assert done.returncode == 1
        assert "may not publish to $JS.API.STREAM.CREATE" in done.stderr and "Traceback" not in done.stderr


def test_a_damaged_backup_makes_nothing(servers: LocalServers, new: Any, made: Path) -> None:
    path = made / "shard-0001.db"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    space = new()
    with pytest.raises(LogCorrupt, match="damaged"):
        restore_space(made, servers.url(space, "admin"))
    (made / MANIFEST_NAME).unlink()
    with pytest.raises(SpaceError, match="no backup"):
        restore_space(made, servers.url(space, "admin"))
    assert streams(servers.url(space, "admin")) == []
    set_up_space(servers.url(space, "admin"))  # nothing is in the way


def test_options_that_are_for_clusters(made: Path, tmp_path: Path) -> None:
    for option in (("--replicas", "1"), ("--blobs", "jetstream")):
        done = onefold("restore", made, "--url", tmp_path / "folder", *option)
        assert done.returncode == 2 and "on a cluster" in done.stderr
    assert not (tmp_path / "folder").exists()


def test_a_program_without_a_replica_has_nothing_to_copy(
    servers: LocalServers, space: str, tmp_path: Path
) -> None:
    with (
        of.connect(servers.url(space), replicas="remote") as db,
        pytest.raises(SpaceError, match="no copy on this machine"),
    ):
        backup(db._shards, tmp_path / "b")
    assert not (tmp_path / "b").exists()


_KILLED = """
import os, signal, sys
from onefold.log.jetstream import admin
from onefold.cluster import restore_cluster as restoring
from onefold.cluster.restore_cluster import restore_space

what, source, url = sys.argv[1:]
def die(*args, **named):
    os.kill(os.getpid(), signal.SIGKILL)
if what == "after the blobs":
    admin.make_log = die
elif what == "after the logs":
    restoring._FromFolder.begin = die
elif what == "before the record":
    admin.write_first = die
elif what == "after the record":
    real = admin.write_first
    def written(*args):
        real(*args)
        die()
    admin.write_first = written
restore_space(source, url)
"""


@pytest.mark.parametrize(
    "what", ["after the blobs", "after the logs", "before the record", "after the record"]
)
@pytest.mark.moving(2)
def test_a_restore_that_was_killed_left_a_whole_space_or_none(
    servers: LocalServers, new: Any, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    space = new()
    url = servers.url(space, "admin")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    (tmp_path / "temporary").mkdir()
    killed = subprocess.run(
        [sys.executable, "-c", _KILLED, what, str(made), url],
        check=False,
        timeout=120,
        stderr=subprocess.DEVNULL,
    )
    assert killed.returncode == -signal.SIGKILL
    assert list((tmp_path / "temporary").iterdir())
    if what != "after the record":
        with pytest.raises(SpaceError, match="there is no space"):
            of.connect(servers.url(space), create=False)
        restore_space(made, url)
        assert not list((tmp_path / "temporary").iterdir())
    with of.connect(servers.url(space)) as db:
        assert seen(db)[0] == {f"k{number}": number for number in range(200)} | {"short": 1}
        db.map("m")["k0"] = "new"
        assert db.map("m")["k0"] == "new"


@pytest.mark.moving(2)
@pytest.mark.parametrize("place", ["store", "begin"])
def test_a_restore_that_failed_leaves_no_logs(
    servers: LocalServers, new: Any, made: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    from onefold.cluster import restore_cluster as restoring

    space = new()
    real = getattr(restoring._FromFolder, place)

    def fails(self: Any, info: Any) -> Any:
        real(self, info)
        raise OSError("the disk went away")

    with monkeypatch.context() as patch:
        patch.setattr(restoring._FromFolder, place, fails)
        with pytest.raises(OSError, match="went away"):
            restore_space(made, servers.url(space, "admin"))
    assert streams(servers.url(space, "admin")) == []
    restore_space(made, servers.url(space, "admin"))
    assert streams(servers.url(space, "admin")) == []
