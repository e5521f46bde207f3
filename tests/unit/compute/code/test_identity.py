"""What of a plan, its stages and their input changes the name of a task, and what does not."""

from __future__ import annotations

from typing import Any

import polars as pl

from onefold.compute.code.identity import (
    explain_difference,
    partition_content,
    split_content,
    stage_shape,
    task_content,
    task_identity,
)
from onefold.compute.plan.nodes import (
    Filter,
    FlatMap,
    Into,
    Join,
    Map,
    MapReduce,
    Node,
    Select,
    Source,
    Union,
    WithColumns,
    WriteParquet,
)
from onefold.compute.plan.stages import (
    Branch,
    BroadcastJoin,
    RowsOutput,
    ShuffleOutput,
    SourceLeaf,
    Stage,
    TaskInput,
    Unit,
)
from support.programs import (
    PROGRAM,
    SOURCE,
    Load,
    load_program,  # noqa: F401
    of_plan,
)

# -- plans ---------------------------------------------------------------------------------------------------


def one(row: Any) -> Any:
    return row


def two(key: Any, values: Any) -> Any:
    return sum(values)


PLANS: list[Node] = [
    SOURCE,
    Source("csv", ("a.csv",), (("separator", ","),)),
    Source("jsonl", ("a.csv",), (("separator", ";"),)),
    Select(SOURCE, (pl.col("a"),)),
    Select(SOURCE, (pl.col("a"), pl.col("b"))),
    WithColumns(SOURCE, (pl.col("a"),)),
    Filter(SOURCE, (pl.col("a") > 1,)),
    Filter(SOURCE, (pl.col("a") > 2,)),
    Filter(Select(SOURCE, (pl.col("a"),)), (pl.col("a") > 1,)),
    Select(Filter(SOURCE, (pl.col("a") > 1,)), (pl.col("a"),)),
    Map(SOURCE, one),
    Map(SOURCE, one, (("a", pl.Int64()),)),
    FlatMap(SOURCE, one),
    MapReduce(SOURCE, one, two),
    MapReduce(SOURCE, one, two, two),
    MapReduce(SOURCE, one, two, None, 3),
    Union((SOURCE, SOURCE)),
    Union((SOURCE, SOURCE, SOURCE)),
    Join(SOURCE, SOURCE, ("a",), "inner"),
    Join(SOURCE, SOURCE, ("a",), "left"),
    Join(SOURCE, Select(SOURCE, (pl.col("a"),)), ("a",), "left"),
    Join(Select(SOURCE, (pl.col("a"),)), SOURCE, ("a",), "left"),
]


def test_different_plans_have_different_digests() -> None:
    digests = [of_plan(plan).hex for plan in PLANS]
    assert len(set(digests)) == len(digests)


def test_paths_table_mode_and_version_do_not_count() -> None:
    before = of_plan(SOURCE)
    assert of_plan(Source("csv", ("b.csv", "c.csv"), SOURCE.options)).hex == before.hex
    assert of_plan(SOURCE, Into("u", "replace", "v2", 5.0)).hex == before.hex
    secret = Source("csv", ("a.csv",), (*SOURCE.options, ("storage_options", {"key": "secret"})))
    assert of_plan(secret).hex == before.hex


def test_what_the_sink_makes_counts() -> None:
    plain = of_plan(SOURCE, WriteParquet("out")).hex
    assert of_plan(SOURCE, WriteParquet("elsewhere", (), "append")).hex == plain
    assert of_plan(SOURCE, WriteParquet("out", ("a",))).hex != plain


def test_a_difference_is_explained(load: Load) -> None:
    def plan(text: str, limit: int, separator: str) -> dict[str, str]:
        source = Source("csv", ("x",), (("separator", separator),))
        return of_plan(Map(Filter(source, (pl.col("a") > limit,)), load(text).job)).parts

    before = plan(PROGRAM, 1, ";")
    assert explain_difference(before, plan("# moved\n" + PROGRAM, 1, ";")) == []
    changed = PROGRAM.replace("LIMIT = 3", "LIMIT = 4").replace("word not in STOP", "word in STOP")
    assert explain_difference(before, plan(changed, 2, ",")) == [
        "read_csv: separator has changed",
        "filter 1 has changed",
        "map: job uses helper has changed",
        "map: job uses LIMIT has changed",
    ]
    both = explain_difference(before, of_plan(Filter(SOURCE, (pl.col("a") > 1,))).parts)
    assert "map: job (function) is gone" in both
    assert "the order of the steps has changed" in both


# -- tasks ---------------------------------------------------------------------------------------------------


def unit(**changes: Any) -> Unit:
    return Unit(**{"path": "a", "start": 0, "stop": 5, "size": 9, "etag": "e", "cost": 5, **changes})


def test_a_split_is_its_units_as_they_are() -> None:
    item = TaskInput(0, (unit(),))
    contents = [
        split_content(item, "csv"),
        split_content(item, "text"),
        split_content(TaskInput(1, (unit(),)), "csv"),
        split_content(TaskInput(0, (unit(), unit(start=5, stop=9))), "csv"),
        split_content(item, "csv", [b"x" * 16]),
        split_content(item, "csv", [b"x" * 16, b"y" * 16]),
        *(
            split_content(TaskInput(0, (unit(**change),)), "csv")
            for change in ({"path": "b"}, {"start": 1}, {"stop": 6}, {"size": 8}, {"etag": "f"})
        ),
    ]
    assert len(set(contents)) == len(contents)
    assert split_content(TaskInput(0, (unit(cost=6),)), "csv") == contents[0]
    assert split_content(item, "csv", [b"y" * 16, b"x" * 16]) == contents[5]


def test_a_partition_is_its_number_and_what_was_written() -> None:
    contents = {
        partition_content(0, [b"a" * 16]),
        partition_content(1, [b"a" * 16]),
        partition_content(0, [b"a" * 16, b"b" * 16]),
        partition_content(0, []),
    }
    assert len(contents) == 4
    assert partition_content(0, [b"b", b"a"]) == partition_content(0, [b"a", b"b"])


def test_a_task_has_its_table_version_stage_and_content() -> None:
    given: dict[str, Any] = {"table": "t", "name": "v", "stage": 0, "content": b"c"}
    names = {
        task_identity(**{**given, **change})
        for change in (
            {},
            {"table": "u"},
            {"name": "w"},
            {"stage": 1},
            {"content": b"d"},
            {"table": "tv", "name": ""},
        )
    }
    assert len(names) == 6
    assert all(len(name) == 16 for name in names)


def test_a_stage_that_is_laid_out_otherwise_names_other_tasks() -> None:
    leaf = Branch(SourceLeaf(SOURCE, ()))
    item = TaskInput(0, (unit(),))
    small = Stage(0, (leaf,), RowsOutput())
    shuffled = Stage(0, (leaf,), ShuffleOutput(("k",), 16))
    joined = Stage(0, (Branch(leaf.leaf, (BroadcastJoin(0, ("k",), "inner"),)),), RowsOutput())
    assert len({stage_shape(stage) for stage in (small, shuffled, joined)}) == 3
    assert task_content(small, item, []) != task_content(shuffled, item, [])
    assert task_content(small, item, []) == task_content(small, TaskInput(0, (unit(cost=1),)), [])
