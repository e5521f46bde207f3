"""Every wrong input of a map has a definite error of its own, and nothing is written."""

import asyncio
import datetime
import math

import numpy
import pytest

import onefold as of
from onefold import config
from onefold.errors import (
    InvalidArgument,
    InvalidKey,
    InvalidValue,
    OnefoldError,
    TooLarge,
    UnsupportedConsistency,
)
from onefold.state.maps.map import Map


@pytest.fixture(params=["memory", "sqlite"])
def db(request, tmp_path):
    with of.connect("memory://" if request.param == "memory" else tmp_path / "s") as opened:
        yield opened


@pytest.fixture
def m(db):
    made = db.map("m")
    made["there"] = 1
    yield made
    assert dict(made) == {"there": 1}


def refuses(error, operation):
    with pytest.raises(error) as caught:
        operation()
    assert isinstance(caught.value, OnefoldError) and caught.value.definite
    assert len(str(caught.value)) < 1000
    return str(caught.value)


KEYED = {
    "[]": lambda m, key: m[key],
    "[]=": lambda m, key: m.__setitem__(key, 1),
    "del": lambda m, key: m.__delitem__(key),
    "in": lambda m, key: key in m,
    "get": lambda m, key: m.get(key),
    "session get": lambda m, key: m.get(key, consistency="session"),
    "get_item": lambda m, key: m.get_item(key),
    "get_many": lambda m, key: m.get_many(["there", key]),
    "put": lambda m, key: m.put(key, 1),
    "put_many": lambda m, key: m.put_many([("a", 1), (key, 1)]),
    "put in parts": lambda m, key: m.put_many([(key, 1)], atomic=False),
    "delete": lambda m, key: m.delete(key),
    "pop": lambda m, key: m.pop(key, None),
    "setdefault": lambda m, key: m.setdefault(key, 1),
    "modify": lambda m, key: m.modify(key, lambda value: value),
    "increment": lambda m, key: m.increment(key),
    "prefix": lambda m, key: m.scan(prefix=key),
    "start": lambda m, key: m.scan(start=key),
    "stop": lambda m, key: m.scan(stop=key),
    "count": lambda m, key: m.count(key),
    "watch": lambda m, key: m.watch(key),
}
WRONG_KEYS = [
    1.5, math.nan, ["a"], {"a": 1}, {1}, ("a", 1.5), ("a", ["b"]), object(), b"x".__class__, "\ud800", ("a", "\udfff"),
    datetime.datetime(2024, 1, 1), bytearray(b"a"), 1j,
]  # fmt: skip


@pytest.mark.parametrize("name", KEYED)
def test_a_wrong_key_is_refused_by_every_operation(m, name):
    operation = KEYED[name]
    for key in WRONG_KEYS:
        refuses(InvalidKey, lambda key=key: operation(m, key))
    for key in ("x" * config.KEY_BYTES_MAX, b"x" * config.KEY_BYTES_MAX, 1 << 3000, ("a",) * 5000):
        refuses(TooLarge, lambda key=key: operation(m, key))
    if name not in ("prefix", "count", "watch"):
        refuses(InvalidKey, lambda: operation(m, ()))


WITH_VALUE = {
    "[]=": lambda m, value: m.__setitem__("a", value),
    "put": lambda m, value: m.put("a", value),
    "put_many": lambda m, value: m.put_many({"b": 1, "a": value}),
    "put in parts": lambda m, value: m.put_many({"a": value}, atomic=False),
    "setdefault": lambda m, value: m.setdefault("a", value),
    "modify": lambda m, value: m.modify("a", lambda _: value),
    "update": lambda m, value: m.update(a=value),
}


@pytest.mark.parametrize("name", WITH_VALUE)
def test_a_wrong_value_is_refused_by_every_operation(m, name):
    operation = WITH_VALUE[name]
    endless = []
    endless.append(endless)
    for value in (
        object(),
        {1, 2},
        1j,
        [object()],
        {"x": {"y": object()}},
        lambda: 1,
        "\ud800",
        endless,
        {"a": "\udfff"},
    ):
        message = refuses(InvalidValue, lambda value=value: operation(m, value))
        assert "value" in message or "stored" in message
    refuses(TooLarge, lambda: operation(m, b"x" * (config.VALUE_BYTES_MAX + 1)))


def test_wrong_consistency_names_are_told(m):
    for wrong in ("fast", "", "Strong", 5, ["strong"], b"strong", object()):
        for operation in (
            lambda level: m.get("a", consistency=level), lambda level: m.get_item("a", consistency=level),
            lambda level: m.get_many(["a"], consistency=level), lambda level: m.scan(consistency=level),
            lambda level: m.count(consistency=level),
        ):  # fmt: skip
            refuses(UnsupportedConsistency, lambda wrong=wrong, operation=operation: operation(wrong))
    refuses(InvalidArgument, lambda: m.get("a", consistency="bounded:soon"))
    assert m.get("there", consistency="bounded:5s") == 1
    for level in ("strong", "session", "prefix", "eventual"):
        assert m.get("there", consistency=level) == 1


