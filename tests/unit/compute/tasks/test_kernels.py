"""One task, run in each way there is, gives one result: the same as Polars or plain Python over the whole input."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from onefold import agg
from onefold.compute import aggregates, sources
from onefold.compute.blobs.store import BlobStore
from onefold.compute.plan.nodes import (
    Explode,
    Filter,
    FlatMap,
    Map,
    MapBatches,
    Node,
    Select,
    Source,
    WithColumns,
)
from onefold.compute.plan.stages import (
    Branch,
    BroadcastJoin,
    Output,
    PartialOutput,
    Result,
    RowsOutput,
    SourceLeaf,
    Stage,
    TaskInput,
    Unit,
)
from onefold.compute.tasks import kernels, outputs
from onefold.compute.tasks.kernels import execute
from onefold.compute.tasks.spec import TaskError, TaskSpec, has_python

NODE = Node()
ROWS = 700


class Input:
    """A CSV of two files, read by one task of several units in small chunks."""

    def __init__(self, folder: Path) -> None:
        generator = random.Random(11)
        rows = [
            (i, generator.choice("abcd"), generator.choice(["", "x y", "x", "y z w"])) for i in range(ROWS)
        ]
        self.frame = pl.DataFrame(rows, schema=["i", "k", "text"], orient="row")
        self.frame[:300].write_csv(folder / "a.csv")
        self.frame[300:].write_csv(folder / "b.csv")
        source = Source("csv", (str(folder / "*.csv"),))
        resolved = sources.resolve(source)
        self.leaf = SourceLeaf(source, resolved.schema)
        self.units: tuple[Unit, ...] = tuple(
            sources.units_of(source, resolved, split_bytes=1 << 20, min_units=1)
        )
        self.blobs = BlobStore(folder / "blobs")

    def spec(self, *steps: Any, output: Output | None = None, **options: Any) -> TaskSpec:
        stage = Stage(0, (Branch(self.leaf, steps),), output or RowsOutput())
        return TaskSpec(stage, TaskInput(0, self.units), **options)

    def load(self, result: Result) -> pl.DataFrame:
        frame = outputs.load_frame(result, self.blobs)
        return pl.DataFrame() if frame is None else frame

    def rows(self, *steps: Any, **options: Any) -> pl.DataFrame:
        return self.load(execute(self.spec(*steps, **options), self.blobs))

    def error(self, *steps: Any, **options: Any) -> Any:
        with pytest.raises(TaskError) as caught:
            execute(self.spec(*steps, **options), self.blobs)
        return caught.value.failure


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Input:
    monkeypatch.setattr(kernels, "MAP_BATCH_ROWS", 64)  # several chunks of every unit
    monkeypatch.setattr(outputs, "PENDING_ROWS_MAX", 100)
    return Input(tmp_path)


def every_way(data: Input, spec: TaskSpec, seed: int) -> Iterator[tuple[str, Result]]:
    """The task as one query or chunk by chunk, record by record, and out of ranges."""
    import dataclasses

    yield "whole", execute(spec, data.blobs)
    careful = dataclasses.replace(spec, isolate=True)
    yield "tracked", execute(careful, data.blobs)
    total = kernels.count_rows(spec, data.blobs)
    cuts = sorted({0, total, *random.Random(seed).sample(range(total + 1), 3)})
    parts = [execute(careful, data.blobs, rows=pair) for pair in pairwise(cuts)]
    inline, blob, rows = outputs.merge_parts(spec.stage.output, parts, data.blobs)
    yield "ranges", Result(inline, blob, sum(part.rows_in for part in parts), rows_out=rows)


EXPRESSIONS = (
    WithColumns(NODE, (pl.col("text").str.split(" ").alias("word"),)),
    Filter(NODE, (pl.col("i") % 3 != 0, pl.col("k", "text").is_not_null())),
    Explode(NODE, ("word",)),
    Select(NODE, (pl.col("k"), pl.col("i"), pl.col("word"))),
)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["rows", "partial", "functions"])
def test_every_way_gives_the_same(data: Input, kind: str, seed: int) -> None:
    expected = (
        data.frame.lazy()
        .with_columns(pl.col("text").str.split(" ").alias("word"))
        .filter(pl.col("i") % 3 != 0)
        .explode("word")
        .select("k", "i", "word")
        .collect()
    )
    aggs = (("n", agg.count()), ("first", agg.first("i")), ("last", agg.last("word")), ("sum", agg.sum("i")))
    keys = (pl.col("k"),)
    steps: tuple[Any, ...] = EXPRESSIONS
    output: Output = RowsOutput() if kind == "rows" else PartialOutput(keys, aggs)
    if kind == "functions":

        def words(record: dict[str, Any]) -> list[dict[str, Any]]:
            if record["i"] % 3 == 0:
                return []
            return [{**record, "word": word} for word in record["text"].split(" ")]

        steps = (
            FlatMap(NODE, words),
            MapBatches(NODE, lambda batch: batch.select("k", "i", "word"), batch_rows=7),
        )
    spec = data.spec(*steps, output=output)
    for way, result in every_way(data, spec, seed):
        assert result.rows_in == ROWS, way
        got = data.load(result)
        if kind == "rows":
            assert_frame_equal(got, expected)
            assert result.rows_out == expected.height
        else:
            grouped = expected.group_by("k").agg(
                n=pl.len(), first=pl.col("i").first(), last=pl.col("word").last(), sum=pl.col("i").sum()
            )
            assert_frame_equal(aggregates.final(got, ["k"], aggs), grouped.sort("k"), check_dtypes=False)


def test_a_rerun_gives_the_same_bytes(data: Input) -> None:
    aggs = (("m", agg.mean(pl.col("i") * 0.1)), ("s", agg.std(pl.col("i") / 7)))
    spec = data.spec(
        Map(NODE, lambda record: {"k": record["k"], "i": record["i"]}),
        output=PartialOutput((pl.col("k"),), aggs),
    )
    assert len({execute(spec, data.blobs).inline for _ in range(3)}) == 1


def test_words(data: Input) -> None:
    output = PartialOutput((pl.col("value"),), (("n", agg.count()), ("m", agg.count())))
    result = execute(
        data.spec(FlatMap(NODE, lambda r: (r["text"] or "").split(" ")), output=output), data.blobs
    )
    counts = Counter(word for text in data.frame["text"] for word in text.split(" "))
    final = aggregates.final(data.load(result), ["value"], output.aggs)
    assert dict(zip(final["value"], final["n"], strict=True)) == counts
    assert final["n"].equals(final["m"])


def test_select_of_literals_keeps_the_rows(data: Input) -> None:
    steps = (Select(NODE, (pl.lit(7).alias("seven"), pl.lit("x").alias("x"))),)
    for _, result in every_way(data, data.spec(*steps), 1):
        assert data.load(result).shape == (ROWS, 2)


def test_explode_drops_empty_and_null_lists_only(data: Input) -> None:
    def lists(record: dict[str, Any]) -> dict[str, Any]:
        return {"i": record["i"], "l": [[1, None], [], None, [2]][record["i"] % 4]}

    spec = data.spec(Map(NODE, lists), Explode(NODE, ("l",)))
    expected = [(i, v) for i in range(ROWS) for v in ([1, None], [], [], [2])[i % 4]]
    for _, result in every_way(data, spec, 2):
        assert data.load(result).rows() == expected


@pytest.mark.parametrize("small_is", ["right", "left"])
def test_broadcast_join(data: Input, small_is: Any) -> None:
    small = pl.DataFrame({"text": ["S1", "S2", "S3"], "k": ["a", "a", None]})
    parts = [
        Result(*outputs.store_frame(part, data.blobs)[:2]) for part in (small[:1], small[1:], small.clear())
    ]
    step = BroadcastJoin(1, ("k",), "inner", small_is)
    stage = Stage(0, (Branch(data.leaf, (step,)),), RowsOutput(), (1,))
    spec = TaskSpec(stage, TaskInput(0, data.units), inputs={1: [*parts, Result()]})
    sides = (data.frame, small) if small_is == "right" else (small, data.frame)
    expected = sides[0].join(sides[1], on="k", how="inner")
    for _, result in every_way(data, spec, 3):
        got = data.load(result)
        assert got.columns == expected.columns
        assert_frame_equal(got, expected, check_row_order=False)


def test_no_rows(data: Input, tmp_path: Path) -> None:
    nothing = Filter(NODE, (pl.col("i") < 0,))
    assert data.rows(nothing).schema == data.rows().schema
    result = execute(data.spec(nothing, Map(NODE, lambda record: record)), data.blobs)
    assert (result.inline, result.blob, result.rows_in, result.rows_out) == (None, None, ROWS, 0)
    typed = data.rows(nothing, Map(NODE, lambda record: record, (("x", pl.Int64),)))
    assert typed.schema == {"x": pl.Int64} and typed.height == 0
    output = PartialOutput((), (("n", agg.count()),))
    for steps in ((nothing,), (nothing, Map(NODE, len, (("x", pl.Int64),)))):
        final = aggregates.final(
            data.load(execute(data.spec(*steps, output=output), data.blobs)), [], output.aggs
        )
        assert final["n"].to_list() == [0]
    assert outputs.merge_parts(output, [Result(), Result()], data.blobs) == (None, None, 0)


def test_progress_counts_records(data: Input) -> None:
    seen: list[int] = []
    execute(data.spec(Map(NODE, len)), data.blobs, on_rows=seen.append)
    assert seen == sorted(seen) and seen[-1] == ROWS and len(seen) > 3
    execute(data.spec(), data.blobs, on_rows=seen.append)
    assert seen[-1] == ROWS


def test_which_stages_need_a_process(data: Input) -> None:
    assert not has_python(data.spec(*EXPRESSIONS).stage)
    assert has_python(data.spec(*EXPRESSIONS, Map(NODE, len)).stage)
    folding = (("f", agg.fold(int, lambda a, b: a, lambda a, b: a)),)
    assert has_python(data.spec(output=PartialOutput((), folding)).stage)


# -- what breaks --------------------------------------------------------------------------------------------------------


def test_records_are_named_behind_steps_that_move_rows(data: Input) -> None:
    def broken(record: dict[str, Any]) -> int:
        if record["i"] == 500 and record["word"] == "z":
            raise ZeroDivisionError
        return 1

    frame = data.frame.with_columns(text=pl.when(pl.col("i") == 500).then(pl.lit("y z w")).otherwise("text"))
    frame[300:].write_csv(data.units[1].path)
    source = data.leaf.source
    data.units = tuple(sources.units_of(source, sources.resolve(source), split_bytes=1 << 20, min_units=1))
    failure = data.error(*EXPRESSIONS, Map(NODE, broken))
    assert failure.kind == "ZeroDivisionError"
    assert failure.location.endswith("b.csv: line 202") and "'word': 'z'" in failure.record
    result = execute(data.spec(*EXPRESSIONS, Map(NODE, broken), skip_errors=True), data.blobs)
    assert [letter.location.endswith("b.csv: line 202") for letter in result.dead] == [True]


def test_records_are_named_behind_functions_that_multiply_them(data: Input) -> None:
    def broken(value: tuple[int, int]) -> int:
        if value == (70, 2):
            raise LookupError
        return 1

    failure = data.error(FlatMap(NODE, lambda r: [(r["i"], n) for n in range(3)]), Map(NODE, broken))
    assert failure.record == "(70, 2)" and failure.location.endswith("a.csv: line 72")


def test_batches_and_expressions_are_halved_down_to_the_record(data: Input) -> None:
    def batch(frame: pl.DataFrame) -> pl.DataFrame:
        if frame["i"].is_in([77, 350]).any():
            raise OSError("no")
        return frame

    cast = Select(
        NODE, (pl.when(pl.col("i") == 400).then(pl.lit("x")).otherwise(pl.lit("1")).cast(pl.Int64),)
    )
    failure = data.error(MapBatches(NODE, batch), isolate=True)
    assert failure.final and failure.location.endswith("a.csv: line 79") and "'i': 77" in failure.record
    result = execute(data.spec(MapBatches(NODE, batch), skip_errors=True), data.blobs)
    assert [letter.error for letter in result.dead] == ["OSError: no"] * 2
    assert data.load(result)["i"].to_list() == [i for i in range(ROWS) if i not in {77, 350}]
    assert (
        data.error(cast).kind == "InvalidOperationError"
    )  # one query over the split: no record is named yet
    assert "'i': 400" in data.error(cast, isolate=True).record
    skipped = execute(data.spec(cast, skip_errors=True), data.blobs)
    assert len(skipped.dead) == 1 and skipped.rows_out == ROWS - 1


def test_a_failure_that_does_not_come_back_is_still_a_failure(data: Input) -> None:
    calls = Counter[int]()

    def flaky(frame: pl.DataFrame) -> pl.DataFrame:
        calls[frame["i"][0]] += 1
        if frame["i"][0] == 64 and calls[64] == 1:
            raise TimeoutError("try again")
        return frame

    failure = data.error(MapBatches(NODE, flaky, batch_rows=64))
    assert failure.kind == "TimeoutError" and not failure.final and "or one of the" in failure.location


def test_columns_that_change_type_from_chunk_to_chunk(data: Input) -> None:
    widened = data.rows(Map(NODE, lambda r: r["i"] if r["i"] < 400 else r["i"] + 0.5))
    assert widened.schema == {"value": pl.Float64}
    nulls = data.rows(Map(NODE, lambda r: None if r["i"] < 400 else {"a": 1}["a"]))
    assert nulls["value"].null_count() == 400 and nulls.schema == {"value": pl.Int64}
    failure = data.error(Map(NODE, lambda r: r["i"] if r["i"] < 400 else "text"))
    assert failure.kind == "InvalidValue" and "value" in failure.message
    union = data.rows(Map(NODE, lambda r: {"a": 1} if r["i"] < 400 else {"a": 2, "b": "x"}))
    assert union.columns == ["a", "b"] and union["b"].null_count() == 400
