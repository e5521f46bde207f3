"""Reads of programs without a replica: what a view is, what each level waits for, and who is woken when others write."""

import threading
import time
from collections import Counter
from contextlib import closing
from itertools import islice

import pytest

import onefold as of
from kit.remote_world import RemoteWorld
from onefold import config
from onefold.shard.remote import protocol
from onefold.shard.remote.server import Server
from onefold.state.fold import rows
from support.remote_programs import (
    SOON_S,
    TABLE,
    _hedge_soon,  # noqa: F401
    go_on,
    hold,
    other_program,  # noqa: F401
    remote_program,  # noqa: F401
    remote_world,  # noqa: F401
    stop_nodes,
    until,
)

# -- views


def test_a_view_is_one_offset_whoever_answers(world, db, other):
    m = db.map("m")
    m.update({f"k{number}": 0 for number in range(100)})
    space = db._shards[0]
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
    with pytest.raises(of.InvalidArgument, match="beyond the applied offset"), db._shards[0].view(10**6):
        pass


def test_what_is_older_than_the_history_is_too_old(world, db, monkeypatch):
    monkeypatch.setattr(config, "HISTORY_WINDOW_OFFSETS", 10)
    monkeypatch.setattr(config, "HISTORY_PRUNE_EVERY_OFFSETS", 1)
    m = db.map("m")
    for number in range(40):
        m.put("k", number)
    with pytest.raises(of.TooOld), db._shards[0].view(5) as view:
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
    space = db._shards[0]
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
    db.map("m").put("k", 1)
    with world.connect(timeout=0.3) as hasty:
        m = hasty.map("m")
        stop_nodes(world)
        for level in ("strong", "session", "prefix", "eventual"):
            with pytest.raises(
                of.Unavailable, match=r"no node of .* answered within 0.3 s .*onefold status"
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
    from onefold.state.core.tokens import Token, encode_token

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
    def down(data, deadline=None):
        raise of.Unavailable("the log is down")

    with world.connect(timeout=1.5) as db:
        for node in world.delivered:
            monkeypatch.setattr(node[0], "append", down)
        with pytest.raises(of.TooStale, match="may be of any age, and 3600 s are allowed") as caught:
            db.map("m").get("k", consistency="bounded:1h")
        assert caught.value.definite


def test_bounded_reads_are_too_stale_when_nobody_answers_at_all(world, monkeypatch):
    def silent(*_, **__):
        raise of.Unavailable("nobody is there")

    with world.connect(timeout=1.5) as db:
        db.map("m").put("k", 1)
        monkeypatch.setattr(db._shards[0], "_asking", silent)
        with pytest.raises(of.TooStale, match=r"complete as of .* ago") as caught:
            db.map("m").get("k", consistency="bounded:0.000001s")
        assert caught.value.definite


def test_plain_views_never_go_back(world, db, other):
    space = db._shards[0]
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
    space = db._shards[0]
    other.map("m").put("k", 0)
    here = space.applied
    assert space.wait(here, 0.05) == here
    assert space.wait(here - 1, None) == here
    timer = threading.Timer(0.05, lambda: other.map("m").put("k", 1))
    timer.start()
    assert space.wait(here, SOON_S) > here
    timer.join()


def test_reach_says_whether_it_came(world, db, other):
    space = db._shards[0]
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
    space = db._shards[0]
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
    space, found = db._shards[0], []
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
    space, lost = db._shards[0], []

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
    space = db._shards[0]
    here = space.applied
    monkeypatch.setattr(space, "_version_max", 0)
    with pytest.raises(of.SpaceError, match="Upgrade"):
        space.wait(here, SOON_S)


def test_closing_lets_go_who_waits_and_the_thread_ends(world, monkeypatch):
    monkeypatch.setattr(config, "ASK_POLL_S", 0.1)
    with world.connect() as db:
        space = db._shards[0]
        here = space.applied
        waiter = threading.Thread(target=lambda: space.wait(here, None))
        waiter.start()
        until(lambda: space._news._waiting)
    waiter.join(SOON_S)
    assert not waiter.is_alive()
    until(lambda: not any(thread.name == "onefold-notifications" for thread in threading.enumerate()))
