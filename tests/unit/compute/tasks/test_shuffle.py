"""Shuffle files, what decides a row's partition, joins, and map_reduce with its sorted runs."""

from __future__ import annotations

import datetime as dt
import errno
import random
from collections import defaultdict
from collections.abc import Callable, Iterable
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from onefold.compute import sources
from onefold.compute.blobs.store import BlobMissing, BlobStore
from onefold.compute.code.canonical import reduce_keys
from onefold.compute.plan.nodes import Source
from onefold.compute.plan.stages import (
    Branch,
    JoinLeaf,
    MapOutput,
    ReduceLeaf,
    Result,
    RowsOutput,
    ShuffleOutput,
    SourceLeaf,
    Stage,
    TaskInput,
)
from onefold.compute.tasks import joins, outputs, reduce, shuffle
from onefold.compute.tasks.kernels import execute
from onefold.compute.tasks.spec import TaskError, TaskSpec
from onefold.errors import InvalidKey, InvalidPlan, InvalidValue, LogCorrupt


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


# -- partitions ---------------------------------------------------------------------------------------------------------


def numbers(values: Iterable[Any], dtype: Any = None, partitions: int = 997) -> list[int]:
    frame = pl.DataFrame({"k": pl.Series(list(values), dtype=dtype)})
    return [int(number) for number in shuffle.partition_numbers(frame, ["k"], partitions)]


def test_partitions_are_the_same_for_ever() -> None:
    assert numbers(["a", "é", "", None]) == PINNED_TEXT
    assert numbers([0, 1, -1, 2**40, None]) == PINNED_NUMBERS
    assert numbers([dt.date(2024, 1, 1), None]) == PINNED_DATES


PINNED_TEXT = [285, 395, 427, 821]
PINNED_NUMBERS = [427, 647, 696, 439, 821]
PINNED_DATES = [108, 821]


@pytest.mark.parametrize(
    "dtype", [pl.Int8, pl.UInt16, pl.Int64, pl.Float32, pl.Float64, pl.Int128, pl.Decimal(10, 2)]
)
def test_equal_numbers_meet_whatever_their_type(dtype: Any) -> None:
    assert numbers([0, 1, 2, 100, None], dtype) == numbers([-0.0, 1.0, 2.0, 100.0, None])


def test_equal_times_and_texts_meet() -> None:
    moment = dt.datetime(2024, 5, 1, 12)
    assert len({numbers([moment], pl.Datetime(unit))[0] for unit in ("ms", "us", "ns")}) == 1
    assert numbers([dt.date(2024, 5, 1)]) == numbers([dt.datetime(2024, 5, 1)])
    assert (
        numbers(["x", "y"]) == numbers(["x", "y"], pl.Categorical) == numbers(["x", "y"], pl.Enum(["y", "x"]))
    )


def test_partitions_are_even() -> None:
    for values in (range(10_000), [f"user-{i:05}" for i in range(10_000)], [i * 4096 for i in range(10_000)]):
        counts = [0] * 16
        for number in numbers(values, partitions=16):
            counts[number] += 1
        assert max(counts) < 1.25 * min(counts), counts


def test_lists_are_no_keys() -> None:
    with pytest.raises(InvalidPlan, match="cannot be a key"):
        numbers([[1], [2]])


def test_file_gives_back_every_row_in_its_partition_and_order(blobs: BlobStore) -> None:
    frame = pl.DataFrame(
        {"k": [i % 57 for i in range(5000)], "i": range(5000), "t": [str(i) for i in range(5000)]}
    )
    name = shuffle.write_frame(frame, ["k"], 8, blobs)
    assert name == shuffle.write_frame(frame, ["k"], 8, blobs)  # the same bytes again
    where = shuffle.partition_numbers(frame, ["k"], 8)
    for partition in range(8):
        expected = frame.filter(pl.Series(where == partition))
        assert_frame_equal(shuffle.read_partition([Result(blob=name)], partition, blobs), expected)


def test_small_blocks_empty_partitions_and_no_rows(blobs: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shuffle, "BLOCK_ROWS", 3)
    one = pl.DataFrame({"k": ["x"] * 10, "i": range(10)})
    name = shuffle.write_frame(one, ["k"], 4, blobs)
    none = shuffle.write_frame(one.clear(), ["k"], 4, blobs)
    parts = [
        shuffle.read_partition([Result(), Result(blob=none), Result(blob=name)], p, blobs) for p in range(4)
    ]
    assert sorted(part.height for part in parts) == [0, 0, 0, 10]
    assert all(part.schema == one.schema for part in parts)
    assert shuffle.read_partition([Result()], 0, blobs).width == 0


