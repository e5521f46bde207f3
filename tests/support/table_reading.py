"""Reading a space of ``space_of_tables``, also under a Python that has no pytest."""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path
from typing import Any

import onefold as of
from support.space_of_tables import how_it_reads

FOLDED = {"folded", "folded_class"}
HERE = f"{sys.version_info.major}{sys.version_info.minor}"


def read_all(folder: Path, expected: dict[str, Any], python: str) -> None:
    """Every table reads as the release that made it has read it; agg.fold only under its own Python, ``python``."""
    with of.connect(folder, create=False) as db:
        assert [table.name for table in db.tables()] == sorted(expected)
        assert {run.state for run in db.runs()} == {"done", "failed", "cancelled"}
        for table in db.tables():
            wanted = expected[table.name]
            assert [*dataclasses.astuple(table.status)] == wanted["status"], table.name
            assert [*table.key_columns] == wanted["keys"], table.name
            assert [*table.value_columns] == wanted["values"], table.name
            if table.name in FOLDED and python != HERE:
                made_by = rf"agg\.fold.*Python {python[0]}\.{python[1:]}"
                assert re.search(made_by, table.problem or ""), table.problem
                assert re.search(made_by, refusal(table)), table.name
                continue
            assert table.problem is None, table.problem
            assert how_it_reads(table) == wanted, table.name
        half = db.table("half").estimate("n")
        assert half.columns == ["word", "value", "lo", "hi", "level", "kind", "n", "N", "reason"]
        for name in expected:
            assert len(db.explain(name)) > 2


def refusal(table: Any) -> str:
    """What a read is refused with."""
    try:
        table.to_polars()
    except of.InvalidValue as error:
        return str(error)
    raise AssertionError(f"{table.name} was read without the functions that merge it")
