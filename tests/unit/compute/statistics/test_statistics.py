"""Intervals of live results: the mergeable state, the formulas, what is exact, what is withheld."""

from __future__ import annotations

import itertools
import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as hs
from polars.testing import assert_frame_equal

from onefold.compute import statistics as st
from onefold.compute.statistics import rule
from onefold.errors import InvalidArgument

KEY = ["k"]


def split(**groups: tuple[float, int]) -> pl.DataFrame:
    """Totals of one split: group=(sum, count)."""
    return pl.DataFrame(
        [(k, float(s), c) for k, (s, c) in groups.items()],
        schema={"k": pl.String, "s": pl.Float64, "c": pl.Int64},
        orient="row",
    )


def one(frame: pl.DataFrame, key: object = "a") -> dict[str, object]:
    return frame.row(by_predicate=pl.col("k") == key, named=True)


def alike(n: int, seed: int = 0) -> list[pl.DataFrame]:
    """Splits whose totals hardly differ: no diagnostic widens their intervals."""
    rng = np.random.default_rng(seed)
    return [split(a=(500 + rng.uniform(-20, 20), int(100 + rng.integers(-4, 5)))) for _ in range(n)]


def random_splits(seed: int, n: int, groups: int = 5) -> list[pl.DataFrame]:
    rng = np.random.default_rng(seed)
    frames = []
    for _ in range(n):
        here = np.flatnonzero(rng.random(groups) < 0.7)
        s, c = rng.normal(3, 2, len(here)), rng.integers(1, 9, len(here))
        frames.append(pl.DataFrame({"k": here, "s": s, "c": c}))
    return frames


# --- state -----------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(seed=hs.integers(0, 10_000), cut=hs.integers(1, 19))
def test_moments_do_not_depend_on_how_they_are_merged(seed: int, cut: int) -> None:
    frames = random_splits(seed, 20)
    whole = st.of_splits(frames, KEY)
    parts = st.merge(st.of_splits(frames[:cut], KEY), st.of_splits(frames[cut:], KEY), KEY)
    folded = st.leaf(frames[0], KEY)
    for frame in frames[1:]:
        folded = st.merge(folded, st.leaf(frame, KEY), KEY)
    for other in (parts, folded):
        assert other.splits == whole.splits == 20
        assert_frame_equal(whole.frame.sort("k"), other.frame.sort("k"), rel_tol=1e-9, abs_tol=1e-9)


def test_moments_are_the_power_sums_of_split_totals() -> None:
    frame = st.of_splits([split(a=(2, 1)), split(a=(-3, 4), b=(0, 2)), split()], KEY).frame
    a, b = one(frame), one(frame, "b")
    assert (a["#m"], a["#p"], a["#q"]) == (2, 1, 1)
    assert [a["#" + x] for x in ("s1", "s2", "s3")] == [-1, 13, -19]
    assert [a["#" + x] for x in ("c1", "c2", "c3")] == [5, 17, 65]
    assert [a["#" + x] for x in ("sc", "ssc", "scc")] == [2 - 12, 4 + 36, 2 - 48]
    assert a["#ls1"] == pytest.approx(math.log(2) + math.log(3))
    assert a["#lr2"] == pytest.approx(math.log(2) ** 2 + math.log(3 / 4) ** 2)
    assert (b["#m"], b["#p"], b["#q"], b["#ls1"], b["#lr1"]) == (1, 0, 0, 0, 0)


def test_groups_of_null_keys_and_of_several_keys_and_of_none() -> None:
    frames = [
        pl.DataFrame({"k": [None, "a"], "j": [1, 1], "s": [1.0, 2.0], "c": [1, 1]}),
        pl.DataFrame({"k": [None, "a"], "j": [1, 2], "s": [3.0, 4.0], "c": [1, 1]}),
    ]
    both = st.of_splits(frames, ["k", "j"])
    assert both.frame.height == 3
    done = st.intervals("sum", both, both, total_splits=2, keys=["k", "j"])
    assert done.filter(pl.col("k").is_null())["value"].to_list() == [8.0]
    alone = st.of_splits([frame.drop("k", "j") for frame in frames[:1] * 12], [])
    got = st.intervals(
        "sum",
        st.of_splits([f.select("s", "c").head(1) for f in frames * 6], []),
        None,
        total_splits=24,
        keys=[],
    )
    assert got.height == 1 and got["value"].item() == 48.0
    assert st.intervals("sum", alone, alone, total_splits=12, keys=[])["value"].item() == 72.0


