"""Counters with a floor: never below it, whatever regions do during cuts, and what is left can be sold."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

import pytest
from tests.support.memory_regions import MemoryRegions, submit

import onefold as of
from onefold.available.kinds.places import BOUNDED, place_of
from onefold.available.kinds.shares import Shares
from onefold.available.ops import Evict
from onefold.available.regions import read_self
from onefold.available.rows import load_row
from onefold.state.available import bounded
from onefold.state.available.bounded import Taking
from onefold.state.encoding.keys import encode_key

KEY = encode_key("s")


@contextmanager
def exchanging(regions: MemoryRegions) -> Iterator[None]:
    """Something carries effects to and fro meanwhile."""
    done = threading.Event()

    def run() -> None:
        while not done.wait(0.002):
            regions.exchange()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def row_in(regions: MemoryRegions, name: str, floor: int = 0) -> Shares:
    with regions.regions[name].shards[0].view() as view:
        return cast(Shares, load_row(view, place_of(BOUNDED, "stock", floor), KEY))


def value_of_all(regions: MemoryRegions, floor: int = 0) -> int:
    """What there is in truth: each region knows best what it has done."""
    found = 0
    for name, region in regions.regions.items():
        share = row_in(regions, name, floor).regions.get(region.number)
        found += 0 if share is None else share.net
    return found


def test_rights_come_from_another_region(regions: MemoryRegions) -> None:
    eu, us = (regions.database(name).counters("stock", floor=0) for name in ("eu", "us"))
    assert eu.add("s", 10) == 10
    regions.exchange()
    assert (eu.here("s"), us.here("s"), us.get("s")) == (10, 0, 10)
    with exchanging(regions):
        assert us.add("s", -4) == 6
    assert eu.here("s") + us.here("s") == 6
    assert row_in(regions, "us").regions[2].wish is None


def test_the_floor_may_be_below_zero(regions: MemoryRegions) -> None:
    eu, us = (regions.database(name).counters("stock", floor=-5) for name in ("eu", "us"))
    assert (eu.here("s"), us.here("s")) == (5, 0)
    with exchanging(regions):
        assert us.add("s", -3) == -3
        with pytest.raises(of.BelowFloor):
            us.add("s", -3)
    regions.exchange()
    assert us.get("s") == eu.get("s") == -3


def test_more_than_there_is_is_refused_at_once(regions: MemoryRegions) -> None:
    """Within the 20 seconds of a write: no region has to be waited for, since all have answered."""
    eu, us = (regions.database(name).counters("stock", floor=0) for name in ("eu", "us"))
    eu.add("s", 10)
    regions.exchange()
    env = us.client.env
    for counters, here in ((eu, 10), (us, 0)):
        began_s = env.boot_s()
        with pytest.raises(of.BelowFloor, match="all there is") as caught:
            counters.add("s", -11)
        assert env.boot_s() - began_s < 10
        assert (caught.value.value, caught.value.here, caught.value.definite) == (10, here, True)
    assert "others eu 10" in str(caught.value)
    assert row_in(regions, "us").regions == row_in(regions, "eu").regions  # nobody has wished for it
    alone = MemoryRegions("eu")
    try:
        with pytest.raises(of.BelowFloor, match="all there is"):
            alone.database("eu").counters("stock", floor=0).add("s", -1)
    finally:
        alone.close()


def test_what_others_may_have_is_waited_for_until_the_time_is_over(regions: MemoryRegions) -> None:
    eu = regions.database("eu").counters("stock", floor=0)
    us = regions.database("us", timeout=0.3).counters("stock", floor=0)
    eu.add("s", 10)
    regions.cut = {("eu", "us"), ("us", "eu")}
    with pytest.raises(of.BelowFloor, match=r"no more came within 0\.") as caught:
        us.add("s", -1)  # nothing of it was heard of here
    assert (caught.value.value, caught.value.here) == (0, 0)
    regions.cut.clear()
    regions.exchange()
    regions.cut = {("eu", "us"), ("us", "eu")}
    with pytest.raises(of.BelowFloor, match=r"others eu 10, as far as it is known here; no more came within"):
        us.add("s", -1)
    wish = row_in(regions, "us").regions[2].wish
    assert wish is None, "a wish stays open though nobody waits"
    regions.cut.clear()
    regions.exchange()
    assert (eu.here("s"), us.here("s")) == (10, 0)
    with exchanging(regions):
        assert us.add("s", -1) == 9


def test_a_region_that_is_told_too_late_ends_the_wait(regions: MemoryRegions) -> None:
    """What is known here says that there is enough; it is sold elsewhere, and nothing comes."""
    regions.linked = False
    eu = regions.database("eu").counters("stock", floor=0)
    us = regions.database("us").counters("stock", floor=0)
    eu.add("s", 10)
    regions.exchange()
    eu.add("s", -10)
    taking = us._taking("s", -4, None)
    assert taking is not None and taking.look() is None
    regions.exchange()
    with pytest.raises(of.BelowFloor, match="all there is"):
        taking.look()


def test_what_is_known_here_proves_nothing_while_something_is_missing(regions: MemoryRegions) -> None:
    regions.linked = False
    eu = regions.database("eu").counters("stock", floor=0)
    us = regions.database("us").counters("stock", floor=0)
    eu.add("s", 10)
    first, second = us._taking("s", -4, None), us._taking("s", -4, None)
    assert first is not None and first.look() is None  # the other region has done something
    regions.exchange()
    assert first.look() is None
    regions.exchange()
    assert first.look() == 6
    regions.exchange()
    eu.add("s", 100)
    assert second is not None
    second._n = 50
    assert second.look() is None
    eu.add("s", -100)
    regions.exchange()
    regions.cut = {("eu", "us")}
    second._ask_s = 0
    assert second.look() is None  # it had 100 when it was asked, and does not answer now


def test_the_larger_wish_of_a_region_counts(regions: MemoryRegions) -> None:
    regions.linked = False
    eu = regions.database("eu").counters("stock", floor=0)
    us = regions.database("us").counters("stock", floor=0)
    eu.add("s", 100)
    regions.exchange()
    for n, wished in ((5, 5), (30, 30), (10, 30)):
        taking = us._taking("s", -n, None)
        assert taking is not None and taking.look() is None
        share = row_in(regions, "us").regions[2]
        assert share.wish is not None and share.wish.need == wished


def test_those_who_wait_in_one_region_all_get_theirs(regions: MemoryRegions) -> None:
    """They share one wish, the largest; whatever one of them takes or gives up, the others ask again."""
    regions.linked = False
    eu = regions.database("eu").counters("stock", floor=0)
    eu.add("s", 100)
    regions.exchange()
    us = regions.database("us").counters("stock", floor=0)
    waiting = [taking for taking in (us._taking("s", -n, None) for n in (30, 5, 10, 1)) if taking]
    found: dict[Taking, int] = {}
    for _ in range(10):
        for taking in waiting:
            value = taking.look() if taking not in found else None
            if value is not None:
                found[taking] = value
        regions.exchange()
    assert len(found) == 4 and us.get("s") == eu.get("s") == 54


def test_moving_gives_rights_away(regions: MemoryRegions) -> None:
    database = regions.database("eu")
    eu, us = database.counters("stock", floor=0), regions.database("us").counters("stock", floor=0)
    eu.add("s", 10)
    assert eu.move("s", 4, to="us", request_id="m") == eu.move("s", 4, to="us", request_id="m") == 6
    regions.exchange()
    assert (eu.here("s"), us.here("s"), us.get("s")) == (6, 4, 10)
    with pytest.raises(of.BelowFloor, match="6 here") as caught:
        eu.move("s", 7, to="us")
    assert (caught.value.value, caught.value.here) == (10, 6)
    for to, says in (("eu", "is this region"), ("ap", "no region 'ap'"), (2, "name of a region")):
        with pytest.raises(of.InvalidArgument, match=f"{says}.*there are us" if to != 2 else says):
            eu.move("s", 1, to=to)  # type: ignore[arg-type]
    for n in (0, -1, 1.0, True, 2**63):
        with pytest.raises(of.InvalidArgument, match="n must be a whole number"):
            eu.move("s", n, to="us")  # type: ignore[arg-type]
    with pytest.raises(of.InvalidArgument, match="cannot be deleted"):
        eu.delete("s")
    submit(regions.regions["eu"].shards[0], Evict(2, 1))
    with pytest.raises(of.InvalidArgument, match="was evicted"):
        eu.move("s", 1, to="us")
    assert eu.here("s") == 6


def test_rights_of_an_evicted_region_are_not_waited_for() -> None:
    regions = MemoryRegions("eu", "us", "ap")
    try:
        handles = {name: regions.database(name).counters("stock", floor=0) for name in regions.names}
        handles["ap"].add("s", 10)
        handles["eu"].add("s", 1)
        regions.exchange()
        for name in ("eu", "us"):
            submit(regions.regions[name].shards[0], Evict(3, 1))
        regions.cut = {(a, b) for a in regions.names for b in regions.names if "ap" in (a, b)}
        regions.exchange()
        with pytest.raises(of.BelowFloor, match="all there is") as caught:
            handles["eu"].add("s", -2)
        assert (caught.value.value, caught.value.here) == (11, 1)
    finally:
        regions.close()


def test_a_request_id_takes_once_and_a_refusal_may_be_tried_again(regions: MemoryRegions) -> None:
    database = regions.database("eu")
    stock = database.counters("stock", floor=0)
    with pytest.raises(of.BelowFloor):
        stock.add("s", -1, request_id="r")
    stock.add("s", 5)
    assert [stock.add("s", -1, request_id="r") for _ in range(3)] == [4, 4, 4]
    assert stock.get("s") == 4
    regions.exchange()
    us = regions.database("us").counters("stock", floor=0)
    assert us.add("s", -1, request_id="r") == 4
    stock.move("s", 1, to="us", request_id="m")
    assert stock.here("s") == 3


def test_a_lost_answer_takes_nothing_twice(regions: MemoryRegions, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it was taken is not known then, so it is not tried again by itself."""
    database = regions.database("eu")
    stock = database.counters("stock", floor=0)
    stock.add("s", 5)
    plain = stock.client.do

    def loses(*args: object, **options: object) -> object:
        plain(*args, **options)  # type: ignore[arg-type]
        raise of.AppendUnknown("the answer was lost")

    monkeypatch.setattr(stock.client, "do", loses)
    with pytest.raises(of.AppendUnknown) as caught:
        stock.add("s", -2, request_id="r")
    assert not caught.value.definite
    monkeypatch.undo()
    assert stock.add("s", -2, request_id="r") == 3
    assert stock.get("s") == 3


