"""The command line as programs and people use it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import onefold as of
from onefold import agg
from onefold.cli import main, output

ONEFOLD = (sys.executable, "-m", "onefold.cli")
WORDS = ("the", "quick", "brown", "fox", "the", "lazy", "dog", "the")


Result = subprocess.CompletedProcess[str]


def onefold(
    *args: str | Path, url: Path | None = None, cwd: Path | None = None, **environment: str
) -> Result:
    """Run a command to its end in a process of its own."""
    return subprocess.run(
        [*ONEFOLD, *_arguments(args, url)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=_environment(environment),
        timeout=60,
        check=False,
    )


def ask(*args: str | Path, url: Path | None = None, cwd: Path | None = None, **environment: str) -> Result:
    """The same in this process, for commands that only read: a tenth of the time."""
    out, errors, code = io.StringIO(), io.StringIO(), None
    with (
        contextlib.chdir(cwd or Path.cwd()),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(errors),
        mock.patch.dict(os.environ, _environment(environment), clear=True),
    ):
        try:
            main(_arguments(args, url))
        except SystemExit as end:
            code = end.code
    assert code is None or isinstance(code, int)
    return Result(args, code or 0, out.getvalue(), errors.getvalue())


def _arguments(args: Iterable[str | Path], url: Path | None) -> list[str]:
    return [*map(str, args), *(("--url", str(url)) if url is not None else ())]


def _environment(more: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith("ONEFOLD_")} | more


def document(result: Result) -> Any:
    """The one JSON document on stdout of a command that succeeded."""
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def write_lines(folder: Path, files: int = 8) -> Path:
    folder.mkdir(exist_ok=True)
    for number in range(files):
        (folder / f"{number}.txt").write_text("".join(f"{word}\n" for word in WORDS * (number + 1)))
    return folder


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A space with the finished table ``words``."""
    base = tmp_path_factory.mktemp("cli")
    lines = write_lines(base / "in")
    with of.connect(base / "space") as db:
        job = db.read_text(f"{lines}/*.txt").group_by("line").agg(n=agg.count(), longest=agg.max("line"))
        job.into("words").run(progress=False, target_splits=8)
    return base / "space"


# -- help and usage --------------------------------------------------------------------------------------------


