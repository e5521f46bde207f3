"""Which records are trusted is kept wherever a log is copied, and judged alike wherever it is read."""

from __future__ import annotations

import io
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import apsw
import msgspec
import pytest

from onefold.backup.backup import backup, restore
from onefold.codec import Op, Record, encode_record
from onefold.env import SYSTEM
from onefold.fold import authority, system
from onefold.fold.api import NEWEST_VERSION
from onefold.fold.nodes.ops import Join, StateHash, nodes_op
from onefold.fold.nodes.state import read_nodes
from onefold.folds import folds
from onefold.ids import client_id
from onefold.log.api import Entry
from onefold.log.memory import MemoryLog
from onefold.log.sqlite.engine import LOG_SCHEMA, SqliteLog, entry_crc, note_untrusted, read_in
from onefold.node.snapshots import archive
from onefold.node.snapshots.archive import read_archive, write_archive
from onefold.node.snapshots.snapshots import in_log
from onefold.node.telemetry.logging import JsonLog
from onefold.node.versions import Authority, NewestVersion
from onefold.shard.embedded import EmbeddedShard
from onefold.shard.memory import MemoryShard
from onefold.space.open_shard import open_shard
from onefold.space.open_space import open_shards
from support.node_members import EVERY, World, small, world_of_members  # noqa: F401

JOIN = nodes_op(Join("n", "i", "r", "", "0", "3", 2, 0))


def record(*ops: Op, client: str | None = None) -> bytes:
    return encode_record(Record(client or client_id(0, SYSTEM), 1, 1, ops, 2))


def drawn(seed: int, count: int) -> list[bool]:
    rng = random.Random(seed)
    return [rng.random() < 0.4 for _ in range(count)]


@pytest.mark.parametrize("seed", range(5))
def test_an_embedded_log_keeps_the_marks(seed: int, tmp_path: Path) -> None:
    marks = drawn(seed, 60)
    with closing(SqliteLog(tmp_path)) as log:
        with log.appending() as con:
            for at, trusted in enumerate(marks, 1):
                log.append_in(con, record(), 1, at, trusted=trusted)
        assert log.append(record()) == 61
        for start in range(1, 62, 7):
            found = [entry.trusted for entry in log.read(start)]
            assert found == [*marks, True][start - 1 :], seed


def steps_of(con: apsw.Connection, do: Callable[[], object]) -> int:
    """How much is done: calls in Python, among them each step of a generator, and each tenth instruction of SQLite's machine."""
    steps = 0

    def count(*_: object) -> bool:
        nonlocal steps
        steps += 1
        return False

    con.set_progress_handler(count, 10)
    sys.setprofile(count)
    try:
        do()
    finally:
        sys.setprofile(None)
        con.set_progress_handler(None)
    return steps


def test_the_work_for_each_record_does_not_grow_with_the_marks() -> None:
    """A cluster's log: records of nodes between those of programs."""
    each: dict[str, list[float]] = {"read": [], "write": []}
    for count in (1_000, 8_000):
        con = apsw.Connection(":memory:")
        con.execute(";".join(LOG_SCHEMA))
        data = b"x" * 200
        con.executemany(
            "INSERT INTO log VALUES(?, ?, ?, ?)",
            ((at, 1, entry_crc(at, 1, data), data) for at in range(1, count + 1)),
        )
        noted = steps_of(
            con, lambda con=con, count=count: note_untrusted(con, "main", range(2, count + 1, 2))
        )
        each["write"].append(noted / count)
        found: list[Entry] = []

        def read(con: apsw.Connection = con, count: int = count, found: list[Entry] = found) -> None:
            while len(found) < count:
                found += read_in(con, len(found) + 1, 60_000, "here")

        each["read"].append(steps_of(con, read) / count)
        assert [entry.trusted for entry in found] == [entry.offset % 2 == 1 for entry in found]
    for what, (few, many) in each.items():
        assert many < few * 1.5, (what, each)


def test_trimming_removes_the_marks_too(tmp_path: Path) -> None:
    with closing(SqliteLog(tmp_path)) as log:
        with log.appending() as con:
            for at in range(1, 11):
                log.append_in(con, record(), 1, at, trusted=at not in (1, 2, 4, 5, 6, 9))
        log.trim(6)
        with log.file.reading() as con:
            assert con.execute("SELECT first, last FROM log_untrusted").fetchall() == [(4, 6), (9, 9)]
        assert [entry.trusted for entry in log.read(6)] == [False, True, True, False, True]


