"""Programs without a replica: what a read costs, what each level waits for, what they say when nodes or the log do not answer."""

import threading
import time
from collections import Counter
from contextlib import closing, suppress
from itertools import islice

import polars as pl
import pytest

import onefold as of
from onefold import agg, config
from onefold.codec import Op, decode_record
from onefold.fold import remote_protocol as protocol
from onefold.fold import system
from onefold.fold.needs import Behind, Need
from onefold.fold.remote_space import RemoteSpace
from onefold.fold.serving import Server
from onefold.log.memory import Faults
from onefold.state import rows
from onefold.state.fold import StateFold
from onefold.testing.remote_world import Delivered, RemoteWorld, Way

TABLE = rows.map_table("m")
SOON_S = 20.0


@pytest.fixture(autouse=True)
def _hedge_soon(monkeypatch):
    monkeypatch.setattr(config, "ASK_HEDGE_S", 0.02)


@pytest.fixture
def world():
    with closing(RemoteWorld()) as made:
        yield made


@pytest.fixture
def db(world):
    with world.connect(timeout=2.0) as opened:
        yield opened


@pytest.fixture
def other(world):
    """Another program."""
    with world.connect() as opened:
        yield opened


def costs(world, do):
    """What the call asked for, and how many records were appended."""
    world.asked.clear()
    before = world.logs[0].last
    do()
    return dict(world.asked), world.logs[0].last - before


def until(holds):
    deadline = time.monotonic() + SOON_S
    while not holds():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.005)


def stop_nodes(world):
    world.servers.clear()


def hold(world, *nodes):
    for node in nodes:
        for delivered in world.delivered[node]:
            delivered.hold()


def go_on(world):
    for node in world.delivered:
        for delivered in node:
            delivered.go_on()


# -- what it costs


def test_a_read_is_one_question_and_a_write_one_append_and_one_question(world, db):
    m = db.map("m")
    assert costs(world, lambda: m.put("k", 1)) == (
        {"Applied": 1, "Known": 1},
        1,
    )  # the first asks where the log is
    assert costs(world, lambda: m.put("k", 2)) == ({"Known": 1}, 1)
    for level in ("session", "prefix", "eventual", "bounded:1h"):
        assert costs(world, lambda level=level: m.get("k", consistency=level)) == ({"Get": 1}, 0)
    assert costs(world, lambda: m.get("k")) == ({"Get": 1}, 1)  # with the node's barrier
    assert costs(world, lambda: m.get_many(["k", "l"], consistency="session")) == ({"Get": 1}, 0)
    assert costs(world, lambda: m.get("k", consistency="bounded:0s")) == ({"Get": 1}, 1)


def test_a_bounded_read_needs_no_barrier_after_ones_own_write_or_strong_read(world, db, other):
    m = db.map("m")
    other.map("m").put("k", 1)
    assert costs(world, lambda: m.get("k", consistency="bounded:1h"))[1] <= 1  # the node may know
    m.get("k")
    for _ in range(5):
        assert costs(world, lambda: m.get("k", consistency="bounded:1h")) == ({"Get": 1}, 0)


def test_in_several_shards_a_strong_read_is_two_questions():
    with closing(RemoteWorld(shards=3)) as world, world.connect() as db:
        m = db.map("m")
        m.put("k", 1)
        assert costs(world, lambda: m.get("k"))[0] == {"Get": 2}


def test_a_transaction_costs_a_question_for_each_read(world, db):
    m = db.map("m")
    m.update({"a": 1, "b": 1})

    def move(tx):
        tx.map("m")["a"] = tx.map("m")["b"]

    asked, records = costs(world, lambda: db.run_transaction(move))
    assert asked == {
        "Scan": 1,
        "Applied": 1,
        "Get": 1,
        "Known": 1,
    }  # what is due, the snapshot, b, the outcome
    assert records == 2  # the barrier and the commit