def test_wrong_versions_are_told(m):
    for wrong in (
        "",
        "x",
        "1",
        "1-2",
        "0-0-0",
        "0-1-2-3",
        "..",
        "0-1-1.",
        5,
        ("a",),
        b"0-1-0",
        "0-~5-1",
        "0-" + "z" * 40 + "-0",
    ):
        refuses(InvalidArgument, lambda wrong=wrong: m.put("there", 1, if_version=wrong))
        refuses(InvalidArgument, lambda wrong=wrong: m.delete("there", if_version=wrong))
    refuses(of.errors.Conflict, lambda: m.put("there", 1, if_version="7-1-0"))
    version = m.get_item("there").version
    refuses(InvalidArgument, lambda: m.put("there", 1, if_version=version, if_absent=True))


def test_wrong_request_ids_are_told(m):
    for wrong in ("", 5, b"x", "x" * (config.REQUEST_ID_BYTES_MAX + 1), "\ud800", object()):
        for write in (
            lambda r: m.put("a", 1, request_id=r), lambda r: m.delete("a", request_id=r),
            lambda r: m.put_many({"a": 1}, request_id=r), lambda r: m.increment("a", request_id=r),
        ):  # fmt: skip
            refuses(InvalidArgument, lambda wrong=wrong, write=write: write(wrong))


def test_wrong_arguments_of_single_operations_are_told(m):
    for by in ("1", None, True, False, [1], 1j):
        refuses(InvalidArgument, lambda by=by: m.increment("there", by))
    for pairs in (5, None, "ab", [1, 2], [("a", 1, 2)], [("a",)], [None], object()):
        refuses(InvalidArgument, lambda pairs=pairs: m.put_many(pairs))
        refuses(InvalidArgument, lambda pairs=pairs: m.put_many(pairs, atomic=False))
    for pairs in (5, [1, 2]):
        refuses(InvalidArgument, lambda pairs=pairs: m.update(pairs))
    refuses(InvalidArgument, lambda: m.get_many("there"))
    refuses(InvalidArgument, lambda: m.get_many(5))
    refuses(InvalidArgument, lambda: m.modify("there", 5))
    for limit in (-1, 1.0, "1", True):
        refuses(InvalidArgument, lambda limit=limit: m.scan(limit=limit))


def test_wrong_names_are_told(db):
    for wrong in ("", None, 5, b"m", "x" * 201, "é" * 101, "\ud800", ["m"]):
        refuses(InvalidArgument, lambda wrong=wrong: db.map(wrong))
    for name in ("x" * 200, "é" * 100, "a/b", "a\0b", " ", "m\n"):
        m = db.map(name)
        m["k"] = name
        m.put("t", 1, ttl=60)
        assert dict(m) == {"k": name, "t": 1} and repr(m) == f"<Map {name!r}>"


def test_wrong_types_of_maps_are_told(db):
    for wrong in (complex, object(), type("Plain", (), {}), "Nonsense"):
        refuses(InvalidArgument, lambda wrong=wrong: db.map("m", type=wrong))
    refuses(UnsupportedConsistency, lambda: db.map("m", consistency="fast"))


def test_a_map_is_no_key_of_a_dict(db):
    with pytest.raises(TypeError):
        hash(db.map("m"))
    assert isinstance(db.map("m"), Map)


@pytest.mark.parametrize("by", [math.nan, math.inf, -math.inf, numpy.float64("nan")], ids=str)
def test_what_would_leave_a_number_that_tells_nothing_is_not_added(db, m, tmp_path, by):
    assert "finite" in refuses(InvalidArgument, lambda: m.increment("there", by))
    with db.transaction() as tx:
        inside = tx.map("m")
        inside["own"] = 1
        for key in ("there", "own", "new"):
            assert "finite" in refuses(InvalidArgument, lambda key=key: inside.increment(key, by))
        assert (inside["there"], inside["own"], "new" in inside) == (1, 1, False)
        del inside["own"]

    async def of_the_asynchronous_twin():
        async with of.aio.connect(tmp_path / "twin") as twin:
            with pytest.raises(InvalidArgument, match="finite"):
                await twin.map("m").increment("n", by)
            async with twin.transaction() as tx:
                with pytest.raises(InvalidArgument, match="finite"):
                    await tx.map("m").increment("n", by)
            assert await twin.map("m").count() == 0

    asyncio.run(of_the_asynchronous_twin())


def test_every_finite_number_is_added(db):
    m = db.map("m")
    for by in (10**400, -(10**400), 0.5, -0.5, numpy.float64(2), 1e308, -1e308):
        m.increment("n", by)
    with db.transaction() as tx:
        tx.map("m").increment("n", 10**400)
        tx.map("m").increment("n", -(10**400))
    assert m["n"] == 0.0
