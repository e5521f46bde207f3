"""Scans: key order, bounds, pages at one offset, shards merged, and what is too old."""

from contextlib import closing, contextmanager

import apsw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import onefold as of
from onefold import config
from onefold.env import SYSTEM
from onefold.errors import InvalidArgument, InvalidKey, TooOld
from onefold.log.memory import MemoryLog
from onefold.shard.memory import MemoryShard
from onefold.state.core.client import StateClient
from onefold.state.encoding.keys import decode_key, encode_key, encode_prefix
from onefold.state.fold.machine import StateFold
from onefold.state.maps.map import Map


@contextmanager
def sharded(shards):
    spaces = [MemoryShard(MemoryLog(env=SYSTEM), [StateFold(shards)], SYSTEM) for _ in range(shards)]
    with closing(StateClient(spaces)) as client:
        yield Map(client, "m")


@pytest.fixture(params=["memory", "sqlite", "shards"])
def m(request, tmp_path):
    if request.param == "shards":
        with sharded(3) as opened:
            yield opened
    else:
        with of.connect("memory://" if request.param == "memory" else tmp_path / "s") as db:
            yield db.map("m")


@pytest.fixture(params=["memory", "sqlite"])
def one(request, tmp_path):
    with of.connect("memory://" if request.param == "memory" else tmp_path / "s") as db:
        yield db.map("m")


elements = st.one_of(
    st.sampled_from(["a", "b", "", "a\0"]),
    st.integers(-2, 2),
    st.booleans(),
    st.none(),
    st.sampled_from([b"", b"a"]),
)
keys = st.one_of(elements, st.lists(elements, min_size=1, max_size=3).map(tuple))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    some=st.lists(keys, max_size=30),
    shards=st.sampled_from([1, 3]),
    prefix=st.one_of(st.none(), st.just(()), keys),
    start=st.one_of(st.none(), keys),
    stop=st.one_of(st.none(), keys),
    limit=st.one_of(st.none(), st.integers(0, 8)),
    reverse=st.booleans(),
)
def test_a_scan_is_the_sorted_dict_cut(some, shards, prefix, start, stop, limit, reverse):
    with sharded(shards) as m:
        m.put_many([(key, number) for number, key in enumerate(some)], atomic=False)
        low, high = encode_prefix(() if prefix is None else prefix)
        model = {encode_key(key): number for number, key in enumerate(some)}
        chosen = [
            (decode_key(key), number)
            for key, number in sorted(model.items(), reverse=reverse)
            if low <= key < high
            and (start is None or key >= encode_key(start))
            and (stop is None or key < encode_key(stop))
        ]
        found = m.scan(prefix=prefix, start=start, stop=stop, limit=limit, reverse=reverse)
        assert list(found) == chosen[:limit]
        assert m.count(prefix) == sum(low <= key < high for key in model)


def test_many_pages_come_in_order_both_ways(m):
    m.put_many({number: number for number in range(3000)}, atomic=False)
    assert list(m) == list(range(3000))
    assert list(reversed(m)) == list(range(2999, -1, -1))
    assert [key for key, _ in m.scan(start=1000, stop=2500)] == list(range(1000, 2500))
    assert [key for key, _ in m.scan(limit=1200, reverse=True)] == list(range(2999, 1799, -1))


def test_large_values_make_small_pages(one, monkeypatch):
    monkeypatch.setattr(config, "MAP_PAGE_BYTES", 10_000)
    one.put_many(dict.fromkeys(range(200), "x" * 1000))
    pages = []
    real = one.client.shards[0].view

    class Counting:
        def __init__(self, at, need):
            self.inner = real(at, need)

        def __enter__(self):
            view = self.inner.__enter__()
            scan = view.scan

            def counted(table, *args, limit=None, **kw):
                pages.append(limit)
                return scan(table, *args, limit=limit, **kw)

            view.scan = counted
            return view

        def __exit__(self, *error):
            return self.inner.__exit__(*error)

    monkeypatch.setattr(one.client.shards[0], "view", lambda at=None, need=None: Counting(at, need))
    assert len(list(one.scan())) == 200
    assert max(pages[2:]) <= 10