@pytest.mark.parametrize("names", [("eu", "us"), ("eu", "us", "ap")])
@pytest.mark.parametrize("seed", range(15))
def test_sold_out_in_all_regions_with_cuts(
    seed: int, names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In no order is there less than the floor, as each log knows it at any moment and in truth. After the heal every wait comes
    to its end, and all that is left can be sold anywhere."""
    monkeypatch.setattr(bounded, "_ASK_S", 1e-6)
    monkeypatch.setattr(bounded, "_ASK_S_MAX", 1e-6)
    rng = random.Random(seed)
    floor = rng.choice((0, -7))
    regions = MemoryRegions(*names)
    regions.linked = False
    stock = {name: regions.database(name).counters("stock", floor=floor) for name in names}
    waiting: list[tuple[Taking, int]] = []
    expected = 0

    def check() -> None:
        assert value_of_all(regions, floor) == expected >= floor
        for name in names:
            assert row_in(regions, name, floor).value() >= floor, "a log knows of less than the floor"

    def step(taking: Taking, n: int) -> int:
        """How much was taken, if the wait is not over."""
        try:
            return 0 if taking.look() is None else n
        except of.BelowFloor:
            waiting.remove((taking, n))
            return 0

    def look(taking: Taking, n: int) -> None:
        nonlocal expected
        taken = step(taking, n)
        if taken:
            expected -= taken
            waiting.remove((taking, n))

    def act() -> None:
        nonlocal expected
        name = rng.choice(names)
        match rng.randrange(12):
            case 0 | 1:
                n = rng.randint(1, 8)
                stock[name].add("s", n)
                expected += n
            case 2 | 3 | 4 | 5:
                n = rng.choice((1, 2, 8))
                taking = stock[name]._taking("s", -n, None)
                assert taking is not None
                waiting.append((taking, n))
                look(taking, n)
            case 6 | 7:
                if waiting:
                    look(*rng.choice(waiting))
            case 8:
                pair = tuple(rng.sample(names, 2))
                (regions.cut.discard if pair in regions.cut else regions.cut.add)(pair)  # type: ignore[arg-type]
            case _:
                source = rng.choice([other for other in names if other != name])
                if not regions.is_cut(source, name):
                    regions.pull(name, source)

    try:
        for _ in range(150):
            act()
            check()
        regions.cut.clear()
        for _ in range(200):
            regions.exchange()
            for taking, n in list(waiting):
                look(taking, n)
            check()
            if not waiting:
                break
        assert not waiting, "a wait does not come to its end"
        last = stock[rng.choice(names)]
        left = expected - floor
        regions.exchange()
        with exchanging(regions):
            if left:
                assert last.add("s", -left) == floor
            with pytest.raises(of.BelowFloor):
                last.add("s", -1)
    finally:
        regions.close()


def test_two_that_want_more_than_either_has_come_to_an_end(regions: MemoryRegions) -> None:
    """5 here and 5 there, and both want 8: they do not swap what they have for ever. One gets it, the other is refused."""
    eu, us = (regions.database(name).counters("stock", floor=0) for name in ("eu", "us"))
    eu.add("s", 5)
    us.add("s", 5)
    regions.exchange()
    ends: list[object] = []

    def sell(counters: of.Counters) -> Callable[[], None]:
        def run() -> None:
            try:
                ends.append(counters.add("s", -8))
            except of.BelowFloor:
                ends.append("refused")

        return run

    with exchanging(regions):
        threads = [threading.Thread(target=sell(counters)) for counters in (eu, us)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(map(str, ends)) == ["2", "refused"]
    with regions.regions["eu"].shards[0].view() as view:
        assert sum(read_self(view).have().values()) < 60, "rights went to and fro"
