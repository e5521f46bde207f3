"""Values of shared state: msgpack with extensions, and sums of stored numbers."""

import dataclasses
import decimal
import math
import struct
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from onefold.config import VALUE_BYTES_MAX, VALUE_DEPTH_MAX
from onefold.errors import InvalidValue, TooLarge
from onefold.state.encoding.values import ValueCodec, add, decode_value, encode_value, is_number
from support.value_kinds import Colour, Inner, Point, Renamed, Row, ext

offsets = st.timedeltas(timedelta(hours=-23, minutes=-59), timedelta(hours=23, minutes=59)).map(timezone)
decimals = st.one_of(
    st.decimals(),
    st.sampled_from(["-0", "1.10", "1E+30", "sNaN", "NaN12", "-Infinity", "1E-400"]).map(Decimal),
)
ints = st.one_of(
    st.integers(-300, 300),
    st.integers(),
    st.integers(-(2**200), 2**200),
    st.sampled_from([2**63, 2**64, -(2**63) - 1]),
)
specials = st.one_of(
    st.datetimes(),
    st.datetimes(timezones=offsets),
    st.datetimes(timezones=st.just(UTC)),
    st.dates(),
    st.times(),
    st.times(timezones=offsets),
    st.timedeltas(),
    decimals,
    st.uuids(),
)
leaves = st.one_of(
    st.none(), st.booleans(), ints, st.floats(), st.text(max_size=5), st.binary(max_size=5), specials
)
# A signalling NaN has no hash and equal numbers of different types are one key: those are not keys here.
key_leaves = st.one_of(
    st.none(), ints, st.text(max_size=5), st.binary(max_size=5), st.datetimes(timezones=offsets), st.uuids()
)
dict_keys = st.recursive(key_leaves, lambda inner: st.lists(inner, max_size=2).map(tuple), max_leaves=3)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(dict_keys, inner, max_size=3),
    max_leaves=8,
)


def exact(value):
    """A form that is equal only for values equal in all that is kept: type, sign of zero, NaN, offset, digits."""
    if isinstance(value, list | tuple):
        return [type(value), *map(exact, value)]
    if isinstance(value, dict):
        return [dict, *[(exact(key), exact(item)) for key, item in value.items()]]
    if isinstance(value, datetime | time):
        return type(value), value.replace(tzinfo=None), value.utcoffset()
    return type(value), str(value)


@given(values)
@example(datetime.max.replace(tzinfo=timezone(timedelta(hours=-5))))
@example(datetime.min.replace(tzinfo=timezone(timedelta(hours=5))))
@example(datetime(1900, 1, 1, tzinfo=timezone(timedelta(minutes=9, seconds=21, microseconds=5))))
@example([timedelta.max, timedelta.min, date.min, date.max, time.max, datetime.max, datetime.min])
def test_a_value_comes_back_as_it_was(value):
    assert exact(decode_value(encode_value(value))) == exact(value)


def test_a_value_that_was_read_is_a_private_copy():
    value = {"a": [1, {"b": 2}]}
    data = encode_value(value)
    read = decode_value(data)
    read["a"][1]["b"] = 3
    value["a"].append(4)
    assert decode_value(data) == {"a": [1, {"b": 2}]}


def test_tuples_come_back_as_lists_but_stay_tuples_as_keys():
    assert decode_value(encode_value((1, ("a", ())))) == [1, ["a", []]]
    assert decode_value(encode_value({("a", (1, date(2024, 1, 1))): 1})) == {("a", (1, date(2024, 1, 1))): 1}


def test_a_time_in_a_named_zone_comes_back_with_the_offset_it_had():
    for month, hours in ((1, 1), (7, 2)):
        moment = datetime(2024, month, 1, 12, 0, 0, 5, tzinfo=ZoneInfo("Europe/Berlin"))
        read = decode_value(encode_value(moment))
        assert read == moment and read.utcoffset() == timedelta(hours=hours)
    twice = datetime(2024, 10, 27, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=1)
    assert decode_value(encode_value(twice)).utcoffset() == timedelta(hours=1)


def test_utc_comes_back_as_utc():
    assert decode_value(encode_value(datetime(2024, 1, 1, tzinfo=UTC))).tzinfo is UTC


