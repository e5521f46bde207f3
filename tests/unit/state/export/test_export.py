"""What is exported comes back the same, from any space into any other; a bad file changes nothing."""

import io
import json
import math
import random
import tempfile
import threading
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import polars as pl
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import onefold as of
from onefold import config
from onefold.db import Database
from onefold.env import SeededEnv
from onefold.errors import Conflict, InvalidArgument, InvalidValue
from onefold.folds import folds as space_folds
from onefold.space.open_space import open_shards
from onefold.state.encoding.json_values import dump_line, from_json, key_from_json, key_to_json, to_json
from onefold.state.encoding.keys import encode_key
from onefold.state.encoding.values import decode_value, encode_value
from onefold.state.export import importing as portable_import
from onefold.state.export.exporting import Counts, export
from onefold.state.export.importing import Imported, import_file


def memory(shards=1, env=None):
    return Database(open_shards("memory://", space_folds, shards=shards, env=env or SeededEnv(1)))


def exported(db):
    out = []
    counts = export(db._state, out.append)
    assert all(line.endswith("\n") and line.count("\n") == 1 for line in out)
    return "".join(out), counts


def body(text):
    return text.split("\n", 1)[1]


def put_in(db, text, on_conflict="error"):
    return import_file(db._state, io.StringIO(text), on_conflict)


def lines_of(text):
    return [json.loads(line) for line in text.splitlines()]


# -- the property

_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
_offsets = st.integers(-720, 720).map(lambda minutes: timezone(timedelta(minutes=minutes)))
_leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(1 << 80), 1 << 80)
    | st.floats(allow_nan=False)
    | st.just(math.nan)
    | _text
    | st.just("$bytes")
    | st.binary(max_size=8)
    | st.datetimes()
    | st.datetimes(timezones=_offsets)
    | st.dates()
    | st.times()
    | st.timedeltas()
    | st.decimals()
    | st.uuids()
)
_hashable = _leaves.filter(lambda leaf: not isinstance(leaf, float | Decimal) or "n" not in str(leaf).lower())
_values = st.recursive(
    _leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(_text, inner, max_size=3)
        | st.dictionaries(_hashable | st.tuples(_hashable, _hashable), inner, max_size=3)
    ),
    max_leaves=8,
)
_key_parts = st.recursive(
    st.none() | st.booleans() | st.integers() | _text | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=4,
)
_keys = _key_parts.filter(lambda key: key != ())
_maps = st.dictionaries(
    st.sampled_from(["a", "b", "ü"]),
    st.lists(st.tuples(_keys, _values, st.none() | st.integers(1, 10**6)), max_size=6),
    max_size=3,
)
_messages = st.lists(
    st.tuples(_values, st.none() | st.sampled_from(["k", 1]), st.sampled_from([None, None, 60])), max_size=5
)
_records = st.lists(st.tuples(_values, st.none() | st.integers(0, 5)), max_size=6)


def is_storable(value):
    try:
        encode_value(value)
        return True
    except of.OnefoldError:
        return False


@settings(deadline=None, max_examples=30, suppress_health_check=list(HealthCheck))
@given(
    maps=_maps,
    messages=_messages,
    records=_records,
    shards=st.sampled_from([(1, 1), (1, 3), (3, 1)]),
    taken=st.integers(0, 3),
)
@example(maps={"a": [("k", {"$a": 1, "b": (1,)}, None)]}, messages=[], records=[], shards=(1, 1), taken=0)
def test_export_import_export_gives_the_same_bytes(maps, messages, records, shards, taken):
    env = SeededEnv(
        1
    )  # a clock that stands still, so lifetimes, delays and stream times are the same in both
    with memory(shards[0], env) as source, memory(shards[1], env) as target:
        for name, items in maps.items():
            for key, value, ttl in items:
                if is_storable(value):
                    source.map(name).put(key, value, ttl=ttl)
        queue = source.queue("q", max_attempts=1)
        for value, key, delay in messages:
            if is_storable(value):
                queue.put(value, key=key, delay=delay)
        for number in range(taken):
            message = queue.take(timeout=0)
            if message is not None and number % 2:
                message.nack(error="no")  # dead at once
        for value, key in records:
            if is_storable(value):
                source.stream("s", partitions=3).append(value, key=key)
        first, counts = exported(source)
        done = put_in(target, first)
        assert done == Imported(*counts, 0, 0)
        second, again = exported(target)
        assert body(second) == body(first) and again == counts
        for name, items in maps.items():
            for key, _, _ in items:
                one, other = source.map(name).get_item(key), target.map(name).get_item(key)
                assert (one is None) == (other is None)
                if one is not None and other is not None:
                    assert encode_value(one.value) == encode_value(other.value)
                    assert one.expires_at == other.expires_at
        assert put_in(target, first, "replace")[1:3] == done[1:3]  # twice is once
        assert body(exported(target)[0]) == body(first)


