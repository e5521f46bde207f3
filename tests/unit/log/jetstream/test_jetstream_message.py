"""Headers as they come over the wire, also those that a hostile writer made."""

import datetime

import pytest

from onefold.errors import InvalidArgument
from onefold.log.api import Entry
from onefold.log.jetstream.client.message import (
    Msg,
    header_block,
    milliseconds,
    nobody_answers,
    parse_headers,
)
from onefold.log.jetstream.fetch import Origin, entry_of
from onefold.log.jetstream.names import LogNames, check_space, space_of, space_subject

NAMES = LogNames("main", "i_1", 0)
ORIGIN = Origin.of(NAMES)
STORED = (
    "Nats-Stream: OF_main_i_1_0\r\nNats-Subject: of.main.i_1.log.0\r\nNats-Sequence: 7\r\n"
    "Nats-Time-Stamp: 2026-11-25T19:39:18.4683Z\r\n"
)
FORGED = STORED.replace("7\r", "99\r").replace(":39:", ":40:")


def test_status_lines() -> None:
    assert parse_headers(b"NATS/1.0 503\r\n\r\n") == {"Status": "503"}
    end = parse_headers(b"NATS/1.0 204 EOB\r\nNats-Num-Pending: 3\r\n\r\n")
    assert end == {"Status": "204", "Description": "EOB", "Nats-Num-Pending": "3"}
    assert parse_headers(b"NATS/1.0\r\na: b\r\n\r\n") == {"a": "b"}
    assert parse_headers(b"NATS/1.0\r\n\r\n") is None
    assert parse_headers(b"") is None and parse_headers(None) is None


@pytest.mark.parametrize("first", ["NATS/1.0", "NATS/1.0 503", "NATS/1.0 204 EOB", "NATS/1.0\r\nStatus: 404"])
@pytest.mark.parametrize("forged", ["", FORGED, FORGED + "a: b\r\n", "Nats-Sequence: 99\r\n"])
@pytest.mark.parametrize(
    "end", ["", "Nats-Num-Pending: 3\r\nNats-Last-Sequence: 6\r\n", "Nats-Last-Sequence: 6\r\n", "c: d\r\n"]
)
def test_a_stored_record_is_one_whatever_its_writer_wrote(first: str, forged: str, end: str) -> None:
    block = f"{first}\r\n{forged}{STORED}{end}\r\n".encode()
    assert Msg("s", "", parse_headers(block), b"").status is None
    assert not nobody_answers(block)
    assert entry_of(block, b"x", ORIGIN) == (7, b"x", 1795635558468, False)


@pytest.mark.parametrize("end", ["", "Nats-Num-Pending: 3\r\nNats-Last-Sequence: 6\r\n", "c: d\r\n"])
def test_only_the_subject_that_the_server_noted_is_trusted(end: str) -> None:
    def entry(forged: str, noted: str) -> Entry | None:
        stored = STORED.replace(NAMES.subject, noted)
        return entry_of(f"NATS/1.0\r\n{forged}{stored}{end}\r\n".encode(), b"x", ORIGIN)

    mine, others = NAMES.node_subject, NAMES._replace(shard=1).node_subject
    for forged, noted, trusted in (
        ("", mine, True),
        (f"Nats-Subject: {NAMES.subject}\r\n", mine, True),
        (f"Nats-Subject: {mine}\r\n", NAMES.subject, False),
        (STORED.replace(NAMES.subject, mine), NAMES.subject, False),
        ("", others, False),
        ("", f"{mine}.x", False),
    ):
        found = entry(forged, noted)
        assert found is not None and found.trusted is trusted, (forged, noted)


@pytest.mark.parametrize(
    "text",
    [
        "Nats-Sequence: 7\r\n",
        "Nats-Stream: OF_main_i_1_0\r\n",
        STORED.replace("7\r", "x\r"),
        STORED.replace("i_1_0", "i_1_1"),
    ],
)
def test_what_is_no_record_of_the_log(text: str) -> None:
    assert entry_of(f"NATS/1.0\r\n{text}\r\n".encode(), b"", ORIGIN) is None
    assert entry_of(None, b"", ORIGIN) is None


def test_nobody_answers() -> None:
    assert nobody_answers(b"NATS/1.0 503\r\n\r\n")
    assert not nobody_answers(b"NATS/1.0\r\n\r\n") and not nobody_answers(None)


def test_header_blocks_go_both_ways() -> None:
    headers = {"Nats-Expected-Stream": "S", "b": "c d"}
    assert parse_headers(header_block(headers)) == headers
    assert header_block(None) == b"" == header_block({})
    with pytest.raises(InvalidArgument):
        header_block({"a": "b\r\nPUB x 0"})


@pytest.mark.parametrize(
    ("stamp", "fraction_ms"),
    [("Z", 0), (".1Z", 100), (".12Z", 120), (".1239Z", 123), (".123456789Z", 123), (".000999Z", 0)],
)
def test_time_stamps_are_cut_off_at_milliseconds(stamp: str, fraction_ms: int) -> None:
    whole = datetime.datetime(2024, 2, 29, 23, 59, 59, tzinfo=datetime.UTC)
    assert milliseconds(f"2024-02-29T23:59:59{stamp}") == int(whole.timestamp()) * 1000 + fraction_ms


@pytest.mark.parametrize(
    "stamp", ["", "x", "2024-02-29T23:59:59", "2024-02-29T23:59:59+01:00", "2024-02-29T23:59:59.xZ"]
)
def test_other_times_are_refused(stamp: str) -> None:
    with pytest.raises(ValueError):
        milliseconds(stamp)


def test_names() -> None:
    assert (
        NAMES.stream == "OF_main_i_1_0"
        and NAMES.subject == "of.main.i_1.log.0"
        and NAMES.tail == "of.main.i_1.tail.0"
    )
    assert space_of(space_subject("a-b_c")) == "a-b_c"
    assert space_of("of.a.b.space") is None and space_of("of.*.space") is None
    for bad in ("", "a.b", "a b", "x" * 33, "ä", "*"):
        with pytest.raises(InvalidArgument):
            check_space(bad)
