"""The state in other shapes than the one this program works on: in copies (snapshots, backups), and in files of earlier formats.

Copies have one permanent shape, so any release reads them: ``versions(t, k, offset, idx, v)`` without spans, every client in
``clients``, and a ``head`` that names none. Files of formats 1 and 2 have the same shape.
"""

from __future__ import annotations

import apsw

from onefold.log.sqlite.file import Earlier
from onefold.store.exactly_once import ALL_CLIENTS
from onefold.store.pending import SPAN
from onefold.store.tables import STATE_TABLES, STORE_SCHEMA

_HEAD = "id, applied, now_ms, fold_version, client_floor, log_first, digest, refused"
_RESIDENT = ("client TEXT", "number INTEGER", "client_offset INTEGER", "outcomes BLOB")
_VERSIONS = "t, k, offset, idx, v"
_SPANNED = f"t, offset / {SPAN}, k, offset, idx, v"
_CHANGED = {
    "versions": f"SELECT {_VERSIONS} FROM history",
    "clients": ALL_CLIENTS,
    "head": f"SELECT {_HEAD} FROM head",
}
COPIED_TABLES = ("tables", "kv", "versions", "clients", "requests", "folds", "digests", "refused", "head")

_VIEWS = (
    f"CREATE TEMP VIEW history(t, span, k, offset, idx, v) AS SELECT {_SPANNED} FROM main.versions",
    f"CREATE TEMP VIEW head AS SELECT {_HEAD}, NULL AS client, NULL AS number, NULL AS client_offset, NULL AS outcomes"
    " FROM main.head",
)


def copy_out(con: apsw.Connection, schema: str) -> None:
    """Write the state into new tables of an attached database, in the shape of copies."""
    for table in COPIED_TABLES:
        rows = _CHANGED.get(table, f"SELECT * FROM {table}")
        con.execute(f"CREATE TABLE {schema}.{table} AS {rows}")


def copy_in(con: apsw.Connection, schema: str) -> None:
    """Make the state that of a copy."""
    for table in STATE_TABLES:
        con.execute(f"DELETE FROM main.{table}")
    for table in COPIED_TABLES:
        if table == "versions":
            con.execute(f"INSERT INTO main.history SELECT {_SPANNED} FROM {schema}.versions")
        else:
            columns = ", ".join(str(row[1]) for row in con.execute(f"PRAGMA {schema}.table_info({table})"))
            con.execute(f"INSERT INTO main.{table}({columns}) SELECT {columns} FROM {schema}.{table}")


def _upgrade(con: apsw.Connection) -> None:
    """Bring the state in a file of an earlier format into this one's shape, in the caller's transaction."""
    if con.execute("SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name = 'versions'").get:
        for statement in STORE_SCHEMA:
            if "history" in statement:
                con.execute(statement)
        con.execute(f"INSERT INTO history SELECT {_SPANNED} FROM versions")
        con.execute("DROP TABLE versions")
        for column in _RESIDENT:
            con.execute(f"ALTER TABLE head ADD COLUMN {column}")


EARLIER = Earlier(_upgrade, _VIEWS)
"""For files of formats 1 and 2."""
