"""Which regions there are, waiting for all of them, and the conflict feed."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.support.memory_regions import MemoryRegions, submit

import onefold as of
from onefold.available.effects import Effect, encode_effect
from onefold.available.exchange import unseen_ops
from onefold.available.kinds.places import FIELDS, KEEP_BOTH, REGISTER
from onefold.available.ops import AnyRequest, Delete, Evict, Import, Patch, Put, Replace, Retire
from onefold.available.regions import read_self
from onefold.available.stamps import clock_at
from onefold.state.encoding.keys import encode_key
from onefold.state.encoding.values import encode_value


def write(
    database: of.Database, *requests: AnyRequest, key: Any = "k", request_id: str | None = None
) -> None:
    client = database._available
    client.do(client.shard_of(encode_key(key)), requests, request_id=request_id)


def put(database: of.Database, value: Any, *, name: str = "carts", key: Any = "k") -> None:
    write(database, Put(REGISTER, name, ((encode_key(key), encode_value(value)),)), key=key)


def test_regions_are_listed_with_what_is_not_exchanged(regions: MemoryRegions) -> None:
    eu, us = regions.database("eu"), regions.database("us")
    here, other = eu.regions()
    assert (here.name, here.state, other.name, other.state, other.behind_writes) == (
        "eu", "here", "us", "linked", 0,
    )  # fmt: skip
    regions.cut = {("us", "eu"), ("eu", "us")}
    for n in range(5):
        put(eu, n)
        put(us, n)
    _, other = eu.regions()
    assert (other.state, other.behind_writes) == ("cut", 5)  # those of the other one are not known here
    assert 0 <= other.behind_s < 600
    regions.cut = {("eu", "us")}
    regions.linked = False
    _, other = eu.regions()
    assert (other.state, other.behind_writes) == ("linked", 10)
    regions.cut.clear()
    regions.exchange()
    put(us, "says what it knows")
    regions.exchange()
    _, other = eu.regions()
    assert (other.state, other.behind_writes, other.behind_s) == ("linked", 0, 0)
    write(eu, Delete(REGISTER, "carts", (encode_key("k"),)))
    assert eu.regions()[0].gone_bytes > 0


def test_a_region_is_behind_when_something_is_on_its_way_for_long(
    regions: MemoryRegions, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onefold.state.available import status

    monkeypatch.setattr(status, "BEHIND_S", -1.0)
    eu, us = regions.database("eu"), regions.database("us")
    regions.linked = False
    put(us, 1)
    assert eu.regions()[1].state == "behind"


def test_evicted_regions_are_listed_as_such(regions: MemoryRegions) -> None:
    regions.linked = False
    eu, us = regions.database("eu"), regions.database("us")
    submit(regions.regions["eu"].shards[0], Evict(2, 1))
    submit(regions.regions["us"].shards[0], Retire(0))
    assert [region.state for region in eu.regions()] == ["here", "evicted"]
    assert us.regions()[0].state == "evicted"
    with pytest.raises(of.Unavailable, match="was evicted"):
        us.counters("likes").add("a")


def test_a_region_whose_clock_is_ahead_is_held(regions: MemoryRegions) -> None:
    shard = regions.regions["eu"].shards[0]
    ahead = Effect(2, 1, {}, clock_at(shard.env.wall_ms() + 3_600_000))
    submit(shard, Import(2, (encode_effect(ahead),)))
    other = regions.database("eu").regions()[1]
    assert other.state == "held" and 3000 < other.clock_ahead_s < 4000


def test_a_space_without_regions_lists_none() -> None:
    with of.connect("memory://") as db:
        plain = of.Database(db._shards)
        assert plain.regions() == []
        with pytest.raises(of.InvalidArgument, match="no collections for every region"):
            plain.counters("likes").add("a")


def test_sync_shows_what_all_had_acknowledged_and_names_who_is_missing() -> None:
    regions = MemoryRegions("eu", "us", "ap", shards=2)
    try:
        dbs = {name: regions.database(name) for name in regions.names}
        for n in range(10):
            dbs["us"].counters("likes").add(n)
            dbs["ap"].counters("likes").add(n, 2)
        dbs["eu"].sync()
        likes = dbs["eu"].counters("likes")
        assert [value for _, value in likes.items()] == [3] * 10
        regions.cut.add(("us", "eu"))
        with pytest.raises(of.TooStale, match=r"within 0\.05 s: us does not answer.*Wait longer") as caught:
            dbs["eu"].sync(timeout="50ms")
        assert caught.value.regions == ("us",) and caught.value.definite
        with pytest.raises(of.InvalidArgument, match="timeout"):
            dbs["eu"].sync(-1)
        healing = threading.Timer(0.2, regions.cut.clear)
        healing.start()
        dbs["eu"].sync(120)
        healing.join()
        alone = MemoryRegions("eu")
        alone.database("eu").sync()
        alone.close()
    finally:
        regions.close()


def test_conflicts_say_what_stayed_and_where_it_was_written(regions: MemoryRegions) -> None:
    eu, us = regions.database("eu"), regions.database("us")
    assert list(eu.conflicts()) == []
    put(eu, {"n": 1})
    put(us, {"n": 2})
    put(us, 5, name="other")
    regions.exchange()
    for database in (eu, us):
        (found,) = database.conflicts("carts")
        assert (found.collection, found.key, found.field) == ("carts", "k", None)
        assert (found.kept, found.dropped, found.regions) == ({"n": 2}, {"n": 1}, ("us", "eu"))
        assert abs(found.time - datetime.now(UTC)) < timedelta(hours=1)
    put(eu, 3)
    write(us, Delete(REGISTER, "carts", (encode_key("k"),)))
    regions.exchange()
    assert [(one.kept, one.dropped) for one in eu.conflicts("carts")][1:] == [(None, 3)]
    assert list(eu.conflicts("other")) == []


def test_conflicts_of_fields_siblings_and_requests(regions: MemoryRegions) -> None:
    eu, us = regions.database("eu"), regions.database("us")
    key = encode_key("k")
    write(eu, Replace("f", key, (("a", encode_value(1)),)))
    regions.exchange()
    write(eu, Patch("f", key, (("a", encode_value(2)),)))
    write(us, Patch("f", key, (("a", encode_value(3)), ("b", encode_value(4)))))
    regions.exchange()
    assert [(one.field, one.kept, one.dropped) for one in us.conflicts("f")] == [("a", 3, 2)]
    write(eu, Replace("f", key, ()))
    write(us, Delete(FIELDS, "f", (key,)))
    regions.exchange()
    assert [(one.field, one.kept, one.dropped) for one in us.conflicts("f")][1:] == [(None, None, {})]
    write(eu, Put(KEEP_BOTH, "both", ((key, encode_value(1)),)))
    write(us, Put(KEEP_BOTH, "both", ((key, encode_value(2)),)))
    regions.exchange()
    assert [(one.kept, one.dropped) for one in eu.conflicts("both")] == [(2, 1)]
    eu.counters("n").add("k", request_id="r")
    us.counters("n").add("k", request_id="r")
    regions.exchange()
    last = list(eu.conflicts())[-1]
    assert (last.collection, last.key, last.kept, last.dropped) == (None, "r", None, None)


def test_what_nobody_took_of_an_evicted_region_is_listed(regions: MemoryRegions) -> None:
    regions.linked = False
    eu, us = regions.database("eu"), regions.database("us")
    us.counters("stock", floor=0).add("s", 9)
    put(eu, "here")
    regions.exchange()
    put(us, "lost")
    put(us, "new", key="l")
    write(us, Delete(REGISTER, "carts", (encode_key("k"),)))
    write(us, Patch("f", encode_key("k"), (("a", encode_value(1)), ("b", None))))
    write(us, Replace("f", encode_key("k"), (("a", encode_value(2)),)))
    us.sets("s").add("k", 1)
    us.sets("s").discard("k", 1)
    us.sets("s").delete("k")
    us.counters("n").add("k", 5)
    us.counters("n").delete("k")
    us.counters("stock", floor=0).add("s", -2)
    us.counters("stock", floor=0).move("s", 1, to="eu")
    log, other = (regions.regions[name].shards[0] for name in ("eu", "us"))
    submit(log, Evict(2, 1))
    with log.view() as view:
        final = read_self(view).regions[2].limit
    with other.view() as view:
        for op in unseen_ops(view, final):
            submit(log, op)
    found = [(one.collection, one.key, one.kept, one.dropped) for one in eu.conflicts() if one.unseen]
    assert found == [
        ("carts", "k", "here", "lost"),
        ("carts", "l", None, "new"),
        ("carts", "k", "here", None),
        ("f", "k", None, {"set": {"a": 1}, "unset": ["b"]}),
        ("f", "k", None, {"put": {"a": 2}}),
        ("s", "k", None, {"add": 1}),
        ("s", "k", None, {"discard": 1}),
        ("s", "k", None, {"delete": True}),
        ("n", "k", None, {"add": 5}),
        ("n", "k", None, {"delete": True}),
        ("stock", "s", None, {"add": -2}),
        ("stock", "s", None, {"move": 1, "to": "eu"}),
    ]
    assert [one.regions for one in eu.conflicts("carts")] == [("eu", "us"), ("", "us"), ("eu", "us")]


def test_tokens_continue_behind_their_entry_in_their_region_only(shards: MemoryRegions) -> None:
    eu, us = shards.database("eu"), shards.database("us")
    for n in range(20):
        put(eu, n, key=n)
        put(us, -n, key=n)
    shards.exchange()
    everything = list(eu.conflicts("carts"))
    assert sorted(one.key for one in everything) == list(range(20))
    for at in (0, 7, 19):
        later = list(eu.conflicts("carts", start=everything[at].token))
        assert [one.key for one in later] == [one.key for one in everything[at + 1 :]]
    token = everything[3].token
    with pytest.raises(of.TokenError, match="of region 'eu'"):
        us.conflicts("carts", start=token)
    with pytest.raises(of.TokenError, match="not a token of conflicts"):
        eu.conflicts("carts", start=eu.session.token)
    with pytest.raises(of.TokenError):
        eu.conflicts("carts", start="nonsense")
    other = MemoryRegions("eu", "us", shards=3)
    try:
        with pytest.raises(of.TokenError):
            other.database("eu").conflicts(start=token)
    finally:
        other.close()
    with pytest.raises(of.InvalidArgument, match="follow"):
        eu.conflicts(follow=1)  # type: ignore[arg-type]
    with pytest.raises(of.InvalidArgument, match="name"):
        eu.conflicts("")


def test_a_token_of_what_is_no_longer_kept_is_too_old(
    regions: MemoryRegions, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onefold.available import applying

    monkeypatch.setattr(applying, "CONFLICTS_KEPT", 3)
    eu, us = regions.database("eu"), regions.database("us")
    token = ""
    for n in range(8):
        put(eu, n)
        put(us, -n)
        regions.exchange()
        token = token or next(iter(eu.conflicts())).token
    with pytest.raises(of.TooOld, match="no longer kept"):
        eu.conflicts(start=token)
    assert len(list(eu.conflicts())) <= 4


def test_following_waits_for_more_and_ends_when_none_came(regions: MemoryRegions) -> None:
    eu, us = regions.database("eu"), regions.database("us")
    put(eu, 1)
    put(us, 2)
    regions.exchange()
    found: list[Any] = []
    with eu.conflicts("carts", follow=True) as feed:
        thread = threading.Thread(target=lambda: found.extend([next(feed).kept, next(feed).kept]))
        thread.start()
        put(eu, 3)
        put(us, 4)
        regions.exchange()
        thread.join(60)
        assert not thread.is_alive() and found == [2, 4]
    assert list(feed) == []
    assert len(list(eu.conflicts("carts", follow=True, timeout=0.05))) == 2


def test_a_value_that_cannot_be_read_is_named_and_passed(regions: MemoryRegions) -> None:
    eu, us = regions.database("eu"), regions.database("us")
    write(eu, Put(REGISTER, "carts", ((encode_key("k"), b"\xc1"),)))
    put(us, 1)
    put(eu, 1, key="l")
    put(us, 2, key="l")
    regions.exchange()
    feed = eu.conflicts("carts")
    with pytest.raises(of.InvalidValue, match="carts"):
        next(feed)
    assert [one.kept for one in feed] == [2]