def test_parts_for_several_shards_are_on_their_way_together(monkeypatch):
    shards = 3
    with closing(RemoteWorld(shards=shards)) as world, world.connect() as db:
        m = db.map("m")
        m.put_many(dict.fromkeys(range(100), 0), atomic=False)  # registers the fold in each shard
        meeting = threading.Barrier(shards, timeout=SOON_S)
        for log in world.logs:

            def append(data, own=log.append, **options):
                meeting.wait()  # breaks when one shard waits for another
                return own(data, **options)

            monkeypatch.setattr(log, "append", append)
        m.put_many(dict.fromkeys(range(100), 1), atomic=False)
        monkeypatch.undo()
        assert set(m.values()) == {1} and len(m) == 100


def test_many_threads_share_appends(world, db):
    m = db.map("m")
    m.put("k", 0)

    def write(at):
        for _ in range(20):
            m.increment("k")

    threads = [threading.Thread(target=write, args=(at,)) for at in range(8)]
    before = world.logs[0].last
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert m["k"] == 160
    assert world.logs[0].last - before < 161


# -- views


def test_a_view_is_one_offset_whoever_answers(world, db, other):
    m = db.map("m")
    m.update({f"k{number}": 0 for number in range(100)})
    space = db._spaces[0]
    with space.view() as view:
        first = view.get(TABLE, b"none")
        assert first is None
        for value in range(1, 4):
            other.map("m").update({f"k{number}": value for number in range(100)})
        values = {rows.read_row(row).value for _, row in view.scan(TABLE)}
        assert len(values) == 1
        assert view.count(TABLE) == 100
        assert view.changes(TABLE, view.offset) == []
        assert len(view.changes(TABLE, view.offset - 1)) == 100
        assert not view.changed_since(TABLE, b"", None, view.offset)
        assert view.changed_since(TABLE, b"", None, view.offset - 1)
        assert view.tables("state/m/") == ["state/m/m"]
        assert view.head().applied >= view.offset
        offset = view.offset
    with space.view(offset) as again:
        assert {rows.read_row(row).value for _, row in again.scan(TABLE, reverse=True)} == values
    with pytest.raises(of.SpaceError, match="`with` block"):
        view.get(TABLE, b"k")


def test_a_view_asked_for_beyond_the_end_is_refused(db):
    with pytest.raises(of.InvalidArgument, match="beyond the applied offset"), db._spaces[0].view(10**6):
        pass


def test_what_is_older_than_the_history_is_too_old(world, db, monkeypatch):
    monkeypatch.setattr(config, "HISTORY_WINDOW_OFFSETS", 10)
    monkeypatch.setattr(config, "HISTORY_PRUNE_EVERY_OFFSETS", 1)
    m = db.map("m")
    for number in range(40):
        m.put("k", number)
    with pytest.raises(of.TooOld), db._spaces[0].view(5) as view:
        view.get(TABLE, b"k")


def test_keys_and_rows_beyond_one_question_are_asked_for_in_pages(monkeypatch):
    monkeypatch.setattr(config, "ASK_KEYS_BYTES", 200)
    with closing(RemoteWorld(reply_bytes=300)) as world, world.connect() as db:
        m = db.map("m")
        data = {f"key {number:04}": "x" * (number % 40) for number in range(500)}
        m.update(data)
        assert m.get_many(data) == data
        assert dict(m.scan()) == data
        assert dict(m.scan(reverse=True)) == data
        assert list(m.scan(limit=7)) == sorted(data.items())[:7]
        assert world.asked["Scan"] > 20 and world.asked["Get"] > 20


def test_a_large_value_comes_in_pieces(db, world):
    value = "x" * 1_000_000
    db.map("m").put("large", value)
    world.asked.clear()
    assert db.map("m")["large"] == value
    assert world.asked["Get"] == 2  # a row is longer than its value, and so longer than an answer


