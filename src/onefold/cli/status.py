"""``onefold status``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import typer

from onefold.cli import output
from onefold.cli.options import JsonOption, UrlOption, place


def status(ctx: typer.Context, url: UrlOption = None, as_json: JsonOption = False) -> None:
    """Say what a space is and what goes on in it.

    JSON: {url, version, bytes, tables, runs: {running, done, failed, cancelled}, running: [run, ...]} with
    runs as in `onefold runs`; bytes is the size of its folder, null when it has none.
    """
    from onefold._version import __version__
    from onefold.display import words

    where = place(ctx, url, as_json)
    with where.open() as db:
        runs = db.runs()
        states = Counter(run.state for run in runs)
        running = [run for run in runs if run.state == "running"]
        found: dict[str, Any] = {
            "url": db.url,
            "version": __version__,
            "bytes": _folder_bytes(db.url),
            "tables": len(db.tables()),
            "runs": {state: states.get(state, 0) for state in ("running", "done", "failed", "cancelled")},
            "running": [output.run_object(run) for run in running],
        }
        if where.json:
            output.emit(found)
            return
        size = "" if found["bytes"] is None else f", {words.size(found['bytes'])}"
        print(f"space    {db.url}{size}  (onefold {__version__})")
        print(f"tables   {found['tables']:,}")
        print("runs     " + ", ".join(f"{count:,} {state}" for state, count in found["runs"].items()))
        for run in running:
            progress = run.progress()
            tasks = f"{progress.done:,}/{progress.total:,} tasks, {progress.workers} workers"
            age = words.duration(progress.elapsed)
            print(f"running  {run.id}  {words.visible(run.table_name)}  {tasks}, for {age}")


def _folder_bytes(url: str) -> int | None:
    folder = Path(url.removeprefix("sqlite://"))
    if not folder.is_dir():
        return None
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
