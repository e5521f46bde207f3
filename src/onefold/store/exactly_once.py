"""Exactly once: which records count, decided alike by every replica.

A client numbers its records from 1 without gaps and has one in flight. So one row per client, its last number and that
record's outcomes, is enough to drop every copy that a retry left in the log and to answer the retry. A number beyond
the next is refused: taking it would make the missing one look like a duplicate when it surfaces ("dedupe by maximum
only" loses writes that way).

The client whose record is the newest has its row in ``head``, which every commit writes anyway: so as long as one process
writes, its commits touch one table less. The row that it may have in ``clients`` besides is an older one, and does not count.

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


class ClientRow(NamedTuple):
    """The row of one client."""

    number: int
    offset: int
    outcomes: tuple[bytes, ...]


def judge(client: str, number: int, known: ClientRow | None, *, offset: int, floor: int) -> Verdict:
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


ALL_CLIENTS = (
    "SELECT client, number, offset, outcomes FROM clients WHERE client IS NOT (SELECT client FROM head)"
    " UNION ALL SELECT client, number, client_offset, outcomes FROM head WHERE client IS NOT NULL"
)
"""The row of every client."""
_ONE_CLIENT = (
    "SELECT number, client_offset, outcomes FROM head WHERE client = ?1"
    " UNION ALL SELECT number, offset, outcomes FROM clients WHERE client = ?1 LIMIT 1"
)
_UPSERT = " ON CONFLICT(client) DO UPDATE SET number = excluded.number, offset = excluded.offset, outcomes = excluded.outcomes"
_SAVE = f"INSERT INTO clients VALUES(?, ?, ?, ?){_UPSERT}"
_MOVE_OUT = (
    f"INSERT INTO clients SELECT client, number, client_offset, outcomes FROM head WHERE client IS NOT ? AND client IS NOT NULL"
    f"{_UPSERT}"
)
_outcomes = msgspec.msgpack.Decoder(tuple[bytes, ...])
_encoder = msgspec.msgpack.Encoder()


_CLIENTS_REMEMBERED = 16
Resident = tuple[str, int, int, bytes]
"""The columns of ``head`` that are a client's row."""


class Memory:
    """The clients' rows and the kept outcomes, as one transaction sees and changes them. In SQLite after ``flush``, but for the
    newest client's row, which that returns."""

    def __init__(self, con: apsw.Connection) -> None:
        self._con = con
        self._rows: dict[str, ClientRow] = {}
        """Of clients that were asked for lately."""
        self._clients: dict[str, ClientRow] = {}
        """Those of them that SQLite does not have yet."""
        self._resident: str | None = None
        """Whose row is in ``head``, if that is known."""
        self._requests: dict[str, tuple[int, bytes]] = {}

    def known(self, client: str) -> ClientRow | None:
        """The client's row."""
        found = self._clients.get(client) or self._rows.get(client)
        if found is None:
            found = load(self._con, client)
            if found is not None:
                self._rows[client] = found
        return found

    def save(self, client: str, known: ClientRow) -> None:
        """Remember the client's last record."""
        self._clients.pop(client, None)
        self._clients[client] = known  # the newest is the last of them

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
        resident = self.flush()
        if resident is not None:
            self._con.execute(
                "UPDATE head SET client = ?, number = ?, client_offset = ?, outcomes = ?", resident
            )
        self._rows.clear()
        self._con.execute("DELETE FROM clients WHERE offset < ?", (floor,))
        self._con.execute(
            "UPDATE head SET client = NULL, number = NULL, client_offset = NULL, outcomes = NULL WHERE client_offset < ?",
            (floor,),
        )

    def prune_requests(self, now_ms: int) -> None:
        """Remove what is past its retention (it was no longer given out before either)."""
        self._flush_requests()
        self._con.execute("DELETE FROM requests WHERE until_ms <= ?", (now_ms,))

    def flush(self) -> Resident | None:
        """Bring everything into SQLite, but for the row that has to go into ``head`` now: None when that stays as it is."""
        if self._requests:
            self._flush_requests()
        if not self._clients:
            return None
        client, newest = self._clients.popitem()
        if client != self._resident:
            self._con.execute(_MOVE_OUT, (client,))
            self._resident = client
        if self._clients:
            self._con.executemany(_SAVE, [_row(*item) for item in self._clients.items()])
        if len(self._rows) + len(self._clients) > _CLIENTS_REMEMBERED:
            self._rows.clear()
        self._rows.update(self._clients)
        self._rows[client] = newest
        self._clients.clear()
        return _row(client, newest)

    def _flush_requests(self) -> None:
        for request_id, (until_ms, outcome) in self._requests.items():
            self._con.execute(
                "INSERT OR REPLACE INTO requests VALUES(?, ?, ?)", (request_id, until_ms, outcome)
            )
        self._requests.clear()

    def forget(self) -> None:
        """The transaction was rolled back, or others may have written."""
        self._rows.clear()
        self._clients.clear()
        self._requests.clear()
        self._resident = None


def _row(client: str, known: ClientRow) -> Resident:
    return client, known.number, known.offset, _encoder.encode(known.outcomes)


def load(con: apsw.Connection, client: str) -> ClientRow | None:
    """The client's row."""
    row = con.execute(_ONE_CLIENT, (client,)).fetchone()
    return None if row is None else ClientRow(row[0], row[1], _outcomes.decode(row[2]))


def requested(con: apsw.Connection, request_id: str, now_ms: int) -> bytes | None:
    """The kept outcome of a named operation; None when it is unknown or older than the retention."""
    row = con.execute(
        "SELECT outcome FROM requests WHERE request = ? AND until_ms > ?", (request_id, now_ms)
    ).fetchone()
    return None if row is None else row[0]


def count(con: apsw.Connection) -> int:
    """How many clients are known."""
    return int(str(con.execute(f"SELECT count(*) FROM ({ALL_CLIENTS})").get))
