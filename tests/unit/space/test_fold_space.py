"""Spaces of both engines: submitting, viewing, waiting, system operations, snapshots."""

import threading
from contextlib import closing

import pytest

from kit.ledger import Ledger, entry, line, lines, receipt
from onefold import config
from onefold.backup.restore_embedded import restore_space
from onefold.codec import Op
from onefold.env import SYSTEM, SeededEnv
from onefold.errors import InvalidArgument, LogCorrupt, SpaceError, TooLarge, TooOld
from onefold.fold import system
from onefold.log.memory import MemoryLog
from onefold.shard.memory import MemoryShard
from onefold.space.open_shard import open_shard
from onefold.store import exactly_once
from onefold.store.replica import FoldFailed
from onefold.testing import check_fold
from support.ledger_spaces import (
    SOON_S,
    ledger_of,
    space_of_either_engine,  # noqa: F401
)

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
    monkeypatch.setattr("onefold.machine.wake.Notifier.notify", lambda notifier: None)
    with (
        closing(open_shard(tmp_path / "s", [Ledger()])) as one,
        closing(open_shard(tmp_path / "s", [Ledger()])) as two,
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
    with closing(open_shard("memory://", [Ledger()], env=env)) as space:
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
    known = exactly_once.ClientRow(3, 50, ())
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
    space.submit([entry(b"d")])
    assert ledger_of(space)[b"d"].times == 1
    assert all(seen.times == 1 for seen in ledger_of(space).values())


class Newer(Ledger):
    version = 2


def test_a_raised_fold_version_keeps_older_programs_out(tmp_path):
    directory = tmp_path / "space"
    with closing(open_shard(directory, [Newer()])) as new:
        with closing(open_shard(directory, [Ledger()])) as old, pytest.raises(SpaceError, match=old.member):
            new.raise_fold_version(2)
        new.raise_fold_version(2)
        new.submit([entry(b"a")])
        with pytest.raises(SpaceError, match=r"fold version 2.*pip install -U"):
            open_shard(directory, [Ledger()])
        with pytest.raises(SpaceError, match="knows fold version 2, not 3"):
            new.raise_fold_version(3)


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
    assert not list(tmp_path.glob(".*.half"))
    whole = path.read_bytes()
    log = MemoryLog()
    for item in space.log.read(1):
        log.append(item.data)
        log._stored[-1].engine_ms = item.engine_ms
    assert MemoryShard(log, [Ledger()], SYSTEM, snapshot=path).state_digest() == space.state_digest()
    other = MemoryLog()
    for number in range(30):
        other.append(b"%d" % number)
    with pytest.raises(LogCorrupt, match="another log"):
        MemoryShard(other, [Ledger()], SYSTEM, snapshot=path)
    at = whole.rindex(b"\x00\x00\x0a") if b"\x00\x00\x0a" in whole else len(whole) // 2
    for place in (at, len(whole) // 2, 20):
        path.write_bytes(whole[:place])
        with pytest.raises((LogCorrupt, SpaceError)):
            MemoryShard(log, [Ledger()], SYSTEM, snapshot=path)
    with pytest.raises(SpaceError, match="no snapshot"):
        MemoryShard(log, [Ledger()], SYSTEM, snapshot=tmp_path / "none")
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
        with closing(open_shard(tmp_path / "new", [Ledger()])) as new:
            assert new.incarnation != space.incarnation
            assert ledger_of(new) == before
            outcome = new.submit([entry(b"next")])[0]
            assert outcome == receipt(new.applied, 0)
            new.verify()
            before = ledger_of(new)
            assert new.log.first == 21
    with pytest.raises(SpaceError, match="no snapshot"):
        restore_space(tmp_path / "none", tmp_path / "other", [Ledger()])
    with closing(open_shard(tmp_path / "other", [Ledger()])) as other:
        assert other.applied == 0


def test_a_view_of_a_space_in_memory_that_was_closed_says_so():
    space = open_shard("memory://", [Ledger()])
    space.submit([entry(b"a")])
    with space.view() as view:
        space.close()
        with pytest.raises(SpaceError, match="closed"):
            view.get("ledger/lines", b"a")
