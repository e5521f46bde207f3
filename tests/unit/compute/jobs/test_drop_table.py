"""Tables that are dropped: nothing of them is left, and their name is free."""

from pathlib import Path

import pytest

import onefold as of
from onefold import agg
from onefold.compute.jobs import rows


def words(db, folder, column="n"):
    found = db.read_text(folder / "*.txt").group_by("line").agg(**{column: agg.count()})
    return found.into("words", mode="replace")


def test_nothing_of_a_dropped_table_is_left(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text("x\ny\n" * 3)
    with of.connect(tmp_path / "db") as db:
        db.map("other")["k"] = 1
        for _ in range(2):
            words(db, tmp_path).run(progress=False)
        assert db.drop("words")
        assert not db.drop("words")
        assert db.tables() == db.runs() == []
        with db._engine.shard.view() as view:
            tables = [
                name for name in vars(rows).values() if isinstance(name, str) and name.startswith("jobs/")
            ]
            left = {name: len(list(view.scan(name))) for name in tables if name != rows.MEMBER}
        assert not any(left.values()), left
        assert not [
            path
            for path in (tmp_path / "db" / "blobs").rglob("*")
            if path.is_file() and "hidden" not in path.parts
        ]
        run = words(db, tmp_path, "m").run(progress=False)
        assert run.progress().reused == 0
        assert db.table("words").to_polars()["m"].to_list() == [9, 9]


def test_a_table_whose_run_is_running_is_not_dropped(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x\n")
    with of.connect(tmp_path / "db") as db:
        run = words(db, tmp_path).start(workers=0)
        with pytest.raises(of.Conflict, match="cancel it"):
            db.drop("words")
        run.cancel()
        assert db.drop("words")