def test_null_totals_count_as_nothing_and_counts_need_no_sum() -> None:
    empty = pl.DataFrame({"k": ["a"], "s": [None], "c": [0]}, schema_overrides={"s": pl.Float64})
    found = st.of_splits([empty, split(a=(5, 2))], KEY)
    assert one(found.frame)["#m"] == 1
    assert one(st.intervals("mean", found, None, total_splits=2, keys=KEY))["value"] == 2.5
    only = st.leaf(split(a=(5, 2)).drop("s"), KEY)
    assert one(only.frame)["#s1"] == 2


def test_group_keys_may_have_any_name() -> None:
    frame = pl.DataFrame({"value": ["a"], "n": [1], "m": [2], "s": [3], "total": [5.0], "rows": [2]})
    keys = ["value", "n", "m", "s"]
    found = st.of_splits([frame] * 4, keys, s="total", c="rows")
    got = st.intervals("mean", found, found, total_splits=4, keys=keys)
    assert got.columns == [
        "key_value",
        "key_n",
        "m",
        "s",
        *["value", "lo", "hi", "level", "kind", "n", "N", "reason"],
    ]
    assert got["value"].item() == 2.5 and got["key_value"].item() == "a"
    with pytest.raises(InvalidArgument, match="group key"):
        st.leaf(frame, keys, c="rows")
    most = st.bound("max", frame, keys=["value"], value="total", n=1, total_splits=2)
    assert most["lo"].item() == 5.0 and most["key_value"].item() == "a"


# --- estimates -------------------------------------------------------------------------------------------------


def test_a_total_is_the_textbook_interval_and_one_unlike_split_where_splits_are_alike() -> None:
    frames = alike(24)
    got = one(st.intervals("sum", st.of_splits(frames, KEY), None, total_splits=60, keys=KEY))
    y = np.array([frame["s"].item() for frame in frames])
    from scipy.stats import t

    half = math.hypot(t.ppf(0.975, 23) * 60 * math.sqrt((1 - 24 / 60) / 24) * y.std(ddof=1), y.mean())
    assert got["value"] == pytest.approx(60 * y.mean())
    assert got["lo"] == pytest.approx(60 * y.mean() - half)
    assert got["hi"] == pytest.approx(60 * y.mean() + half)
    assert (got["kind"], got["n"], got["N"], got["level"], got["reason"]) == ("estimate", 24, 60, 0.95, None)


def test_estimators_of_totals_are_unbiased_over_every_possible_sample() -> None:
    rng = np.random.default_rng(4)
    y = 100 + rng.uniform(-1, 1, 10)
    frames = [split(a=(v, 3)) for v in y]
    from scipy.stats import t

    values, variances = [], []
    for chosen in itertools.combinations(range(10), 5):
        got = one(
            st.intervals(
                "sum", st.of_splits([frames[i] for i in chosen], KEY), None, total_splits=10, keys=KEY
            )
        )
        sample = y[list(chosen)]
        values.append(got["value"])
        half = (got["hi"] - got["lo"]) / 2 / t.ppf(0.975, 4)  # type: ignore[operator]
        variances.append(half**2)
        assert half**2 >= 0.999 * 100 * 0.5 / 5 * sample.var(ddof=1)
    assert np.mean(values) == pytest.approx(y.sum())
    assert np.mean(variances) >= 0.999 * np.var(values)


