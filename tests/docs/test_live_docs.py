"""The documents on live jobs say what is there: causes, commands, sinks, the upgrade and the links between the pages."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import pytest
import typer.main

import onefold as of
from onefold import agg
from onefold.cli.app import app

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def causes() -> list[str]:
    """The first column of the table in "My window does not close"."""
    text = (DOCS / "event-time.md").read_text("utf-8").split("## My window does not close")[1]
    return [
        row
        for row in re.findall(r"^\| (.+?) \|", text, re.MULTILINE)
        if row != "what `status` shows" and "---" not in row
    ]


def row_of(sentence: str) -> str:
    """The row of the table that describes what ``status`` shows."""
    found = [one for one in causes() if re.match(".*?".join(map(re.escape, one.split("…"))), sentence)]
    assert len(found) == 1, (sentence, found)
    return found[0]


def test_the_table_of_causes_has_each_cause_that_status_knows() -> None:
    path = ROOT / "tests" / "unit" / "compute" / "live" / "job" / "test_held_by.py"
    spec = importlib.util.spec_from_file_location("held_by_causes", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["held_by_causes"] = module
    try:
        spec.loader.exec_module(module)
        said = [module.held_by(standing) for standing, _ in module.CAUSES.values()]
    finally:
        del sys.modules["held_by_causes"]
    assert len(causes()) >= 12
    assert {row_of(one) for one in said if one} == set(causes())


def event(second: float, **more: Any) -> dict[str, Any]:
    return {"at": NOON + timedelta(seconds=second), "page": "a", **more}


def started(db: of.Database, workers: int = 1, partitions: int = 1, **source: Any) -> Any:
    db.stream("clicks", partitions=partitions).create()
    return begun(db, workers, **source)


def begun(db: of.Database, workers: int = 1, **source: Any) -> Any:
    rows = db.read_stream("clicks", follow=True, **{"event_time": "at", "idle": None, **source})
    return rows.window(of.window.tumbling("10s")).group_by("page").agg(n=agg.count()).into("t").start(workers)


def stopped(db: of.Database) -> Any:
    return started(db).stop()


def failed(db: of.Database) -> Any:
    run = started(db)
    db.stream("clicks").append({"page": "no time"})
    return run.wait("120s")


def cancelled(db: of.Database) -> Any:
    run = started(db)
    run.cancel()
    return run


def without_a_stream(db: of.Database) -> Any:
    return begun(db)


def without_a_worker(db: of.Database) -> Any:
    return started(db, workers=0)


def silent_for_ever(db: of.Database) -> Any:
    run = started(db, partitions=2)
    db.stream("clicks").append(event(1), key="k")
    return run.catch_up("120s")


def silent_for_a_while(db: of.Database) -> Any:
    run = started(db, partitions=2, idle="1h")
    db.stream("clicks").append(event(1), key="k")
    return run.catch_up("120s")


def one_partition_behind(db: of.Database) -> Any:
    run = started(db, partitions=2)
    stream = db.stream("clicks")
    keys = {stream.append(event(number), key=number).offsets.popitem()[0]: number for number in range(9)}
    stream.append(event(100), key=keys[0])
    return run.catch_up("120s")


def only_ahead(db: of.Database) -> Any:
    run = started(db)
    db.stream("clicks").append({"at": datetime.now(UTC) + timedelta(days=365), "page": "a"})
    return run.catch_up("120s")


def some_ahead(db: of.Database) -> Any:
    db.stream("clicks").append(event(1))
    return only_ahead(db)


def all_idle(db: of.Database) -> Any:
    run = started(db, idle="1ms")
    db.stream("clicks").append(event(1))
    run.catch_up("120s")
    limit = datetime.now(UTC) + timedelta(seconds=30)
    while "every partition" not in run.status().held_by:
        assert datetime.now(UTC) < limit
    return run


TRIED: list[tuple[Callable[[of.Database], Any], str]] = [
    (stopped, "the job is stopped"),
    (failed, "the job failed"),
    (cancelled, "the job was cancelled"),
    (without_a_stream, "there is no stream '…' yet"),
    (without_a_worker, "… lanes have no worker"),
    (silent_for_a_while, "partition … has had no record; it is idle, and holds nothing, after …"),
    (silent_for_ever, "partition … has had no record, and with idle=None it holds all windows"),
    (only_ahead, "partition … has had no record with a time that counts"),
    (one_partition_behind, "the latest event of partition … is of …"),
    (all_idle, "every partition is idle"),
    (some_ahead, "… events are further than max_ahead=…"),
]


@pytest.mark.parametrize(("make", "row"), TRIED, ids=lambda one: getattr(one, "__name__", ""))
def test_a_job_that_is_held_shows_the_row_of_the_table(make: Callable[[of.Database], Any], row: str) -> None:
    with of.connect("memory://") as db:
        assert row_of(make(db).status().held_by) == row
        assert row in causes()


# -- the command line


def commands(group: Any = None, before: str = "onefold") -> dict[str, Any]:
    """Each command by what is typed."""
    group = group or typer.main.get_command(app)
    found: dict[str, Any] = {}
    for name, command in group.commands.items():
        typed = f"{before} {name}"
        inner = commands(command, typed) if hasattr(command, "commands") else {}
        alone = not inner or command.invoke_without_command
        found |= inner | ({typed: command} if alone else {})
    return found


def test_the_page_of_commands_has_all_of_them_and_no_other() -> None:
    text = (DOCS / "command-line.md").read_text("utf-8")
    known = commands()
    assert len(known) > 25
    shown = re.findall(r"`(onefold [a-z][^`]*)`", text)
    named: set[str] = set()
    for line in shown:
        words = line.split()
        if words[1].isupper():
            continue
        typed = max((one for one in known if f"{line} ".startswith(f"{one} ")), key=len, default=line)
        assert typed in known, f"there is no command {line!r}"
        named.add(typed)
        options = {option for one in known[typed].params for option in one.opts}
        for option in re.findall(r"(?<!\w)--?[a-z][a-z-]*", line):
            assert option in options, f"{line!r}: {option}"
    assert named == set(known)


def test_each_command_has_json_or_says_that_it_has_none() -> None:
    plain = {"onefold demo", "onefold node", "onefold put"}
    for typed, command in commands().items():
        options = {option for one in command.params for option in one.opts}
        assert "--json" in options or typed in plain, typed
        assert isinstance(command, click.Command) or command.help


# -- links


@pytest.mark.parametrize("name", ["live-jobs.md", "event-time.md", "command-line.md"])
def test_links_between_pages_lead_somewhere(name: str) -> None:
    text = (DOCS / name).read_text("utf-8")
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        page = (DOCS / path).resolve() if path else DOCS / name
        assert page.exists(), target
        if anchor:
            heads = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
            assert anchor in slugs, target


# -- upgrading


def test_what_a_changed_plan_does_is_as_the_table_says() -> None:
    with of.connect("memory://") as db:
        db.stream("clicks").append_many([event(second) for second in range(30)])

        def job(
            n: Any = None, key: str = "page", window: str = "10s", keep: Any = None, **source: Any
        ) -> Any:
            rows = db.read_stream("clicks", follow=True, **{"event_time": "at", **source})
            rows = rows.filter(of_page).window(of.window.tumbling(window))
            return rows.group_by(key).agg(n=n or agg.count()).into("t", keep=keep)

        import polars as pl

        of_page = pl.col("page") == "a"
        job().start().catch_up("120s")
        of_page = pl.col("page") != "b"
        for same in (job(), job(watermark_delay="3s"), job(keep="7d")):
            assert same.start(on_error="skip", latency="50ms").id == "t/1"
        for other, part in (
            (job(window="20s"), "window"),
            (job(key="at"), "keys"),
            (job(event_time=None), "event time"),
            (job(n=agg.max("at")), "aggregate n"),
        ):
            with pytest.raises(of.Conflict, match=f"{part}.*replay"):
                other.start()
        run = job(window="20s").replay()
        run.catch_up("120s")
        run.swap()
        assert db.table("t").to_polars()["n"].to_list() == [20]
        assert db.table("t/1").to_polars()["n"].to_list() == [10, 10]


def test_sinks_in_the_page_are_those_that_there_are() -> None:
    from onefold.compute.live_dataset import LiveDataset

    text = (DOCS / "live-jobs.md").read_text("utf-8")
    shown = set(re.findall(r"^\| `(\w+)\(", text, re.MULTILINE))
    assert shown == {name for name in vars(LiveDataset) if name.startswith(("into", "for_"))}
