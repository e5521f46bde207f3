"""Typed values of shared state: they come back as their type, which may get new fields; others are refused."""

import dataclasses
import typing
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any, TypedDict
from uuid import UUID

import msgspec
import pytest

from onefold.errors import InvalidArgument, InvalidValue
from onefold.state.encoding.values import ValueCodec, decode_value, encode_value
from support.value_kinds import Colour, Inner, Point, Renamed, Row, ext


class User(msgspec.Struct):
    name: str
    born: date
    seen: datetime | None = None
    id: UUID | None = None
    credit: Decimal = Decimal("0.00")
    visits: int = 0
    tags: list[str] = []
    waits: timedelta = timedelta(0)


@dataclasses.dataclass
class Account:
    owner: str
    balance: int
    inner: list[Inner] = dataclasses.field(default_factory=list)


class Options(TypedDict, total=False):
    colour: Colour
    size: int


class Tree(msgspec.Struct):
    kids: list["Tree"] = []
    note: Any = None


ZONE = timezone(timedelta(hours=2))
USER = User(
    "a",
    date(2000, 1, 2),
    datetime(2024, 1, 1, 5, 6, 7, 8, tzinfo=ZONE),
    UUID(int=7),
    Decimal("1.10"),
    -(2**90),
)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (User, USER),
        (User, User("b", date(2000, 1, 1), datetime(2024, 1, 1))),
        (Account, Account("a", 2**64, [Inner(datetime(2024, 1, 1), Decimal("1"))])),
        (Account, Account("a", 1)),
        (Options, {"colour": Colour.RED}),
        (Tree, Tree([Tree(), Tree([Tree(note={"at": datetime(2024, 1, 1), "n": [2**70]})])])),
        (Renamed, Renamed("x")),
        (Row, Row(1, UUID(int=1))),
        (list[int], [1, 2**64, -(2**70)]),
        (dict[UUID, Decimal], {UUID(int=1): Decimal("1.0")}),
        (dict[tuple[str, int], bytes], {("a", 1): b"\xff"}),
        (set[str], {"a", "b"}),
        (Point, Point(1, 2)),
        (int, 2**70),
        (float, 0.5),
        (Decimal | None, None),
        (Decimal, Decimal("NaN")),
        (datetime, datetime(2024, 1, 1, tzinfo=ZONE)),
        (typing.Literal["a", "b"], "b"),
        (Any, {"a": [UUID(int=1)]}),
        (typing.Annotated[int, msgspec.Meta(ge=0)], 2**65),
        (None, {"a": Decimal("1")}),
    ],
)
def test_a_typed_value_comes_back_as_it_was(kind, value):
    codec = ValueCodec(kind)
    read = codec.decode(codec.encode(value))
    assert (type(read) is type(value) and repr(read) == repr(value)) or read == value


def test_what_a_typed_map_stores_reads_naturally_without_the_type():
    assert decode_value(ValueCodec(User).encode(USER)) == msgspec.structs.asdict(USER)
    assert decode_value(ValueCodec(User).encode(USER)) == decode_value(encode_value(USER))
    read = decode_value(ValueCodec(User).encode(USER))
    assert read["seen"].utcoffset() == timedelta(hours=2) and str(read["credit"]) == "1.10"
    assert decode_value(ValueCodec(set[int]).encode({5})) == [5]


def test_what_is_put_without_a_type_reads_typed():
    assert ValueCodec(User).decode(encode_value(msgspec.structs.asdict(USER))) == USER
    as_text = {
        "name": "a",
        "born": "2000-01-02",
        "seen": "2024-01-01T00:00:00Z",
        "credit": "1.10",
        "id": str(UUID(int=7)),
    }
    read = ValueCodec(User).decode(encode_value(as_text))
    assert (
        read.born == date(2000, 1, 2)
        and read.seen == datetime(2024, 1, 1, tzinfo=UTC)
        and read.id == UUID(int=7)
    )


