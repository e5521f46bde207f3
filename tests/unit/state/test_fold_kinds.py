"""The kinds of collections of the state fold: one list from which everything else follows."""

from __future__ import annotations

from typing import get_args

import pytest

from onefold.fold.api import NEWEST_VERSION, Context
from onefold.folds import folds
from onefold.state.fold import kinds, lock_table, ops, validation
from onefold.state.fold.kind import Kind, Write
from onefold.state.fold.live.ops import LIVE_VERSION, MoveCursor
from onefold.state.fold.machine import MALFORMED, StateFold
from onefold.state.fold.maps.ops import Delete, Put
from onefold.state.fold.streams.ops import STREAM_BLOBS_VERSION, AppendBlob
from onefold.testing.memory_store import MemoryStore

STEPS = {ops.Commit, ops.Prepare, ops.Decide, ops.Resolve, ops.Forget}
"""Of transactions, over all kinds."""


class Note(Write, frozen=True, array_like=True, tag="test-note"):
    """A write of a kind that is not there."""

    name: str


def tags(structs):
    return [struct.__struct_config__.tag for struct in structs]


def test_what_a_record_may_hold_is_what_the_kinds_list():
    listed = {operation for kind in kinds.KINDS for operation in kind.operations}
    assert set(get_args(ops.StateOp)) == STEPS | listed
    assert set(get_args(kinds.Write)) == {write for kind in kinds.KINDS for write in kind.writes}
    assert len(listed) == sum(len(kind.operations) for kind in kinds.KINDS)


def test_no_two_operations_or_writes_have_one_tag():
    for structs in ([*STEPS, *kinds.BY_OPERATION], kinds.BY_WRITE):
        assert len(set(tags(structs))) == len(structs)


def test_the_fold_has_the_history_and_the_version_of_its_kinds():
    assert StateFold.history == {"state/m/"}
    assert StateFold.version == NEWEST_VERSION
    assert [kind.advance is not None for kind in kinds.KINDS] == [True, True, False, False, False]


def test_what_is_not_there_yet_is_listed_by_fold_version():
    newest = max(kind.version for kind in kinds.KINDS)
    assert newest == 4
    assert set(kinds.LATER) == set(range(newest))
    for version, later in kinds.LATER.items():
        for kind in kinds.KINDS:
            parts = {*kind.writes, *kind.operations}
            assert parts & later == {part for part in parts if kind.later.get(part, kind.since) > version}
    assert kinds.LATER[newest - 1]


@pytest.mark.parametrize(
    ("version", "new"),
    [
        *((version, MoveCursor("j", 1, 0, 1, 0, 1)) for version in range(1, LIVE_VERSION)),
        *((version, AppendBlob("s", 0, 1, "b", 90_000)) for version in range(1, STREAM_BLOBS_VERSION)),
    ],
)
def test_no_transaction_does_a_write_that_is_not_there_yet(version, new):
    """Whatever stands before it: replicas that do not know it cannot decode the whole."""
    put = Put("m", ((b"\x02k\x00", b"v"),))
    for op in (
        ops.Commit((), (), (new,)),
        ops.Commit((), (), (put, new)),
        ops.Prepare("t", 0, (0, 1), (), (), (put, new)),
    ):
        store = MemoryStore()
        context = Context(1, 0, 1, "c", None)
        assert StateFold(2).apply(store, context, ops.state_op(op).body, version) == MALFORMED
        assert store.writes == 0
    for op in (ops.Commit((), (), (put,)), ops.Prepare("t", 0, (0, 1), (), (), (put,))):
        assert StateFold(2).apply(MemoryStore(), context, ops.state_op(op).body, version) != MALFORMED


def test_each_write_is_done_by_its_own_kind(monkeypatch):
    seen = []

    def noting(name, result=None):
        return lambda *args: seen.append((name, args[-1])) or result

    note = Kind(writes=(Note,), refusal=noting("refusal"), apply=noting("apply", 7), want=noting("want"))
    monkeypatch.setitem(kinds.BY_WRITE, Note, note)
    store, write, put = MemoryStore(), Note("a"), Delete("m", (b"\x02k\x00",))
    assert validation.first_refusal(store, (write,)) is None
    assert validation.apply_writes(store, None, (write, put)) == (7, 0)
    found = validation.wants((), (), (write, put))
    assert seen == [("refusal", write), ("apply", write), ("want", write)]
    assert list(found.keys.values()) == [lock_table.EXCLUSIVE]


def test_a_kind_that_says_nothing_of_locks_locks_its_whole_collection(monkeypatch):
    monkeypatch.setitem(kinds.BY_WRITE, Note, Kind(writes=(Note,)))
    same, other = (validation.wants((), (), (Note(name),)) for name in ("a", "b"))
    again = validation.wants((), (), (Note("a"), Put("a", ((b"\x02k\x00", b""),))))
    assert set(same.keys) < set(again.keys)
    assert not set(same.keys) & set(other.keys)


def test_a_write_of_no_kind_is_not_done():
    with pytest.raises(KeyError):
        validation.apply_writes(MemoryStore(), None, (Note("a"),))
    assert ops.decode_op(ops.state_op(ops.Commit((), (), (Note("a"),))).body) is None


def test_the_fold_that_is_loaded_late_says_what_the_fold_is() -> None:
    """Spaces are opened by what it says, without the fold itself."""
    for shards in (1, 4):
        late, fold = folds(1, shards)[0], StateFold(shards)
        assert (late.name, late.version, late.history) == (fold.name, fold.version, fold.history)