def test_a_mean_is_the_ratio_of_totals_with_a_linearised_error() -> None:
    frames = alike(40, seed=2)
    got = one(st.intervals("mean", st.of_splits(frames, KEY), None, total_splits=80, keys=KEY))
    s = np.array([frame["s"].item() for frame in frames])
    c = np.array([frame["c"].item() for frame in frames])
    r = s.sum() / c.sum()
    plain = 2.02 * math.sqrt(0.5 / 40) * (s - r * c).std(ddof=1) / c.mean()
    assert got["value"] == pytest.approx(r)
    assert plain < (got["hi"] - got["lo"]) / 2 < 1.5 * plain  # type: ignore[operator]


def test_adding_a_constant_to_every_value_moves_a_mean_and_keeps_its_width() -> None:
    frames = alike(20)
    moved = [frame.with_columns(s=pl.col("s") + 1e3 * pl.col("c")) for frame in frames]
    a, b = (
        one(st.intervals("mean", st.of_splits(f, KEY), None, total_splits=40, keys=KEY))
        for f in (frames, moved)
    )
    assert b["value"] - a["value"] == pytest.approx(1e3)  # type: ignore[operator]
    # Log spreads differ, and are far below where widening begins in both.
    assert b["hi"] - b["lo"] == pytest.approx(a["hi"] - a["lo"], rel=1e-2)  # type: ignore[operator]


@pytest.mark.parametrize("kind", ["sum", "count", "mean"])
def test_all_splits_done_is_exact_and_equal_to_the_batch(kind: str) -> None:
    frames = random_splits(7, 30)
    whole = pl.concat(frames).group_by("k").agg(pl.col("s").sum(), pl.col("c").sum()).sort("k")
    batch = {"sum": whole["s"], "count": whole["c"].cast(pl.Float64), "mean": whole["s"] / whole["c"]}[kind]
    got = st.intervals(kind, st.of_splits(frames, KEY), None, total_splits=30, keys=KEY).sort("k")  # type: ignore[arg-type]
    assert got["kind"].unique().to_list() == ["exact"]
    assert got["value"].to_list() == pytest.approx(batch.to_list())
    assert got["lo"].to_list() == got["value"].to_list() == got["hi"].to_list()
    assert got["reason"].null_count() == got.height


@pytest.mark.parametrize("kind", ["sum", "count", "mean"])
def test_nothing_done_estimates_nothing(kind: str) -> None:
    known = st.of_splits(alike(5), KEY)
    got = one(st.intervals(kind, None, known, total_splits=20, keys=KEY))  # type: ignore[arg-type]
    assert (got["value"], got["lo"], got["hi"]) == (None, None, None)
    assert got["reason"] == "none of the 20 splits is done"
    done = one(st.intervals(kind, None, known, total_splits=0, keys=KEY))  # type: ignore[arg-type]
    assert done["kind"] == "exact" and done["lo"] == done["value"]


def test_a_reused_part_adds_its_total_and_no_variance() -> None:
    sample = st.of_splits(alike(20), KEY)
    known = st.of_splits([split(a=(9000, 50), b=(7, 1))], KEY)
    plain, with_known = (st.intervals("sum", sample, e, total_splits=50, keys=KEY) for e in (None, known))
    a, b = one(plain), one(with_known)
    for name in ("value", "lo", "hi"):
        assert b[name] == pytest.approx(a[name] + 9000)  # type: ignore[operator]
    mean = one(st.intervals("mean", sample, known, total_splits=50, keys=KEY))
    s, c = sample.frame["#s1"].item(), sample.frame["#c1"].item()
    assert mean["value"] == pytest.approx((9000 + 2.5 * s) / (50 + 2.5 * c))
    unseen = one(with_known, "b")
    assert unseen["value"] == 7 and unseen["lo"] is None and "only 0 of the 20" in str(unseen["reason"])


# --- what is withheld, what is widened -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sum", "count", "mean"])
@pytest.mark.parametrize(
    ("n", "total", "reason"), [(1, 2, "one split"), (15, 32, "only 15 of 32 splits are done")]
)
def test_too_few_splits_show_a_value_and_no_interval(kind: str, n: int, total: int, reason: str) -> None:
    got = one(st.intervals(kind, st.of_splits(alike(n), KEY), None, total_splits=total, keys=KEY))  # type: ignore[arg-type]
    assert got["value"] is not None and got["lo"] is None and got["hi"] is None
    assert reason in str(got["reason"])