@given(_values.filter(is_storable))
@settings(deadline=None, max_examples=200)
def test_values_survive_json(value):
    stored = decode_value(encode_value(value))
    text = dump_line({"v": to_json(stored)})
    back = from_json(json.loads(text)["v"])
    assert encode_value(back) == encode_value(stored)
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


@given(_keys)
def test_keys_survive_json(key):
    back = key_from_json(json.loads(dump_line(key_to_json(key))))
    assert back == key and repr(back) == repr(key)


def test_integers_stay_exact_where_other_programs_would_round_them():
    for number in (1 << 53, (1 << 53) + 1, -(1 << 53) - 1, 1 << 100, 10**5000):
        text = dump_line(to_json(number))
        assert from_json(json.loads(text)) == number
        assert ("$int" in text) == (abs(number) > 1 << 53)
    assert math.copysign(1, from_json(json.loads(dump_line(to_json(-0.0))))) == -1


@pytest.mark.parametrize(
    "item",
    [
        {"$bytes": "no base64!"}, {"$bytes": 7}, {"$int": 7}, {"$int": "x"}, {"$float": "1.5"}, {"$datetime": "yesterday"},
        {"$decimal": "x"}, {"$uuid": "x"}, {"$map": 7}, {"$map": [[1, 2, 3]]}, {"$map": [[[1], 2]]}, {"$tuple": 7},
        {"$map": [[1, 2], [1, 3]]}, {"$timedelta": [1]}, {"$what": 1}, {"$bytes": "AA==", "b": 1}, {"$a": 1, "$b": 2},
    ],
)  # fmt: skip
def test_objects_that_mean_nothing_are_refused(item):
    with pytest.raises(InvalidValue):
        from_json(item)


# -- what is in a file


def test_everything_is_told_as_documented():
    env = SeededEnv(2)
    with memory(env=env) as db:
        db.map("m").put(("eu", 7), {"a": b"\x00"}, ttl="5s")
        queue = db.queue("q", max_attempts=2)
        queue.put("delayed", delay="1m")
        for number in range(3):
            queue.put(number, key="k")
        for error in ("first", "second"):
            message = queue.take(timeout=0)
            message.nack(error=error)
        taken = queue.take(timeout=0)
        assert taken.value == 1
        db.stream("s", partitions=2, retention="1h").append({"at": date(2024, 5, 1)}, key="u")
        with db.lock("l"):
            text, counts = exported(db)
        now_ms = env.wall_ms()
    head, *lines, end = lines_of(text)
    assert head["format"] == "onefold-export" and head["version"] == 1 and head["program"] == of.__version__
    assert datetime.fromisoformat(head["created"]).tzinfo is not None
    assert lines[0] == {
        "map": "m",
        "key": ["eu", 7],
        "value": {"a": {"$bytes": "AA=="}},
        "expires_ms": now_ms + 5000,
    }
    assert lines[1:5] == [
        {"queue": "q", "value": "delayed", "due_ms": now_ms + 60_000},
        {"queue": "q", "value": 1, "key": "k"},  # somebody has it: it is to be done all the same
        {"queue": "q", "value": 2, "key": "k"},
        {"queue": "q", "value": 0, "key": "k", "errors": ["first", "second"], "dead": 2},
    ]
    assert lines[5] == {"stream": "s", "partitions": 2, "retention_ms": 3_600_000}
    assert lines[6]["value"] == {"at": {"$date": "2024-05-01"}} and lines[6]["key"] == "u"
    assert len(lines) == 7 and end == {"end": True, "lines": 7}
    assert counts == Counts(1, 4, 1)


def test_frames_of_streams_come_as_records():
    with memory() as source, memory(3) as target:
        frame = pl.DataFrame(
            {"u": ["a", "b", None], "n": [1, 2, 3], "at": [datetime(2024, 5, 1, tzinfo=UTC)] * 3}
        )
        source.stream("s", partitions=2).append_many(frame, key="u")
        text, counts = exported(source)
        assert counts.records == 3
        put_in(target, text)
        found = sorted(record.value["n"] for record in target.stream("s").read())
        assert found == [1, 2, 3]
        assert {record.key for record in target.stream("s").read()} == {"a", "b", None}


