"""Blobs that are stored and named again while another process sweeps them: every interleaving of both, on real stores.

Each side is cut where another process may come in between: at every call of the store and at every record of the fold.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

import onefold as of
from onefold import agg, config
from onefold.compute.blobs import sweeping
from onefold.compute.blobs.backends import DirectoryBackend
from onefold.compute.blobs.shared import SharedBlobs
from onefold.compute.blobs.store import BlobStore, blob_name
from onefold.compute.jobs import ops, rows, state
from onefold.compute.jobs.retention import Retention
from onefold.testing.memory_store import MemoryStore

DATA = b"an equal result"
NAME = blob_name(DATA)


class Turns:
    """Lets one of several threads make one step at a time, in a given order; who is not in it any more runs to its end last."""

    def __init__(self, order: Sequence[int]) -> None:
        self._order = list(order)
        self._changed = threading.Condition()
        self._ended: set[int] = set()

    def step(self, me: int) -> None:
        """Wait for this thread's turn."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._next() in (me, None), timeout=120)
            if self._order and self._next() == me:
                self._order.pop(0)
            self._changed.notify_all()

    def end(self, me: int) -> None:
        """This thread takes no more turns."""
        with self._changed:
            self._ended.add(me)
            self._changed.notify_all()

    def _next(self) -> int | None:
        while self._order and self._order[0] in self._ended:
            self._order.pop(0)
        return self._order[0] if self._order else None


class World:
    """One fold and the stores of several processes, whose calls wait for their turn."""

    def __init__(self, stores: Sequence[BlobStore], order: Sequence[int]) -> None:
        self.fold, self.offset = MemoryStore(), 0
        self._mutex = threading.Lock()  # those whose turns are used up run beside each other
        self.turns = Turns(order)
        self.stores = [Stepping(store, self, me) for me, store in enumerate(stores)]
        name = stores[0].put(DATA)  # of a run that has been replaced since
        self.record(lambda kept: (kept.name_blob(name), kept.unname_blob(name)))
        assert self.garbage() == [NAME]

    def record(self, do: Callable[[Retention], object]) -> object:
        with self._mutex:
            self.offset += 1
            return do(Retention(self.fold, self.offset))

    def garbage(self) -> list[str]:
        with self._mutex:
            return [*state.garbage(self.fold)]

    def named(self) -> bool:
        return bool(state.named(self.fold, [NAME]))


class Stepping:
    """A store of which each call is a step of its process."""

    def __init__(self, store: BlobStore, world: World, me: int) -> None:
        self.store, self._world, self._me = store, world, me

    def other_spaces(self) -> frozenset[str]:
        """No step: nobody else changes it here."""
        return self.store.other_spaces()

    def __getattr__(self, name: str):
        def call(*arguments):
            self._world.turns.step(self._me)
            return getattr(self.store, name)(*arguments)

        return call

    def record(self, do: Callable[[Retention], object]) -> object:
        self._world.turns.step(self._me)
        return self._world.record(do)


class Died(Exception):
    """Of a process that is killed."""


def dies_after(steps: int) -> Callable[[World, int], None]:
    """A writer that is killed after so many steps."""

    def role(world: World, me: int) -> None:
        store, left = world.stores[me], steps

        def live() -> None:
            nonlocal left
            if not left:
                raise Died
            left -= 1

        with contextlib.suppress(Died):
            live()
            store.put(DATA)
            live()
            store.record(lambda kept: kept.name_blob(NAME))
            live()
            store.keeps(NAME)

    return role


def settle(world: World, *, kept_s: float = -1.0) -> None:
    """What ``Garbage.sweep`` does when copies have been kept long enough, in each process that is left."""
    for stepping in world.stores:
        sweeping.tidy(
            stepping.store, world.garbage(), lambda asked: state.named(world.fold, [*asked]), kept_s=kept_s
        )


def writes(world: World, me: int, *, checks: bool = True) -> None:
    """A task with an equal result: what ``Runner`` does with it, and again if the record came too late."""
    store = world.stores[me]
    for _ in range(5):
        store.put(DATA)
        store.record(lambda kept: kept.name_blob(NAME))
        if not checks or store.keeps(NAME):
            return
        store.record(lambda kept: kept.unname_blob(NAME))  # Lost: the task reopens, and runs again
    raise AssertionError("the result was swept again and again")


def sweeps(world: World, me: int, *, hides: bool = True) -> None:
    """What ``Garbage.sweep`` does."""
    store = world.stores[me]
    world.turns.step(me)
    names = world.garbage()
    if hides:
        sweeping.sweep(
            store,
            names,
            lambda asked: store.record(lambda kept: kept.sweep(asked)),
            lambda asked: store.record(lambda _: state.named(world.fold, asked)),
        )
    else:
        for name in store.record(lambda kept: kept.sweep(names)):
            store.delete(name)


def tidies(world: World, me: int) -> None:
    """What ``Garbage.sweep`` does in the end, when copies were not kept for long enough: others are still at work."""
    store = world.stores[me]
    world.turns.step(me)
    sweeping.tidy(
        store,
        world.garbage(),
        lambda asked: store.record(lambda _: state.named(world.fold, [*asked])),
        kept_s=-1.0,
    )


