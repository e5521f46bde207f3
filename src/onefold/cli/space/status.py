"""``onefold status``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from onefold.cli import output
from onefold.cli.jobs.live import live_object, live_ones
from onefold.cli.options import JsonOption, RegionOption, UrlOption, place

if TYPE_CHECKING:
    from onefold.compute.runs import Run
    from onefold.db import Database

_ALWAYS = ("running", "done", "failed", "cancelled")
"""States that are shown although no run is in them."""
_ENDED = ("done", "cancelled")


def status(
    ctx: typer.Context, region: RegionOption = None, url: UrlOption = None, as_json: JsonOption = False
) -> None:
    """Say what a space is and what happens in it.

    JSON: {url, version, bytes, shards, offsets, processes, tables, runs: {running, done, failed, cancelled}, running:
    [run, ...], live: [job, ...]} with runs as in `onefold runs`, and live jobs that are not over as in `onefold live`. runs has
    stopped and draining too when there are any; bytes is the size of its folder, null when it has none; offsets: the last record
    of each shard; processes: how many others have it open; log: {keep, trimmed, at_from}: the bytes of its logs that are kept
    (null: all), whether something was trimmed, and then the earliest time that db.at reaches; null on a cluster. On a cluster
    also {servers: [{name, address, up, version, region, problem}], streams: [{name, shard, region, leader, first, last,
    bytes, replicas: [{server, current, away, lag, silent}], problem}], nodes: [{name, state, region, zone, program, shards,
    halted, busy, slots}], nodes_only: {in_force, open, refused, kinds, last, regions: {region: {refused, kinds}}}}: whether what
    only nodes may append counts from nodes alone, the shards where not yet, and what was refused. A stream's region: of which it
    is an own log; null where it is of the whole space. regions: [{name, state, behind_writes, behind_s, clock_ahead_s,
    gone_bytes, conflicts}] as --region sees them, gone_bytes and conflicts of itself; null where its state cannot be read.
    """
    from onefold._version import __version__
    from onefold.cli.cluster import describing
    from onefold.display import text

    where = place(ctx, url, as_json, region)
    target = describing.cluster_url(where)
    outside: dict[str, Any] = {}
    if target is not None:
        describing.shown_url(target)  # wrong usage is reported first
        outside = describing.servers_and_streams(target)
        if not where.json:
            describing.print_cluster(outside)  # also when the state cannot be read
    with where.looking() as db:
        runs = db.runs()
        states: Counter[str] = Counter(run.state for run in runs)
        live = live_ones(runs)
        running = [run for run in runs if run.state == "running" and run not in live]
        lives = [run for run in live if run.state not in _ENDED]
        found: dict[str, Any] = {
            "url": db.url,
            "version": __version__,
            "bytes": _folder_bytes(db.url),
            "shards": len(db._shards),
            "offsets": [shard.applied for shard in db._shards],
            "processes": _others(db),
            "tables": len(db.tables()),
            "runs": {
                state: states.get(state, 0) for state in text.STATES if states.get(state) or state in _ALWAYS
            },
            "log": _log(db),
            "running": [output.run_object(run) for run in running],
            "live": [live_object(run) for run in lives],
            "regions": _regions(db, named=region is not None),
            **outside,
        }
        if target is not None:
            found["nodes"] = describing.nodes(db)
            found["nodes_only"] = describing.nodes_only(db, target)
        if where.json:
            output.emit(found)
            return
        if target is not None:
            describing.print_cluster({"servers": [], "streams": [], **_said_by_nodes(found)})
        _print(found, running)


def _print(found: dict[str, Any], running: list[Run]) -> None:
    """The same for people."""
    from onefold.display import words

    size = "" if found["bytes"] is None else f", {words.size(found['bytes'])}"
    print(f"space    {found['url']}{size}  (onefold {found['version']})")
    offsets = ", ".join(f"{offset:,}" for offset in found["offsets"][:8])
    print(
        f"shards   {found['shards']:,}, at offset {offsets}; {found['processes']:,} other processes have it open"
    )
    if found["log"] is not None:
        print(f"log      {_log_sentence(found['log'])}")
    for one in found["regions"] or ():
        print(f"region   {words.visible(one['name'])}  {_region_sentence(one)}")
    if found["regions"] is None:
        print("region   their logs cannot be read now")
    print(f"tables   {found['tables']:,}")
    counts = (f"{count:,} {state}" for state, count in found["runs"].items())
    print("runs     " + ", ".join(counts))
    for run in running:
        progress = run.progress()
        tasks = f"{progress.done:,}/{progress.total:,} tasks, {progress.workers} workers"
        age = words.duration(progress.elapsed)
        print(f"running  {run.id}  {words.visible(run.table_name)}  {tasks}, for {age}")
    for one in found["live"]:
        print(f"live     {words.visible(one['id'])}  {_live_sentence(one)}")


def _regions(db: Database, *, named: bool) -> list[dict[str, Any]] | None:
    """The regions; none where there are none, None where they cannot be read. ``named``: one of them was asked for."""
    import dataclasses

    from onefold.cli.collections.available import choose_region
    from onefold.errors import SpaceError, Unavailable

    if not choose_region(db):
        return []
    from onefold.state.available.status import look

    try:
        seen = look(db._available)
    except (Unavailable, SpaceError):
        if named:
            raise
        return None
    return [
        dataclasses.asdict(one)
        | {"conflicts": seen.conflicts if one.name == db._available.region.name else 0}
        for one in seen.regions
    ]


def _region_sentence(one: dict[str, Any]) -> str:
    from onefold.display import words

    told = str(one["state"])
    if one["behind_writes"]:
        told += f", {one['behind_writes']:,} writes are not exchanged ({words.duration(one['behind_s'])})"
    if one["clock_ahead_s"]:
        told += f", its clock is {words.duration(one['clock_ahead_s'])} ahead"
    if one["gone_bytes"]:
        told += f", {words.size(one['gone_bytes'])} of deleted items are kept"
    return told + (f", {one['conflicts']:,} conflicts so far" if one["conflicts"] else "")


def _live_sentence(one: dict[str, Any]) -> str:
    """How a live job stands: how far it is behind, and why."""
    from onefold.display import words

    status = one["status"]
    if status is None:
        return f"{one['state']}; {one['problem']}"
    behind = f"{status['lag']:,} records behind"
    if status["lag"]:
        behind += f" ({words.duration(status['lag_s'])})"
    watermark = "" if status["watermark"] is None else f", watermark {words.instant(status['watermark'])}"
    counted = "".join(f", {status[part]:,} {part}" for part in ("late", "dead", "ahead") if status[part])
    held = f"; held back: {words.visible(status['held_by'])}" if status["held_by"] else ""
    return f"{one['state']}, {status['workers']:,} workers, {behind}{watermark}{counted}{held}"


def _log(db: Database) -> dict[str, Any] | None:
    from onefold.space.kept_log import kept_log
    from onefold.space.log_prefix import as_time

    kept = kept_log(db._shards)
    if kept is None:
        return None
    at_from = as_time(kept.at_from_ms) if kept.trimmed else None
    return {"keep": kept.keep_bytes, "trimmed": kept.trimmed, "at_from": at_from}


def _log_sentence(log: dict[str, Any]) -> str:
    from onefold.display import words

    bound = "all of it is kept" if log["keep"] is None else f"{words.size(log['keep'])} of it are kept"
    if not log["trimmed"]:
        return f"{bound}; db.at reaches back to the beginning"
    return f"{bound}; db.at reaches back to {log['at_from']} (maps), and restore --to needs an earlier backup"


def _said_by_nodes(found: dict[str, Any]) -> dict[str, Any]:
    return {name: found[name] for name in ("nodes", "nodes_only")}


def _others(db: Database) -> int:
    """How many other processes have the space open."""
    from onefold.machine import members

    shard = db._shards[0]
    if shard.directory is None:
        return 0
    return len(members.notes(shard.directory / "members").keys() - {shard.member})


def _folder_bytes(url: str) -> int | None:
    folder = Path(url.removeprefix("sqlite://"))
    if not folder.is_dir():
        return None
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
