"""Spaces of both engines: what they refuse, what halts them, and what fails after a record was written."""

import threading
from contextlib import closing, contextmanager, suppress

import apsw
import pytest

from kit.ledger import Ledger, entry, lines, receipt
from onefold import config
from onefold.codec import Op, Record, crc32c, encode_record
from onefold.env import SYSTEM, SeededEnv
from onefold.errors import AppendUnknown, LogCorrupt, Unavailable
from onefold.fold import system
from onefold.ids import client_id
from onefold.log.memory import Faults, MemoryLog
from onefold.log.sqlite import checksums
from onefold.shard import embedded as sqlite_space
from onefold.shard.memory import MemoryShard
from onefold.space.open_shard import open_shard
from onefold.store.replica import FoldFailed
from support.ledger_spaces import (
    ledger_of,
    space_of_either_engine,  # noqa: F401
)


def edit(directory):
    """A connection to the space's file by whose edits its pages keep their checksums."""
    assert checksums.available()
    return apsw.Connection(str(directory / "space.db"), vfs=checksums.VFS)


class Raiser:
    """A fold with a bug: it raises for one body."""

    name, version, history = "raiser", 1, frozenset()

    def apply(self, store, context, body, fold_version):
        store.put("raiser/seen", body, b"")
        if body == b"raise":
            raise ValueError("a bug")
        return body


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
    with closing(open_shard(tmp_path / "space", [Raiser(), Ledger()])) as space:
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
    with closing(MemoryShard(log, [Ledger()], SYSTEM)) as space:
        for token in (b"a", b"b", b"c"):
            space.submit([entry(token)])
        log.lose(2)
        with pytest.raises(LogCorrupt):
            MemoryShard(log, [Ledger()], SYSTEM)
        late = log.hold(1)
        behind = MemoryShard(late, [Ledger()], SYSTEM)
        late.go_on()
        for _ in range(2):
            with pytest.raises(LogCorrupt):
                ledger_of(behind)


def test_an_acknowledged_record_that_is_not_there_halts():
    class Liar(MemoryLog):
        def append(self, data, deadline=None):
            return super().append(encode_record(Record(client_id(0, SYSTEM), 1, 0, ())))

    space = MemoryShard(Liar(), [Ledger()], SYSTEM)
    with pytest.raises(LogCorrupt, match="acknowledged at offset 1"):
        space.submit([entry(b"a")])


def test_an_engine_that_acknowledges_before_it_syncs_is_found_out():
    log = MemoryLog(syncs=False)
    space = MemoryShard(log, [Ledger()], SYSTEM)
    space.submit([entry(b"a")])
    log.sync()
    space.submit([entry(b"b")])
    assert log.crash() == 1
    other = MemoryShard(log, [Ledger()], SYSTEM)
    other.submit([entry(b"c")])
    other.verify()
    with pytest.raises(LogCorrupt, match="not the log that was applied"):
        space.verify()


def test_unknown_appends_are_tried_again_and_then_said_to_be_unknown():
    env = SeededEnv(3)
    log = MemoryLog(faults=Faults(vanished=1.0), env=env)
    space = MemoryShard(log, [Ledger()], env, pause=env.advance)
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
    with closing(open_shard(tmp_path / "space", [Ledger()])) as space:
        space.submit([entry(b"a")])
        calls, writing = [], space._file.writing

        def commit_once_lost(timeout=None, hold=None):
            return LostAfterCommit(writing(timeout, hold), calls)

        monkeypatch.setattr(space._file, "writing", commit_once_lost)
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
    with closing(open_shard(directory, [Ledger()])) as space:
        for token in (b"a", b"b", b"c"):
            space.submit([entry(token)])
    con = edit(directory)
    con.execute("UPDATE log SET data = CAST(data || x'00' AS BLOB) WHERE offset = 2")
    con.execute("UPDATE head SET applied = 1")
    con.close()
    with pytest.raises(LogCorrupt, match="offset 2"):
        open_shard(directory, [Ledger()])


def test_a_log_that_lost_its_end_is_noticed(tmp_path):
    directory = tmp_path / "space"
    with closing(open_shard(directory, [Ledger()])) as space:
        for token in (b"a", b"b"):
            space.submit([entry(token)])
    con = edit(directory)
    con.execute("DELETE FROM log WHERE offset = 2")
    con.close()
    (directory / "tip").unlink()
    with pytest.raises(LogCorrupt, match="ends at 1 but 2 was applied"):
        open_shard(directory, [Ledger()])


# -- what fails after the record was written


@pytest.mark.parametrize("error", [Unavailable("full"), AppendUnknown("lost")])
def test_housekeeping_that_fails_is_not_told_of_the_operations(tmp_path, monkeypatch, error):
    monkeypatch.setattr(sqlite_space, "_HOUSEKEEPING_EVERY_OFFSETS", 3)
    monkeypatch.setattr(config, "CLIENT_IDLE_OFFSETS", 1)
    monkeypatch.setattr(config, "CLIENTS_KEPT_MAX", 0)
    append, failed = sqlite_space.EmbeddedShard._append, []

    def fails_once(self, head, client, known, ops):
        if ops[0].fold == system.SYSTEM_FOLD and not failed:
            failed.append(ops)
            raise error
        return append(self, head, client, known, ops)

    monkeypatch.setattr(sqlite_space.EmbeddedShard, "_append", fails_once)
    with closing(open_shard(tmp_path / "space", [Ledger()])) as space:
        for token in (b"a", b"b", b"c", b"d"):
            space.submit([entry(token)])
        assert failed
        assert {token: one.times for token, one in ledger_of(space).items()} == dict.fromkeys(
            (b"a", b"b", b"c", b"d"), 1
        )


def test_an_interrupted_retry_does_not_answer_the_next_commit(tmp_path, monkeypatch):
    with closing(open_shard(tmp_path / "space", [Ledger()])) as space:
        space.submit([entry(b"a")])
        writing = space.log.file.writing

        @contextmanager
        def without_answer(timeout=None, hold=None):
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
    with closing(MemoryShard(log, [Ledger()], SYSTEM)) as space:
        space.submit([entry(b"a")])
        append = log.append

        def interrupted(data, deadline=None):
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
    with closing(MemoryShard(log, [Ledger()], SYSTEM)) as space:
        space.submit([entry(b"a")])
        append = log.append

        def unreadable(*_):
            raise Unavailable("the network is down")

        def without_answer(data, deadline=None):
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
    with closing(MemoryShard(log, [Ledger()], SYSTEM)) as space:
        space.submit([entry(b"a")])
        record = encode_record(Record(client_id(0, SYSTEM), 1, 0, ()))[5:]
        body = bytes((record[0] + 1,)) + record[1:] + b"\x91" * 100_000 + b"\x90"
        log.append(b"\x01" + crc32c(b"\x01" + body).to_bytes(4, "big") + body)
        space.submit([entry(b"b")])
        assert set(ledger_of(space)) == {b"a", b"b"}
        with space.view() as view:
            assert view.head().refused == 1