def test_a_scan_shows_one_moment_whatever_is_written_meanwhile(one):
    one.put_many(dict.fromkeys(range(0, 2000, 2), "old"))
    found = one.scan()
    first = next(found)
    one.put_many(dict.fromkeys(range(2000), "new"))
    del one[1500]
    for number in range(1990, 1999):
        del one[number]
    assert [first, *found] == [(number, "old") for number in range(0, 2000, 2)]
    backward = one.scan(reverse=True)
    head = [next(backward)]
    one.clear()
    assert len([*head, *backward]) == 1990
    assert list(one) == []


def test_keys_and_items_iterate_while_the_program_writes(one):
    one.put_many(dict.fromkeys(range(1000), 0))
    for key in one:
        if key % 100 == 0:
            del one[key]
    for key, value in one.items():
        if key % 300 == 1:
            one[key] = value + 1
    assert len(one) == 990 and sum(one.values()) == 4


def test_an_iterator_beyond_the_history_is_too_old(one, monkeypatch):
    one.put_many({number: number for number in range(100)})
    found = one.scan()
    next(found)
    monkeypatch.setattr(config, "HISTORY_WINDOW_OFFSETS", 2)
    monkeypatch.setattr(config, "HISTORY_PRUNE_EVERY_OFFSETS", 1)
    for number in range(5):
        one["z"] = number
    with pytest.raises(TooOld, match="'m'") as caught:
        list(found)
    assert caught.value.definite and "start=" in str(caught.value)


def test_an_iterator_at_rest_holds_no_snapshot(tmp_path):
    with of.connect(tmp_path / "s") as db:
        m = db.map("m")
        m.put_many(dict.fromkeys(range(1000), "x" * 100))
        found, watch = m.scan(), m.watch(initial=True)
        next(found), next(watch)
        m["more"] = 1
        writer = m.client.shards[0]._file._writer
        writer.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)  # raises BusyError while anybody reads
        assert len(list(found)) == 999


def test_a_prefix_matches_whole_elements(m):
    m.put_many([(("eu", 1), 1), (("eu", 2), 2), ("eu", 0), ("eur", 3), (("us", 1), 4)], atomic=False)
    assert dict(m.scan(prefix=("eu",))) == dict(m.scan(prefix="eu")) == {"eu": 0, ("eu", 1): 1, ("eu", 2): 2}
    assert dict(m.scan(prefix=("eu", 2))) == {("eu", 2): 2}
    assert m.count("eu") == 3 and m.count() == len(m) == 5


def test_the_key_none_is_a_tuple_in_bounds(m):
    m.put_many([(None, 0), ("a", 1)], atomic=False)
    assert list(m.scan(stop=("a",))) == [(None, 0)]
    assert list(m.scan(prefix=(None,))) == [(None, 0)]


def test_a_prefix_reads_only_its_shard():
    with sharded(4) as m:
        m.put_many([((name, number), number) for name in "abcdef" for number in range(3)], atomic=False)
        shard = m.client.shard_of(encode_key("c"))
        for number, space in enumerate(m.client.shards):
            if number != shard:
                space.close()
        assert [key for key, _ in m.scan(prefix="c")] == [("c", 0), ("c", 1), ("c", 2)]
        assert m.count("c") == 3


def test_wrong_arguments_are_told_at_once(one):
    for wrong in (-1, 1.5, True, "3"):
        with pytest.raises(InvalidArgument, match="limit"):
            one.scan(limit=wrong)
    with pytest.raises(InvalidKey):
        one.scan(start=1.5)
    with pytest.raises(InvalidKey):
        one.scan(prefix=["eu"])
    with pytest.raises(of.UnsupportedConsistency):
        one.scan(consistency="fast")
