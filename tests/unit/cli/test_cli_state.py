"""The command line for shared state: as programs and people use it."""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from unittest import mock

import pytest
import typer

import onefold as of
from onefold.cli import keys, main
from onefold.cli.keys import parse_key, parse_time, parse_value

ONEFOLD = (sys.executable, "-m", "onefold.cli")
Result = subprocess.CompletedProcess


def environment():
    return {key: value for key, value in os.environ.items() if not key.startswith("ONEFOLD_")}


def ask(*args, url=None, stdin=""):
    """Run a command in this process."""
    out, errors, code = io.TextIOWrapper(io.BytesIO(), write_through=True), io.StringIO(), None
    given = [*map(str, args), *(("--url", str(url)) if url is not None else ())]
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(errors),
        mock.patch.dict(os.environ, environment(), clear=True),
        mock.patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode()))),
    ):
        try:
            main(given)
        except SystemExit as end:
            code = end.code
    return Result(args, code or 0, out.buffer.getvalue().decode(), errors.getvalue())


def start(*args, url, **more):
    return subprocess.Popen(
        [*ONEFOLD, *map(str, args), "--url", str(url)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment(), **more,
    )  # fmt: skip


def document(result):
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture
def space(tmp_path):
    with of.connect(tmp_path / "space") as db:
        db.map("m").update({"alice": {"balance": 100}, ("eu", 7): -5, "text": "hello", 7: None})
        db.map("m").put("bytes", b"\x00", ttl="1h")
        db.queue("q").put(1)
        db.stream("s", partitions=2).append(1, key="k")
    return tmp_path / "space"


# -- how keys, values and moments are typed


@pytest.mark.parametrize(
    ("text", "forced", "key"),
    [
        ("alice", False, "alice"), ("7", False, "7"), ("null", False, "null"), ('["eu", 7]', False, ("eu", 7)),
        ('[["a", 1], null]', False, (("a", 1), None)), ("7", True, 7), ("true", True, True), ("null", True, None),
        ('"7"', True, "7"), ('{"$bytes": "AA=="}', True, b"\0"), ('[{"$bytes": "AA=="}]', False, (b"\0",)),
    ],
)  # fmt: skip
def test_keys_as_they_are_typed(text, forced, key):
    found = parse_key(text, as_json=forced)
    assert found == key and type(found) is type(key)
    assert parse_key(keys.shown_key(found), as_json=not isinstance(key, str)) == key


@pytest.mark.parametrize(
    ("text", "forced"),
    [("[", False), ("[1.5]", False), ("x", True), ("1.5", True), ("{}", True), ("[" * 9999, False)],
)
def test_keys_that_cannot_be(text, forced):
    with pytest.raises(typer.BadParameter):
        parse_key(text, as_json=forced)


@pytest.mark.parametrize(
    ("text", "value"),
    [("7", 7), ("-1.5", -1.5), ("hello", "hello"), ('"7"', "7"), ("[1, 2]", [1, 2]), ("null", None), ("", ""), ("{bad", "{bad"),
     ('{"$bytes": "AA=="}', b"\0")],
)  # fmt: skip
def test_values_as_they_are_typed(text, value):
    assert parse_value(text) == value


def test_moments_as_they_are_typed():
    for text, ago_s in (("2h ago", 7200), ("10m ago", 600), ("1h30m ago", 5400), ("90s  ago", 90)):
        assert abs((datetime.now(UTC) - parse_time(text)).total_seconds() - ago_s) < 5
    assert parse_time("2024-05-01T12:00:00+00:00") == datetime(2024, 5, 1, 12, tzinfo=UTC)
    assert parse_time("2024-05-01T12:00") == datetime(2024, 5, 1, 12).astimezone()
    for wrong in ("yesterday", "2024-13-01", "x ago", "ago", ""):
        with pytest.raises(typer.BadParameter):
            parse_time(wrong)


# -- get, put, del


def test_get_prints_text_as_it_is_and_the_rest_as_json(space):
    assert ask("get", "m", "text", url=space).stdout == "hello\n"
    assert ask("get", "m", "alice", url=space).stdout == '{"balance":100}\n'
    assert ask("get", "m", '["eu", 7]', url=space).stdout == "-5\n"
    assert ask("get", "m", "7", "--json-key", url=space).stdout == "null\n"
    assert ask("get", "m", "bytes", url=space).stdout == '{"$bytes":"AA=="}\n'
    item = document(ask("get", "m", '["eu", 7]', "--json", url=space))
    assert item["key"] == ["eu", 7] and item["value"] == -5 and item["expires_at"] is None
    assert document(ask("get", "m", "bytes", "--json", url=space))["expires_at"].startswith("20")
    missing = ask("get", "m", "7", url=space)
    assert (missing.returncode, missing.stdout) == (1, "") and "there is no 7 in map 'm'" in missing.stderr


def test_put_with_its_conditions(space):
    version = ask("put", "m", "k", "-7", url=space).stdout.strip()
    assert document(ask("get", "m", "k", "--json", url=space))["version"] == version
    with of.connect(space) as db:
        assert db.map("m")["k"] == -7
    assert ask("put", "m", "k", "8", "--if-absent", url=space).returncode == 1
    again = document(ask("put", "m", "k", "8", "--if-version", version, "--json", url=space))
    assert again["version"] != version
    refused = ask("put", "m", "k", "9", "--if-version", version, url=space)
    assert refused.returncode == 1 and "changed by somebody else" in refused.stderr
    assert ask("put", "m", "k", "9", "--if-version", version, "--if-absent", url=space).returncode == 2
    assert ask("put", "m", "long", "-", url=space, stdin='{"a": [1]}\n').returncode == 0
    assert ask("put", "m", "short", "x", "--ttl", "1h", url=space).returncode == 0
    assert ask("put", "m", "short", "x", "--ttl", "no", url=space).returncode == 2
    with of.connect(space) as db:
        assert (db.map("m")["k"], db.map("m")["long"]) == (8, {"a": [1]})
        assert db.map("m").get_item("short").expires_at is not None


def test_put_makes_a_space_and_get_does_not(tmp_path):
    assert ask("get", "m", "k", url=tmp_path / "new").returncode == 1
    assert not (tmp_path / "new").exists()
    assert ask("put", "m", "k", "1", url=tmp_path / "new").returncode == 0
    assert ask("get", "m", "k", url=tmp_path / "new").stdout == "1\n"


def test_del_says_whether_it_was_there(space):
    assert ask("del", "m", "text", url=space).returncode == 0
    gone = ask("del", "m", "text", url=space)
    assert gone.returncode == 1 and "there is no text" in gone.stderr
    assert ask("del", "m", "7", "--json-key", url=space).returncode == 0
    assert json.loads(ask("del", "m", "7", "--json-key", "--json", url=space).stdout) == {"deleted": False}
    assert ask("del", "m", "alice", "--if-version", "0-999-0", url=space).returncode == 1


# -- ls, explain, status


def test_ls_lists_items_in_key_order(space):
    lines = ask("ls", "m", url=space).stdout.splitlines()
    assert lines == [
        'alice\t{"balance":100}',
        'bytes\t{"$bytes":"AA=="}',
        '["eu",7]\t-5',
        "text\thello",
        "7\tnull",
    ]
    assert document(ask("ls", "m", "--json", "--prefix", "eu", url=space)) == [
        {"key": ["eu", 7], "value": -5}
    ]
    some = ask("ls", "m", "--limit", "2", url=space)
    assert len(some.stdout.splitlines()) == 2 and "and more" in some.stderr
    assert ask("ls", "m", "--limit", "5", url=space).stderr == ""
    assert ask("ls", "nothing", url=space).stdout == ""


def test_ls_lists_collections(space):
    found = document(ask("ls", "--json", url=space))
    assert [(c["kind"], c["name"], c["count"]) for c in found] == [
        ("map", "m", 5),
        ("queue", "q", 1),
        ("stream", "s", 1),
    ]
    text = ask("ls", url=space).stdout
    assert re.search(r"map +5 +m", text) and re.search(r"stream +1 +s", text)


def test_explain_says_where_it_is_and_what_it_survives(space):
    for name, words in (("m", "5 items"), ("q", "1 messages"), ("s", "2 partitions")):
        text = ask("explain", name, url=space).stdout
        assert words in text and "kill of any process" in text and "loss of the disk" in text
    found = document(ask("explain", "q", "--json", url=space))
    assert found["name"] == "q" and found["collections"][0]["kind"] == "queue" and "table" not in found
    survives = {one["failure"]: one for one in found["collections"][0]["survives"]}
    assert survives["process"]["writes"] == "yes" and all(survives["process"]["reads"].values())
    assert survives["disk"]["writes"] == "no" and not any(survives["disk"]["reads"].values())
    assert not survives["disk"]["kept"] and found["collections"][0]["mode"] == "consistent"
    unknown = ask("explain", "nothing", url=space)
    assert unknown.returncode == 1 and "nothing" in unknown.stderr


def test_explain_of_several_shards_and_of_a_lock(tmp_path):
    with of.connect(tmp_path / "space", shards=3) as db:
        db.map("m").update(dict.fromkeys(range(20)))
        with db.lock("nightly"):
            assert "of 3" in ask("explain", "m", url=tmp_path / "space").stdout
            assert "somebody has it" in ask("explain", "nightly", url=tmp_path / "space").stdout


def test_status_tells_shards_and_offsets(space):
    found = document(ask("status", "--json", url=space))
    assert found["shards"] == 1 and found["offsets"][0] > 3 and found["processes"] == 0
    with of.connect(space):
        assert document(ask("status", "--json", url=space))["processes"] == 1
    assert "shards   1" in ask("status", url=space).stdout


# -- the past, backup and restore


def test_as_it_was(space):
    with of.connect(space) as db:
        token = db.session.token
        time.sleep(0.002)
        when = datetime.now(UTC)
        time.sleep(0.002)
        db.map("m")["alice"] = "later"
    for asked in (token, when.isoformat()):
        assert ask("get", "m", "alice", "--at", asked, url=space).stdout == '{"balance":100}\n'
        assert 'alice\t{"balance":100}' in ask("ls", "m", "--at", asked, url=space).stdout
    assert ask("get", "m", "alice", url=space).stdout == "later\n"
    assert ask("get", "m", "alice", "--at", "1h ago", url=space).returncode == 1
    assert ask("get", "m", "alice", "--at", "whenever", url=space).returncode == 2
    assert "future" in ask("get", "m", "alice", "--at", "2999-01-01", url=space).stderr


def test_backup_and_restore(space, tmp_path):
    made = document(ask("backup", tmp_path / "b", "--json", url=space))
    assert made["bytes"] > 0 and made["shards"][0]["offset"] > 3 and made["missing_blobs"] == []
    with of.connect(space) as db:
        time.sleep(0.002)
        when = datetime.now(UTC)
        time.sleep(0.002)
        db.map("m")["alice"] = "later"
    again = ask("backup", tmp_path / "b", url=space)
    assert again.returncode == 1 and "not empty" in again.stderr
    assert ask("backup", tmp_path / "b2", url=space).returncode == 0
    assert document(ask("restore", tmp_path / "b", "--json", url=tmp_path / "r"))["offsets"] == [
        made["shards"][0]["offset"]
    ]
    assert (
        ask("restore", tmp_path / "b2", "--to", when.isoformat(), url=f"sqlite://{tmp_path}/r2").returncode
        == 0
    )
    for name in ("r", "r2"):
        assert ask("get", "m", "alice", url=tmp_path / name).stdout == '{"balance":100}\n'
    assert ask("restore", tmp_path / "b2", url=tmp_path / "r").returncode == 1
    assert ask("restore", tmp_path / "b2", "--to", "later", url=tmp_path / "r3").returncode == 2
    assert "knows nothing" in ask("restore", tmp_path / "b", "--to", "2999-01-01", url=tmp_path / "r3").stderr
    assert "in memory" in ask("restore", tmp_path / "b", url="memory://").stderr
    assert not (tmp_path / "r3").exists()


# -- export and import


def test_export_and_import(space, tmp_path):
    counts = document(ask("export", tmp_path / "file", "--json", url=space))
    assert counts == {"items": 5, "messages": 1, "records": 1, "counters": 0, "elements": 0}
    assert ask("export", tmp_path / "file", url=space).returncode == 1  # never overwritten
    piped = ask("export", "-", url=space)
    assert piped.stdout.split("\n", 1)[1] == (tmp_path / "file").read_text().split("\n", 1)[1]
    assert document(ask("import", tmp_path / "file", "--json", url=tmp_path / "a"))["items"] == 5
    assert ask("import", "-", url=tmp_path / "b", stdin=piped.stdout).returncode == 0
    for name in ("a", "b"):
        assert ask("ls", "m", url=tmp_path / name).stdout == ask("ls", "m", url=space).stdout
    again = ask("import", tmp_path / "file", url=tmp_path / "a")
    assert again.returncode == 1 and "--on-conflict" in again.stderr
    assert ask("import", tmp_path / "file", "--on-conflict", "maybe", url=tmp_path / "a").returncode == 2
    skipped = document(
        ask("import", tmp_path / "file", "--on-conflict", "skip", "--json", url=tmp_path / "a")
    )
    assert skipped["items"] == 0 and skipped["skipped"] == 5
    assert (
        document(ask("ls", "--json", url=tmp_path / "a"))[1]["count"] == 1
    )  # the message is not there twice
    (tmp_path / "bad").write_text("{}\n")
    bad = ask("import", tmp_path / "bad", url=tmp_path / "a")
    assert bad.returncode == 1 and "line 1" in bad.stderr
    assert ask("import", tmp_path / "no such file", url=tmp_path / "a").returncode == 1


def test_an_export_that_fails_leaves_no_file(space, tmp_path):
    failed = ask("export", tmp_path / "no" / "file", url=space)
    assert failed.returncode == 1 and "cannot be written" in failed.stderr
    with mock.patch(
        "onefold.state.queues.contents.table_names", side_effect=of.SpaceError("a planted failure")
    ):
        failed = ask("export", tmp_path / "file", url=space)
    assert failed.returncode == 1 and "planted" in failed.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["space"]


# -- doctor


def test_doctor_says_what_it_found(space):
    well = ask("doctor", url=space)
    assert well.returncode == 0 and "all is well" in well.stderr and "PROBLEM" not in well.stdout
    with of.connect(space) as db, db._shard.log.file.writing() as con:
        con.execute("UPDATE head SET number = number - 1")
    found = ask("doctor", "--json", url=space)
    assert found.returncode == 1
    content = json.loads(found.stdout)
    assert content["problems"] == 1
    (problem,) = [check for check in content["checks"] if check["status"] == "problem"]
    assert problem["name"] == "state" and problem["advice"]
    assert "PROBLEM  state" in ask("doctor", url=space).stdout
    assert ask("doctor", url=space.parent / "nowhere").returncode == 1


def test_doctor_of_a_space_that_cannot_be_opened(space):
    (space / "space.db").write_bytes((space / "space.db").read_bytes()[:8192])
    for name in ("space.db-wal", "space.db-shm"):
        (space / name).unlink(missing_ok=True)
    found = ask("doctor", "--json", url=space)
    assert found.returncode == 1
    assert json.loads(found.stdout)["problems"] >= 1


# -- watch


def test_watch_prints_what_is_there_and_what_comes(space):
    lines = ask("watch", "m", "--initial", "--timeout", "0.05s", url=space).stdout.splitlines()
    assert lines == [
        'put\talice\t{"balance":100}',
        'put\tbytes\t{"$bytes":"AA=="}',
        'put\t["eu",7]\t-5',
        "put\ttext\thello",
        "put\t7\tnull",
    ]
    one = ask("watch", "m", "text", "--initial", "--timeout", "0.05s", url=space).stdout
    assert one == "put\ttext\thello\n"
    prefix = ask(
        "watch", "m", "--prefix", "eu", "--initial", "--json", "--timeout", "0.05s", url=space
    ).stdout
    assert json.loads(prefix)["key"] == ["eu", 7]
    assert ask("watch", "m", "text", "--prefix", "eu", url=space).returncode == 2
    assert ask("watch", "m", "--initial", "--from", "x", url=space).returncode == 2
    assert ask("watch", "m", "--from", "x", url=space).returncode == 2


def test_watch_goes_on_after_a_token(space):
    with of.connect(space) as db:
        token = db.session.token
        db.map("m")["a"] = 1
        del db.map("m")["a"]
        db.map("m")["b"] = 2
    lines = [
        json.loads(line)
        for line in ask(
            "watch", "m", "--from", token, "--json", "--timeout", "0.05s", url=space
        ).stdout.splitlines()
    ]
    assert [(line["kind"], line["key"]) for line in lines] == [("put", "a"), ("delete", "a"), ("put", "b")]
    rest = ask("watch", "m", "--from", lines[0]["token"], "--json", "--timeout", "0.05s", url=space).stdout
    assert [json.loads(line) for line in rest.splitlines()] == lines[1:]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_watch_ends_cleanly_when_it_is_asked_to(space, number):
    program = start("watch", "m", "--initial", url=space)
    try:
        for _ in range(5):
            assert program.stdout.readline().startswith("put")
        with of.connect(space) as db:
            db.map("m")["new"] = 1
        assert program.stdout.readline() == "put\tnew\t1\n"  # at once: nothing is held back in a buffer
        program.send_signal(number)
        out, errors = program.communicate(timeout=120)
        assert (program.returncode, out, errors) == (0, "", "")
    finally:
        program.kill()
        program.wait()


@pytest.mark.parametrize("quiet", [True, False], ids=["while nothing comes", "while it prints"])
def test_watch_ends_when_nobody_reads_any_more(space, quiet):
    program = start("watch", "m", "--initial", url=space)
    try:
        for _ in range(5):
            assert program.stdout.readline()
        program.stdout.close()
        if not quiet:
            with of.connect(space) as db:
                for number in range(50):
                    db.map("m")["n"] = number
        assert program.wait(timeout=120) == 0
        assert program.stderr.read() == ""
    finally:
        program.kill()
        program.wait()
        program.stderr.close()


# -- help


@pytest.mark.moving(3)
@pytest.mark.parametrize(
    "command",
    ["get", "put", "del", "ls", "watch", "export", "import", "backup", "restore", "doctor", "explain"],
)
def test_every_command_says_how_it_is_used_without_heavy_imports(command):
    program = (
        "import sys\n"
        "from onefold.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "heavy = {'polars', 'apsw', 'numpy', 'scipy', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, command, "--help"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "JSON" in result.stdout or command in ("watch",)
    assert ask(command, "--nonsense").returncode == 2


def test_shared_state_needs_no_polars(space):
    program = (
        "import sys\n"
        "from onefold.cli import main\n"
        "for args in (['get', 'm', 'text'], ['ls', 'm'], ['put', 'm', 'k', '1'], ['export', '-']):\n"
        "    try: main([*args, '--url', sys.argv[1]])\n"
        "    except SystemExit as end: assert not end.code, end.code\n"
        "assert 'polars' not in sys.modules\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, str(space)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