def test_a_log_of_an_earlier_release_is_trusted(tmp_path: Path) -> None:
    with closing(SqliteLog(tmp_path)) as log:
        with log.appending() as con:
            log.append_in(con, record(), 1, 1)
            con.execute("DROP TABLE log_untrusted")
        assert [entry.trusted for entry in log.read(1)] == [True]


def test_an_archive_keeps_the_marks_and_trusts_nothing_of_an_earlier_one(tmp_path: Path) -> None:
    import zstandard

    entries = [Entry(at, record(), 1, trusted) for at, trusted in enumerate(drawn(1, 40), 5)]
    write_archive(tmp_path / "a", entries)
    assert list(read_archive(tmp_path / "a")) == entries
    bodies = [msgspec.msgpack.encode((at, b"x", 7)) for at in (1, 2)]
    packed = b"".join(len(body).to_bytes(4, "big") + body for body in bodies) + bytes(4)
    (tmp_path / "old").write_bytes(b"OFARCH1\n" + zstandard.ZstdCompressor().compress(packed))
    assert list(read_archive(tmp_path / "old")) == [Entry(1, b"x", 7, False), Entry(2, b"x", 7, False)]
    assert archive.MAGIC == b"OFARCH2\n"


def test_a_restored_space_folds_its_log_to_the_same_state(tmp_path: Path) -> None:
    """As of a cluster's backup: records of programs among those of nodes."""

    def all_folds(shard: int, shards: int) -> Sequence[Any]:
        return folds(shard, shards)

    with closing(open_shard(tmp_path / "space", folds(0, 1))) as space:
        assert isinstance(space, EmbeddedShard)
        space.submit([JOIN])
        space.raise_fold_version(2)
        with space.log.appending() as con:
            for at, trusted in enumerate((False, True, False), space.applied + 1):
                name = "forged" if not trusted else "real"
                op = nodes_op(Join(name, "i", "r", "", "0", "3", 2, 0))
                space.log.append_in(con, record(op), 1, at, trusted=trusted)
            space.log.append_in(con, record(system.system_op(system.Trim(2))), 1, at + 1, trusted=False)
            space.log.append_in(
                con, record(client=client_id(0, SYSTEM, of_node=True)), 1, at + 2, trusted=False
            )
        space.catch_up()
        with space.view() as view:
            assert [node.name for node in read_nodes(view)] == ["n", "real"]
            assert view.head().log_first == 1 and view.head().refused == 1
            assert authority.refused_ops(view).kinds == {"nodes.Join": 2, "onefold.Trim": 1}
        expected, marks = space.state_digest(), [entry.trusted for entry in space.log.read(1)]
        assert marks.count(False) == 4
        backup([space], tmp_path / "backup")
    now_ms = SYSTEM.wall_ms()
    for name, to_ms in (("whole", None), ("folded", now_ms)):
        if to_ms is not None and name == "folded":
            to_ms = min(
                to_ms, msgspec.json.decode((tmp_path / "backup" / "manifest.json").read_bytes())["created_ms"]
            )
        restore(tmp_path / "backup", tmp_path / name, all_folds, to_ms=to_ms)
        (again,) = open_shards(tmp_path / name, all_folds, create=False)
        with closing(again):
            assert isinstance(again, EmbeddedShard)
            assert again.state_digest() == expected, name
            assert [entry.trusted for entry in again.log.read(1)] == marks, name


# -- snapshots that are found in a log without a state


class MarkedLog:
    """A log in memory whose entries were marked."""

    def __init__(self, log: Any, untrusted: set[int]) -> None:
        self._log = log
        self._untrusted = untrusted

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def _marked(self, entry: Entry) -> Entry:
        return entry._replace(trusted=entry.offset not in self._untrusted)

    def read(self, start: int, max_bytes: int = 1 << 20) -> list[Entry]:
        return [self._marked(entry) for entry in self._log.read(start, max_bytes)]

    def append_trusted(self, data: bytes) -> int:
        return int(self._log.append(data))

    def takes_trusted(self) -> bool:
        return True

    def first_trusted(self) -> Entry | None:
        entries: Iterator[Entry] = iter(self.read(self._log.first, 1 << 30))
        return next((entry for entry in entries if entry.trusted), None)