def test_a_group_in_few_splits_is_withheld_and_its_neighbour_shown() -> None:
    frames = alike(30)
    frames[3:5] = [pl.concat([frame, split(b=(5, 1))]) for frame in frames[3:5]]
    got = st.intervals("sum", st.of_splits(frames, KEY), None, total_splits=40, keys=KEY)
    assert one(got)["lo"] is not None
    assert "only 2 of the 30 splits done have this group; 3 are needed" in str(one(got, "b")["reason"])


def test_a_long_tail_widens_its_own_side() -> None:
    rng = np.random.default_rng(0)
    tail = rng.lognormal(0, 1, 30)
    for sign in (1, -1):
        frames = [split(a=(sign * v, 5)) for v in tail]
        got = one(st.intervals("sum", st.of_splits(frames, KEY), None, total_splits=60, keys=KEY))
        out, back = got["hi"] - got["value"], got["value"] - got["lo"]  # type: ignore[operator]
        if sign < 0:
            out, back = back, out
        assert out > 1.5 * back


def test_totals_that_are_all_alike_are_not_taken_for_certain() -> None:
    got = one(
        st.intervals("count", st.of_splits([split(a=(1, 100))] * 20, KEY), None, total_splits=100, keys=KEY)
    )
    assert got["lo"] < 10_000 < got["hi"]  # type: ignore[operator]
    mean = one(
        st.intervals("mean", st.of_splits([split(a=(1, 100))] * 20, KEY), None, total_splits=100, keys=KEY)
    )
    assert mean["lo"] is None and "same in every split" in str(mean["reason"])
    zeros = one(
        st.intervals("sum", st.of_splits([split(a=(0, 100))] * 20, KEY), None, total_splits=100, keys=KEY)
    )
    assert zeros["lo"] is None and "zero" in str(zeros["reason"])


def test_counts_cannot_end_below_what_was_seen_and_sums_only_if_told_so() -> None:
    frames = [split(a=(v, int(v))) for v in (1, 1, 900, 1, 1, 1, 1, 1, 1, 1)]
    sample = st.of_splits(frames, KEY)
    assert one(st.intervals("count", sample, None, total_splits=11, keys=KEY))["lo"] >= 909  # type: ignore[operator]
    assert one(st.intervals("sum", sample, None, total_splits=11, keys=KEY))["lo"] < 909  # type: ignore[operator]
    told = one(st.intervals("sum", sample, None, total_splits=11, keys=KEY, nonnegative=True))
    assert told["lo"] == 909


def test_a_higher_level_is_never_narrower() -> None:
    sample = st.of_splits(random_splits(3, 25), KEY)
    for kind in ("sum", "count", "mean"):
        rows = [
            st.intervals(kind, sample, None, total_splits=50, keys=KEY, level=x) for x in (0.8, 0.95, 0.99)
        ]  # type: ignore[arg-type]
        for narrow, wide in itertools.pairwise(rows):
            assert (wide["lo"] <= narrow["lo"]).all() and (wide["hi"] >= narrow["hi"]).all()


def test_values_that_are_not_finite_are_withheld() -> None:
    frames = [*alike(11), split(a=(math.inf, 3))]
    got = one(st.intervals("sum", st.of_splits(frames, KEY), None, total_splits=20, keys=KEY))
    assert got["lo"] is None and got["reason"] == "not a finite number"


def test_presence_limits_are_the_exact_tails() -> None:
    from scipy.stats import hypergeom

    n, total, level = 20, 80, 0.95
    least = rule.present_min(n, total)
    for m in range(least, 11):
        low, high = (x.item() for x in rule.presence_limits(np.array([m]), n, total, level))
        ks = np.arange(m, total - n + m + 1)
        shown = hypergeom.sf(least - 1, total, ks, n)
        assert low == ks[hypergeom.sf(m - 1, total, ks, n) >= 0.05 * shown].min()
        assert high == ks[hypergeom.cdf(m, total, ks, n) >= 0.025].max()
    assert np.isnan(rule.presence_limits(np.array([11]), n, total, level)[0]).all()


