"""What the state fold knows of a kind of collection, whichever it is.

A kind has a folder here with its operations and what they do, and one line in ``state.fold.kinds``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final

import msgspec

from onefold.fold.api import Context, Store, StoreView
from onefold.state.fold import lock_table
from onefold.state.fold.outcomes import Outcome, Rejected

NATURAL_MAX: Final = (1 << 53) - 1
Natural = Annotated[int, msgspec.Meta(ge=0, le=NATURAL_MAX)]
"""A number that every part of the fold can hold; anything else does not decode."""
Positive = Annotated[int, msgspec.Meta(ge=1, le=NATURAL_MAX)]


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
    naming: tuple[type[Write], ...] = ()
    """Those of the writes that name a blob, in ``blob``. A prepared transaction names it too, so that it is kept until that one
    is resolved."""
    single: tuple[type[Write], ...] = ()
    """Those of the writes of which a ``Commit`` has at most one, and a transaction over several shards none: whether one can be
    done depends on what another one of them changes."""
    operations: tuple[type[Operation], ...] = ()
    """Likewise."""
    apply_op: Callable[[Store, Context, Any, int], Outcome] = _is_none
    """Does an operation at a fold version; its answer."""
    advance: Callable[[Store, Context], int] | None = None
    """Does what fold time brings, before the operations of a record."""
    history: frozenset[str] = frozenset()
    """Prefixes of tables that keep history."""
    version: int = 1
    """The highest fold version that it knows."""
    since: int = 1
    """The fold version from which it exists, all but what is in ``later``. Before it, an operation that holds one of its writes,
    and each of its operations, is malformed, as it is to programs that do not know the kind."""
    later: Mapping[type, int] = field(default_factory=dict)
    """The same of those of its writes and operations that came later than the kind."""
