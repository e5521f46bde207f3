"""Estimates: from the finished tasks of a table to values with intervals.

Splits are dispatched in a random permutation, so the contiguous prefix of finished ones is a simple random sample of
clusters; what merely finished first would not be (slow tasks are different tasks). Tasks taken over from an earlier run
were not sampled: they enter as an exact total. The formulas are in ``onefold.compute.statistics``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from onefold.compute import aggregates
from onefold.compute.frames import values as frames
from onefold.compute.results import merge
from onefold.machine.lazy import LazyModule

if TYPE_CHECKING:
    import polars as pl

    from onefold.compute import statistics
    from onefold.compute.plan.stages import PartialOutput, Result
    from onefold.compute.results.tables import Contents
else:
    statistics = LazyModule("onefold.compute.statistics")

COLUMNS = ("value", "lo", "hi", "level", "kind", "n", "N", "reason")
"""What an estimate says of a group."""
Aggs = Sequence[tuple[str, "aggregates.Aggregate"]]
_State = tuple[bytes, float]
_SAMPLED, _EXACT = (0, 1), (2, 3)
"""Marks of a quantile's sketches of each split, and of the one over all splits, in the sample and the exact stratum."""
_TOTALS: dict[str, Literal["count", "sum", "mean"]] = {"count": "count", "sum": "sum", "mean": "mean"}
_BOUNDS: dict[str, Literal["min", "max", "n_unique"]] = {
    "min": "min",
    "max": "max",
    "approx_n_unique": "n_unique",
}


@dataclass(frozen=True)
class Sample:
    """Which finished tasks may be used for what."""

    exact: tuple[int, ...]
    """Taken over from earlier runs: known without error."""
    prefix: tuple[int, ...]
    """The contiguous finished beginning of this run's random dispatch order."""
    total: int
    """How many tasks that order has."""


@dataclass
class MomentsCache:
    """Moments of a growing prefix, so that a reader that polls pays only for the new tasks."""

    entries: dict[tuple[Any, ...], tuple[int, statistics.Moments]] = field(default_factory=dict)


def sample_of(contents: Contents) -> Sample:
    """Split the finished tasks into the exact stratum and the sampled prefix."""
    order = [index for index in range(contents.total) if index not in contents.reused]
    prefix = []
    for index in order:
        if index not in contents.results:
            break
        prefix.append(index)
    return Sample(tuple(sorted(contents.reused)), tuple(prefix), len(order))


def estimate(
    contents: Contents,
    name: str,
    level: float,
    *,
    output: PartialOutput,
    load: Callable[[Result], pl.DataFrame | None],
    final: Callable[[], pl.DataFrame],
    cache: MomentsCache,
) -> pl.DataFrame:
    """The estimate of aggregate ``name``: key columns and ``value, lo, hi, level, kind, n, N, reason``.

    ``load`` gives a task's partial, ``final`` the merged and finished frame of all finished tasks. A key column that is
    called like one of the others comes as ``key_NAME``.
    """
    names = [key.meta.output_name() for key in output.keys]
    # Inside, keys are numbered, so that no name of the user's meets a name of the statistics.
    keys = [f"__key_{number}" for number in range(len(names))]
    inner = dict(zip(names, keys, strict=True))

    def renamed(frame: pl.DataFrame | None) -> pl.DataFrame | None:
        return (
            None
            if frame is None
            else frame.rename({old: new for old, new in inner.items() if old in frame.columns})
        )

    found = _estimate(
        contents,
        name,
        level,
        keys=keys,
        aggs=output.aggs,
        load=lambda result: renamed(load(result)),
        final=lambda: renamed(final()),  # type: ignore[arg-type, return-value]
        cache=cache,
    )
    return found.rename({new: f"key_{old}" if old in COLUMNS else old for old, new in inner.items()})


