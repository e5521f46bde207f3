"""Opening spaces of both engines: URLs, folders that may not be read or written, forks, several at once, and what it costs."""

import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing, suppress
from pathlib import Path

import apsw
import pytest

from kit.environment import with_tests
from kit.ledger import Ledger, entry, receipt
from onefold.errors import InvalidArgument, SpaceError
from onefold.space.open_shard import open_shard
from support.ledger_spaces import SOON_S, ledger_of


@pytest.mark.parametrize("url", ["{dir}", "sqlite://{dir}", "sqlite:{dir}"])
def test_urls_of_a_directory(url, tmp_path):
    directory = tmp_path / "space"
    with closing(open_shard(url.format(dir=directory), [Ledger()])) as space:
        space.submit([entry(b"a")])
        assert space.directory == directory
        with closing(open_shard(space.url, [Ledger()])) as again:
            assert again.incarnation == space.incarnation and set(ledger_of(again)) == {b"a"}


@pytest.mark.parametrize("url", ["", "sqlite://host/dir", "nats://a/b", "memory://named", "sqlite://"])
def test_urls_that_name_nothing(url):
    with pytest.raises((InvalidArgument, SpaceError)):
        open_shard(url, [])


def test_folds_must_differ(tmp_path):
    with pytest.raises(InvalidArgument, match="names must differ"):
        open_shard(tmp_path / "space", [Ledger(), Ledger()])


def test_read_only_sees_and_writes_nothing(tmp_path):
    directory = tmp_path / "space"
    with pytest.raises(SpaceError, match="no space"):
        open_shard(directory, [Ledger()], read_only=True)
    with pytest.raises(SpaceError, match="no space"):
        open_shard(directory, [Ledger()], create=False)
    with closing(open_shard(directory, [Ledger()])) as writer:
        writer.submit([entry(b"a")])
        with closing(open_shard(directory, [Ledger()], read_only=True)) as reader:
            assert set(ledger_of(reader)) == {b"a"}
            with pytest.raises(SpaceError, match="read-only"):
                reader.submit([entry(b"b")])
            writer.submit([entry(b"b")])
            assert set(ledger_of(reader)) == {b"a", b"b"}
            assert writer.member_alive(reader.member) is None


READER = """
import os, sys
# Imported first: another user may not be allowed to read this folder's code.
import onefold.shard.embedded, onefold.machine.wake
from onefold.log.sqlite import checksums
checksums.available()
from onefold.errors import SpaceError
from onefold.space.open_shard import open_shard
from kit.ledger import Ledger, lines
os.setgid(65534); os.setuid(65534)
try:
    open_shard(sys.argv[1], [Ledger()])
except SpaceError as error:
    print(error)
space = open_shard(sys.argv[1], [Ledger()], read_only=True)
at = space.applied
print(at, flush=True)
print(space.wait(at, float(sys.argv[2])))
with space.view() as view:
    print(sorted(lines(view)))
space.close()
"""


