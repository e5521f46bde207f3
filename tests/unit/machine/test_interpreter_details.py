"""What is built on details of the interpreter: each one fails here on an interpreter where it is otherwise."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from onefold.log.sqlite.engine import SqliteLog
from onefold.state.core.with_place import WithPlace, with_place

# -- the place of a with statement


class Block:
    """Notes its own place at its entry, and whether it is over at the entry of ``__exit__``."""

    def __init__(self) -> None:
        self.found: WithPlace | None = None
        self.at_exit: bool | None = None

    def __enter__(self) -> Block:
        self.found = with_place(1)
        return self

    def __exit__(self, *_: object) -> None:
        self.at_exit = self.place.is_over()

    @property
    def place(self) -> WithPlace:
        assert self.found is not None
        return self.found


def test_inside_a_block_it_is_not_over_and_behind_it_it_is() -> None:
    def deeper(levels: int) -> bool:
        return deeper(levels - 1) if levels else block.place.is_over()

    with Block() as block:
        assert not block.place.is_over()
        assert not deeper(3)
        for _ in range(3):
            with contextlib.suppress(ValueError):
                assert not block.place.is_over()
                raise ValueError
        try:
            assert not block.place.is_over()
        finally:
            assert not block.place.is_over()
    assert block.at_exit, "no exception: the block is over when __exit__ is called"
    assert block.place.is_over() and deeper(3)


def test_it_is_over_after_an_exception_and_after_its_function() -> None:
    block = Block()

    def raises() -> None:
        with block:
            raise KeyError

    def returns() -> int:
        with block:
            return 1

    for function in (raises, returns):
        with contextlib.suppress(KeyError):
            function()
        assert block.place.is_over()
    with contextlib.suppress(KeyError), block:
        raise KeyError
    assert block.place.is_over()


def test_blocks_in_loops_and_in_one_another() -> None:
    outer, inner, places = Block(), Block(), []
    with outer:
        for _ in range(3):
            with inner:
                places.append(inner.place)
                assert not inner.place.is_over() and not outer.place.is_over()
            assert inner.place.is_over() and not outer.place.is_over()
        with outer.__class__(), inner:
            assert not inner.place.is_over()
    assert outer.place.is_over() and inner.place.is_over()
    assert len({place.at for place in places}) == 1


def test_a_suspended_block_is_not_over() -> None:
    block = Block()

    def suspends() -> Iterator[bool]:
        with block:
            yield block.place.is_over()
            yield block.place.is_over()

    running = suspends()
    assert not next(running) and not block.place.is_over(), "nobody knows: the generator may continue"
    assert not next(running)


def test_an_interrupted_exit_is_seen() -> None:
    """The handler raises at the entry of ``__exit__``, so nothing of it is run."""

    class Broken(Block):
        def __exit__(self, *_: object) -> None:
            raise KeyboardInterrupt

    block = Broken()
    try:
        with block:
            pass
    except KeyboardInterrupt:
        assert block.place.is_over()
    assert block.place.is_over()


def test_somebody_who_calls_enter_has_no_block() -> None:
    block = Block()
    block.__enter__()
    assert not block.place.is_over()


# -- connections that nobody has any more


def readers(log: SqliteLog) -> tuple[int, int]:
    """How many there are, and how many of them are in the pool."""
    return len(log.file._readers), len(log.file._idle)


def held_by_a_local(log: SqliteLog, look: Callable[[], Any]) -> None:
    con = log.file.take_reader()
    look()
    log.file.give_reader(con)


def held_in_a_list(log: SqliteLog, look: Callable[[], Any]) -> None:
    lent = [log.file.take_reader()]
    look()
    log.file.give_reader(lent.pop())


def held_by_a_generator(log: SqliteLog, look: Callable[[], Any]) -> None:
    with log.file.reading():
        look()


def held_by_a_cursor(log: SqliteLog, look: Callable[[], Any]) -> None:
    cursor = log.file.take_reader().cursor()
    look()
    log.file.give_reader(cursor.connection)


@pytest.mark.parametrize("hold", [held_by_a_local, held_in_a_list, held_by_a_generator, held_by_a_cursor])
def test_a_connection_that_is_lent_out_is_not_taken_back(hold: Callable[..., None], tmp_path: Path) -> None:
    with closing(SqliteLog(tmp_path)) as log:
        assert log.last == 0
        held: list[tuple[int, int]] = []

        def look() -> None:
            log.file._find_lost()
            held.append(readers(log))

        before = readers(log)
        hold(log, look)
        assert before == (1, 1) and held == [(1, 0)] and readers(log) == (1, 1)


def test_a_connection_that_nobody_has_is_taken_back(tmp_path: Path) -> None:
    with closing(SqliteLog(tmp_path)) as log:
        log.file.take_reader()  # and the caller was interrupted
        assert readers(log) == (1, 0)
        log.file._find_lost()
        assert readers(log) == (1, 1)
        log.file._find_lost()
        assert readers(log) == (1, 1)
