"""Commands that say what there is change nothing, whatever is due: only programs, nodes and ``onefold doctor --fix`` do that."""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer

import onefold as of
from onefold import agg, config
from onefold.cli.app import app
from onefold.compute.blobs.sweeping import LIVE
from onefold.compute.live.run_bytes import Origin, seal
from onefold.compute.upkeep.keeper import Keeper
from onefold.doctor.state_blobs import check_garbage
from onefold.fold import system
from onefold.state.fold.live.ops import Cancel
from support.command_line import ask

DAYS_2 = 2 * 24 * 3600
LOOK = (
    ["status"],
    ["doctor"],
    ["doctor", "--deep"],
    ["explain", "words"],
    ["explain", "m"],
    ["explain", "held"],
    ["runs"],
    ["runs", "errors", "{run}"],
    ["tables"],
    ["table", "words"],
    ["live"],
    ["live", "held"],
    ["late", "late"],
    ["stream", "ls"],
    ["stream", "show", "s"],
    ["stream", "groups", "s"],
)
"""They change nothing at all."""
READ = (
    ["get", "m", "1", "--json-key"],
    ["ls"],
    ["ls", "m"],
    ["watch", "m", "--timeout", "10ms"],
    ["stream", "tail", "s"],
    ["counters", "c"],
    ["sets", "tags"],
    ["region", "list"],
    ["export", "{new}"],
    ["backup", "{new}"],
)
"""They read data: they open the space for writing, since a read may have to end a transaction, but do nothing that is due."""
WRITE = {
    *("run", "resume", "cancel", "replay", "stop", "swap"),
    *("put", "del", "drop", "append", "retain", "import", "restore"),
    *("demo", "node", "up", "down", "init"),
    *("evict", "accept", "rejoin"),
}
"""They change the space, or have none."""