def sweeps_at_once(world: World, me: int) -> None:
    """A sweeper that keeps no copy after its record, or whose writers take longer than it keeps them."""
    sweeps(world, me)
    tidies(world, me)


def run(
    stores: Sequence[BlobStore],
    roles: Sequence[Callable[..., None]],
    order: Sequence[int],
    *,
    is_named: bool | None = True,
) -> bool:
    """Whether every process can read what is named, after all have ended and what was swept is settled. ``is_named``: whether
    something is named in the end, if that is known."""
    world = World(stores, order)
    problems: list[BaseException] = []

    def work(me: int) -> None:
        try:
            roles[me](world, me)
        except BaseException as error:
            problems.append(error)
        finally:
            world.turns.end(me)

    threads = [threading.Thread(target=work, args=(me,)) for me in range(len(roles))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if problems:
        raise problems[0]
    assert is_named is None or world.named() == is_named
    readable = not world.named() or all(store.exists(NAME) and store.get(NAME) == DATA for store in stores)
    settle(world, kept_s=3600.0)
    settle(world)
    assert not any(store.hidden() for store in stores) or world.garbage(), "what is settled takes no space"
    if not world.named():
        return True
    return readable and all(store.exists(NAME) and store.get(NAME) == DATA for store in stores)


def orders(steps: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """All orders in which processes with so many steps can be interleaved."""
    total = sum(steps)
    for places in itertools.combinations(range(total), steps[0]):
        if len(steps) == 1:
            yield (0,) * steps[0]
            continue
        for rest in orders(steps[1:]):
            left = iter(rest)
            yield tuple(0 if place in places else next(left) + 1 for place in range(total))


def local(tmp_path: Path, count: int) -> list[BlobStore]:
    return [BlobStore(tmp_path / "blobs") for _ in range(count)]


def shared(tmp_path: Path, count: int) -> list[BlobStore]:
    (tmp_path / "shared").mkdir()
    return [
        SharedBlobs(tmp_path / f"cache-{me}", DirectoryBackend(tmp_path / "shared")) for me in range(count)
    ]


@pytest.fixture(autouse=True)
def unsynced(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda fd: None)


MAKERS = pytest.mark.parametrize("make", [local, shared], ids=["local", "shared"])


@MAKERS
def test_nothing_named_is_swept_in_any_interleaving(make, tmp_path):
    tried = 0
    for number, order in enumerate(orders((4, 5))):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert run(make(folder, 2), (writes, sweeps), order), order
        tried += 1
    assert tried == 126


@MAKERS
@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_a_writer_that_dies_at_any_point_leaves_nothing_unreadable(steps, make, tmp_path):
    for number, order in enumerate(orders((3, 4))):
        folder = tmp_path / str(number)
        folder.mkdir()
        roles = (dies_after(steps), sweeps)
        assert run(make(folder, 2), roles, order, is_named=steps >= 2), (steps, order)


@MAKERS
def test_a_copy_that_is_dropped_at_once_is_missed_when_its_writer_dies(make, tmp_path):
    lost = 0
    for number, order in enumerate(orders((3, 7))):
        folder = tmp_path / str(number)
        folder.mkdir()
        try:
            lost += not run(make(folder, 2), (dies_after(2), sweeps_at_once), order)
        except of.Unavailable:
            lost += 1
    assert lost


@MAKERS
def test_two_sweepers_and_a_writer(make, tmp_path):
    every = list(orders((3, 4, 4)))
    assert len(every) == 11550
    for number, order in enumerate(every[:: len(every) // 150]):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert run(make(folder, 3), (writes, sweeps, sweeps), order), order


def test_who_tidies_up_takes_nothing_from_others(tmp_path):
    every = list(orders((3, 4, 4)))
    for number, order in enumerate(every[:: len(every) // 150]):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert run(local(folder, 3), (writes, sweeps, tidies), order), order


@MAKERS
@pytest.mark.parametrize("planted", ["deletes after the record", "does not look again", "both, as it was"])
def test_each_half_of_the_protocol_is_needed(planted, make, tmp_path):
    """The same interleavings find a sweeper that keeps no copy, and a writer that does not look after its record."""

    def careless_writer(world, me):
        writes(world, me, checks=False)

    def careless_sweeper(world, me):
        sweeps(world, me, hides=False)

    roles = {
        "deletes after the record": (writes, careless_sweeper),
        "does not look again": (careless_writer, sweeps_at_once),
        "both, as it was": (careless_writer, careless_sweeper),
    }[planted]
    lost = 0
    for number, order in enumerate(orders((3, 7))):
        folder = tmp_path / str(number)
        folder.mkdir()
        try:
            readable = run(make(folder, 2), roles, order)
        except of.Unavailable:
            readable = False
        lost += not readable
    assert lost


def test_a_sweeper_that_dies_over_it_leaves_what_can_be_put_back(tmp_path):
    store = BlobStore(tmp_path / "blobs")
    assert store.put(DATA) == NAME
    ticket = store.hide(NAME)
    assert not store.path(NAME).exists() and store.hidden() == {(NAME, ticket)}
    assert store.get(NAME) == DATA and store.hidden() == {
        (NAME, ticket)
    }  # who read it does not know if it is named
    assert store.unhide(NAME, ticket) and store.hidden() == set()
    assert store.get(NAME) == DATA
    first = store.hide(NAME)
    store.put(DATA)  # a writer stores it again, and another sweeper hides that
    second = store.hide(NAME)
    store.drop(NAME, first)
    assert store.unhide(NAME, second)
    assert store.get(NAME) == DATA
    store.hide("f" * 64)
    assert not store.unhide("f" * 64) and not store.keeps("f" * 64)


def test_a_result_swept_before_its_record_is_made_again(tmp_path, monkeypatch):
    """A real run whose only result is taken away between its being stored and its record."""
    monkeypatch.setattr(config, "PARTIAL_INLINE_BYTES_MAX", 0)
    (tmp_path / "a.txt").write_text("b\na\nb\n")
    with of.connect(tmp_path / "space") as db:
        engine = db._engine
        submit, taken = engine.submit, []

        def swept_first(*operations):
            for one in operations:
                if isinstance(one, ops.Done) and one.result.blob is not None and not taken:
                    taken.append(one.result.blob)
                    engine.blobs.delete(one.result.blob)
            return submit(*operations)

        monkeypatch.setattr(engine, "submit", swept_first)
        job = db.read_text(tmp_path / "a.txt").group_by("line").agg(n=agg.count()).into("t")
        job.run(progress=False, workers=1)
        assert taken
        assert db.table("t").to_polars().rows() == [("a", 1), ("b", 2)]


def test_a_plan_swept_before_its_record_is_stored_again(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("b\na\nb\n")
    with of.connect(tmp_path / "space") as db:
        engine = db._engine
        submit = engine.submit

        def swept_first(*operations):
            for one in operations:
                if isinstance(one, ops.Submit):
                    for name in (one.plan, one.explain, *(stage.inputs for stage in one.stages)):
                        engine.blobs.delete(name)
            return submit(*operations)

        monkeypatch.setattr(engine, "submit", swept_first)
        job = db.read_text(tmp_path / "a.txt").group_by("line").agg(n=agg.count()).into("t")
        job.run(progress=False, workers=1)
    with of.connect(tmp_path / "space") as db:
        assert db.table("t").to_polars().rows() == [("a", 1), ("b", 2)]
        with db._engine.shard.view() as view:
            named = {key.decode() for key, _ in view.scan(rows.BLOB)}
        assert named and not db._engine.blobs.missing(named)


def test_what_a_run_replaced_is_kept_aside_for_a_while(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("b\na\nb\n")
    with of.connect(tmp_path / "space") as db:
        engine = db._engine
        for version in ("1", "2"):
            job = db.read_text(tmp_path / "a.txt").group_by("line").agg(n=agg.count())
            job.into("t", version=version).run(progress=False, workers=1)
        hidden = {name for name, _ in engine.blobs.hidden()}
        assert hidden and not engine.garbage.names()
        engine.garbage.sweep()
        assert {name for name, _ in engine.blobs.hidden()} == hidden
        monkeypatch.setattr(config, "SWEPT_KEPT_S", -1.0)
        engine.garbage.sweep()
        assert engine.blobs.hidden() == set()
        assert all(not engine.blobs.path(name).exists() for name in hidden)


@MAKERS
def test_what_a_late_reader_put_back_takes_no_space(make, tmp_path):
    (store,) = make(tmp_path, 1)
    store.put(DATA)
    store.hide(NAME)
    if isinstance(store, SharedBlobs):
        BlobStore.delete(store, NAME)  # its cache
    assert store.get(NAME) == DATA
    for named in ((), (NAME,)):
        for _ in range(2):  # hidden again, then dropped
            sweeping.tidy(store, (), lambda asked, named=named: named, kept_s=-1.0)
        assert not store.hidden()
        assert kept_for_all(store) == bool(named)
        store.put(DATA)
        store.hide(NAME)


@MAKERS
@pytest.mark.parametrize(("taken", "named"), [(False, True), (False, False), (True, False)])
def test_what_was_named_while_it_was_swept_is_put_back_at_once(make, tmp_path, taken, named):
    (store,) = make(tmp_path, 1)
    store.put(DATA)
    swept = sweeping.sweep(
        store, [NAME], lambda names: names if taken else [], lambda names: names if named else []
    )
    assert swept == taken
    place = store.backend._files if isinstance(store, SharedBlobs) else store
    assert place.path(NAME).exists() == named, "for readers of the place itself, and lists of it"
    assert bool(store.hidden()) == (not named)


def kept_for_all(store: BlobStore) -> bool:
    """Whether the blob is where all processes look, its cached copies apart."""
    return store.backend.exists(NAME) if isinstance(store, SharedBlobs) else store.exists(NAME)
