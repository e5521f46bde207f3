"""A refused ``of.connect`` has made nothing and written nothing, whatever was wrong, and says what to do."""

from __future__ import annotations

import hashlib
import inspect
import math
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import onefold as of

WRITING: dict[str, Any] = {"shards": 2, "log_keep": "1GB"}
"""What would write, in a space that is there too."""
WRONG: dict[str, list[Any]] = {
    "consistency": ["junk", 5, None, "bounded:x", "bounded:" + "9" * 400 + "s", ["strong"]],
    "session": ["", "junk", 5, b"of1.", "of1.AAAA", "of1.é"],
    "shards": [0, -1, 1025, 10**400, "2", 2.0, True],
    "timeout": ["x", -1, math.nan, math.inf, 10**400, timedelta(-1), True],
    "create": ["no", 0, None],
    "read_only": ["no", 1, None],
    "region": ["", "a/b", "a b", "é", "x" * 65, 5, b"eu", "eu\n"],
    "replicas": ["both", "remote", None, ["local"]],
    "log_keep": ["x", "", 0, -1, 10**400, 10**5000, "9" * 400 + "GB", "nanGB", math.nan, 1.5, True],
}


def contents(folder: Path) -> dict[str, str]:
    """A hash of every file, but for those that SQLite's readers share their locks in."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith("-shm")
    }


def test_every_argument_has_wrong_values_here() -> None:
    assert {*WRONG} == {*inspect.signature(of.connect).parameters} - {"url"}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_argument_makes_no_space(tmp_path: Path, name: str) -> None:
    for wrong in WRONG[name]:
        with pytest.raises(of.OnefoldError) as caught:
            of.connect(tmp_path / "new", **(WRITING | {name: wrong}))
        assert caught.value.definite
        assert name in str(caught.value) or "session token" in str(caught.value)
        assert len(str(caught.value)) < 400
        assert [*tmp_path.iterdir()] == [], wrong


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_argument_writes_nothing_into_a_space(tmp_path: Path, name: str) -> None:
    with of.connect(tmp_path / "space", shards=2) as db:
        db.map("m").update(dict.fromkeys(range(500), "x" * 1000))
    before = contents(tmp_path)
    for wrong in WRONG[name]:
        with pytest.raises(of.OnefoldError):
            of.connect(tmp_path / "space", **({"shards": 2, "log_keep": 64 * 1024} | {name: wrong}))
        assert contents(tmp_path) == before, wrong
    of.connect(tmp_path / "space", shards=2, log_keep=64 * 1024).close()
    assert contents(tmp_path) != before


def test_a_session_of_another_space_makes_and_writes_nothing(tmp_path: Path) -> None:
    with of.connect(tmp_path / "other") as db:
        db.map("m")["k"] = 1
        token = db.session.token
    of.connect(tmp_path / "space").close()
    before = contents(tmp_path / "space")
    for place, more in (("space", {}), ("new", {}), ("new", {"shards": 2})):
        with pytest.raises(of.TokenError, match="another space"):
            of.connect(tmp_path / place, session=token, log_keep="1GB", **more)
        assert not (tmp_path / "new").exists()
        assert contents(tmp_path / "space") == before
    with of.connect(tmp_path / "other", session=token) as db:
        assert db.map("m")["k"] == 1
    with pytest.raises(of.SpaceError, match="there is no space"):
        of.connect(tmp_path / "new", session=token, create=False)


def test_another_number_of_shards_writes_nothing(tmp_path: Path) -> None:
    of.connect(tmp_path / "space", shards=2).close()
    before = contents(tmp_path)
    with pytest.raises(of.InvalidArgument, match=r"was made with 2 shard\(s\), which is fixed; got shards=3"):
        of.connect(tmp_path / "space", shards=3, log_keep="1GB")
    assert contents(tmp_path) == before


PLACES: list[tuple[Any, str]] = [
    ("", "an empty URL names no space"),
    (" ", "begins or ends with a space"),
    ("space ", "begins or ends with a space"),
    ("space\n", "begins or ends with a space or a line break"),
    ("a\0b", "url must be a folder"),
    ("~", r"os\.path\.expanduser\('~'\)"),
    ("~/space", r"os\.path\.expanduser\('~/space'\)"),
    (Path("~/space"), r"os\.path\.expanduser\('~/space'\)"),
    ("~nobody/space", "only a shell replaces ~"),
    ("sqlite:", "write sqlite:///absolute/dir"),
    ("sqlite://", "write sqlite:///absolute/dir"),
    ("sqlite:///", "names no folder"),
    ("sqlite:////", "names no folder"),
    ("sqlite://host/dir", "write sqlite:///absolute/dir"),
    ("sqlite:///./dir", "for another one give the directory alone"),
    ("sqlite:///~/dir", "for another one give the directory alone"),
    ("sqlite:///a%00b", "zero byte"),
    ("sqlite:///dir?mode=ro", "takes no options"),
    ("sqlite:///dir#part", "takes no options"),
    ("sqlite3:///dir", "unknown engine 'sqlite3'"),
    ("file:///dir", "unknown engine 'file'"),
    ("SQLITE:///dir", "unknown engine 'SQLITE'"),
    ("SQLITE:dir", "not the URL of a space"),
    ("postgres://host/db", "unknown engine 'postgres'"),
    ("http://host/space", "unknown engine 'http'"),
    ("s3:/bucket/prefix", "not the URL of a space"),
    ("memory:/", "has no name; use memory://"),
    ("memory://name", "has no name; use memory://"),
    ("MEMORY:", "not the URL of a space"),
    (Path("nats://host:4222/space"), "not the URL of a space"),
    ("nats:host:4222/space", "not the URL of a space"),
    ("nats:me:hush@host/space", "not the URL of a space"),
    ("x" * 5000 + "://y", "unknown engine"),
    (5, "url must be a folder"),
    (b"space", "url must be a folder"),
    (10**5000, "url must be a folder"),
]


@pytest.mark.parametrize(
    ("url", "problem"), PLACES, ids=lambda value: repr(value)[:30] if value != 10**5000 else "n"
)
def test_a_place_that_cannot_be_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: Any, problem: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(of.InvalidArgument, match=problem) as caught:
        of.connect(url, **WRITING)
    assert "hush" not in str(caught.value) and len(str(caught.value)) < 500
    assert [*tmp_path.iterdir()] == []


def test_a_folder_that_is_there_is_meant_whatever_it_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("~space", "space ", "nats:x"):
        (tmp_path / name).mkdir()
        of.connect(name).close()
        assert (tmp_path / name / "space.db").exists()
    of.connect("./~other").close()
    assert (tmp_path / "~other").is_dir()


def test_what_is_no_folder_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for place, problem in (
        ("file", "is a file"),
        ("file/below", "cannot be"),
        ("x" * 5000, "File name too long"),
    ):
        with pytest.raises(of.SpaceError, match=problem):
            of.connect(tmp_path / place, **WRITING)
    assert contents(tmp_path) == {"file": hashlib.sha256(b"x").hexdigest()}
