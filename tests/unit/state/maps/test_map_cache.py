"""The cache of session reads: it never goes back, never misses one's own writes, and is bounded."""

import random
from contextlib import closing

import pytest

import onefold as of
from onefold import config
from onefold.env import SeededEnv
from onefold.space.open_shard import open_shard
from onefold.state.core.client import StateClient
from onefold.state.core.consistency import SESSION
from onefold.state.fold.machine import StateFold
from onefold.state.maps.map import Map
from onefold.store.tables import Tables


class Worlds:
    """Clients of one space, each as another process would be, under one clock that moves when told."""

    def __init__(self, folder):
        self.folder = folder
        self.env = SeededEnv(1)
        self.clients = []

    def client(self):
        space = open_shard(self.folder, [StateFold()], env=self.env)
        self.clients.append(StateClient([space]))
        return self.clients[-1]


@pytest.fixture
def worlds(tmp_path):
    made = Worlds(tmp_path / "space")
    yield made
    for client in made.clients:
        client.close()


@pytest.fixture
def mine(worlds):
    return Map(worlds.client(), "m", level=SESSION)


@pytest.fixture
def theirs(worlds):
    return Map(worlds.client(), "m")


def reads(m, monkeypatch):
    """Counts reads of the space."""
    counted = []
    peek = m.client.shards[0].peek
    monkeypatch.setattr(m.client.shards[0], "peek", lambda *args: counted.append(args) or peek(*args))
    return counted


def test_hits_need_no_read_and_are_compared_after_their_time(worlds, mine, theirs, monkeypatch):
    theirs["k"], theirs["other"] = 1, 1
    counted = reads(mine, monkeypatch)
    assert [mine["k"], mine["k"], mine.get("none"), mine.get("none"), "none" in mine] == [
        1,
        1,
        None,
        None,
        False,
    ]
    assert len(counted) == 2
    theirs["k"], theirs["none"] = 2, 2
    assert mine["k"] == 1 and mine.get("none") is None
    worlds.env.advance(config.SESSION_CACHE_FRESH_S)
    assert mine["k"] == 2 and mine["none"] == 2
    theirs["other"] = 2
    worlds.env.advance(config.SESSION_CACHE_FRESH_S)
    assert mine["k"] == 2 and len(counted) == 4  # what did not change is still there


def test_own_writes_are_read_at_once_through_any_handle(mine):
    other = Map(mine.client, "m")
    handles = [mine, other, Map(mine.client, "m", level=SESSION)]
    source = random.Random(5)
    for number in range(60):
        source.choice(handles)["k"] = number
        assert mine["k"] == number
    del other["k"]
    assert "k" not in mine
    other.put_many({("a", 1): 1, "k": 2})
    assert mine[("a", 1)] == 1 and mine["k"] == 2
    other.clear()
    assert mine.get(("a", 1)) is None and mine.get("k") is None


def test_a_session_read_is_never_behind_another_read_of_the_client(mine, theirs):
    looks = [
        lambda: mine.get("k", consistency="strong"),
        lambda: dict(mine.items())["k"],
        lambda: mine.get_many(["k"])["k"],
        lambda: next(mine.watch(initial=True)).value,
        lambda: mine.setdefault("k", -1),
    ]
    for number, look in enumerate(looks):
        mine.get("k")
        theirs["k"] = number
        assert look() == number
        assert mine["k"] == number


def test_a_change_that_was_watched_is_read(mine, theirs):
    mine["k"] = 0
    with mine.watch() as changes:
        for number in range(5):
            assert mine["k"] == number
            theirs["k"] = number + 1
            assert next(changes).value == number + 1


def test_what_a_miss_has_seen_outdates_the_other_keys(mine, theirs):
    theirs.put_many({"a": 0, "b": 0})
    for number in range(1, 4):
        assert mine["a"] == number - 1
        theirs.put_many({"a": number, ("b", number): number})
        assert mine[("b", number)] == number  # not in the cache: read from the space
        assert mine["a"] == number  # written at the same moment


def test_a_row_read_before_the_cache_moved_on_is_not_kept(worlds, mine, theirs, monkeypatch):
    theirs["k"], theirs["k2"] = "old", 0
    space = mine.client.shards[0]
    peek = space.peek

    def slow(table, key):
        found = peek(table, key)
        monkeypatch.setattr(space, "peek", peek)
        theirs["k"] = "new"
        assert mine["k2"] == 0
        worlds.env.advance(1)
        assert mine["k2"] == 0  # compares: the cache is valid beyond what was read above
        return found

    assert mine["k2"] == 0
    monkeypatch.setattr(space, "peek", slow)
    assert mine["k"] == "old"
    assert mine["k"] == "new"


def test_an_items_time_ends_in_the_cache_too(worlds, mine, theirs):
    theirs.put("k", 1, ttl=0.01)
    assert mine["k"] == 1 and mine["k"] == 1
    worlds.env.advance(0.01)
    assert mine.get("k") is None


def test_an_etag_is_that_of_the_cached_row(mine):
    version = mine.put("k", 1)
    assert [mine.get_item("k").version for _ in range(3)] == [version] * 3


