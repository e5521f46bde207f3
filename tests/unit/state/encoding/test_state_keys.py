"""Keys of shared state: FoundationDB's tuple encoding, its order, prefixes and shards."""

from collections import namedtuple
from datetime import date
from enum import IntEnum, StrEnum

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from onefold.codec import crc32c
from onefold.config import KEY_BYTES_MAX, KEY_DEPTH_MAX
from onefold.errors import InvalidKey, TooLarge
from onefold.state.encoding.keys import decode_key, encode_key, encode_prefix, first_element, shard_of

texts = st.text(
    alphabet=st.one_of(st.sampled_from("\0\x01ab\u00ff\uffff\U0001f600"), st.characters(codec="utf-8")),
    max_size=6,
)
blobs = st.one_of(
    st.lists(st.sampled_from([0, 1, 5, 0x14, 0xFE, 0xFF]), max_size=5).map(bytes), st.binary(max_size=5)
)
edges = st.builds(
    lambda power, by, sign: sign * (2**power + by),
    st.integers(0, 80),
    st.integers(-2, 2),
    st.sampled_from([1, -1]),
)
ints = st.one_of(st.integers(-3, 3), edges, st.integers(), st.integers(-(2**2039) + 1, 2**2039 - 1))
leaves = st.one_of(st.none(), st.booleans(), ints, texts, blobs)
elements = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=6)
keys = st.lists(elements, min_size=1, max_size=4).map(tuple)


def rank(element):
    """The place of an element in the order of keys, said without the encoding."""
    if element is None:
        return (0,)
    if isinstance(element, bytes):
        return (1, element)
    if isinstance(element, str):
        return (2, element)
    if isinstance(element, tuple):
        return (3, [rank(inner) for inner in element])
    return (5 if isinstance(element, bool) else 4, element)


def order(key):
    return [rank(element) for element in key]


def as_read(key):
    return key[0] if len(key) == 1 and not isinstance(key[0], tuple) else key


def same(a, b):
    """Equal, and of the same types: 1 is not True here."""
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and a == b


@pytest.mark.parametrize(
    ("key", "encoded"),
    [
        # The examples of the published specification.
        (None, b"\x00"),
        (b"foo\x00bar", b"\x01foo\x00\xffbar\x00"),
        ("F\u00d4O\u0000bar", b"\x02F\xc3\x94O\x00\xffbar\x00"),
        (((b"foo\x00bar", None, ()),), b"\x05\x01foo\x00\xffbar\x00\x00\xff\x05\x00\x00"),
        (-5551212, b"\x11\xab\x4b\x93"),
        # The limits of each length of integers, by its rules.
        (0, b"\x14"),
        (1, b"\x15\x01"),
        (-1, b"\x13\xfe"),
        (255, b"\x15\xff"),
        (256, b"\x16\x01\x00"),
        (-255, b"\x13\x00"),
        (-256, b"\x12\xfe\xff"),
        (2**64 - 1, b"\x1c" + b"\xff" * 8),
        (-(2**64) + 1, b"\x0c" + b"\x00" * 8),
        (2**64, b"\x1d\x09\x01" + b"\x00" * 8),
        (-(2**64), b"\x0b\xf6\xfe" + b"\xff" * 8),
        (False, b"\x26"),
        (True, b"\x27"),
        ("", b"\x02\x00"),
        (b"", b"\x01\x00"),
        (("a", 1, None), b"\x02a\x00\x15\x01\x00"),
    ],
)
def test_keys_have_the_bytes_of_the_specification(key, encoded):
    assert encode_key(key) == encoded
    assert same(decode_key(encoded), key)


@given(keys)
def test_a_key_comes_back_as_it_was_and_a_single_element_bare(key):
    encoded = encode_key(key)
    assert same(decode_key(encoded), as_read(key))
    assert encode_key(decode_key(encoded)) == encoded


@given(keys, keys)
@example(("a",), ("a\0",))
@example(("a", None), ("a\0",))
@example(((None,),), ((), 1))
@example((-(2**64),), (-(2**64) + 1,))
@example((b"\0",), (b"\0\xff",))
def test_encodings_sort_as_the_keys_do(a, b):
    assert (encode_key(a) < encode_key(b)) == (order(a) < order(b))
    assert (encode_key(a) == encode_key(b)) == (order(a) == order(b))


