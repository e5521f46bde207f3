"""``onefold tables`` and ``onefold table``: results, also of what other processes are still computing."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onefold.cli import output
from onefold.cli.options import ROWS_MAX, JsonOption, UrlOption, place
from onefold.errors import OnefoldError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import polars as pl

    from onefold.compute.results.tables import Table, TableSnapshot, TableStatus
    from onefold.db import Database
    from onefold.display.model import TopRows

_VALUES_SHOWN_MAX = 4


def tables(ctx: typer.Context, url: UrlOption = None, as_json: JsonOption = False) -> None:
    """List the tables of a space.

    A table that cannot be read here is listed with the reason; it hides no other.

    JSON: a list of {name, done, total, exact, key_columns, value_columns, columns, columns_complete, error}; done and total
    count tasks, columns are those that are known without reading rows (not complete: others may come), error says why the
    table cannot be read here (else null). The table of a live job has {live, watermark, late, lag} too: whether the job runs,
    and how far it is; its done and total count records.
    """
    where = place(ctx, url, as_json)
    with where.looking() as db:
        found = db.tables()
        if where.json:
            output.emit([_head(table) for table in found])
            return
        if not found:
            output.say(f"no tables in {db.url}")
            return
        rows = []
        for head in map(_head, found):
            exact = "exact" if head["exact"] else "so far"
            if "live" in head:
                exact = "live" if head["live"] else "stopped"
            columns = ", ".join([*head["columns"], *([] if head["columns_complete"] else ["…"])])
            if head["error"] is not None:
                exact, columns = "unreadable", head["error"]
            rows.append((head["name"], f"{head['done']:,}/{head['total']:,}", exact, columns))
        output.grid([("table", False), ("tasks or records", True), ("", False), ("columns", False)], rows)


def table(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The table, as in `onefold tables`.")],
    top: Annotated[int, typer.Option(min=0, max=ROWS_MAX, help="How many rows.")] = 20,
    by: Annotated[
        str | None,
        typer.Option(
            help="Order by this column, largest first. Default: the first aggregate; of windows the newest.",
            show_default=False,
        ),
    ] = None,
    estimate: Annotated[
        str | None,
        typer.Option(help="Show the estimate of this aggregate, with n, N and reasons.", show_default=False),
    ] = None,
    level: Annotated[float, typer.Option(help="Confidence level of the intervals.")] = 0.95,
    watch: Annotated[
        bool, typer.Option("--watch", help="Follow until the run ends.", show_default=False)
    ] = False,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a table: exact when its run is done, else estimated with intervals.

    Works while other processes are still computing it.

    Of a live job: the estimate has its open windows too, as bounds, and `rows` what the job's `emit` shows. `onefold late` prints
    what came too late for it.

    JSON: {name, done, total, exact, key_columns, value_columns, columns, height, rows, estimate}, of a live job also {live,
    watermark, late, lag}. `rows` are
    the largest rows of the finished tasks as they are. `estimate` is what they say about the whole: {column,
    level, rows: [{keys ..., value, lo, hi, level, kind, n, N, reason}]}, or null for a table without
    aggregates. With --watch one such document a line, at every change.
    """
    where = place(ctx, url, as_json)
    if not 0 < level < 1:
        raise typer.BadParameter("must be between 0 and 1, for example 0.95", param_hint="--level")
    with where.looking() as db:
        found = db.table(name)
        if where.json:
            if watch:
                for moment in found.watch():
                    output.emit(_document(found, moment, top, by, estimate, level), indent=None)
            else:
                output.emit(_document(found, _now(found), top, by, estimate, level))
            return
        if watch:
            _follow(db, found, top, by)
        if estimate is not None:
            _print_estimate(found, estimate, top, level)
        elif not watch:
            _print(found, top, by, level)


def _now(table: Table) -> TableSnapshot:
    return next(iter(table.watch(timeout=0)))


def _head(table: Table) -> dict[str, Any]:
    status, problem = _status_of(table)
    keys: list[str] = []
    values: list[str] = []
    columns: list[str] = []
    complete = False
    with contextlib.suppress(OnefoldError):
        keys, values = list(table.key_columns), list(table.value_columns)
        columns, complete = table.known_columns()
    return {
        "name": table.name,
        **_live_part(status),
        "done": 0 if status is None else status.done,
        "total": 0 if status is None else status.total,
        "exact": status is not None and status.exact,
        "key_columns": keys,
        "value_columns": values,
        "columns": columns,
        "columns_complete": complete,
        "error": problem,
    }


