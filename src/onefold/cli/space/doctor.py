"""``onefold doctor``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onefold.cli import output
from onefold.cli.options import JsonOption, Place, RegionOption, UrlOption, place

if TYPE_CHECKING:
    from onefold.db import Database
    from onefold.doctor.embedded import Check


def doctor(
    ctx: typer.Context,
    deep: Annotated[
        bool,
        typer.Option(
            "--deep",
            help="Fold a large log again too, and compare all blobs; on a cluster, look for every blob.",
            show_default=False,
        ),
    ] = False,
    fix: Annotated[
        bool,
        typer.Option(
            "--fix",
            help="Do what is due: remove blobs that nothing refers to any more, and such as are of no job and older than a day.",
            show_default=False,
        ),
    ] = False,
    region: RegionOption = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a space and say what to do: files, log, state against log, leftovers, disk, clock, regions.

    On a cluster: servers, streams, the records of every copy, nodes. What only the servers' system user can see (disks, sync)
    needs its seed's file in ONEFOLD_NATS_SYSTEM_NKEY; a cluster of `onefold up` has it.

    Changes nothing without --fix.

    Exit code 1 when there is a problem (not for a warning). JSON: {url, problems, warnings, checks: [{name, status, found,
    advice}]} with status ok, warn, problem or skipped.
    """
    from onefold.cli.cluster import describing

    where = place(ctx, url, as_json, region)
    found = []
    target = describing.cluster_url(where)
    for check in (
        _checks(where, deep=deep, fix=fix)
        if target is None
        else describing.checks(where, target, deep=deep, fix=fix)
    ):
        found.append(check)
        if not where.json:
            print(f"{_MARKS[check.status]}  {check.name}: {check.found}")
            if check.advice:
                print(f"{'':9}→ {check.advice}")
    problems = sum(check.status == "problem" for check in found)
    warnings = sum(check.status == "warn" for check in found)
    if where.json:
        from onefold.db import target_of

        place_shown = target_of(where.url) if target is None else describing.shown_url(target)
        shown: dict[str, Any] = {"url": place_shown, "problems": problems, "warnings": warnings}
        output.emit(shown | {"checks": [check._asdict() for check in found]})
    else:
        skipped = ", ".join(check.name for check in found if check.status == "skipped")
        well = f"all that was looked at is well; skipped: {skipped}" if skipped else "all is well"
        output.say(f"{problems} problems, {warnings} warnings" if problems or warnings else well)
    if problems:
        raise typer.Exit(1)


_MARKS = {"ok": "ok     ", "warn": "warning", "problem": "PROBLEM", "skipped": "skipped"}


def _checks(where: Place, *, deep: bool, fix: bool) -> Iterator[Check]:
    from onefold.doctor.embedded import Check
    from onefold.errors import LogCorrupt

    try:
        db = where.open() if fix else where.looking()
    except LogCorrupt as error:
        yield Check("open", "problem", str(error), "Keep a copy of the folder, then do as it says")
        return
    with db:
        yield from _look(db, deep=deep, fix=fix)


def _look(db: Database, *, deep: bool, fix: bool) -> Iterator[Check]:
    from onefold.doctor.embedded import Check, check_space
    from onefold.doctor.regions import check_regions_of
    from onefold.doctor.state import check_state
    from onefold.doctor.state_blobs import check_garbage
    from onefold.errors import OnefoldError
    from onefold.folds import all_blob_tables, folds

    try:
        tables = all_blob_tables()
        yield from check_space(db._shards, folds, deep=deep, blob_tables=tables, fix=fix)
        yield from check_state(db._state)
        yield check_garbage(db._state, db._engine.blobs, fix=fix)
        yield from check_regions_of(db)
    except OnefoldError as error:
        yield Check("reading", "problem", str(error), "Keep a copy of the folder, then do as it says")
