"""Classes that values are made of, and bytes of a single extension."""

from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import NamedTuple
from uuid import UUID

import msgspec


class Colour(StrEnum):
    RED = "red"


class Point(NamedTuple):
    x: int
    y: int


class Inner(msgspec.Struct, frozen=True):
    at: datetime
    price: Decimal = Decimal("0")


class Renamed(msgspec.Struct, rename="camel", tag_field="kind", tag="r"):
    first_name: str


class Row(msgspec.Struct, array_like=True):
    a: int
    b: UUID


def ext(code, data):
    return msgspec.msgpack.encode(msgspec.msgpack.Ext(code, data))
