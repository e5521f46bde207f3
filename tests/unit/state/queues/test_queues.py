"""Queues as programs use them: delivery, leases, order, delay, dead letters."""

import random
import threading

import pytest

import onefold as of
from onefold.state.core.leases import Lease, Observer, keeper
from onefold.state.queues.messages import Message
from onefold.testing.clock import FakeClock


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


def drain(q):
    values = []
    while True:
        with q.get(timeout=0) as msg:
            if msg is None:
                return values
            values.append(msg.value)


# -- delivery


def test_a_message_is_acknowledged_when_its_block_ends(real_db):
    q = real_db.queue("mail")
    number = q.put({"to": "ada", "copies": [1, 2]}, key=("user", 7))
    assert len(q) == 1
    with q.get(timeout="5s") as msg:
        assert (msg.value, msg.key, msg.attempt, msg.id) == (
            {"to": "ada", "copies": [1, 2]},
            ("user", 7),
            1,
            number,
        )
        assert q.counts() == (0, 0, 0, 1, 0)
        assert len(q) == 1
    assert len(q) == 0
    with q.get(timeout=0) as nothing:
        assert nothing is None


def test_a_message_is_given_back_when_its_block_raises(real_db):
    q = real_db.queue("mail")
    q.put("a")
    with pytest.raises(ZeroDivisionError), q.get() as msg:
        _ = 1 / 0
    with q.get(timeout=0) as msg:
        assert (msg.value, msg.attempt, msg.errors) == ("a", 2, ("ZeroDivisionError: division by zero",))


def test_get_gives_none_when_nothing_comes_in_time(real_db):
    with real_db.queue("mail").get(timeout=0.02) as msg:
        assert msg is None


def test_messages_come_in_the_order_in_which_they_were_put(real_db):
    q = real_db.queue("mail")
    ids = list(q.put_many(range(5)))
    assert ids == sorted(ids)
    q.put(5)
    assert q.put_many([]) == range(0)
    assert drain(q) == [0, 1, 2, 3, 4, 5]


def test_a_waiting_taker_gets_what_is_put(real_db):
    q, got = real_db.queue("mail"), []

    def work():
        with q.get() as msg:
            got.append(msg.value)

    takers = [threading.Thread(target=work) for _ in range(3)]
    for taker in takers:
        taker.start()
    for number in range(3):
        q.put(number)
    for taker in takers:
        taker.join(60)
    assert sorted(got) == [0, 1, 2]


@pytest.mark.parametrize("seed", range(3))
def test_many_takers_get_each_message_once_and_a_key_one_at_a_time(real_db, seed):
    rng = random.Random(seed)
    q = real_db.queue("mail")
    expected = [(rng.choice((None, "a", "b")), number) for number in range(60)]
    for key, number in expected:
        q.put(number, key=key)
    got, busy, mutex = [], set(), threading.Lock()

    def work():
        while True:
            with q.get(timeout=0) as msg:
                if msg is None:
                    return
                with mutex:
                    assert msg.key is None or msg.key not in busy
                    busy.add(msg.key)
                    got.append((msg.key, msg.value))
                with mutex:
                    busy.discard(msg.key)

    takers = [threading.Thread(target=work) for _ in range(4)]
    for taker in takers:
        taker.start()
    for taker in takers:
        taker.join(timeout=60)
    got += [(None, value) for value in drain(q)]
    assert sorted(value for _, value in got) == list(range(60))
    for name in ("a", "b"):
        assert [value for key, value in got if key == name] == [
            value for key, value in expected if key == name
        ]


def test_a_request_id_puts_once(real_db):
    q = real_db.queue("mail")
    assert q.put("a", request_id="order 1") == q.put("a", request_id="order 1")
    assert len(q) == 1


def test_a_message_can_be_ended_inside_its_block(db):
    q = db.queue("mail")
    q.put_many(["a", "b"])
    with q.get() as msg:
        msg.ack()
        with pytest.raises(of.InvalidArgument):
            msg.ack()
    with q.get() as msg:
        msg.nack(error="not now", delay="1m")
        assert msg.ended
    assert q.counts().delayed == 1
    with q.get(timeout="1m") as msg:
        assert (msg.value, msg.attempt, msg.errors) == ("b", 2, ("not now",))


def test_what_get_gives_is_no_message(db):
    with pytest.raises(AttributeError, match="with q"):
        _ = db.queue("mail").get().value


# -- delay


def test_a_delayed_message_comes_when_it_is_due(clock, db):
    q = db.queue("mail")
    q.put("later", delay="1h")
    q.put("now")
    assert drain(q) == ["now"]
    assert (len(q), q.counts().delayed) == (1, 1)
    before = clock.boot_s()
    with q.get() as msg:  # nobody writes anything meanwhile: the taker brings the time itself
        assert msg.value == "later"
    assert clock.boot_s() - before == pytest.approx(3600, abs=1)


def test_a_delayed_message_holds_back_those_of_its_key(clock, db):
    q = db.queue("mail")
    q.put(1, key="k", delay="10s")
    q.put(2, key="k")
    q.put(3)
    assert drain(q) == [3]
    clock.advance("10s")
    assert drain(q) == [1, 2]