def test_pieces_of_different_answers_are_not_put_together(db, world):
    space = db._spaces[0]
    db.map("m").put("long", "y" * 5000)
    answers = []

    def mixed(request, timeout, *, hedge_s):
        # The two nodes have different limits, so their pieces do not fit.
        limit = 1000 if len(answers) % 2 else 700
        answers.append(limit)
        return Server(world.replicas[0][0], reply_bytes=limit).answer(request)

    space._asking = mixed
    assert db.map("m")["long"] == "y" * 5000  # the limits do not matter: the bytes are the same

    def garbled(request, timeout, *, hedge_s):
        reply = protocol.decode_reply(Server(world.replicas[0][0], reply_bytes=3000).answer(request))
        answers.append(3000)
        other = protocol.Answer(
            reply.incarnation,
            reply.offset,
            reply.fold_version,
            reply.body,
            reply.total,
            str(len(answers)).encode(),
        )
        return protocol.encode(other)

    space._asking = garbled
    with pytest.raises(of.Unavailable, match="pieces of different answers"):
        db.map("m").get("long")


# -- levels


def test_levels_go_by_what_replicas_have(world, db, other):
    m = db.map("m")
    m.put("k", "old")
    assert {m.get("k", consistency="eventual") for _ in range(20)} == {"old"}
    hold(world, 0)
    other.map("m").put("k", "new")
    seen = Counter(m.get("k", consistency="eventual") for _ in range(60))
    assert seen.keys() == {"old", "new"}  # whoever answers first
    assert m.get("k", consistency="strong") == "new"
    for level in ("session", "prefix"):  # and from now on this program does not see the old value again
        assert {m.get("k", consistency=level) for _ in range(5)} == {"new"}
    assert "old" in {m.get("k", consistency="eventual") for _ in range(60)}


def test_a_strong_read_is_not_answered_by_a_replica_that_gets_no_records(world, db, other):
    m = db.map("m")
    m.put("k", "old")
    hold(world, 0, 1)
    before = time.monotonic()
    with pytest.raises(of.Unavailable) as caught:
        m.get("k")
    assert caught.value.definite
    assert time.monotonic() - before < SOON_S
    assert m.get("k", consistency="eventual") == "old"
    go_on(world)
    assert m.get("k") == "old"


def test_without_nodes_reads_are_unavailable_and_definitely_so(world, db):
    m = db.map("m")
    m.put("k", 1)
    stop_nodes(world)
    for level in ("strong", "session", "prefix", "eventual"):
        with pytest.raises(
            of.Unavailable, match=r"no node of .* answered within 2 s .*onefold status"
        ) as caught:
            m.get("k", consistency=level)
        assert caught.value.definite


def test_a_session_goes_on_in_another_program(world, db, other):
    hold(world, 0)
    other.map("m").put("k", "new")
    db.session.merge(other.session.token)
    assert {db.map("m").get("k", consistency="session") for _ in range(10)} == {"new"}


def test_a_token_from_the_future_is_told(world, db):
    db.map("m").put("k", 1)
    from onefold.state.tokens import Token, encode_token

    db.session.merge(encode_token(Token(world.logs[0].incarnation, {0: 10**6})))
    for level in ("session", "strong"):
        with pytest.raises(of.TokenAhead, match="has seen offset 1000000") as caught:
            db.map("m").get("k", consistency=level)
        assert caught.value.definite


def test_what_the_session_has_seen_and_no_replica_has_is_unavailable(world, db):
    m = db.map("m")
    m.put("k", 1)
    db.session.observe(0, 10**6)
    with pytest.raises(of.Unavailable, match="what this session has seen"):
        m.get("k", consistency="session")


def test_bounded_reads_tell_the_age_when_nothing_fresh_enough_answers(world, monkeypatch):
    def down(data):
        raise of.Unavailable("the log is down")

    with world.connect(timeout=0.3) as db:
        for node in world.delivered:
            monkeypatch.setattr(node[0], "append", down)
        with pytest.raises(of.TooStale, match="may be of any age, and 3600 s are allowed") as caught:
            db.map("m").get("k", consistency="bounded:1h")
        assert caught.value.definite


