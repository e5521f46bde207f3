"""Watches: nothing missed, nothing twice, exact tokens, the present state without a gap, waiting, ending."""

import random
import subprocess
import sys
import threading
from contextlib import closing

import pytest

import onefold as of
from onefold import config
from onefold.env import SYSTEM
from onefold.errors import InvalidArgument, InvalidValue, SpaceError, TokenAhead, TokenError, TooOld
from onefold.log.memory import MemoryLog
from onefold.shard.memory import MemoryShard
from onefold.state.core.client import StateClient
from onefold.state.core.tokens import Token, encode_token
from onefold.state.encoding.keys import encode_key
from onefold.state.fold.machine import StateFold
from onefold.state.fold.maps.ops import Delete, Put
from onefold.state.maps.map import Map

SOON_S = 60
MODES = ["memory", "sqlite", "shards"]


def sharded(shards):
    return [MemoryShard(MemoryLog(env=SYSTEM), [StateFold(shards)], SYSTEM) for _ in range(shards)]


@pytest.fixture(params=MODES)
def m(request, tmp_path):
    if request.param == "shards":
        with closing(StateClient(sharded(3), timeout=5)) as client:
            yield Map(client, "m")
    else:
        url = "memory://" if request.param == "memory" else tmp_path / "s"
        with of.connect(url, timeout=5) as db:
            yield db.map("m")


@pytest.fixture(params=["memory", "sqlite"])
def one(request, tmp_path):
    with of.connect("memory://" if request.param == "memory" else tmp_path / "s") as db:
        yield db.map("m")


def told(changes):
    return [(change.kind, change.key, change.value) for change in changes]


def take(watch, count):
    return [next(watch) for _ in range(count)]


def test_a_watch_gives_what_changes_from_its_making_on(m):
    m["before"] = 0
    with m.watch(timeout=0) as watch:
        m["a"] = {"n": 1}
        version = m.put("a", 2)
        del m["a"]
        m.increment("n", 5)
        found = list(watch)
    mine = [change for change in found if change.key == "a"]
    assert told(mine) == [("put", "a", {"n": 1}), ("put", "a", 2), ("delete", "a", None)]
    assert mine[1].version == version and mine[2].version != version
    assert told(change for change in found if change.key != "a") == [("put", "n", 5)]


def test_only_the_asked_prefix_and_map_are_given(m):
    with m.watch(prefix=("eu",), timeout=0) as watch:
        Map(m.client, "other")[("eu", 1)] = 0
        m[("us", 1)] = 1
        m[("eu", 1)] = 2
        m["eu"] = 3
        m["eur"] = 4
        m.clear()
        assert told(watch) == [
            ("put", ("eu", 1), 2),
            ("put", "eu", 3),
            ("delete", "eu", None),
            ("delete", ("eu", 1), None),
        ]


def test_changes_of_one_record_come_in_order_of_place_and_key(one):
    watch = one.watch(timeout=0)
    one.put_many({"b": 1, "a": 2, "c": 3})
    one.client.commit(
        0, (Put("m", ((encode_key("a"), b"\x05"),)), Delete("m", (encode_key("b"), encode_key("c"))))
    )
    assert told(watch) == [
        ("put", "a", 2), ("put", "b", 1), ("put", "c", 3), ("put", "a", 5), ("delete", "b", None), ("delete", "c", None)
    ]  # fmt: skip


@pytest.mark.parametrize("page", [1, 2, 3, 7, 256])
@pytest.mark.moving(2)
def test_any_token_goes_on_exactly_there(m, monkeypatch, page):
    monkeypatch.setattr(config, "WATCH_PAGE_CHANGES", page)
    source = random.Random(page)
    start = m.watch(timeout=0).token
    for step in range(30):
        match source.randrange(4):
            case 0:
                some = [(source.randrange(8), step * 10 + n) for n in range(5)]
                m.put_many(dict(some), atomic=False)
            case 1:
                m.delete(source.randrange(8))
            case 2:
                m.clear()
            case _:
                m[source.randrange(8)] = step
    everything = list(m.watch(start=start, timeout=0))
    assert len(everything) > 30
    by_token = {change.token: at for at, change in enumerate(everything)}
    assert len(by_token) == len(everything)
    for at, change in enumerate(everything):
        rest = list(m.watch(start=change.token, timeout=0))
        assert sorted(told(rest), key=repr) == sorted(told(everything[at + 1 :]), key=repr)
        if m.client.shard_count == 1:
            assert rest == everything[at + 1 :]
    last = {}
    for change in everything:
        last[change.key] = change.value
    assert {key: value for key, value in last.items() if value is not None} == dict(m)