def test_a_failed_message_holds_back_those_of_its_key(db):
    q = db.queue("mail")
    q.put_many([1, 2], key="k")
    with q.get() as msg:
        assert drain(q) == []
        msg.nack(delay="5s")
    assert drain(q) == []
    with q.get(timeout="5s") as msg:
        assert msg.value == 1


# -- leases


def test_a_silent_takers_message_is_given_to_another_after_the_lease(clock, db):
    q = db.queue("mail", lease="30s")
    q.put("a")
    zombie = q.take()
    before = clock.boot_s()
    with q.get() as msg:
        assert (msg.value, msg.attempt) == ("a", 2)
        assert 30 <= clock.boot_s() - before < 31
        for late in (zombie.extend, zombie.nack):
            with pytest.raises(of.Conflict) as caught:
                late()
            assert caught.value.definite
        assert q.counts().in_flight == 1
    assert len(q) == 0


def test_leaving_the_block_after_the_lease_says_that_the_message_was_lost(clock, db):
    q = db.queue("mail", lease="1s")
    q.put("a")
    with pytest.raises(of.Conflict, match="lease"), q.get():
        assert drain_once_after(clock, q, 2) == "a"


def test_the_blocks_own_error_wins_over_a_lost_lease(clock, db):
    q = db.queue("mail", lease="1s")
    q.put("a")
    with pytest.raises(KeyError), q.get():
        raise KeyError(drain_once_after(clock, q, 2))


def drain_once_after(clock, q, wait_s):
    q.counts()
    clock.advance(wait_s)
    with q.get() as msg:
        return msg.value


def test_an_extended_lease_starts_again(clock, db):
    q = db.queue("mail", lease="30s")
    q.put("a")
    with q.get() as msg:
        for _ in range(5):
            assert drain(q) == []
            clock.advance("20s")
            msg.extend()
        msg.extend("1h")
        assert drain(q) == []
        clock.advance("50m")
        assert drain(q) == []
    assert len(q) == 0


def test_a_lease_is_over_for_handles_that_are_made_anew_too(clock, db):
    db.queue("mail", lease="3s").put("a")
    db.queue("mail", lease="3s").take()
    for _ in range(100):
        with db.queue("mail").get(timeout=0) as msg:
            if msg is not None:
                break
        clock.advance("0.5s")
    assert msg.attempt == 2
    assert clock.boot_s() == pytest.approx(3, abs=1)


def test_an_expired_lease_is_a_failed_attempt_so_poison_ends_in_the_dead_letters(clock, db):
    q = db.queue("mail", lease="10s", max_attempts=3)
    q.put("poison")
    for attempt in (1, 2, 3):
        assert q.take("1m").attempt == attempt
        clock.advance("1s")
        q.counts()  # somebody sees it
        clock.advance("11s")
    (letter,) = q.dead()  # which looks for leases that are over, too
    assert (letter.value, letter.attempts, len(q)) == ("poison", 3, 0)
    assert "lease ended" in letter.error


def test_renew_extends_the_lease_while_the_block_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(Message, "renew_every_s", 0.02)  # a busy machine may miss nearly all of them
    with of.connect(tmp_path / "space") as database:
        q = database.queue("mail", lease="3s")
        q.put("a")
        renewer = keeper(database._state).renewer
        with q.get(renew=True) as msg:
            assert renewer.running
            with q.get(timeout="4s") as other:  # longer than the lease
                assert other is None
            assert msg.attempt == 1
        assert len(q) == 0
        for thread in threading.enumerate():
            if thread.name == "onefold-renewer":
                thread.join(60)
        assert not renewer.running


class Machine:
    """A space whose processes are alive for all that is known."""

    def member_alive(self, member):
        return {"dead": False}.get(member)


def test_an_observer_waits_for_the_lease_from_when_it_first_saw_the_epoch(clock):
    observer, space = Observer(clock), Machine()
    clock.advance(100)
    lease = Lease(1, 7, 10.0, "m")
    assert observer.look(space, "q", [lease]) == []
    clock.advance(9)
    assert observer.look(space, "q", [lease]) == []
    clock.advance(1)
    assert observer.look(space, "q", [lease]) == [(lease, False)]
    renewed = lease._replace(epoch=8)
    assert observer.look(space, "q", [renewed]) == []
    clock.advance(9)
    assert observer.look(space, "q", [lease]) == [], "an old view says nothing"
    assert observer.look(space, "q", [renewed, Lease(2, 1, 1e9, "dead")]) == [
        (Lease(2, 1, 1e9, "dead"), True)
    ]
    assert observer.look(space, "other", [renewed]) == []


def test_an_observer_knows_how_much_is_left_after_an_old_view(clock):
    observer = Observer(clock)
    clock.advance(100)
    renewed = Lease(1, 8, 10.0, "m")
    observer.look(Machine(), "q", [renewed])
    clock.advance(4)
    for old in ([renewed._replace(epoch=7)], [renewed._replace(epoch=7), Lease(2, 1, 1.0, "m")]):
        observer.look(Machine(), "q", old)
        assert observer.left_s("q", 1) == pytest.approx(6)
    assert observer.left_s("q", 3) is observer.left_s("other", 1) is None
    clock.advance(6)
    assert observer.look(Machine(), "q", [renewed]) == [(renewed, False)]


