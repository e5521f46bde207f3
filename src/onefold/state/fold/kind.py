"""What the state fold knows of a kind of collection, whichever it is.

A kind has a folder here with its operations and what they do, and one line in ``state.fold.kinds``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

from onefold.fold.api import Context, Store, StoreView
from onefold.state.fold import lock_table
from onefold.state.fold.outcomes import Outcome, Rejected

Natural = Annotated[int, msgspec.Meta(ge=0, le=(1 << 53) - 1)]
"""A number that every part of the fold can hold; anything else does not decode."""
Positive = Annotated[int, msgspec.Meta(ge=1, le=(1 << 53) - 1)]


class Write(msgspec.Struct, frozen=True, array_like=True):
    """A part of a transaction: it happens together with the others."""


class Operation(msgspec.Struct, frozen=True, array_like=True):
    """What happens alone, and gives an answer of its own."""


def _never_refused(store: StoreView, write: Any) -> Rejected | None:  # noqa: ARG001
    return None


def _is_none(*args: Any) -> Any:
    raise AssertionError(f"no kind of collection does {args}")


@dataclass
class Kind:
    """A kind of collection. All of its functions are pure."""

    writes: tuple[type[Write], ...] = ()
    """Each with a tag that no other one has: it is in stored records."""
    refusal: Callable[[StoreView, Any], Rejected | None] = _never_refused
    """Why a write cannot be done, if so. Looked at before any write of the same transaction is done; what it lets pass, and the
    locks of a prepared transaction then keep as it is, can be done."""
    apply: Callable[[Store, Context, Any], object] = _is_none
    """Does a write; its result."""
    want: Callable[[lock_table.Wants, Any], None] = lock_table.want_whole
    """The locks that a write in a transaction over several shards calls for. Default: the whole collection."""
    operations: tuple[type[Operation], ...] = ()
    """Likewise."""
    apply_op: Callable[[Store, Context, Any, int], Outcome] = _is_none
    """Does an operation at a fold version; its answer."""
    advance: Callable[[Store, Context], None] | None = None
    """Does what fold time brings, before the operations of a record."""
    history: frozenset[str] = frozenset()
    """Prefixes of tables that keep history."""
    version: int = 1
    """The highest fold version that it knows."""
