"""``onefold stream``: listing, showing, following and filling streams, as programs and people use it."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import onefold as of
from onefold.cli.collections.json_lines import append_lines, read_batches
from support.command_line import ONEFOLD, Result, ask, document


@pytest.fixture
def space(tmp_path: Path) -> Path:
    """Ten records of two partitions, of which a group has read four."""
    with of.connect(tmp_path / "space") as db:
        stream = db.stream("clicks", partitions=2, retention="7d")
        for number in range(10):
            stream.append({"n": number}, key="ab"[number % 2])
        with stream.consumer("billing", timeout=0) as consumer:
            for _ in range(4):
                next(consumer)
            consumer.commit()
    return tmp_path / "space"


def given(stdin: str, *args: Any, url: Path) -> Result:
    """A command with something on stdin."""
    with mock.patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode()))):
        return ask(*args, url=url)


def lines(result: Result) -> list[Any]:
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_streams_are_listed_and_shown(space: Path) -> None:
    (one,) = document(ask("stream", "ls", "--json", url=space))
    assert one == {"name": "clicks", "records": 10, "partitions": 2, "retention_s": 7 * 86400.0}
    assert "clicks" in ask("stream", "ls", url=space).stdout
    shown = document(ask("stream", "show", "clicks", "--json", url=space))
    assert [part["records"] for part in shown["partitions"]] == [5, 5]
    assert [part["first"] for part in shown["partitions"]] == [0, 0]
    assert all(part["bytes"] > 0 and part["oldest"].startswith("20") for part in shown["partitions"])
    (group,) = shown["groups"]
    assert (group["name"], group["lag"], group["members"]) == ("billing", 6, 0)
    assert sum(part["next"] or 0 for part in group["partitions"]) == 4
    assert document(ask("stream", "groups", "clicks", "--json", url=space)) == [group]
    text = ask("stream", "show", "clicks", url=space).stdout
    assert "stream clicks: 10 records, kept for 7 days" in text
    assert "group billing: 6 records behind, 0 members" in text
    assert "billing" in ask("stream", "groups", "clicks", url=space).stdout


def test_tail_prints_the_last_records_and_continues_at_a_position(space: Path) -> None:
    with of.connect(
        space
    ) as db:  # of one partition: between several, the order of a millisecond is by partition
        for number in range(10):
            db.stream("steps").append({"n": number}, key="ab"[number % 2])
    last = lines(ask("stream", "tail", "steps", "-n", "3", "--json", url=space))
    assert [record["value"]["n"] for record in last] == [7, 8, 9]
    assert [record["key"] for record in last] == ["b", "a", "b"]
    assert len(lines(ask("stream", "tail", "steps", "--json", url=space))) == 10
    after = lines(ask("stream", "tail", "steps", "--from", last[0]["position"], "--json", url=space))
    assert [record["value"]["n"] for record in after] == [8, 9]
    everything = lines(ask("stream", "tail", "steps", "--from", "earliest", "--json", url=space))
    assert [record["value"]["n"] for record in everything] == list(range(10))
    assert lines(ask("stream", "tail", "steps", "--from", "latest", "--json", url=space)) == []
    text = ask("stream", "tail", "steps", "-n", "1", url=space).stdout
    assert text.endswith('\tb\t{"n":9}\n')
    both = lines(ask("stream", "tail", "clicks", "--json", url=space))
    assert sorted(record["value"]["n"] for record in both) == list(range(10))
    only = lines(ask("stream", "tail", "clicks", "--partition", "1", "--json", url=space))
    assert {record["partition"] for record in only} == {1} and len(only) == 5


def test_tail_follows_until_it_is_interrupted(space: Path) -> None:
    with of.connect(space) as db:
        db.stream("steps").append({"n": 9})
    command = [*ONEFOLD, "stream", "tail", "steps", "-n", "1", "--follow", "--json", "--url", str(space)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        try:
            assert program.stdout is not None and program.stderr is not None
            assert json.loads(program.stdout.readline())["value"] == {"n": 9}
            with of.connect(space) as db:
                db.stream("steps").append({"n": 10})
            assert json.loads(program.stdout.readline())["value"] == {"n": 10}
            program.send_signal(signal.SIGINT)
            assert program.wait(120) == 0
            assert program.stderr.read() == ""
        finally:
            program.kill()


def test_tail_follows_a_stream_that_is_not_there_yet_for_a_while(space: Path) -> None:
    assert lines(ask("stream", "tail", "new", "--follow", "--timeout", "1ms", "--json", url=space)) == []


def test_append_takes_json_lines(tmp_path: Path) -> None:
    text = '{"user": "u1", "n": 1}\n\n{"user": "u2", "at": {"$datetime": "2026-01-01T00:00:00+00:00"}}'
    done = given(text, "stream", "append", "s", "--key", "user", "--partitions", "3", "--json", url=tmp_path)
    assert document(done) == {"appended": 2}
    with of.connect(tmp_path) as db:
        assert db.stream("s").partitions == 3
        found = {record.key: record.value for record in db.stream("s").read()}
    assert found["u1"] == {"user": "u1", "n": 1}
    assert found["u2"]["at"].year == 2026
    assert document(given("1\n" * 2500, "stream", "append", "t", "--json", url=tmp_path)) == {
        "appended": 2500
    }
    with of.connect(tmp_path) as db:
        assert len(db.stream("t")) == 2500


@pytest.mark.parametrize(
    ("bad", "says"),
    [("{", "line 2 of stdin"), ('{"$bytes": 7}', "line 2 of stdin"), ('{"n": 3}', "no field 'user'"), ("[1]", "no field 'user'"),
     ('{"user": {}}', "line 2 of stdin is not a record: a dict cannot be"), ('{"user": 1.5}', "line 2 of stdin"),
     ('{"user": "' + "u" * 20_000 + '"}', "line 2 of stdin"),
     ('{"user": "u", "text": "' + "x" * 2**21 + '"}', "line 2 of stdin")],
)  # fmt: skip
def test_a_bad_line_is_named_and_those_before_it_are_appended(bad: str, says: str, tmp_path: Path) -> None:
    text = f'{{"user": "u1"}}\n{bad}\n{{"user": "u2"}}\n'
    done = given(text, "stream", "append", "s", "--key", "user", url=tmp_path)
    assert done.returncode == 1 and done.stdout == ""
    assert says in done.stderr and "tail -n +2" in done.stderr and "Traceback" not in done.stderr
    with of.connect(tmp_path) as db:
        assert [record.value for record in db.stream("s").read()] == [{"user": "u1"}]


def test_a_long_line_costs_by_its_length_and_is_not_read_to_its_end(tmp_path: Path) -> None:
    class Endless(io.RawIOBase):
        reads = 0

        def read1(self, size: int) -> bytes:
            self.reads += 1
            assert self.reads * size < 2**26
            return b"{}\n" + b" " * (size - 3) if self.reads == 1 else b" " * size

    with (
        of.connect(tmp_path) as db,
        pytest.raises(of.InvalidValue, match=r"line 2 of stdin .* is longer than"),
    ):
        append_lines(db.stream("s"), read_batches(Endless(), None), None)
    with of.connect(tmp_path) as db:
        assert len(db.stream("s")) == 1


def test_retain_sets_how_long_records_are_kept(space: Path) -> None:
    assert document(ask("stream", "retain", "clicks", "12h", "--json", url=space))["retention_s"] == 43200.0
    assert document(ask("stream", "retain", "clicks", "forever", "--json", url=space))["retention_s"] is None
    with of.connect(space) as db:
        assert db.stream("clicks").retention is None


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (("show", "nothing"), 1, "there is no stream 'nothing'"),
        (("tail", "nothing"), 1, "there is no stream 'nothing'"),
        (("groups", "nothing"), 1, "there is no stream 'nothing'"),
        (("retain", "nothing", "7d"), 1, "there is no stream 'nothing'"),
        (("retain", "clicks", "soon"), 2, "soon"),
        (("retain", "clicks", "0s"), 2, "longer than nothing"),
        (("tail", "clicks", "--from", "yesterday"), 2, "is not a moment"),
        (("tail", "clicks", "--from", "s1.nonsense"), 1, "is not a position"),
        (("tail", "clicks", "--timeout", "1s"), 2, "--follow"),
        (("tail", "clicks", "--partition", "9"), 2, "2 partitions"),
        (("append",), 2, "NAME"),
        (("append", "clicks", "--partitions", "3"), 1, "partitions"),
        (("nonsense",), 2, "nonsense"),
    ],
)  # fmt: skip
def test_what_cannot_be_says_what_to_do(args: tuple[str, ...], code: int, says: str, space: Path) -> None:
    done = given("1\n", "stream", *args, url=space)
    assert (done.returncode, done.stdout) == (code, "")
    assert says in done.stderr and "Traceback" not in done.stderr
    with of.connect(space) as db:
        assert [one.name for one in db.collections() if one.kind == "stream"] == ["clicks"]
