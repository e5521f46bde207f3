"""A stored value that does not fit the type: the error names its place, and there is a way past it."""

import asyncio
from dataclasses import dataclass

import pytest

import onefold as of


@dataclass
class Point:
    x: int


@pytest.fixture(params=["memory", "folder", "shards"])
def db(request, tmp_path):
    url = "memory://" if request.param == "memory" else tmp_path / "space"
    with of.connect(url, **({"shards": 3} if request.param == "shards" else {})) as db:
        yield db


def fill(db, partitions=1):
    raw = db.stream("s", partitions=partitions)
    for value in ({"x": 0}, {"x": 1}, {"y": "bad"}, {"z": "bad"}, {"x": 4}):
        raw.append(value)
    db.map("m").update({"a": {"x": 1}, "b": {"y": 1}, "c": {"x": 3}})
    return db.stream("s", type=Point), db.map("m", type=Point)


def steps(iterator, skip=None):
    """What each step gives, an error as its place; with ``skip`` after each error."""
    found = []
    while True:
        try:
            found.append(next(iterator))
        except StopIteration:
            return found
        except of.InvalidValue as error:
            found.append(error)
            if skip is not None:
                assert skip()


def places(found):
    return [(e.stream, e.partition, e.offset) if isinstance(e, of.InvalidValue) else e.value.x for e in found]


def test_a_consumer_gives_the_error_until_it_skips(db):
    s, _ = fill(db)
    with s.consumer("g", timeout=0) as consumer:
        assert [next(consumer).value.x, next(consumer).value.x] == [0, 1]
        assert not consumer.skip()
        for _ in range(2):
            with pytest.raises(of.InvalidValue, match=r"stream 's', partition 0, offset 2: .*skip"):
                next(consumer)
        consumer.commit()
        assert consumer.committed == {0: 2}
        assert places(steps(consumer, consumer.skip)) == [("s", 0, 2), ("s", 0, 3), 4]
        consumer.commit()
        assert consumer.committed == {0: 5}
    with s.consumer("other", timeout=0) as consumer:
        with pytest.raises(of.InvalidValue):
            [next(consumer) for _ in range(3)]
        assert consumer.skip()
        consumer.rewind()
        assert not consumer.skip()
        assert next(consumer).value.x == 0


@pytest.mark.parametrize("follow", [False, True])
def test_a_reader_continues_behind_it(db, follow):
    s, _ = fill(db)
    found = steps(s.read(follow=follow, timeout=0))
    assert places(found) == [0, 1, ("s", 0, 2), ("s", 0, 3), 4]
    assert found[-1].position.offsets == {0: 5}


def test_a_reader_of_several_partitions_gives_all_the_others(db):
    raw = db.stream("many", partitions=4)
    for n in range(60):
        raw.append({"x": n} if n % 7 else {"y": n})
    found = steps(db.stream("many", type=Point).read())
    assert sorted(one.value.x for one in found if not isinstance(one, of.InvalidValue)) == [
        n for n in range(60) if n % 7
    ]
    assert len({(e.partition, e.offset) for e in found if isinstance(e, of.InvalidValue)}) == 9


def test_a_map_names_its_key(db):
    _, m = fill(db)
    for read in (
        lambda: m["b"],
        lambda: m.get("b"),
        lambda: m.get_item("b"),
        lambda: m.get_many(["b"]),
        lambda: m.pop("b"),
        lambda: m.setdefault("b", Point(1)),
        lambda: m.modify("b", lambda old: old),
        lambda: db.run_transaction(lambda tx: tx.map(m)["b"]),
        lambda: db.run_transaction(lambda tx: list(tx.map(m).items())),
    ):
        with pytest.raises(of.InvalidValue, match="map 'm', key 'b'") as caught:
            read()
        assert (caught.value.map, caught.value.key) == ("m", "b")
    del m["b"]
    assert list(m) == ["a", "c"]


def test_a_scan_and_a_watch_continue_behind_it(db):
    _, m = fill(db)
    for scan in (m.scan(), iter(m.items()), m.scan(reverse=True), m.scan(limit=3)):
        found = steps(scan)
        assert [getattr(one, "key", None) or one[0] for one in found] in (list("abc"), list("cba"))
        assert [isinstance(one, of.InvalidValue) for one in found] == [False, True, False]
    assert steps(iter(m.values()))[::2] == [Point(1), Point(3)]
    changes = steps(m.watch(initial=True, timeout=0))
    assert sorted(change.key for change in changes) == ["a", "b", "c"]
    assert [change.key for change in changes if isinstance(change, of.InvalidValue)] == ["b"]


def test_asynchronous_iterators_continue_behind_it_too(tmp_path):
    async def stepped(iterator, skip=None):
        found = []
        while True:
            try:
                found.append(await anext(iterator))
            except StopAsyncIteration:
                return found
            except of.InvalidValue as error:
                found.append(error)
                if skip is not None:
                    assert await skip()

    async def main():
        async with of.aio.connect(tmp_path / "space") as db:
            fill(db.sync)
            s, m = db.stream("s", type=Point), db.map("m", type=Point)
            expected = [0, 1, ("s", 0, 2), ("s", 0, 3), 4]
            assert places(await stepped(s.read())) == expected
            assert places(await stepped(s.read(follow=True, timeout=0))) == expected
            async with s.consumer("g", timeout=0) as consumer:
                assert places(await stepped(consumer, consumer.skip)) == expected
            found = await stepped(m.scan())
            assert (found[0][0], found[1].key, found[2][0]) == ("a", "b", "c")
            found = await stepped(m.watch(initial=True, timeout=0))
            assert [change.key for change in found] == ["a", "b", "c"]

    asyncio.run(main())


def test_an_asynchronous_consumer_continues_after_an_error_when_its_cause_is_gone(tmp_path):
    async def main():
        async with of.aio.connect(tmp_path / "space") as db:
            s = db.stream("s", partitions=1)
            await s.append_many(list(range(3)))
            async with s.consumer("g", timeout=0) as consumer:
                await consumer.seek("latest")
                consumer.sync._next[0] = -1  # before what is kept
                with pytest.raises(of.OnefoldError):
                    await anext(consumer)
                await consumer.seek("earliest")
                assert [(await anext(consumer)).value for _ in range(3)] == [0, 1, 2]
                for _ in range(2):  # at its end it may be asked again
                    with pytest.raises(StopAsyncIteration):
                        await anext(consumer)
                    await s.append("more")
                    assert (await anext(consumer)).value == "more"

    asyncio.run(main())
