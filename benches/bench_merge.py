"""Partials and the merge tree against Polars' own group-by, in one run: ``python benches/bench_merge.py``."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl

from onefold import agg
from onefold.compute.aggregates import decode, encode, merge_pair, partial
from onefold.compute.results.merge import Leaf, MergeCache, merge_tree

ROWS, GROUPS, LEAVES = 1_000_000, 100_000, 32
KEYS = [pl.col("k")]
AGGS = [("n", agg.count()), ("s", agg.sum("v"))]


def best_ms(work: Callable[[], Any], times: int = 5) -> float:
    took = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        took.append((time.perf_counter() - start) * 1e3)
    return min(took)


def leaf(same: bool, salt: int, text: bool) -> pl.DataFrame:
    rng = np.random.default_rng(salt)
    keys = np.arange(GROUPS) if same else rng.choice(GROUPS * 5 // 4, GROUPS, replace=False)
    rows = pl.DataFrame({"k": keys, "v": rng.random(GROUPS)})
    rows = rows.with_columns(pl.format("key {}", "k").alias("k")) if text else rows
    return partial(rows.lazy(), KEYS, AGGS)


def bench_partial() -> None:
    rng = np.random.default_rng(0)
    rows = pl.DataFrame({"k": rng.integers(0, GROUPS, ROWS), "v": rng.random(ROWS)}).lazy()
    plain = rows.group_by("k").agg(pl.len(), pl.col("v").sum())
    peer = best_ms(lambda: plain.collect(engine="streaming"))
    mine = best_ms(lambda: partial(rows, KEYS, AGGS))
    print(
        f"partial, {ROWS:,} rows, {GROUPS:,} groups    {mine:8.1f} ms   {mine / peer:5.2f} x Polars streaming"
    )
    state = partial(rows, KEYS, AGGS)
    data = encode(state)
    print(f"encode + decode, {len(data):,} bytes    {best_ms(lambda: decode(encode(state))):8.1f} ms")


def bench_tree(same: bool, text: bool) -> None:
    frames = [leaf(same, i, text) for i in range(LEAVES)]
    leaves = {i: Leaf(str(i), lambda frame=frame: frame) for i, frame in enumerate(frames)}

    def pair(a: pl.DataFrame, b: pl.DataFrame) -> pl.DataFrame:
        return merge_pair(a, b, ["k"], AGGS)

    whole = pl.concat(frames).lazy().group_by("k").agg(pl.all().sum())
    peer = best_ms(lambda: whole.collect(engine="streaming"))
    mine = best_ms(lambda: merge_tree(leaves, pair))
    cache = MergeCache()
    merge_tree({i: one for i, one in leaves.items() if i < LEAVES - 1}, pair, cache)
    one_more = best_ms(lambda: merge_tree(leaves, pair, cache), times=1)
    kind = f"{'same' if same else 'other'} {'text' if text else 'integer'} keys"
    print(
        f"{LEAVES} leaves, {kind:20s}    {mine:8.1f} ms   {mine / peer:5.2f} x one group-by; one more {one_more:.1f} ms"
    )


if __name__ == "__main__":
    bench_partial()
    for same in (True, False):
        for text in (False, True):
            bench_tree(same, text)