@pytest.mark.parametrize(
    ("kind", "n", "total", "level"), [("median", 2, 4, 0.95), ("sum", 5, 4, 0.95), ("sum", 2, 4, 95)]
)
def test_arguments_that_make_no_sense_are_refused(kind: str, n: int, total: int, level: float) -> None:
    with pytest.raises(InvalidArgument):
        st.intervals(kind, st.of_splits(alike(n), KEY), None, total_splits=total, keys=KEY, level=level)  # type: ignore[arg-type]


def test_missing_columns_and_missing_samples_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="lack the columns"):
        st.leaf(pl.DataFrame({"k": ["a"], "s": [1.0]}), KEY)
    with pytest.raises(InvalidArgument, match="at least one split"):
        st.of_splits([], KEY)
    with pytest.raises(InvalidArgument, match="a sample, an exact part"):
        st.intervals("sum", None, None, total_splits=3, keys=KEY)


# --- quantiles -------------------------------------------------------------------------------------------------


class Rows:
    """Splits of plain rows, in place of sketches."""

    def __init__(self, splits: list[np.ndarray]) -> None:
        self.splits = [np.sort(rows) for rows in splits]
        self.all = np.sort(np.concatenate(splits))
        self.counts = np.array([len(rows) for rows in splits], dtype=float)

    def rank_at(self, x: float) -> np.ndarray:
        return np.array([np.searchsorted(rows, x, side="right") for rows in self.splits], dtype=float)

    def quantile_at(self, p: float) -> float:
        return float(self.all[max(0, math.ceil(p * len(self.all) - 1e-9) - 1)])


def test_a_quantile_lies_within_its_limits_and_clusters_widen_them() -> None:
    rng = np.random.default_rng(1)
    mixed = Rows([rng.normal(0, 1, 50) for _ in range(30)])
    apart = Rows([rng.normal(level, 0.1, 50) for level in rng.normal(0, 1, 30)])
    width = []
    for rows in (mixed, apart):
        got = st.woodruff(rows.counts, rows.rank_at, rows.quantile_at, 0.5, splits=30, total_splits=60)
        assert got.reason is None and got.lo < got.value < got.hi  # type: ignore[operator]
        width.append(got.hi - got.lo)  # type: ignore[operator]
    assert width[1] > 3 * width[0]


def test_a_quantile_is_exact_when_done_and_withheld_when_early_or_extreme() -> None:
    rng = np.random.default_rng(2)
    rows = Rows([rng.normal(0, 1, 50) for _ in range(12)])
    done = st.woodruff(rows.counts, rows.rank_at, rows.quantile_at, 0.5, splits=12, total_splits=12)
    assert done.lo == done.value == done.hi == rows.quantile_at(0.5)
    two = Rows(rows.splits[:2])
    early = st.woodruff(two.counts, two.rank_at, two.quantile_at, 0.5, splits=2, total_splits=12)
    assert early.lo is None and early.value is not None
    extreme = st.woodruff(rows.counts, rows.rank_at, rows.quantile_at, 0.999, splits=12, total_splits=20)
    assert extreme.lo is None and "too few splits" in str(extreme.reason)
    nothing = st.woodruff(np.zeros(0), rows.rank_at, rows.quantile_at, 0.5, splits=0, total_splits=12)
    assert nothing == st.QuantileInterval(None, None, None, "no value in the 0 of 12 splits done")


def test_a_sketchs_own_error_widens_a_quantiles_limits() -> None:
    rng = np.random.default_rng(3)
    rows = Rows([rng.normal(0, 1, 50) for _ in range(30)])
    a, b = (
        st.woodruff(
            rows.counts, rows.rank_at, rows.quantile_at, 0.5, splits=30, total_splits=60, rank_error=e
        )
        for e in (0.0, 0.02)
    )
    assert b.lo < a.lo and b.hi > a.hi  # type: ignore[operator]


