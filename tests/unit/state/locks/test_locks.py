"""Locks: one holder, fencing tokens, leases, waiting in order."""

import gc
import threading
import time

import pytest

import onefold as of
from onefold.log.memory import MemoryLog
from onefold.shard.memory import MemoryShard
from onefold.state.core.client import StateClient
from onefold.state.core.leases import keeper
from onefold.state.fold.locks.fold import LOCKS, WAITERS
from onefold.state.fold.locks.ops import Acquire, ExpireLock, Release, Renew, Withdraw
from onefold.state.fold.machine import StateFold
from onefold.state.fold.maps.ops import Put
from onefold.state.fold.ops import Commit, state_op
from onefold.state.fold.outcomes import Answer, Rejected
from onefold.state.locks.lock import Lock
from onefold.testing.clock import FakeClock
from onefold.testing.fold_suite import check_fold
from support.times import scaled


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def db(clock):
    with clock.connect() as database:
        yield database


@pytest.fixture(params=["memory", "file"])
def real_db(request, tmp_path):
    with of.connect("memory://" if request.param == "memory" else tmp_path / "space") as database:
        yield database


class Elsewhere(MemoryShard):
    """A machine of its own over a shared log: nothing is known of others' processes."""

    def member_alive(self, member):
        return True if member == self.member else None

    def wait(self, after, timeout):
        if self.applied == after and timeout is not None:
            self.env.advance(timeout)
        return self.applied


def machine(log, seed, **clock):
    env = FakeClock(seed=seed, **clock)
    return StateClient([Elsewhere(log, [StateFold()], env, pause=env.advance)]), env


# -- holding


def test_a_lock_has_one_holder_and_growing_tokens(real_db):
    tokens = []
    lock = real_db.lock("nightly", ttl="1m")
    for _ in range(3):
        with lock as held:
            assert held is lock
            assert lock.held
            lock.check()
            with pytest.raises(of.Timeout) as caught:
                real_db.lock("nightly", timeout=0.01).acquire()
            assert caught.value.definite
            tokens.append(lock.fencing_token)
        assert not lock.held
    assert tokens == sorted(set(tokens))
    assert all(type(token) is int for token in tokens)


def test_threads_take_turns(real_db):
    inside, tokens, most = [], [], []

    def work():
        for _ in range(5):
            with real_db.lock("nightly") as lock:
                inside.append(1)
                most.append(len(inside))
                tokens.append(lock.fencing_token)
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert most == [1] * 20
    assert tokens == sorted(set(tokens))


def test_those_who_wait_get_it_in_order(real_db):
    order = []
    threads = []

    def work(number):
        with real_db.lock("nightly"):
            order.append(number)

    with real_db.lock("nightly") as lock:
        for number in range(4):
            threads.append(threading.Thread(target=work, args=(number,)))
            threads[-1].start()
            while lock.holder().waiting <= number:
                pass
    for thread in threads:
        thread.join(timeout=60)
    assert order == [0, 1, 2, 3]


def test_a_free_lock_leaves_nothing_behind(db):
    with db.lock("a"), pytest.raises(of.Timeout):
        db.lock("a", timeout="3s").acquire()
    with db._state.view(0) as view:
        assert not list(view.scan(LOCKS))
        assert not list(view.scan(WAITERS))
    assert db.lock("a").holder() is None


def test_a_waiter_that_gives_up_makes_room_for_the_next(db):
    first = db.lock("a")
    first.acquire()
    with pytest.raises(of.Timeout):
        db.lock("a", timeout="3s").acquire()
    assert first.holder().waiting == 0
    first.release()
    with db.lock("a", timeout=0):
        pass


def test_a_lock_object_is_not_reentrant(db):
    lock = db.lock("a")
    with lock:
        with pytest.raises(of.InvalidArgument, match="re-entrant"):
            lock.acquire()
        assert lock.held
    with lock:
        pass


def test_a_lock_that_is_not_held_has_no_token(db):
    lock = db.lock("a")
    for use in (lambda: lock.fencing_token, lock.release, lock.check):
        with pytest.raises(of.InvalidArgument):
            use()