def test_bounded_reads_are_too_stale_when_nobody_answers_at_all(world, monkeypatch):
    def silent(*_, **__):
        raise of.Unavailable("nobody is there")

    with world.connect(timeout=0.2) as db:
        db.map("m").put("k", 1)
        monkeypatch.setattr(db._spaces[0], "_asking", silent)
        with pytest.raises(of.TooStale, match=r"complete as of .* ago") as caught:
            db.map("m").get("k", consistency="bounded:0.000001s")
        assert caught.value.definite


def test_plain_views_never_go_back(world, db, other):
    space = db._spaces[0]
    other.map("m").put("k", 1)
    hold(world, 0)
    other.map("m").put("k", 2)
    offsets = []
    for _ in range(30):
        with space.view() as view:
            offsets.append(view.offset)
    assert offsets == sorted(offsets)


# -- waiting


def test_waiting_is_woken_by_others_and_bounded(db, other):
    space = db._spaces[0]
    other.map("m").put("k", 0)
    here = space.applied
    assert space.wait(here, 0.05) == here
    assert space.wait(here - 1, None) == here
    timer = threading.Timer(0.05, lambda: other.map("m").put("k", 1))
    timer.start()
    assert space.wait(here, SOON_S) > here
    timer.join()


def test_reach_says_whether_it_came(world, db, other):
    space = db._spaces[0]
    other.map("m").put("k", 0)
    end = world.logs[0].last
    assert space.reach(end, None)
    assert not space.reach(end + 1, 0.05)
    timer = threading.Timer(0.05, lambda: other.map("m").put("k", 1))
    timer.start()
    assert space.reach(end + 1, SOON_S)
    timer.join()
    stop_nodes(world)
    assert not space.reach(end + 9, 0.05)


def test_waiting_outlives_nodes_that_are_away(world, db, other):
    space = db._spaces[0]
    other.map("m").put("k", 0)
    here, servers = space.applied, list(world.servers)
    stop_nodes(world)
    found = []
    waiter = threading.Thread(target=lambda: found.append(space.wait(here, SOON_S)))
    waiter.start()
    world.servers += servers
    other.map("m").put("k", 1)
    waiter.join()
    assert found[0] > here


def test_a_watch_sees_what_others_write(db, other):
    with db.map("m").watch(timeout=SOON_S) as changes:
        other.map("m").update({"a": 1, "b": 2})
        assert {(change.key, change.value) for change in islice(changes, 2)} == {("a", 1), ("b", 2)}


@pytest.mark.parametrize("shards", [1, 3])
def test_a_watch_that_waits_asks_next_to_nothing(shards):
    with closing(RemoteWorld(shards=shards)) as world, world.connect() as db:
        m = db.map("m")
        m.put_many(dict.fromkeys(range(100), 0), atomic=False)
        with m.watch(timeout=2.0) as changes:
            world.asked.clear()
            assert list(changes) == []  # many rounds of looking
        parked = 1 + int(2.0 / config.ASK_POLL_S)
        assert world.asked["Beyond"] <= shards * (parked + 1)
        assert (
            sum(world.asked.values()) - world.asked["Beyond"] <= 2 * shards
        )  # what is there, and what is due


def test_a_watch_without_a_replica_sees_lifetimes_end(db, other):
    m = db.map("m")
    other.map("others").put("sooner", 1, ttl=0.2)
    with m.watch(timeout=SOON_S) as changes:
        other.map("m").put("a", 1, ttl=0.4)
        assert [next(changes).kind for _ in range(2)] == ["put", "expire"]
        other.map("m").put("b", 1, ttl=60)
        assert next(changes).key == "b"
        other.map("m").put("b", 2, ttl=0.1)  # now it ends sooner than was known
        assert [next(changes).kind for _ in range(2)] == ["put", "expire"]


