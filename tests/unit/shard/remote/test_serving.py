"""What answers programs without a replica: it trusts nobody, every answer is bounded, and waiting takes no thread."""

import random
import threading
from contextlib import closing

import msgspec
import pytest

from onefold import config
from onefold.errors import SpaceError, Unavailable
from onefold.shard.memory import MemoryShard
from onefold.shard.remote import protocol
from onefold.shard.remote.protocol import Answer, Ask
from onefold.state.encoding.keys import encode_key
from support.serving_node import SOON_S, TABLE, Node, refused


def test_what_is_no_question_is_refused(node):
    whole = node.question(protocol.Get(TABLE, (b"a",)))
    for wrong in (b"", b"\x00", b"\xff" * 100, whole[:-1], whole + b"x", b"[]", b"\x90", b"\x91" * 5000):
        refused(node.reply(wrong), "does not understand the question")


def test_no_bytes_make_it_raise(node):
    chance = random.Random(1)
    questions = [
        node.question(protocol.Get(TABLE, (b"a", b"b"))),
        node.question(protocol.Scan(TABLE, b"", None, 10), at=2),
        node.question(protocol.Changes(TABLE, 0, (0, b"a"), b"", None, 10)),
        node.question(protocol.Known("c0-aa", 1)),
        node.question(protocol.Tables("state/")),
        node.question(protocol.HeadOf(), barrier=True),
    ]
    answered = 0
    for _ in range(3000):
        data = bytearray(chance.choice(questions))
        for _ in range(chance.randint(1, 3)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        reply = node.reply(bytes(data))
        answered += isinstance(reply, Answer)
    assert answered < 2500  # so most of them were damaged for real


@pytest.mark.parametrize(
    "what",
    [
        protocol.Get("jobs", (b"a",)),
        protocol.Get("sqlite_master", (b"a",)),
        protocol.Scan("clients", b"", None, 1),
        protocol.Count("", b"", None),
        protocol.Changes("requests/", 0, None, b"", None, 1),
    ],
)
def test_only_tables_of_folds_can_be_asked_for(node, what):
    refused(node.ask(what), "there is no table")


@pytest.mark.parametrize(
    "what",
    [
        protocol.Get(TABLE, ()),
        protocol.Get(TABLE, (b"k",) * (config.ASK_KEYS_MAX + 1)),
        protocol.Get("state/" + "x" * 1000, (b"k",)),
        protocol.Scan(TABLE, b"", None, 0),
        protocol.Scan(TABLE, b"", None, -1),
        protocol.Scan(TABLE, b"", None, config.ASK_ROWS_MAX + 1),
        protocol.Changes(TABLE, -1, None, b"", None, 1),
        protocol.Beyond(-1),
        protocol.Known("c" * 1000),
        protocol.Requested("r" * 2000),
    ],
)
def test_what_is_out_of_bounds_is_refused(node, what):
    refused(node.ask(what), "does not understand the question")


@pytest.mark.parametrize(
    "fields",
    [
        {"wait_s": -1.0},
        {"wait_s": float("nan")},
        {"fresh_s": float("inf")},
        {"after": -5},
        {"at": 2**63},
        {"skip": -1},
    ],
)
def test_wrong_conditions_are_refused(node, fields):
    refused(node.ask(protocol.Applied(), **fields), "does not understand the question")


def test_a_question_that_is_too_long_is_refused_before_it_is_read(node):
    keys = tuple(b"x" * 9000 for _ in range(200))
    refused(node.ask(protocol.Get(TABLE, keys)), f"the limit is {config.ASK_REQUEST_BYTES_MAX}")


def test_a_newer_program_is_told_to_have_the_node_upgraded(node):
    newer = protocol.encode(Ask(protocol.PROTOCOL + 1, node.log.incarnation, protocol.Applied()))
    refused(node.reply(newer), "Upgrade the node")
    other = msgspec.msgpack.encode((protocol.PROTOCOL + 1, "i", ("unheard of",)))
    refused(node.reply(other), "Upgrade the node")


def test_questions_about_another_incarnation_are_refused(node):
    other = protocol.encode(Ask(protocol.PROTOCOL, "i_other", protocol.Applied()))
    refused(node.reply(other), "Open it again", kind="SpaceError")


def test_errors_of_reading_come_back_as_they_are(node):
    refused(node.ask(protocol.Changes(TABLE, 2**40, None, b"", None, 1)), "beyond the applied offset")


def test_a_replica_that_has_halted_or_closed_says_that_another_may_serve(node):
    node.space._halt(SpaceError("it is wrong"))
    refused(node.ask(protocol.Applied()), "cannot serve", kind="Unavailable", elsewhere=True)
    node.space._halted = None
    node.space.close()
    refused(node.ask(protocol.Applied()), "is closed", kind="Unavailable", elsewhere=True)


def test_it_answers_at_the_offset_that_was_asked_for(node):
    before = node.space.applied
    node.m.put("a", 9)
    assert node.get("a", at=before) == 1
    assert node.get("a") == 9
    assert (
        node.ask(protocol.Applied(), at=before).offset == node.space.applied
    )  # the replica's, and not a view's
    assert node.ask(protocol.Get(TABLE, (b"x", b"y")), at=before).offset == before


def test_a_replica_that_is_behind_waits_and_then_says_so(node):
    before = node.space.applied
    node.delivered.hold()
    node.m.put("a", 9)
    assert node.get("a") == 1
    refused(
        node.ask(protocol.Get(TABLE, (b"k",)), after=before + 1, wait_s=0.01),
        f"at offset {before}, and {before + 1} was asked for",
        kind="Behind",
        elsewhere=True,
    )
    refused(
        node.ask(protocol.Get(TABLE, (b"k",)), at=before + 1), "was asked for", kind="Behind", elsewhere=True
    )
    timer = threading.Timer(0.05, node.delivered.go_on)
    timer.start()
    assert node.get("a", after=before + 1, wait_s=SOON_S) == 9
    timer.join()


def test_a_barrier_is_appended_after_the_question_came(node):
    end = node.log.last
    assert node.ask(protocol.Applied(), barrier=True, wait_s=SOON_S).offset == end + 1
    assert (
        node.ask(protocol.Applied(), fresh_s=60.0, wait_s=SOON_S).offset == end + 1
    )  # that was fresh enough
    assert node.ask(protocol.Applied(), fresh_s=0.0, wait_s=SOON_S).offset == end + 2


def test_without_the_log_a_strong_read_is_refused_and_a_bounded_one_tells_the_age(node, monkeypatch):
    def down(data, deadline=None):
        raise Unavailable("the log is down")

    monkeypatch.setattr(node.delivered, "append", down)
    refused(
        node.ask(protocol.Applied(), barrier=True, wait_s=0.05), "down", kind="Unavailable", elsewhere=True
    )
    refused(
        node.ask(protocol.Applied(), fresh_s=1.0, wait_s=0.05),
        "may be of any age, and 1 s are allowed",
        kind="TooStale",
        elsewhere=True,
    )


def test_a_wait_for_news_ends_with_them_or_with_its_time(node):
    here = node.space.applied
    assert node.ask(protocol.Beyond(here - 1), wait_s=SOON_S).offset == here
    assert node.ask(protocol.Beyond(here), wait_s=0.01).offset == here
    timer = threading.Timer(0.05, lambda: node.m.put("a", 9))
    timer.start()
    assert node.ask(protocol.Beyond(here), wait_s=SOON_S).offset == here + 1
    timer.join()


def collect(node, what, **fields):
    """The whole result, from pieces; and how many there were."""
    body, pieces = b"", 0
    while True:
        reply = node.ask(what, skip=len(body), **fields)
        assert isinstance(reply, Answer), reply
        assert len(reply.body) <= 1000
        body += reply.body
        pieces += 1
        if len(body) == reply.total:
            return protocol.decode_body(what, body), pieces


def test_long_answers_are_pages_and_a_long_row_is_pieces():
    with closing(Node(reply_bytes=1000)) as node:
        node.m.update({f"k{number:03}": "x" * 50 for number in range(200)})
        node.m.put("long", "y" * 5000)
        at = node.space.applied
        start, seen = b"", []
        while True:
            (page, more), pieces = collect(node, protocol.Scan(TABLE, start, None, 10_000), at=at)
            assert page and (pieces == 1 or len(page) == 1)
            seen += [key for key, _ in page]
            start = page[-1][0] + b"\x00"
            if not more:
                break
        assert seen == sorted(encode_key(key) for key in [*(f"k{n:03}" for n in range(200)), "long"])
        values, pieces = collect(node, protocol.Get(TABLE, (encode_key("long"), encode_key("k001"))), at=at)
        assert len(values) == 1 and pieces >= 5  # the other one did not fit
        changes, _ = collect(node, protocol.Changes(TABLE, 0, None, b"", None, 10_000), at=at)
        assert changes[1] and 1 < len(changes[0]) < 30
        refused(node.ask(protocol.Get(TABLE, (b"k",)), skip=10_000), "were to be left out")


def test_a_scan_reads_no_more_rows_than_fit(node, monkeypatch):
    read = []
    original = MemoryShard.view

    def view(self, at=None, need=None):
        opened = original(self, at, need)

        class Counting:
            def __enter__(self):
                found = opened.__enter__()
                scan = found.scan
                found.scan = lambda *args, **kw: read.append(kw["limit"]) or scan(*args, **kw)
                return found

            def __exit__(self, *error):
                return opened.__exit__(*error)

        return Counting()

    node.m.put_many(dict.fromkeys(range(100), "x" * 100_000))
    monkeypatch.setattr(MemoryShard, "view", view)
    page, more = node.result(protocol.Scan(TABLE, b"", None, 10_000))
    assert more and len(page) in range(9, 12)
    assert sum(read) <= 16  # not ten thousand of them


def test_what_became_of_a_record_is_told_with_its_digest_when_it_is_not_the_last_one(node):
    entry = node.log.read(node.log.last)[0]
    client = node.writer._writer._client
    number, offset, outcomes, digest = node.result(protocol.Known(client, entry.offset))
    assert (number, offset, digest) == (node.writer._writer._number, entry.offset, None)
    assert len(outcomes) == 2  # the fold was registered too
    copy = node.log.append(entry.data)  # a retry that surfaced late
    node.m.put("a", 9)
    assert node.result(protocol.Known(client, copy), wait_s=SOON_S)[3] == protocol.digest_of(entry.data)
    assert node.result(protocol.Known("c0-" + "ab" * 9, copy)) == (0, 0, (), protocol.digest_of(entry.data))
