"""Lifetimes of items: they end by the reader's clock, by records, and while nothing else happens."""

import threading
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta

import pytest

import onefold as of
from onefold import config
from onefold.env import SYSTEM, SeededEnv
from onefold.errors import Conflict, InvalidArgument
from onefold.log.memory import MemoryLog
from onefold.shard.memory import MemoryShard
from onefold.space.open_shard import open_shard
from onefold.state.core.client import StateClient
from onefold.state.core.consistency import SESSION
from onefold.state.fold import rows
from onefold.state.fold.machine import StateFold
from onefold.state.maps.map import Map
from onefold.state.transaction import Transaction

SOON_S = 60


@pytest.fixture
def env():
    return SeededEnv(1)


@pytest.fixture(params=["memory", "sqlite", "shards"])
def m(request, tmp_path, env):
    if request.param == "sqlite":
        spaces = [open_shard(tmp_path / "s", [StateFold()], env=env)]
    else:
        shards = 3 if request.param == "shards" else 1
        spaces = [MemoryShard(MemoryLog(env=env), [StateFold(shards)], env) for _ in range(shards)]
    with closing(StateClient(spaces)) as client:
        yield Map(client, "m")


def offsets(m):
    return m.client.present()


def test_an_item_is_there_until_its_time_and_not_after(m, env):
    m.put("k", 1, ttl="10s")
    item = m.get_item("k")
    assert item.expires_at == datetime.fromtimestamp(env.wall_ms() / 1000, UTC) + timedelta(seconds=10)
    env.advance(9.999)
    before = offsets(m)
    assert m["k"] == 1 and "k" in m and len(m) == 1
    assert offsets(m) == before  # nothing was due: nothing is appended
    env.advance(0.001)
    assert m.get("k") is None and "k" not in m and len(m) == 0


READS = {
    "get": lambda m: m.get("k"),
    "session get": lambda m: m.get("k", consistency="session"),
    "get_item": lambda m: m.get_item("k"),
    "get_many": lambda m: m.get_many(["k"]),
    "in": lambda m: "k" in m,
    "len": len,
    "bool": bool,
    "scan": lambda m: list(m.scan()),
    "scan back": lambda m: list(m.scan(reverse=True, prefix="k")),
    "items": lambda m: list(m.items()),
    "pop": lambda m: m.pop("k", None),
    "initial": lambda m: list(m.watch(initial=True, timeout=0)),
    "count": lambda m: m.count("k"),
}


@pytest.mark.parametrize("name", READS)
def test_every_read_ends_what_is_due_for_everybody(m, env, name):
    m.put("k", 1, ttl=1)
    assert m.get("k", consistency="session") == 1
    env.advance(1)
    read = READS[name]
    assert not read(m)
    shard = m.client.shard_of(b"\x02k\0")
    with m.client.shards[shard].view() as view:
        assert view.count(m._table) == 0 and view.count(rows.DUE) == 0


def test_one_tick_serves_all_and_reads_append_nothing_more(m, env):
    m.put_many({"a": 1, "b": 2}, ttl=1, atomic=False)
    m["stay"] = 3
    env.advance(2)
    assert m.get_many(["a", "b", "stay"]) == {"stay": 3}
    before = offsets(m)
    assert dict(m) == {"stay": 3} and m.get("a") is None
    assert offsets(m) == before


def test_more_than_one_record_can_end_all_go(m, env, monkeypatch):
    monkeypatch.setattr(config, "EXPIRATIONS_PER_RECORD_MAX", 3)
    m.put_many([(("k", number), number) for number in range(8)], ttl=1, atomic=False)
    env.advance(5)
    assert m.get(("k", 7)) is None  # the clock stands still: absent by it, though no tick moves fold time on
    env.advance(0.001)
    assert m.get_many([("k", number) for number in range(8)]) == {}
    assert list(m) == []


