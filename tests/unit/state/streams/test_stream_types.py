"""A stream's records in one frame have the values that were appended, or there is an error that names the column."""

import asyncio
import datetime as dt
import json
import random
from decimal import Decimal
from uuid import UUID

import msgspec
import polars as pl
import pytest

import onefold as of
from onefold.errors import InvalidValue
from onefold.state.streams.exact_columns import exactly

DAY = dt.date(2020, 1, 2)
TIME = dt.datetime(2020, 1, 2, 3, 4, 5)
WHOLE = 2**53 + 1
ODD = [
    2**200,
    Decimal("NaN"),
    Decimal("-Infinity"),
    Decimal("1E+50"),
    Decimal("1E-50"),
    Decimal("1.5"),
    UUID(int=7),
]
"""Values that no column holds, or that it does not hold as they are."""
NOT_TOGETHER = [
    ([1], ["text"]),
    ([1], [True]),
    ([0.5], [False]),
    ([WHOLE], [0.5]),
    ([DAY], [TIME]),
    ([TIME], [TIME.replace(tzinfo=dt.UTC)]),
    ([DAY], ["text"]),
    ([b"x"], ["x"]),
    ([[1]], [["x"]]),
    ([{"a": 1}], [{"a": True}]),
    ([Decimal("0.1")], [0.5]),
    ([dt.timedelta(1)], [1]),
]
TOGETHER = [
    ([1], [None]),
    ([1], [0.5]),
    ([{"a": 1}], [{"a": 2, "b": "x"}]),
    ([[1]], [[None], [0.5]]),
    ([Decimal("0.1")], [Decimal("0.25")]),
    (["x"], [None, "y"]),
]


@pytest.fixture
def db(tmp_path):
    with of.connect(tmp_path / "space") as db:
        yield db


def frames_of(values):
    return pl.DataFrame({"v": values})


def filled(a, b):
    """The values without the fields that only the column's type has."""
    return a.keys() >= b.keys() if isinstance(b, dict) else a == b


@pytest.mark.parametrize(("one", "other"), NOT_TOGETHER, ids=repr)
@pytest.mark.parametrize("reverse", [False, True])
def test_frames_that_do_not_fit_are_an_error_that_names_them(db, one, other, reverse):
    s = db.stream("mixed", partitions=1)
    for values in (other, one) if reverse else (one, other):
        s.append_many(frames_of(values))
    with pytest.raises(of.InvalidValue, match=r"column.*'mixed'.*Use read_frames"):
        s.to_polars()
    assert [frame["v"].to_list() for frame in s.read_frames()] == ([other, one] if reverse else [one, other])


@pytest.mark.parametrize(("one", "other"), TOGETHER, ids=repr)
def test_frames_that_fit_keep_their_values(db, one, other):
    s = db.stream("s", partitions=1)
    s.append_many(frames_of(one))
    s.append_many(frames_of(other))
    found = s.to_polars()["v"].to_list()
    assert len(found) == len(one) + len(other) and all(map(filled, found, one + other)), found


def test_widths(db):
    s = db.stream("s", partitions=1)
    for dtype, value in ((pl.Int8, -1), (pl.UInt64, 2**64 - 1), (pl.Int64, -(2**63))):
        s.append_many(pl.DataFrame({"v": pl.Series([value], dtype=dtype)}))
    assert s.to_polars()["v"].to_list() == [-1, 2**64 - 1, -(2**63)]
    assert exactly(pl.Series([WHOLE]), pl.Float64()) is None
    assert exactly(pl.Series([1], dtype=pl.Int64).cast(pl.Datetime("ns")), pl.Datetime("ms")) is None


def test_single_records_are_never_changed(db):
    """Values in one frame of single records: all as they were appended, or an error."""
    rng = random.Random(3)
    scalars = [
        1,
        True,
        0.5,
        WHOLE,
        "x",
        None,
        DAY,
        TIME,
        TIME.replace(tzinfo=dt.UTC),
        b"x",
        float("inf"),
        *ODD,
    ]

    def value(depth=2):
        kind = rng.random()
        if depth and kind < 0.2:
            return [value(depth - 1) for _ in range(rng.randint(0, 2))]
        if depth and kind < 0.4:
            return {key: value(depth - 1) for key in rng.sample("abc", rng.randint(1, 2))}
        return rng.choice(scalars)

    def same(found, given):
        if isinstance(given, dict):
            return isinstance(found, dict) and all(same(found[key], given.get(key)) for key in found)
        if isinstance(given, list):
            return len(found) == len(given) and all(map(same, found, given))
        if isinstance(given, UUID):
            return found == str(given)
        numbers = isinstance(given, int | float) and not isinstance(given, bool)
        return found == given and (type(found) is type(given) or numbers is not isinstance(found, bool))

    read = refused = 0
    for number in range(500):
        s = db.stream(f"s{number}", partitions=1)
        given = [value() for _ in range(rng.randint(1, 3))]
        for one in given:
            s.append({"v": one})
        try:
            found = s.to_polars()["v"].to_list()
        except of.InvalidValue as error:
            refused += "Use read" in str(error)
        else:
            assert all(map(same, found, given)), (given, found)
            read += 1
    assert read > 50 and refused > 50


@pytest.mark.parametrize("value", [UUID(int=7), [UUID(int=7)], {"a": [UUID(int=7)]}])
def test_uuids_are_text_in_frames_and_in_jobs(db, value):
    s = db.stream("s", partitions=1)
    s.append_many([{"k": n, "v": value} for n in range(3)])
    text = json.loads(json.dumps(value, default=str))
    assert s.to_polars()["v"].to_list() == [text] * 3
    db.read_stream("s").into("rows").run(progress=False)
    assert db.table("rows").to_polars()["v"].to_list() == [text] * 3
    run = db.read_stream("s", follow=True).into("live").start()
    run.catch_up("60s")
    assert db.table("live").to_polars()["v"].to_list() == [text] * 3


class Click(msgspec.Struct):
    user: str


@pytest.mark.parametrize("shards", [1, 3])
def test_a_handle_in_a_transaction_keeps_its_type(tmp_path, shards):
    with of.connect(tmp_path / "space", shards=shards) as db:
        s = db.stream("clicks", type=Click, partitions=2, retention="7d")
        for wrong in ({"user": "ann"}, 7, None):
            with pytest.raises(InvalidValue), db.transaction() as tx:
                tx.stream(s).append(wrong)
            with pytest.raises(InvalidValue), db.transaction() as tx:
                tx.stream(s).append_many([Click("ann"), wrong])
        with pytest.raises(InvalidValue), db.transaction() as tx:
            tx.stream(s).append_many(pl.DataFrame({"user": [1]}))
        assert len(s) == 0 and s.retention == 7 * 86_400 and s.partitions == 2
        with db.transaction() as tx:
            tx.stream(s).append(Click("ann"), key="k")
            tx.stream(s).append_many([Click("bob")], key="user")
            tx.stream("clicks").append({"user": "cy"})
        assert sorted(record.value.user for record in s.read()) == ["ann", "bob", "cy"]


def test_an_async_handle_in_a_transaction_keeps_its_type():
    async def main():
        async with of.aio.connect("memory://") as db:
            s = db.stream("clicks", type=Click)
            with pytest.raises(InvalidValue):
                async with db.transaction() as tx:
                    await tx.stream(s).append({"user": "ann"})
            async with db.transaction() as tx:
                await tx.stream(s).append(Click("ann"))
            assert [record.value async for record in s.read()] == [Click("ann")]

    asyncio.run(main())
