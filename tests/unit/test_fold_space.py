"""Spaces of both engines: submitting, viewing, waiting, system operations, snapshots, refusals and halts."""

import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import apsw
import pytest

from onefold import config
from onefold.codec import Op, Record, crc32c, encode_record
from onefold.env import SYSTEM, SeededEnv
from onefold.errors import (
    AppendUnknown,
    InvalidArgument,
    LogCorrupt,
    SpaceError,
    TooLarge,
    TooOld,
    Unavailable,
)
from onefold.fold import exactly_once, sqlite_space, system
from onefold.fold.log_space import LogSpace
from onefold.fold.open import open_space
from onefold.fold.replica import FoldFailed
from onefold.fold.restore import restore_space
from onefold.ids import client_id
from onefold.log import checksums
from onefold.log.memory import Faults, MemoryLog
from onefold.testing import check_fold
from onefold.testing.ledger import Ledger, entry, line, lines, receipt

SOON_S = 20


def edit(directory):
    """A connection to the space's file by whose edits its pages keep their checksums."""
    assert checksums.available()
    return apsw.Connection(str(directory / "space.db"), vfs=checksums.VFS)


@pytest.fixture(params=["memory", "sqlite"])
def space(request, tmp_path):
    url = "memory://" if request.param == "memory" else tmp_path / "space"
    with closing(open_space(url, [Ledger()])) as opened:
        yield opened


def ledger_of(space):
    with space.view() as view:
        return lines(view)


class Raiser:
    """A fold with a bug: it raises for one body."""

    name, version, history = "raiser", 1, frozenset()

    def apply(self, store, context, body, fold_version):
        store.put("raiser/seen", body, b"")
        if body == b"raise":
            raise ValueError("a bug")
        return body


# -- submitting and viewing


def test_outcomes_come_in_order(space):
    assert space.submit([]) == []
    outcomes = space.submit([entry(b"a"), entry(b"b"), entry(b"")])
    assert outcomes == [receipt(1, 1), receipt(1, 2), b"refused"]
    assert space.submit([entry(b"c")]) == [receipt(2, 0)]
    assert space.applied == 2


def test_a_view_shows_one_offset(space):
    space.submit([entry(b"a")])
    with space.view() as before:
        space.submit([entry(b"b"), entry(b"a")])
        with space.view() as after:
            assert set(lines(before)) == {b"a"} and line(before, b"a").times == 1 and before.offset == 1
            assert set(lines(after)) == {b"a", b"b"} and line(after, b"a").times == 2 and after.offset == 2
    with pytest.raises(SpaceError, match="with"):
        before.get("ledger/lines", b"a")


def test_the_past_can_be_viewed(space):
    for token in (b"a", b"b", b"c"):
        space.submit([entry(token)])
    for offset, seen in enumerate([set(), {b"a"}, {b"a", b"b"}, {b"a", b"b", b"c"}]):
        with space.view(at=offset) as view:
            assert set(lines(view)) == seen and view.offset == offset
    with pytest.raises(InvalidArgument, match="beyond"), space.view(at=4):
        pass


def test_an_unknown_fold_is_refused_before_anything_is_written(space):
    with pytest.raises(InvalidArgument, match="'nobody'"):
        space.submit([entry(b"a"), Op("nobody", b"x")])
    assert space.applied == 0


