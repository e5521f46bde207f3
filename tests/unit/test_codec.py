"""Records as bytes."""

import random

import pytest

from onefold.codec import CorruptRecord, Op, Record, UnknownFormat, crc32c, decode_record, encode_record

RECORD = Record("c0-00", 7, 123, (Op("kv", b"\x00body"), Op("kv", b"", "request")), 2)


def test_a_record_comes_back_as_it_was():
    assert decode_record(encode_record(RECORD)) == RECORD


def test_every_flipped_bit_is_found():
    data = encode_record(RECORD)
    for bit in range(len(data) * 8):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptRecord):
            decode_record(bytes(damaged))


def test_every_cut_is_found():
    data = encode_record(RECORD)
    for length in range(len(data)):
        with pytest.raises(CorruptRecord):
            decode_record(data[:length])


@pytest.mark.parametrize("seed", range(5))
def test_garbage_is_no_record(seed):
    rng = random.Random(seed)
    for _ in range(200):
        with pytest.raises(CorruptRecord):
            decode_record(rng.randbytes(rng.randrange(64)))


def test_a_newer_format_says_so():
    body = b"whatever comes next year"
    data = bytes([9]) + crc32c(bytes([9]) + body).to_bytes(4, "big") + body
    with pytest.raises(UnknownFormat, match="format 9"):
        decode_record(data)


def test_good_bytes_with_foreign_content_are_no_record():
    body = b"\x93\x01\x02\x03"
    data = bytes([1]) + crc32c(b"\x01" + body).to_bytes(4, "big") + body
    with pytest.raises(CorruptRecord):
        decode_record(data)