def test_threads_that_wait_share_a_question(world, db, other):
    space, found = db._spaces[0], []
    other.map("m").put("k", 0)
    here = space.applied
    world.asked.clear()
    waiters = [
        threading.Thread(target=lambda: found.append(space.wait(here, SOON_S) > here)) for _ in range(20)
    ]
    for waiter in waiters:
        waiter.start()
    until(lambda: space._news._waiting == len(waiters))
    assert world.asked["Beyond"] <= 1
    other.map("m").put("k", 1)
    for waiter in waiters:
        waiter.join(SOON_S)
    assert found == [True] * len(waiters)
    assert world.asked["Beyond"] <= 3  # and the one that follows


def test_news_that_a_dying_node_took_along_is_told_by_another(world, db, other, monkeypatch):
    monkeypatch.setattr(config, "ASK_POLL_S", 0.2)
    space, lost = db._spaces[0], []

    def asking(request, timeout, *, hedge_s, own=space._asking):
        if isinstance(protocol.decode_ask(request).what, protocol.Beyond) and not lost:
            lost.append(timeout)
            time.sleep(timeout)  # it never answers
            raise of.Timeout("no answer")
        return own(request, timeout, hedge_s=hedge_s)

    monkeypatch.setattr(space, "_asking", asking)
    m = db.map("m")
    with m.watch(timeout=SOON_S) as changes:
        assert space.wait(space.applied, 0) == space.applied
        until(lambda: lost)
        other.map("m").put("k", 1)
        assert next(changes).key == "k"
    assert lost[0] < 2 + 2 * config.ASK_POLL_S, "a question is waited for no longer than that"


def test_who_waits_is_told_what_no_node_can_help_with(world, db, other, monkeypatch):
    monkeypatch.setattr(config, "ASK_POLL_S", 0.1)
    other.map("m").put("k", 0)
    space = db._spaces[0]
    here = space.applied
    monkeypatch.setattr(space, "_version_max", 0)
    with pytest.raises(of.SpaceError, match="Upgrade"):
        space.wait(here, SOON_S)


def test_closing_lets_go_who_waits_and_the_thread_ends(world, monkeypatch):
    monkeypatch.setattr(config, "ASK_POLL_S", 0.1)
    with world.connect() as db:
        space = db._spaces[0]
        here = space.applied
        waiter = threading.Thread(target=lambda: space.wait(here, None))
        waiter.start()
        until(lambda: space._news._waiting)
    waiter.join(SOON_S)
    assert not waiter.is_alive()
    until(lambda: not any(thread.name == "onefold-news" for thread in threading.enumerate()))


# -- writing


def test_writes_count_once_whatever_is_lost(world):
    world.logs[0].faults = Faults(refused=0.1, lost_answer=0.2, late=0.1, vanished=0.1)
    world.way = Way(lost=0.2, lost_reply=0.2, twice=0.2, nobody=0.1)
    done = 0
    with world.connect() as db:
        m = db.map("m")
        for _ in range(60):
            with suppress(of.Unavailable):  # definite: the log refused it
                m.increment("n")
                done += 1
        world.logs[0].faults, world.way = Faults(), Way()
        world.logs[0].surface_all()
        assert m.get("n") == done >= 40


def test_a_write_whose_outcome_no_node_tells_may_have_happened(world, monkeypatch):
    monkeypatch.setattr(config, "APPEND_RETRY_S", 0.2)
    with world.connect(timeout=0.2) as db:
        m = db.map("m")
        m.put("k", 1)
        servers = list(world.servers)
        stop_nodes(world)
        with pytest.raises(
            of.Timeout, match=r"in the log .* at offset 2, and no node has told its outcome"
        ) as caught:
            m.put("k", 2, request_id="mine")
        assert not caught.value.definite
        world.servers += servers
        assert db.outcome("mine") == "committed"
        assert m["k"] == 2
        m.put("k", 3)
        assert m["k"] == 3