def test_what_is_too_large_does_not_fail_its_neighbours(space, monkeypatch):
    monkeypatch.setattr(config, "RECORD_BYTES_MAX", 4000)
    monkeypatch.setattr(config, "OPERATIONS_PER_RECORD_MAX", 20)
    results = {}

    def submit(number):
        ops = [entry(b"t%d" % number)]
        if number % 5 == 0:
            ops = [Op("ledger", bytes(5000))] if number % 2 else [entry(b"x")] * 30
        try:
            results[number] = space.submit(ops)[0]
        except TooLarge as error:
            results[number] = error

    threads = [threading.Thread(target=submit, args=(number,)) for number in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {number for number, result in results.items() if isinstance(result, TooLarge)} == set(
        range(0, 40, 5)
    )
    assert set(ledger_of(space)) == {b"t%d" % number for number in range(40) if number % 5}


def test_threads_share_records_and_get_their_own_outcomes(space):
    outcomes, errors = {}, []

    def write(thread):
        try:
            for number in range(30):
                tokens = [b"%d-%d-%d" % (thread, number, part) for part in range(2)]
                outcomes.update(zip(tokens, space.submit([entry(token) for token in tokens]), strict=True))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    found = ledger_of(space)
    assert {token: receipt(seen.offset, seen.place) for token, seen in found.items()} == outcomes
    assert all(seen.times == 1 for seen in found.values())
    for thread in range(8):
        for number in range(30):
            one, two = (found[b"%d-%d-%d" % (thread, number, part)] for part in range(2))
            assert one.offset == two.offset and two.place == one.place + 1, (
                "one submit's operations stay together"
            )


def test_wait(space):
    assert space.wait(0, 0.01) == 0
    seen = []
    thread = threading.Thread(target=lambda: seen.append(space.wait(0, SOON_S)))
    thread.start()
    space.submit([entry(b"a")])
    thread.join(SOON_S)
    assert seen == [1]


def test_a_writer_killed_before_its_wake_up_is_noticed_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr("onefold.log.wake.Bell.ring", lambda bell: None)
    with (
        closing(open_space(tmp_path / "s", [Ledger()])) as one,
        closing(open_space(tmp_path / "s", [Ledger()])) as two,
    ):
        seen = []
        thread = threading.Thread(target=lambda: seen.append(two.wait(0, SOON_S)))
        thread.start()
        one.submit([entry(b"a")])
        thread.join(SOON_S)
        assert seen == [1]


def test_after_close_everything_says_so(space):
    space.submit([entry(b"a")])
    space.close()
    space.close()
    for use in (lambda: space.submit([entry(b"b")]), lambda: ledger_of(space), lambda: space.wait(0, 1)):
        with pytest.raises(SpaceError, match="closed"):
            use()


def test_members(space):
    assert space.member_alive(space.member) is True
    assert space.member_alive("m_0000000000000000") is False


# -- request ids, system operations


def test_a_request_id_is_applied_once_within_its_retention(monkeypatch):
    env = SeededEnv(1)
    with closing(open_space("memory://", [Ledger()], env=env)) as space:
        first = space.submit([entry(b"a", request_id="r")])
        assert space.submit([entry(b"a", request_id="r")]) == first
        assert space.outcome("r") == first[0]
        assert space.outcome("other") is None
        env.advance(config.REQUEST_ID_RETENTION_S + 1)
        space.submit([system.system_op(system.Tick())])
        assert space.outcome("r") is None
        assert space.submit([entry(b"a", request_id="r")]) != first
        assert ledger_of(space)[b"a"].times == 2


def test_trimming_forgets_records_and_keeps_the_state(space):
    for token in (b"a", b"b", b"c"):
        space.submit([entry(token)])
    space.trim(3)
    assert space.log.first == 3
    with pytest.raises(TooOld):
        space.log.read(1)
    with pytest.raises(InvalidArgument, match="refused"):
        space.trim(2)
    assert set(ledger_of(space)) == {b"a", b"b", b"c"}


def test_forgotten_clients_are_expired_and_new_ones_are_not():
    known = exactly_once.Known(3, 50, ())
    judge = exactly_once.judge
    assert judge("ca-00", 1, None, offset=100, floor=0) is exactly_once.Verdict.APPLY
    assert judge("ca-00", 2, None, offset=100, floor=0) is exactly_once.Verdict.GAP
    assert judge("ca-00", 1, None, offset=100, floor=11) is exactly_once.Verdict.EXPIRED
    assert judge("ca-00", 4, known, offset=100, floor=11) is exactly_once.Verdict.APPLY
    assert judge("ca-00", 3, known, offset=100, floor=11) is exactly_once.Verdict.DUPLICATE
    assert judge("ca-00", 5, known, offset=100, floor=11) is exactly_once.Verdict.GAP
    for client, number in (("x", 1), ("c", 1), ("c-1", 1), ("cff-00", 1), ("c-1-00", 1), ("ca-00", 0)):
        assert judge(client, number, None, offset=100, floor=0) is exactly_once.Verdict.MALFORMED


def test_a_client_that_was_forgotten_goes_on_as_a_new_one(space):
    space.submit([entry(b"a")])
    for token in (b"b", b"c"):
        space.submit([entry(token)])
    space.submit([system.system_op(system.ExpireClients(4))])
    assert space.submit([entry(b"d")])[0] == receipt(5, 0) or ledger_of(space)[b"d"].times == 1
    assert all(seen.times == 1 for seen in ledger_of(space).values())


class Newer(Ledger):
    version = 2


def test_a_raised_fold_version_keeps_older_programs_out(tmp_path):
    directory = tmp_path / "space"
    with closing(open_space(directory, [Newer()])) as new:
        with closing(open_space(directory, [Ledger()])) as old, pytest.raises(SpaceError, match=old.member):
            new.raise_fold_version(2)
        new.raise_fold_version(2)
        new.submit([entry(b"a")])
        with pytest.raises(SpaceError, match=r"fold version 2.*pip install -U"):
            open_space(directory, [Ledger()])
        with pytest.raises(SpaceError, match="knows fold version 2, not 3"):
            new.raise_fold_version(3)


# -- refusals and halts


def test_garbage_in_the_log_is_skipped_counted_and_listed(space):
    space.submit([entry(b"a")])
    stranger = encode_record(Record("nonsense", 1, 0, (entry(b"x"),)))
    unknown_fold = encode_record(Record(client_id(0, SYSTEM), 1, 0, (Op("nobody", b"x"),)))
    for data in (b"", b"garbage", stranger, unknown_fold):
        space.log.append(data)
    if space.directory is not None:
        space.catch_up()
    space.submit([entry(b"b")])
    with space.view() as view:
        assert set(lines(view)) == {b"a", b"b"}
        assert view.head().refused == 3
        assert [row[0] for row in view._con.execute("SELECT offset FROM refused")] == [2, 3, 4]


def test_a_fold_that_raises_fails_alone(tmp_path):
    with closing(open_space(tmp_path / "space", [Raiser(), Ledger()])) as space:
        with pytest.raises(FoldFailed, match="raised ValueError: a bug"):
            space.submit([Op("raiser", b"raise")])
        assert space.applied == 0
        results = {}

        def submit(number):
            try:
                op = Op("raiser", b"raise") if number % 3 == 0 else entry(b"%d" % number)
                results[number] = space.submit([op])[0]
            except FoldFailed as error:
                results[number] = error

        threads = [threading.Thread(target=submit, args=(number,)) for number in range(24)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {n for n, result in results.items() if isinstance(result, FoldFailed)} == set(range(0, 24, 3))
        assert len(ledger_of(space)) == 16
        with space.view() as view:
            assert list(view.scan("raiser/seen")) == []


def test_a_replica_halts_on_a_hole_and_stays_halted():
    log = MemoryLog()
    with closing(LogSpace(log, [Ledger()], SYSTEM)) as space:
        for token in (b"a", b"b", b"c"):
            space.submit([entry(token)])
        log.lose(2)
        with pytest.raises(LogCorrupt):
            LogSpace(log, [Ledger()], SYSTEM)
        late = log.hold(1)
        behind = LogSpace(late, [Ledger()], SYSTEM)
        late.go_on()
        for _ in range(2):
            with pytest.raises(LogCorrupt):
                ledger_of(behind)


def test_an_acknowledged_record_that_is_not_there_halts():
    class Liar(MemoryLog):
        def append(self, data):
            return super().append(encode_record(Record(client_id(0, SYSTEM), 1, 0, ())))

    space = LogSpace(Liar(), [Ledger()], SYSTEM)
    with pytest.raises(LogCorrupt, match="acknowledged at offset 1"):
        space.submit([entry(b"a")])


def test_an_engine_that_acknowledges_before_it_syncs_is_found_out():
    log = MemoryLog(syncs=False)
    space = LogSpace(log, [Ledger()], SYSTEM)
    space.submit([entry(b"a")])
    log.sync()
    space.submit([entry(b"b")])
    assert log.crash() == 1
    other = LogSpace(log, [Ledger()], SYSTEM)
    other.submit([entry(b"c")])
    other.verify()
    with pytest.raises(LogCorrupt, match="not the log that was applied"):
        space.verify()


def test_unknown_appends_are_tried_again_and_then_said_to_be_unknown():
    env = SeededEnv(3)
    log = MemoryLog(faults=Faults(vanished=1.0), env=env)
    space = LogSpace(log, [Ledger()], env, pause=env.advance)
    with pytest.raises(AppendUnknown) as caught:
        space.submit([entry(b"a")])
    assert not caught.value.definite
    log.faults = Faults(lost_answer=1.0)
    assert space.submit([entry(b"b")]) == [receipt(1, 1)]
    log.faults = Faults(refused=1.0)
    with pytest.raises(Unavailable) as refused:
        space.submit([entry(b"c")])
    assert refused.value.definite
    assert set(ledger_of(space)) == {b"b"}


def test_a_commit_of_unknown_outcome_is_tried_again_under_its_number(tmp_path, monkeypatch):
    with closing(open_space(tmp_path / "space", [Ledger()])) as space:
        space.submit([entry(b"a")])
        calls = []

        def commit_once_lost(timeout=None):
            return LostAfterCommit(space._file.writing(timeout), calls)

        monkeypatch.setattr(space._log, "appending", commit_once_lost)
        assert space.submit([entry(b"b")]) == [receipt(2, 0)]
        assert len(calls) >= 2, "it was tried again"
        assert space.applied == 2
        assert ledger_of(space)[b"b"].times == 1


class LostAfterCommit:
    """A transaction that commits and then says that nobody knows."""

    def __init__(self, inner, calls):
        self.inner, self.calls = inner, calls

    def __enter__(self):
        return self.inner.__enter__()

    def __exit__(self, *error):
        result = self.inner.__exit__(*error)
        self.calls.append(1)
        if len(self.calls) == 1 and error[0] is None:
            raise AppendUnknown("the commit happened, and its answer was lost")
        return result


def test_a_flipped_bit_halts_a_replay(tmp_path):
    directory = tmp_path / "space"
    with closing(open_space(directory, [Ledger()])) as space:
        for token in (b"a", b"b", b"c"):
            space.submit([entry(token)])
    con = edit(directory)
    con.execute("UPDATE log SET data = CAST(data || x'00' AS BLOB) WHERE offset = 2")
    con.execute("UPDATE head SET applied = 1")
    con.close()
    with pytest.raises(LogCorrupt, match="offset 2"):
        open_space(directory, [Ledger()])


def test_a_log_that_lost_its_end_is_noticed(tmp_path):
    directory = tmp_path / "space"
    with closing(open_space(directory, [Ledger()])) as space:
        for token in (b"a", b"b"):
            space.submit([entry(token)])
    con = edit(directory)
    con.execute("DELETE FROM log WHERE offset = 2")
    con.close()
    (directory / "tip").unlink()
    with pytest.raises(LogCorrupt, match="ends at 1 but 2 was applied"):
        open_space(directory, [Ledger()])


# -- snapshots


def test_a_snapshot_and_the_rest_equal_the_whole(tmp_path):
    check_fold(Ledger(), [b"token %d" % (number % 40) for number in range(120)], seed=5)


def test_check_fold_notices_what_is_wrong():
    class Forgetful(Ledger):
        seen = 0

        def apply(self, store, context, body, fold_version):
            self.seen += 1  # state outside the store
            store.put("ledger/count", b"", b"%d" % self.seen)
            return b""

    class Fragile(Ledger):
        def apply(self, store, context, body, fold_version):
            return body.decode().encode()

    with pytest.raises(AssertionError, match="another state"):
        check_fold(Forgetful(), [b"x"] * 10)
    with pytest.raises(FoldFailed):
        check_fold(Fragile(), [b"x"] * 10)


def test_snapshots_are_whole_or_refused(space, tmp_path):
    for number in range(20):
        space.submit([entry(b"%d" % number)])
    path = tmp_path / "snapshot"
    made = space.snapshot(path)
    assert (made.offset, made.incarnation) == (20, space.incarnation)
    assert made.state_digest == space.state_digest()
    assert not list(tmp_path.glob(".*.tmp"))
    whole = path.read_bytes()
    log = MemoryLog()
    for item in space.log.read(1):
        log.append(item.data)
        log._stored[-1].engine_ms = item.engine_ms
    assert LogSpace(log, [Ledger()], SYSTEM, snapshot=path).state_digest() == space.state_digest()
    other = MemoryLog()
    for number in range(30):
        other.append(b"%d" % number)
    with pytest.raises(LogCorrupt, match="another log"):
        LogSpace(other, [Ledger()], SYSTEM, snapshot=path)
    at = whole.rindex(b"\x00\x00\x0a") if b"\x00\x00\x0a" in whole else len(whole) // 2
    for place in (at, len(whole) // 2, 20):
        path.write_bytes(whole[:place])
        with pytest.raises((LogCorrupt, SpaceError)):
            LogSpace(log, [Ledger()], SYSTEM, snapshot=path)
    with pytest.raises(SpaceError, match="no snapshot"):
        LogSpace(log, [Ledger()], SYSTEM, snapshot=tmp_path / "none")
    with pytest.raises(SpaceError, match="cannot be written"):
        space.snapshot(tmp_path / "missing" / "snapshot")


def test_a_space_is_restored_from_a_snapshot(space, tmp_path):
    for number in range(20):
        space.submit([entry(b"%d" % number)])
    space.snapshot(tmp_path / "snapshot")
    before = ledger_of(space)
    assert restore_space(tmp_path / "snapshot", tmp_path / "new", [Ledger()]).offset == 20
    with pytest.raises(SpaceError, match="already"):
        restore_space(tmp_path / "snapshot", tmp_path / "new", [Ledger()])
    for _ in range(2):
        with closing(open_space(tmp_path / "new", [Ledger()])) as new:
            assert new.incarnation != space.incarnation
            assert ledger_of(new) == before
            outcome = new.submit([entry(b"next")])[0]
            assert outcome == receipt(new.applied, 0)
            new.verify()
            before = ledger_of(new)
            assert new.log.first == 21
    with pytest.raises(SpaceError, match="no snapshot"):
        restore_space(tmp_path / "none", tmp_path / "other", [Ledger()])
    with closing(open_space(tmp_path / "other", [Ledger()])) as other:
        assert other.applied == 0


# -- opening


@pytest.mark.parametrize("url", ["{dir}", "sqlite://{dir}", "sqlite:{dir}"])
def test_urls_of_a_directory(url, tmp_path):
    directory = tmp_path / "space"
    with closing(open_space(url.format(dir=directory), [Ledger()])) as space:
        space.submit([entry(b"a")])
        assert space.directory == directory
        with closing(open_space(space.url, [Ledger()])) as again:
            assert again.incarnation == space.incarnation and set(ledger_of(again)) == {b"a"}


@pytest.mark.parametrize("url", ["", "sqlite://host/dir", "nats://a/b", "memory://named", "sqlite://"])
def test_urls_that_name_nothing(url):
    with pytest.raises((InvalidArgument, SpaceError)):
        open_space(url, [])


def test_folds_must_differ(tmp_path):
    with pytest.raises(InvalidArgument, match="names must differ"):
        open_space(tmp_path / "space", [Ledger(), Ledger()])


def test_read_only_sees_and_writes_nothing(tmp_path):
    directory = tmp_path / "space"
    with pytest.raises(SpaceError, match="no space"):
        open_space(directory, [Ledger()], read_only=True)
    with pytest.raises(SpaceError, match="no space"):
        open_space(directory, [Ledger()], create=False)
    with closing(open_space(directory, [Ledger()])) as writer:
        writer.submit([entry(b"a")])
        with closing(open_space(directory, [Ledger()], read_only=True)) as reader:
            assert set(ledger_of(reader)) == {b"a"}
            with pytest.raises(SpaceError, match="read-only"):
                reader.submit([entry(b"b")])
            writer.submit([entry(b"b")])
            assert set(ledger_of(reader)) == {b"a", b"b"}
            assert writer.member_alive(reader.member) is None


READER = """
import os, sys
# Imported first: another user may not be allowed to read this folder's code.
import onefold.fold.sqlite_space, onefold.log.wake
from onefold.log import checksums
checksums.available()
from onefold.errors import SpaceError
from onefold.fold.open import open_space
from onefold.testing.ledger import Ledger, lines
os.setgid(65534); os.setuid(65534)
try:
    open_space(sys.argv[1], [Ledger()])
except SpaceError as error:
    print(error)
space = open_space(sys.argv[1], [Ledger()], read_only=True)
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
    space = open_space(directory, [Ledger()])
    space.submit([entry(b"a")])
    if not beside_a_writer:
        space.close()
    wait = str(SOON_S) if beside_a_writer else "0.01"
    with subprocess.Popen(
        [sys.executable, "-c", READER, directory, wait],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
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
    open_space(open_folder / "space", [Ledger()]).close()
    open_folder.chmod(0o700)
    script = READER.split("space = open_space", maxsplit=1)[0]
    ended = subprocess.run(
        [sys.executable, "-c", script, open_folder / "space"], capture_output=True, text=True, check=False
    )
    assert "Check its owner and mode" in ended.stdout, ended.stderr


def test_a_forked_child_is_told_to_open_again(tmp_path):
    with closing(open_space(tmp_path / "space", [Ledger()])) as space:
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
                with closing(open_space(tmp_path / "space", [Ledger()])) as own:
                    own.submit([entry(b"c")])
                    code = code or (0 if own.member_alive(space.member) else 3)
            finally:
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0
        assert set(ledger_of(space)) == {b"a", b"c"}
        assert space.submit([entry(b"d")]) == [receipt(3, 0)]


def test_two_spaces_see_each_other_at_once(tmp_path):
    with (
        closing(open_space(tmp_path / "s", [Ledger()])) as one,
        closing(open_space(tmp_path / "s", [Ledger()])) as two,
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
        closing(open_space(tmp_path / "s", [Ledger()])) as one,
        closing(open_space(tmp_path / "s", [Ledger()])) as two,
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
        space = open_space(tmp_path / str(number), [Ledger()])
        made.append(time.perf_counter() - start)
        for token in (b"a", b"b", b"c"):
            start = time.perf_counter()
            space.submit([entry(token)])
            commits.append(time.perf_counter() - start)
        space.close()
        start = time.perf_counter()
        space = open_space(tmp_path / str(number), [Ledger()])
        opened.append(time.perf_counter() - start)
        space.close()
    commit = statistics.median(commits)
    assert min(made) < max(0.025, 12 * commit), (made, commit)
    assert min(opened) < max(0.010, 8 * commit), (opened, commit)


# -- what fails after the record was written


@pytest.mark.parametrize("error", [Unavailable("full"), AppendUnknown("lost")])
def test_housekeeping_that_fails_is_not_told_of_the_operations(tmp_path, monkeypatch, error):
    monkeypatch.setattr(sqlite_space, "_HOUSEKEEPING_EVERY_OFFSETS", 3)
    monkeypatch.setattr(config, "CLIENT_IDLE_OFFSETS", 1)
    monkeypatch.setattr(config, "CLIENTS_KEPT_MAX", 0)
    append, failed = sqlite_space.SqliteSpace._append, []

    def fails_once(self, con, head, client, known, ops):
        if ops[0].fold == system.SYSTEM_FOLD and not failed:
            failed.append(ops)
            raise error
        return append(self, con, head, client, known, ops)

    monkeypatch.setattr(sqlite_space.SqliteSpace, "_append", fails_once)
    with closing(open_space(tmp_path / "space", [Ledger()])) as space:
        for token in (b"a", b"b", b"c", b"d"):
            space.submit([entry(token)])
        assert failed
        assert {token: one.times for token, one in ledger_of(space).items()} == dict.fromkeys(
            (b"a", b"b", b"c", b"d"), 1
        )


def test_an_interrupted_retry_does_not_answer_the_next_commit(tmp_path, monkeypatch):
    with closing(open_space(tmp_path / "space", [Ledger()])) as space:
        space.submit([entry(b"a")])
        writing = space.log.file.writing

        @contextmanager
        def without_answer(timeout=None):
            with writing(timeout) as con:
                yield con
            raise AppendUnknown("the disk failed")

        def interrupt(_seconds):
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(space.log.file, "writing", without_answer)
            patched.setattr(sqlite_space.time, "sleep", interrupt)
            with pytest.raises(KeyboardInterrupt):
                space.submit([entry(b"b")])
        space.submit([entry(b"c")])
        assert {token: one.times for token, one in ledger_of(space).items()} == {b"a": 1, b"b": 1, b"c": 1}


def test_an_interrupted_append_does_not_swallow_the_next(monkeypatch):
    log = MemoryLog()
    with closing(LogSpace(log, [Ledger()], SYSTEM)) as space:
        space.submit([entry(b"a")])
        append = log.append

        def interrupted(data):
            append(data)
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(log, "append", interrupted)
            with suppress(KeyboardInterrupt):
                space.submit([entry(b"b")])
        space.submit([entry(b"c")])
        assert {token: one.times for token, one in ledger_of(space).items()} == {b"a": 1, b"b": 1, b"c": 1}


@pytest.mark.parametrize("answered", [True, False])
def test_a_log_that_cannot_be_read_after_an_append_leaves_it_indefinite(monkeypatch, answered):
    log = MemoryLog()
    with closing(LogSpace(log, [Ledger()], SYSTEM)) as space:
        space.submit([entry(b"a")])
        append = log.append

        def unreadable(*_):
            raise Unavailable("the network is down")

        def without_answer(data):
            append(data)
            raise AppendUnknown("lost")

        with monkeypatch.context() as patched:
            patched.setattr(log, "read", unreadable)
            if not answered:
                patched.setattr(log, "append", without_answer)
            with pytest.raises(AppendUnknown) as caught:
                space.submit([entry(b"b")])
        assert not caught.value.definite
        space.submit([entry(b"c")])
        assert set(ledger_of(space)) == {b"a", b"b", b"c"}


def test_a_record_nested_beyond_any_stack_is_refused():
    log = MemoryLog()
    with closing(LogSpace(log, [Ledger()], SYSTEM)) as space:
        space.submit([entry(b"a")])
        record = encode_record(Record(client_id(0, SYSTEM), 1, 0, ()))[5:]
        body = bytes((record[0] + 1,)) + record[1:] + b"\x91" * 100_000 + b"\x90"
        log.append(b"\x01" + crc32c(b"\x01" + body).to_bytes(4, "big") + body)
        space.submit([entry(b"b")])
        assert set(ledger_of(space)) == {b"a", b"b"}
        with space.view() as view:
            assert view.head().refused == 1


def test_a_view_of_a_space_in_memory_that_was_closed_says_so():
    space = open_space("memory://", [Ledger()])
    space.submit([entry(b"a")])
    with space.view() as view:
        space.close()
        with pytest.raises(SpaceError, match="closed"):
            view.get("ledger/lines", b"a")


def test_a_place_without_room_for_wake_ups_is_told(tmp_path):
    (tmp_path / "wake").write_text("")
    with pytest.raises(SpaceError, match="wake"):
        open_space(tmp_path, [Ledger()])
