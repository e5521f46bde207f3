"""How the state fold keeps a queue: one table for each, and one for what is held back in all of them.

In the queue's table the first byte of a key says what it is. A message is *exposed* (ready, held back or in flight) or, when
another one of its key is, *waiting* behind that one in a list of the key's own. Anyone who looks for a ready message reads the
first row of one range, however many messages there are.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import msgspec

from onefold import config
from onefold.fold.api import Store, StoreView
from onefold.invariants import invariant

QUEUES = "state/q/"
QUEUE_DUE = "state/qdue"
"""Messages that are held back: (due ms, queue, number) -> ``Tries``."""

HEAD = b"h"
MESSAGE = b"m"
"""+ number -> ``Body``."""
READY = b"r"
"""+ number -> ``Tries``, or nothing when it was never tried."""
FLIGHT = b"f"
"""+ number -> ``Flight``."""
EXPOSED = b"x"
"""+ key -> nothing: a message of this key is exposed."""
WAITING = b"g"
"""+ key and number -> nothing."""
DEAD = b"d"
"""+ number -> ``Letter``."""
OUTBOX = b"o"
"""+ number -> ``Letter``, to be forwarded to another shard."""

_NUMBER = struct.Struct(">Q")
_LENGTH = struct.Struct(">I")
_COUNTS = struct.Struct(">7Q")
_DUE = struct.Struct(">QH")


class Counts:
    """What is in a queue, by number; and the number that the next message gets. None is below zero, and every message that is
    there is counted once."""

    __slots__ = ("dead", "delayed", "flight", "next", "outbox", "ready", "waiting")

    def __init__(self, data: bytes | None) -> None:
        fields: tuple[int, ...] = (1, 0, 0, 0, 0, 0, 0) if data is None else _COUNTS.unpack(data)
        self.next: int = fields[0]
        self.ready, self.delayed, self.waiting, self.flight, self.dead, self.outbox = fields[1:]

    @property
    def live(self) -> int:
        """How many messages are still to be acknowledged."""
        return self.ready + self.delayed + self.waiting + self.flight

    def encode(self) -> bytes:
        """The row."""
        counts = (self.ready, self.delayed, self.waiting, self.flight, self.dead, self.outbox)
        invariant(min(counts) >= 0, "no queue has fewer than no messages", next=self.next, counts=counts)
        return _COUNTS.pack(self.next, *counts)


class Tries(msgspec.Struct, frozen=True, array_like=True):
    """How often a message was tried, and what the last tries ended with."""

    attempts: int = 0
    errors: tuple[str, ...] = ()

    def failed(self, error: str) -> Tries:
        """One more."""
        kept = (*self.errors, error[: config.QUEUE_ERROR_CHARS_MAX])
        return Tries(self.attempts + 1, kept[-config.QUEUE_ERRORS_KEPT :])


class Body(msgspec.Struct, frozen=True, array_like=True):
    """What was put."""

    value: bytes
    key: bytes | None = None
    due_ms: int = 0
    origin: tuple[str, int, int] | None = None
    errors: tuple[str, ...] = ()


class Flight(msgspec.Struct, frozen=True, array_like=True):
    """A message that somebody has."""

    epoch: int
    member: str
    lease_ms: int
    max_attempts: int
    tries: Tries
    """Before this one."""
    dead_letter: str | None
    forward_to: str | None


class Letter(msgspec.Struct, frozen=True, array_like=True):
    """A message whose last attempt has failed."""

    value: bytes
    key: bytes | None
    tries: Tries
    forward_to: str | None = None


_encoder = msgspec.msgpack.Encoder()
_tries: msgspec.msgpack.Decoder[Tries] = msgspec.msgpack.Decoder(Tries)
_body: msgspec.msgpack.Decoder[Body] = msgspec.msgpack.Decoder(Body)
_flight: msgspec.msgpack.Decoder[Flight] = msgspec.msgpack.Decoder(Flight)
_letter: msgspec.msgpack.Decoder[Letter] = msgspec.msgpack.Decoder(Letter)
NEVER_TRIED = Tries()


def queue_table(name: str) -> str:
    """The table of a queue."""
    return QUEUES + name


def numbered(kind: bytes, number: int) -> bytes:
    """The key of a message's row of that kind."""
    return kind + _NUMBER.pack(number)


def number_of(key: bytes) -> int:
    """The number at the end of a row's key."""
    return int(_NUMBER.unpack(key[-8:])[0])


def after_kind(kind: bytes) -> bytes:
    """The end of the range of a kind's rows."""
    return bytes((kind[0] + 1,))


def waiting_prefix(key: bytes) -> bytes:
    """What the keys of the rows of the messages waiting behind ``key`` start with, before the number."""
    return WAITING + _LENGTH.pack(len(key)) + key


def due_key(due_ms: int, name: str, number: int) -> bytes:
    """Sorts by time."""
    encoded = name.encode()
    return _DUE.pack(due_ms, len(encoded)) + encoded + _NUMBER.pack(number)


def read_due_key(data: bytes) -> tuple[int, str, int]:
    """When, which queue, which message."""
    due_ms, length = _DUE.unpack_from(data)
    return due_ms, data[10 : 10 + length].decode(), number_of(data)


def encode(row: Tries | Body | Flight | Letter) -> bytes:
    """The row's bytes."""
    return _encoder.encode(row)


def read_tries(data: bytes) -> Tries:
    """From a ready or held back message's row."""
    return _tries.decode(data) if data else NEVER_TRIED


def encode_tries(tries: Tries) -> bytes:
    """For such a row."""
    return _encoder.encode(tries) if tries.attempts else b""


def read_counts(store: StoreView, table: str) -> Counts:
    """The counts of the queue with that table."""
    return Counts(store.get(table, HEAD))


def write_counts(store: Store, table: str, counts: Counts) -> None:
    """Set them."""
    store.put(table, HEAD, counts.encode())


def read_body(store: StoreView, table: str, number: int) -> Body:
    """The message of that number; it must be there."""
    found = store.get(table, numbered(MESSAGE, number))
    return Body(b"") if found is None else _body.decode(found)


def read_flight(store: StoreView, table: str, number: int) -> Flight | None:
    """The lease of that message, if somebody has it."""
    found = store.get(table, numbered(FLIGHT, number))
    return None if found is None else _flight.decode(found)


def flights(view: StoreView, table: str, limit: int) -> list[tuple[int, Flight]]:
    """The messages that somebody has, by number."""
    found = view.scan(table, FLIGHT, after_kind(FLIGHT), limit=limit)
    return [(number_of(key), _flight.decode(row)) for key, row in found]


def letters(view: StoreView, table: str, kind: bytes, limit: int) -> list[tuple[int, Letter]]:
    """Dead letters that are kept aside (``DEAD``) or to be forwarded (``OUTBOX``), by number."""
    found = view.scan(table, kind, after_kind(kind), limit=limit)
    return [(number_of(key), _letter.decode(row)) for key, row in found]


def bodies(view: StoreView, table: str) -> Iterator[Body]:
    """The messages of a queue that are not yet acknowledged, by number."""
    return (_body.decode(row) for _, row in view.scan(table, MESSAGE, after_kind(MESSAGE)))
