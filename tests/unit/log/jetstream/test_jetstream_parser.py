"""What a server sends is cut into the same messages and lines, however it is split on its way."""

from __future__ import annotations

import random

import pytest

from onefold.log.jetstream.client.parser import Malformed, Parser

BLOCK = b"NATS/1.0\r\nNats-Sequence: 7\r\n\r\n"
Event = tuple[object, ...]


def said(payloads: list[bytes]) -> tuple[bytes, list[Event]]:
    """What a server sends, and what should come of it."""
    stream, events = b"", list[Event]()
    for n, payload in enumerate(payloads):
        reply = b"_INBOX.a.%d" % n if n % 2 else b""
        block = BLOCK if n % 3 else None
        sizes = b"%d" % len(payload) if block is None else b"%d %d" % (len(block), len(block) + len(payload))
        verb = b"MSG" if block is None else b"HMSG"
        words = [verb, b"of.subject.%d" % n, b"%d" % n, *([reply] if reply else []), sizes]
        stream += b" ".join(words) + b"\r\n" + (block or b"") + payload + b"\r\n"
        events.append((n, b"of.subject.%d" % n, reply, payload, block))
        line = [b"PING", b"PONG", b"+OK", b"-ERR 'Permissions Violation'", b'INFO {"a": 1}'][n % 5]
        stream += line + b"\r\n"
        events.append((line,))
    return stream, events


class Heard:
    def __init__(self, most: int = 1 << 30) -> None:
        self.events: list[Event] = []
        self.most = most

    def message(self, *message: object) -> bool:
        self.events.append(message)
        return len(self.events) < self.most

    def line(self, line: bytes) -> bool:
        self.events.append((line,))
        return len(self.events) < self.most


def test_subjects_hold_any_bytes_but_blanks() -> None:
    heard = Heard()
    Parser(heard.message, heard.line).feed(b"MSG a\x0b7 2 r\x0c\xff 1\r\nx\r\nMSG \x0b 2 1\r\ny\r\n")
    assert heard.events == [(2, b"a\x0b7", b"r\x0c\xff", b"x", None), (2, b"\x0b", b"", b"y", None)]


@pytest.mark.parametrize("seed", range(20))
def test_pieces_of_any_size_give_the_same_messages(seed: int) -> None:
    rng = random.Random(seed)
    payloads = [rng.choice([b"", b"\r\n", b"MSG a 1 5\r\nhello\r\n", rng.randbytes(300)]) for _ in range(30)]
    stream, events = said(payloads)
    heard = Heard()
    parser = Parser(heard.message, heard.line)
    at = 0
    while at < len(stream):
        size = rng.choice([1, 2, 3, 50, 1000])
        parser.feed(stream[at : at + size])
        at += size
    assert heard.events == events


def test_a_large_message_in_small_pieces_is_copied_once() -> None:
    """Pieces wait uncopied: the parser looks again only when the whole can be there."""
    heard, looks = Heard(), 0
    parser = Parser(heard.message, heard.line)
    cut = parser._cut

    def counted(data: bytes) -> int:
        nonlocal looks
        looks += 1
        return cut(data)

    parser._cut = counted  # type: ignore[method-assign]
    stream, events = said([b"x" * 1_000_000])
    for at in range(0, len(stream), 1000):
        parser.feed(stream[at : at + 1000])
    assert heard.events == events and looks < 5


@pytest.mark.parametrize(
    "data", [b"MSG a b 1\r\n", b"MSG a\r\n", b"HMSG a 1 x 5\r\n", b"x" * (1 << 20) + b"yy"]
)
def test_what_is_not_of_the_protocol_is_said(data: bytes) -> None:
    heard = Heard()
    with pytest.raises(Malformed):
        Parser(heard.message, heard.line).feed(data)


def test_nothing_is_handed_on_after_no_more_is_wanted() -> None:
    heard = Heard(most=3)
    stream, events = said([b"a"] * 5)
    Parser(heard.message, heard.line).feed(stream)
    assert heard.events == events[:3]