def test_dead_letters_and_their_reasons_come_along():
    with memory() as source, memory() as target:
        queue = source.queue("q", max_attempts=1)
        queue.put("x", key="k")
        queue.take(timeout=0).nack(error="broken")
        put_in(target, exported(source)[0])
        (letter,) = target.queue("q").dead()
        assert (letter.value, letter.key, letter.attempts, letter.error) == ("x", "k", 1, "broken")
        assert len(target.queue("q")) == 0


def test_an_export_is_of_one_instant_while_transactions_go_on(tmp_path):
    with of.connect(tmp_path / "space", shards=3) as db:
        db.map("bank").update(dict.fromkeys(range(10), 100))
        stop = threading.Event()

        def work():
            rng = random.Random(1)
            while not stop.is_set():

                def move(tx):
                    one, other = rng.sample(range(10), 2)
                    tx.map("bank")[one] -= 1
                    tx.map("bank")[other] += 1

                db.run_transaction(move, attempts=100)

        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            texts = [exported(db)[0] for _ in range(6)]
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    for text in texts:
        found = [line["value"] for line in lines_of(text) if "map" in line]
        assert len(found) == 10 and sum(found) == 1000


def test_a_transaction_between_the_views_of_two_shards_is_noticed(tmp_path):
    """The same, with the worst moment made on purpose: it commits after one shard was opened and before the other was."""
    with of.connect(tmp_path / "space", shards=2) as db:
        bank = db.map("bank")
        bank.update(dict.fromkeys(range(10), 100))
        by_shard = {db._state.shard_of(encode_key(number)): number for number in range(10)}
        real, moves = db._shards[1].view, []

        def move(tx):
            tx.map("bank")[by_shard[0]] -= 1
            tx.map("bank")[by_shard[1]] += 1

        def view(at=None, need=None):
            if len(moves) < 3 and threading.current_thread() is threading.main_thread():
                moves.append(1)
                mover = threading.Thread(target=db.run_transaction, args=(move,))
                mover.start()
                mover.join()
            return real(at, need)

        db._shards[1].view = view
        text, _ = exported(db)
        assert len(moves) == 3
        found = {line["key"]: line["value"] for line in lines_of(text) if "map" in line}
        assert sum(found.values()) == 1000
        assert found[by_shard[0]] == 97 and found[by_shard[1]] == 103


# -- conflicts and bad files


def content(db):
    return body(exported(db)[0])


def test_keys_that_are_there_stop_it_are_replaced_or_skipped():
    with memory() as source:
        source.map("m").update(dict.fromkeys(range(5), "new"))
        text, _ = exported(source)
    for policy, expected, counts in (
        ("error", "old", None),
        ("skip", "old", Imported(items=4, skipped=1)),
        ("replace", "new", Imported(items=5)),
    ):
        with memory(2) as target:
            target.map("m")[3] = "old"
            before = content(target)
            if counts is None:
                with pytest.raises(Conflict, match=r"line 5: 3 of map 'm' is there"):
                    put_in(target, text, policy)
                assert content(target) == before
            else:
                assert put_in(target, text, policy) == counts
                assert len(target.map("m")) == 5
            assert target.map("m")[3] == expected


def test_queues_and_streams_that_hold_something_stop_it_too():
    with memory() as source:
        source.queue("q").put(1)
        source.stream("s").append(1)
        text, _ = exported(source)
    for prepare, match in (
        (lambda db: db.queue("q").put(0), "queue 'q' holds"),
        (lambda db: db.stream("s").append(0), "stream 's' holds"),
        (lambda db: db.stream("s", partitions=5).create(), "5 partitions here and 1"),
    ):
        with memory() as target:
            prepare(target)
            before = content(target)
            with pytest.raises(Conflict, match=match):
                put_in(target, text)
            assert content(target) == before


