"""Values as bytes: msgpack, with extension types for what msgpack lacks (see ``onefold.state.encoding.extensions``).

There is one format. A typed map (``ValueCodec``) stores what an untyped one would: a Struct or dataclass is a map of
its fields, a datetime, Decimal, UUID or big int among them is an extension. So an untyped reader of a typed map gets
dicts with these values in them, and a typed reader reads what was put untyped if it fits. The encoding is not canonical:
equal values may have different bytes.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

import msgspec

from onefold.config import VALUE_BYTES_MAX, VALUE_DEPTH_MAX
from onefold.errors import InvalidArgument, InvalidValue, TooLarge
from onefold.state.encoding.extensions import BIG_INT, SPECIAL_TYPES, unpack_extension
from onefold.state.encoding.value_walk import LEAVES, Refused, encode_hook, is_plain, prepare

T = TypeVar("T")

_encoder = msgspec.msgpack.Encoder(enc_hook=encode_hook)
_decoder = msgspec.msgpack.Decoder(ext_hook=unpack_extension)
_number_decoder = msgspec.msgpack.Decoder(int | float | msgspec.msgpack.Ext)


def encode_value(value: object) -> bytes:
    """The value's encoding, at most ``VALUE_BYTES_MAX`` bytes.

    Values are None, bool, int of any size, float (NaN and infinities too), str, bytes, list, tuple, dict, datetime,
    date, time, timedelta, Decimal, UUID, Enum members (as their value), msgspec Structs and dataclasses (as maps),
    nested up to ``VALUE_DEPTH_MAX`` deep. Keys of dicts are any of these without lists and maps. Raises InvalidValue,
    which names the type and the place, for anything else; TooLarge over the limit. Both are definite.
    """
    if type(value) in LEAVES or is_plain(value, VALUE_DEPTH_MAX):
        try:
            return _checked(_encoder.encode(value))
        except (OverflowError, UnicodeEncodeError):
            pass  # a big int, or half a surrogate pair: the walk below encodes the one and finds the place of the other
    return _encode_walked(value, sets=False)


def decode_value(data: bytes) -> Any:
    """The value, as a new object: who changes it changes only his copy.

    Tuples come back as lists (as keys of dicts they stay tuples), an aware datetime with a fixed offset, Structs and
    dataclasses as dicts. Raises InvalidValue (definite) for bytes that encode no value.
    """
    try:
        return _decoder.decode(data)
    except InvalidValue:
        raise
    except (msgspec.MsgspecError, ValueError, TypeError, ArithmeticError) as error:
        raise InvalidValue(f"these {len(data)} bytes are no stored value: {error}") from None
    except RecursionError:
        raise InvalidValue(f"these {len(data)} bytes are no stored value: nested too deep") from None


def is_number(value: object) -> bool:
    """Whether increments apply to the value: an int or float, not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_increment(by: object) -> None:
    """Raises InvalidArgument for what programs cannot add: no number, or one after which the sum would tell nothing."""
    if not isinstance(by, int | float) or isinstance(by, bool) or not -math.inf < by < math.inf:
        raise InvalidArgument(f"by must be an int or a finite float; got {by!r:.100}")


def add(old: bytes | None, by: float) -> tuple[bytes, int | float] | None:
    """The sum of a stored number (None counts as 0) and ``by``, encoded and as it is; None when either is not a number.

    Every replica gets the same bytes, and no bytes make it raise. Ints never overflow (None when one would be longer
    than a value may be). With a float, an int beyond the floats counts as an infinity. Every NaN is the same NaN.
    """
    start = 0 if old is None else decode_number(old)
    if start is None or not is_number(by):
        return None
    total = _sum(start, int.__index__(by) if isinstance(by, int) else float.__float__(by))
    try:
        return encode_value(total), total
    except TooLarge:
        return None


