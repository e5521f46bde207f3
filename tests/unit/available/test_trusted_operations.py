"""Which operations of a region's log go into records that only nodes may append: all but those of programs."""

from __future__ import annotations

from typing import get_args

import msgspec
import pytest

from onefold.available import ops
from onefold.codec import Op
from onefold.fold import authority

EXAMPLES = {
    ops.Do: ops.Do((ops.Put("r", "m", ((b"k", b"v"),)),), session={1: 2}),
    ops.Import: ops.Import(2, (b"effect",)),
    ops.Beat: ops.Beat(),
    ops.Admit: ops.Admit(1, "do"),
    ops.Evict: ops.Evict(1, 1),
    ops.Retire: ops.Retire(3),
    ops.Reclaim: ops.Reclaim(1, 2),
    ops.Accept: ops.Accept(1, 2),
    ops.Cap: ops.Cap(1, 2),
    ops.SyncBegin: ops.SyncBegin("do", 1, 2, b""),
    ops.SyncRows: ops.SyncRows("do", ()),
    ops.SyncEnd: ops.SyncEnd("do", 1),
    ops.Unseen: ops.Unseen(1, ()),
}


def test_every_operation_has_an_example() -> None:
    assert set(get_args(ops.AvailableOp)) == set(EXAMPLES)


@pytest.mark.parametrize("kind", EXAMPLES, ids=lambda kind: kind.__name__)
def test_all_but_those_of_programs_need_trust(kind: type) -> None:
    op = ops.available_op(EXAMPLES[kind], "do")
    assert authority.needs_trust([op], authority.IN_FORCE_VERSION) is (kind is not ops.Do)


def test_one_that_needs_it_is_enough() -> None:
    mine, other = (ops.available_op(EXAMPLES[kind]) for kind in (ops.Do, ops.Import))
    assert authority.needs_trust([mine, mine, other], 2) and not authority.needs_trust([mine, mine], 2)


def test_garbage_is_not_for_programs() -> None:
    for body in (b"", b"\x97", b"do", msgspec.msgpack.encode(["adm", 1, "do"])):
        assert authority.needs_trust([Op("ap", body)], 2)


def test_the_fold_has_the_name_that_is_meant() -> None:
    assert authority.AVAILABLE_FOLD == ops.AVAILABLE_FOLD