def test_the_context_of_decimals_changes_no_value():
    value = Decimal("1.23456789012345678901234567890E+40")
    with decimal.localcontext(prec=3, capitals=0):
        data = encode_value(value)
    with decimal.localcontext(prec=2):
        assert str(decode_value(data)) in {str(value), str(value).lower()}
    with decimal.localcontext() as context:
        context.traps[decimal.InvalidOperation] = False
        with pytest.raises(InvalidValue):
            decode_value(msgspec.msgpack.encode(msgspec.msgpack.Ext(7, b"garbage")))


def test_timestamps_of_other_msgpack_writers_are_read():
    assert decode_value(msgspec.msgpack.encode(datetime(2024, 1, 1, tzinfo=UTC))) == datetime(
        2024, 1, 1, tzinfo=UTC
    )


class Number(IntEnum):
    SEVEN = 7


class Plain(Enum):
    X = "x"


@dataclasses.dataclass
class Data:
    name: str
    big: int = 2**80


@pytest.mark.parametrize(
    ("value", "read"),
    [
        (Colour.RED, "red"),
        ([Number.SEVEN, Plain.X], [7, "x"]),
        ({Colour.RED: True, Plain.X: 1}, {"red": True, "x": 1}),
        (Point(1, 2), [1, 2]),
        (bytearray(b"a"), b"a"),
        (memoryview(b"abcd")[::2], b"ac"),
        ([Inner(datetime(2024, 1, 1))], [{"at": datetime(2024, 1, 1), "price": Decimal("0")}]),
        (Data("a"), {"name": "a", "big": 2**80}),
        (Renamed("a"), {"kind": "r", "firstName": "a"}),
        (Row(1, UUID(int=5)), [1, UUID(int=5)]),
    ],
)
def test_classes_are_stored_as_what_they_are_made_of(value, read):
    assert exact(decode_value(encode_value(value))) == exact(read)


def holds_itself():
    value = []
    value.append({"again": value})
    return value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({1, 2}, "a set cannot be stored; use a list"),
        ({"a": [0, frozenset()]}, r"a frozenset cannot be stored \(at value\['a'\]\[1\]\); use a list"),
        ({"a": {"b": object()}}, r"an object cannot be stored \(at value\['a'\]\['b'\]\)"),
        (Data("a", big={1}), r"a set .*value\['big'\]"),
        (msgspec.msgpack.Ext(1, b"a"), "Ext"),
        (msgspec.Raw(b"\xc0"), "Raw"),
        (1j, "complex.*two floats"),
        (int, "type"),
        ({frozenset(): 1}, "frozenset as key of a dict"),
        (
            {"a": {Inner(datetime(2024, 1, 1)): 1}},
            r"Inner as key of a dict cannot be stored \(at value\['a'\]\)",
        ),
        ({"x": 1, Plain.X: 2}, "two keys"),
        (["\ud800"], r"half a surrogate pair cannot be stored \(at value\[0\]\)"),
        ({"\udfff": 1}, "half a surrogate pair as key"),
        ({10**5000: {1}}, r"set cannot be stored \(at value\[a int\]\)"),
        (time(1, tzinfo=ZoneInfo("Europe/Berlin")), "time cannot be stored; the offset"),
        (holds_itself(), "nested deeper than 100 .or one that holds itself."),
    ],
)
def test_what_has_no_encoding_is_refused_with_type_and_place(value, message):
    with pytest.raises(InvalidValue, match=message) as caught:
        encode_value(value)
    assert caught.value.definite


@pytest.mark.parametrize("leaf", [1, 2**70])
def test_values_are_nested_up_to_the_limit(leaf):
    value = leaf
    for _ in range(VALUE_DEPTH_MAX):
        value = [value]
    assert decode_value(encode_value(value)) == value
    with pytest.raises(InvalidValue, match="deeper than 100"):
        encode_value({"a": value})


def test_values_are_as_long_as_the_limit_and_not_longer():
    assert len(encode_value(b"x" * (VALUE_BYTES_MAX - 5))) == VALUE_BYTES_MAX
    for value in (b"x" * (VALUE_BYTES_MAX - 4), [1 << 80, "x" * VALUE_BYTES_MAX]):
        with pytest.raises(TooLarge, match=str(VALUE_BYTES_MAX)) as caught:
            encode_value(value)
        assert caught.value.definite
    with pytest.raises(TooLarge):
        ValueCodec(bytes).encode(b"x" * VALUE_BYTES_MAX)


