"""The nodes fold, operation by operation: epochs, reported hashes, agreed snapshots, archives, and that no bytes can stop it."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onefold import config
from onefold.fold.api import Context
from onefold.fold.nodes import ops, rows, state
from onefold.fold.nodes.fold import NodesFold
from onefold.fold.nodes.ops import Accepted, Refused
from onefold.node.versions import too_old
from onefold.testing import check_fold
from onefold.testing.memory_store import MemoryStore

EVERY = config.SNAPSHOT_EVERY_OFFSETS


@dataclass
class Nodes:
    """Speaks to a nodes fold as a log would."""

    store: MemoryStore = field(default_factory=MemoryStore)
    fold: NodesFold = field(default_factory=NodesFold)
    offset: int = 0
    bodies: list[bytes] = field(default_factory=list)

    def do(self, op: ops.Operation, fold_version: int = 1) -> Any:
        return self.do_bytes(ops.nodes_op(op).body, fold_version)

    def do_bytes(self, body: bytes, fold_version: int = 1) -> Any:
        self.offset += 1
        self.bodies.append(body)
        before = self.store.digest()
        context = Context(self.offset, 0, self.offset * 10, "c", None)
        outcome = ops.decode_outcome(self.fold.apply(self.store, context, body, fold_version))
        if isinstance(outcome, Refused):
            assert self.store.digest() == before, f"a refused operation wrote something: {outcome}"
        return outcome

    def join(
        self, name: str, *, instance: str = "", region: str = "eu", zone: str = "a", version: int = 1
    ) -> int:
        op = ops.Join(name, instance or f"i-{name}", region, zone, "0.1", "3.11", version, 2)
        outcome = self.do(op)
        assert isinstance(outcome, Accepted), outcome
        return outcome.epoch

    def beat(self, name: str, epoch: int, *hosted: int, **more: Any) -> Any:
        return self.do(ops.Beat(name, epoch, tuple((shard, self.offset) for shard in hosted), **more))

    def hash(self, name: str, epoch: int, offset: int, word: str, blob: str = "", shard: int = 3) -> Any:
        return self.do(ops.StateHash(name, epoch, shard, offset, word, blob, 10 if blob else 0))

    def states(self) -> dict[str, str]:
        return {node.name: node.state.state for node in state.read_nodes(self.store)}


@pytest.fixture
def nodes() -> Nodes:
    return Nodes()


def refused(outcome: Any, code: str) -> str:
    assert isinstance(outcome, Refused), outcome
    assert outcome.code == code, outcome
    return outcome.message


# -- members


def test_a_node_joins_beats_drains_and_leaves(nodes: Nodes) -> None:
    epoch = nodes.join("n1", zone="z1")
    assert isinstance(nodes.beat("n1", epoch, 0, 4, busy=2), Accepted)
    node = state.read_node(nodes.store, "n1")
    assert node is not None
    assert (node.epoch, node.state, node.beats, node.zone, node.busy) == (1, "live", 1, "z1", 2)
    assert state.read_nodes(nodes.store)[0].shards == {0, 4}
    nodes.do(ops.Drain("n1", epoch))
    assert nodes.states() == {"n1": "draining"}
    assert isinstance(nodes.beat("n1", epoch, 0), Accepted)  # it still answers
    nodes.do(ops.Leave("n1", epoch))
    assert nodes.states() == {"n1": "left"}
    refused(nodes.beat("n1", epoch), "left")
    refused(nodes.do(ops.Expire("n1", epoch)), "left")


def test_joining_again_after_a_lost_answer_gives_the_same_epoch(nodes: Nodes) -> None:
    epoch = nodes.join("n1")
    assert nodes.join("n1") == epoch
    nodes.do(ops.Expire("n1", epoch))
    assert nodes.join("n1") > epoch


def test_a_new_process_takes_the_name_and_the_old_one_is_told(nodes: Nodes) -> None:
    old = nodes.join("n1", instance="a")
    new = nodes.join("n1", instance="b")
    assert new > old
    for op in (
        ops.Beat("n1", old, ()), ops.Drain("n1", old), ops.Leave("n1", old), ops.Expire("n1", old),
        ops.StateHash("n1", old, 0, EVERY, "h"), ops.Archived("n1", old, 0, 1, 5, "b", 1), ops.Swept("n1", old, ()),
    ):  # fmt: skip
        refused(nodes.do(op), "replaced")
    assert isinstance(nodes.beat("n1", new), Accepted)


def test_only_the_epoch_in_force_can_be_expired(nodes: Nodes) -> None:
    old = nodes.join("n1")
    assert isinstance(nodes.do(ops.Expire("n1", old)), Accepted)
    refused(nodes.beat("n1", old), "expired")
    new = nodes.join("n1")
    refused(nodes.do(ops.Expire("n1", old)), "replaced")  # a late observer
    assert nodes.states() == {"n1": "live"}
    assert isinstance(nodes.beat("n1", new), Accepted)


def test_a_node_that_is_too_old_for_the_space_does_not_join(nodes: Nodes) -> None:
    op = ops.Join("n1", "i", "eu", "", "0.1", "3.11", 1, 0)
    assert "Upgrade" in refused(nodes.do(op, fold_version=2), "too_old")
    nodes.join("n1", version=1)
    nodes.join("n2", version=2)
    assert too_old(state.read_nodes(nodes.store), 2) == ["n1"]
    nodes.do(ops.Leave("n1", 2))
    assert too_old(state.read_nodes(nodes.store), 2) == []


def test_names_that_went_longest_ago_are_forgotten(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "NODES_MAX", 3)
    epochs = {name: nodes.join(name) for name in ("a", "b", "c")}
    refused(nodes.do(ops.Join("d", "i", "eu", "", "0.1", "3.11", 1, 0)), "too_many")
    nodes.do(ops.Leave("b", epochs["b"]))
    nodes.do(ops.Leave("a", epochs["a"]))
    nodes.join("d")
    assert nodes.states() == {"a": "left", "c": "live", "d": "live"}


# -- reported digests and hashes


def test_digests_of_the_latest_offsets_are_compared(nodes: Nodes) -> None:
    step = config.DIGEST_EVERY_OFFSETS
    one, two = nodes.join("n1"), nodes.join("n2")
    for at in range(1, config.DIGESTS_KEPT + 4):
        nodes.beat("n1", one, digests=((2, at * step, bytes([at] * 16)),))
    nodes.beat("n2", two, digests=((2, step, bytes(16)), (2, (config.DIGESTS_KEPT + 3) * step, bytes(16))))
    said = state.digests(nodes.store)
    assert min(said) == (2, 4 * step)  # what n2 says of an old one is not kept
    assert len(said) == config.DIGESTS_KEPT
    assert said[2, (config.DIGESTS_KEPT + 3) * step] == {"n1": "0b" * 16, "n2": "00" * 16}


def test_a_copy_that_halted_testifies_no_more(nodes: Nodes) -> None:
    one, two = nodes.join("n1"), nodes.join("n2")
    for name, epoch in (("n1", one), ("n2", two)):
        nodes.beat(name, epoch, digests=((3, 4096, name.encode() * 8), (4, 4096, name.encode() * 8)))
        nodes.hash(name, epoch, EVERY, f"h-{name}", f"blob-{name}")
    nodes.beat("n1", one, halted=((3, "wrong"),))
    assert state.hashes(nodes.store) == {(3, EVERY): {"n2": "h-n2"}}
    assert set(state.digests(nodes.store)[3, 4096]) == {"n2"}
    assert set(state.digests(nodes.store)[4, 4096]) == {"n1", "n2"}
    assert state.garbage(nodes.store, 9) == ["blob-n1"]


def test_two_nodes_agree_and_their_snapshot_counts(nodes: Nodes) -> None:
    one, two, three = nodes.join("n1"), nodes.join("n2"), nodes.join("n3")
    nodes.hash("n1", one, EVERY, "h1", "blob-1")
    assert state.agreed(nodes.store, 3) == []
    nodes.hash("n2", two, EVERY, "other")
    assert state.agreed(nodes.store, 3) == []
    nodes.hash("n3", three, EVERY, "h1")
    assert state.snapshots(nodes.store, 3) == [state.SnapshotAt(3, EVERY, "h1", "blob-1", 10)]
    assert state.hashes(nodes.store) == {(3, EVERY): {"n1": "h1", "n2": "other", "n3": "h1"}}


def test_one_node_cannot_agree_with_itself(nodes: Nodes) -> None:
    one = nodes.join("n1")
    for _ in range(3):
        nodes.hash("n1", one, EVERY, "h1", "blob-1")
    assert state.agreed(nodes.store, 3) == []


def test_a_snapshot_may_come_after_the_agreement_and_not_of_another_state(nodes: Nodes) -> None:
    one, two, three = nodes.join("n1"), nodes.join("n2"), nodes.join("n3")
    nodes.hash("n1", one, EVERY, "h1")
    nodes.hash("n2", two, EVERY, "h1")
    nodes.hash("n3", three, EVERY, "other", "wrong-blob")
    assert state.snapshots(nodes.store, 3) == []
    nodes.hash("n2", two, EVERY, "h1", "blob-2")
    assert [one.blob for one in state.snapshots(nodes.store, 3)] == ["blob-2"]


def test_the_log_may_go_up_to_the_older_of_the_kept_snapshots(nodes: Nodes) -> None:
    one, two = nodes.join("n1"), nodes.join("n2")
    floors = []
    for at in range(1, 5):
        nodes.hash("n1", one, at * EVERY, f"h{at}", f"blob-{at}")
        nodes.hash("n2", two, at * EVERY, f"h{at}")
        floors.append(state.trim_floor(nodes.store, 3, archived=False))
    assert floors == [1, EVERY + 1, 2 * EVERY + 1, 3 * EVERY + 1]
    assert [one.offset for one in state.snapshots(nodes.store, 3)] == [3 * EVERY, 4 * EVERY]
    assert state.trim_floor(nodes.store, 3, archived=True) == 1  # nothing is archived
    nodes.do(ops.Archived("n1", one, 3, 1, EVERY, "a1", 5))
    assert state.trim_floor(nodes.store, 3, archived=True) == EVERY + 1
    assert state.trim_floor(nodes.store, 4, archived=False) == 1  # another shard


def test_states_without_agreement_hold_the_log(nodes: Nodes) -> None:
    one, two = nodes.join("n1"), nodes.join("n2")
    for at in range(1, 9):
        nodes.hash("n1", one, at * EVERY, f"h{at}", f"blob-{at}")
        nodes.hash("n2", two, at * EVERY, f"g{at}", f"glob-{at}")
    assert state.trim_floor(nodes.store, 3, archived=False) == 1
    assert len(state.hashes(nodes.store)) == config.HASHES_KEPT  # and what is kept of them is bounded


def test_agreed_states_of_which_nobody_makes_a_snapshot_are_bounded(nodes: Nodes) -> None:
    one, two = nodes.join("n1"), nodes.join("n2")
    for at in range(1, 20):
        nodes.hash("n1", one, at * EVERY, "h")
        nodes.hash("n2", two, at * EVERY, "h")
    assert len(state.agreed(nodes.store, 3)) <= config.HASHES_KEPT
    refused(nodes.hash("n1", one, EVERY, "h"), "conflict")


def test_snapshots_that_nothing_names_are_swept_once(nodes: Nodes) -> None:
    one, two = nodes.join("n1"), nodes.join("n2")
    for at in range(1, 8):
        nodes.hash("n1", one, at * EVERY, f"h{at}", f"blob-{at}")
        nodes.hash("n2", two, at * EVERY, f"h{at}")
    kept = {one.blob for one in state.snapshots(nodes.store, 3)}
    free = state.garbage(nodes.store, 100)
    assert free
    assert not kept & set(free)
    outcome = nodes.do(ops.Swept("n1", one, (*free, "blob-7", free[0])))
    assert outcome.blobs == tuple(free)
    assert nodes.do(ops.Swept("n2", two, tuple(free))).blobs == ()
    assert state.garbage(nodes.store, 100) == []


def test_a_replaced_snapshot_is_swept(nodes: Nodes) -> None:
    one = nodes.join("n1")
    nodes.hash("n1", one, EVERY, "h1", "blob-1")
    nodes.hash("n1", one, EVERY, "h1", "blob-1")
    assert state.garbage(nodes.store, 9) == []
    nodes.hash("n1", one, EVERY, "h1", "blob-2")
    assert state.garbage(nodes.store, 9) == ["blob-1"]


def test_an_archive_has_no_gaps(nodes: Nodes) -> None:
    one = nodes.join("n1")
    assert state.archived_to(nodes.store, 3) is None
    assert isinstance(nodes.do(ops.Archived("n1", one, 3, 5, 10, "a", 1)), Accepted)  # the log began at 5
    for start, stop in ((5, 10), (10, 12), (12, 13), (1, 4)):
        refused(nodes.do(ops.Archived("n1", one, 3, start, stop, "b", 1)), "conflict")
    assert isinstance(nodes.do(ops.Archived("n1", one, 3, 11, 11, "b", 2)), Accepted)
    assert state.archived_to(nodes.store, 3) == 11
    assert [(one.start, one.stop, one.blob) for one in state.archives(nodes.store, 3)] == [
        (5, 10, "a"),
        (11, 11, "b"),
    ]


def test_the_oldest_archives_go(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "ARCHIVES_KEPT", 3)
    one = nodes.join("n1")
    for at in range(1, 6):
        nodes.do(ops.Archived("n1", one, 3, at, at, f"a{at}", 1))
    assert [each.blob for each in state.archives(nodes.store, 3)] == ["a3", "a4", "a5"]
    assert state.garbage(nodes.store, 9) == ["a1", "a2"]
    refused(nodes.do(ops.Archived("n1", one, 3, 1, 1, "a1", 1)), "conflict")


# -- what makes no sense


@pytest.mark.parametrize(
    "op",
    [
        ops.Join("", "i", "eu", "", "", "", 1, 0),
        ops.Join("a/b", "i", "eu", "", "", "", 1, 0),
        ops.Join("n" * 65, "i", "eu", "", "", "", 1, 0),
        ops.Join("n", "", "eu", "", "", "", 1, 0),
        ops.Join("n", "i", "", "", "", "", 1, 0),
        ops.Join("n", "i", "e" * 201, "", "", "", 1, 0),
        ops.Join("n", "i", "eu", "", "", "", 0, 0),
        ops.Join("n", "i", "eu", "", "", "", 1, -1),
        ops.Beat("n1", 0, ()),
        ops.Beat("n1", 1, ((-1, 0),)),
        ops.Beat("n1", 1, ((config.SHARDS_MAX, 0),)),
        ops.Beat("n1", 1, ((0, 1 << 62),)),
        ops.Beat("n1", 1, ((0, 0),) * (config.SHARDS_MAX + 1)),
        ops.Beat("n1", 1, (), ((0, 0, bytes(16)),)),
        ops.Beat("n1", 1, (), ((0, 4096, bytes(15)),)),
        ops.Beat("n1", 1, (), (), ((0, "x" * (config.HALT_REASON_CHARS_MAX + 1)),)),
        ops.Beat("n1", 1, (), (), (), -1),
        ops.StateHash("n1", 1, 0, 0, "h"),
        ops.StateHash("n1", 1, 0, 5, ""),
        ops.StateHash("n1", 1, -1, 5, "h"),
        ops.StateHash("n1", 1, 0, 5, "h", "b" * 201),
        ops.StateHash("n1", 1, 0, 5, "h", "b", -1),
        ops.Archived("n1", 1, 0, 5, 4, "b", 1),
        ops.Archived("n1", 1, 0, 1, 4, "", 1),
        ops.Swept("n1", 1, ("",)),
        ops.Swept("n1", 1, ("b",) * (config.SWEPT_BLOBS_MAX + 1)),
    ],
)
def test_nonsense_is_refused(nodes: Nodes, op: ops.Operation) -> None:
    nodes.join("n1")
    refused(nodes.do(op), "malformed")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60))
def test_no_bytes_can_stop_it(body: bytes) -> None:
    nodes = Nodes()
    nodes.join("n1")
    assert isinstance(nodes.do_bytes(body), Refused | Accepted)


def test_unknown_nodes_say_nothing(nodes: Nodes) -> None:
    refused(nodes.beat("nobody", 1), "unknown")


def random_operations(seed: int, count: int = 300) -> list[bytes]:
    """Operations of four nodes that come, go, agree and differ."""
    rng = random.Random(seed)
    nodes = Nodes()
    epochs: dict[str, int] = {}
    for _ in range(count):
        name = rng.choice("abcd")
        epoch = epochs.get(name, 1)
        at = rng.randrange(1, 9) * EVERY
        match rng.randrange(9):
            case 0 | 1:
                outcome = nodes.do(ops.Join(name, rng.choice("ij"), "eu", "z", "0", "3", 1, 1))
                epochs[name] = outcome.epoch
            case 2 | 3:
                nodes.beat(
                    name, epoch, 0, rng.randrange(4), digests=((1, at, rng.choice((b"x", b"y")) * 16),)
                )
            case 4 | 5 | 6:
                nodes.hash(
                    name,
                    epoch,
                    at,
                    rng.choice("hhhg"),
                    rng.choice(("", f"{name}-{at}")),
                    shard=rng.randrange(2),
                )
            case 7:
                nodes.do(rng.choice((ops.Drain, ops.Leave, ops.Expire))(name, epoch))
            case 8:
                end = state.archived_to(nodes.store, 1) or 0
                nodes.do(ops.Archived(name, epoch, 1, end + rng.randrange(3), end + 9, f"a{end}", 4))
                nodes.do(ops.Swept(name, epoch, tuple(state.garbage(nodes.store, 3))))
    return nodes.bodies


@pytest.mark.parametrize("seed", range(4))
def test_it_is_a_fold(seed: int) -> None:
    check_fold(NodesFold(), random_operations(seed), seed=seed)


@pytest.mark.parametrize("seed", range(4))
def test_no_snapshot_that_is_named_is_ever_garbage(seed: int) -> None:
    nodes = Nodes()
    for body in random_operations(seed, 600):
        nodes.do_bytes(body)
        free = set(state.garbage(nodes.store, 10_000))
        named = {rows.decode(data, rows.HashState).blob for _, data in nodes.store.scan(rows.HASH)}
        named |= {rows.decode(data, rows.AgreedState).blob for _, data in nodes.store.scan(rows.AGREED)}
        assert not free & named, f"seed {seed}, offset {nodes.offset}"


def test_rows_of_a_later_version_can_be_read() -> None:
    later = msgspec.msgpack.encode([5, "i", "live", "eu", "z", "p", "py", 1, 2, 3, 4, 5, 6, [], [], 0, "new"])
    assert rows.decode(later, rows.NodeState).beats == 4


# -- golden bytes: what was written once is read for ever

GOLDEN: list[tuple[ops.Operation, str]] = [
    (
        ops.Join("n1", "i", "eu", "z", "0.1", "3.11", 1, 2),
        "99a46a6f696ea26e31a169a26575a17aa3302e31a4332e31310102",
    ),
    (
        ops.Beat("n1", 5, ((0, 7),), ((0, 4096, b"d" * 16),), ((1, "why"),), 3),
        "97a462656174a26e310591920007919300cd1000c41064646464646464646464646464646464919201a377687903",
    ),
    (
        ops.Drain("n1", 5),
        "93a5647261696ea26e3105",
    ),
    (
        ops.Leave("n1", 5),
        "93a56c65617665a26e3105",
    ),
    (
        ops.Expire("n1", 5),
        "93a6657870697265a26e3105",
    ),
    (
        ops.StateHash("n1", 5, 3, 65536, "h", "blob", 9),
        "98a468617368a26e310503ce00010000a168a4626c6f6209",
    ),
    (
        ops.Archived("n1", 5, 3, 1, 9, "blob", 8),
        "98a86172636869766564a26e3105030109a4626c6f6208",
    ),
    (
        ops.Swept("n1", 5, ("blob",)),
        "94a57377657074a26e310591a4626c6f62",
    ),
]
ROW = rows.NodeState(
    5, "i", rows.LIVE, "eu", "z", "0.1", "3.11", 1, 2, 3, 4, 6, 7, ((0, 7),), ((1, "why"),), 3
)
ROW_BYTES = "dc001005a169a46c697665a26575a17aa3302e31a4332e313101020304060791920007919201a377687903"


@pytest.mark.parametrize(("op", "written"), GOLDEN)
def test_operations_have_the_bytes_that_they_always_had(op: ops.Operation, written: str) -> None:
    assert ops.nodes_op(op).body.hex() == written
    assert ops.decode_op(bytes.fromhex(written)) == op


def test_rows_have_the_bytes_that_they_always_had() -> None:
    assert rows.encode(ROW).hex() == ROW_BYTES
    assert rows.decode(bytes.fromhex(ROW_BYTES), rows.NodeState) == ROW
    assert rows.place_key(3, 65536, "n1").hex() == "0000000300000000000100006e31"
    assert rows.read_place(rows.place_key(3, 65536, "n1")) == (3, 65536, "n1")
