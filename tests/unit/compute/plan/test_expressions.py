"""Row-local expressions: a verdict for every function of Polars, and the law that the verdicts stand for."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import warnings
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import polars.selectors as cs
import pytest
from polars.testing import assert_frame_equal

from onefold.compute.plan import row_local
from onefold.compute.plan.expressions import canonical, check_row_local, names_columns, tree
from onefold.errors import InvalidPlan

COLUMNS = (
    "i",
    "j",
    "n",
    "f",
    "b",
    "b2",
    "s",
    "t",
    "h",
    "js",
    "ds",
    "d",
    "ts",
    "tz",
    "tm",
    "du",
    "l",
    "l2",
    "lb",
    "ls",
    "a",
    "ab",
    "st",
    "bn",
    "bh",
    "b4",
    "c",
    "u",
)


class Verdict(NamedTuple):
    name: str
    row_local: bool
    source: str

    def expr(self) -> pl.Expr:
        scope: dict[str, Any] = {name: pl.col(name) for name in COLUMNS}
        scope |= {"as_": pl.col("as"), "pl": pl, "Decimal": Decimal}
        scope |= {"date": date, "datetime": datetime, "time": time, "timedelta": timedelta}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = eval(self.source, scope)
        assert isinstance(made, pl.Expr)
        return made


def read_verdicts() -> list[Verdict]:
    lines = (Path(__file__).parent / "row_local_verdicts.txt").read_text().splitlines()
    rows = [re.split(r"\s+", line, maxsplit=2) for line in lines if line and not line.startswith("#")]
    return [Verdict(name, {"yes": True, "no": False}[verdict], source) for name, verdict, source in rows]


VERDICTS = read_verdicts()


@pytest.fixture(scope="module")
def frame() -> pl.DataFrame:
    """Eight rows with nulls, doubles and ties, so that looking past a row shows."""
    return pl.DataFrame(
        {
            "i": [3, 1, None, 2, 2, 5, 1, 4],
            "j": [2, 7, 1, None, 2, 3, 1, 6],
            "n": [0, 1, 2, 3, 1, 0, 2, 1],
            "f": [0.5, -1.25, None, float("nan"), 2.0, 0.5, 0.75, -0.5],
            "b": [True, False, None, True, False, False, True, True],
            "b2": [None, True, False, True, True, False, False, True],
            "s": ["x", "yy", None, "Zz z", "a-b", "x", "", "yy zz x"],
            "t": ["12", "-3", None, "007", "12", "5", "0", "44"],
            "h": ["00ff", "zz", None, "0a", "", "ff", "00", "1234"],
            "js": ['{"a": 1}', '{"a": null}', None, '{"a": 3}', "{}", '{"a": 5}', '{"b": 1}', '{"a": 1}'],
            "ds": ["2024-01-02", "2024-02-30", None, "x", "2023-12-31", "10:11", "2020-02-29", "2024-01-02"],
            "d": [date(2024, 1, day) for day in (1, 31, 6, 7, 1, 15)] + [None, date(2023, 12, 31)],
            "ts": [datetime(2024, 3, 30, hour, 59, 30, 123456) for hour in (1, 2, 23, 4, 1, 0)]
            + [None, datetime(1969, 12, 31)],
            "tz": pl.Series([datetime(2024, 3, 31, hour) for hour in range(7)] + [None]).dt.replace_time_zone(
                "UTC"
            ),
            "tm": [time(hour) for hour in range(7)] + [None],
            "du": [timedelta(days=days, seconds=5) for days in (1, -2, 3, 0, 1, 9, 2)] + [None],
            "l": [[3, 1, 2], [], None, [2], [2, 2], [None, 1], [5, 4], [1]],
            "l2": [[1], [2], [3, 4], None, [2], [1, 1], [], [9, 1]],
            "lb": [[True], [], None, [True, False], [None], [False], [True, True], [False, None]],
            "ls": [["p", "q"], [], None, ["r"], ["p", None], [""], ["z"], ["a", "b", "c"]],
            "a": pl.Series(
                [[1.0, 2.0, 2.0], [3.0, 1.0, 0.5], None, *[[1.0, 1.0, 4.0]] * 5],
                dtype=pl.Array(pl.Float64, 3),
            ),
            "as": pl.Series([["p", "q"], ["r", "s"], None, *[["t", "u"]] * 5], dtype=pl.Array(pl.String, 2)),
            "ab": pl.Series(
                [[True, False], [True, True], None, *[[False, None]] * 5], dtype=pl.Array(pl.Boolean, 2)
            ),
            "st": [{"p": 1, "q": "x"}, {"p": None, "q": "y"}, None, *[{"p": 4, "q": "z"}] * 5],
            "bn": [b"x", b"yx", None, b"", b"xx", b"z", b"x", b"ab"],
            "bh": [b"00ff", b"0a", None, b"", b"ff", b"zz", b"01", b"aabb"],
            "b4": [b"abcd", b"efgh", None, *[b"0000"] * 5],
            "c": pl.Series(["x", "yy", None, "zz", "x", "a", "yy", "b"], dtype=pl.Categorical),
            "u": pl.Series([0, 1, None, 2, 0, 1, 2, 0], dtype=pl.UInt32),
        }
    )


@pytest.mark.parametrize("verdict", VERDICTS, ids=lambda v: f"{v.name}-{'yes' if v.row_local else 'no'}")
def test_every_function_has_its_verdict(verdict: Verdict) -> None:
    expr = verdict.expr()
    if verdict.row_local:
        check_row_local(expr, "select")
        canonical(expr)
    else:
        with pytest.raises(InvalidPlan, match=r"^select: "):
            check_row_local(expr, "select")


@pytest.mark.parametrize("verdict", [v for v in VERDICTS if v.row_local], ids=lambda v: v.source[:60])
def test_a_row_local_expression_means_the_same_on_every_split(verdict: Verdict, frame: pl.DataFrame) -> None:
    """The law: the whole frame gives what its pieces give, also when they are single rows, empty or of other
    sizes.
    """
    expr = verdict.expr()
    whole = frame.select("i", made=pl.struct(expr))
    for cuts in ([0, 8], [0, 3, 3, 5, 8], list(range(9)), [0, 1, 8]):
        pieces = [frame[start:stop] for start, stop in pairwise(cuts)]
        parts = pl.concat([piece.select("i", made=pl.struct(expr)) for piece in pieces])
        assert_frame_equal(parts, whole, check_exact=True)


def test_the_law_can_fail(frame: pl.DataFrame) -> None:
    broken = Verdict("shift", True, "i.shift()")
    with pytest.raises(AssertionError):
        test_a_row_local_expression_means_the_same_on_every_split(broken, frame)


def namespaces() -> dict[str, set[str]]:
    """The public methods of ``pl.Expr`` and of each of its namespaces, by prefix."""
    found: dict[str, type] = {"": pl.Expr}
    for name in dir(pl.Expr):
        owner = getattr(pl.col("x"), name) if not name.startswith("_") else None
        if type(owner).__name__.startswith("Expr") and not callable(owner) and name != "meta":
            found[f"{name}."] = type(owner)
    return {
        prefix: {name for name in dir(kind) if not name.startswith("_") and callable(getattr(kind, name))}
        for prefix, kind in found.items()
    }


def test_the_table_knows_every_method_of_the_installed_polars() -> None:
    known = {verdict.name for verdict in VERDICTS}
    plain = {"deserialize"}  # Reads an expression; what it reads is walked like any other.
    spaces = namespaces()
    assert {"", "str.", "dt.", "list.", "arr.", "struct.", "bin.", "cat.", "name."} <= spaces.keys()
    methods = {prefix + name for prefix, names in spaces.items() for name in names}
    owners = {prefix.rstrip(".") for prefix in spaces}
    assert sorted(methods - known - plain - owners) == []


def test_nothing_is_allowed_without_evidence() -> None:
    """Every function of the allow-list stands in an expression on which the law is tested."""
    tested: set[str] = set()
    for verdict in VERDICTS:
        if verdict.row_local:
            tested |= set(re.findall(r"\w+", json.dumps(tree(verdict.expr()))))
    allowed = set(row_local.FUNCTIONS).union(*row_local.FAMILIES.values())
    assert sorted(allowed - tested) == []


@pytest.mark.parametrize(
    ("expr", "words"),
    [
        (
            pl.col("x") > pl.col("x").mean(),
            r"filter: an aggregate \(mean\) is computed from many rows.*group_by",
        ),
        (pl.len() > 1, "filter: len is computed from many rows"),
        (pl.col("x").shift(), "shift depends on neighbouring rows"),
        (pl.col("x").sum().over("y"), "over depends on neighbouring rows"),
        (
            pl.col("x").map_elements(lambda v: v, return_dtype=pl.Int64),
            r"calls a Python function.*\.map\(fn\)",
        ),
        (pl.col("x").fill_null(strategy="forward"), r"fill_null\(strategy='forward'\)"),
        (pl.col("x").str.to_datetime(), "say format="),
        (pl.col("x").sample(1), "sample or shuffle gives other values on every attempt"),
        (pl.col("x").top_k(2), "top_k changes the number of rows"),
        (pl.lit(pl.Series([1, 2])), "literal Series"),
        (pl.col("x").str.contains_any(pl.col("y")), "table of values"),
        (pl.col("x").cast(pl.dtype_of("y")), "name the type"),
        (pl.element() + 1, r"only inside list\.eval"),
        (pl.col("l").list.eval(pl.element() + pl.col("x")), "not columns"),
    ],
    ids=str,
)
def test_messages_name_what_is_refused_and_what_to_do(expr: pl.Expr, words: str) -> None:
    with pytest.raises(InvalidPlan, match=words):
        check_row_local(expr, "filter")


def test_a_node_that_is_not_known_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from onefold.compute.plan import expressions

    for node in ({"Telepathy": {"input": {"Column": "x"}}}, {"Function": {"input": [], "function": "Guess"}}):
        monkeypatch.setattr(expressions, "tree", lambda expr, node=node: node)
        with pytest.raises(InvalidPlan, match=r"Telepathy|guess|Guess"):
            check_row_local(pl.col("x"), "select")


def test_nested_deeper_than_json_allows_is_a_clear_error() -> None:
    expr = pl.col("x")
    for _ in range(3000):
        expr = expr + 1
    with pytest.raises(InvalidPlan, match="nested too deeply"):
        check_row_local(expr, "select")


def test_selectors_are_taken() -> None:
    for selector in (
        cs.numeric() * 2,
        cs.starts_with("x"),
        ~cs.string(),
        cs.by_name("a", "b"),
        pl.all().name.suffix("_2"),
    ):
        check_row_local(selector, "select")
        assert names_columns(selector)


def test_constants_name_no_columns() -> None:
    assert not names_columns(pl.lit("Column") + pl.lit("x"))
    assert not names_columns(pl.lit(["Selector"]))
    assert names_columns(pl.lit(1) + pl.col("x"))


# -- canonical form ------------------------------------------------------------------------------------------

SAME = [
    (lambda: pl.col("x").is_in({"a", "b", "c"}), lambda: pl.col("x").is_in(["c", "a", "b", "a"])),
    (lambda: pl.col("x").is_in(frozenset(range(50))), lambda: pl.col("x").is_in(list(range(49, -1, -1)))),
    (lambda: pl.col("x").is_in(pl.Series([2, 1])), lambda: pl.col("x").is_in(pl.Series([1, 2]).sort())),
    (lambda: pl.lit([1, 2]), lambda: pl.lit([1, 2])),
    (lambda: pl.col("x") > datetime(2024, 1, 1), lambda: pl.col("x") > datetime(2024, 1, 1)),
]

DIFFERENT = [
    lambda: pl.col("x"),
    lambda: pl.col("y"),
    lambda: pl.col("x") > 1,
    lambda: pl.col("x") > 2,
    lambda: pl.col("x") > 1.0,
    lambda: pl.col("x") + float("inf"),
    lambda: pl.col("x") + float("nan"),
    lambda: pl.col("x") + float("-inf"),
    lambda: pl.col("x") >= 1,
    lambda: pl.col("x") > datetime(2024, 1, 1),
    lambda: pl.col("x") > datetime(2024, 1, 2),
    lambda: pl.col("x") > date(2024, 1, 1),
    lambda: pl.col("x") > Decimal("1.0"),
    lambda: pl.col("x") > Decimal("1.00"),
    lambda: pl.col("x") > timedelta(days=1),
    lambda: pl.col("x") > b"\xff\xff\xff\xff",
    lambda: pl.col("x").is_in([1, 2]),
    lambda: pl.col("x").is_in([1, 3]),
    lambda: pl.col("x").is_in(["1", "2"]),
    lambda: pl.col("x").is_in([1.0, 2.0]),
    lambda: pl.col("x").is_in(pl.Series([1, 2], dtype=pl.Int8)),
    lambda: pl.col("x").is_in([date(2024, 1, 1)]),
    lambda: pl.col("x").is_in([1, 2], nulls_equal=True),
    lambda: pl.lit([1, 2]),
    lambda: pl.lit([2, 1]),
    lambda: pl.col("x").replace({1: 2}),
    lambda: pl.col("x").replace({2: 1}),
    lambda: pl.col("x").cast(pl.Enum(["a", "b"])),
    lambda: pl.col("x").cast(pl.Enum(["b", "a"])),
    lambda: pl.col("x").hash(1),
    lambda: pl.col("x").hash(2),
]


@pytest.mark.parametrize("pair", SAME)
def test_equal_expressions_have_one_canonical_form(pair: Any) -> None:
    assert canonical(pair[0]()) == canonical(pair[1]())


def test_different_expressions_have_different_canonical_forms() -> None:
    forms = [str(canonical(make())) for make in DIFFERENT]
    assert len(set(forms)) == len(forms)


def test_the_canonical_form_is_the_same_in_other_processes() -> None:
    program = (
        "import polars as pl; from datetime import datetime; from onefold.compute.plan.expressions import "
        "canonical;"
        "words = {'a', 'b', 'c', 'dd', 'ee'};"
        "print(canonical(pl.col('x').is_in(words) & (pl.col('t') > datetime(2024, 1, 1))"
        " & pl.col('y').replace_strict({1: 'a', 2: 'b'}, default=None).is_in(words)))"
    )
    forms = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(forms) == 1