GARBAGE = [
    b"",
    b"\xc1",
    b"\xc0\xc0",
    b"\xdd\xff\xff\xff\xff",
    b"\x91" * 100_000 + b"\xc0",
    b"\x81\x80\x01",
    b"\xa1\xff",
    ext(99, b"a"),
    ext(-1, b"a"),
    ext(1, b""),
    ext(2, b"abc"),
    ext(2, b"\x7f" * 8),
    ext(3, struct.pack(">qq", 0, 2**40)),
    ext(4, b"\0\0\0\0"),
    ext(4, b"\xff\xff\xff\xff"),
    ext(5, struct.pack(">q", -1)),
    ext(5, struct.pack(">q", 86_400_000_000)),
    ext(6, struct.pack(">iII", 2**31 - 1, 0, 0)),
    ext(7, b" 1"),
    ext(7, b"1_0"),
    ext(7, b"one"),
    ext(7, b"\xff"),
    ext(8, b"short"),
]


@pytest.mark.parametrize("data", GARBAGE)
def test_bytes_that_encode_no_value_are_refused(data):
    with pytest.raises(InvalidValue):
        decode_value(data)
    with pytest.raises(InvalidValue):
        ValueCodec(int).decode(data)
    assert add(data, 1) is None


@given(st.one_of(st.binary(max_size=30), st.builds(ext, st.integers(-2, 9), st.binary(max_size=20))))
def test_any_bytes_are_a_value_or_are_refused(data):
    try:
        value = decode_value(data)
    except InvalidValue:
        assert add(data, 1) is None
        return
    assert (add(data, 1) is not None) == is_number(value)


numbers = st.one_of(ints, st.floats(), st.integers(-(2**1100), 2**1100))


@given(numbers, numbers)
def test_a_sum_is_what_python_makes_of_it(old, by):
    data, total = add(encode_value(old), by)
    assert exact(decode_value(data)) == exact(total)
    if isinstance(old, int) and isinstance(by, int):
        assert type(total) is int and total == old + by
    else:
        try:
            assert type(total) is float and exact(total) == exact(float(old) + float(by))
        except OverflowError:
            assert not math.isfinite(total)


def test_no_number_yet_counts_as_zero():
    assert add(None, 5) == (encode_value(5), 5)
    assert add(None, 0.5) == (encode_value(0.5), 0.5)


def test_ints_do_not_overflow():
    assert add(encode_value(2**64 - 1), 1) == (encode_value(2**64), 2**64)
    assert add(encode_value(2**64), -1) == (encode_value(2**64 - 1), 2**64 - 1)
    assert add(encode_value(-(2**63)), -1)[1] == -(2**63) - 1


def test_an_int_beyond_the_floats_counts_as_an_infinity():
    assert add(encode_value(2**2000), 0.5)[1] == math.inf
    assert add(encode_value(0.5), -(2**2000))[1] == -math.inf


def test_every_nan_is_the_same_bytes():
    negative_nan = struct.unpack(">d", b"\xff\xf8\0\0\0\0\0\1")[0]
    expected = encode_value(math.nan)
    assert expected == b"\xcb\x7f\xf8\0\0\0\0\0\0"
    assert add(encode_value(negative_nan), 1)[0] == expected
    assert add(None, negative_nan)[0] == expected
    assert add(encode_value(math.inf), -math.inf)[0] == expected


@pytest.mark.parametrize(
    "old", [None, True, False, "1", b"1", [1], {}, Decimal(1), datetime(2024, 1, 1), UUID(int=1)]
)
def test_a_sum_with_what_is_no_number_is_none(old):
    assert add(encode_value(old), 1) is None
    assert old is None or add(None, old) is None
    assert not is_number(old)


def test_a_sum_that_is_longer_than_a_value_may_be_is_none():
    largest = encode_value((1 << (8 * (VALUE_BYTES_MAX - 6) - 1)) - 1)
    assert len(largest) == VALUE_BYTES_MAX
    assert add(largest, 0) is not None
    assert add(largest, 1) is None


def test_numbers_are_ints_and_floats():
    assert is_number(1) and is_number(1.5) and is_number(Number.SEVEN) and is_number(2**70)
    assert add(None, Number.SEVEN) == (encode_value(7), 7) and type(add(None, Number.SEVEN)[1]) is int