def test_a_session_token_is_a_start(m):
    m["a"] = 1
    token = m.client.session.token
    m["a"] = 2
    assert told(m.watch(start=token, timeout=0)) == [("put", "a", 2)]
    assert list(m.watch(start=m.client.session.token, timeout=0)) == []


def test_the_watchs_own_token_is_where_it_stands(m):
    watch = m.watch(timeout=0)
    Map(m.client, "other").put_many(dict.fromkeys(range(20), 0), atomic=False)
    m["a"] = 1
    assert told(m.watch(start=watch.token, timeout=0)) == [("put", "a", 1)]
    assert next(watch).value == 1
    assert list(m.watch(start=watch.token, timeout=0)) == []


@pytest.mark.parametrize("page", [1, 3, 256])
def test_the_present_state_comes_first_and_then_every_change(m, monkeypatch, page):
    monkeypatch.setattr(config, "WATCH_PAGE_CHANGES", page)
    m.put_many(dict.fromkeys(range(10), "old"), atomic=False)
    version = m.put(3, "old3")
    watch = m.watch(initial=True, timeout=0)
    m[3] = "new"
    del m[4]
    m[11] = "new"
    first = take(watch, 4)
    m[5] = "new"
    found = first + list(watch)
    state, changes = found[:10], found[10:]
    assert {change.key: change.value for change in state} == {**dict.fromkeys(range(10), "old"), 3: "old3"}
    assert [change.version for change in state if change.key == 3] == [version]
    assert sorted(told(changes), key=repr) == sorted(
        [("put", 3, "new"), ("delete", 4, None), ("put", 11, "new"), ("put", 5, "new")], key=repr
    )
    if m.client.shard_count == 1:
        assert [change.key for change in state] == list(range(10))
    for at, change in enumerate(found):
        rest = told(m.watch(start=change.token, timeout=0))
        assert sorted(rest, key=repr) == sorted(told(found[at + 1 :]), key=repr)


def test_the_present_state_of_an_empty_map_is_nothing(m):
    watch = m.watch(initial=True, timeout=0)
    m["a"] = 1
    assert told(watch) == [("put", "a", 1)]


def test_writers_and_a_watch_at_once_agree(m):
    """What was watched, put together, is the map; each writer's changes come in its order."""
    done, seen = threading.Event(), []
    m.put_many({("w0", 0): -1}, atomic=False)
    watch = m.watch(initial=True, timeout=SOON_S)

    def write(name):
        source = random.Random(name)
        for step in range(120):
            key = (name, source.randrange(5))
            if source.random() < 0.2:
                m.delete(key)
            else:
                m[key] = step
        m[(name, "end")] = True

    def read():
        ends = 0
        while ends < 3:
            change = next(watch)
            seen.append(change)
            ends += change.key[1] == "end"
        done.set()

    threads = [threading.Thread(target=read)]
    threads += [threading.Thread(target=write, args=(f"w{number}",)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(3 * SOON_S)
    assert done.is_set()
    state = {}
    for change in seen:
        state[change.key] = change.value
        if change.kind == "delete":
            del state[change.key]
    assert state == dict(m)
    for name in ("w0", "w1", "w2"):
        steps = [change.value for change in seen if change.key[0] == name and type(change.value) is int]
        assert steps == sorted(steps)
        assert len(set(steps)) == len(steps)


WRITER = """
import sys, onefold as of
with of.connect(sys.argv[1]) as db:
    m = db.map("m")
    for line in sys.stdin:
        m["k"] = int(line)
"""


def test_a_waiting_watch_hears_another_process(tmp_path):
    with of.connect(tmp_path / "s") as db:
        watch = db.map("m").watch(timeout=SOON_S)
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path / "s")], stdin=subprocess.PIPE, text=True
        ) as other:
            for number in range(5):
                other.stdin.write(f"{number}\n")
                other.stdin.flush()
                assert next(watch).value == number
            other.stdin.close()
            other.wait(SOON_S)


def test_it_ends_after_its_timeout_and_stays_ended(m):
    watch = m.watch(timeout="50ms")
    began_s = SYSTEM.boot_s()
    assert list(watch) == []
    assert 0.05 <= SYSTEM.boot_s() - began_s < SOON_S
    m["a"] = 1
    with pytest.raises(StopIteration):
        next(watch)


def test_closing_ends_it_also_from_another_thread(m):
    watch, given = m.watch(), []
    m["a"] = 1
    waiting = threading.Event()

    def read():
        for change in watch:
            given.append(change.value)
            waiting.set()

    thread = threading.Thread(target=read)
    thread.start()
    assert waiting.wait(SOON_S)
    watch.close()
    thread.join(SOON_S)
    assert not thread.is_alive() and given == [1]
    with m.watch() as other:
        m["a"] = 2
    assert list(other) == []