def test_what_has_ended_meanwhile_is_not_imported():
    env = SeededEnv(3)
    with memory(env=env) as source, memory(env=env) as target:
        source.map("m").put("short", 1, ttl="1s")
        source.map("m").put("long", 1, ttl="1h")
        text, _ = exported(source)
        env.advance(10)
        assert put_in(target, text) == Imported(items=1, ended=1)
        assert list(target.map("m")) == ["long"]
        left = target.map("m").get_item("long").expires_at
        assert left == source.map("m").get_item("long").expires_at


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda lines: lines[:-1], r"line 5: the file ends before its end"),
        (lambda lines: lines[:2], r"line 3: the file ends"),
        (lambda lines: [], r"line 1: the file ends"),
        (lambda lines: lines[1:], r"line 1: this is not a file of"),
        (lambda lines: ["what\n", *lines], r"line 1: this is not a file of"),
        (lambda lines: [lines[0].replace('"version":1', '"version":3'), *lines[1:]], r"version 3.*Upgrade"),
        (lambda lines: [*lines[:2], lines[2][:20] + "\n", *lines[3:]], r"line 3: "),
        (lambda lines: [*lines[:2], *lines[3:]], r"line 4: the file has 2 lines; 3 were written"),
        (lambda lines: [*lines, lines[1]], r"line 6: there is something after the end"),
        (lambda lines: [*lines[:2], '{"map":"m","value":1}\n', *lines[3:]], r"line 3: 'key' is missing"),
        (lambda lines: [*lines[:2], '{"map":"","key":1,"value":1}\n', *lines[3:]], r"line 3: .*not empty"),
        (
            lambda lines: [*lines[:2], '{"map":"m","key":1.5,"value":1}\n', *lines[3:]],
            r"line 3: a float is not a key",
        ),
        (
            lambda lines: [*lines[:2], '{"map":"m","key":1,"value":{"$x":1}}\n', *lines[3:]],
            r"line 3: an object",
        ),
        (
            lambda lines: [*lines[:2], '{"stream":"s","partition":9,"value":1}\n', *lines[3:]],
            r"line 3: no partition 9",
        ),
        (lambda lines: [*lines[:2], '{"queue":"q","value":1,"due_ms":-1}\n', *lines[3:]], r"line 3: due_ms"),
        (lambda lines: [*lines[:2], '{"queue":"q","value":1,"errors":[1]}\n', *lines[3:]], r"line 3: errors"),
        (lambda lines: [*lines[:2], "[1]\n", *lines[3:]], r"line 3: an object was expected"),
        (lambda lines: [*lines[:2], "[" * 100_000 + "\n", *lines[3:]], r"line 3: "),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_imported(change, match):
    with memory() as source, memory() as target:
        source.map("m").update({number: number for number in range(3)})
        lines = exported(source)[0].splitlines(keepends=True)
        with pytest.raises(InvalidValue, match=match) as raised:
            put_in(target, "".join(change(lines)), "replace")
        assert raised.value.definite
        assert target._shard.applied == 0
        with pytest.raises(InvalidArgument, match="on_conflict"):
            put_in(target, "".join(lines), "maybe")


def test_an_import_that_was_cut_short_is_run_again_and_nothing_is_there_twice(monkeypatch):
    monkeypatch.setattr(config, "IMPORT_BATCH_LINES", 7)
    with memory() as source:
        for number in range(60):
            source.map("m")[number] = number
            source.queue("q").put(number)
            source.stream("s", partitions=3).append(number, key=number)
        text, _ = exported(source)
        expected = content(source)
    real = portable_import._Writer._flush
    for broken_after in range(1, 26, 3):
        with memory(2) as target:
            calls = 0

            def flush(self, place):
                nonlocal calls
                calls += 1
                real(self, place)
                if calls == broken_after:  # noqa: B023 - called in this round only
                    raise KeyboardInterrupt

            monkeypatch.setattr(portable_import._Writer, "_flush", flush)
            with pytest.raises(KeyboardInterrupt):
                put_in(target, text)
            monkeypatch.setattr(portable_import._Writer, "_flush", real)
            put_in(target, text, "replace")
            again = content(target)
            assert [line for line in again.splitlines() if "time_ms" not in line] == [
                line for line in expected.splitlines() if "time_ms" not in line
            ]
            assert len(target.stream("s")) == 60


def test_memory_stays_small_for_a_large_space():
    """Neither side holds more than a page or a batch: the file is made and read line by line."""
    import tracemalloc

    value = "x" * 10_000
    with (
        tempfile.TemporaryDirectory() as folder,
        of.connect(Path(folder) / "a") as source,
        of.connect(Path(folder) / "b") as target,
    ):
        source.map("m").put_many(((number, value) for number in range(4000)), atomic=False)
        path = Path(folder) / "file"
        tracemalloc.start()
        with path.open("w") as out:
            export(source._state, out.write)
        with path.open() as lines:
            import_file(target._state, lines)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(target.map("m")) == 4000
        assert path.stat().st_size > 40_000_000 > 2 * peak, peak


def test_these_types_are_all_that_values_can_be():
    """What `to_json` does not know cannot be stored either."""
    for value in (datetime.now(UTC), time(1), timedelta(1), Decimal(1), UUID(int=1), b"", 1.5):
        assert from_json(json.loads(dump_line(to_json(decode_value(encode_value(value)))))) == value
    with pytest.raises(InvalidValue):
        to_json({1, 2})