def test_a_newcomer_believes_no_forged_snapshot(world: World) -> None:
    world.join("a", "b")
    log = world.logs[0]
    for name in ("a", "b"):
        epoch = world.members[name].membership.epoch
        world.members[name].membership.say(StateHash(name, epoch, 0, 3, "h", "real", 1))
    real, everything = log.last, set(range(1, log.last + 1))
    assert in_log(MarkedLog(log, everything)).blob == "real", "nothing was ever trusted: an earlier release"  # type: ignore[arg-type, union-attr]
    log.append(record(system.system_op(system.RaiseFoldVersion(2))))
    for name in ("x", "y"):
        log.append(record(nodes_op(StateHash(name, 1, 0, 4, "forged", "forged", 1))))
    forged = set(range(real + 2, log.last + 1))
    found = in_log(MarkedLog(log, everything | forged))  # type: ignore[arg-type]
    assert found is not None and found.blob == "real", "what was said before the raise counts"
    assert in_log(MarkedLog(log, forged)).blob == "real"  # type: ignore[arg-type, union-attr]
    everywhere = in_log(MarkedLog(log, set()))  # type: ignore[arg-type]
    assert everywhere is not None and everywhere.blob == "forged", "the test tries nothing"
    assert log.last < EVERY


def test_a_raise_of_the_fold_version_takes_a_trusted_record(tmp_path: Path) -> None:
    with closing(open_shard(tmp_path / "space", folds(0, 1))) as space:
        assert isinstance(space, EmbeddedShard)
        with space.log.appending() as con:
            op = system.system_op(system.RaiseFoldVersion(99))
            space.log.append_in(con, record(op), 1, 1, trusted=False)
        space.catch_up()
        assert space._replica.head.fold_version == 1, "and no program stops"


# -- before it is in force, all is folded as by earlier releases

_S = system.system_op
BEFORE = {
    "raise": ("90b167d84efd6cdd7f42bedd41d76c57", "c", [_S(system.RaiseFoldVersion(1))]),
    "raise to nothing": ("d146bef4a979efb143f97e1cdabb0960", "c", [_S(system.RaiseFoldVersion(0))]),
    "trim, refused": ("68d7411793891b212ce5df0a0b9ad5e5", "c", [_S(system.Trim(0)), _S(system.Trim(99))]),
    "trim": ("2bec377c16477fa5c307b60c4b99e8c9", "c", [_S(system.Trim(2))]),
    "expire, refused": (
        "ecabc1b2b56b7e4dc81dc2432a8d97ba",
        "c",
        [_S(system.ExpireClients(0)), _S(system.ExpireClients(99))],
    ),
    "expire": ("bfa746ec60801794bd1c017886bd4a72", "c", [_S(system.ExpireClients(2))]),
    "register": ("bbd0e836c80cc9a7eb2ce7d7e03c9a57", "c", [_S(system.Register(("nodes", "other")))]),
    "of nodes": (
        "ae09c3f872f93fabfe34e919993e4f3a",
        "c",
        [_S(system.Register(("nodes",))), nodes_op(Join("n", "i", "r", "", "0", "3", 1, 0))],
    ),
    "malformed": ("7929998c4651e47ed4503babcc52597d", "c", [Op("onefold", b"\xff"), _S(system.Tick())]),
    "a node's client": ("f225a835674bdf9156fcf20e2437f32a", "n", [_S(system.Tick())]),
}
"""The state's digest as release 0.1 has it after a record with these operations by a client of this kind."""


def folded(kind: str, ops: Sequence[Op], *, raised: bool = False) -> tuple[str, dict[str, int]]:
    """The digest of the state after an untrusted record, and what was noted as refused."""
    log = MemoryLog()
    first = system.RaiseFoldVersion(authority.IN_FORCE_VERSION) if raised else system.Tick()
    log.append(encode_record(Record("c0-" + "2" * 18, 1, 1000, (_S(first),))))
    log.append(encode_record(Record(f"{kind}0-" + "1" * 18, 1, 1000, tuple(ops))))
    with closing(MemoryShard(MarkedLog(log, {2}), folds(0, 1), SYSTEM)) as space:  # type: ignore[arg-type]
        space.catch_up()
        with space.view() as view:
            return space.state_digest(), authority.refused_ops(view).kinds


