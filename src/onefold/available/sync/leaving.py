"""What the switch of a full sync leaves to be done, bit by bit in the operations that follow: see the package."""

from __future__ import annotations

from typing import Final

from onefold.available.rows import Tables, Working, conflict_decoder, names_decoder, read_row_key, tables_of

LATER_PER_OPERATION_MAX: Final = 100
"""So many conflicts are noted, or wishes looked at, in one operation."""
CLEARED_PER_OPERATION_MAX: Final = 2000
"""So many rows that nobody sees are dropped in one operation of a node. Those of programs drop none."""


def do_later(work: Working) -> None:
    """Conflicts that the full sync has met are noted, and wishes that it brought looked at."""
    me, store = work.me, work.store
    if not me.later:
        return
    table = work.tables.later
    entries = list(store.scan(table, limit=LATER_PER_OPERATION_MAX))
    for entry, data in entries:
        place, key = read_row_key(entry)
        if place:
            work.set_row(place, key, work.row(place, key))
        else:
            work.conflicts.append(conflict_decoder.decode(data))
        store.delete(table, entry)
    me.later = len(entries) == LATER_PER_OPERATION_MAX


def drop_generations(work: Working) -> None:
    """Drop rows of generations that nobody sees, and what has come of a full sync that is over."""
    me = work.me
    left = CLEARED_PER_OPERATION_MAX
    if not work.context.trusted:
        return
    if me.staged:
        left = _drop(work, work.tables.staged, left)
        me.staged = not left
    while me.cleared and left:
        left = _drop_generation(work, tables_of(me.cleared[0]), left)
        if left:
            del me.cleared[0]


def _drop_generation(work: Working, tables: Tables, left: int) -> int:
    for table in (
        tables.staged,
        tables.later,
        tables.due,
        tables.gone,
        tables.requests,
        tables.requests_due,
    ):
        left = _drop(work, table, left)
    for name, data in list(work.store.scan(tables.names, limit=left)):
        for place in names_decoder.decode(data):
            left = _drop(work, tables.rows + place, left)
        if not left:
            return 0
        work.store.delete(tables.names, name)
        left -= 1
    return left


def _drop(work: Working, table: str, left: int) -> int:
    """Drop the first rows of a table. How much is left of a bound: nothing if there may be more."""
    page = list(work.store.scan(table, limit=left)) if left else []
    if page:
        work.store.delete_range(table, page[0][0], page[-1][0] + b"\x00")
    return left - len(page)
