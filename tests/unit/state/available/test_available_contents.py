"""The list of collections has those of this connection's region, and asks nothing more where there are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import onefold as of
from onefold.state.core.contents import Collection


def available(db: of.Database) -> list[Collection]:
    return [one for one in db.collections() if one.mode == "available"]


def test_what_a_region_holds_is_counted_by_what_is_shown(tmp_path: Path) -> None:
    with of.connect(tmp_path, shards=3, region="eu") as db:
        db.map("plain")["a"] = 1
        carts = db.map("carts", mode="available")
        carts.update({number: number for number in range(50)})
        del carts[7]
        gone = db.map("gone", mode="available", merge="fields")
        gone["a"] = {"x": 1}
        del gone["a"]
        for name in ("a", "b"):
            db.sets("tags").add(name, 1, 2, 3)
        db.sets("tags").add("none", 1)
        db.sets("tags").discard("none", 1)
        db.counters("likes").add("a")
        db.counters("likes").add("b")
        db.counters("likes").delete("b")
        db.counters("stock", floor=-3).add("a", 1)
        db.map("drafts", mode="available", merge=lambda siblings: siblings[0])["a"] = 1
        found = [(one.kind, one.name, one.count, one.merge, one.floor) for one in available(db)]
        assert found == [
            ("map", "carts", 49, "last_writer_wins", None),
            ("map", "drafts", 1, "keep_both", None),
            ("counters", "likes", 1, None, None),
            ("counters", "stock", 1, None, -3),
            ("sets", "tags", 2, None, None),
        ]
        assert available(db)[0].shards == (0, 1, 2)
        assert [one.name for one in db.collections() if one.mode == "consistent"] == ["plain"]


def test_what_has_ended_is_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with of.connect(tmp_path) as db:
        db.map("carts", mode="available").put("a", 1, ttl="1h")
        db.sets("tags").add("a", 1, ttl="1h")
        assert len(available(db)) == 2
        env = type(db._available.env)
        now = db._available.env.wall_ms()
        monkeypatch.setattr(env, "wall_ms", lambda _: now + 7_200_000)
        assert available(db) == []


def test_a_space_without_regions_gets_none_and_opens_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with of.connect(tmp_path) as db:
        db.map("plain")["a"] = 1
        offset = db._shard.applied

        def opened(_: Any) -> Any:
            raise AssertionError("no region is opened")

        monkeypatch.setattr(db, "_open_region", opened)
        assert [one.name for one in db.collections()] == ["plain"]
        assert db._shard.applied == offset and not (tmp_path / "regions").exists()


def test_without_a_region_of_several_consistent_ones_are_listed(tmp_path: Path) -> None:
    with of.connect(tmp_path, region="eu") as eu, of.connect(tmp_path, region="us") as us:
        eu.counters("likes").add("a")
        us.sync()
        assert [one.name for one in available(us)] == ["likes"]
        with of.connect(tmp_path, read_only=True) as db:
            assert available(db) == []
        with of.connect(tmp_path, region="us", read_only=True) as db:
            assert [one.name for one in available(db)] == ["likes"]