def test_locks_of_other_names_are_free(db):
    with db.lock("a"), db.lock("ab", timeout=0), db.lock("b", timeout=0):
        pass


def test_a_lock_is_taken_around_a_transaction(db):
    with db.transaction(), pytest.raises(of.TransactionError, match="around"):
        db.lock("a").acquire()
    with db.lock("a") as lock, db.transaction() as tx:
        tx.map("m")["k"] = lock.fencing_token


@pytest.mark.parametrize("options", [{"name": ""}, {"ttl": 0}, {"ttl": "x"}, {"timeout": -1}])
def test_wrong_arguments_are_refused(db, options):
    with pytest.raises(of.InvalidArgument):
        db.lock(**({"name": "a"} | options))


# -- losing


def test_a_silent_holder_loses_the_lock_after_the_ttl_and_is_told(clock, db):
    zombie = db.lock("a", ttl="10s")
    zombie.acquire()
    before = clock.boot_s()
    with db.lock("a") as lock:
        assert 10 <= clock.boot_s() - before < 11
        assert lock.fencing_token > zombie.fencing_token
        assert not zombie.held
        for late in (zombie.check, zombie.renew, zombie.release):
            with pytest.raises(of.Conflict, match="lost") as caught:
                late()
            assert caught.value.definite
        lock.check()
    with zombie:
        zombie.check()


def test_leaving_the_block_after_the_lock_was_lost_raises(db):
    with pytest.raises(of.Conflict, match="lost"), db.lock("a", ttl="1s"), db.lock("a"):
        pass


def test_the_blocks_own_error_wins_over_a_lost_lock(db):
    with pytest.raises(KeyError), db.lock("a", ttl="1s"), db.lock("a"):
        raise KeyError("mine")


def test_a_renewed_lock_is_kept(clock, db):
    lock = db.lock("a", ttl="10s")
    with lock:
        for _ in range(10):
            with pytest.raises(of.Timeout):
                db.lock("a", timeout="5s").acquire()
            lock.check()  # renews, as there are no threads on a fake clock
        assert lock.holder().renewals == 10


def test_only_the_observers_own_clock_counts():
    log = MemoryLog()
    holder, holder_clock = machine(log, 1)
    other, other_clock = machine(log, 2)
    lock = Lock(holder, "a", ttl="10s")
    lock.acquire()
    holder_clock.advance("30d")  # a date far ahead, stamped on a record
    holder.commit(0, (Put("m", ((b"k", b"v"),)),))
    with pytest.raises(of.Timeout):
        Lock(other, "a", timeout="9s").acquire()
    lock.renew()
    with pytest.raises(of.Timeout):
        Lock(other, "a", timeout="9s").acquire()
    before = other_clock.boot_s()
    with Lock(other, "a") as mine:
        assert other_clock.boot_s() - before < 2, "it goes on from what it saw before"
        assert mine.fencing_token > lock.fencing_token


def test_a_waiter_whose_grant_was_lost_unseen_asks_again(clock, db):
    client = db._state
    first = db.lock("a", ttl="1m")
    first.acquire()
    client.submit(0, Acquire("a", client.shards[0].member, "sleeper", 5000, True))
    first.release()
    assert first.holder().waiting == 0
    with db.lock("a"):  # the sleeper never noticed that it was granted
        assert client.submit(0, Withdraw("a", "sleeper")) == Answer(False)
    assert clock.boot_s() >= 5


def test_the_background_renewal_keeps_a_lock_and_ends_with_it(tmp_path):
    with of.connect(tmp_path / "space") as database:
        renewer = keeper(database._state).renewer
        with database.lock("a", ttl=scaled(1.0)) as lock:
            while lock.holder().renewals < 2:
                time.sleep(0.02)
            with pytest.raises(of.Timeout):
                database.lock("a", timeout=0).acquire()
            assert lock.held
            lock.check()
        join_renewers()
        assert not renewer.running


def test_the_background_renewal_ends_when_the_space_is_closed(tmp_path):
    database = of.connect(tmp_path / "space")
    database.lock("a", ttl="1h").acquire()
    kept = database.lock("b", ttl="1h")
    kept.acquire()
    database.close()
    join_renewers()
    assert not keeper(database._state).renewer.running