def test_the_order_of_types_is_the_documented_one():
    in_order = [None, b"", b"\xff", "", "\U0010ffff", ((),), (("a",),), -(10**30), -1, 0, 10**30, False, True]
    encoded = [encode_key(key) for key in in_order]
    assert encoded == sorted(encoded)


def test_a_bare_key_and_its_tuple_are_one_key_and_a_tuple_in_a_tuple_is_another():
    assert encode_key("a") == encode_key(("a",))
    assert decode_key(encode_key(("a",))) == "a"
    assert decode_key(encode_key(((1, 2),))) == ((1, 2),)
    assert decode_key(encode_key((1, 2))) == (1, 2)


@given(keys, keys, st.integers(0, 4))
def test_the_range_of_a_prefix_holds_exactly_the_keys_that_begin_with_it(key, other, length):
    for prefix in (key[:length], other[:length], other):
        start, stop = encode_prefix(prefix)
        assert (start <= encode_key(key) < stop) == (order(key)[: len(prefix)] == order(prefix))


@given(st.lists(elements, min_size=1, max_size=3).map(tuple), st.lists(elements, max_size=3).map(tuple))
def test_the_range_of_a_prefix_holds_its_extensions_and_itself(prefix, rest):
    start, stop = encode_prefix(prefix)
    assert start <= encode_key(prefix + rest) < stop


def test_prefixes_match_whole_elements():
    start, stop = encode_prefix("a")
    assert start <= encode_key("a") < stop and start <= encode_key(("a", True)) < stop
    for other in ["ab", "a\0", "a\0\xff", ("a\0", 1), b"a", (("a",),)]:
        assert not start <= encode_key(other) < stop
    start, stop = encode_prefix(((1,),))
    assert not start <= encode_key(((1, None),)) < stop


def test_a_prefix_is_its_encoding_up_to_that_and_the_highest_byte():
    assert encode_prefix("a") == encode_prefix(("a",)) == (b"\x02a\x00", b"\x02a\x00\xff")


def test_the_empty_prefix_means_every_key():
    assert encode_prefix(()) == (b"", b"\xff")


@given(keys, st.integers(1, 1024))
def test_the_first_element_alone_chooses_the_shard(key, shards):
    first = encode_key(key[:1])
    assert first_element(encode_key(key)) == first
    assert shard_of(encode_key(key), shards) == crc32c(first) % shards == shard_of(first, shards)


def test_one_shard_needs_no_look_at_the_key():
    assert shard_of(b"no key at all", 1) == 0


class Colour(StrEnum):
    RED = "red"


class Number(IntEnum):
    SEVEN = 7


Point = namedtuple("Point", ["x", "y"])


class OwnBytes(bytes):
    def __bytes__(self):
        return b"something else"


@pytest.mark.parametrize(
    ("key", "base"),
    [
        (Colour.RED, "red"),
        (Number.SEVEN, 7),
        (Point(1, "a"), (1, "a")),
        ((Point(1, 2), Colour.RED), ((1, 2), "red")),
        (OwnBytes(b"x\0"), b"x\0"),
    ],
)
def test_subclasses_are_encoded_as_their_base(key, base):
    assert encode_key(key) == encode_key(base)
    assert same(decode_key(encode_key(key)), base)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (1.5, "float.*use an int or a str"),
        (("a", 1.5), "float"),
        (["a"], "list.*use a tuple"),
        (("a", ["b"]), "list.*use a tuple"),
        ({"a": 1}, "dict.*a key is str, int"),
        (bytearray(b"a"), "bytearray.*use bytes"),
        (date(2024, 1, 1), "date.*isoformat"),
        (object(), "object"),
        ((), "empty tuple"),
        ("\ud800", "half a surrogate pair"),
        (("x" * 5000 + "\udfff", 1), "half a surrogate pair"),
    ],
)
def test_what_is_no_key_is_refused_with_the_reason(key, message):
    with pytest.raises(InvalidKey, match=message) as caught:
        encode_key(key)
    assert caught.value.definite and isinstance(caught.value, ValueError)


