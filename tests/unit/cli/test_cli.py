"""The command line as programs and people use it to ask for help and to read what a space has."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

import onefold as of
from onefold import agg
from onefold.cli import output
from support.command_line import ask, document, onefold, write_lines


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
            "columns": ["line", "n", "longest"],
            "columns_complete": True,
            "error": None,
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
    assert document(ask("runs", "errors", run["id"], "--json", url=space))["errors"] == []
    assert document(ask("--json", "runs", "errors", run["id"], url=space))["state"] == "done"
    ended = ask("runs", "cancel", run["id"], url=space)
    assert ended.returncode == 1 and "is done, and was not cancelled" in ended.stderr
    assert ask("runs", "resume", run["id"], url=space).returncode == 0
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
    (made,) = explained["collections"]
    assert (made["kind"], made["mode"]) == ("table", "consistent")
    assert [one["failure"] for one in made["survives"]] == ["process", "machine", "disk"]


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


def test_tables_shows_the_columns_of_every_kind_of_result(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("a,b\n1,x\n2,y\n")
    with of.connect(tmp_path / "space") as db:
        rows = db.read_csv(tmp_path / "in.csv")
        rows.filter(pl.col("a") > 0).into("rows").run(progress=False)
        rows.map(lambda record: {"c": 1, "d": record["b"]}).into("function").run(progress=False, workers=1)
        rows.map(lambda record: record["a"]).into("values").run(progress=False, workers=1)
        rows.group_by("b").agg(n=agg.count()).into("groups").run(progress=False)
        db.map_reduce(
            rows,
            map=lambda record: [(record["b"], 1)],
            reduce=lambda key, values: sum(values),
            into="pairs",
            workers=1,
        ).wait()
        rows.map(lambda record: {"c": 1}).into("begun").start(workers=0).cancel()
    found = {head["name"]: head for head in document(ask("tables", "--json", url=tmp_path / "space"))}
    assert {name: head["columns"] for name, head in found.items()} == {
        "begun": [],
        "function": ["c", "d"],
        "groups": ["b", "n"],
        "pairs": ["key", "value"],
        "rows": ["a", "b"],
        "values": ["value"],
    }
    assert [name for name, head in found.items() if not head["columns_complete"]] == ["begun"]
    shown = ask("tables", url=tmp_path / "space").stdout
    assert "c, d" in shown and "a, b" in shown and "key, value" in shown and "…" in shown
