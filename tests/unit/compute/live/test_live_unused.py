"""Calls about jobs cost what there is: without a live job nothing of live jobs is imported, and rows are read once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import onefold as of
from onefold.state.core.client import StateClient

PROGRAM = """
import sys
import onefold as of
from onefold import cli
from onefold.errors import InvalidArgument

def refused(call, *args):
    try:
        call(*args)
    except InvalidArgument:
        return
    raise AssertionError(call)

def ask(db):
    db.runs(), db.runs(state="stopped"), db.tables(), db.collections()
    assert db.drop("absent") is False and db.drop("absent/1") is False and db.drop("absent@history") is False
    refused(db.open_run, "absent"), refused(db.table, "absent"), refused(db.explain, "absent")

def live():
    return {one for one in sys.modules if one.startswith(("onefold.compute.live", "onefold.compute.bounded"))}

url = sys.argv[1]
with of.connect(url) as db:
    db.runs(), db.tables(), db.collections(), db.drop("absent")
    assert "polars" not in sys.modules
    ask(db)
try:
    cli.main(["status", "--url", url])
except SystemExit as end:
    assert not end.code
assert not live(), live()
with of.connect(url) as db:
    db.read_text(sys.argv[2]).group_by("line").agg(n=of.agg.count()).into("t").start(workers=0)
    made = live()  # what batch jobs need of it
    ask(db)
    assert [one.name for one in db.tables()] == ["t"] and db.explain("t")
    db.runs()[0].cancel()
    assert db.drop("t") and not db.tables()
assert live() == made, live() - made
"""


def test_calls_about_jobs_import_nothing_of_live_jobs_where_there_are_none(tmp_path: Path) -> None:
    (tmp_path / "lines").write_text("a\n")
    args = [sys.executable, "-c", PROGRAM, str(tmp_path / "s"), str(tmp_path / "lines")]
    done = subprocess.run(args, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@contextmanager
def counted_views(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """The levels of the views that are opened; None is the connection's own."""
    levels: list[object] = []
    plain = StateClient.view

    def view(self: StateClient, shard: int, level: Any = None, **options: Any) -> Any:
        levels.append(level)
        return plain(self, shard, level, **options)

    with monkeypatch.context() as patch:
        patch.setattr(StateClient, "view", view)
        yield levels


def test_lists_read_each_shard_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with of.connect(f"{tmp_path / 's'}", shards=2) as db:
        db.stream("clicks", partitions=1).append({"k": 1}, key=None)
        for name in ("a", "b", "c"):
            plan = db.read_stream("clicks", follow=True).group_by("k").agg(n=of.agg.count())
            plan.into(name).start(workers=0)
        db.open_run("b").stop()
        with counted_views(monkeypatch) as levels:
            runs = db.runs()
        assert [one.id for one in runs] == [
            one.id for one in sorted(runs, key=lambda one: one.created_ms, reverse=True)
        ]
        assert {one.id for one in runs} == {"a/1", "b/1", "c/1"}
        assert levels.count(None) == 2
        assert [one.id for one in db.runs(state="stopped")] == ["b/1"]
        assert {one.id for one in db.runs(state="running")} == {"a/1", "c/1"}
        assert [one.id for one in db.runs(table="c")] == [one.id for one in db.runs(table="c/1")] == ["c/1"]
        with counted_views(monkeypatch) as levels:
            assert db.open_run("a").id == "a/1"
        assert levels.count(None) == 1