def test_a_typed_value_that_was_read_is_a_private_copy():
    codec = ValueCodec(User)
    user = User("a", date(2000, 1, 1), tags=["x"])
    data = codec.encode(user)
    user.tags.append("y")
    codec.decode(data).tags.append("z")
    assert codec.decode(data).tags == ["x"]


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        (User, User(5, date(2000, 1, 1)), r"not a User: Expected `str`, got `int` - at `\$.name`"),
        (User, User("a", "2000-01-01"), r"Expected `date`, got `str` - at `\$.born`"),
        (User, User("a", date(2000, 1, 1), credit=1.5), r"Expected `decimal`, got `float` - at `\$.credit`"),
        (
            User,
            User(datetime(2000, 1, 1), date(2000, 1, 1)),
            r"Expected `str`, got `datetime` - at `\$.name`",
        ),
        (User, User("a", date(2000, 1, 1), visits=True), r"Expected `int`, got `bool` - at `\$.visits`"),
        (User, User("a", date(2000, 1, 1), tags={"x"}), r"a set cannot be stored \(at value\['tags'\]\)"),
        (User, {"name": "a", "born": date(2000, 1, 1)}, "Expected `User`, got `dict`"),
        (User, None, "Expected `User`, got `NoneType`"),
        (Account, Account("a", "b"), r"Expected `int`, got `str` - at `\$.balance`"),
        (
            Account,
            Account(Decimal(1), 1),
            r"Expected `str`, got `decimal` - at `\$.owner`|got `ext` - at `\$.owner`",
        ),
        (Tree, Tree([Tree(kids=[1])]), r"Expected `object`, got `int` - at `\$.kids\[0\].kids\[0\]`"),
        (Options, {"color": "red"}, "no field 'color'"),
        (Options, {"size": "big"}, r"Expected `int`, got `str` - at `\$.size`"),
        (list[int], [1, "a"], r"list\[int\]: Expected `int`, got `str` - at `\$\[1\]`"),
        (list[int], [1, UUID(int=1)], r"at `\$\[1\]`"),
        (list[str], [UUID(int=1)], r"at `\$\[0\]`"),
        (list[int], {1}, "a set cannot be stored"),
        (bytes, "aaaa", "Expected `bytes`, got `str`"),
        (datetime, "2024-01-01T00:00:00", "Expected `datetime`, got `str`"),
        (int, True, "Expected `int`, got `bool`"),
        (int, 1.5, "Expected `int`, got `float`"),
        (str, None, "Expected `str`"),
        (typing.Annotated[int, msgspec.Meta(ge=0)], -(2**70), ">= 0"),
    ],
)
def test_a_value_of_another_type_is_refused_with_the_field_and_the_type(kind, value, message):
    with pytest.raises(InvalidValue, match=message) as caught:
        ValueCodec(kind).encode(value)
    assert caught.value.definite


class Version1(msgspec.Struct):
    name: str
    old: int


class Version2(msgspec.Struct):
    name: str
    price: Decimal = Decimal("1.5")


class Version3(msgspec.Struct):
    name: str
    needed: int


@dataclasses.dataclass
class Version2Data:
    name: str
    more: list[int] = dataclasses.field(default_factory=list)


def test_new_fields_with_defaults_read_old_values_and_fields_that_are_gone_are_ignored():
    stored = ValueCodec(Version1).encode(Version1("a", 2**70))
    assert ValueCodec(Version2).decode(stored) == Version2("a", Decimal("1.5"))
    assert ValueCodec(Version2Data).decode(stored) == Version2Data("a", [])


def test_a_new_field_without_default_is_an_error_that_says_what_to_do():
    stored = ValueCodec(Version1).encode(Version1("a", 1))
    with pytest.raises(InvalidValue, match=r"not a Version3: .*`needed`.*new fields need defaults") as caught:
        ValueCodec(Version3).decode(stored)
    assert caught.value.definite


def test_other_values_are_refused_when_they_are_read_typed():
    for stored in (encode_value("text"), encode_value({"name": 1}), b"\xc1", ext(99, b"")):
        with pytest.raises(InvalidValue):
            ValueCodec(Version2).decode(stored)


class Foreign:
    pass


class WithForeign(msgspec.Struct):
    inner: list[Foreign]


class WithUnknown(msgspec.Struct):
    inner: "NoSuchName"  # noqa: F821


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Foreign, "Foreign cannot be stored.*use a msgspec Struct"),
        (WithForeign, "WithForeign cannot be stored, because of Foreign"),
        (list[complex], "complex"),
        (object, "typing.Any"),
        (msgspec.Raw, "Raw"),
        (msgspec.msgpack.Ext, "Ext"),
        (WithUnknown, "NoSuchName"),
        (User | Version1, "tagged"),
        (5, "5"),
        ("text", "text"),
    ],
)
def test_types_that_cannot_be_stored_are_refused_at_once(kind, message):
    with pytest.raises(InvalidArgument, match=message) as caught:
        ValueCodec(kind)
    assert caught.value.definite