def test_an_observer_forgets_what_is_no_longer_leased(clock):
    observer = Observer(clock)
    observer.look(Machine(), "q", [Lease(number, 1, 10.0, "m") for number in range(100)])
    observer.look(Machine(), "q", [])
    assert observer._seen == {}


# -- dead letters


def fail(q, times):
    for _ in range(times):
        with pytest.raises(ValueError), q.get(timeout=0):
            raise ValueError("bad")


def test_after_its_last_attempt_a_message_is_kept_aside(db):
    q = db.queue("mail", max_attempts=2)
    number = q.put({"n": 1}, key="k")
    q.put("next", key="k")
    fail(q, 2)
    (letter,) = q.dead()
    assert letter == of_letter(number, {"n": 1}, "k", 2, ("ValueError: bad",) * 2)
    assert letter.error == "ValueError: bad"
    assert drain(q) == ["next"]
    assert (len(q), q.counts().dead) == (0, 1)


def of_letter(*fields):
    from onefold.state.queues.queue import DeadLetter

    return DeadLetter(*fields)


def test_dead_letters_can_be_tried_again_or_dropped(db):
    q = db.queue("mail", max_attempts=1)
    q.put_many(["a", "b"])
    fail(q, 2)
    assert q.retry_dead() == 2
    with q.get() as msg:
        assert (msg.value, msg.attempt) == ("a", 1)
    fail(q, 1)
    assert q.drop_dead() == 1
    assert q.dead() == []
    assert q.drop_dead() == q.retry_dead() == 0


@pytest.mark.parametrize("shards", [1, 4])
def test_dead_letters_go_to_the_named_queue_whatever_shard_it_is_in(clock, shards):
    with clock.connect(shards=shards) as db:
        for number in range(6):
            name = f"dead{number}"
            q = db.queue(f"mail{number}", max_attempts=1, dead_letter=name)
            q.put("v", key="k")
            fail(q, 1)
            assert [(letter.value, letter.attempts) for letter in q.dead()] == [("v", 1)]
            with q.get(timeout="1s"):  # whoever takes forwards
                pass
            assert [letter.value for letter in q.dead()] == ["v"]
            with db.queue(name).get(timeout=0) as msg:
                assert (msg.value, msg.key, msg.attempt, msg.errors) == ("v", "k", 1, ("ValueError: bad",))
            assert q.dead() == []


# -- with transactions


def test_the_outbox_is_put_iff_the_transaction_commits(db):
    q = db.queue("mail")
    with db.transaction() as tx:
        tx.map("orders")["o1"] = 1
        tx.queue("mail").put({"order": "o1"}, key="o1")
        tx.queue(q).put("second", delay="5s")
    assert (len(q), db.map("orders")["o1"]) == (2, 1)
    with pytest.raises(RuntimeError), db.transaction() as tx:
        raise RuntimeError(tx.queue("mail").put("never"))
    assert len(q) == 2


def test_plain_handles_are_refused_inside_a_transaction(db):
    q = db.queue("mail")
    uses = (lambda: q.put(1), q.take, lambda: len(q), q.dead, q.retry_dead, q.drop_dead, q.get().__enter__)
    with db.transaction():
        for use in uses:
            with pytest.raises(of.TransactionError):
                use()


# -- arguments


@pytest.mark.parametrize(
    "options",
    [
        {"name": ""},
        {"name": 5},
        {"name": "x" * 201},
        {"lease": 0},
        {"lease": "soon"},
        {"max_attempts": 0},
        {"max_attempts": 1.5},
        {"max_attempts": True},
        {"dead_letter": "mail"},
        {"dead_letter": ""},
    ],
)
def test_wrong_arguments_are_refused(db, options):
    with pytest.raises(of.InvalidArgument):
        db.queue(**({"name": "mail"} | options))


def test_wrong_messages_are_refused_before_anything_is_written(db):
    q = db.queue("mail")
    for wrong, error in (
        (lambda: q.put(object()), of.InvalidValue),
        (lambda: q.put(1, key=1.5), of.InvalidKey),
        (lambda: q.put(1, delay=-1), of.InvalidArgument),
        (lambda: q.put_many([1, object()]), of.InvalidValue),
        (lambda: q.get(timeout="x"), of.InvalidArgument),
        (lambda: q.dead(limit=0), of.InvalidArgument),
    ):
        with pytest.raises(error):
            wrong()
    assert len(q) == 0


def test_a_queue_can_be_counted_where_nothing_may_be_written(tmp_path):
    with of.connect(tmp_path / "space") as database:
        q = database.queue("mail", lease="0.001s")
        q.put("a")
        q.take()
        with of.connect(tmp_path / "space", read_only=True) as reader:
            assert len(reader.queue("mail")) == 1
            assert reader.queue("mail").dead() == []
