"""Keys as bytes that sort as the keys do: FoundationDB's tuple encoding.

Compared byte by byte, encoded keys are in the order None < bytes < str < nested tuple < int < bool, element by
element, and a tuple comes before its extensions. Strings are in order of their code points.

Source: FoundationDB, "Tuple layer", ``design/tuple.md`` of its repository. Of its types these are used: null (0x00),
bytes (0x01), unicode string (0x02), nested tuple (0x05), integers (0x0b to 0x1d), false and true (0x26, 0x27).
There is exactly one encoding of a key: bytes that decode are the bytes that encoding gives.
"""

from __future__ import annotations

from typing import Final, TypeAlias

from onefold.codec import crc32c
from onefold.config import KEY_BYTES_MAX, KEY_DEPTH_MAX
from onefold.errors import InvalidKey, TooLarge

Key: TypeAlias = "str | int | bytes | bool | tuple[Key, ...] | None"
"""What a key may be. A bare key is the tuple of one element."""

_NULL: Final = 0x00
_BYTES: Final = 0x01
_STR: Final = 0x02
_NESTED: Final = 0x05
_NEGATIVE_LONG: Final = 0x0B
_ZERO: Final = 0x14
_POSITIVE_LONG: Final = 0x1D
_FALSE: Final = 0x26
_TRUE: Final = 0x27
_INT_BYTES_SHORT: Final = 8
_INT_BYTES_MAX: Final = 255
"""The length of a long integer is one byte in this format."""
_POSITIVE_CODES: Final = tuple(bytes((_ZERO + length,)) for length in range(_INT_BYTES_SHORT + 1))
_STR_CHARS_SURELY_FIT: Final = (KEY_BYTES_MAX - 2) // 4
"""A string up to this length fits whatever its characters are, unless it holds NULs."""

_KINDS: Final = "str, int, bytes, bool, None, or a tuple of these"
_INSTEAD: Final = {
    "float": "use an int or a str: floats have no safe equality",
    "list": "use a tuple",
    "bytearray": "use bytes",
    "memoryview": "use bytes",
    "datetime": "use .isoformat() of the time in UTC",
    "date": "use .isoformat()",
    "UUID": "use str() or .bytes of it",
}


def encode_key(key: object) -> bytes:
    """The key's encoding, at most ``KEY_BYTES_MAX`` bytes.

    Subclasses of str, int, bytes and tuple (such as a StrEnum, an IntEnum or a NamedTuple) are encoded as their base
    type and come back as it. Raises InvalidKey for anything else (floats too), for a string with a lone surrogate,
    for an empty tuple and for tuples nested deeper than ``KEY_DEPTH_MAX``; TooLarge for a longer encoding and for an
    int of more than 255 bytes. All are definite.
    """
    if type(key) is str and len(key) <= _STR_CHARS_SURELY_FIT and "\0" not in key:
        try:
            return b"\x02%b\0" % key.encode()
        except UnicodeEncodeError:
            raise _surrogate(key) from None
    if type(key) is tuple and len(key) == 2:
        return _checked(_pack(key[0], 0) + _pack(key[1], 0))
    if isinstance(key, tuple):
        if not tuple.__len__(key):
            raise InvalidKey("an empty tuple is not a key; give it at least one element")
        return _checked(_pack_tuple(key))
    return _checked(_pack(key, 0))


def encode_prefix(prefix: object) -> tuple[bytes, bytes]:
    """The range of encoded keys whose first elements are those of ``prefix``: from the first bytes up to, without,
    the second.

    The key ``prefix`` itself is in the range. A bare prefix is the tuple of one element; the empty tuple means every
    key. An element matches as a whole: the prefix ``"a"`` holds ``("a", 1)`` and not ``"ab"``. Errors are those of
    encode_key.
    """
    if isinstance(prefix, tuple) and not tuple.__len__(prefix):
        return b"", b"\xff"
    start = encode_key(prefix)
    # An element begins with a type code below 0xff, and 0xff after a terminator would be an escaped NUL, that is,
    # a longer string or tuple: so start + 0xff is above every extension of start by whole elements and above nothing else.
    return start, start + b"\xff"