def test_a_write_that_cannot_begin_is_definite(world, monkeypatch):
    stop_nodes(world)
    monkeypatch.setattr(config, "READ_TIMEOUT_S", 0.1)
    with world.connect() as db, pytest.raises(of.Unavailable) as caught:
        db.map("m").put("k", 1)
    assert caught.value.definite
    assert world.logs[0].last == 0


def test_a_record_that_is_not_where_it_was_acknowledged_stops_the_program(world, db):
    m = db.map("m")
    m.put("k", 1)
    space = db._spaces[0]
    log, append = space.log, space.log.append

    def forgetful(data):
        """Acknowledges, and loses what it has acknowledged; another record takes its place."""
        offset = append(world.logs[0].read(1)[0].data)
        assert offset
        return offset

    log.append = forgetful
    with pytest.raises(
        of.LogCorrupt, match="acknowledged at offset 2 of memory://remote is not there"
    ) as caught:
        m.put("k", 2)
    assert not caught.value.definite
    log.append = append
    for use in (
        lambda: m.put("k", 3),
        lambda: m.get("k"),
        lambda: space.wait(0, 0),
        lambda: space.view().__enter__(),
    ):
        with pytest.raises(of.LogCorrupt, match="halted"):
            use()


def test_a_copy_that_an_earlier_try_left_is_no_corruption(world, db):
    m = db.map("m")
    m.put("k", 1)
    log = db._spaces[0].log
    append = log.append

    def twice(data):
        append(data)
        return append(data)

    log.append = twice
    assert m.increment("n") == 1
    log.append = append
    assert (m["n"], m.increment("n")) == (1, 2)


def test_a_client_that_was_forgotten_begins_anew(world, db, other):
    m = db.map("m")
    m.put("k", 1)
    for number in range(5):
        other.map("m").put("x", number)
    expire = system.ExpireClients(world.logs[0].last)
    assert other._spaces[0].submit([system.system_op(expire)]) == [system.ACCEPTED]
    m.put("k", 2)
    assert m["k"] == 2


def test_folds_are_registered_with_the_first_record_of_each_program(world, db, other):
    for opened in (db, other):
        opened.map("m").put("k", 1)
        opened.map("m").put("k", 2)
    ops = [[op.fold for op in decode_record(entry.data).ops] for entry in world.logs[0].read(1)]
    assert ops == [["onefold", "state"], ["state"]] * 2
    with pytest.raises(of.InvalidArgument, match="no fold 'other'"):
        db._spaces[0].submit([Op("other", b"")])


def test_a_space_that_was_opened_read_only_writes_nothing(world):
    (space,) = world.spaces(read_only=True)
    with closing(space), pytest.raises(of.SpaceError, match="read-only"):
        space.submit([system.system_op(system.Tick())])


# -- what is not as it should be


def test_a_space_that_was_restored_is_told(world, db):
    db.map("m").put("k", 1)
    with closing(RemoteWorld()) as restored:
        db._spaces[0]._asking = restored.asking(0)
        for use in (lambda: db.map("m").get("k"), lambda: db._spaces[0].wait(10, 1.0)):
            with pytest.raises(of.SpaceError, match=r"made anew or restored .*Open it again"):
                use()
        with pytest.raises(of.AppendUnknown, match="made anew or restored"):
            db.map("m").put("k", 2)


def test_replies_that_are_none_are_as_no_reply(world, db):
    db._spaces[0]._asking = lambda request, timeout, *, hedge_s: b"\x93garbage"
    with pytest.raises(of.Unavailable, match="garbled"):
        db.map("m").get("k")


def test_a_result_that_does_not_fit_the_question_is_told(world, db):
    def confused(request, timeout, *, hedge_s):
        body = protocol.encode_body("what?")
        return protocol.encode(protocol.Answer(world.logs[0].incarnation, 0, 1, body, len(body)))

    db._spaces[0]._asking = confused
    with pytest.raises(of.SpaceError, match="does not understand"):
        db.map("m").get("k")