def nested(depth):
    key = (1,)
    for _ in range(depth):
        key = (key,)
    return key


def test_tuples_are_nested_up_to_the_limit():
    assert decode_key(encode_key(nested(KEY_DEPTH_MAX))) == nested(KEY_DEPTH_MAX)
    with pytest.raises(InvalidKey, match="deeper than 16"):
        encode_key(nested(KEY_DEPTH_MAX + 1))
    with pytest.raises(InvalidKey, match="deeper than 16"):
        encode_key(nested(100_000))
    for no_key in (b"\x05" * 17 + b"\x00" * 17, b"\x05" * 5000):
        with pytest.raises(InvalidKey, match="deeper than 16"):
            decode_key(no_key)
        with pytest.raises(InvalidKey, match="deeper than 16"):
            first_element(no_key)


def test_keys_are_as_long_as_the_limit_and_not_longer():
    for fits in ["x" * (KEY_BYTES_MAX - 2), b"x" * (KEY_BYTES_MAX - 2), (None,) * KEY_BYTES_MAX, "\0" * 4999]:
        assert len(encode_key(fits)) == KEY_BYTES_MAX
        assert decode_key(encode_key(fits)) == fits
    for too_long in [
        "x" * (KEY_BYTES_MAX - 1),
        b"x" * (KEY_BYTES_MAX - 1),
        (None,) * (KEY_BYTES_MAX + 1),
        "\0" * 5000,
        "\u00e9" * 5000,
        "\U0001f600" * 2500,
        ("a", "x" * 9996),
        ((b"x" * 9000,), b"y" * 1000),
        "x" * 10_000_000,
    ]:
        with pytest.raises(TooLarge, match="at most 10000"):
            encode_key(too_long)


def test_ints_of_255_bytes_are_the_largest():
    for edge in (2**2040 - 1, -(2**2040) + 1):
        assert decode_key(encode_key(edge)) == edge
    for beyond in (2**2040, -(2**2040), 10**100_000):
        with pytest.raises(TooLarge, match="255"):
            encode_key(beyond)


NO_KEYS = [
    b"",
    b"\x02a",
    b"\x02a\x00\xff",
    b"\x01",
    b"\x02\xff\x00",
    b"\x02\xed\xa0\x80\x00",
    b"\x02a\x00\x02\xff\x00",
    b"\x05",
    b"\x05\x15\x01",
    b"\x05\x00\xff",
    b"\x15",
    b"\x1c\x01",
    b"\x15\x00",
    b"\x16\x00\x01",
    b"\x13\xff",
    b"\x12\xff\x01",
    b"\x1d",
    b"\x1d\x09\x01",
    b"\x1d\x01\x05",
    b"\x1d\x00",
    b"\x0b",
    b"\x0b\xff",
    b"\x0b\xf7" + b"\x00" * 8,
    b"\x0b\xf6\xff" + b"\xff" * 8,
    b"\x03",
    b"\x20\x00\x00\x00\x00",
    b"\xff",
    b"\x00" * (KEY_BYTES_MAX + 1),
]


@pytest.mark.parametrize("data", NO_KEYS)
def test_bytes_that_encode_no_key_are_refused(data):
    with pytest.raises(InvalidKey, match="no encoded key"):
        decode_key(data)


@given(
    st.one_of(
        st.binary(max_size=20),
        st.lists(st.sampled_from(b"\x00\x01\x02\x05\x0b\x0c\x13\x14\x15\x1d\x26\xff")).map(bytes),
    )
)
def test_any_bytes_are_the_one_encoding_of_a_key_or_are_refused(data):
    try:
        key = decode_key(data)
    except InvalidKey:
        return
    assert encode_key(key) == data


@given(st.binary(max_size=20))
def test_any_bytes_have_a_first_element_or_are_refused(data):
    try:
        first = first_element(data)
    except InvalidKey:
        return
    assert first and data.startswith(first)