def decode_key(data: bytes) -> Key:
    """The key with this encoding; a tuple of one element comes back bare, unless that element is a tuple itself.

    (Bare, ``((1, 2),)`` would be taken for ``(1, 2)``, another key.) Raises InvalidKey for bytes that encode no key.
    """
    length = len(data)
    if not 0 < length <= KEY_BYTES_MAX:
        raise InvalidKey(f"{length} bytes are no encoded key: expected 1 to {KEY_BYTES_MAX}")
    if data[0] == _STR and data.find(0, 1) == length - 1:
        return _text(data[1:-1])
    elements: list[Key] = []
    at = 0
    while at < length:
        element, at = _unpack(data, at, 0)
        elements.append(element)
    if len(elements) == 1 and type(elements[0]) is not tuple:
        return elements[0]
    return tuple(elements)


def first_element(data: bytes) -> bytes:
    """The encoding of an encoded key's first element, found from type codes, lengths and terminators.

    Raises InvalidKey for bytes that begin with no element.
    """
    return data[: _element_end(data, 0, 0)]


def shard_of(data: bytes, shards: int) -> int:
    """The shard of an encoded key among ``shards``: keys with the same first element share one. Raises InvalidKey."""
    if shards == 1:
        return 0
    return crc32c(first_element(data)) % shards


def _checked(data: bytes) -> bytes:
    if len(data) > KEY_BYTES_MAX:
        raise _too_large(f"the key takes {len(data)} bytes encoded")
    return data


def _pack_tuple(key: tuple[object, ...]) -> bytes:
    if tuple.__len__(key) > KEY_BYTES_MAX:  # each element takes a byte or more
        raise _too_large(f"the key has {tuple.__len__(key)} elements")
    return b"".join([_pack(element, 0) for element in tuple.__iter__(key)])


def _pack(value: object, depth: int) -> bytes:
    """One element; ``depth`` is that of the tuples around it, without the key itself."""
    kind = type(value)
    if kind is str:
        return _pack_str(value)  # type: ignore[arg-type]
    if kind is int:
        return _pack_int(value)  # type: ignore[arg-type]
    if isinstance(value, str):
        return _pack_str(value)
    if value is True:
        return b"\x27"
    if value is False:
        return b"\x26"
    if isinstance(value, int):
        # A subclass may have operators of its own; the base's are meant.
        return _pack_int(int.__index__(value))
    if value is None:
        return b"\0"
    if isinstance(value, bytes):
        _check_length(bytes.__len__(value), "bytes")
        return b"\x01%b\0" % bytes.replace(value, b"\0", b"\0\xff")
    if isinstance(value, tuple):
        return _pack_nested(value, depth + 1)
    name = type(value).__name__
    article = "an" if name[0] in "aeiouAEIOU" else "a"
    raise InvalidKey(
        f"{article} {name} cannot be (part of) a key; {_INSTEAD.get(name, f'a key is {_KINDS}')}"
    )


def _pack_str(value: str) -> bytes:
    if str.__len__(value) > KEY_BYTES_MAX:
        _check_length(str.__len__(value), "characters")
    try:
        raw = str.encode(value)
    except UnicodeEncodeError:
        raise _surrogate(value) from None
    if b"\0" in raw:
        raw = raw.replace(b"\0", b"\0\xff")
    return b"\x02%b\0" % raw


def _pack_int(value: int) -> bytes:
    length = (value.bit_length() + 7) >> 3
    if length <= _INT_BYTES_SHORT:
        if value >= 0:
            return _POSITIVE_CODES[length] + value.to_bytes(length, "big")
        # Negative numbers are shifted up by the largest number of their length: the order stays.
        return bytes((_ZERO - length,)) + (value + (1 << 8 * length) - 1).to_bytes(length, "big")
    if length > _INT_BYTES_MAX:
        raise TooLarge(
            f"an int of {length} bytes cannot be (part of) a key; at most {_INT_BYTES_MAX} bytes can"
        )
    if value >= 0:
        return bytes((_POSITIVE_LONG, length)) + value.to_bytes(length, "big")
    # More bytes are further below zero, so the length is complemented.
    return bytes((_NEGATIVE_LONG, length ^ 0xFF)) + (value + (1 << 8 * length) - 1).to_bytes(length, "big")


def _pack_nested(value: tuple[object, ...], depth: int) -> bytes:
    if depth > KEY_DEPTH_MAX:
        raise InvalidKey(f"tuples are nested deeper than {KEY_DEPTH_MAX} in a key; make the key flatter")
    _check_length(tuple.__len__(value), "elements")
    parts = [b"\0\xff" if element is None else _pack(element, depth) for element in tuple.__iter__(value)]
    return b"\x05%b\0" % b"".join(parts)


