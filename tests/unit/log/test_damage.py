"""A damaged file of an embedded space: what is wrong is detected, never served."""

import os
import random
import shutil
import subprocess
import sys
from contextlib import closing, suppress
from pathlib import Path

import apsw
import pytest

import onefold as of
from kit.environment import with_tests
from kit.ledger import Ledger, entry, lines
from onefold.codec import Op
from onefold.env import SeededEnv
from onefold.errors import LogCorrupt, OnefoldError, SpaceError
from onefold.log.sqlite import checksums
from onefold.log.sqlite.file import FILE_NAME, FORMAT_UNCHECKED, TIP_NAME
from onefold.space.open_shard import open_shard

SEED = 11
FLIPS = 150


@pytest.fixture
def made(tmp_path):
    """A closed space, so everything is in its one file; and what it holds."""
    directory = tmp_path / "space"
    with closing(open_shard(directory, [Ledger()], env=SeededEnv(SEED))) as space:
        for number in range(400):
            space.submit([entry(b"token %d" % number + b"x" * 60)])
        with space.view() as view:
            truth = lines(view)
    with closing(apsw.Connection(str(directory / FILE_NAME), vfs=checksums.VFS)) as con:
        con.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    return directory, truth


def served(directory, read_only=False):
    """Everything that the space gives out: its folded state, and its log. Afterwards, or when it is refused, no file is open."""
    try:
        with closing(open_shard(directory, [Ledger()], read_only=read_only)) as space:
            with space.view() as view:
                state = lines(view)
            return state, [bytes(one.data) for one in space.log.read(1, 1 << 30)]
    finally:
        assert open_files(directory) == []


def open_files(directory):
    """What this process has open in that directory."""
    places = []
    with suppress(FileNotFoundError):  # there is no /proc
        for number in list(Path("/proc/self/fd").iterdir()):
            with suppress(FileNotFoundError):
                places.append(str(number.readlink()))
    return [place for place in places if place.startswith(f"{directory}{os.sep}")]


def test_a_flipped_bit_anywhere_in_the_file_is_detected(made, tmp_path):
    directory, truth = made
    _, records = served(directory)
    whole = (directory / FILE_NAME).read_bytes()
    rng = random.Random(SEED)
    found = 0
    for number in range(FLIPS):
        damaged = bytearray(whole)
        # The first page holds the header, whose flips also make other errors.
        place = rng.randrange(len(whole)) if number % 5 else rng.randrange(4096)
        bit = rng.randrange(8)
        damaged[place] ^= 1 << bit
        copy = tmp_path / f"flip{number}"
        copy.mkdir()
        (copy / FILE_NAME).write_bytes(damaged)
        try:
            state, log = served(copy)
        except (LogCorrupt, SpaceError):
            found += 1
        else:
            assert state == truth and log[: len(records)] == records, (
                f"bit {bit} of byte {place} was flipped, and something else was served"
            )
        shutil.rmtree(copy)
    assert found > FLIPS / 2  # the others hit pages that are not read here: history, free space


def test_a_file_that_is_cut_off_is_detected(made, tmp_path):
    directory, _ = made
    whole = (directory / FILE_NAME).read_bytes()
    rng = random.Random(SEED)
    for number in range(24):
        copy = tmp_path / f"cut{number}"
        copy.mkdir()
        (copy / FILE_NAME).write_bytes(whole[: rng.randrange(1, len(whole))])
        with pytest.raises(OnefoldError):
            served(copy, read_only=number % 2 == 1)
        shutil.rmtree(copy)


KILLED = """
import os, sys
from onefold.space.open_shard import open_shard
from kit.ledger import Ledger, entry
space = open_shard(sys.argv[1], [Ledger()])
for number in range(50):
    space.submit([entry(b"late %d" % number)])
print("done", flush=True)
sys.stdin.read()
"""


@pytest.mark.faults
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_write_ahead_log_that_lost_its_end_is_detected(made, share):
    directory, _ = made
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, directory],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=with_tests(),
    ) as writer:
        assert writer.stdout.readline() == "done\n"
        writer.kill()
    wal = directory / f"{FILE_NAME}-wal"
    os.truncate(wal, int(wal.stat().st_size * share))
    with pytest.raises(LogCorrupt, match="was acknowledged"):
        open_shard(directory, [Ledger()])
    with pytest.raises(LogCorrupt, match="was acknowledged"):
        open_shard(directory, [Ledger()], read_only=True)
    (directory / TIP_NAME).unlink()  # as the error says, for who accepts the loss
    open_shard(directory, [Ledger()]).close()


@pytest.mark.faults
def test_a_killed_writer_alone_is_no_damage(made):
    directory, truth = made
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, directory],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=with_tests(),
    ) as writer:
        assert writer.stdout.readline() == "done\n"
        writer.kill()
    state, _ = served(directory)
    assert len(state) == len(truth) + 50


def test_an_older_copy_in_its_place_is_noticed(made, tmp_path):
    directory, _ = made
    old = (directory / FILE_NAME).read_bytes()
    with closing(open_shard(directory, [Ledger()])) as space:
        space.submit([entry(b"newer")])
    for path in directory.glob(f"{FILE_NAME}-*"):
        path.unlink()
    (directory / FILE_NAME).write_bytes(old)
    with pytest.raises(LogCorrupt, match="older copy"):
        open_shard(directory, [Ledger()])


