"""``onefold status``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from onefold.cli import output
from onefold.cli.options import JsonOption, UrlOption, place

if TYPE_CHECKING:
    from onefold.db import Database


def status(ctx: typer.Context, url: UrlOption = None, as_json: JsonOption = False) -> None:
    """Say what a space is and what happens in it.

    JSON: {url, version, bytes, shards, offsets, processes, tables, runs: {running, done, failed, cancelled}, running:
    [run, ...]} with runs as in `onefold runs`; bytes is the size of its folder, null when it has none. offsets: the last
    record of each shard; processes: how many others have it open. On a cluster also {servers: [{name, address, up, version,
    region, problem}], streams: [{name, shard, leader, first, last, bytes, replicas: [{server, current, away, lag, silent}],
    problem}], nodes: [{name, state, region, zone, program, shards, halted, busy, slots}], nodes_only: {in_force, open, refused,
    kinds, last}}: whether what only nodes may append counts from nodes alone, the shards where not yet, and what was refused.
    """
    from onefold._version import __version__
    from onefold.cli import cluster
    from onefold.display import words

    where = place(ctx, url, as_json)
    target = cluster.cluster_url(where)
    outside: dict[str, Any] = {}
    if target is not None:
        cluster.shown_url(target)  # wrong usage is reported first
        outside = cluster.servers_and_streams(target)
        if not where.json:
            cluster.print_cluster(outside)  # also when the state cannot be read
    with where.open() as db:
        runs = db.runs()
        states = Counter(run.state for run in runs)
        running = [run for run in runs if run.state == "running"]
        found: dict[str, Any] = {
            "url": db.url,
            "version": __version__,
            "bytes": _folder_bytes(db.url),
            "shards": len(db._shards),
            "offsets": [shard.applied for shard in db._shards],
            "processes": _others(db),
            "tables": len(db.tables()),
            "runs": {state: states.get(state, 0) for state in ("running", "done", "failed", "cancelled")},
            "running": [output.run_object(run) for run in running],
            **outside,
        }
        if target is not None:
            found["nodes"] = cluster.nodes(db)
            found["nodes_only"] = cluster.nodes_only(db)
        if where.json:
            output.emit(found)
            return
        if target is not None:
            cluster.print_cluster({"servers": [], "streams": [], **_said_by_nodes(found)})
        size = "" if found["bytes"] is None else f", {words.size(found['bytes'])}"
        print(f"space    {db.url}{size}  (onefold {__version__})")
        offsets = ", ".join(f"{offset:,}" for offset in found["offsets"][:8])
        print(
            f"shards   {found['shards']:,}, at offset {offsets}; {found['processes']:,} other processes have it open"
        )
        print(f"tables   {found['tables']:,}")
        print("runs     " + ", ".join(f"{count:,} {state}" for state, count in found["runs"].items()))
        for run in running:
            progress = run.progress()
            tasks = f"{progress.done:,}/{progress.total:,} tasks, {progress.workers} workers"
            age = words.duration(progress.elapsed)
            print(f"running  {run.id}  {words.visible(run.table_name)}  {tasks}, for {age}")


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
