"""The conformance suite of the log contract: what every engine must do, as named checks.

::

    CHECKS = check_log(lambda path: MyLog(path), shared=True, durable=True)

    @pytest.mark.parametrize("check", CHECKS, ids=str)
    def test_my_log(check, tmp_path):
        check(tmp_path)
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from onefold import config
from onefold.arguments import check_flag, check_whole
from onefold.errors import LogCorrupt, SpaceError, TooLarge, TooOld
from onefold.log.api import Entry, Log

_SOON_S = 20.0
"""Long enough for a busy machine. Nothing waits for it to pass; it only ends a check that hangs."""

Open = Callable[[Path], Log]
Damage = Callable[[Path, Log, int, int], None]


@dataclass(frozen=True)
class _Engine:
    open: Open
    damage: Damage | None
    lose: Callable[[Path, Log, int], None] | None
    record_bytes_max: int
    delayed: bool


class Check:
    """One named check; call it with an empty directory. It raises AssertionError when the engine fails it."""

    def __init__(self, engine: _Engine, run: Callable[[_Engine, Path], None]) -> None:
        self._engine = engine
        self._run = run

    def __call__(self, path: Path) -> None:
        self._run(self._engine, path)

    def __str__(self) -> str:
        return self._run.__name__


def check_log(
    open_log: Open,
    *,
    shared: bool = False,
    durable: bool = False,
    damage: Damage | None = None,
    lose: Callable[[Path, Log, int], None] | None = None,
    record_bytes_max: int = config.RECORD_BYTES_MAX,
    delayed: bool = False,
) -> list[Check]:
    """The checks for an engine.

    ``open_log`` opens the log of a directory, making it when new. ``shared``: several opens of one directory are one log
    at the same time. ``durable``: a log that was closed is there when opened again. ``damage(path, log, offset, bit)``
    flips a bit of a stored record, ``lose(path, log, offset)`` removes one; without them the checks of corruption are
    left out. ``record_bytes_max``: the largest record that the engine takes. ``delayed``: what one open appends is known to
    another only after a while.
    """
    check_flag("shared", shared)
    check_flag("durable", durable)
    check_flag("delayed", delayed)
    check_whole("record_bytes_max", record_bytes_max, least=1)
    engine = _Engine(open_log, damage, lose, record_bytes_max, delayed)
    runs = list(_ALWAYS)
    if shared:
        runs += _SHARED
    if durable:
        runs += _DURABLE
    if damage is not None:
        runs += [flipped_bits_are_never_served]
    if lose is not None:
        runs += [a_hole_is_never_skipped]
    return [Check(engine, run) for run in runs]


def _fill(log: Log, count: int, start: int = 1) -> list[bytes]:
    datas = [b"record %d" % number for number in range(start, start + count)]
    for at, data in enumerate(datas, start):
        offset = log.append(data)
        assert offset == at, f"append number {at} got offset {offset}"
    return datas


def _read_all(log: Log, start: int = 1, max_bytes: int = 1 << 20) -> list[Entry]:
    entries: list[Entry] = []
    while page := log.read(start, max_bytes):
        entries += page
        start = page[-1].offset + 1
    return entries


def _join(thread: threading.Thread, what: str) -> None:
    thread.join(_SOON_S)
    assert not thread.is_alive(), what


def a_new_log_is_empty(engine: _Engine, path: Path) -> None:
    with closing(engine.open(path)) as log:
        assert (log.first, log.last) == (1, 0)
        assert list(log.read(1)) == []
        assert log.incarnation


def offsets_are_contiguous_from_1(engine: _Engine, path: Path) -> None:
    with closing(engine.open(path)) as log:
        _fill(log, 20)
        assert (log.first, log.last) == (1, 20)


def entries_are_what_was_appended_in_order(engine: _Engine, path: Path) -> None:
    with closing(engine.open(path)) as log:
        datas = [b"\x00", b"", bytes(range(256)), b"x" * 300_000, *(b"%d" % n for n in range(50))]
        for data in datas:
            log.append(data)
        entries = _read_all(log)
        assert [entry.data for entry in entries] == datas
        assert [entry.offset for entry in entries] == list(range(1, len(datas) + 1))
        assert all(entry.engine_ms >= 0 for entry in entries)


def reads_are_paged(engine: _Engine, path: Path) -> None:
    with closing(engine.open(path)) as log:
        for number in range(30):
            log.append(bytes([number]) * 1000)
        assert len(log.read(1, 1)) == 1, "at least one entry, however small the page"
        assert 1 <= len(log.read(1, 5000)) <= 10
        assert [entry.offset for entry in _read_all(log, max_bytes=3000)] == list(range(1, 31))
        assert [entry.offset for entry in _read_all(log, start=17)] == list(range(17, 31))
        assert list(log.read(31)) == []
        assert list(log.read(1000)) == []


def a_record_that_is_too_large_is_refused(engine: _Engine, path: Path) -> None:
    with closing(engine.open(path)) as log:
        try:
            log.append(bytes(engine.record_bytes_max + 1))
        except TooLarge as error:
            definite = error.definite
        else:
            raise AssertionError("a record over the limit was taken")
        assert definite
        assert log.last == 0
        _fill(log, 1)
        if engine.record_bytes_max < config.RECORD_BYTES_MAX:
            largest = bytes(engine.record_bytes_max)
            assert log.append(largest) == 2
            assert log.read(2)[0].data == largest


def followed(log: Log, start: int, timeout: float | None = None) -> Iterator[Entry]:
    """Records from ``start`` on, also those that come later, by ``read`` and ``wait``. Ends when nothing came for ``timeout``
    seconds, or when the log was closed."""
    while True:
        try:
            entries = log.read(start)
        except SpaceError:
            return  # closed between two steps
        for entry in entries:
            yield entry
            start = entry.offset + 1
        if not entries and log.wait(start - 1, timeout) < start:
            return


def a_reader_gets_what_is_there_and_then_what_comes(engine: _Engine, path: Path) -> None:
    with closing(engine.open(path)) as log:
        datas = _fill(log, 3)
        got: list[bytes] = []
        caught_up = threading.Event()

        def follow() -> None:
            for entry in followed(log, 2, _SOON_S):
                got.append(entry.data)
                if entry.offset == 3:
                    caught_up.set()
                if entry.offset == 6:
                    return

        thread = threading.Thread(target=follow)
        thread.start()
        assert caught_up.wait(_SOON_S)
        datas += _fill(log, 3, start=4)
        _join(thread, "it did not get what was appended later")
        assert got == datas[1:]


def a_reader_ends_when_nothing_comes(engine: _Engine, path: Path) -> None:
    with closing(engine.open(path)) as log:
        _fill(log, 2)
        assert [entry.offset for entry in followed(log, 1, 0.02)] == [1, 2]


def wait_returns_what_is_known(engine: _Engine, path: Path) -> None:
    with closing(engine.open(path)) as log:
        assert log.wait(0, 0.02) == 0
        _fill(log, 2)
        assert log.wait(0, None) == 2
        assert log.wait(1, None) == 2
        assert log.wait(2, 0.02) == 2
        assert log.wait(2, 0) == 2


def wait_is_woken_by_an_append(engine: _Engine, path: Path) -> None:
    with closing(engine.open(path)) as log:
        seen: list[int] = []
        thread = threading.Thread(target=lambda: seen.append(log.wait(0, _SOON_S)))
        thread.start()
        log.append(b"wake")
        _join(thread, "a waiter slept through an append")
        assert seen == [1]


def close_wakes_who_waits(engine: _Engine, path: Path) -> None:
    log = engine.open(path)
    _fill(log, 1)
    ended: list[object] = []

    def wait() -> None:
        ended.append(log.wait(1, None))

    def follow() -> None:
        ended.append(list(followed(log, 2)))

    threads = [threading.Thread(target=target) for target in (wait, follow)]
    for thread in threads:
        thread.start()
    log.close()
    for thread in threads:
        _join(thread, "close left a waiter behind")
    assert len(ended) == 2, "who waited while the log was closed met an error"


def reads_run_beside_appends(engine: _Engine, path: Path) -> None:
    with closing(engine.open(path)) as log:
        errors: list[BaseException] = []
        done = threading.Event()

        def read() -> None:
            try:
                while not done.is_set():
                    offsets = [entry.offset for entry in _read_all(log)]
                    assert offsets == list(range(1, len(offsets) + 1))
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=read)
        thread.start()
        try:
            _fill(log, 100)
        finally:
            done.set()
        _join(thread, "a reader hung")
        assert not errors, errors


def trimmed_offsets_are_too_old(engine: _Engine, path: Path) -> None:
    with closing(engine.open(path)) as log:
        _fill(log, 10)
        log.trim(4)
        assert (log.first, log.last) == (4, 10)
        for start in (1, 3):
            try:
                log.read(start)
            except TooOld:
                continue
            raise AssertionError(f"offset {start} was trimmed and could be read")
        assert [entry.offset for entry in log.read(4)] == list(range(4, 11))
        log.trim(2)
        assert log.first == 4, "trimming below what is trimmed changes nothing"
        _fill(log, 1, start=11)


def offsets_go_on_after_everything_is_trimmed(engine: _Engine, path: Path) -> None:
    with closing(engine.open(path)) as log:
        _fill(log, 5)
        log.trim(6)
        assert (log.first, log.last) == (6, 5)
        assert list(log.read(6)) == []
        _fill(log, 2, start=6)
        assert [entry.offset for entry in log.read(6)] == [6, 7]
        log.trim(1000)
        assert (log.first, log.last) == (8, 7), "what is not there yet cannot be trimmed"
        _fill(log, 1, start=8)


def handles_append_side_by_side(engine: _Engine, path: Path) -> None:
    with closing(engine.open(path)) as one, closing(engine.open(path)) as two:
        mine: dict[int, bytes] = {}
        errors: list[BaseException] = []

        def append(log: Log, name: bytes) -> None:
            try:
                for number in range(50):
                    data = b"%s %d" % (name, number)
                    offset = log.append(data)
                    assert offset not in mine, f"offset {offset} was given twice"
                    mine[offset] = data
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=append, args=pair) for pair in ((one, b"one"), (two, b"two"))]
        for thread in threads:
            thread.start()
        for thread in threads:
            _join(thread, "an appender hung")
        assert not errors, errors
        if engine.delayed:
            for log in (one, two):
                log.wait(99, _SOON_S)
        assert one.last == two.last == 100
        for log in (one, two):
            assert {entry.offset: entry.data for entry in _read_all(log)} == mine


def wait_is_woken_by_another_handle(engine: _Engine, path: Path) -> None:
    with closing(engine.open(path)) as one, closing(engine.open(path)) as two:
        assert one.incarnation == two.incarnation
        for offset in (1, 2, 3):
            seen: list[int] = []
            thread = threading.Thread(
                target=lambda at, out: out.append(two.wait(at, _SOON_S)), args=(offset - 1, seen)
            )
            thread.start()
            one.append(b"wake")
            _join(thread, "a waiter slept through another handle's append")
            assert seen == [offset]


def a_log_opened_again_is_the_same(engine: _Engine, path: Path) -> None:
    with closing(engine.open(path)) as log:
        datas = _fill(log, 7)
        incarnation = log.incarnation
        log.trim(3)
    with closing(engine.open(path)) as log:
        assert log.incarnation == incarnation
        assert (log.first, log.last) == (3, 7)
        assert [entry.data for entry in _read_all(log, start=3)] == datas[2:]
        _fill(log, 1, start=8)
        log.trim(9)
    with closing(engine.open(path)) as log:
        assert (log.first, log.last) == (9, 8)
        _fill(log, 1, start=9)


def flipped_bits_are_never_served(engine: _Engine, path: Path) -> None:
    assert engine.damage is not None
    for number, bit in enumerate((0, 7, 33, 63)):
        place = path / str(number)
        place.mkdir()
        log = engine.open(place)
        datas = _fill(log, 5)
        engine.damage(place, log, 3, bit)
        try:
            got = [entry.data for entry in _read_all(log)]
        except LogCorrupt:
            pass
        else:
            raise AssertionError(f"bit {bit} of record 3 was flipped and the log served {got[2]!r}")
        assert [entry.data for entry in log.read(1, 1)] == datas[:1], "what is whole before it can be read"
        log.close()


def a_hole_is_never_skipped(engine: _Engine, path: Path) -> None:
    assert engine.lose is not None
    log = engine.open(path)
    _fill(log, 5)
    engine.lose(path, log, 3)
    for start in (1, 3):
        try:
            offsets = [entry.offset for entry in _read_all(log, start=start)]
        except LogCorrupt:
            continue
        raise AssertionError(f"record 3 is missing and reading from {start} gave {offsets}")
    log.close()


_ALWAYS = (
    a_new_log_is_empty,
    offsets_are_contiguous_from_1,
    entries_are_what_was_appended_in_order,
    reads_are_paged,
    a_record_that_is_too_large_is_refused,
    a_reader_gets_what_is_there_and_then_what_comes,
    a_reader_ends_when_nothing_comes,
    wait_returns_what_is_known,
    wait_is_woken_by_an_append,
    close_wakes_who_waits,
    reads_run_beside_appends,
    trimmed_offsets_are_too_old,
    offsets_go_on_after_everything_is_trimmed,
)
_SHARED = (handles_append_side_by_side, wait_is_woken_by_another_handle)
_DURABLE = (a_log_opened_again_is_the_same,)