def test_writes_meet_no_item_whose_time_is_over(m, env):
    m.put("k", 1, ttl=1)
    version = m.get_item("k").version
    with pytest.raises(Conflict):
        m.put("k", 2, if_absent=True)
    env.advance(1)
    m.put("k", 2, if_absent=True)
    m.put("n", 5, ttl=1)
    m.put("d", 5, ttl=1)
    m.put("v", 5, ttl=1)
    env.advance(1)
    assert m.increment("n") == 1
    assert m.delete("d") is False
    with pytest.raises(KeyError):
        del m["v"]
    with pytest.raises(Conflict):
        m.put("k", 3, if_version=version)
    m.put("x", 1, ttl=1)
    env.advance(1)
    assert m.setdefault("x", 7) == 7
    assert m.modify("y", lambda value: value, default=0, ttl=1) == 0
    env.advance(1)
    assert m.modify("y", lambda value: value + 1, default=10) == 11


def test_modify_keeps_the_end_of_an_item(m, env):
    m.put("k", 1, ttl=1)
    end = m.get_item("k").expires_at
    env.advance(0.6)
    assert m.modify("k", lambda value: value + 1) == 2
    # An operation carries a lifetime: the new end is that of its own record, some milliseconds of the simulated clock later.
    assert timedelta(0) <= m.get_item("k").expires_at - end <= timedelta(milliseconds=5)
    env.advance(0.5)
    assert "k" not in m
    m.put("t", 1, ttl=1)
    m.modify("t", lambda value: value, ttl=5)
    env.advance(2)
    assert m.modify("t", lambda value: value + 1) == 2
    env.advance(4)
    assert "t" not in m
    assert m.modify("t", lambda value: value, default=3) == 3
    assert m.get_item("t").expires_at is None


def test_modify_in_a_transaction_keeps_the_end_however_long_its_block_takes(m, env):
    m.put("k", 1, ttl=10)
    m.put("n", 1, ttl=10)
    ends = {key: m.get_item(key).expires_at for key in ("k", "n")}
    with Transaction(m.client) as tx:
        mine = tx.map("m")
        mine.modify("k", lambda value: value + 1)
        mine.modify("k", lambda value: value + 1)
        mine.increment("n")
        mine.modify("n", lambda value: value * 10)
        mine.modify("new", lambda value: value, default=0, ttl=4)
        mine.modify("new", lambda value: value + 1)
        assert mine.get_item("k").expires_at == ends["k"]
        env.advance(3)
    assert dict(m.items()) == {"k": 3, "n": 20, "new": 1}
    for key, end in ends.items():
        assert timedelta(0) <= m.get_item(key).expires_at - end <= timedelta(milliseconds=5)
    assert m.get_item("new").expires_at - ends["k"] <= timedelta(seconds=-2)
    env.advance(8)
    assert not dict(m.items())


def test_a_put_without_ttl_keeps_the_item_for_good_and_one_with_ttl_renews(m, env):
    m.put("k", 1, ttl=1)
    m["k"] = 2
    m.put("r", 1, ttl=1)
    env.advance(0.6)
    m.put("r", 2, ttl=1)
    env.advance(0.6)
    assert m["k"] == 2 and m["r"] == 2
    assert m.get_item("k").expires_at is None
    env.advance(0.4)
    assert "r" not in m and m["k"] == 2


def test_an_increments_ttl_is_set_when_it_makes_the_key(m, env):
    assert m.increment("n", ttl=1) == 1
    env.advance(0.6)
    assert m.increment("n", ttl=1) == 2
    env.advance(0.4)
    assert m.increment("n", ttl=1) == 1


def test_ttls_that_make_no_sense_are_refused_and_huge_ones_are_not(m):
    for wrong in (0, -1, "0s", timedelta(0), float("nan"), float("inf"), True, "soon", None.__class__):
        for write in (m.put, m.modify, m.increment):
            with pytest.raises(InvalidArgument, match="ttl"):
                write("k", (lambda v: v) if write == m.modify else 1, ttl=wrong)
        with pytest.raises(InvalidArgument, match="ttl"):
            m.put_many({"k": 1}, ttl=wrong)
    assert not m
    m.put("k", 1, ttl=1e300)
    assert m.get_item("k").expires_at == datetime.max.replace(tzinfo=UTC)
    m.put("k", 1, ttl=1e-9)
    assert m.get_item("k").expires_at is not None