def test_a_space_that_closes_ends_the_wait_with_an_error(tmp_path):
    db = of.connect(tmp_path / "s")
    watch = db.map("m").watch()
    errors = []

    def read():
        try:
            next(watch)
        except SpaceError as error:
            errors.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    db.close()
    thread.join(SOON_S)
    assert not thread.is_alive() and len(errors) == 1


def test_a_waiting_watch_does_not_poll_busily(tmp_path, monkeypatch):
    with of.connect(tmp_path / "s") as db:
        watch = db.map("m").watch(timeout=1)
        space = watch._client.shards[0]
        views, view = [], space.view
        monkeypatch.setattr(space, "view", lambda at=None: views.append(at) or view(at))
        assert list(watch) == []
        assert len(views) <= 20


def test_wrong_and_foreign_tokens_are_told(m, tmp_path):
    for wrong in ("", "of1.", "nonsense", 5, b"of1.", "of1.AAAA"):
        with pytest.raises(TokenError):
            m.watch(start=wrong)
    with of.connect("memory://") as other, pytest.raises(TokenError, match="another space"):
        m.watch(start=other.session.token)
    incarnation = m.client.shards[0].incarnation
    with pytest.raises(TokenError):
        m.watch(start=encode_token(Token(incarnation, {99: 1})))
    for place in (-3, 2**40, 2**64 - 1):
        with pytest.raises(TokenError):
            m.watch(start=encode_token(Token(incarnation, {0: 0}, {0: (place, b"")})))


def test_a_token_of_the_future_waits_and_then_fails(tmp_path):
    with of.connect(tmp_path / "s", timeout=1) as db, of.connect(tmp_path / "s") as other:
        m, incarnation = db.map("m"), db._shard.incarnation
        m["a"] = 1
        ahead = encode_token(Token(incarnation, {0: m.client.present()[0] + 1}))
        within = encode_token(Token(incarnation, {0: m.client.present()[0]}, {0: (0, b"")}))
        for token in (ahead, within):
            with pytest.raises(TokenAhead) as caught:
                m.watch(start=token)
            assert caught.value.definite
        waiting = other.map("m")
        watches = []
        thread = threading.Thread(target=lambda: watches.append(waiting.watch(start=ahead, timeout=0)))
        thread.start()
        m["a"] = 2
        thread.join(SOON_S)
        m["a"] = 3
        assert told(watches[0]) == [("put", "a", 3)]
        assert told(m.watch(start=within, timeout=0)) == [("put", "a", 2), ("put", "a", 3)]


def test_a_token_older_than_the_history_says_what_to_do(one, monkeypatch):
    one["a"] = 0
    token = one.client.session.token
    behind = one.watch(timeout=0)
    initial = one.watch(initial=True, timeout=0)
    monkeypatch.setattr(config, "HISTORY_WINDOW_OFFSETS", 3)
    monkeypatch.setattr(config, "HISTORY_PRUNE_EVERY_OFFSETS", 1)
    for number in range(10):
        one["a"] = number
    for late in (lambda: one.watch(start=token), lambda: next(behind), lambda: next(initial)):
        with pytest.raises(TooOld, match="initial=True") as caught:
            late()
        assert caught.value.definite
    assert told(one.watch(initial=True, timeout=0)) == [("put", "a", 9)]


def test_an_idle_watch_does_not_grow_old(one, monkeypatch):
    monkeypatch.setattr(config, "HISTORY_WINDOW_OFFSETS", 3)
    monkeypatch.setattr(config, "HISTORY_PRUNE_EVERY_OFFSETS", 1)
    watch = one.watch(prefix="mine", timeout=0.001)
    watch._timeout = 0.001
    for number in range(20):
        one["a"] = number
        with pytest.raises(StopIteration):
            next(watch)
        watch._closed = False
    one["mine"] = 1
    assert next(watch).value == 1


def test_arguments_that_make_no_sense(m):
    token = m.client.session.token
    with pytest.raises(InvalidArgument, match="both"):
        m.watch(start=token, initial=True)
    for wrong in (-1, "soon", True):
        with pytest.raises(InvalidArgument, match="timeout"):
            m.watch(timeout=wrong)
    with pytest.raises(of.InvalidKey):
        m.watch(prefix=1.5)


def test_a_watch_continues_behind_a_value_that_is_not_of_the_type(one):
    typed = Map(one.client, "m", type=int)
    watch = typed.watch(timeout=0)
    one["a"] = "text"
    one["a"] = 5
    with pytest.raises(InvalidValue, match="map 'm', key 'a'") as caught:
        next(watch)
    assert (caught.value.map, caught.value.key) == ("m", "a")
    assert next(watch).value == 5
