"""A fold that remembers how often each operation was applied: what the checks of exactly-once look at."""

from __future__ import annotations

import msgspec

from onefold.codec import Op
from onefold.fold.api import Context, Store, StoreView

_TOKEN_BYTES_MAX = 200


class Line(msgspec.Struct, frozen=True, array_like=True):
    """What the ledger knows of one token."""

    times: int
    offset: int
    place: int


class Ledger:
    """Each operation is a token; the table ``ledger/lines`` counts how often it was applied. Keeps history."""

    name = "ledger"
    version = 1
    history = frozenset({"ledger/lines"})

    def apply(self, store: Store, context: Context, body: bytes, fold_version: int) -> bytes:
        """Count the token; the outcome says where it was applied."""
        if not 0 < len(body) <= _TOKEN_BYTES_MAX:
            return b"refused"
        before = line(store, body)
        times = 1 if before is None else before.times + 1
        store.put("ledger/lines", body, msgspec.msgpack.encode(Line(times, context.offset, context.index)))
        return receipt(context.offset, context.index)


def receipt(offset: int, place: int) -> bytes:
    """The outcome of a token applied there."""
    return b"%d.%d" % (offset, place)


def entry(token: bytes, request_id: str | None = None) -> Op:
    """The operation that enters a token."""
    return Op("ledger", token, request_id)


def line(view: StoreView, token: bytes) -> Line | None:
    """What the ledger knows of the token."""
    found = view.get("ledger/lines", token)
    return None if found is None else msgspec.msgpack.decode(found, type=Line)


def lines(view: StoreView) -> dict[bytes, Line]:
    """The whole ledger."""
    return {key: msgspec.msgpack.decode(value, type=Line) for key, value in view.scan("ledger/lines")}
