"""Snapshots: a store with its offset in one file, and the hash by which replicas compare their state.

A snapshot is a SQLite file with the store's tables (never the log). It appears whole or not at all: written under another
name, synced, renamed. It carries the hash of its state, which is checked when it is loaded. The law: the fold of a whole log
equals the fold of what follows a snapshot, started from it.
"""

from __future__ import annotations

import contextlib
import hashlib
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import apsw

from onefold.errors import LogCorrupt, SpaceError
from onefold.files import whole_file
from onefold.store.exactly_once import ALL_CLIENTS
from onefold.store.formats import copy_in, copy_out
from onefold.store.tables import STORE_SCHEMA, in_history, oldest_readable, read_head

SNAPSHOT_FORMAT = 1
SNAPSHOT_APPLICATION_ID = 0x4F4E4653


class Snapshot(NamedTuple):
    """What a snapshot says about itself."""

    offset: int
    incarnation: str
    state_digest: str


def state_digest(con: apsw.Connection, history: frozenset[str]) -> str:
    """BLAKE2b of everything that decides what the folds do next: tables, their history, clients, requests, head.

    Equal for all replicas that have applied the same offsets, whatever ids and pages they use. Reads everything; call
    it in a read transaction.
    """
    digest = hashlib.blake2b(digest_size=16)
    head = read_head(con)
    for row in _state_rows(con, history, oldest_readable(head.applied)):
        for value in row:
            tag, data = _plain(value)
            digest.update(struct.pack(">cQ", tag, len(data)))
            digest.update(data)
        digest.update(b"\n")
    return digest.hexdigest()


def _state_rows(con: apsw.Connection, history: frozenset[str], oldest: int) -> Iterator[tuple[object, ...]]:
    yield tuple(read_head(con))
    tables = con.execute("SELECT id, name, since FROM tables ORDER BY name").fetchall()
    for tid, name, since in tables:
        # An error keeps this frame, and so what it has left open.
        with contextlib.closing(con.execute("SELECT k, v FROM kv WHERE t = ? ORDER BY k", (tid,))) as rows:
            first = rows.fetchone()
            if first is not None:
                yield ("table", name)
                yield first
                yield from rows
        if since is not None and in_history(history, str(name)):
            yield ("history", name, since)
            yield from con.execute(
                "SELECT k, offset, idx, v FROM history WHERE t = ? AND offset > ? ORDER BY k, offset, idx",
                (tid, oldest),
            )
    yield ("clients",)
    yield from con.execute(f"SELECT * FROM ({ALL_CLIENTS}) ORDER BY client")
    yield ("requests",)
    yield from con.execute("SELECT request, until_ms, outcome FROM requests ORDER BY request")
    yield ("folds",)
    yield from con.execute("SELECT name, since FROM folds ORDER BY name")


def _plain(value: object) -> tuple[bytes, bytes]:
    match value:
        case None:
            return b"n", b""
        case bytes():
            return b"b", value
        case str():
            return b"s", value.encode()
        case int():
            return b"i", str(value).encode()
    raise LogCorrupt(
        f"the store holds {type(value).__name__} where it cannot. Rebuild it from the log or a snapshot"
    )


def write_snapshot(con: apsw.Connection, path: Path, history: frozenset[str], incarnation: str) -> Snapshot:
    """Write the store of ``con`` to ``path``: as its read transaction shows it, which ends with it, else as it is now.

    Raises SpaceError when it cannot be written.
    """
    try:
        with whole_file(path) as half_made:
            half_made.touch()
            con.execute("ATTACH ? AS snapshot", (str(half_made),))
            try:
                made = _copy_out(con, history, incarnation)
            finally:
                if con.in_transaction:
                    con.execute("ROLLBACK")
                con.execute("DETACH snapshot")
    except (OSError, apsw.FullError, apsw.CantOpenError, apsw.IOError) as error:
        raise SpaceError(f"the snapshot {path} cannot be written: {error}") from error
    return made


def _copy_out(con: apsw.Connection, history: frozenset[str], incarnation: str) -> Snapshot:
    con.execute("PRAGMA snapshot.journal_mode=OFF")
    if not con.in_transaction:  # inside of one it cannot be set, and only costs a sync more
        con.execute("PRAGMA snapshot.synchronous=OFF")
    con.execute(f"PRAGMA snapshot.application_id={SNAPSHOT_APPLICATION_ID}")
    con.execute(f"PRAGMA snapshot.user_version={SNAPSHOT_FORMAT}")
    if not con.in_transaction:
        con.execute("BEGIN")
    copy_out(con, "snapshot")
    for tid, name in con.execute("SELECT id, name FROM snapshot.tables WHERE since IS NOT NULL").fetchall():
        if not in_history(history, str(name)):
            con.execute("UPDATE snapshot.tables SET since = NULL WHERE id = ?", (tid,))
            con.execute("DELETE FROM snapshot.versions WHERE t = ?", (tid,))
    made = Snapshot(read_head(con).applied, incarnation, state_digest(con, history))
    con.execute("CREATE TABLE snapshot.about(offset, incarnation, state_digest)")
    con.execute("INSERT INTO snapshot.about VALUES(?, ?, ?)", made)
    con.execute("COMMIT")
    return made


def load_snapshot(
    con: apsw.Connection,
    path: Path,
    history: frozenset[str],
    *,
    keep_all: bool = False,
    also: Sequence[str] = (),
) -> Snapshot:
    """Make the store of ``con`` (not in a transaction) what the snapshot holds.

    ``keep_all``: see ``SqlStore``. ``also``: statements that commit with it.

    Raises SpaceError for a file that is not a snapshot or a newer one, LogCorrupt when its content is damaged.
    """
    if not path.is_file():
        raise SpaceError(f"there is no snapshot {path}. Check the path")
    try:
        con.execute("ATTACH ? AS snapshot", (str(path),))
        if con.execute("PRAGMA snapshot.application_id").get != SNAPSHOT_APPLICATION_ID:
            raise SpaceError(f"{path} is not a snapshot of a space. Check the path")
        version = con.execute("PRAGMA snapshot.user_version").get
        if not isinstance(version, int) or version > SNAPSHOT_FORMAT:
            raise SpaceError(f"{path} has snapshot format {version}. Upgrade: pip install -U onefold")
        con.execute("BEGIN IMMEDIATE")
        copy_in(con, "snapshot")
        row = con.execute("SELECT offset, incarnation, state_digest FROM snapshot.about").fetchone()
        if row is None or state_digest(con, history) != row[2]:
            raise LogCorrupt(f"the snapshot {path} is damaged, or is of other folds. Use another")
        if keep_all:
            con.execute("UPDATE tables SET since = (SELECT applied FROM head) WHERE since IS NULL")
        for statement in also:
            con.execute(statement)
        con.execute("COMMIT")
        return Snapshot(*row)
    except (apsw.NotADBError, apsw.CorruptError, apsw.SQLError, UnicodeDecodeError) as error:
        raise LogCorrupt(f"the snapshot {path} is damaged ({error}). Use another") from error
    finally:
        if con.in_transaction:
            con.execute("ROLLBACK")
        with contextlib.suppress(apsw.SQLError):  # it was not attached
            con.execute("DETACH snapshot")


def create_store(con: apsw.Connection) -> None:
    """Make the store's tables on an empty connection."""
    for statement in STORE_SCHEMA:
        con.execute(statement)
