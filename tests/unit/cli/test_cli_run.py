"""Programs that the command line runs: what they print, how they end and fail, and what Ctrl-C leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from support.command_line import ONEFOLD, ask, document, onefold, write_lines

PROGRAM = """\
import sys
from pathlib import Path
import onefold as of
from onefold import agg
from helper import FOLDER

def wait_for_go(row):
    import time
    while row["line"] == "the" and not Path(FOLDER, "go").exists():
        time.sleep(0.01)
    return row

def words(db):
    return db.read_text(f"{FOLDER}/in/*.txt").map(wait_for_go).group_by("line").agg(n=agg.count()).into("words")

print("arguments", sys.argv[1:], __name__)
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A folder with a program in two files whose job waits for the file ``go``."""
    write_lines(tmp_path / "in", files=4)
    (tmp_path / "helper.py").write_text(f"FOLDER = {str(tmp_path)!r}\n")
    (tmp_path / "go").touch()
    return tmp_path


def job_of(program: Path, body: str) -> Path:
    path = program / "job.py"
    path.write_text(PROGRAM + body)
    return path


def test_run_executes_a_program_with_its_arguments_and_its_space(program: Path, tmp_path: Path) -> None:
    job = job_of(program, "with of.connect() as db: print(len(words(db).run().result()))\n")
    space = tmp_path / "space"
    result = onefold("run", job, "--workers", "2", "--flag", "a b", url=space)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "arguments ['--flag', 'a b'] __main__\n6\n"
    assert "words: done" in result.stderr
    assert "108" not in result.stdout
    found = document(ask("table", "words", "--json", url=space))
    assert (found["exact"], found["rows"][0]) == (True, {"line": "the", "n": 30})
    again = document(onefold("run", job, "--json", url=space))
    (run,) = again["runs"]
    assert (again["exit_code"], again["error"], run["progress"]["reused"]) == (
        0,
        None,
        run["progress"]["total"],
    )


@pytest.mark.moving(2)
@pytest.mark.parametrize("closes", [True, False])
def test_run_waits_for_jobs_that_were_only_started(program: Path, closes: bool) -> None:
    (program / "go").unlink()
    body = "with of.connect() as db: words(db).start()\n" if closes else "words(of.connect()).start()\n"
    job = job_of(program, body + "Path(FOLDER, 'go').touch()\nprint('end of the program')\n")
    result = onefold("run", job, cwd=program)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "end of the program"
    found = document(ask("table", "words", "--json", cwd=program))
    assert found["exact"]


def test_run_fails_when_a_job_fails_and_shows_the_record(program: Path) -> None:
    body = (
        "def bad(row):\n    if row['line'] == 'fox': raise RuntimeError('no foxes')\n    return row\n"
        "db = of.connect()\n"
        "db.read_text(f'{FOLDER}/in/*.txt').map(bad).group_by('line').agg(n=agg.count()).into('words').start()\n"
    )
    job = job_of(program, body)
    result = onefold("run", job, cwd=program)
    assert result.returncode == 1
    assert "no foxes" in result.stderr
    assert "'fox'" in result.stderr
    found = json.loads((done := onefold("run", job, "--json", cwd=program)).stdout)
    assert (done.returncode, found["exit_code"], found["runs"][0]["state"]) == (1, 1, "failed")
    assert "no foxes" in found["error"]


def test_run_shows_the_programs_own_traceback_and_exit_code(program: Path) -> None:
    result = onefold("run", job_of(program, "def f(): raise KeyError('mine')\nf()\n"), cwd=program)
    assert result.returncode == 1
    assert "KeyError: 'mine'" in result.stderr
    assert "job.py" in result.stderr
    assert "programs.py" not in result.stderr
    assert onefold("run", job_of(program, "sys.exit(7)\n"), cwd=program).returncode == 7
    said = onefold("run", job_of(program, "sys.exit('enough')\n"), cwd=program)
    assert (said.returncode, said.stderr.splitlines()[-1]) == (1, "enough")
    refused = onefold("run", job_of(program, "of.connect().table('nope')\n"), cwd=program)
    assert refused.returncode == 1
    assert "there is no table 'nope'" in refused.stderr
    assert "Traceback" not in refused.stderr


def wait_until(condition: Any, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the awaited state did not come"
        time.sleep(0.02)


@pytest.mark.faults
@pytest.mark.parametrize("how", ["run", "start"])
def test_ctrl_c_cancels_keeps_what_is_done_and_says_how_to_go_on(program: Path, how: str) -> None:
    (program / "go").unlink()
    # Three files without the word that is waited for: their tasks finish.
    for number in range(3):
        (program / "in" / f"fine{number}.txt").write_text("fox\n" * 5)
    end = (
        "words(of.connect()).run(target_splits=7)\n"
        if how == "run"
        else "words(of.connect()).start(target_splits=7)\n"
    )
    job = job_of(program, end)
    process = subprocess.Popen(
        [*ONEFOLD, "run", job],
        cwd=program,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:

        def running() -> bool:
            if not (program / ".onefold").exists():
                return False
            result = ask("runs", "--json", cwd=program)
            runs = json.loads(result.stdout) if result.returncode == 0 else []
            return bool(runs) and runs[0]["progress"]["workers"] > 0

        wait_until(running)
        # As a terminal does it: to the whole process group, workers included.
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert "is cancelled" in errors
    assert f"onefold run {job}" in errors
    assert "Traceback" not in errors
    (run,) = document(ask("runs", "--json", cwd=program))
    assert run["state"] == "cancelled"
    (program / "go").touch()
    again = onefold("run", job, cwd=program)
    assert again.returncode == 0, again.stderr
    found = document(ask("table", "words", "--json", "--top", "1", cwd=program))
    assert (found["exact"], found["rows"]) == (True, [{"line": "the", "n": 30}])


BEGINNINGS = [
    (call, how) for call in ("Engine.submit", "Engine.work", "Starter._announce") for how in ("run", "start")
]


@pytest.mark.moving(3)
@pytest.mark.parametrize(("call", "how"), BEGINNINGS)
def test_ctrl_c_in_the_moment_in_which_a_run_begins_cancels_it(program: Path, call: str, how: str) -> None:
    (program / "go").unlink()
    meet = (
        "from onefold.compute.engine import Engine\n"
        "from onefold.compute.starting import Starter\n"
        f"real = {call}\n"
        "def met(self, *args, **named):\n"
        f"    {call} = real\n"
        "    real(self, *args, **named)\n"
        "    raise KeyboardInterrupt\n"
        f"{call} = met\n"
    )
    job = job_of(program, f"db = of.connect()\n{meet}words(db).{how}()\n")
    result = onefold("run", job, cwd=program)
    assert result.returncode == 130, result.stderr
    assert "is cancelled" in result.stderr
    assert "Traceback" not in result.stderr
    (run,) = document(ask("runs", "--json", cwd=program))
    assert run["state"] == "cancelled"


def test_ctrl_c_before_the_log_has_the_run_leaves_none(program: Path) -> None:
    meet = (
        "from onefold.compute.engine import Engine\n"
        "def met(self, *args, **named): raise KeyboardInterrupt\n"
        "Engine.submit = met\n"
    )
    job = job_of(program, f"db = of.connect()\n{meet}words(db).start()\n")
    result = onefold("run", job, cwd=program)
    assert result.returncode == 130, result.stderr
    assert result.stderr.startswith("onefold: interrupted. Continue with")
    assert document(ask("runs", "--json", cwd=program)) == []


@pytest.mark.faults
def test_a_table_can_be_read_and_watched_while_another_process_makes_it(program: Path) -> None:
    (program / "go").unlink()
    for number in range(1, 4):
        (program / "in" / f"{number}.txt").unlink()  # one task waits, so two workers are enough
    for number in range(12):
        (program / "in" / f"fine{number}.txt").write_text("fox\n" * (5 + number % 3))
    job = job_of(program, "words(of.connect()).run(target_splits=13, workers=2)\n")
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    process = subprocess.Popen([*ONEFOLD, "run", job], cwd=program, **quiet)  # type: ignore[call-overload]
    try:

        def half_done() -> bool:
            result = ask("tables", "--json", cwd=program)
            found = json.loads(result.stdout) if result.returncode == 0 else []
            return bool(found) and found[0]["done"] >= 8

        wait_until((program / ".onefold").exists)
        wait_until(half_done)
        found = document(ask("table", "words", "--json", cwd=program))
        assert not found["exact"]
        assert found["done"] < found["total"]
        assert {row["kind"] for row in found["estimate"]["rows"]} == {"estimate"}
        text = ask("table", "words", cwd=program)
        assert "estimates of the whole, 95 % intervals" in text.stderr
        watcher = subprocess.Popen(
            [*ONEFOLD, "table", "words", "--watch", "--json"], cwd=program, stdout=subprocess.PIPE, text=True
        )
        assert watcher.stdout is not None
        assert not json.loads(watcher.stdout.readline())["exact"]
        (program / "go").touch()
        rest, _ = watcher.communicate(timeout=120)
        assert json.loads(rest.splitlines()[-1])["exact"]
        assert process.wait(timeout=120) == 0
    finally:
        process.kill()
