"""``onefold demo``: the main job on real files, watched, with a worker killed on the way, and checked."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from onefold import config
from onefold.arguments import shown
from onefold.cli import output
from onefold.cli.jobs import demo_job
from onefold.cli.options import JsonOption, place

if TYPE_CHECKING:
    import polars as pl

    from onefold.cli.jobs.demo_job import PlainResult, Sample
    from onefold.compute.runs import Run
    from onefold.db import Database
    from onefold.display.shown import Progress

DEFAULT_MEGABYTES: Final = 64
"""About 20 s of parsing for one core of 2020."""
WIDTH: Final = 79


def demo(
    ctx: typer.Context,
    directory: Annotated[
        Path | None,
        typer.Option(
            "--dir",
            metavar="SPACE",
            help="Keep the space there. Default: a temporary folder.",
            show_default=False,
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=config.JOB_WORKERS_MAX,
            help="Worker processes. Default: cores, at least 2.",
            show_default=False,
        ),
    ] = None,
    paths: Annotated[
        list[Path] | None,
        typer.Option(
            help="Look for Python files there. Default: this Python's library and packages.",
            show_default=False,
        ),
    ] = None,
    megabytes: Annotated[
        float, typer.Option(min=0.001, max=1e6, help="Take files of at most this size together.")
    ] = DEFAULT_MEGABYTES,
    as_json: JsonOption = False,
) -> None:
    """See a job run on real files: live estimates, a killed worker, an exact result.

    Parses the Python files of this machine, counts their syntax constructs, and checks the result against a
    plain loop. Fails when anything differs.

    JSON: {files, bytes, files_found, bytes_found, workers, tasks, seconds, plain_seconds, killed_pid,
    killed_after_tasks, retried, constructs, unparsed, same, differences, intervals: {after_splits, shown,
    held}, again: {seconds, reused, total}, top: [{construct, n, files, per_file}], space}.
    """
    talk = _Talk(place(ctx, None, as_json).json)
    roots = paths or demo_job.default_roots()
    for root in roots:
        if not os.path.exists(root):  # noqa: PTH110 - a name that is too long is not there
            raise typer.BadParameter(f"{shown(str(root))} is not there", param_hint="--paths")
    files = demo_job.sample(roots, int(megabytes * 1e6))
    if not files.paths:
        talk.fail(f"no Python files of at most {megabytes:g} MB in {', '.join(map(str, roots))}")
    try:
        with _space(directory) as folder:
            code = _Demo(
                talk, files, workers or max(2, _cores()), folder, kept=directory is not None
            ).perform()
    except KeyboardInterrupt:
        output.say("onefold: interrupted")
        raise typer.Exit(130) from None
    raise typer.Exit(code)


def _cores() -> int:
    from onefold.compute.execution.runner import cores

    return cores()


@contextlib.contextmanager
def _space(directory: Path | None) -> Iterator[Path]:
    if directory is not None:
        yield directory
        return
    with tempfile.TemporaryDirectory(prefix="onefold-demo-") as folder:
        yield Path(folder) / "space"


class _Talk:
    """Sentences for people: on stdout, or on stderr when stdout is for JSON."""

    def __init__(self, as_json: bool) -> None:
        self.json = as_json

    def say(self, text: str = "") -> None:
        print(textwrap.fill(text, WIDTH), file=sys.stderr if self.json else sys.stdout, flush=True)

    def fail(self, text: str) -> None:
        print(f"onefold: {text}", file=sys.stderr)
        raise typer.Exit(1)


class _Demo:
    """The course of the demo. What it finds out is kept in ``found``, which is the JSON."""

    def __init__(self, talk: _Talk, files: Sample, workers: int, folder: Path, *, kept: bool) -> None:
        self._talk = talk
        self._files = files
        self._workers = workers
        self._folder = folder
        self._kept = kept
        self._halfway: pl.DataFrame | None = None
        self.found: dict[str, Any] = {
            "files": len(files.paths),
            "bytes": files.size,
            "files_found": files.files_found,
            "bytes_found": files.size_found,
            "workers": workers,
            "killed_pid": None,
            "killed_after_tasks": None,
        }

    def perform(self) -> int:
        """Run everything; 0 when all is as it should be."""
        from onefold.db import connect

        self._introduce()
        version = f"demo-{secrets.token_hex(4)}"
        with connect(self._folder) as db:
            frame = self._job(db, version)
            plain = self._loop()
            same = self._compare(frame, plain)
            again = self._again(db, version)
        self._end(frame)
        return 0 if same and again else 1

    def _introduce(self) -> None:
        from onefold.display import words

        files, say = self._files, self._talk.say
        taken = f"{len(files.paths):,} Python files ({words.size(files.size)})"
        if not files.whole:
            there = f"{files.files_found:,} ({words.size(files.size_found)})"
            taken += f", a random sample of the {there} on this machine"
        say("What is the Python on this machine made of?")
        say(
            f"Parsing {taken} with {self._workers} worker processes. Each finished task is in the log at once, and "
            "the table below can be read from the first one on: its numbers are estimates of the final ones, with "
            "95 % intervals. Half-way a worker is killed with SIGKILL."
        )
        say()

    def _job(self, db: Database, version: str) -> pl.DataFrame:
        from onefold.display import follow

        run = demo_job.job(db, self._files, version=version).start(workers=self._workers, seed=demo_job.SEED)
        try:
            follow(run, on_progress=lambda progress: self._kill_halfway(run, progress))
        except KeyboardInterrupt:
            run.cancel()
            raise
        frame: pl.DataFrame = run.result().to_polars()
        progress = run.progress()
        self.found.update(tasks=progress.total, seconds=progress.elapsed, retried=progress.retried)
        self._talk.say()
        if self.found["killed_pid"] is None:
            self._talk.say("(The job was over before a worker could be killed.)")
        return frame

    def _kill_halfway(self, run: Run, progress: Progress) -> str | None:
        if self.found["killed_pid"] is not None or 2 * progress.done < progress.total:
            return None
        pids = run.worker_pids
        if not pids or progress.done == progress.total:
            return None
        pid = pids[0]
        os.kill(pid, signal.SIGKILL)
        self.found.update(killed_pid=pid, killed_after_tasks=progress.done)
        self._halfway = run.table.estimate("n")
        return (
            f"killed worker {pid} after {progress.done} of {progress.total} tasks: its task goes to another"
        )

    def _loop(self) -> PlainResult:
        self._talk.say("The same with a plain loop over the same files, to compare …")
        with _bar(self._files.size) as tick:
            plain = demo_job.plain_loop(self._files, tick)
        self.found["plain_seconds"] = plain.seconds
        return plain

    def _compare(self, frame: pl.DataFrame, plain: PlainResult) -> bool:
        from onefold.display import words

        wrong = demo_job.differences(frame, plain)
        unparsed = plain.files[demo_job.UNPARSED]
        self.found.update(constructs=frame.height, unparsed=unparsed, same=not wrong, differences=wrong[:20])
        say = self._talk.say
        took = f"job {words.duration(self.found['seconds'])}, loop {words.duration(plain.seconds)}"
        if wrong:
            say(f"DIFFERENT: {len(wrong)} of {frame.height} constructs are not the same ({took}):")
            for line in wrong[:5]:
                say(f"  {line}")
        else:
            say(f"The same counts for all {frame.height} constructs, exactly ({took}).")
        if unparsed:
            say(f"{unparsed:,} files do not parse, which is counted like a construct.")
        self._check_intervals(frame)
        return not wrong

    def _check_intervals(self, frame: pl.DataFrame) -> None:
        """How many of the intervals that were shown when the worker was killed hold the final value."""
        if self._halfway is None or not self._halfway.width:
            self.found["intervals"] = None
            return
        final = dict(zip(frame["construct"], frame["n"], strict=True))
        rows = self._halfway.to_dicts()
        shown = [row for row in rows if row["lo"] is not None and row["hi"] is not None]
        held = sum(row["lo"] <= final.get(row["construct"], 0) <= row["hi"] for row in shown)
        splits = max((row["n"] for row in rows), default=0)
        self.found["intervals"] = {"after_splits": splits, "shown": len(shown), "held": held}
        if shown:
            self._talk.say(
                f"Of the {len(shown)} intervals known after {splits} splits, {held} hold the final number "
                f"({100 * held / len(shown):.0f} %; 95 % was promised)."
            )

    def _again(self, db: Database, version: str) -> bool:
        started = time.perf_counter()
        run = (
            demo_job.job(db, self._files, version=version)
            .start(workers=self._workers, seed=demo_job.SEED)
            .wait()
        )
        seconds = time.perf_counter() - started
        progress = run.progress()
        self.found["again"] = {"seconds": seconds, "reused": progress.reused, "total": progress.total}
        nothing_left: bool = progress.reused == progress.total and run.state == "done"
        word = "nothing was left to do" if nothing_left else "NOT ALL was taken over"
        self._talk.say(
            f"The job again: {word}, {progress.reused} of {progress.total} tasks reused, "
            f"in {seconds * 1000:.0f} ms."
        )
        return nothing_left

    def _end(self, frame: pl.DataFrame) -> None:
        self.found["space"] = str(self._folder) if self._kept else None
        if self._talk.json:
            top = frame.sort("n", descending=True).head(10).select("construct", "n", "files", "per_file")
            output.emit({**self.found, "top": top.to_dicts()})
        elif self._kept:
            self._talk.say(f"Kept. Look at it with: onefold table {demo_job.TABLE} --url {self._folder}")


@contextlib.contextmanager
def _bar(total: int) -> Iterator[Any]:
    """A progress bar of bytes on a terminal, nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _: None
        return
    columns = (TextColumn("plain loop"), BarColumn(None), TimeRemainingColumn(compact=True))
    with Progress(*columns, console=console, transient=True, refresh_per_second=4) as progress:
        task = progress.add_task("", total=total)
        yield lambda size: progress.advance(task, size)