def test_what_another_program_wrote_into_the_file_is_noticed(made):
    directory, _ = made
    with closing(apsw.Connection(str(directory / FILE_NAME))) as con:
        con.execute("UPDATE kv SET v = x'00'")
    with pytest.raises(LogCorrupt, match="checksum"):
        served(directory)


def test_a_file_without_checksums_stays_usable(tmp_path, monkeypatch):
    monkeypatch.setattr(checksums, "_available", False)
    directory = tmp_path / "space"
    with closing(open_shard(directory, [Ledger()])) as space:
        space.submit([entry(b"a")])
    monkeypatch.setattr(checksums, "_available", True)
    with closing(open_shard(directory, [Ledger()])) as space:
        space.submit([Op("ledger", b"b")])
        with space.view() as view:
            assert set(lines(view)) == {b"a", b"b"}
    with closing(apsw.Connection(str(directory / FILE_NAME))) as con:
        assert con.execute("PRAGMA user_version").get == FORMAT_UNCHECKED


def test_a_file_with_checksums_needs_a_program_that_keeps_them(made, monkeypatch):
    directory, _ = made
    monkeypatch.setattr(checksums, "_available", False)
    with pytest.raises(SpaceError, match="pip install apsw"):
        open_shard(directory, [Ledger()])


YOUNG = """
import os, signal, sys
import onefold as of
db = of.connect(sys.argv[1], shards=int(sys.argv[2]))
db.map("m").update({n: f"value {n}" for n in range(100)})
for number in range(20):
    db.map("m")["late", number] = number
    db.queue("q").put(number)
    db.stream("s").append(number)
print("done", flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
WAL = f"{FILE_NAME}-wal"


@pytest.fixture(params=[1, 2])
def young(request, tmp_path):
    """A space that was killed before anything of it had left the write-ahead log; and what it holds."""
    directory = tmp_path / "young"
    subprocess.run(
        [sys.executable, "-c", YOUNG, directory, str(request.param)], check=False, stdout=subprocess.PIPE
    )
    shutil.copytree(directory, tmp_path / "read")
    truth = everything(tmp_path / "read")
    assert (len(truth[0]), truth[1], len(truth[2])) == (120, 20, 20)
    shards = [directory, *sorted(directory.glob("shards/*"))]
    assert len(shards) == request.param
    assert all((shard / FILE_NAME).stat().st_size <= 4096 for shard in shards)
    return directory, shards, truth


def everything(directory):
    with of.connect(directory) as db:
        return dict(db.map("m")), len(db.queue("q")), [record.value for record in db.stream("s").read()]


@pytest.mark.faults
def test_a_flipped_bit_anywhere_in_the_write_ahead_log_is_detected(young, tmp_path):
    directory, shards, truth = young
    rng = random.Random(SEED)
    found = 0
    for number in range(60):
        shard = rng.choice(shards).relative_to(directory)
        copy = tmp_path / f"flip{number}"
        shutil.copytree(directory, copy)
        wal = bytearray((copy / shard / WAL).read_bytes())
        # In its beginning too: without that, SQLite takes all the rest for leftovers and the file for an empty one.
        place = rng.randrange((56, 40_000, len(wal))[number % 3])
        wal[place] ^= 1 << rng.randrange(8)
        (copy / shard / WAL).write_bytes(wal)
        try:
            assert everything(copy) == truth, f"byte {place} was flipped, and something else was served"
        except LogCorrupt:
            found += 1
            with pytest.raises(LogCorrupt):  # nor when it is tried again
                everything(copy)
        shutil.rmtree(copy)
    assert found > 40


@pytest.mark.faults
@pytest.mark.parametrize("gone", [(WAL,), (FILE_NAME,), (FILE_NAME, WAL)])
@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.moving(2)
def test_a_file_that_was_emptied_is_no_new_space(young, gone, read_only):
    directory, shards, _ = young
    for name in gone:
        (shards[-1] / name).unlink()
    for _ in range(2):
        with pytest.raises(OnefoldError) as caught:
            of.connect(directory, read_only=read_only)
        assert isinstance(caught.value, LogCorrupt) or "missing" in str(caught.value)


def test_a_file_that_was_cut_to_nothing_is_no_new_space(made):
    directory, _ = made
    os.truncate(directory / FILE_NAME, 0)
    with pytest.raises(LogCorrupt, match="holds nothing, but offset 400 was acknowledged"):
        open_shard(directory, [Ledger()])
    (directory / TIP_NAME).unlink()  # as the error says
    open_shard(directory, [Ledger()]).close()


@pytest.mark.parametrize("left", [False, True], ids=["new", "left by an opener that died"])
def test_every_new_file_has_room_for_checksums(left, tmp_path):
    path = tmp_path / "space" / FILE_NAME
    path.parent.mkdir()
    if left:
        con = apsw.Connection(str(path), vfs="unix")
        con.execute("PRAGMA journal_mode=WAL").get  # noqa: B018 - gives it a first page
        con.close()
        assert path.read_bytes()[20] == 0
    of.connect(path.parent).close()
    assert path.read_bytes()[20] == checksums.RESERVED_BYTES
    page = bytearray(path.read_bytes())
    page[1000] ^= 1
    path.write_bytes(page)
    with pytest.raises(OnefoldError):
        of.connect(path.parent)