class ValueCodec(Generic[T]):
    """Encodes and decodes the values of a map of one type.

    ``type`` is a msgspec Struct, dataclass, TypedDict, builtin generic such as ``list[int]`` or anything else made of
    what encode_value takes, sets included, which are stored as lists; None means any value, untyped. Raises
    InvalidArgument (definite) for a type that cannot be stored.

    When the type changes, old values are still read if its new fields have defaults; fields that are gone are ignored.
    """

    def __init__(self, type: type[T] | None) -> None:
        self._type = type
        self._name = getattr(type, "__name__", None) if not typing.get_args(type) else None
        self._name = self._name or str(type)
        self._class: Any = typing.get_origin(type) or type
        self._sets = False
        self._direct: msgspec.msgpack.Decoder[Any] | None = None
        if type is not None:
            kinds = _kinds_of(type, self._name)
            self._sets = any(
                isinstance(kind, msgspec.inspect.SetType | msgspec.inspect.FrozenSetType) for kind in kinds
            )
            # msgspec's decoder takes no extension for a datetime and its like: those go through its convert.
            if not any(isinstance(kind, _SPECIAL_KINDS) for kind in kinds):
                self._direct = msgspec.msgpack.Decoder(type, ext_hook=unpack_extension)

    @property
    def typed(self) -> bool:
        """Whether it is of a type, and not of any value."""
        return self._type is not None

    def encode(self, value: T) -> bytes:
        """The value's encoding. Raises InvalidValue when the value is not of the type: what is stored can be read.

        A Struct, dataclass or TypedDict must be one at the top; inside, what reads back as the type is of the type.
        Errors are those of encode_value.
        """
        if self._type is None:
            return encode_value(value)
        self._check_outer(value)
        data = _encode_walked(value, sets=self._sets)
        try:
            self._read(data, (bytes, bytearray, *SPECIAL_TYPES))
        except msgspec.MsgspecError as error:
            raise InvalidValue(f"the value is not a {self._name}: {error}") from None
        return data

    def decoder(self) -> Callable[[bytes], T]:
        """What does as ``decode``, a call less deep where values of any type are read."""
        return typing.cast("Callable[[bytes], T]", decode_value) if self._type is None else self.decode

    def decode(self, data: bytes) -> T:
        """The value, as a new object. Raises InvalidValue for bytes that are no value, or none of the type.

        Text in the standard forms is also read as a datetime, date, time, timedelta, Decimal or UUID.
        """
        if self._type is None:
            return typing.cast(T, decode_value(data))
        try:
            return self._read(data, (bytes, bytearray))
        except msgspec.MsgspecError as error:
            raise InvalidValue(
                f"a stored value is not a {self._name}: {error}. If the type was changed: new fields need defaults, and "
                "fields keep their names and types; open it without a type to see what is stored"
            ) from None

    def _read(self, data: bytes, natives: tuple[type, ...]) -> T:
        """``natives``: the types that are not also read from text."""
        if self._direct is not None:
            try:
                return typing.cast(T, self._direct.decode(data))
            except (ValueError, TypeError, ArithmeticError, RecursionError):
                pass  # perhaps a big int, which is an extension; if not, the same error is found again below
        return msgspec.convert(decode_value(data), typing.cast("type[T]", self._type), builtin_types=natives)

    def _check_outer(self, value: object) -> None:
        """Whether a named class was asked for and given: a dict with its fields would read back, but is not one."""
        kind = self._class
        if typing.is_typeddict(kind):
            unknown = (
                [key for key in value if key not in kind.__annotations__] if isinstance(value, dict) else []
            )
            if unknown:
                raise InvalidValue(f"the value is not a {self._name}, which has no field {unknown[0]!r}")
            return
        named = isinstance(kind, type) and (
            issubclass(kind, msgspec.Struct) or dataclasses.is_dataclass(kind)
        )
        if named and not isinstance(value, kind):
            raise InvalidValue(
                f"the value is not a {self._name}: Expected `{self._name}`, got `{type(value).__name__}`"
            )


_SPECIAL_KINDS: Final = (
    msgspec.inspect.DateTimeType,
    msgspec.inspect.DateType,
    msgspec.inspect.TimeType,
    msgspec.inspect.TimeDeltaType,
    msgspec.inspect.DecimalType,
    msgspec.inspect.UUIDType,
)


def _kinds_of(type_: Any, name: str) -> list[msgspec.inspect.Type]:
    """Every type within the type. Raises InvalidArgument for one that cannot be stored."""
    try:
        todo: list[object] = [msgspec.inspect.type_info(type_)]
        msgspec.msgpack.Decoder(type_)
    except (TypeError, NameError, ValueError) as error:
        raise InvalidArgument(f"values of type {name} cannot be stored: {error}") from None
    kinds: dict[int, msgspec.inspect.Type] = {}
    while todo:
        item = todo.pop()
        if isinstance(item, list | tuple):
            todo.extend(item)
        elif isinstance(item, msgspec.inspect.Field):
            todo.append(item.type)
        elif isinstance(item, msgspec.inspect.Type) and id(item) not in kinds:
            kinds[id(item)] = item
            _check_kind(item, name)
            todo.extend(getattr(item, field) for field in item.__struct_fields__)
    return list(kinds.values())


def _check_kind(kind: msgspec.inspect.Type, name: str) -> None:
    attrs = isinstance(kind, msgspec.inspect.DataclassType) and not dataclasses.is_dataclass(kind.cls)
    foreign = isinstance(kind, msgspec.inspect.CustomType | msgspec.inspect.RawType | msgspec.inspect.ExtType)
    if attrs or foreign:
        inner = getattr(getattr(kind, "cls", None), "__qualname__", type(kind).__name__.removesuffix("Type"))
        raise InvalidArgument(
            f"values of type {name} cannot be stored, because of {inner}; use a msgspec Struct, a dataclass, a TypedDict, "
            "builtin types, or typing.Any for any value"
        )


def _checked(data: bytes) -> bytes:
    if len(data) > VALUE_BYTES_MAX:
        raise TooLarge(
            f"the value takes {len(data)} bytes encoded; at most {VALUE_BYTES_MAX} fit. Split it into several, or "
            "store it as a file and its path here"
        )
    return data


def _encode_walked(value: object, *, sets: bool) -> bytes:
    try:
        return _checked(_encoder.encode(prepare(value, 0, sets)))
    except Refused as error:
        raise InvalidValue(str(error)) from None


def decode_number(data: bytes) -> int | float | None:
    """The number in these bytes; None for anything else."""
    try:
        number = _number_decoder.decode(data)
        if not isinstance(number, msgspec.msgpack.Ext):
            return typing.cast("int | float", number)
        if number.code != BIG_INT:
            return None
        return int(unpack_extension(BIG_INT, memoryview(number.data)))
    except (ValueError, TypeError, ArithmeticError):
        return None


def _sum(a: int | float, b: int | float) -> int | float:
    if isinstance(a, int) and isinstance(b, int):
        return a + b
    total = _as_float(a) + _as_float(b)
    # Processors differ in the sign of the NaN that they make of two infinities.
    return math.nan if math.isnan(total) else total


def _as_float(number: int | float) -> float:
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf
