"""Collections for every region in exports: what one region knows of them comes back as new writes of another one."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

import onefold as of
from onefold import config
from onefold.db import Database
from onefold.state.export.exporting import Counts, export
from onefold.state.export.importing import Imported, import_file
from onefold.state.export.region_writing import Target
from onefold.testing import links


def exported(db: Database) -> tuple[str, Counts]:
    out: list[str] = []
    counts = export(db._state, out.append, db._available)
    return "".join(out), counts


def put_in(db: Database, text: str, on_conflict: Any = "error", *, there: bool = False) -> Imported:
    return import_file(db._state, io.StringIO(text), on_conflict, Target(lambda: db._available, there))


def parted(text: str) -> tuple[list[dict[str, Any]], list[int]]:
    """The lines without the ends of lifetimes, and those: what is written anew lasts as long, by another clock."""
    lines = [json.loads(line) for line in text.splitlines()[1:-1]]
    ends = [line.pop("expires_ms") for line in lines if "expires_ms" in line]
    return lines, ends


def filled(db: Database) -> None:
    db.map("plain")["a"] = 1
    registers = db.map("carts", mode="available")
    registers[("eu", 7)] = {"x": b"1"}
    registers["gone"] = 1
    del registers["gone"]
    registers.put("short", 1, ttl="1h")
    fields = db.map("people", mode="available", merge="fields")
    fields["ann"] = {"city": "Bern", "phone": "1"}
    fields.patch("ann", {"city": "Bonn"}, unset=("phone",))
    db.map("drafts", mode="available", merge="keep_both")["page"] = [1, None]
    likes = db.counters("likes")
    likes.add("post", 1 << 60)
    likes.add("none", 0)
    db.counters("stock", floor=-5).add("sku", -3)
    sets = db.sets("tags")
    sets.add("post", "new", 7)
    sets.add("post", "brief", ttl="1h")
    sets.discard("post", "new")


def content(db: Database) -> dict[str, Any]:
    drafts = db.map("drafts", mode="available", merge="keep_both")
    carts = db.map("carts", mode="available")
    return {
        "plain": dict(db.map("plain").items()),
        "carts": dict(carts.items()),
        "people": dict(db.map("people", mode="available", merge="fields").items()),
        "drafts": dict(drafts.items()),
        "likes": dict(db.counters("likes").items()),
        "stock": dict(db.counters("stock", floor=-5).items()),
        "tags": dict(db.sets("tags").items()),
    }


def test_what_a_region_knows_comes_back_in_another_space(tmp_path: Path) -> None:
    with of.connect(tmp_path / "one", region="eu") as db, of.connect(tmp_path / "two", shards=3) as other:
        filled(db)
        text, counts = exported(db)
        assert counts == Counts(items=5, messages=0, records=0, counters=3, elements=2)
        assert put_in(other, text) == Imported(items=5, counters=3, elements=2)
        assert content(other) == content(db)
        again, _ = exported(other)
        (lines, ends), (before, ended) = parted(again), parted(text)
        assert lines == before
        assert [abs(a - b) < 60_000 for a, b in zip(ends, ended, strict=True)] == [True, True]
        assert other.counters("stock", floor=-5).here("sku") == 2


def test_only_files_with_such_collections_have_the_new_version(tmp_path: Path) -> None:
    with of.connect(tmp_path / "one") as db:
        db.map("plain")["a"] = 1
        plain: list[str] = []
        export(db._state, plain.append)
        assert json.loads(plain[0])["version"] == 1
        db.counters("likes").add("a")
        assert json.loads(exported(db)[0].splitlines()[0])["version"] == 2


@pytest.mark.parametrize("on_conflict", ["error", "replace", "skip"])
def test_what_is_there_already(tmp_path: Path, on_conflict: str) -> None:
    with of.connect(tmp_path / "one") as db, of.connect(tmp_path / "two") as other:
        filled(db)
        text, _ = exported(db)
        other.map("carts", mode="available")[("eu", 7)] = "mine"
        other.counters("likes").add("post", 5)
        other.counters("stock", floor=-5).add("sku", 40)
        other.sets("tags").add("post", "mine", 7)
        if on_conflict == "error":
            with pytest.raises(
                of.Conflict, match=r"line 3: .*\('eu', 7\).* is there already. Nothing was imported"
            ):
                put_in(other, text)
            assert len(other.map("plain")) == 0
            return
        for _ in range(2):
            done = put_in(other, text, on_conflict, there=True)
        kept = on_conflict == "skip"
        assert done.skipped == (10 if kept else 0)
        assert other.map("carts", mode="available")[("eu", 7)] == ("mine" if kept else {"x": b"1"})
        assert other.counters("likes").get("post") == (5 if kept else 1 << 60)
        assert other.counters("stock", floor=-5).get("sku") == (40 if kept else -3)
        assert other.sets("tags").get("post") == {"mine", 7, "brief"}


def test_values_side_by_side(tmp_path: Path) -> None:
    space = tmp_path / "space"
    with of.connect(space, region="eu") as eu, of.connect(space, region="us") as us:
        eu.sync()
        links.cut(space, "eu", "us")
        for db, value in ((eu, "first"), (us, "second")):
            db.map("drafts", mode="available", merge="keep_both")["page"] = value
        links.heal(space)
        eu.sync()
        text, counts = exported(eu)
    line = json.loads(text.splitlines()[1])
    assert sorted(one["value"] for one in line["siblings"]) == ["first", "second"]
    assert counts.items == 1
    with of.connect(tmp_path / "other") as other:
        with pytest.raises(of.Conflict, match=r"line 2: .*'page'.* has 2 values side by side"):
            put_in(other, text)
        assert other._region_client is None or not len(
            other.map("drafts", mode="available", merge="keep_both")
        )
        put_in(other, text, "replace")
        latest = line["siblings"][-1]["value"]
        assert other.map("drafts", mode="available", merge="keep_both")["page"] == [latest]


LINE = {"available": "m", "merge": "last_writer_wins", "key": "k", "value": 1}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (LINE | {"merge": "none"}, "merge must be one of"),
        (LINE | {"merge": "fields"}, "which has no fields"),
        (LINE | {"merge": "keep_both"}, "'siblings' is missing"),
        (LINE | {"merge": "keep_both", "siblings": []}, "siblings must be"),
        (LINE | {"merge": "keep_both", "siblings": [1]}, "siblings must be"),
        (LINE | {"expires_ms": 1.5}, "expires_ms must be"),
        (LINE | {"available": ""}, "not empty"),
        (LINE | {"available": "x" * config.NAME_BYTES_MAX}, "too long"),
        ({"counters": "c", "key": 1, "value": 0.5}, "value must be a whole number"),
        ({"counters": "c", "key": 1, "value": {"$int": str(1 << 63)}}, "value must be a whole number"),
        ({"counters": "c", "key": 1, "value": True}, "value must be a whole number"),
        ({"counters": "c", "floor": 0, "key": 1, "value": -1}, "a counter of -1 with a floor of 0"),
        ({"counters": "c", "floor": 1, "key": 1, "value": 1}, "floor above 0"),
        ({"counters": "c", "floor": "0", "key": 1, "value": 1}, "floor must be"),
        ({"sets": "s", "key": 1}, "'element' is missing"),
        ({"sets": "s", "key": 1, "element": 0.5}, "line 2"),
        ({"map": "n", "key": "k", "value": 1}, "line 3: 'n' is a consistent map and an available"),
        (
            {"counters": "n", "key": "k", "value": 1},
            "line 3: 'n' is a collection of counters here and an available map",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_lines_change_nothing(line: dict[str, Any], said: str) -> None:
    head = {"format": "onefold-export", "version": 2, "id": "e_1"}
    other = {**LINE, "available": "n"}
    text = "\n".join(map(json.dumps, [head, line, other, {"end": True, "lines": 2}]))
    if "line 3" in said and "counters" in line:
        text = "\n".join(map(json.dumps, [head, other, line, {"end": True, "lines": 2}]))
    with of.connect("memory://") as db:
        with pytest.raises((of.InvalidValue, of.InvalidArgument), match=said):
            put_in(db, text)
        assert not len(db.map("n")) and not len(db.map("m"))


def test_a_name_that_is_another_thing_is_refused(tmp_path: Path) -> None:
    head = {"format": "onefold-export", "version": 2, "id": "e_1"}

    def file(line: dict[str, Any]) -> str:
        return "\n".join(map(json.dumps, [head, line, {"end": True, "lines": 1}]))

    with of.connect(tmp_path / "space") as db:
        db.map("m")["k"] = 1
        with pytest.raises(of.InvalidArgument, match="line 2: 'm' is a consistent map already"):
            put_in(db, file(LINE))
        db.counters("c").add("k")
        with pytest.raises(of.InvalidArgument, match="line 2: 'c' is a collection of counters already"):
            put_in(db, file(LINE | {"available": "c"}))
        with pytest.raises(of.InvalidArgument, match="line 2: 'c' is a collection of counters already"):
            put_in(db, file({"map": "c", "key": "k", "value": 1}), there=True)
        with pytest.raises(of.InvalidArgument, match="no region was given"):
            import_file(db._state, io.StringIO(file(LINE)))


def test_more_lines_than_one_record_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    with of.connect("memory://", shards=2) as db, of.connect("memory://", shards=3) as other:
        db.map("m", mode="available").update({number: number for number in range(100)})
        for number in range(50):
            db.counters("c").add(number, number)
        text, _ = exported(db)
        monkeypatch.setattr(config, "IMPORT_BATCH_LINES", 7)
        assert put_in(other, text) == Imported(items=100, counters=50)
        assert dict(other.map("m", mode="available").items()) == {n: n for n in range(100)}
        assert dict(other.counters("c").items()) == {n: n for n in range(50)}