def test_help_and_version_answer_without_the_heavy_imports() -> None:
    program = (
        "import sys\n"
        "from onefold.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "heavy = {'polars', 'apsw', 'numpy', 'scipy', 'datasketches', 'fsspec', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    for args in (["--version"], ["--help"], ["table", "--help"], ["demo", "--help"], ["run", "--help"]):
        result = subprocess.run(
            [sys.executable, "-c", program, *args], capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stderr
        assert result.stdout
    assert onefold("--version").stdout == f"onefold {of.__version__}\n"


@pytest.mark.parametrize(
    "args",
    [
        ["nonsense"],
        ["table"],
        ["table", "words", "--top", "many"],
        ["table", "words", "--level", "2"],
        ["runs", "--limit", "0"],
        ["run", "no_such_program.py"],
        ["run", __file__, "--workers", "0"],
        ["demo", "--paths", "/no/such/folder"],
        ["status", "--no-such-option"],
    ],
)
def test_wrong_usage_exits_2_and_says_so_on_stderr(args: list[str], tmp_path: Path) -> None:
    result = ask(*args, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert result.stderr.strip()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "command", [["runs"], ["tables"], ["status"], ["table", "words"], ["explain", "words"]]
)
def test_reading_where_there_is_no_space_says_so_and_makes_nothing(
    command: list[str], tmp_path: Path
) -> None:
    for as_json in ([], ["--json"]):
        result = ask(*command, *as_json, cwd=tmp_path)
        assert result.returncode == 1
        assert result.stdout == ""
        assert result.stderr.startswith("onefold: ")
        assert "Traceback" not in result.stderr
        assert list(tmp_path.iterdir()) == []


# -- reading ---------------------------------------------------------------------------------------------------


def test_the_space_comes_from_the_option_the_environment_or_the_folder(space: Path, tmp_path: Path) -> None:
    by_option = document(ask("tables", "--json", url=space))
    before = document(ask("--url", str(space), "--json", "tables"))
    by_environment = document(ask("tables", "--json", ONEFOLD_URL=str(space)))
    (tmp_path / ".onefold").symlink_to(space)
    by_folder = document(ask("tables", "--json", cwd=tmp_path))
    assert by_option == before == by_environment == by_folder
    assert by_option == [
        {
            "name": "words",
            "done": 8,
            "total": 8,
            "exact": True,
            "key_columns": ["line"],
            "value_columns": ["n", "longest"],
        }
    ]


def test_runs(space: Path) -> None:
    (run,) = document(ask("runs", "--json", url=space))
    assert (run["table"], run["state"], run["errors"]) == ("words", "done", [])
    assert (run["progress"]["done"], run["progress"]["rows"]) == (8, 8 * 36)
    assert document(ask("runs", "--json", "--state", "failed", url=space)) == []
    assert document(ask("runs", "--json", "--table", "others", url=space)) == []
    text = ask("runs", url=space)
    assert run["id"] in text.stdout
    assert max(map(len, text.stdout.splitlines())) < 200
    wrong = ask("runs", "--state", "asleep", url=space)
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert "'asleep'" in wrong.stderr


def test_table_as_json(space: Path) -> None:
    found = document(ask("table", "words", "--top", "2", "--json", url=space))
    assert (found["done"], found["total"], found["exact"], found["height"]) == (8, 8, True, 6)
    assert found["rows"] == [
        {"line": "the", "n": 108, "longest": "the"},
        {"line": "brown", "n": 36, "longest": "brown"},
    ]
    assert found["estimate"]["column"] == "n"
    first = found["estimate"]["rows"][0]
    assert {"line", "value", "lo", "hi", "level", "kind", "n", "N"} <= set(first)
    assert (first["line"], first["value"], first["lo"], first["hi"], first["kind"]) == (
        "the",
        108,
        108,
        108,
        "exact",
    )
    by_key = document(ask("table", "words", "--top", "1", "--by", "line", "--json", url=space))
    assert by_key["rows"] == [{"line": "the", "n": 108, "longest": "the"}]


def test_table_for_people(space: Path) -> None:
    result = ask("table", "words", "--top", "2", url=space)
    assert result.returncode == 0, result.stderr
    assert re.search(r"^the +108 +the *$", result.stdout, re.MULTILINE)
    assert "words: exact: every task is in; … and 4 more" in result.stderr
    estimate = ask("table", "words", "--estimate", "n", "--top", "1", url=space)
    assert re.search(r"^the +108 +108 +108 +exact +8 of 8", estimate.stdout, re.MULTILINE)
    watched = ask("table", "words", "--watch", url=space)
    assert "108" in watched.stdout


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["table", "nope"], "there is no table 'nope'"),
        (["table", "words", "--by", "nope"], "'nope'"),
        (["table", "words", "--estimate", "nope"], "'nope'"),
        (["explain", "nope"], "there is nothing called 'nope'"),
    ],
)
def test_what_is_not_there_is_said_without_a_traceback(args: list[str], says: str, space: Path) -> None:
    for as_json in ([], ["--json"]):
        result = ask(*args, *as_json, url=space)
        assert result.returncode == 1
        assert says in result.stderr
        assert "Traceback" not in result.stderr
        assert result.stdout == ""


def test_status_and_explain(space: Path) -> None:
    found = document(ask("status", "--json", url=space))
    assert found["runs"] == {"running": 0, "done": 1, "failed": 0, "cancelled": 0}
    assert (found["tables"], found["version"], found["running"]) == (1, of.__version__, [])
    assert found["bytes"] > 0
    assert "1 done" in ask("status", url=space).stdout
    explained = document(ask("explain", "words", "--json", url=space))
    assert explained["table"] == "words"
    assert explained["sentences"]


def test_json_has_only_what_json_knows(capsys: pytest.CaptureFixture[str]) -> None:
    import datetime
    import decimal

    item = {
        "nan": float("nan"),
        "bytes": b"\x00\xff",
        "when": datetime.datetime(2024, 2, 29, 12, 30),
        "long": datetime.timedelta(minutes=1),
        "exact": decimal.Decimal("0.10"),
        "many": {1: (1, 2)},
        "text": "ümlaut\n",
    }
    output.emit(item)
    assert json.loads(capsys.readouterr().out) == {
        "nan": None,
        "bytes": "AP8=",
        "when": "2024-02-29T12:30:00",
        "long": 60.0,
        "exact": "0.10",
        "many": {"1": [1, 2]},
        "text": "ümlaut\n",
    }


# -- running programs ------------------------------------------------------------------------------------------

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


def wait_until(condition: Any, seconds: float = 30.0) -> None:
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
        _, errors = process.communicate(timeout=30)
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


@pytest.mark.parametrize("how", ["run", "start"])
@pytest.mark.parametrize("call", ["Engine.submit", "Engine.work", "Starter._announce"])
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
    assert result.stderr.startswith("onefold: interrupted. Go on with")
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
        rest, _ = watcher.communicate(timeout=30)
        assert json.loads(rest.splitlines()[-1])["exact"]
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