def _estimate(
    contents: Contents,
    name: str,
    level: float,
    *,
    keys: Sequence[str],
    aggs: Aggs,
    load: Callable[[Result], pl.DataFrame | None],
    final: Callable[[], pl.DataFrame],
    cache: MomentsCache,
) -> pl.DataFrame:
    import polars as pl

    kind = dict(aggs)[name].kind
    sample = sample_of(contents)
    if len(contents.results) == contents.total:
        return _as_exact(final(), keys, name, level, contents.total)
    if not sample.prefix and not sample.exact and (kind in _TOTALS or kind == "approx_quantile"):
        # The first task of the dispatch order is still running: nothing of the others may be published yet.
        return _withheld(final().clear(), keys, name, kind, 0, sample.total)
    if kind in _TOTALS:
        return statistics.intervals(
            _TOTALS[kind],
            _moments(contents, sample.prefix, name, keys, aggs, load, cache, "sample", final),
            _moments(contents, sample.exact, name, keys, aggs, load, cache, "exact", final),
            total_splits=sample.total,
            keys=keys,
            level=level,
        )
    if kind in _BOUNDS:
        return statistics.bound(
            _BOUNDS[kind],
            final().select(*keys, pl.col(name).alias("value")),
            keys=keys,
            n=len(contents.results),
            total_splits=contents.total,
            relative_error=aggregates.DISTINCT_ERROR if kind == "approx_n_unique" else 0.0,
        )
    if kind == "approx_quantile":
        return _quantiles(contents, sample, name, keys, aggs, load, level, final)
    return _withheld(final(), keys, name, kind, len(sample.prefix), sample.total)


def _moments(
    contents: Contents,
    indexes: Sequence[int],
    name: str,
    keys: Sequence[str],
    aggs: Aggs,
    load: Callable[[Result], pl.DataFrame | None],
    cache: MomentsCache,
    stratum: str,
    final: Callable[[], pl.DataFrame],
) -> statistics.Moments | None:
    import polars as pl

    if not indexes:
        return None
    slot = (contents.run, contents.stage, name, stratum)
    known, moments = cache.entries.get(slot, (0, None))
    if known > len(indexes):
        known, moments = 0, None
    fresh = []
    empty = 0
    for index in indexes[known:]:
        partial = load(contents.results[index])
        totals = aggregates.totals(partial, keys, aggs, name) if partial is not None else None
        if totals is None:
            empty += 1
        else:
            fresh.append(totals)
    if fresh:
        added = statistics.of_splits(fresh, keys)
        moments = added if moments is None else statistics.merge(moments, added, keys)
    if moments is None:
        # Splits were done, and none of them has any group.
        none = final().select(keys).clear().with_columns(s=pl.lit(0.0), c=pl.lit(0.0))
        return statistics.of_splits([none] * len(indexes), keys)
    if empty:  # a split without any row is a cluster too: all its totals are zero
        moments = replace(moments, splits=moments.splits + empty)
    cache.entries[slot] = (len(indexes), moments)
    return moments


