"""Estimates of a table that is half made: of groups that no finished split has, of key names that meet their own, of bounds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

import onefold as of
from onefold import agg
from onefold.compute import aggregates
from onefold.compute.results import estimates


class HalfWay:
    """A job of 24 files, of which the last one waits at a gate while the others are done."""

    def __init__(self, folder: Path, made: agg.Aggregate) -> None:
        self.gate = folder / "gate"
        source = folder / "in"
        source.mkdir()
        for number in range(24):
            (source / f"{number:02}.txt").write_text("".join(f"g{i % 3} {number + i}\n" for i in range(30)))
        gate = str(self.gate)

        def parse(record: dict[str, str]) -> dict[str, object]:
            import time

            group, value = record["line"].split()
            while int(value) >= 52 and not Path(gate).exists():
                time.sleep(0.005)
            return {"value": group, "x": float(value)}

        self.db = of.connect(folder / "space")
        job = self.db.read_text(f"{source}/*.txt").map(parse).group_by("value").agg(made=made).into("t")
        # The one that waits may get a backup, which waits too.
        self.run = job.start(workers=3, seed=3)
        self.table = self.db.table("t")

    def reach(self, done: int) -> None:
        deadline = time.monotonic() + 60
        while self.table.status.done < done:
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def finish(self) -> pl.DataFrame:
        self.gate.touch()
        self.run.wait(timeout=60)
        return self.run.result().to_polars()


@pytest.fixture
def held(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[HalfWay]:
    job = HalfWay(tmp_path, request.param)
    yield job
    job.gate.touch()
    job.db.close()


@pytest.mark.parametrize(
    "held", [agg.sum("x"), agg.approx_quantile("x", 0.5), agg.max("x"), agg.std("x")], indirect=True
)
def test_before_and_at_the_end(held: HalfWay) -> None:
    held.reach(20)
    early = held.table.estimate("made")
    assert early.columns == ["key_value", *estimates.COLUMNS]
    assert set(early["kind"]) <= {"estimate", "bound"}
    frame = held.finish().sort("value")
    exact = held.table.estimate("made").sort("key_value")
    assert set(exact["kind"]) == {"exact"}
    for column in ("value", "lo", "hi"):
        assert exact[column].to_list() == frame["made"].to_list()


def contents(results: dict[int, object], total: int) -> object:
    from onefold.compute.results.tables import Contents

    return Contents("run", 0, total, results, frozenset(), False, 1)  # type: ignore[arg-type]


def test_splits_without_any_group_are_splits() -> None:
    from onefold.compute.plan.stages import PartialOutput

    empty = aggregates.partial(pl.LazyFrame(schema={"k": pl.String}), [pl.col("k")], [("n", agg.count())])
    found = estimates.estimate(
        contents({0: None, 1: None}, 5),  # type: ignore[arg-type]
        "n",
        0.95,
        output=PartialOutput((pl.col("k"),), (("n", agg.count()),)),
        load=lambda _: None,
        final=lambda: aggregates.final(empty, ["k"], [("n", agg.count())]),
        cache=estimates.MomentsCache(),
    )
    assert found.height == 0
    assert found.columns == ["k", *estimates.COLUMNS]


def test_only_the_contiguous_prefix_of_the_dispatch_order_is_a_sample() -> None:
    sample = estimates.sample_of(contents({0: None, 1: None, 3: None}, 5))  # type: ignore[arg-type]
    assert (sample.exact, sample.prefix, sample.total) == ((), (0, 1), 5)
