"""The embedded log's file: places that cannot be opened, damage, and what other processes need."""

import fcntl
import os
import subprocess
import sys
import threading
from contextlib import closing, contextmanager

import apsw
import pytest

from onefold import config
from onefold.env import SYSTEM
from onefold.errors import LogCorrupt, OnefoldError, SpaceError, Timeout, Unavailable
from onefold.log.sqlite import checksums
from onefold.log.sqlite.engine import SqliteLog
from onefold.log.sqlite.file import FILE_NAME, FORMAT, SqliteFile
from onefold.machine import flock, members, wake


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def make(path, records=0):
    with closing(SqliteLog(path)) as log:
        for number in range(records):
            log.append(b"record %d" % number * 20)


@pytest.mark.parametrize(
    "content", [b"this is no database, it is a text " * 100, b"SQLite format 3\x00" + bytes(200)]
)
def test_a_foreign_file_is_refused_and_left_alone(tmp_path, content):
    file = tmp_path / FILE_NAME
    file.write_bytes(content)
    with pytest.raises((SpaceError, LogCorrupt)):
        SqliteLog(tmp_path)
    assert file.read_bytes() == content


def test_another_programs_database_is_refused(tmp_path):
    con = apsw.Connection(str(tmp_path / FILE_NAME))
    con.execute("CREATE TABLE theirs(a)")
    con.close()
    with pytest.raises(SpaceError, match="another program"):
        SqliteLog(tmp_path)


def test_a_newer_format_is_refused(tmp_path):
    make(tmp_path)
    con = apsw.Connection(str(tmp_path / FILE_NAME), vfs=checksums.VFS)
    con.execute(f"PRAGMA user_version={FORMAT + 1}")
    con.close()
    with pytest.raises(SpaceError, match=r"newer Onefold.*pip install -U"):
        SqliteLog(tmp_path)


def test_a_missing_parent_and_a_file_as_directory(tmp_path):
    with pytest.raises(SpaceError, match="does not exist"):
        SqliteLog(tmp_path / "missing" / "space")
    (tmp_path / "file").write_text("x")
    with pytest.raises(SpaceError, match="is a file"):
        SqliteLog(tmp_path / "file")


def test_an_interrupted_creation_is_finished(tmp_path):
    (tmp_path / FILE_NAME).touch()
    make(tmp_path, 1)
    other = tmp_path / "other"
    other.mkdir()
    con = apsw.Connection(str(other / FILE_NAME))
    con.execute("PRAGMA journal_mode=WAL").fetchall()
    con.close()
    make(other, 1)


def test_create_false_makes_nothing(tmp_path):
    with pytest.raises(SpaceError, match="no space"):
        SqliteFile(tmp_path / "none", (), SYSTEM, create=False)
    assert not (tmp_path / "none").exists()


def test_using_it_after_close_says_so(tmp_path):
    log = SqliteLog(tmp_path)
    log.close()
    log.close()
    for use in (lambda: log.append(b"x"), lambda: log.last, lambda: log.read(1)):
        with pytest.raises(SpaceError, match="closed"):
            use()


def test_a_full_disk_is_definite_and_rolls_back(tmp_path):
    with closing(SqliteLog(tmp_path)) as log:
        log.append(b"before")
        pages = log.file._writer.execute("PRAGMA page_count").get
        log.file._writer.execute(f"PRAGMA max_page_count={pages}").fetchall()
        with pytest.raises(Unavailable, match="full") as caught:
            log.append(bytes(100_000))
        assert caught.value.definite
        assert log.last == 1
        log.file._writer.execute("PRAGMA max_page_count=1000000").fetchall()
        assert log.append(b"after") == 2


