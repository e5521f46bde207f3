"""What cannot be stops before anything is written, and says what was found."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl
import pytest

import onefold as of
from onefold import agg
from onefold.compute import aggregates
from onefold.compute.aggregates import frames
from onefold.errors import SpaceError
from onefold.fold.api import Context
from onefold.invariants import InvariantBroken, invariant
from onefold.state.fold.locks import fold as locks
from onefold.state.fold.queues import rows as queues
from onefold.state.fold.streams import fold as streams
from onefold.state.fold.streams import rows as stream_rows
from onefold.testing.memory_store import MemoryStore


def test_the_error_has_the_facts_and_says_what_to_do() -> None:
    invariant(True, "one is one")
    with pytest.raises(
        InvariantBroken, match=r"one is two \(one = 1, two = 'b'\): a bug in Onefold; .* report it"
    ) as caught:
        invariant(False, "one is two", one=1, two="b")
    assert isinstance(caught.value, SpaceError) and caught.value.definite


@pytest.mark.parametrize("name", ["ready", "delayed", "waiting", "flight", "dead", "outbox"])
def test_no_count_of_a_queue_is_below_zero(name: str) -> None:
    store, counts = MemoryStore(), queues.Counts(None)
    queues.write_counts(store, "state/q/a", counts)
    setattr(counts, name, -1)
    with pytest.raises(InvariantBroken, match="no queue has fewer"):
        queues.write_counts(store, "state/q/a", counts)
    assert store.writes == 1


def test_no_fewer_than_none_wait_for_a_lock() -> None:
    store = MemoryStore()
    with pytest.raises(InvariantBroken, match="wait for a lock"):
        locks._write(store, "a", locks.Row(1, 0, locks.Waiter("m", "h", 1), -1))
    assert not store.writes


@pytest.mark.parametrize("head", [stream_rows.Head(next=1, first=2), stream_rows.Head(next=1, bytes=-1)])
def test_a_partition_does_not_end_before_it_begins(head: stream_rows.Head) -> None:
    store = MemoryStore()
    with pytest.raises(InvariantBroken, match="a partition ends behind its beginning"):
        streams._put_head(store, "s", 0, head)
    assert not store.writes


def test_a_row_without_a_group_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a join loses rows: the values would be of no group."""
    monkeypatch.setattr(frames, "joinable", lambda frame, keys: (frame.head(1), list(keys)))
    rows = pl.DataFrame({"k": [1, 2], "v": [1, 2]}).lazy()
    with pytest.raises(InvariantBroken, match="every row is in one group"):
        aggregates.partial(rows, [pl.col("k")], (("u", agg.approx_n_unique("v")),))


@dataclass
class Broken:
    """A fold that finds an invariant broken."""

    name: str = "broken"
    version: int = 1
    history: frozenset[str] = frozenset()

    def apply(self, store: object, context: Context, body: bytes, fold_version: int) -> bytes:
        invariant(context.offset < 0, "there is no such offset", offset=context.offset)
        return b""


def test_a_fold_that_finds_one_broken_writes_nothing(tmp_path) -> None:
    from onefold.codec import Op
    from onefold.space.open_shard import open_shard

    with open_shard(tmp_path / "space", [Broken()]) as shard:
        before = shard.applied
        with pytest.raises(of.SpaceError, match="there is no such offset"):
            shard.submit([Op("broken", b"")])
        assert shard.applied == before