def test_a_newer_space_is_refused(world, db):
    def newer(request, timeout, *, hedge_s):
        body = protocol.encode_body([None])
        return protocol.encode(protocol.Answer(world.logs[0].incarnation, 0, 99, body, len(body)))

    db._spaces[0]._asking = newer
    with pytest.raises(of.SpaceError, match=r"fold version 99.*pip install -U onefold"):
        db.map("m").get("k")


def test_a_replica_that_cannot_serve_is_left_for_another(world, db):
    m = db.map("m")
    m.put("k", 1)
    world.replicas[0][0].close()
    assert {m.get("k") for _ in range(20)} == {1}


def test_a_replica_with_less_history_is_left_for_another(world, db, monkeypatch):
    m = db.map("m")
    m.put("k", 1)
    offset = db._spaces[0].applied
    original = world.servers[0][0]._view

    def young(at):
        if at is not None:
            raise of.TooOld("it started from a snapshot")
        return original(at)

    monkeypatch.setattr(world.servers[0][0], "_view", young)
    found = 0
    for _ in range(20):
        with db._spaces[0].view(offset) as view:
            try:
                found += view.count(TABLE)
            except of.TooOld:
                pass
    assert found >= 10


def test_needs_that_no_replica_meets_are_told_apart(world):
    (space,) = world.spaces()
    with closing(space):
        with pytest.raises(Behind) as caught:
            space.peek(TABLE, b"k", Need(after=7, timeout=0.05))
        assert (caught.value.applied, caught.value.definite) == (0, True)
        stop_nodes(world)
        with pytest.raises(of.Unavailable) as lost:
            space.peek(TABLE, b"k", Need(after=7, timeout=0.05))
        assert not isinstance(lost.value, Behind)


def test_a_closed_space_says_so(world):
    (space,) = world.spaces()
    space.close()
    for use in (
        lambda: space.peek(TABLE, b"k"),
        lambda: space.submit([system.system_op(system.Tick())]),
        lambda: space.view().__enter__(),
        space.barrier,
        lambda: space.fresh(1.0),
        lambda: space.reach(1, 0.0),
        lambda: space.member_alive("m_x"),
    ):
        with pytest.raises(of.SpaceError, match="is closed"):
            use()


def test_what_is_known_of_members(world, db):
    space = db._spaces[0]
    assert space.member_alive(space.member) is True
    assert space.member_alive("m_somewhere") is None


# -- everything else on it


def test_the_past_is_read_from_the_history_of_nodes(world, db):
    m = db.map("m")
    m.put("k", "old")
    token = db.session.token
    m.put("k", "new")
    with db.at(token) as past:
        assert past.map("m")["k"] == "old"
    assert m["k"] == "new"


def test_a_job_runs_over_it(world, db, tmp_path):
    (tmp_path / "a.csv").write_text("k,v\n" + "".join(f"{number % 3},{number}\n" for number in range(300)))
    db.read_csv(str(tmp_path / "a.csv")).group_by("k").agg(n=agg.count(), s=agg.sum("v")).into("t").run()
    frame = db.table("t").to_polars().sort("k")
    assert frame["n"].to_list() == [100, 100, 100]
    assert frame["s"].to_list() == [sum(range(at, 300, 3)) for at in range(3)]
    assert isinstance(frame, pl.DataFrame)


def test_the_space_asks_nobody_before_it_is_used(world):
    (space,) = world.spaces()
    assert isinstance(space, RemoteSpace)
    assert not world.asked
    with closing(
        RemoteSpace(Delivered(world.logs[0]), world.asking(0), [StateFold()], world.env, url="u://x")
    ) as one:
        assert (one.url, one.directory, one.strong_reads) == ("u://x", None, False)
