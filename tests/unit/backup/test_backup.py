"""Backups are whole and of one instant, or not there at all; what is restored is what was."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import onefold as of
from onefold import agg
from onefold.backup import backup as backup_module
from onefold.backup.backup import backup, restore
from onefold.backup.manifest import read_manifest, verify_files
from onefold.compute.jobs.rows import BLOB
from onefold.errors import InvalidArgument, LogCorrupt, SpaceError, TokenError, TooOld
from onefold.folds import folds as space_folds

ACCOUNTS, EACH = 20, 100


def backup_of(db, target):
    return backup(db._shards, target, blob_tables=(BLOB,))


def restored(source, target, to_ms=None):
    return restore(source, target, space_folds, to_ms=to_ms, blob_tables=(BLOB,))


def state(db):
    return [space.state_digest() for space in db._shards]


def now_ms(db):
    """A moment that lies strictly between what was written and what will be."""
    time.sleep(0.003)
    found = db._shard.env.wall_ms()
    time.sleep(0.003)
    return found


def left_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(params=[1, 3], ids=["one shard", "three shards"])
def shards(request):
    return request.param


def fill(db, count=40):
    for number in range(count):
        db.map("m")[number] = "x" * number
        db.queue("q").put(number)
        db.stream("s", partitions=4).append(number, key=number)
    db.map("m").put("short", 1, ttl="1h")


def seen(db):
    return dict(db.map("m")), list(db.queue("q").counts()), sorted(r.value for r in db.stream("s").read())


def test_what_is_restored_is_what_was(tmp_path, shards):
    with of.connect(tmp_path / "space", shards=shards) as db:
        fill(db)
        token = db.session.token
        made = backup_of(db, tmp_path / "b")
        expected, digests = seen(db), state(db)
        assert [shard.state_digest for shard in made.shards] == digests
        db.map("m").clear()
    result = restored(tmp_path / "b", tmp_path / "new")
    assert result.missing_blobs == ()
    with of.connect(tmp_path / "new") as db:
        assert state(db) == digests and seen(db) == expected
        assert len(db._shards) == shards
        for space in db._shards:
            space.verify()
        with pytest.raises(TokenError, match="before it was restored"):
            db.session.merge(token)
        fill(db, 5)  # and it can be written
        with db.at(db.session.token) as past:
            assert seen(past) == seen(db)
    assert left_in(tmp_path) == ["b", "new", "space"]


def test_restored_to_a_moment_it_is_as_it_was_then(tmp_path, shards):
    moments = []
    with of.connect(tmp_path / "space", shards=shards) as db:
        for number in range(12):
            with db.transaction() as tx:
                tx.map("m")[number] = number
                tx.map("m")["last"] = number
                tx.queue("q").put(number)
            moments.append((now_ms(db), number))
        backup_of(db, tmp_path / "b")
    for ms, number in random.Random(1).sample(moments, 4):
        restored(tmp_path / "b", tmp_path / f"at{number}", to_ms=ms)
        with of.connect(tmp_path / f"at{number}") as db:
            assert db.map("m")["last"] == number and len(db.map("m")) == number + 2
            assert len(db.queue("q")) == number + 1
            for space in db._shards:
                space.verify()
    with pytest.raises(InvalidArgument, match="knows nothing"):
        restored(tmp_path / "b", tmp_path / "x", to_ms=moments[-1][0] + 10**6)
    with pytest.raises(InvalidArgument, match="before the first record"):
        restored(tmp_path / "b", tmp_path / "x", to_ms=moments[0][0] - 10**6)
    assert not (tmp_path / "x").exists()


def test_a_trimmed_log_gives_no_earlier_moment_and_says_so(tmp_path):
    with of.connect(tmp_path / "space") as db:
        fill(db, 20)
        ms = now_ms(db)
        fill(db, 20)
        db._shard.trim(10)
        backup_of(db, tmp_path / "b")
        expected = seen(db)
    with pytest.raises(TooOld, match="offset 10"):
        restored(tmp_path / "b", tmp_path / "x", to_ms=ms)
    restored(tmp_path / "b", tmp_path / "x")
    with of.connect(tmp_path / "x") as db:
        assert seen(db) == expected


def test_tables_and_their_blobs_are_in_it(tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(6):
        (tmp_path / "in" / f"{number}.txt").write_text("".join(f"w{number}-{line}\n" for line in range(9000)))

    def run(db):
        job = db.read_text(str(tmp_path / "in/*.txt")).group_by("line").agg(n=agg.count()).into("words")
        return job.run(progress=False, workers=1)

    with of.connect(tmp_path / "space") as db:
        run(db)
        expected = db.table("words").to_polars().sort("line")
        orphan = db._engine.blobs.put(b"of no job")
        made = backup_of(db, tmp_path / "b")
        blobs = [name for name in made.files if name.startswith("blobs/")]
        assert blobs and not any(orphan in name for name in blobs)
        inode = {path.stat().st_ino for path in (tmp_path / "space/blobs").rglob("*")}
        assert not inode & {(tmp_path / "b" / name).stat().st_ino for name in blobs}
    shutil.rmtree(tmp_path / "space")
    restored(tmp_path / "b", tmp_path / "new")
    with of.connect(tmp_path / "new") as db:
        assert db.table("words").to_polars().sort("line").equals(expected)
        assert run(db).progress().reused > 0


def test_a_blob_that_is_missing_or_damaged_is_told_and_not_copied(tmp_path):
    (tmp_path / "a.txt").write_text("x\n")
    with of.connect(tmp_path / "space") as db:
        db.read_text(str(tmp_path / "a.txt")).group_by("line").agg(n=agg.count()).into("t").run(
            progress=False, workers=1
        )
        blobs = sorted(db._engine.blobs.names())
        db._engine.blobs.path(blobs[0]).unlink()
        db._engine.blobs.path(blobs[1]).write_bytes(b"rotten")
        made = backup_of(db, tmp_path / "b")
    assert made.missing_blobs == tuple(blobs[:2])
    assert restored(tmp_path / "b", tmp_path / "new").missing_blobs == tuple(blobs[:2])


def test_a_blob_swept_between_the_cut_and_the_copy_makes_another_cut(tmp_path, monkeypatch):
    with of.connect(tmp_path / "space") as db:
        for name in ("a", "b"):
            (tmp_path / f"{name}.txt").write_text("x\n" * 5)
            db.read_text(str(tmp_path / f"{name}.txt")).group_by("line").agg(n=agg.count()).into(name).run(
                progress=False, workers=1
            )
        cuts = []
        real = backup_module._copy_shards

        def swept_after(shards, folder, tables):
            result = real(shards, folder, tables)
            cuts.append(result)
            if len(cuts) == 1:
                return result[0], result[1], [*result[2], "ab" * 32]  # named at the cut, gone since
            return result

        monkeypatch.setattr(backup_module, "_copy_shards", swept_after)
        made = backup_of(db, tmp_path / "b")
    assert len(cuts) == 2 and made.missing_blobs == ()
    assert left_in(tmp_path) == ["a.txt", "b", "b.txt", "space"]


def test_a_backup_while_threads_write_is_of_one_instant(tmp_path, shards):
    """A bank: whatever the cut, nothing may be made or lost. And what was acknowledged before it is in it."""
    with of.connect(tmp_path / "space", shards=shards) as db:
        db.map("bank").update(dict.fromkeys(range(ACCOUNTS), EACH))
        stop, moves, failures = threading.Event(), [0] * 4, []

        def work(number):
            rng = random.Random(number)
            while not stop.is_set():

                def move(tx):
                    bank = tx.map("bank")
                    source, target = rng.sample(range(ACCOUNTS), 2)
                    bank[source] -= 1
                    bank[target] += 1
                    tx.map("moves")[number] = moves[number] + 1

                try:
                    db.run_transaction(move, attempts=200)
                except of.Conflict:
                    continue
                except of.OnefoldError as error:
                    failures.append(error)
                    return
                moves[number] += 1

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        try:
            before = []
            for number in range(4):
                deadline = time.monotonic() + 60
                target = sum(moves) + 10
                while sum(moves) < target and not failures and time.monotonic() < deadline:
                    time.sleep(0.001)
                before.append(list(moves))
                backup_of(db, tmp_path / f"b{number}")
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    assert not failures, failures
    for number, done in enumerate(before):
        restored(tmp_path / f"b{number}", tmp_path / f"r{number}")
        with of.connect(tmp_path / f"r{number}") as db:
            bank = dict(db.map("bank"))
            assert len(bank) == ACCOUNTS and sum(bank.values()) == ACCOUNTS * EACH, (number, bank)
            recorded = [db.map("moves").get(thread, 0) for thread in range(4)]
            assert all(kept >= there for kept, there in zip(recorded, done, strict=True)), (recorded, done)
            for space in db._shards:
                space.verify()


# -- damage


@pytest.fixture
def made(tmp_path):
    with of.connect(tmp_path / "space", shards=2) as db:
        fill(db)
        backup_of(db, tmp_path / "b")
    return tmp_path / "b"


@pytest.mark.parametrize("seed", range(6))
def test_a_damaged_backup_is_refused_and_leaves_nothing(made, tmp_path, seed):
    rng = random.Random(seed)
    files = sorted(path for path in made.rglob("*") if path.is_file())
    path = files[seed % len(files)]
    data = bytearray(path.read_bytes())
    if seed % 2:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    else:
        del data[rng.randrange(len(data)) :]
    path.write_bytes(data)
    with pytest.raises((LogCorrupt, SpaceError)):
        restored(made, tmp_path / "new")
    assert left_in(tmp_path) == ["b", "space"]


def test_every_flipped_bit_of_the_manifest_is_found(made, tmp_path):
    path = made / "manifest.json"
    good = path.read_bytes()
    rng = random.Random(1)
    for _ in range(100):
        at = rng.randrange(len(good))
        bad = bytearray(good)
        bad[at] ^= 1 << rng.randrange(7)
        if bytes(bad).isspace() or json_equal(bytes(bad), good):
            continue  # white space became other white space
        path.write_bytes(bad)
        with pytest.raises((LogCorrupt, SpaceError)):
            read_manifest(made)


def json_equal(one, other):
    try:
        return json.loads(one) == json.loads(other)
    except ValueError:
        return False


def test_a_missing_file_a_newer_format_and_no_backup_at_all_are_refused(made, tmp_path):
    with pytest.raises(SpaceError, match="no backup"):
        restored(tmp_path / "nowhere", tmp_path / "new")
    with pytest.raises(SpaceError, match="no backup"):
        restored(tmp_path / "space", tmp_path / "new")
    content = json.loads((made / "manifest.json").read_text())
    (made / "manifest.json").write_text(json.dumps(content | {"format": 2}))
    with pytest.raises(SpaceError, match="Upgrade"):
        restored(made, tmp_path / "new")
    (made / "manifest.json").write_text(json.dumps(content))
    (made / "shard-0001.db").unlink()
    with pytest.raises(LogCorrupt, match=r"shard-0001\.db is missing"):
        restored(made, tmp_path / "new")
    assert left_in(tmp_path) == ["b", "space"]


def test_a_damaged_space_gives_no_backup(tmp_path):
    with of.connect(tmp_path / "space") as db:
        fill(db)
        with db._shard.log.file.writing() as con:
            con.execute("UPDATE log SET data = zeroblob(length(data)) WHERE offset = 7")
        with pytest.raises(LogCorrupt, match="offset 7"):
            backup_of(db, tmp_path / "b")
    assert left_in(tmp_path) == ["space"]


def test_neither_overwrites_anything(made, tmp_path):
    with of.connect(tmp_path / "space") as db, pytest.raises(SpaceError, match="not empty"):
        backup_of(db, made)
    with pytest.raises(SpaceError, match="not empty"):
        restored(made, tmp_path / "space")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SpaceError, match="something else"):
        restored(made, tmp_path / "file")
    with pytest.raises(SpaceError, match="does not exist"):
        restored(made, tmp_path / "no/such")
    (tmp_path / "empty").mkdir()
    restored(made, tmp_path / "empty")
    with of.connect(tmp_path / "empty") as db:
        assert len(db.map("m")) == 41
    with of.connect("memory://") as db, pytest.raises(SpaceError, match="export"):
        backup_of(db, tmp_path / "m")


# -- kill -9

KILLED = """
import os, signal, sys
import onefold as of
from onefold.compute.jobs.rows import BLOB
from onefold.folds import folds as space_folds
from onefold.backup import backup as module; from onefold.backup import atomic_folder as whole_folders