def _quantiles(
    contents: Contents,
    sample: Sample,
    name: str,
    keys: Sequence[str],
    aggs: Aggs,
    load: Callable[[Result], pl.DataFrame | None],
    level: float,
    final: Callable[[], pl.DataFrame],
) -> pl.DataFrame:
    """Woodruff's intervals from the splits' sketches. A split's rank in a group is asked of its own sketch."""
    import polars as pl

    q = dict(aggs)[name].q  # type: ignore[attr-defined]
    alone = [(agg_name, agg) for agg_name, agg in aggs if agg_name == name]

    def states(indexes: Sequence[int], each: int, together: int) -> Iterator[pl.DataFrame]:
        """The groups' sketches in each of these splits, and over all of them, each row marked as what it is."""
        leaves: dict[int, merge.Leaf] = {}
        for index in indexes:
            partial = load(contents.results[index])
            if partial is None:
                continue
            partial = partial.select(
                column for column in partial.columns if column in keys or _is_state(column, name)
            )
            leaves[index] = merge.Leaf(str(index), lambda frame=partial: frame)  # type: ignore[misc]
            found = aggregates.quantile_states(partial, keys, name).filter(pl.col("n") > 0)
            yield found.with_columns(pl.lit(each, pl.UInt8).alias("part"))
        merged = merge.merge_tree(leaves, lambda a, b: aggregates.merge_pair(a, b, keys, alone))
        if merged is not None:
            found = aggregates.quantile_states(merged, keys, name).filter(pl.col("n") > 0)
            yield found.with_columns(pl.lit(together, pl.UInt8).alias("part"))

    rows = frames.concat([*states(sample.prefix, *_SAMPLED), *states(sample.exact, *_EXACT)])
    if not rows.width:
        return _withheld(final().clear(), keys, name, "approx_quantile", len(sample.prefix), sample.total)
    # Polars tells the groups apart: as Python objects, times that differ by a nanosecond are equal.
    by = [pl.col(key) for key in keys] or [pl.lit(0).alias("__all")]
    grouped = rows.group_by(by, maintain_order=True).agg("state", "n", "part")
    whole = rows.filter(pl.col("part").is_in([_SAMPLED[1], _EXACT[1]]))
    large = bool((whole["n"] > aggregates.EXACT_VALUES_MAX).any())

    return statistics.quantile_intervals(
        map(_group_quantile, grouped.select("state", "n", "part").iter_rows()),
        q,
        frame=grouped,
        keys=keys,
        splits=len(sample.prefix),
        total_splits=sample.total,
        level=level,
        rank_error=aggregates.RANK_ERROR if large else 0.0,
    )


def _group_quantile(found: tuple[list[bytes], list[int], list[int]]) -> statistics.GroupQuantile:
    """What is known of one group: the sketches of its splits, how many values each has, and which part each stands for."""
    import numpy as np

    by_part: dict[int, list[_State]] = {}
    for blob, count, part in zip(*found, strict=True):
        by_part.setdefault(part, []).append((blob, float(count)))
    mine = by_part.get(_SAMPLED[0], [])
    known_count = sum(count for _, count in by_part.get(_EXACT[0], []))
    known = by_part.get(_EXACT[1], [(b"", 0.0)])[0][0]
    merged = by_part.get(_SAMPLED[1], [(known, 0.0)])[0][0]

    def rank_at(x: float) -> Any:
        return np.array([count * aggregates.quantile_rank(blob, x) for blob, count in mine])

    def exact_rank_at(x: float) -> float:
        return known_count * aggregates.quantile_rank(known, x)

    return statistics.GroupQuantile(
        counts=np.array([count for _, count in mine]),
        rank_at=rank_at,
        quantile_at=lambda p: float(aggregates.quantile_value(merged, p) or 0.0),
        exact_count=known_count,
        exact_rank_at=exact_rank_at if known_count else None,
    )


def _is_state(column: str, name: str) -> bool:
    return column.startswith(f"{name}:") and ":" not in column[len(name) + 1 :]


def _as_exact(frame: pl.DataFrame, keys: Sequence[str], name: str, level: float, total: int) -> pl.DataFrame:
    import polars as pl

    value = pl.col(name)
    return frame.select(
        *keys,
        value.alias("value"),
        value.alias("lo"),
        value.alias("hi"),
        pl.lit(level).alias("level"),
        pl.lit("exact").alias("kind"),
        pl.lit(total, pl.UInt32).alias("n"),
        pl.lit(total, pl.UInt32).alias("N"),
        pl.lit(None, pl.String).alias("reason"),
    )


def _withheld(
    frame: pl.DataFrame, keys: Sequence[str], name: str, kind: str, n: int, total: int
) -> pl.DataFrame:
    """The value so far, for aggregates that have no interval."""
    import polars as pl

    dtype = frame.schema.get(name, pl.Null())
    return frame.select(
        *keys,
        pl.col(name).alias("value"),
        pl.lit(None, dtype).alias("lo"),
        pl.lit(None, dtype).alias("hi"),
        pl.lit(None, pl.Float64).alias("level"),
        pl.lit("estimate").alias("kind"),
        pl.lit(n, pl.UInt32).alias("n"),
        pl.lit(total, pl.UInt32).alias("N"),
        pl.lit(f"agg.{kind} has no interval; this is its value over the finished splits").alias("reason"),
    )