def test_many_changes_drop_everything_of_the_map(worlds, mine, theirs, monkeypatch):
    monkeypatch.setattr(config, "SESSION_CACHE_CHANGES_MAX", 3)
    theirs.put_many(dict.fromkeys(range(10), 0))
    assert [mine[number] for number in range(10)] == [0] * 10
    theirs.put_many(dict.fromkeys(range(10), 1))
    worlds.env.advance(1)
    assert [mine[number] for number in range(10)] == [1] * 10


def test_what_fell_out_of_the_history_is_dropped(worlds, mine, theirs, monkeypatch):
    monkeypatch.setattr(config, "HISTORY_WINDOW_OFFSETS", 1)
    monkeypatch.setattr(config, "HISTORY_PRUNE_EVERY_OFFSETS", 1)
    theirs["k"] = 0
    assert mine["k"] == 0 and mine["k"] == 0
    for number in range(1, 6):
        theirs["k"] = number
    worlds.env.advance(1)
    assert mine["k"] == 5


def test_the_cache_is_bounded(mine, monkeypatch):
    cache = mine._cache
    monkeypatch.setattr(config, "SESSION_CACHE_ENTRIES_MAX", 10)
    mine.put_many({number: number for number in range(100)})
    for number in range(100):
        assert mine[number] == number
        assert len(cache.slot("m")) <= 10
    monkeypatch.setattr(config, "SESSION_CACHE_ROW_BYTES_MAX", 100)
    mine["large"] = "x" * 200
    assert mine["large"] == "x" * 200
    assert "large" not in cache.slot("m")
    monkeypatch.setattr(config, "SESSION_CACHE_BYTES_MAX", 1000)
    for number in range(100):
        assert mine[number] == number
        assert len(cache.slot("m")) <= 5


def test_maps_that_nobody_holds_leave_nothing(mine):
    for number in range(100):
        Map(mine.client, f"m{number}").get("k", consistency="session")
    assert len(mine._cache._slots) <= 2


def test_keys_that_python_takes_for_equal_are_apart(mine):
    mine.put_many([(1, "int"), (True, "bool"), (b"\x02a\0", "bytes"), ("a", "str")])
    for _ in range(2):
        assert [mine[1], mine[True], mine[b"\x02a\0"], mine["a"], mine[("a",)]] == [
            "int",
            "bool",
            "bytes",
            "str",
            "str",
        ]
    mine["a"] = 2
    assert mine[("a",)] == 2 and mine["a"] == 2
    mine[("a",)] = 3
    assert mine[("a",)] == 3 and mine["a"] == 3


def test_a_token_that_is_ahead_is_waited_for(tmp_path):
    with of.connect(tmp_path / "s") as db:
        db.map("m")["k"] = 1
        with of.connect(tmp_path / "s", consistency="session", timeout=1) as reader:
            m = reader.map("m")
            assert m["k"] == 1
            from onefold.state.core.tokens import Token, encode_token

            incarnation = m.client.shards[0].incarnation
            reader.session.merge(encode_token(Token(incarnation, {0: 1000})))
            for key in ("k", "other"):
                with pytest.raises(of.TokenAhead):
                    m.get(key)


def test_reads_of_a_random_history_are_monotonic(worlds, monkeypatch):
    source = random.Random(11)
    maps = [Map(worlds.client(), "m", level=SESSION) for _ in range(3)]
    keys = ["a", "b", 3]
    for m in maps[:1]:
        m.put_many(dict.fromkeys(keys, 0))
    seen = [dict.fromkeys(keys, 0) for _ in maps]
    for step in range(1, 1500):
        who, key = source.randrange(3), source.choice(keys)
        m = maps[who]
        match source.randrange(5):
            case 0:
                m[key] = step
                seen[who][key] = step
            case 1:
                worlds.env.advance(source.choice([0, 0.005, 0.03]))
            case 2:
                value = m.get(key, consistency="strong")
                assert value == max(view[key] for view in seen)
                # What else was written before it is now seen as well.
                seen[who] = {k: max(view[k] for view in seen) for k in keys}
            case _:
                value = m[key]
                assert value >= seen[who][key]
                seen[who][key] = value


def test_only_spaces_of_one_shard_in_one_file_have_a_cache(tmp_path):
    env = SeededEnv(1)
    spaces = [open_shard("memory://", [StateFold(2)], env=env) for _ in range(2)]
    with closing(StateClient(spaces)) as client:
        assert Map(client, "m")._cache is None
        m = Map(client, "m", level=SESSION)
        m["k"] = 1
        assert m["k"] == 1


def test_a_map_that_is_made_while_it_is_read_is_not_kept_as_empty(mine, theirs, monkeypatch):
    find, made = Tables.find, []

    def late(self, con, name):
        found = find(self, con, name)
        if not found and name == "state/m/m" and not made:
            made.append(name)
            theirs["k"] = 1
        return found

    with monkeypatch.context() as patched:
        patched.setattr(Tables, "find", late)
        mine.get("k")
    assert made
    mine.client.session.merge(theirs.client.session.token)
    assert mine.get("k") == 1