def _check_length(length: int, unit: str) -> None:
    """Refuses early what cannot fit, without encoding all of it."""
    if length > KEY_BYTES_MAX:
        raise _too_large(f"the key has {length} {unit} in one element")


def _too_large(what: str) -> TooLarge:
    return TooLarge(
        f"{what}; at most {KEY_BYTES_MAX} bytes fit. Use a shorter key, such as a digest of this one"
    )


def _surrogate(value: str) -> InvalidKey:
    return InvalidKey(f"the string {value[:60]!a} holds half a surrogate pair, which has no UTF-8; remove it")


def _invalid(data: bytes, at: int, what: str) -> InvalidKey:
    return InvalidKey(f"these bytes are no encoded key: {what} at byte {at} of {len(data)}")


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise InvalidKey(f"these bytes are no encoded key: a string is not UTF-8 ({error.reason})") from None


def _unpack(data: bytes, at: int, depth: int) -> tuple[Key, int]:
    """The element that starts at ``at``, and where the next one starts."""
    code = data[at]
    if code in (_STR, _BYTES):
        end = _terminator(data, at)
        raw = data[at + 1 : end].replace(b"\0\xff", b"\0")
        return (_text(raw) if code == _STR else raw), end + 1
    if _NEGATIVE_LONG <= code <= _POSITIVE_LONG:
        return _unpack_int(data, at)
    if code == _NULL:
        return None, at + 1
    if code in (_TRUE, _FALSE):
        return code == _TRUE, at + 1
    if code == _NESTED:
        return _unpack_nested(data, at, depth + 1)
    raise _invalid(data, at, f"the unknown type code 0x{code:02x}")


def _unpack_int(data: bytes, at: int) -> tuple[int, int]:
    code = data[at]
    end = _int_end(data, at)
    if code in (_NEGATIVE_LONG, _POSITIVE_LONG):
        start, negative = at + 2, code == _NEGATIVE_LONG
    else:
        start, negative = at + 1, code < _ZERO
    length = end - start
    value = int.from_bytes(data[start:end], "big")
    if negative:
        value -= (1 << 8 * length) - 1
    short = start == at + 1
    if (value.bit_length() + 7) >> 3 != length or (length <= _INT_BYTES_SHORT) != short:
        raise _invalid(data, at, "an integer that is not in its shortest form")
    return value, end


def _unpack_nested(data: bytes, at: int, depth: int) -> tuple[Key, int]:
    if depth > KEY_DEPTH_MAX:
        raise _invalid(data, at, f"a tuple nested deeper than {KEY_DEPTH_MAX}")
    elements: list[Key] = []
    next_at = at + 1
    while next_at < len(data):
        if data[next_at] != _NULL:
            element, next_at = _unpack(data, next_at, depth)
            elements.append(element)
        elif data[next_at + 1 : next_at + 2] == b"\xff":
            elements.append(None)
            next_at += 2
        else:
            return tuple(elements), next_at + 1
    raise _invalid(data, at, "a nested tuple without end")


def _terminator(data: bytes, at: int) -> int:
    """Where the NUL stands that ends the string or bytes starting at ``at``."""
    end = data.find(0, at + 1)
    while end >= 0 and data[end + 1 : end + 2] == b"\xff":
        end = data.find(0, end + 2)
    if end < 0:
        raise _invalid(data, at, "a string or bytes without end")
    return end


def _int_end(data: bytes, at: int) -> int:
    code = data[at]
    if code in (_NEGATIVE_LONG, _POSITIVE_LONG):
        if at + 1 >= len(data):
            raise _invalid(data, at, "an integer without length")
        end = at + 2 + (data[at + 1] ^ (0xFF if code == _NEGATIVE_LONG else 0))
    else:
        end = at + 1 + abs(code - _ZERO)
    if end > len(data):
        raise _invalid(data, at, "an integer cut short")
    return end


def _element_end(data: bytes, at: int, depth: int) -> int:
    """Where the element that starts at ``at`` ends; no value is made, save of a nested tuple, which is rare."""
    if at >= len(data):
        raise _invalid(data, at, "no element")
    code = data[at]
    if code in (_STR, _BYTES):
        return _terminator(data, at) + 1
    if _NEGATIVE_LONG <= code <= _POSITIVE_LONG:
        return _int_end(data, at)
    if code == _NESTED:
        return _unpack_nested(data, at, depth + 1)[1]
    if code in (_NULL, _FALSE, _TRUE):
        return at + 1
    raise _invalid(data, at, f"the unknown type code 0x{code:02x}")