def test_a_reused_part_shifts_a_quantile_by_its_weight() -> None:
    rng = np.random.default_rng(4)
    rows = Rows([rng.normal(0, 1, 40) for _ in range(30)])
    reused = np.sort(rng.normal(5, 1, 2400))  # as many as the 60 new splits will have
    got = st.woodruff(
        rows.counts,
        rows.rank_at,
        rows.quantile_at,
        0.4,
        splits=30,
        total_splits=60,
        exact_count=len(reused),
        exact_rank_at=lambda x: float(np.searchsorted(reused, x, side="right")),
    )
    pool = np.sort(np.concatenate([rows.all, rows.all, reused]))
    assert got.value == pytest.approx(pool[math.ceil(0.4 * len(pool)) - 1], abs=1e-6)
    assert got.lo < got.value < got.hi  # type: ignore[operator]


def test_a_quantile_of_a_group_that_only_the_reused_part_has() -> None:
    reused = np.arange(1.0, 101.0)
    part = {"exact_count": 100.0, "exact_rank_at": lambda x: float(np.searchsorted(reused, x, side="right"))}

    def ask(splits: int, total: int) -> st.QuantileInterval:
        none = np.zeros(0)
        return st.woodruff(
            none, lambda x: none, lambda p: 100.0, 0.5, splits=splits, total_splits=total, **part
        )  # type: ignore[arg-type]

    assert ask(0, 0).value == pytest.approx(50.0) and ask(0, 0).lo == ask(0, 0).value
    assert ask(0, 9).value is None
    some = ask(12, 20)
    assert some.value == pytest.approx(50.0) and some.lo is None and "only 0 of the 12" in str(some.reason)


def test_quantiles_of_many_groups_come_as_a_frame() -> None:
    rng = np.random.default_rng(5)
    rows = Rows([rng.normal(0, 1, 40) for _ in range(30)])
    few = Rows([rng.normal(0, 1, 40) for _ in range(2)])
    groups = [st.GroupQuantile(r.counts, r.rank_at, r.quantile_at) for r in (rows, few)]
    frame = pl.DataFrame({KEY[0]: ["a", "b"]})
    got = st.quantile_intervals(groups, 0.5, frame=frame, keys=KEY, splits=30, total_splits=60)
    want = st.intervals("sum", st.of_splits(alike(12), KEY), None, total_splits=24, keys=KEY)
    assert got.schema == want.schema
    assert one(got)["lo"] < one(got)["hi"] and one(got, "b")["lo"] is None  # type: ignore[operator]


# --- bounds ----------------------------------------------------------------------------------------------------


def test_extremes_and_distinct_counts_have_bounds_on_one_side() -> None:
    values = pl.DataFrame({"k": ["a"], "value": [7]})
    low = one(st.bound("min", values, keys=KEY, n=3, total_splits=9))
    high = one(st.bound("max", values, keys=KEY, n=3, total_splits=9))
    assert (low["lo"], low["hi"], low["kind"]) == (None, 7, "bound")
    assert (high["lo"], high["hi"], high["kind"]) == (7, None, "bound")
    done = one(st.bound("max", values, keys=KEY, n=9, total_splits=9))
    assert (done["lo"], done["hi"], done["kind"]) == (7, 7, "exact")
    some = one(st.bound("n_unique", values, keys=KEY, n=3, total_splits=9, relative_error=0.05))
    assert some["lo"] == pytest.approx(7 / 1.05) and some["hi"] is None
    sketched = one(st.bound("n_unique", values, keys=KEY, n=9, total_splits=9, relative_error=0.05))
    assert sketched["kind"] == "bound" and sketched["lo"] < 7 < sketched["hi"]
    with pytest.raises(InvalidArgument):
        st.bound("max", values, keys=KEY, n=10, total_splits=9)