@pytest.mark.parametrize("case", BEFORE)
def test_before_it_is_in_force_a_program_of_an_earlier_release_has_the_same_state(case: str) -> None:
    digest, kind, ops = BEFORE[case]
    assert folded(kind, ops) == (digest, {})


def test_in_force_what_is_refused_is_noted() -> None:
    noted = {case: folded(kind, ops, raised=True)[1] for case, (_, kind, ops) in BEFORE.items()}
    assert noted["raise"] == {"onefold.RaiseFoldVersion": 1}
    assert noted["trim"] == {"onefold.Trim": 1} and noted["expire"] == {"onefold.ExpireClients": 1}
    assert noted["register"] == noted["of nodes"] == {"onefold.Register": 1}
    assert noted["malformed"] == noted["a node's client"] == {}


# -- a space of an earlier release comes to it by its nodes


class Shard:
    """A replica as far as the duty looks at it."""

    def __init__(self, takes: bool) -> None:
        self.version, self.takes, self.log = 1, takes, self

    @contextmanager
    def view(self) -> Iterator[Any]:
        yield SimpleNamespace(head=lambda: SimpleNamespace(fold_version=self.version))

    def raise_fold_version(self, version: int) -> None:
        assert version in (authority.IN_FORCE_VERSION, NEWEST_VERSION)
        self.version = version

    def takes_trusted(self) -> bool:
        return self.takes

    def append_trusted(self, data: bytes) -> int:
        raise NotImplementedError

    def first_trusted(self) -> Entry | None:
        raise NotImplementedError


def test_the_first_node_of_a_shard_raises_the_version_when_all_is_ready() -> None:
    said = io.StringIO()
    duty = Authority("a", JsonLog("a", stream=said))
    shards = {0: Shard(False), 1: Shard(False), 2: Shard(True)}
    versions = {"a": 2, "old": 1}
    placement = {0: ("a", "b"), 1: ("a", "b"), 2: ("b", "a")}

    def look() -> list[int]:
        nodes = [
            SimpleNamespace(name=name, member=True, state=SimpleNamespace(fold_version_max=known))
            for name, known in versions.items()
        ]
        duty.look(SimpleNamespace(hosted=shards, placement=placement, nodes=nodes))  # type: ignore[arg-type]
        return [shard.version for shard in shards.values()]

    assert look() == [1, 1, 1] and "onefold init" in said.getvalue()
    shards[1].takes = True
    assert look() == [1, 1, 1], "shard 0 is first: nodes that join are checked against it"
    shards[0].takes = True
    assert look() == [1, 1, 1] and "old" in said.getvalue(), "a member would stop"
    versions["old"] = 2
    assert look() == [2, 2, 1], "of the third another node is the first"
    shards[0].takes = False
    assert look() == [2, 2, 1]


def test_the_newest_version_comes_into_force_when_every_member_knows_it() -> None:
    duty = NewestVersion("a", JsonLog("a", stream=io.StringIO()))
    shards = {0: Shard(True), 1: Shard(True), 2: Shard(True)}
    versions = {"a": NEWEST_VERSION, "old": 2}
    placement = {0: ("a", "b"), 1: ("a", "b"), 2: ("b", "a")}

    def look() -> list[int]:
        nodes = [
            SimpleNamespace(name=name, member=True, state=SimpleNamespace(fold_version_max=known))
            for name, known in versions.items()
        ]
        duty.look(SimpleNamespace(hosted=shards, placement=placement, nodes=nodes))  # type: ignore[arg-type]
        return [shard.version for shard in shards.values()]

    assert look() == [1, 1, 1], "who may append what comes first"
    for shard in shards.values():
        shard.version = authority.IN_FORCE_VERSION
    assert look() == [2, 2, 2], "a member would stop"
    versions["old"] = NEWEST_VERSION
    assert look() == [NEWEST_VERSION, NEWEST_VERSION, 2], "of the third another node is the first"
    assert look() == [NEWEST_VERSION, NEWEST_VERSION, 2]
