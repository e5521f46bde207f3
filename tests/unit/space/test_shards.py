"""Spaces of several shards: made whole whatever happens, and opened as they were made."""

import contextlib
import random
import shutil
import signal
import subprocess
import sys
import threading

import pytest

import onefold as of
from kit.environment import with_tests
from kit.ledger import Ledger, entry, lines
from onefold import config
from onefold.errors import InvalidArgument, SpaceError
from onefold.space.open_shard import open_shard
from onefold.space.open_space import open_shards, shard_count, shard_directory


def folds(shard, shards):
    return [Ledger()]


def close(spaces):
    for space in spaces:
        space.close()


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "space"


def test_each_shard_has_a_log_and_a_state_of_its_own(directory):
    spaces = open_shards(directory, folds, shards=3)
    for number, space in enumerate(spaces):
        space.submit([entry(b"%d" % number)])
    close(spaces)
    spaces = open_shards(directory, folds)
    for number, space in enumerate(spaces):
        with space.view() as view:
            assert list(lines(view)) == [b"%d" % number]
    assert [space.directory for space in spaces] == [shard_directory(directory, n) for n in range(3)]
    close(spaces)
    assert shard_count(directory) == 3


def test_folds_are_told_their_shard_and_how_many_there_are(directory):
    told = []

    def telling(shard, shards):
        told.append((shard, shards))
        return [Ledger()]

    close(open_shards(directory, telling, shards=3))
    close(open_shards(directory, telling))
    assert told == [(0, 3), (1, 3), (2, 3)] * 2


def test_a_space_made_before_there_were_shards_has_one(directory):
    open_shard(directory, [Ledger()]).close()
    assert shard_count(directory) == 1
    close(open_shards(directory, folds, shards=1))
    spaces = open_shards(directory, folds)
    assert len(spaces) == 1
    close(spaces)
    assert not (directory / "shards").exists()


@pytest.mark.parametrize(("made", "asked"), [(1, 2), (4, 2), (4, 1), (2, 1024)])
def test_another_number_is_refused_and_both_are_named(directory, made, asked):
    close(open_shards(directory, folds, shards=made))
    with pytest.raises(InvalidArgument, match=rf"with {made} shard.*shards={asked}"):
        open_shards(directory, folds, shards=asked)
    close(open_shards(directory, folds, shards=made))


@pytest.mark.parametrize("shards", [0, -1, 1025, 1.0, "2", True])
@pytest.mark.parametrize("url", ["memory://", "folder"])
def test_a_number_that_makes_no_sense_is_refused_before_anything_is_made(tmp_path, shards, url):
    directory = tmp_path / "space"
    with pytest.raises(InvalidArgument, match="shards"):
        of.connect("memory://" if url == "memory://" else directory, shards=shards)
    assert not directory.exists()


def test_memory_has_as_many_logs_as_asked_for():
    spaces = open_shards("memory://", folds, shards=5)
    assert len({space.incarnation for space in spaces}) == 5
    close(spaces)
    assert config.SHARDS_MAX == 1024


def test_a_lost_shard_is_told_and_not_made_anew(directory):
    close(open_shards(directory, folds, shards=3))
    shutil.rmtree(directory / "shards" / "2")
    for read_only in (False, True):
        with pytest.raises(SpaceError, match="shard 2 of 3 is missing"):
            open_shards(directory, folds, read_only=read_only)
    assert not (directory / "shards" / "2").exists()


def test_reading_only_makes_nothing(directory):
    with pytest.raises(SpaceError):
        open_shards(directory, folds, shards=2, read_only=True)
    with pytest.raises(SpaceError):
        open_shards(directory, folds, shards=2, create=False)
    assert not directory.exists()
    with pytest.raises(SpaceError):
        shard_count(directory)
    close(open_shards(directory, folds, shards=2))
    spaces = open_shards(directory, folds, read_only=True)
    assert len(spaces) == 2
    close(spaces)


MAKER = """
import sys
from onefold.space.open_space import open_shards
from kit.ledger import Ledger
print("start", flush=True)
for space in open_shards(sys.argv[1], lambda shard, shards: [Ledger()], shards=int(sys.argv[2])):
    space.close()
"""


@pytest.mark.parametrize("step", range(6))
def test_a_maker_that_was_killed_leaves_what_the_next_opener_completes(directory, step, monkeypatch):
    """Killed before each shard, and before it noted that all are there."""

    class Killed(BaseException):
        pass

    from onefold.space import open_space as shards

    made = []

    def dying(*args, **kwargs):
        if len(made) == step:
            raise Killed
        made.append(args)
        return open_shard(*args, **kwargs)

    def dying_folds(shard, count):
        if step == 5 and shard == 3:
            raise Killed
        return [Ledger()]

    with monkeypatch.context() as patched:
        patched.setattr(shards, "open_shard", dying)
        if step in (3, 4):  # there are three to open: the kill comes before the note
            patched.setattr(shards, "_note_made", lambda file: (_ for _ in ()).throw(Killed), raising=True)
        with pytest.raises(Killed):
            open_shards(directory, dying_folds, shards=4)
    assert shard_count(directory) == 4, "the number is decided with the first file"
    with (
        pytest.raises(SpaceError, match="not complete yet")
        if step < 3 or step == 5
        else contextlib.nullcontext()
    ):
        close(open_shards(directory, folds, read_only=True))
    with pytest.raises(InvalidArgument):
        open_shards(directory, folds, shards=2)
    spaces = open_shards(directory, folds)
    for space in spaces:
        space.submit([entry(b"x")])
    close(spaces)
    spaces = open_shards(directory, folds)
    assert len(spaces) == 4
    for space in spaces:
        with space.view() as view:
            assert list(lines(view)) == [b"x"]
    close(spaces)


def test_makers_killed_at_random_moments_leave_a_space_or_nothing(tmp_path):
    rng = random.Random(5)
    for number in range(6):
        directory = tmp_path / str(number)
        with subprocess.Popen(
            [sys.executable, "-c", MAKER, directory, "8"], stdout=subprocess.PIPE, env=with_tests()
        ) as process:
            assert process.stdout.readline() == b"start\n"
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(rng.random() * 0.03)  # the random moment of the kill, not a wait for a state
            process.send_signal(signal.SIGKILL)
        spaces = open_shards(directory, folds, shards=8)
        assert len(spaces) == 8
        close(spaces)


def test_of_makers_at_once_with_other_numbers_one_decides(directory):
    results = []

    def make(shards):
        try:
            spaces = open_shards(directory, folds, shards=shards)
            results.append((shards, len(spaces)))
            close(spaces)
        except InvalidArgument:
            results.append((shards, None))

    threads = [threading.Thread(target=make, args=(shards,)) for shards in (2, 3, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    made = shard_count(directory)
    assert sorted(results, key=str) == sorted(
        [(shards, made if shards == made else None) for shards in (2, 3, 2, 3)], key=str
    )


def test_a_connection_reads_the_number_from_the_space(directory):
    with contextlib.closing(of.connect(directory, shards=3)):
        pass
    with contextlib.closing(of.connect(directory)) as db:
        assert db._state.shard_count == 3