def test_in_a_read_only_space_what_is_due_counts_as_absent(tmp_path, env):
    folder = tmp_path / "s"
    with closing(StateClient([open_shard(folder, [StateFold()], env=env)])) as client:
        m = Map(client, "m")
        m.put("k", 1, ttl=1)
        m["stay"] = 2
        m.put("later", 3, ttl=5)
    env.advance(1)
    with closing(StateClient([open_shard(folder, [StateFold()], env=env, read_only=True)])) as client:
        for level in (None, SESSION):
            r = Map(client, "m", level=level)
            assert (
                dict(r) == {"later": 3, "stay": 2} and len(r) == 2 and list(r.scan(limit=1)) == [("later", 3)]
            )
            assert r.get("k") is None and "k" not in r and r.get_item("k") is None
            assert r.get_many(["k", "stay"]) == {"stay": 2}
            with r.watch(initial=True, timeout=0) as changes:
                assert [change.key for change in changes] == ["later", "stay"]


@pytest.fixture(params=["memory", "sqlite"])
def idle(request, tmp_path):
    """A space on the real clock in which nothing happens by itself."""
    with of.connect("memory://" if request.param == "memory" else tmp_path / "s") as db:
        yield db.map("m")


def test_a_watch_sees_items_end_in_a_space_where_nothing_else_happens(idle):
    with idle.watch(timeout=SOON_S) as changes:
        idle.put("k", 1, ttl="50ms")
        idle.put("l", 1, ttl="100ms")
        given = [next(changes) for _ in range(4)]
    told = [(change.kind, change.key, change.value) for change in given]
    # On a busy machine the first may end before the second is put. What ends with one record comes in the order of keys.
    assert sorted(told) == sorted(
        [("put", "k", 1), ("put", "l", 1), ("expire", "k", None), ("expire", "l", None)]
    )
    assert [one[1] for one in told if one[0] == "expire"] == ["k", "l"]
    assert str(given[-1].version)


def test_a_watch_that_waits_hears_of_a_lifetime_set_later(idle):
    given = []

    def work():
        with idle.watch(initial=True, timeout=SOON_S) as changes:
            for change in changes:
                given.append(change.kind)
                if change.kind == "expire":
                    return

    idle["first"] = 1
    thread = threading.Thread(target=work)
    thread.start()
    idle.put("k", 1, ttl="30ms")
    thread.join(SOON_S)
    assert given[-1] == "expire" and not thread.is_alive()


def test_several_watches_tick_little(tmp_path):
    with of.connect(tmp_path / "s") as db:
        m = db.map("m")
        watches = [m.watch(timeout=SOON_S) for _ in range(4)]
        m.put("k", 1, ttl="50ms")
        before = m.client.present()[0]
        threads = [threading.Thread(target=lambda w=w: [next(w), next(w)]) for w in watches]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SOON_S)
            assert not thread.is_alive()
        assert m.client.present()[0] - before <= len(watches) + 1


@contextmanager
def stuck(env):
    """A space whose fold time is far ahead of this clock, with items that are due but were too many for one record."""
    space = MemoryShard(MemoryLog(env=env), [StateFold()], env)
    with closing(StateClient([space])) as client:
        yield Map(client, "m")


def test_a_watch_does_not_tick_without_end_when_fold_time_is_ahead(env, monkeypatch):
    monkeypatch.setattr(config, "EXPIRATIONS_PER_RECORD_MAX", 2)
    with stuck(env) as m:
        m.put_many(dict.fromkeys(range(6), 0), ttl=1)
        env.advance(1)
        m.client.tick(0)
        before = m.client.present()[0]
        space = m.client.shards[0]
        waits = []

        def wait(after, timeout):
            waits.append(timeout)
            env._boot_s += timeout  # its own clock moves, the wall clock does not
            return space.applied

        monkeypatch.setattr(space, "wait", wait)
        assert list(m.watch(timeout=0.1)) == []
        assert m.client.present()[0] - before <= 12
        assert waits and SYSTEM is not env


def test_a_lifetime_that_is_renewed_or_removed_leaves_nothing_behind(tmp_path):
    with of.connect(tmp_path / "space") as db:
        m = db.map("m")
        for number in range(100):
            m.put("renewed", number, ttl=3600 + number)
            m.put("removed", number, ttl=3600 + number)
            del m["removed"]
        with db._state.shards[0].view() as view:
            assert view.count(rows.DUE) == 1