@pytest.fixture
def open_folder():
    """A folder that every user may look into (pytest closes its own to other users)."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to give up the right to write")
@pytest.mark.parametrize("beside_a_writer", [True, False])
def test_a_folder_that_cannot_be_written(beside_a_writer, open_folder):
    directory = open_folder / "space"
    space = open_shard(directory, [Ledger()])
    space.submit([entry(b"a")])
    if not beside_a_writer:
        space.close()
    wait = str(SOON_S) if beside_a_writer else "0.01"
    with subprocess.Popen(
        [sys.executable, "-c", READER, directory, wait],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=with_tests(),
    ) as process:
        first = process.stdout.readline()
        assert "Check its owner and mode" in first, first + process.stderr.read()
        assert process.stdout.readline() == "1\n"
        if beside_a_writer:
            space.submit([entry(b"b")])
        rest = process.stdout.read().splitlines()
    assert rest == (["2", "[b'a', b'b']"] if beside_a_writer else ["1", "[b'a']"])
    space.close()


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to give up the right to look")
def test_a_folder_that_cannot_be_entered(open_folder):
    open_shard(open_folder / "space", [Ledger()]).close()
    open_folder.chmod(0o700)
    script = READER.split("space = open_shard", maxsplit=1)[0]
    ended = subprocess.run(
        [sys.executable, "-c", script, open_folder / "space"],
        capture_output=True,
        text=True,
        check=False,
        env=with_tests(),
    )
    assert "Check its owner and mode" in ended.stdout, ended.stderr


def test_a_forked_child_is_told_to_open_again(tmp_path):
    with closing(open_shard(tmp_path / "space", [Ledger()])) as space:
        space.submit([entry(b"a")])
        space.wait(1, 0.01)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                for use in (
                    lambda: space.submit([entry(b"b")]),
                    lambda: ledger_of(space),
                    lambda: space.wait(0, 1),
                ):
                    try:
                        use()
                    except SpaceError as error:
                        code = 0 if "forked" in str(error) else 2
                space.close()
                with closing(open_shard(tmp_path / "space", [Ledger()])) as own:
                    own.submit([entry(b"c")])
                    code = code or (0 if own.member_alive(space.member) else 3)
            finally:
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0
        assert set(ledger_of(space)) == {b"a", b"c"}
        assert space.submit([entry(b"d")]) == [receipt(3, 0)]


def test_two_spaces_see_each_other_at_once(tmp_path):
    with (
        closing(open_shard(tmp_path / "s", [Ledger()])) as one,
        closing(open_shard(tmp_path / "s", [Ledger()])) as two,
    ):
        assert one.member_alive(two.member) and two.member_alive(one.member)
        for number in range(20):
            writer, reader = (one, two) if number % 2 else (two, one)
            token = b"%d" % number
            writer.submit([entry(token)])
            assert token in ledger_of(reader)
        two.close()
        assert one.member_alive(two.member) is False


@pytest.mark.parametrize("seed", range(4))
def test_a_writer_notices_what_others_wrote_in_between(tmp_path, seed):
    """Also when its connection was used for something else (a trim, a checkpoint) between their commit and its own next one."""
    rng, tokens = random.Random(seed), []
    with (
        closing(open_shard(tmp_path / "s", [Ledger()])) as one,
        closing(open_shard(tmp_path / "s", [Ledger()])) as two,
    ):
        for number in range(150):
            space = rng.choice((one, two))
            chance = rng.random()
            if chance < 0.1:
                space.log.trim(rng.randint(1, max(1, number - 5)))
            elif chance < 0.15:
                with space.log.file.maintaining() as con:
                    con.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_RESTART)
            elif chance < 0.2:
                with suppress(ZeroDivisionError), space.log.appending() as con:
                    con.execute("DELETE FROM kv")
                    raise ZeroDivisionError
            else:
                tokens.append(b"%d" % number)
                assert space.submit([entry(tokens[-1])]) == [
                    receipt(space.applied, 0 if len(tokens) > 1 else 1)
                ]
        assert {token: found.times for token, found in ledger_of(two).items()} == dict.fromkeys(tokens, 1)
        assert one.state_digest() == two.state_digest()


def test_opening_costs_few_syncs(tmp_path):
    """In commits of the same disk at the same time, so that a busy machine changes nothing."""
    made, opened, commits = [], [], []
    for number in range(7):
        start = time.perf_counter()
        space = open_shard(tmp_path / str(number), [Ledger()])
        made.append(time.perf_counter() - start)
        for token in (b"a", b"b", b"c"):
            start = time.perf_counter()
            space.submit([entry(token)])
            commits.append(time.perf_counter() - start)
        space.close()
        start = time.perf_counter()
        space = open_shard(tmp_path / str(number), [Ledger()])
        opened.append(time.perf_counter() - start)
        space.close()
    commit = statistics.median(commits)
    assert min(made) < max(0.025, 12 * commit), (made, commit)
    assert min(opened) < max(0.010, 8 * commit), (opened, commit)


def test_a_place_without_room_for_wake_ups_is_told(tmp_path):
    (tmp_path / "wake").write_text("")
    with pytest.raises(SpaceError, match="wake"):
        open_shard(tmp_path, [Ledger()])
