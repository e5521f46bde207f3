"""Exactly once: which records count, decided alike by every replica.

A client numbers its records from 1 without gaps and has one in flight. So one row per client, its last number and that
record's outcomes, is enough to drop every copy that a retry left in the log and to answer the retry. A number beyond
the next is refused: taking it would make the missing one look like a duplicate when it surfaces ("dedupe by maximum
only" loses writes that way).

Clients are forgotten by a record that moves the *expiry floor*. A client's id holds the offset at which it was born, so
an unknown id below the floor may be a forgotten one: ``EXPIRED``, its past is unknown. A ``request_id`` is a name that the
user gave to one operation; its outcome is kept for ``config.REQUEST_ID_RETENTION_S`` of fold time.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

import apsw
import msgspec

from onefold import config
from onefold.ids import born_at


class Verdict(enum.Enum):
    """What a record is to the client's row."""

    APPLY = "apply"
    DUPLICATE = "duplicate"
    """It was applied before; the outcomes of the client's last record are kept."""
    GAP = "gap"
    """An earlier number is missing; nothing was applied."""
    EXPIRED = "expired"
    """The client may have been forgotten; nothing was applied."""
    MALFORMED = "malformed"
    """No such client can exist."""


class Known(NamedTuple):
    """The row of one client."""

    number: int
    offset: int
    outcomes: tuple[bytes, ...]


def judge(client: str, number: int, known: Known | None, *, offset: int, floor: int) -> Verdict:
    """The verdict on record ``number`` of ``client`` at ``offset``. ``floor``: the expiry floor."""
    if number < 1:
        return Verdict.MALFORMED
    if known is None:
        try:
            born = born_at(client)
        except ValueError:
            return Verdict.MALFORMED
        if born >= offset or born < 0:
            return Verdict.MALFORMED
        if born < floor:
            return Verdict.EXPIRED
        return Verdict.APPLY if number == 1 else Verdict.GAP
    if number <= known.number:
        return Verdict.DUPLICATE
    return Verdict.APPLY if number == known.number + 1 else Verdict.GAP


_outcomes = msgspec.msgpack.Decoder(tuple[bytes, ...])
_encoder = msgspec.msgpack.Encoder()


_CLIENTS_REMEMBERED = 16


class Memory:
    """The clients' rows and the kept outcomes, as one transaction sees and changes them. In SQLite after ``flush``."""

    def __init__(self, con: apsw.Connection) -> None:
        self._con = con
        self._rows: dict[str, Known] = {}
        """Of clients that were asked for lately."""
        self._clients: dict[str, Known] = {}
        """Those of them that SQLite does not have yet."""
        self._requests: dict[str, tuple[int, bytes]] = {}

    def known(self, client: str) -> Known | None:
        """The client's row."""
        found = self._clients.get(client) or self._rows.get(client)
        if found is None:
            found = load(self._con, client)
            if found is not None:
                self._rows[client] = found
        return found

    def save(self, client: str, known: Known) -> None:
        """Remember the client's last record."""
        self._clients[client] = known

    def requested(self, request_id: str, now_ms: int) -> bytes | None:
        """The kept outcome of a named operation; None when it is unknown or older than the retention."""
        kept = self._requests.get(request_id)
        if kept is None:
            return requested(self._con, request_id, now_ms)
        until_ms, outcome = kept
        return outcome if until_ms > now_ms else None

    def keep_request(self, request_id: str, now_ms: int, outcome: bytes) -> None:
        """Keep a named operation's outcome for the retention."""
        self._requests[request_id] = (now_ms + int(config.REQUEST_ID_RETENTION_S * 1000), outcome)

    def forget_below(self, floor: int) -> None:
        """Remove the clients whose last record is below the floor."""
        self.flush()
        self._rows.clear()
        self._con.execute("DELETE FROM clients WHERE offset < ?", (floor,))

    def prune_requests(self, now_ms: int) -> None:
        """Remove what is past its retention (it was no longer given out before either)."""
        self.flush()
        self._con.execute("DELETE FROM requests WHERE until_ms <= ?", (now_ms,))

    def flush(self) -> None:
        """Bring everything into SQLite."""
        for client, known in self._clients.items():
            self._con.execute(
                "INSERT INTO clients VALUES(?1, ?2, ?3, ?4) ON CONFLICT(client) DO UPDATE SET number = ?2, offset = ?3,"
                " outcomes = ?4",
                (client, known.number, known.offset, _encoder.encode(known.outcomes)),
            )
        for request_id, (until_ms, outcome) in self._requests.items():
            self._con.execute(
                "INSERT OR REPLACE INTO requests VALUES(?, ?, ?)", (request_id, until_ms, outcome)
            )
        if len(self._rows) + len(self._clients) > _CLIENTS_REMEMBERED:
            self._rows.clear()
        self._rows.update(self._clients)
        self._clients.clear()
        self._requests.clear()

    def forget(self) -> None:
        """The transaction was rolled back, or others may have written."""
        self._rows.clear()
        self._clients.clear()
        self._requests.clear()


def load(con: apsw.Connection, client: str) -> Known | None:
    """The client's row."""
    row = con.execute("SELECT number, offset, outcomes FROM clients WHERE client = ?", (client,)).fetchone()
    return None if row is None else Known(row[0], row[1], _outcomes.decode(row[2]))


def requested(con: apsw.Connection, request_id: str, now_ms: int) -> bytes | None:
    """The kept outcome of a named operation; None when it is unknown or older than the retention."""
    row = con.execute(
        "SELECT outcome FROM requests WHERE request = ? AND until_ms > ?", (request_id, now_ms)
    ).fetchone()
    return None if row is None else row[0]


def count(con: apsw.Connection) -> int:
    """How many clients are known."""
    return int(str(con.execute("SELECT count(*) FROM clients").get))
