"""What the test of the fire holds true is checked: writes that are lost, done twice or made up are found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

import onefold as of
from cluster.fire_program import ACCOUNTS, OPENING, RARE, STOCK, Journal, Program
from support.fire_history import Done, check_acknowledged, check_sessions, read, resolve

NAMES = ["dc1-1", "dc1-2"]


@pytest.fixture(scope="module")
def db() -> Iterator[of.Database]:
    with of.connect("memory://", region="dc1") as found:
        found.map("accounts").update(dict.fromkeys(range(ACCOUNTS), OPENING))
        found.counters("stock", floor=0).add("plenty", STOCK)
        found.counters("stock", floor=0).add("rare", RARE)
        yield found


@pytest.fixture(scope="module")
def done(db: of.Database, tmp_path_factory: pytest.TempPathFactory) -> list[Done]:
    """What two programs did, one after the other."""
    found = []
    for name in NAMES:
        path = tmp_path_factory.mktemp("fire") / name
        program = Program(db, name, NAMES, Journal(str(path), name), 7)
        for _ in range(150):
            program.available()
            program.sell()
        for _ in range(20):
            program.consistent()
        found += read(path)
    return found


def last(done: list[Done], kind: str, where: Callable[[Done], object] = lambda _: True) -> Done:
    return [one for one in done if one.kind == kind and one.sure and where(one)][-1]


def test_what_happened_is_right(db: of.Database, done: list[Done]) -> None:
    assert {one.status for one in done} == {"ok"}
    check_acknowledged(db, done)
    check_sessions(done, NAMES)


@pytest.mark.parametrize(
    "kind", ["write", "patch", "race", "keep", "like", "tag", "order", "sell", "transfer"]
)
def test_a_write_that_nobody_made_is_found(db: of.Database, done: list[Done], kind: str) -> None:
    """What is there and is in no journal."""
    if kind in ("race", "keep"):  # what is read last
        present = (
            db.map("shared", mode="available")
            if kind == "race"
            else db.map("drafts", mode="available", merge="keep_both")
        )
        values = {value if kind == "race" else value[0] for _, value in present.items()}
        made_up = last(done, kind, lambda one: one.value in values)
    elif kind == "tag":
        there = {(key, text) for key, texts in db.sets("tags").items() for text in texts}
        made_up = last(done, kind, lambda one: (one.key, one.value) in there)
    else:
        made_up = last(done, kind)
    with pytest.raises(AssertionError):
        check_acknowledged(db, [one for one in done if one is not made_up])


@pytest.mark.parametrize(
    "kind", ["write", "patch", "race", "keep", "like", "tag", "untag", "order", "sell", "transfer"]
)
def test_a_write_that_is_lost_is_found(db: of.Database, done: list[Done], kind: str) -> None:
    """What was acknowledged last, and is not there."""
    one = last(done, kind)
    late = replace(one, id="dc1-2-9999", begun=one.begun + 1e6, ended=one.ended + 1e6)
    if kind in ("write", "patch"):
        late.value = 10**6
    elif kind in ("race", "keep", "tag"):
        late.value = "dc1-2:9999"
    elif kind == "untag":
        late.key, late.value = next((key, text) for key, texts in db.sets("tags").items() for text in texts)
    elif kind == "order":
        late.value = [0, "dc1-2", 9999]
    lost = [*done, late] if kind != "race" else [*(each for each in done if each.kind != "race"), late]
    with pytest.raises(AssertionError):
        check_acknowledged(db, lost)


def test_an_order_that_was_seen_in_part_is_found(db: of.Database, done: list[Done]) -> None:
    one = last(done, "check")
    part = replace(one, result=[one.result[0] + 1, one.result[1]])
    with pytest.raises(AssertionError, match="in part"):
        check_acknowledged(db, [*done, part])


def test_a_read_that_goes_back_is_found(done: list[Done]) -> None:
    one = last(done, "read", lambda one: one.result and one.program == "dc1-2")
    end = max(each.ended for each in done)
    later = replace(one, id="dc1-2-9999", begun=end + 1, ended=end + 2, result=None)
    with pytest.raises(AssertionError):
        check_sessions([*done, later], NAMES)


def test_what_is_in_doubt_is_asked_for(db: of.Database, done: list[Done]) -> None:
    doubtful = [replace(one, status="open") if one.kind in ("like", "sell", "order") else one for one in done]
    with pytest.raises(AssertionError):
        check_acknowledged(db, doubtful)
    resolve(doubtful, lambda one: db.outcome(one.id))
    check_acknowledged(db, doubtful)