def test_a_lock_object_that_nobody_refers_to_is_not_renewed(tmp_path):
    with of.connect(tmp_path / "space") as database:
        database.lock("a", ttl="0.3s").acquire()
        gc.collect()
        with database.lock("a", timeout="120s"):
            pass
        join_renewers()


class GotAgain:
    """Something that is given up and got again while a renewal of the old grant is under way."""

    renew_every_s = 0.01

    def __init__(self, renewer):
        self.renewer = renewer
        self.renewals = 0
        self.twice = threading.Event()

    def renew(self):
        self.renewals += 1
        if self.renewals == 2:
            self.twice.set()
        else:
            self.renewer.remove(self)
            self.renewer.add(self)
        return False


def test_what_is_got_again_during_a_renewal_is_renewed(tmp_path):
    with of.connect(tmp_path / "space") as database:
        renewer = keeper(database._state).renewer
        held = GotAgain(renewer)
        renewer.add(held)
        assert held.twice.wait(120)
        join_renewers()
        assert held.renewals == 2


def join_renewers():
    for thread in threading.enumerate():
        if thread.name == "onefold-renewer":
            thread.join(timeout=120)
            assert not thread.is_alive()


# -- the fold


def operations():
    ops = [Acquire("a", "m1", f"h{number}", 1000, number != 4) for number in range(6)]
    ops += [Renew("a", token) for token in range(1, 4)]
    ops += [Withdraw("a", "h2"), Withdraw("a", "h0"), Withdraw("a", "none"), Withdraw("b", "h0")]
    ops += [Release("a", token) for token in range(1, 8)]
    ops += [ExpireLock("a", token, renewals) for token in range(3, 9) for renewals in range(2)]
    ops += [
        Acquire("", "m", "h", 1, True),
        Acquire("x" * 201, "m", "h", 1, True),
        Acquire("b", "m", "h", 5, True),
    ]
    ops += [Commit((), (), ())]
    return [state_op(op).body for op in ops]


@pytest.mark.parametrize("seed", range(5))
def test_the_fold_meets_its_contract(seed):
    check_fold(StateFold(), operations(), seed=seed)


def test_only_the_present_grant_can_be_renewed_released_or_expired(db):
    client = db._state
    token, _ = client.submit(0, Acquire("a", "m", "h1", 1000, True)).value
    _, ticket = client.submit(0, Acquire("a", "m", "h2", 1000, True)).value
    assert token
    assert ticket
    assert client.submit(0, Renew("a", token)) == Answer(None)
    assert client.submit(0, ExpireLock("a", token, 0)) == Rejected("lost", "a")
    assert client.submit(0, ExpireLock("a", token, 1)) == Answer(None)
    for late in (Renew("a", token), Release("a", token), ExpireLock("a", token, 1)):
        assert client.submit(0, late) == Rejected("lost", "a")
    assert db.lock("a").holder().waiting == 0


def test_a_crowd_is_refused(db, monkeypatch):
    monkeypatch.setattr(of.config, "LOCK_WAITERS_MAX", 1)
    client = db._state
    with db.lock("a"):
        client.submit(0, Acquire("a", "m", "h2", 1000, True))
        with pytest.raises(of.Unavailable, match="already wait"):
            db.lock("a", timeout="1s").acquire()
        client.submit(0, Withdraw("a", "h2"))


def test_a_wait_that_never_asked_writes_nothing(tmp_path, monkeypatch):
    """What is broken off before it asks has nothing to take back in the space."""
    holds, make = [], Lock.new_hold
    monkeypatch.setattr(Lock, "new_hold", lambda lock: holds.append(make(lock)) or holds[-1])
    with of.connect(tmp_path / "space") as db:
        lock = db.lock("l")
        for _ in range(50):
            with pytest.raises(of.InvalidArgument):
                lock.acquire(timeout="nonsense")
        assert len(holds) == 50
        for hold in holds:
            assert hold.wait_until_over(60), "given up, in a thread of its own"
        with lock:
            pass
        assert db._shard.applied == 2, "the acquire and the release"