def test_broken_files_are_not_read_as_rows(blobs: BlobStore) -> None:
    name = shuffle.write_frame(pl.DataFrame({"k": [1, 2, 3]}), ["k"], 2, blobs)
    data = blobs.get(name)
    path = blobs.path(name)
    for broken in (data[:-5], b"", data[:20]):
        path.write_bytes(broken)
        with pytest.raises(LogCorrupt):
            shuffle.read_partition([Result(blob=name)], 0, blobs)
    path.unlink()
    with pytest.raises(BlobMissing):
        shuffle.read_partition([Result(blob=name)], 0, blobs)


# -- joins --------------------------------------------------------------------------------------------------------------

LEFT = pl.DataFrame({"k": [1, 2, 2, None, 5], "v": list("abcde"), "w": [1.0] * 5})
RIGHT = pl.DataFrame({"v": ["R1", "R2", "R2b", "Rn"], "k": [1.0, 2.0, 2.0, None]})


@pytest.mark.parametrize("how", ["inner", "left"])
def test_shuffled_join_is_the_whole_join(blobs: BlobStore, how: Any) -> None:
    left = [Result(blob=shuffle.write_frame(part, ["k"], 3, blobs)) for part in (LEFT[:2], LEFT[2:])]
    right = [Result(blob=shuffle.write_frame(RIGHT, ["k"], 3, blobs))]
    stage = Stage(2, (Branch(JoinLeaf(0, 1, ("k",), how, 3)),), RowsOutput(), (0, 1))
    frames = []
    for partition in range(3):
        result = execute(
            TaskSpec(stage, TaskInput(0, partition=partition), inputs={0: left, 1: right}), blobs
        )
        frames.append(outputs.load_frame(result, blobs))
    together = pl.concat([frame for frame in frames if frame is not None])
    expected = LEFT.with_columns(pl.col("k").cast(float)).join(RIGHT, on="k", how=how)
    assert together.columns == expected.columns == ["k", "v", "w", "v_right"]
    assert_frame_equal(together, expected, check_row_order=False)
    assert joins.join(LEFT, RIGHT, ["k"], how).columns == expected.columns


def test_keys_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(InvalidPlan, match="cast one of them"):
        joins.join(LEFT, pl.DataFrame({"k": ["1"]}), ["k"], "inner")
    with pytest.raises(InvalidPlan, match="right side of the join has no column"):
        joins.join(LEFT, pl.DataFrame({"x": ["1"]}), ["k"], "inner")


# -- map_reduce ---------------------------------------------------------------------------------------------------------


def test_equal_keys_have_equal_bytes() -> None:
    utc = dt.datetime(2024, 1, 1, 12, tzinfo=dt.UTC)
    same: list[list[Any]] = [
        [1, 1.0],
        [Decimal(1), Decimal("1.00")],
        [Fraction(1), Fraction(2, 2)],
        [0, 0.0, -0.0],
        [0.5],
        [(1, "a"), (1.0, "a")],
        [utc, utc.astimezone(dt.timezone(dt.timedelta(hours=5)))],
        [2**70, float(2**70)],
    ]
    for group in same:
        assert len({reduce_keys.encode_key(key) for key in group}) == 1, group
    different = [
        1,
        "1",
        b"1",
        None,
        "",
        b"",
        (),
        ((),),
        ("a", "bc"),
        ("ab", "c"),
        ("abc",),
        1.5,
        "n1",
        float("inf"),
    ]
    different += [dt.date(2024, 1, 1), dt.datetime(2024, 1, 1), dt.timedelta(1), float("nan"), "None", "nan"]
    assert len({reduce_keys.encode_key(key) for key in different}) == len(different)
    assert reduce_keys.partition_of(reduce_keys.encode_key("a"), 997) == PINNED_KEY
    for key in ([1], {"a": 1}, {1}, object()):
        with pytest.raises(InvalidKey):
            reduce_keys.encode_key(key)


PINNED_KEY = 956


@pytest.fixture
def lines(tmp_path: Path) -> tuple[SourceLeaf, list[TaskInput]]:
    """Some words on many lines, cut into several tasks."""
    generator = random.Random(5)
    words = [f"w{i}" for i in range(40)] + ["é", "", "0"]
    for number in range(5):
        text = "\n".join(" ".join(generator.choice(words) for _ in range(8)) for _ in range(180))
        (tmp_path / f"words{number}.txt").write_text(text)
    source = Source("text", (str(tmp_path / "words*.txt"),))
    resolved = sources.resolve(source)
    units = sources.units_of(source, resolved, split_bytes=100_000, min_units=1)
    assert len(units) == 5
    return SourceLeaf(source, resolved.schema), [TaskInput(0, (unit,)) for unit in units]


