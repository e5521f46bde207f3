"""``onefold live`` and ``onefold late``: how live jobs stand, and what came too late for them."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from onefold.cli import output
from onefold.cli.endings import until_nobody_reads
from onefold.cli.options import ROWS_MAX, JsonOption, Place, UrlOption, place

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onefold.compute.live_runs import LiveRun
    from onefold.compute.runs import Run
    from onefold.db import Database

_SAMPLE_S: Final = 0.5
"""A rate is over so long."""
_EVERY_S: Final = 1.0
"""How often ``--watch`` looks."""


def live(
    ctx: typer.Context,
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="Only this job, or NAME/GENERATION.", show_default=False),
    ] = None,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch", help="Follow, until it is interrupted (exit code 0); of one job with its table."
        ),
    ] = False,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the live jobs of a space: how far each is, and what holds it back.

    JSON: a list of {id, name, generation, role, state, error, created, problem, status}; role: "current", "replay" (not swapped
    yet) or "replaced"; problem: null, or why this program cannot read it (then status is null). status: {watermark, lag, lag_s,
    rows, rate, late, dead, ahead, before_seam, left_out, commits, workers, state_bytes, held_by, partitions: [[input, partition,
    next, idle]]}. With --watch one such list a line, each second.
    """
    from onefold.display.text import ACTIVE

    where = place(ctx, url, as_json)
    with where.looking() as db:
        if watch:
            _watch(db, name, where)
            return
        runs = _runs(db, name)
        if any(run.state in ACTIVE for run in runs):
            time.sleep(_SAMPLE_S)
        found = [live_object(run) for run in runs]
        if where.json:
            output.emit(found)
        elif found:
            print_live(found)
        else:
            output.say(f"no live jobs in {db.url}")


def _runs(db: Database, name: str | None) -> Sequence[LiveRun]:
    return live_ones(db.runs()) if name is None else [open_live(db, name)]


def live_ones(runs: Sequence[Run]) -> Sequence[LiveRun]:
    """Those of live jobs. Where there are none, what these compute with is not imported, which takes a second."""
    if not any("/" in run.id for run in runs):  # NAME/GENERATION
        return []
    from onefold.compute.live_runs import LiveRun

    return [run for run in runs if isinstance(run, LiveRun)]


def open_live(db: Database, name: str) -> LiveRun:
    """The live job of that name. Raises InvalidArgument."""
    from onefold.compute.live_runs import LiveRun
    from onefold.errors import InvalidArgument

    try:
        run = db.open_run(name)
    except InvalidArgument:
        raise InvalidArgument(
            f"there is no live job {name!r} in {db.url}; `onefold live` lists what there is"
        ) from None
    if not isinstance(run, LiveRun):
        raise InvalidArgument(f"{name!r} is a run of a batch job; `onefold runs` shows it")
    return run


def live_object(run: LiveRun) -> dict[str, Any]:
    """A live job for ``--json``: see ``onefold live``."""
    from datetime import UTC, datetime

    from onefold.errors import OnefoldError

    name, _, number = run.id.rpartition("/")
    found: dict[str, Any] = {
        "id": run.id,
        "name": name,
        "generation": int(number),
        "role": run.role,
        "state": run.state,
        "error": run.error or None,
        "created": datetime.fromtimestamp(run.created_ms / 1000, UTC),
        "problem": None,
        "status": None,
    }
    try:
        found["state"], status = run.look()
        found["status"] = asdict(status)
    except OnefoldError as error:
        found["problem"] = str(error)
    return found


def print_live(found: Sequence[dict[str, Any]]) -> None:
    """The same as a grid for people."""
    heads = [("job", False), ("state", False), ("workers", True), ("events", True), ("rate", True)]
    heads += [("behind", True), ("watermark", False), ("late", True), ("dead", True), ("ahead", True)]
    output.grid([*heads, ("held back by", False)], [_cells(one) for one in found])


def _cells(one: dict[str, Any]) -> tuple[str, ...]:
    from onefold.display import words

    shown = one["name"] if one["role"] == "current" else f"{one['id']} ({one['role']})"
    status = one["status"]
    if status is None:
        return (words.visible(shown), one["state"], *([""] * 8), one["problem"])
    lag = f"{status['lag']:,}" + (f" ({words.duration(status['lag_s'])})" if status["lag"] else "")
    watermark = "–" if status["watermark"] is None else words.instant(status["watermark"])
    counts = (f"{status[part]:,}" for part in ("late", "dead", "ahead"))
    return (
        words.visible(shown),
        one["state"],
        f"{status['workers']:,}",
        f"{status['rows']:,}",
        words.rate(status["rate"], 1),
        lag,
        watermark,
        *counts,
        words.visible(status["held_by"]),
    )


def _watch(db: Database, name: str | None, where: Place) -> None:
    """Until it is interrupted, or the one job has ended."""
    try:
        if name is not None and not where.json:
            from onefold.display import follow

            follow(open_live(db, name), file=sys.stdout)
            return
        with until_nobody_reads():
            _print_again_and_again(db, name, where)
    except KeyboardInterrupt:
        return  # it is how one leaves


def _print_again_and_again(db: Database, name: str | None, where: Place) -> None:
    from onefold.display.text import ACTIVE

    known: dict[str, LiveRun] = {}  # a rate is that between two looks of one handle
    before: list[dict[str, Any]] | None = None
    while True:
        runs = [known.setdefault(run.id, run) for run in _runs(db, name)]
        found = [live_object(run) for run in runs]
        if where.json:
            output.emit(found, indent=None)
        elif found != before:
            if before is not None and sys.stdout.isatty():
                output.console().clear()
            print_live(found)
            before = found
        if name is not None and all(one["state"] not in ACTIVE for one in found):
            return
        time.sleep(_EVERY_S)


def late(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The live job.")],
    limit: Annotated[int, typer.Option(min=0, max=ROWS_MAX, help="At most so many, the last ones.")] = 100,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the events that came when every window of theirs was closed: they are in no window.

    JSON: {name, count, rows: [{the event's columns ..., _partition, _offset, _time, reason}]}.
    """
    where = place(ctx, url, as_json)
    with where.looking() as db:
        frame = open_live(db, name).result().late()
    shown = frame.tail(limit)
    if where.json:
        output.emit({"name": name, "count": frame.height, "rows": shown.to_dicts()})
        return
    from onefold.display import words

    if frame.height:
        rows = [tuple(words.value(cell) for cell in row) for row in shown.rows()]
        output.grid([(column, False) for column in shown.columns], rows)
    output.say(
        f"{frame.height:,} late events"
        + (f", of which the last {limit:,} are shown" if frame.height > limit else "")
    )