def _status_of(table: Table) -> tuple[TableStatus | None, str | None]:
    """How far it is, and why it cannot be read here. A live job whose plan cannot be loaded here has only the second."""
    problem = table.problem
    try:
        return table.status, problem
    except OnefoldError as error:
        return None, problem or str(error)


def _live_part(found: object) -> dict[str, Any]:
    """What ``--json`` says of the tables of live jobs in addition."""
    from onefold.compute.live.tables.table import LiveTableSnapshot, LiveTableStatus

    if not isinstance(found, LiveTableStatus | LiveTableSnapshot):
        return {}
    return {"live": found.live, "watermark": found.watermark, "late": found.late, "lag": found.lag}


def _document(
    table: Table, moment: TableSnapshot, top: int, by: str | None, estimate: str | None, level: float
) -> dict[str, Any]:
    from onefold.display.model import keys_of_estimate

    keys, values = list(table.key_columns), list(table.value_columns)
    frame = moment.to_polars()
    order = by if by is not None else (values[0] if values and values[0] in frame.columns else None)
    column = estimate or (by if by in values else None) or (values[0] if values else None)
    estimated: dict[str, Any] | None = None
    if column is not None:
        frame_now = moment.estimate(column, level)
        known = keys_of_estimate(frame_now, table.key_columns)
        rows = _largest(frame_now, "value", known, top, table.name)
        estimated = {"column": column, "level": level, "rows": rows.to_dicts()}
    return {
        "name": table.name,
        **_live_part(moment),
        "done": moment.done,
        "total": moment.total,
        "exact": moment.exact,
        "key_columns": keys,
        "value_columns": values,
        "columns": frame.columns,
        "height": frame.height,
        "rows": _largest(frame, order, keys, top, table.name).to_dicts(),
        "estimate": estimated,
    }


def _largest(frame: pl.DataFrame, by: str | None, keys: Sequence[str], top: int, name: str) -> pl.DataFrame:
    from onefold.errors import InvalidArgument

    if by is None or not frame.width:
        return frame.head(top)
    if by not in frame.columns:
        there = ", ".join(frame.columns)
        raise InvalidArgument(f"table {name!r} has no column {by!r}; there are: {there}")
    ties = [key for key in keys if key != by]
    return frame.sort([by, *ties], descending=[True, *(False for _ in ties)], nulls_last=True).head(top)


def _print(table: Table, top: int, by: str | None, level: float) -> None:
    from onefold.display.model import Reader

    rows = Reader(table, by=by, n=top, level=level, values_max=_VALUES_SHOWN_MAX).read()
    _print_rows(table.name, rows)


def _print_rows(name: str, rows: TopRows) -> None:
    from onefold.display import terminal, text

    console = output.console()
    if rows.rows:
        console.print(terminal.draw_rows(rows))
    foot = [f"{name}: {rows.headline()}", text.more(rows)]
    output.say("; ".join(part for part in foot if part))


def _print_estimate(table: Table, column: str, top: int, level: float) -> None:
    from onefold.display import words
    from onefold.display.model import keys_of_estimate

    frame = table.estimate(column, level)
    keys = keys_of_estimate(frame, table.key_columns)
    shown = _largest(frame, "value", keys, top, table.name)
    heads = [(key, False) for key in keys] + [(column, True), ("lo", True), ("hi", True), ("kind", False)]
    rows = []
    for row in shown.rows(named=True):
        lo, hi = row["lo"], row["hi"]
        numbers = isinstance(lo, int | float) and isinstance(hi, int | float)
        spread = float(hi - lo) / 2 if numbers else None
        cells = [_number(row[part], spread) for part in ("value", "lo", "hi")]
        of = f"{row['n']} of {row['N']}" if row["N"] is not None else ""  # a live job has no splits
        rows.append((*(words.value(row[key]) for key in keys), *cells, row["kind"], of, row["reason"] or ""))
    output.grid([*heads, ("splits", True), ("why no interval", False)], rows)
    if frame.height > shown.height:
        output.say(f"… and {frame.height - shown.height:,} more")


def _number(item: Any, spread: float | None) -> str:
    from onefold.display import words

    return words.value(float(item), spread) if isinstance(item, int | float) and spread else words.value(item)


def _follow(db: Database, table: Table, top: int, by: str | None) -> None:
    from onefold.display import follow
    from onefold.display.text import ACTIVE

    running = [run for run in db.runs(table=table.name) if run.state in ACTIVE]
    if running:
        follow(running[0], top=(by, top), file=sys.stdout)
    else:
        _print(table, top, by, 0.95)