@pytest.fixture(scope="module", params=[1, 3], ids=["one shard", "three shards"])
def due(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A space in which something of each kind is due."""
    base = tmp_path_factory.mktemp("due")
    (base / "a.txt").write_text("x\n" * 10)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Keeper, "start", lambda *_, **__: None)
        with of.connect(base / "space", shards=request.param) as db:
            db.map("m").update({1: 2, 3: 4})
            db.map("m").put("short", 1, ttl=0.001)
            db.counters("c").add("k")
            db.sets("tags").add("k", "x")
            lines = db.read_text(str(base / "a.txt")).group_by("line")
            lines.agg(n=agg.count()).into("words").run(progress=False, workers=1)
            db.stream("s", retention=0.001).append({"k": 1})
            for table in ("gone", "late", "held"):
                plan = db.read_stream("s", follow=True, hold="1h").group_by("k").agg(n=agg.count())
                run: Any = plan.into(table).start(workers=0)
                if table == "gone":
                    run.cancel()
                    db.drop("gone")
                elif table == "held":  # its program is killed on the line behind this
                    run._job.submit(Cancel("held", run._generation, ("main",)))
            blobs = db._engine.blobs
            left = blobs.put(seal(Origin("t", 1, "part", 0, 1, 99, 7, 0), b"rows"))
            orphan, aside = blobs.put(b"of no job"), blobs.put(b"hidden by a sweeper")
            dead = blobs.directory / "tmp" / "999999-00"
            dead.write_bytes(b"half a blob")
            for path in (blobs.path(left), blobs.path(orphan), dead):
                os.utime(path, (time.time() - DAYS_2,) * 2)
            blobs.hide(aside, LIVE)
            db._shard.submit([system.system_op(system.Trim(3))])  # and the records are not deleted yet
            time.sleep(0.002)
    return base / "space"


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "LIVE_GARBAGE_S", -60)
    monkeypatch.setattr(config, "SWEPT_KEPT_S", -60)


def content(space: Path, *, of_files: bool = True) -> dict[str, str]:
    """What is in the folder, but for locks, what only lives with a process, and SQLite's own files. ``of_files=False``: of its
    databases only how far their logs are."""
    found = {}
    for path in sorted(space.rglob("*")):
        name = path.relative_to(space)
        if not path.is_file() or {"members", "wake"} & {*name.parts} or path.name in ("write.lock", "tip"):
            continue
        if path.name.startswith("space.db"):
            if path.name == "space.db":
                with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as con:
                    tables = [
                        row[0] for row in con.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")
                    ]
                    sql = [f'SELECT * FROM "{one}"' for one in sorted(tables)] if of_files else []
                    rows = [con.execute(one).fetchall() for one in [*sql, "SELECT max(offset) FROM log"]]
                con.close()
                found[str(name)] = hashlib.sha256(repr(rows).encode()).hexdigest()
        else:
            found[str(name)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def copied(due: Path, tmp_path: Path) -> Path:
    shutil.copytree(due, tmp_path / "space", ignore=shutil.ignore_patterns("wake"))
    return tmp_path / "space"


def given(args: list[str], tmp_path: Path, space: Path) -> list[str]:
    if "{run}" not in args:
        return [one.format(new=tmp_path / "new") for one in args]
    with of.connect(space, read_only=True) as db:
        (run,) = db.runs(table="words")
    return [one.format(run=run.id) for one in args]


@pytest.mark.parametrize("args", LOOK, ids=" ".join)
def test_a_look_changes_nothing(due: Path, tmp_path: Path, args: list[str]) -> None:
    space = copied(due, tmp_path)
    before = content(space)
    result = ask(*given(args, tmp_path, space), url=space)
    assert result.returncode == 0, result.stdout + result.stderr
    assert content(space) == before


@pytest.mark.parametrize("args", READ, ids=" ".join)
def test_reading_data_does_nothing_that_is_due(due: Path, tmp_path: Path, args: list[str]) -> None:
    space = copied(due, tmp_path)
    before = content(space, of_files=False)
    result = ask(*given(args, tmp_path, space), url=space)
    assert result.returncode == 0, result.stdout + result.stderr
    after = content(space, of_files=False)
    assert {name for name in after if after[name] != before.get(name)} <= {
        name
        for name in before
        if name.endswith("space.db") and args[0] in ("ls", "export")  # a lifetime has ended
    }
    assert after.keys() == before.keys()


def test_what_is_due_is_found_and_done(due: Path, tmp_path: Path) -> None:
    """So the tests above have something to find."""
    space = copied(due, tmp_path)
    before = content(space)
    assert "1 parts of live jobs that are over still keep" in ask("doctor", url=space).stdout
    assert "warning  orphans: 2 files" in ask("doctor", url=space).stdout
    result = ask("doctor", "--fix", url=space)
    assert "were removed" in result.stdout, result.stdout
    after = content(space)
    removed = before.keys() - after.keys()
    assert len([name for name in removed if name.startswith("blobs/")]) >= 4, removed
    assert after["space.db"] != before["space.db"]
    with of.connect(space, read_only=True) as db:
        assert "still keep" not in check_garbage(db._state, db._engine.blobs, fix=False).found


def test_each_command_says_whether_it_changes_something() -> None:
    def names(group: Any) -> list[str]:
        return [
            leaf
            for name, command in group.commands.items()
            for leaf in (names(command) if hasattr(command, "commands") else [name])
        ]

    said = {
        (args[1] if args[0] in ("stream", "runs", "region") and len(args) > 1 else args[0])
        for args in (*LOOK, *READ)
    }
    assert said - {"runs"} | WRITE == set(names(typer.main.get_command(app)))


KILLED = """
import os, signal, sys
import onefold as of
db = of.connect(sys.argv[1], shards=3)
db.map("m").update({n: n for n in range(9)})
submits = 0
for space in db._shards:
    real = space.submit
    def submit(ops, *args, real=real, **kwargs):
        global submits
        submits += 1
        if submits > 4: os.kill(os.getpid(), signal.SIGKILL)
        return real(ops, *args, **kwargs)
    space.submit = submit
with db.transaction() as tx:
    for n in range(9): tx.map("m")[n] = -n
"""


def test_a_look_waits_for_no_transaction_that_a_dead_program_left(tmp_path: Path) -> None:
    """It is decided, and carried out in no shard but the first: whoever reads data does that."""
    space = tmp_path / "space"
    subprocess.run([sys.executable, "-c", KILLED, str(space)], timeout=60, check=False)
    before = content(space)
    for args in (
        args for args in LOOK if args[0] in ("status", "doctor", "tables", "live", "runs", "stream")
    ):
        if "{run}" not in args and "s" not in args and "held" not in args:
            result = ask(*args, url=space)
            assert result.returncode == 0, result.stdout + result.stderr
    assert "unfinished" in ask("doctor", url=space).stdout and content(space) == before
    assert ask("get", "m", "8", "--json-key", url=space).stdout.strip() == "-8"