what, place, source, target = sys.argv[1:]
owner, name = place.split(".")
owner = {"module": module, "whole_folders": whole_folders}[owner]
real = getattr(owner, name)

def killed(*args, **kwargs):
    if place.endswith("_sync") and args[0].name != "parent":
        pass
    else:
        real(*args, **kwargs)
    os.kill(os.getpid(), signal.SIGKILL)

setattr(owner, name, killed)
if what == "backup":
    with of.connect(source) as db:
        module.backup(db._shards, target, blob_tables=(BLOB,))
else:
    module.restore(source, target, space_folds, blob_tables=(BLOB,))
"""


@pytest.mark.moving(4)
@pytest.mark.parametrize(
    ("what", "place"),
    [
        ("backup", "module._copy_shards"),
        ("backup", "module._copy_out"),
        ("backup", "module.write_manifest"),
        ("backup", "whole_folders.sync_tree"),
        ("restore", "module._make"),
        ("restore", "module._fill"),
        ("restore", "module._look"),
        ("restore", "whole_folders.sync_tree"),
    ],
)
def test_a_kill_leaves_nothing_that_looks_whole(made, tmp_path, what, place):
    source, target = (tmp_path / "space", tmp_path / "out") if what == "backup" else (made, tmp_path / "out")
    run = subprocess.run(
        [sys.executable, "-c", KILLED, what, place, str(source), str(target)],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == -signal.SIGKILL, run.stderr
    assert not target.exists()
    assert any(name.startswith(".out.") for name in left_in(tmp_path))
    if what == "backup":
        with of.connect(source) as db:
            backup_of(db, target)
        verify_files(target, read_manifest(target))
    else:
        restored(made, target)
        of.connect(target, create=False).close()
    assert left_in(tmp_path) == ["b", "out", "space"]  # the next one removes what the killed one left


ENDLESS = """
import itertools, sys
from pathlib import Path
import onefold as of
from onefold.folds import folds as space_folds
from onefold.backup.backup import backup, restore
base = Path(sys.argv[1])
with of.connect(base / "space") as db:
    for number in itertools.count():
        backup(db._shards, base / f"b-{number}")
        restore(base / f"b-{number}", base / f"r-{number}", space_folds)
        print(number, flush=True)
"""


@pytest.mark.parametrize("seed", range(3))
def test_killed_at_any_moment_what_is_there_is_whole(made, tmp_path, seed):
    rng = random.Random(seed)
    program = subprocess.Popen(
        [sys.executable, "-c", ENDLESS, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert program.stdout is not None
        for _ in range(2):
            assert program.stdout.readline()
        time.sleep(rng.random() * 0.2)  # any moment will do
    finally:
        program.kill()
        program.wait()
        program.stdout.close()
    backups = [path for path in tmp_path.glob("b-*") if path.is_dir()]
    assert len(backups) >= 2
    for path in backups:
        verify_files(path, read_manifest(path))
    for path in tmp_path.glob("r-*"):
        with of.connect(path, create=False) as db:
            assert len(db.map("m")) == 41
            for space in db._shards:
                space.verify()


def test_a_half_made_folder_of_a_live_process_is_left_alone(made, tmp_path):
    mine = tmp_path / f".out.{os.getpid()}-aa.half"
    mine.mkdir()
    other = tmp_path / ".out.2-3.4-bb.half"
    other.mkdir()
    restored(made, tmp_path / "out")
    assert mine.is_dir() and other.is_dir() and Path(tmp_path / "out" / "space.db").exists()