def map_reduce(
    lines: tuple[SourceLeaf, list[TaskInput]],
    blobs: BlobStore,
    map_: Callable[..., Any],
    reduce_: Callable[..., Any],
    combine: Callable[..., Any] | None = None,
    partitions: int = 4,
) -> pl.DataFrame:
    leaf, inputs = lines
    stage = Stage(0, (Branch(leaf),), MapOutput(map_, combine, partitions))
    results = [execute(TaskSpec(stage, one), blobs) for one in inputs]
    assert sum(result.rows_in for result in results) == 900
    second = Stage(1, (Branch(ReduceLeaf(0, reduce_, partitions)),), RowsOutput(), (0,))
    frames = []
    for partition in range(partitions):
        done = execute(TaskSpec(second, TaskInput(0, partition=partition), inputs={0: results}), blobs)
        frame = outputs.load_frame(done, blobs)
        if frame is not None:
            assert done.rows_in == frame.height
            frames.append(frame)
    return outputs.frames.concat(frames)


def positions(record: dict[str, Any]) -> Iterable[tuple[str, int]]:
    return [(word, number) for number, word in enumerate(record["line"].split(" "))]


def expected_groups(lines: tuple[SourceLeaf, list[TaskInput]]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = defaultdict(list)
    for task in lines[1]:
        for line in Path(task.units[0].path).read_text().split("\n"):
            for word, number in positions({"line": line}):
                groups[word].append(number)
    return groups


@pytest.mark.parametrize("held_max", [reduce.PAIRS_HELD_MAX, 200])
@pytest.mark.parametrize("merged_max", [reduce.RUNS_MERGED_MAX, 2])
def test_map_reduce_keeps_the_order_of_values(
    lines: tuple[SourceLeaf, list[TaskInput]],
    blobs: BlobStore,
    monkeypatch: pytest.MonkeyPatch,
    held_max: int,
    merged_max: int,
) -> None:
    monkeypatch.setattr(reduce, "PAIRS_HELD_MAX", held_max)
    monkeypatch.setattr(reduce, "RUNS_MERGED_MAX", merged_max)
    monkeypatch.setattr(reduce, "VALUES_PER_ROW_MAX", 7)
    monkeypatch.setattr(reduce, "BLOCK_BYTES", 300)
    result = map_reduce(lines, blobs, positions, lambda key, values: list(values))
    assert dict(result.iter_rows()) == expected_groups(lines)


def test_a_full_disk_leaves_no_half_of_a_file(
    lines: tuple[SourceLeaf, list[TaskInput]], blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it is full: at each block that is written."""
    monkeypatch.setattr(reduce, "PAIRS_HELD_MAX", 200)
    monkeypatch.setattr(reduce, "RUNS_MERGED_MAX", 2)
    monkeypatch.setattr(reduce, "BLOCK_BYTES", 1000)
    stream, left = shuffle.ShuffleWriter._stream, [0]

    def full(self: shuffle.ShuffleWriter, frame: pl.DataFrame) -> tuple[int, int]:
        if left[0] == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        left[0] -= 1
        return stream(self, frame)

    monkeypatch.setattr(shuffle.ShuffleWriter, "_stream", full)
    for blocks in range(0, 10_000, 5):
        left[0] = blocks
        try:
            map_reduce(lines, blobs, positions, lambda key, values: list(values))
        except TaskError:
            assert not list((blobs.directory / "tmp").iterdir()), blocks
        else:
            break
    assert blocks > 10


def test_a_file_whose_last_bytes_do_not_fit_is_thrown_away(blobs: BlobStore) -> None:
    writer = shuffle.ShuffleWriter(blobs, 1)
    close = writer._file.close

    class Full:
        """A file on a full disk."""

        def close(self) -> None:
            close()
            raise OSError(errno.ENOSPC, "No space left on device")

    writer._file = Full()  # type: ignore[assignment]
    writer.abandon()
    assert not list((blobs.directory / "tmp").iterdir())


@pytest.mark.parametrize("held_max", [reduce.PAIRS_HELD_MAX, 100])
def test_combine(
    lines: tuple[SourceLeaf, list[TaskInput]],
    blobs: BlobStore,
    monkeypatch: pytest.MonkeyPatch,
    held_max: int,
) -> None:
    monkeypatch.setattr(reduce, "PAIRS_HELD_MAX", held_max)
    seen: list[int] = []

    def total(_key: str, values: Iterable[int]) -> int:
        held = list(values)
        seen.append(len(held))
        return sum(held)

    result = map_reduce(lines, blobs, positions, total, combine=lambda key, values: sum(values))
    assert dict(result.iter_rows()) == {key: sum(values) for key, values in expected_groups(lines).items()}
    assert max(seen) < 60  # combined in the map tasks, not 900 values a key


def test_reduce_that_reads_little_or_yields(
    lines: tuple[SourceLeaf, list[TaskInput]], blobs: BlobStore
) -> None:
    first = map_reduce(lines, blobs, positions, lambda key, values: next(values))
    assert dict(first.iter_rows()) == {key: values[0] for key, values in expected_groups(lines).items()}

    def generator(_key: str, values: Iterable[int]) -> Iterable[int]:
        for value in values:
            if value == 3:
                yield value

    yielded = map_reduce(lines, blobs, positions, generator)
    assert dict(yielded.iter_rows()) == {
        key: [value for value in values if value == 3] for key, values in expected_groups(lines).items()
    }


class Point:
    def __init__(self, x: int) -> None:
        self.x = x


def test_any_value_and_tuple_keys(lines: tuple[SourceLeaf, list[TaskInput]], blobs: BlobStore) -> None:
    def pairs(record: dict[str, Any]) -> Iterable[tuple[Any, Any]]:
        class Local(Point):
            pass

        yield (len(record["line"]) % 3, "part"), Local(1)

    result = map_reduce(lines, blobs, pairs, lambda key, values: sum(value.x for value in values))
    assert result["value"].sum() == 900
    assert result["key"].struct.fields == ["field_0", "field_1"]
    mixed = map_reduce(lines, blobs, lambda r: [((1, 1.0)[len(r["line"]) % 2], 1)], lambda k, v: sum(v))
    assert mixed["value"].to_list() == [900] and mixed["key"].to_list() == [1.0]
    assert mixed["key"].dtype == pl.Float64


def test_what_map_and_reduce_may_not_do(lines: tuple[SourceLeaf, list[TaskInput]], blobs: BlobStore) -> None:
    for map_, text in [
        (lambda record: ["abc"], "pairs"),
        (lambda record: None, "None"),
        (lambda record: [([1], 2)], "tuple"),
    ]:
        with pytest.raises(TaskError, match=text) as caught:
            map_reduce(lines, blobs, map_, lambda key, values: 1)
        assert caught.value.failure.location is not None and "line 1" in caught.value.failure.location
    with pytest.raises(TaskError, match="mixes"):
        map_reduce(lines, blobs, positions, lambda key, values: 1 if key == "" else key, partitions=1)

    def broken(key: str, values: Iterable[int]) -> int:
        raise KeyError(key)

    with pytest.raises(TaskError) as caught:
        map_reduce(lines, blobs, positions, broken)
    assert caught.value.failure.kind == "KeyError" and "key '" in (caught.value.failure.location or "")


def test_types_that_do_not_meet_across_parts() -> None:
    assert outputs.frames.concat([pl.DataFrame({"a": [1]}), pl.DataFrame({"a": [2.5]})])["a"].to_list() == [
        1,
        2.5,
    ]
    with pytest.raises(InvalidValue, match="'a' mixes int, str"):
        outputs.frames.concat([pl.DataFrame({"a": [1]}), pl.DataFrame({"a": ["x"]})])


def test_shuffle_stage_parts_merge(lines: tuple[SourceLeaf, list[TaskInput]], blobs: BlobStore) -> None:
    leaf, inputs = lines
    for output in (ShuffleOutput(("line",), 4), MapOutput(positions, None, 4)):
        spec = TaskSpec(Stage(0, (Branch(leaf),), output), inputs[0])
        whole = execute(spec, blobs)
        cut = [0, 10, 11, whole.rows_in]
        parts = [execute(spec, blobs, rows=(lo, hi)) for lo, hi in pairwise(cut)]
        _, name, rows = outputs.merge_parts(output, parts, blobs)
        assert rows == whole.rows_out and name is not None and whole.blob is not None
        for partition in range(4):
            if isinstance(output, MapOutput):
                both = [
                    [(k, v) for k, _, p in reduce._merged([n], partition, blobs) for v in reduce.loads(p)]
                    for n in (name, whole.blob)
                ]
                assert both[0] == both[1]
            else:
                assert_frame_equal(
                    shuffle.read_partition([Result(blob=name)], partition, blobs),
                    shuffle.read_partition([whole], partition, blobs),
                )
