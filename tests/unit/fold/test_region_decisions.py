"""Decisions on regions: numbers, evictions in rounds, rejoining, and what older fold versions make of these operations."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from onefold.fold.api import NEWEST_VERSION, Context
from onefold.fold.nodes import ops
from onefold.fold.nodes.fold import NodesFold
from onefold.fold.nodes.ops import AddRegion, EvictRegion, Refused, RegionIs, RejoinRegion
from onefold.fold.nodes.regions import Admit, Evict, Reclaim, living, read_decisions, regions_of
from onefold.ids import REGIONS_MAX
from onefold.testing import check_fold
from onefold.testing.memory_store import MemoryStore


class Decided:
    """A fold of decisions."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.fold = NodesFold()

    def do(self, op: ops.Operation, version: int = NEWEST_VERSION, *, trusted: bool = True) -> Any:
        return ops.decode_region_outcome(self.raw(ops.nodes_op(op).body, version, trusted=trusted))

    def raw(self, body: bytes, version: int, *, trusted: bool = True) -> bytes:
        return self.fold.apply(self.store, Context(1, 0, 10, "c", None, trusted), body, version)

    def refused(self, op: ops.Operation, **options: Any) -> str:
        before = self.store.digest()
        outcome = self.do(op, **options)
        assert isinstance(outcome, Refused), outcome
        assert self.store.digest() == before, "a refused operation wrote something"
        return outcome.code

    @property
    def list(self) -> list[Any]:
        return read_decisions(self.store)


def test_regions_get_numbers_in_the_order_in_which_they_come() -> None:
    decided = Decided()
    assert decided.do(AddRegion("eu")) == RegionIs(1)
    assert decided.do(AddRegion("us")) == RegionIs(2)
    assert decided.do(AddRegion("eu")) == RegionIs(1), "one that is there keeps its number"
    assert decided.list == [Admit(1, "eu", True), Admit(2, "us", False)]


def test_founders_come_before_all_others() -> None:
    decided = Decided()
    for number, name in enumerate(("eu", "us", "asia"), 1):
        assert decided.do(AddRegion(name, founder=True)) == RegionIs(number)
        assert decided.do(AddRegion(name, founder=True)) == RegionIs(number)
    assert all(one.founder for one in decided.list)
    assert decided.do(AddRegion("late")) == RegionIs(4)
    assert decided.refused(AddRegion("later", founder=True)) == "conflict"


@pytest.mark.parametrize("name", ["", "x" * 33, "a/b", "a.b", "ü", "a b", "witness", "Witness", "eu\n"])
def test_what_cannot_be_the_name_of_a_region_is_malformed(name: str) -> None:
    decided = Decided()
    decided.do(AddRegion("eu"))
    for op in (AddRegion(name), EvictRegion(name), RejoinRegion(name)):
        assert decided.refused(op) == "malformed"
    if name:
        assert decided.refused(EvictRegion("eu", name)) == "malformed"


def test_names_that_differ_in_case_alone_are_refused() -> None:
    decided = Decided()
    decided.do(AddRegion("eu"))
    assert decided.refused(AddRegion("EU")) == "conflict"
    decided.do(AddRegion("us"))
    decided.do(EvictRegion("us"))
    assert decided.refused(AddRegion("Us")) == "conflict", "an evicted one still has its folder"


def test_a_space_has_so_many_regions_at_a_time() -> None:
    decided = Decided()
    for number in range(REGIONS_MAX):
        assert decided.do(AddRegion(f"r{number}")) == RegionIs(number + 1)
    assert decided.refused(AddRegion("more")) == "too_many"
    assert decided.do(AddRegion("r3")) == RegionIs(4)
    assert decided.do(EvictRegion("r0")) == RegionIs(1)
    assert decided.do(AddRegion("more")) == RegionIs(REGIONS_MAX + 1)
    assert decided.refused(RejoinRegion("r0")) == "too_many"


def test_evictions_are_counted_and_the_heir_follows() -> None:
    decided = Decided()
    for name in ("eu", "us", "asia"):
        decided.do(AddRegion(name))
    assert decided.do(EvictRegion("us", heir="asia")) == RegionIs(2)
    assert decided.do(EvictRegion("asia")) == RegionIs(3)
    assert decided.list[3:] == [Evict(2, 1), Reclaim(2, 3), Evict(3, 2)]
    assert [region.name for region in living(decided.list)] == ["eu"]


def test_evictions_that_are_refused() -> None:
    decided = Decided()
    decided.do(AddRegion("eu"))
    assert decided.refused(EvictRegion("eu")) == "conflict", "the last one"
    assert decided.refused(EvictRegion("us")) == "unknown"
    decided.do(AddRegion("us"))
    assert decided.refused(EvictRegion("us", heir="us")) == "malformed"
    assert decided.refused(EvictRegion("us", heir="asia")) == "unknown"
    decided.do(EvictRegion("us"))
    assert decided.refused(EvictRegion("us")) == "conflict", "it is evicted"
    assert decided.refused(EvictRegion("eu", heir="us")) == "conflict", "the last one"
    decided.do(AddRegion("asia"))
    assert decided.refused(EvictRegion("eu", heir="us")) == "unknown", "the heir is evicted"


def test_an_evicted_region_rejoins_under_a_new_number() -> None:
    decided = Decided()
    decided.do(AddRegion("eu"))
    assert decided.refused(RejoinRegion("eu")) == "conflict", "it lives"
    assert decided.refused(RejoinRegion("us")) == "unknown"
    decided.do(AddRegion("us"))
    decided.do(EvictRegion("us"))
    assert decided.refused(AddRegion("us")) == "conflict", "it has to rejoin"
    assert decided.do(RejoinRegion("us")) == RegionIs(3)
    assert decided.refused(RejoinRegion("us")) == "conflict"
    assert regions_of(decided.list)["us"].number == 3 and not regions_of(decided.list)["us"].evicted
    assert decided.do(EvictRegion("us")) == RegionIs(3)
    assert decided.list[-1] == Evict(3, 2)


OPS = (AddRegion("eu"), AddRegion("us", True), EvictRegion("eu", "us"), RejoinRegion("eu"))


@pytest.mark.parametrize("version", range(1, ops.REGIONS_VERSION))
@pytest.mark.parametrize("trusted", [True, False])
def test_older_versions_refuse_them_as_they_refuse_garbage(version: int, trusted: bool) -> None:
    decided = Decided()
    garbage = decided.raw(msgspec.msgpack.encode(["no_operation", "eu"]), version, trusted=trusted)
    before = decided.store.digest()
    for op in OPS:
        assert decided.raw(ops.nodes_op(op).body, version, trusted=trusted) == garbage
    assert decided.store.digest() == before


def test_programs_may_not_decide_on_regions() -> None:
    decided = Decided()
    for op in OPS:
        outcome = decided.do(op, trusted=False)
        assert isinstance(outcome, Refused) and outcome.code == "untrusted"
    assert decided.list == []


def test_the_operations_keep_the_contract_of_folds() -> None:
    bodies = [ops.nodes_op(op).body for op in (*OPS, *OPS[::-1])]
    check_fold(NodesFold(), bodies)