def test_flipped_bits_anywhere_in_the_file_are_never_served_as_records(tmp_path):
    make(tmp_path, 60)
    with closing(SqliteLog(tmp_path)) as log:
        truth = [entry.data for entry in log.read(1)]
    whole = (tmp_path / FILE_NAME).read_bytes()
    where = whole.index(truth[30])
    outcomes = {"found": 0, "harmless": 0}
    bits = [
        *range((where - 12) * 8, (where + len(truth[30])) * 8, 7),
        *range(0, len(whole) * 8, len(whole) * 8 // 150),
    ]
    for bit in bits:
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        for name in names(tmp_path):
            if name.startswith(FILE_NAME):
                (tmp_path / name).unlink()
        (tmp_path / FILE_NAME).write_bytes(damaged)
        try:
            with closing(SqliteLog(tmp_path)) as log:
                served = [entry.data for entry in log.read(1)]
        except OnefoldError:
            outcomes["found"] += 1
            continue
        # A lost end cannot be seen by the log alone (the space compares it with what was applied); a change can.
        assert served == truth[: len(served)], f"bit {bit} was flipped and the log served other records"
        outcomes["harmless"] += 1
    assert outcomes["found"] > 20, outcomes


def test_the_wal_stays_bounded_beside_readers(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "WAL_BYTES_MAX", 8 << 20)
    done = threading.Event()

    def overlap(mine, others):
        """Two of these always hold a snapshot, each letting go only when the other has a new one."""
        while not done.is_set():
            with log.file.reading() as con:
                con.execute("BEGIN")
                con.execute("SELECT count(*) FROM log").fetchall()
                others.release()
                mine.acquire(timeout=0.01)

    with closing(SqliteLog(tmp_path)) as log:
        one, two = threading.Semaphore(0), threading.Semaphore(0)
        threads = [threading.Thread(target=overlap, args=pair) for pair in ((one, two), (two, one))]
        for thread in threads:
            thread.start()
        largest = 0
        for _ in range(120):
            log.append(bytes(500_000))
            largest = max(largest, (tmp_path / f"{FILE_NAME}-wal").stat().st_size)
        done.set()
        for thread in threads:
            thread.join()
    assert largest < 24 << 20, f"the WAL had {largest} bytes while 60 MB were appended"


# -- processes


def test_a_forked_child_is_told_to_open_again_and_harms_nothing(tmp_path):
    with closing(SqliteLog(tmp_path)) as log:
        log.append(b"parent")
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                log.append(b"child")
            except SpaceError as error:
                code = 0 if "forked" in str(error) else 2
            finally:
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0
        assert log.append(b"parent again") == 2
        assert log.wait(1, 5) == 2


def test_a_child_does_not_keep_its_parents_membership(tmp_path):
    script = (
        "import os, sys, pathlib\n"
        "from onefold.machine.members import Member\n"
        "member = Member(pathlib.Path(sys.argv[1]), 'm_parent', '')\n"
        "if os.fork() == 0:\n"
        "    os.write(1, b'child\\n')\n"
        "    sys.stdin.read()\n"  # lives until the test says so
        "    os._exit(0)\n"
        "os.write(1, b'parent\\n')\n"
        "sys.stdout.flush()\n"
        "os.kill(os.getpid(), 9)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert {process.stdout.readline(), process.stdout.readline()} == {b"child\n", b"parent\n"}
        process.wait()
        assert members.alive(tmp_path, "m_parent") is False, "its child still lives, but the member is dead"
        assert names(tmp_path) == []


def test_members_live_while_their_process_does(tmp_path):
    one = members.Member(tmp_path, "m_one", "note")
    assert members.alive(tmp_path, "m_one") is True
    assert members.notes(tmp_path) == {"m_one": "note"}
    assert members.alive(tmp_path, "m_other") is False
    assert members.alive(tmp_path, "r_reader") is None
    assert members.sweep(tmp_path) == []
    one.close()
    assert members.alive(tmp_path, "m_one") is False
    assert names(tmp_path) == []


def test_a_dead_listeners_fifo_is_removed_by_the_next_bell(tmp_path):
    os.mkfifo(tmp_path / "dead")
    living = wake.Listener(tmp_path, "living")
    notifier = wake.Notifier(tmp_path)
    notifier.notify()
    assert living.wait(60)
    assert not living.wait(0)
    assert names(tmp_path) == ["living"]
    living.close()
    assert names(tmp_path) == []


def test_a_full_fifo_blocks_nobody(tmp_path):
    listener = wake.Listener(tmp_path, "slow")
    notifier = wake.Notifier(tmp_path)
    for _ in range(70_000):
        notifier._poke(f"{tmp_path}/slow")
    assert listener.wait(0)
    listener.close()


def test_a_listener_that_cannot_write_still_waits(tmp_path):
    (tmp_path / "file").touch()
    listener = wake.Listener(tmp_path / "file" / "wake", "name")
    assert not listener.wait(0.01)
    listener.poke()
    assert listener.wait(60)
    listener.close()


# -- waiting


class Counted(SqliteLog):
    """Counts how often the end of the file is read by those who wait."""

    looks = 0

    @property
    def last(self):
        if threading.current_thread().name == "waiter":
            self.looks += 1
        return super().last


def queued(log, many):
    while len(log._changed._waiting) < many:
        threading.Event().wait(0.001)


def wait_for(log, waiters, rounds, commit):
    """Each waits for every record; how often they looked into the file."""
    found = []

    def wait():
        at = 0
        for _ in range(rounds):
            at = log.wait(at, 120)
            found.append(at)

    threads = [threading.Thread(target=wait, name="waiter") for _ in range(waiters)]
    for thread in threads:
        thread.start()
    for number in range(rounds):
        queued(log, waiters)
        commit(number)
        while len(found) < waiters * (number + 1):
            threading.Event().wait(0.001)
    for thread in threads:
        thread.join()
    assert sorted(found) == sorted(list(range(1, rounds + 1)) * waiters)


@pytest.mark.parametrize("foreign", [False, True])
def test_those_who_wait_read_the_file_once_a_wait_whoever_commits(tmp_path, foreign):
    with closing(Counted(tmp_path)) as log, closing(SqliteLog(tmp_path)) as other:
        log.wait(0, 0.001)  # the watch begins
        writer = other if foreign else log
        wait_for(log, 8, 10, lambda number: writer.append(b"%d" % number))
        assert log.looks <= 8 * 10 + 8, "one each when the wait begins; a few are woken by an older commit"


def test_one_that_is_woken_by_an_older_offset_looks_into_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "WAKE_POLL_S", 60)  # no look by the watch comes in time
    with closing(SqliteLog(tmp_path)) as log:
        log.append(b"1")
        found = []
        waiter = threading.Thread(target=lambda: found.append(log.wait(1, 40)))
        waiter.start()
        queued(log, 1)
        with log.appending() as con:
            log.append_in(con, b"2", 1)
        log._seen = 0  # set by a thread that had compared it before the other one set it
        log.announce(1)
        waiter.join(60)
        assert found == [2]


@contextmanager
def stopped_writer(folder):
    """The write lock is held, as by a process that was stopped in the middle of a write."""
    fd = os.open(folder / "write.lock", os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


@pytest.fixture
def turns_waited_for(monkeypatch):
    """For how long each one queued who did not get the write lock at once."""
    found = []
    wait = flock.Ask.wait
    monkeypatch.setattr(flock.Ask, "wait", lambda self, timeout: found.append(timeout) or wait(self, timeout))
    return found


def test_an_opener_queues_once_behind_a_stopped_writer(tmp_path, turns_waited_for):
    make(tmp_path, 1)
    with stopped_writer(tmp_path), pytest.raises(Timeout, match=r"for 0\.2 s"):
        SqliteFile(tmp_path, (), SYSTEM, create=False, read_only=False, timeout=0.2)
    assert len(turns_waited_for) == 1, "its limit is that of the whole call"


def test_closing_waits_for_no_writer_of_other_processes(tmp_path, turns_waited_for):
    make(tmp_path, 1)
    log = SqliteLog(tmp_path)
    with stopped_writer(tmp_path):
        log.close()
    assert not turns_waited_for


def test_closing_waits_for_a_write_of_its_own(tmp_path):
    file = SqliteFile(tmp_path, (), SYSTEM, create=True, read_only=False)
    writing, goes_on = threading.Event(), threading.Event()

    def write():
        with file.writing() as con:
            writing.set()
            assert goes_on.wait(120)
            con.execute("CREATE TABLE written (n)")

    thread = threading.Thread(target=write)
    thread.start()
    assert writing.wait(120)
    closer = threading.Thread(target=file.close)
    closer.start()
    closer.join(0.05)
    assert closer.is_alive()
    goes_on.set()
    thread.join(120)
    closer.join(120)
    with closing(apsw.Connection(str(tmp_path / FILE_NAME))) as con:
        assert con.execute("SELECT count(*) FROM written").get == 0
