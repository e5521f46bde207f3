"""Available collections from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import onefold as of
from support.command_line import ask


@pytest.fixture
def space(tmp_path: Path) -> Path:
    with of.connect(tmp_path / "space", region="eu") as eu, of.connect(tmp_path / "space", region="us") as us:
        eu.map("carts", mode="available", merge="keep_both")["a"] = ["ham"]
        eu.counters("likes").add("page", 3)
        eu.counters("stock", floor=0).add("sku", 5)
        eu.sets("tags").add(("t", 1), "b", "a")
        eu.map("users")["ann"] = 1
        us.sync()
    return tmp_path / "space"


def said(space: Path, *args: str) -> object:
    result = ask(*args, "--json", url=space)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_a_map_of_either_kind_is_read_by_its_name(space: Path) -> None:
    found = said(space, "get", "carts", "a")
    assert isinstance(found, dict)
    assert (found["value"], found["siblings"], found["region"]) == ([["ham"]], [["ham"]], "eu")
    assert said(space, "ls", "carts", "--region", "us") == [{"key": "a", "value": [["ham"]]}]
    found = said(space, "get", "users", "ann")
    assert isinstance(found, dict)
    assert found["value"] == 1 and "region" not in found


def test_collections_of_a_region_are_listed_with_their_mode(space: Path) -> None:
    made = said(space, "ls")
    assert made == [
        {"kind": "map", "name": "users", "count": 1, "shards": [0], "mode": "consistent"},
        {
            "kind": "map",
            "name": "carts",
            "count": 1,
            "shards": [0],
            "mode": "available",
            "merge": "keep_both",
        },
        {"kind": "counters", "name": "likes", "count": 1, "shards": [0], "mode": "available"},
        {"kind": "counters", "name": "stock", "count": 1, "shards": [0], "mode": "available", "floor": 0},
        {"kind": "sets", "name": "tags", "count": 1, "shards": [0], "mode": "available"},
    ]
    assert said(space, "ls", "--region", "us") == made
    lines = [line.split() for line in ask("ls", url=space).stdout.splitlines()]
    assert ["map", "1", "available,", "keep_both", "carts"] in lines, lines
    assert ["counters", "1", "available,", "floor", "0", "stock"] in lines
    missing = ask("drop", "map", "carts", url=space)
    assert missing.returncode == 1 and "there is no map" in missing.stderr


def test_what_is_put_goes_to_the_region_that_is_named(space: Path) -> None:
    assert ask("put", "carts", "b", "1", "--region", "us", url=space).stdout.startswith("@0-2-")
    with of.connect(space, region="us") as us:
        assert us.map("carts", mode="available", merge="keep_both").get_item("b").region == "us"  # type: ignore[union-attr]
    assert ask("put", "new", "k", '{"a": 1}', "--merge", "fields", url=space).returncode == 0
    with of.connect(space, region="eu") as eu:
        assert eu.map("new", mode="available", merge="fields").patch("k", {"b": 2}) == {"a": 1, "b": 2}
    version = ask("put", "new", "k", '{"a": 2}', url=space).stdout.strip()
    assert ask("put", "new", "k", '{"a": 3}', "--if-version", version, url=space).returncode == 0
    assert ask("put", "new", "k", '{"a": 4}', "--if-version", version, url=space).returncode == 1
    assert ask("del", "new", "k", url=space).returncode == 0


def test_changes_have_their_region(space: Path) -> None:
    result = ask("watch", "carts", "--initial", "--timeout", "50ms", "--json", url=space)
    (line,) = result.stdout.splitlines()
    assert json.loads(line)["region"] == "eu"


def test_counters_and_sets_are_printed(space: Path) -> None:
    assert said(space, "counters", "likes") == [{"key": "page", "value": 3}]
    assert said(space, "counters", "stock", "sku") == {"key": "sku", "value": 5, "here": 5}
    found = said(space, "counters", "stock", "sku", "--region", "us")
    assert found == {"key": "sku", "value": 5, "here": 0}
    assert said(space, "sets", "tags") == [{"key": ["t", 1], "elements": ["a", "b"]}]
    assert ask("sets", "tags", '["t", 1]', url=space).stdout == "a\nb\n"
    assert ask("counters", "likes", "page", url=space).stdout == "3\n"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["get", "tags", "t"], "'tags' is not a map: see `onefold sets tags`"),
        (["counters", "tags"], "'tags' is sets: see `onefold sets`"),
        (["counters", "carts"], "'carts' is a map: see `onefold ls`"),
        (["sets", "none"], "there are no sets of the name 'none'"),
        (["counters", "likes", "none"], "none"),
        (["get", "carts", "a", "--region", "de"], "there is no region de"),
        (["get", "carts", "a", "--region", "a/b"], "region"),
    ],
)
def test_what_is_not_there_is_said_and_makes_nothing(space: Path, args: list[str], message: str) -> None:
    result = ask(*args, url=space)
    assert result.returncode in (1, 2) and message in result.stderr, result.stderr
    with of.connect(space, region="eu") as db:
        assert sorted(one.name for one in db.regions()) == ["eu", "us"]


def test_the_regions_are_listed(space: Path, tmp_path: Path) -> None:
    found = said(space, "region", "list", "--region", "us")
    assert isinstance(found, list)
    assert [one["name"] for one in found] == ["us", "eu"] and found[0]["state"] == "here"
    of.connect(tmp_path / "other").close()
    assert said(tmp_path / "other", "region", "list") == []
    assert not (tmp_path / "other" / "regions").exists()


def test_explain_says_what_an_available_collection_survives(space: Path) -> None:
    found = said(space, "explain", "carts")
    assert isinstance(found, dict) and "table" not in found
    (made,) = found["collections"]
    assert (made["kind"], made["mode"], made["merge"], made["region"], made["count"]) == (
        "map",
        "available",
        "keep_both",
        "eu",
        1,
    )
    survives = {one["failure"]: one for one in made["survives"]}
    assert list(survives) == ["link", "process", "machine", "disk"]
    assert survives["link"]["writes"] == "yes" and not survives["link"]["reads"]["bounded"]
    assert not any(one["reads"]["strong"] for one in survives.values()), "no region can read so"
    assert not survives["disk"]["kept"] and "all regions" in survives["disk"]["why"]
    assert [lag["region"] for lag in made["lag"]] == ["us"] and made["lag"][0]["seconds"] >= 0
    text = ask("explain", "stock", "--region", "us", url=space).stdout
    assert "Counters 'stock' with the floor 0: 1 keys, as region us knows it." in text and "It is AP" in text
    (consistent,) = said(space, "explain", "users")["collections"]  # type: ignore[index]
    assert consistent["mode"] == "consistent" and "lag" not in consistent
    assert ask("explain", "nothing", url=space).returncode == 1


def test_export_and_import_have_what_a_region_knows(space: Path, tmp_path: Path) -> None:
    counts = said(space, "export", str(tmp_path / "file"), "--region", "us")
    assert counts == {"items": 2, "messages": 0, "records": 0, "counters": 2, "elements": 2}
    unknown = ask("export", str(tmp_path / "no"), "--region", "mars", url=space)
    assert unknown.returncode == 1 and not (tmp_path / "no").exists()
    new = tmp_path / "new"
    result = ask("import", str(tmp_path / "file"), "--region", "mars", url=new)
    assert result.stderr == "imported 2 items, 0 messages, 0 records, 2 counters, 2 elements of sets\n"
    assert said(new, "counters", "stock", "sku") == {"key": "sku", "value": 5, "here": 5}
    assert said(new, "sets", "tags") == said(space, "sets", "tags")
    with of.connect(new, region="mars") as mars:
        item = mars.map("carts", mode="available", merge="keep_both").get_item("a")
        assert item is not None and (item.value, item.region) == ([["ham"]], "mars")
    again = ask("import", str(tmp_path / "file"), url=new)
    assert again.returncode == 1 and "is there already" in again.stderr
    again = ask("import", str(tmp_path / "file"), "--on-conflict", "replace", url=new)
    assert again.returncode == 0
    assert said(new, "counters", "likes", "page") == {"key": "page", "value": 3, "here": None}


def test_an_export_makes_no_region(tmp_path: Path) -> None:
    with of.connect(tmp_path / "plain") as db:
        db.map("m")["k"] = 1
    assert ask("export", str(tmp_path / "file"), url=tmp_path / "plain").returncode == 0
    assert ask("import", str(tmp_path / "file"), url=tmp_path / "new").returncode == 0
    assert not (tmp_path / "plain" / "regions").exists() and not (tmp_path / "new" / "regions").exists()


def test_status_has_the_regions(space: Path) -> None:
    found = said(space, "status", "--region", "us")
    assert isinstance(found, dict)
    assert [(one["name"], one["conflicts"]) for one in found["regions"]] == [("us", 0), ("eu", 0)]
    assert list(found["regions"][0]) == [
        "name",
        "state",
        "behind_writes",
        "behind_s",
        "clock_ahead_s",
        "gone_bytes",
        "conflicts",
    ]
    assert "region   eu  here" in ask("status", url=space).stdout
    assert ask("status", "--region", "nowhere", url=space).returncode == 1


def test_status_of_a_space_without_regions(tmp_path: Path) -> None:
    with of.connect(tmp_path / "plain") as db:
        db.map("m")["k"] = 1
    found = said(tmp_path / "plain", "status")
    assert isinstance(found, dict) and found["regions"] == []
    assert not (tmp_path / "plain" / "regions").exists()


def test_the_doctor_looks_at_regions(space: Path) -> None:
    found = said(space, "doctor", "--region", "us")
    assert isinstance(found, dict)
    checks = {check["name"]: check for check in found["checks"]}
    assert checks["regions"]["status"] == "ok" and "us, eu exchange" in checks["regions"]["found"]
    assert {"regions' clocks", "deleted items"} <= checks.keys()
