"""Shared state as its users see it: what the documents promise, in a folder, in memory and over several shards."""

import asyncio
import dataclasses
import errno
import json
import os
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import msgspec
import polars as pl
import pytest

import onefold as of

PLACES = {"folder": {}, "memory": {}, "shards": {"shards": 4}}


@pytest.fixture(params=PLACES)
def db(request, tmp_path):
    url = "memory://" if request.param == "memory" else tmp_path / "space"
    with of.connect(url, **PLACES[request.param]) as opened:
        yield opened


@pytest.fixture(params=["folder", "shards"])
def folder(request, tmp_path):
    """A folder with a space that other processes can open."""
    of.connect(tmp_path / "space", **PLACES[request.param]).close()
    return tmp_path / "space"


def elsewhere(code, *args):
    """What a program in another process prints; ``args`` are its ``sys.argv[1:]``."""
    program = f"import sys\nimport onefold as of\n{code}"
    command = [sys.executable, "-c", program, *map(str, args)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


def in_thread(fn):
    """Run it in another thread, to its end; what it gives."""
    found = []
    thread = threading.Thread(target=lambda: found.append(fn()))
    thread.start()
    thread.join(30)
    assert found, "the thread has failed"
    return found[0]


def refused(kind, fn, *says):
    """It raises this, definite; the message has these words. Its text."""
    with pytest.raises(kind) as error:
        fn()
    assert error.value.definite
    for word in says:
        assert word in str(error.value)
    return str(error.value)


# -- connecting


def test_without_a_url_it_is_the_environment_and_else_a_folder_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ONEFOLD_URL", str(tmp_path / "named"))
    with of.connect() as db:
        db.map("m")["k"] = 1
    monkeypatch.delenv("ONEFOLD_URL")
    with of.connect() as db:
        assert "k" not in db.map("m")
    assert (tmp_path / ".onefold").is_dir() and (tmp_path / "named").is_dir()
    with of.connect(f"sqlite://{tmp_path}/named", consistency=of.bounded("5s"), timeout="5s") as db:
        assert db.map("m")["k"] == 1


@pytest.mark.parametrize("level", ["strong", "bounded:5s", of.bounded("5s"), "session", "prefix", "eventual"])
def test_every_level_is_taken_by_the_connection_a_collection_and_a_call(level):
    with of.connect("memory://", consistency=level) as db:
        m = db.map("m", consistency=level)
        m["k"] = 1
        assert m.get("k", consistency=level) == m["k"] == 1
        assert list(m.scan(consistency=level)) == [("k", 1)]


def test_connections_that_cannot_be_say_what_can(tmp_path):
    for url in ("s3://b", "", "memory://x", 5):
        refused(of.InvalidArgument, lambda url=url: of.connect(url), "memory://")
    refused(of.InvalidArgument, lambda: of.connect("sqlite://x"), "dir")
    refused(of.InvalidArgument, lambda: of.connect("nats://h"), "nats://host:port/SPACE")
    refused(
        of.UnsupportedConsistency, lambda: of.connect("memory://", consistency="weak"), "weak", "'session'"
    )
    refused(of.TokenError, lambda: of.connect("memory://", session="x"), "db.session.token")
    of.connect(tmp_path / "s", shards=4).close()
    refused(of.InvalidArgument, lambda: of.connect(tmp_path / "s", shards=3), "4", "3")
    refused(of.SpaceError, lambda: of.connect(tmp_path / "no", create=False), "no space", "onefold.connect")
    with of.connect(tmp_path / "s") as db:
        m = db.map("m")
    refused(of.SpaceError, lambda: m["k"], "closed")


def test_a_session_goes_on_in_another_process(folder):
    with of.connect(folder) as db:
        db.map("m")["k"] = "written here"
        token = db.session.token
        print_it = "print(of.connect(sys.argv[1], session=sys.argv[2], consistency='session').map('m')['k'])"
        assert elsewhere(print_it, folder, token) == "written here"
    with of.connect("memory://") as other:
        foreign = other.session.token
    with of.connect(folder) as db:
        refused(of.TokenError, lambda: db.session.merge(foreign), "another space")


def test_the_past_at_a_token_and_at_a_moment(db):
    m = db.map("m")
    m["k"] = 1
    token = db.session.token
    m["k"] = 2
    past = db.at(token)
    assert dict(past.map("m")) == {"k": 1} and m["k"] == 2
    refused(of.SpaceError, lambda: past.map("m").put("k", 3), "only be read")
    assert dict(db.at(datetime(2000, 1, 1, tzinfo=UTC)).map("m")) == {}
    assert dict(db.at(datetime.now()).map("m")) == {"k": 2}
    refused(of.InvalidArgument, lambda: db.at(datetime.now(UTC) + timedelta(days=2)), "future")
    refused(of.TokenError, lambda: db.at("x"), "'x'")


# -- maps


def test_keys_come_back_as_they_were_in_the_order_of_the_tuple_layer(db):
    m = db.map("m")
    keys = [
        None,
        b"b",
        "a",
        ("a", None),
        ("a", b""),
        ("a", "b", 1),
        ("é",),
        (("n",), 1),
        -(10**30),
        -1,
        0,
        7,
        10**30,
    ]
    keys += [False, True]
    expected = [key if not isinstance(key, tuple) or len(key) > 1 else key[0] for key in keys]
    m.update((key, str(key)) for key in reversed(keys))  # not a dict: there 0 and False are one key
    assert list(map(repr, m)) == list(map(repr, expected)) and list(m.keys()) == expected
    assert [key for key, _ in m.scan(reverse=True, limit=3)] == expected[:-4:-1]
    assert m[("a",)] == m["a"] and ("a",) in m
    assert [key for key, _ in m.scan(prefix=("a",))] == ["a", ("a", None), ("a", b""), ("a", "b", 1)]
    for key in (1.5, [1], {}, (), (1.5,), "\ud800", object()):
        refused(of.InvalidKey, lambda key=key: m.put(key, 1))
    refused(of.TooLarge, lambda: m.put("x" * 10_001, 1), "10000")
    assert len(m) == len(keys)


def test_values_are_private_copies_of_what_was_put(db):
    m = db.map("m")
    value = {
        "n": 1,
        "t": (1, (2,)),
        "d": datetime.now(UTC),
        "e": Decimal("1.10"),
        "b": b"x",
        "z": None,
        7: 10**30,
    }
    m["k"] = value
    read = m["k"]
    assert read == value | {"t": [1, [2]]}
    read["n"] = 2
    value["n"] = 3
    assert m["k"]["n"] == m.get("k", consistency="session")["n"] == 1
    for bad in ({1}, object(), lambda: 1, {"deep": [object()]}):
        refused(of.InvalidValue, lambda bad=bad: m.put("k", bad), "cannot be stored")
    refused(of.TooLarge, lambda: m.put("k", b"x" * (2 << 20)), "1048576")
    text = refused(of.InvalidValue, lambda: m.put_many({"good": 1, "bad": object()}))
    assert text.startswith("the value of 'bad': an object cannot be stored")
    assert "good" not in m and m["k"]["n"] == 1


@dataclasses.dataclass
class Point:
    x: int
    y: int = 0


class Account(msgspec.Struct):
    balance: int
    owner: str = "nobody"


def test_typed_maps_check_what_is_written_and_read(db):
    accounts = db.map("accounts", type=Account)
    accounts["a"] = Account(5)
    db.map("accounts")["old"] = {"balance": 1, "gone": True}
    assert accounts["a"] == Account(5) and accounts["old"] == Account(1, "nobody")
    refused(of.InvalidValue, lambda: accounts.put("a", {"balance": "x"}), "Account")
    db.map("accounts")["bad"] = 7
    refused(of.InvalidValue, lambda: accounts["bad"], "Account", "without a type")
    points = db.map("points", type=Point)
    points["p"] = Point(1, 2)
    assert points["p"] == Point(1, 2) and db.map("points")["p"] == {"x": 1, "y": 2}


def test_a_map_is_a_dict(db):
    m, model = db.map("m"), {}
    for mapping in (m, model):
        mapping.update({"a": 1, "b": 2}, c=3)
        del mapping["a"]
        assert mapping.pop("b") == 2 and mapping.pop("b", 9) == 9 and mapping.setdefault("c", 5) == 3
        assert mapping.setdefault("e") is None and mapping.get("zz", 1) == 1
        for missing in (mapping.__getitem__, mapping.pop, mapping.__delitem__):
            with pytest.raises(KeyError, match="zz"):
                missing("zz")
    assert m == model and dict(m) == model and sorted(m.items()) == sorted(model.items())
    assert m.keys() == model.keys() and 3 in m.values() and len(m) == 2 and bool(m)
    assert m.get_many(["c", "zz"]) == {"c": 3}
    m.clear()
    assert not m and m == {}


def test_conditions_on_versions_and_absence(db):
    m = db.map("m")
    first = m.put("k", 1, if_absent=True)
    assert first == m.get_item("k").version and isinstance(str(first), str)
    text = refused(of.Conflict, lambda: m.put("k", 2, if_absent=True))
    assert "'k' is in 'm' already" in text
    second = m.put("k", 2, if_version=first)
    assert second != first and str(second) != str(first)
    refused(of.Conflict, lambda: m.put("k", 3, if_version=first), "'k'", "'m'")
    refused(of.Conflict, lambda: m.delete("k", if_version=first), "'k'", "nothing was written")
    assert m.put("k", 3, if_version=f'"{second}"') != second  # as an ETag
    refused(of.InvalidArgument, lambda: m.put("k", 4, if_version="x"), "'x' is no version")
    assert m["k"] == 3 and m.delete("k") is True and m.delete("k") is False and m.get_item("k") is None


def test_a_lifetime_ends_and_a_new_write_without_one_removes_it(onefold_clock, tmp_path):
    for ttl in (60, 60.0, timedelta(minutes=1), "1m"):
        with onefold_clock.connect() as db:
            m = db.map("m")
            m.put("k", 1, ttl=ttl)
            left = m.get_item("k").expires_at - datetime.fromtimestamp(onefold_clock.wall_ms() / 1000, UTC)
            assert timedelta(seconds=59) < left <= timedelta(seconds=60)
            m.put("kept", 1, ttl=ttl)
            m["kept"] = 2
            assert m.increment("n", ttl=ttl) == 1 and m.increment("n") == 2
            onefold_clock.advance("61s")
            assert dict(m) == {"kept": 2} and "k" not in m and len(m) == 1 and m.get_item("n") is None
            for bad in (0, -1, "x", float("nan")):
                refused(of.InvalidArgument, lambda bad=bad, m=m: m.put("k", 1, ttl=bad), "ttl")


def test_a_request_happens_once_across_retries_and_processes(folder):
    retry = (
        "with of.connect(sys.argv[1]) as db:\n"
        "    m = db.map('m')\n"
        "    m.put('k', 'again', request_id='r1')\n"
        "    m.increment('n', request_id='r2')\n"
        "    m.put_many({'a': 0, 'b': 0}, request_id='r3')\n"
        "    m.delete('gone', request_id='r4')\n"
        "    db.queue('q').put('again', request_id='r5')\n"
        "    db.stream('s').append('again', request_id='r6')\n"
        "    db.run_transaction(lambda tx: tx.map('m').increment('t'), request_id='r7')\n"
        "    print([db.outcome(f'r{n}') for n in range(1, 9)])\n"
    )
    with of.connect(folder) as db:
        m = db.map("m")
        m["gone"] = 1
        version = m.put("k", "first", request_id="r1")
        assert m.put("k", "again", request_id="r1") == version
        m.increment("n", request_id="r2")
        m.put_many({"a": 1, "b": 2}, request_id="r3")
        assert m.delete("gone", request_id="r4") is True
        m["gone"] = "back"
        db.queue("q").put("first", request_id="r5")
        position = db.stream("s").append("first", request_id="r6")
        db.run_transaction(lambda tx: tx.map("m").increment("t"), request_id="r7")
        assert elsewhere(retry, folder) == str(["committed"] * 7 + [None])
        assert dict(m) == {"k": "first", "n": 1, "a": 1, "b": 2, "gone": "back", "t": 1}
        assert len(db.queue("q")) == 1 and [r.value for r in db.stream("s").read(position)] == ["first"]


def test_threads_and_processes_lose_no_update(folder):
    program = (
        "with of.connect(sys.argv[1]) as db:\n"
        "    m = db.map('m')\n"
        "    for _ in range(25):\n"
        "        m.modify('modified', lambda n: n + 1, 0)\n"
        "        m.increment('counted')\n"
        "        db.run_transaction(lambda tx: tx.map(m).update(moved=tx.map(m).get('moved', 0) + 1), attempts=200)\n"
        "        m.setdefault('first', sys.argv[2])\n"
    )
    with of.connect(folder) as db:
        m = db.map("m")
        threads = [threading.Thread(target=elsewhere, args=(program, folder, number)) for number in range(2)]
        threads += [
            threading.Thread(target=lambda: [m.increment("counted") for _ in range(50)]) for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (m["modified"], m["counted"], m["moved"]) == (50, 150, 50) and m["first"] in "01"


def test_a_watch_gives_what_is_there_and_then_every_change(db):
    m = db.map("m")
    m["a"], m[("eu", 1)] = 1, 2
    with m.watch(initial=True, timeout="10s") as changes:
        assert sorted(str((c.kind, c.key, c.value)) for c in (next(changes), next(changes))) == [
            "('put', 'a', 1)",
            "('put', ('eu', 1), 2)",
        ]
        in_thread(lambda: m.put("a", 3))
        change = next(changes)
        assert (change.kind, change.key, change.value) == ("put", "a", 3) and change.version == m.get_item(
            "a"
        ).version
        del m["a"]
        gone = next(changes)
        assert (gone.kind, gone.key, gone.value) == ("delete", "a", None)
    with m.watch(start=change.token, timeout=0) as changes:
        assert [(c.kind, c.key) for c in changes] == [("delete", "a")]
    with m.watch(("eu",), initial=True, timeout=0) as changes:
        assert [c.key for c in changes] == [("eu", 1)]
    refused(of.TokenError, lambda: m.watch(start="x"), "'x'")
    refused(of.InvalidArgument, lambda: m.watch(start=change.token, initial=True), "not both")


def test_a_watch_sees_what_another_process_does(folder):
    with of.connect(folder) as db, db.map("m").watch(timeout="20s") as changes:
        elsewhere("of.connect(sys.argv[1]).map('m').put_many({'a': 1, 'b': 2})", folder)
        assert {next(changes).key, next(changes).key} == {"a", "b"}


# -- transactions


def test_a_transaction_is_all_or_nothing_with_its_outbox(db):
    m = db.map("accounts")
    m["alice"] = 100

    def move(fail):
        with db.transaction() as tx:
            a = tx.map("accounts")
            a["alice"] -= 10
            a["bob"] = a.get("bob", 0) + 10
            assert a["bob"] == 10  # it reads its own writes
            tx.stream("audit").append({"amount": 10})
            tx.queue("mail").put({"to": "bob"})
            if fail:
                raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        move(True)
    assert dict(m) == {"alice": 100} and len(db.queue("mail")) == 0 and list(db.stream("audit").read()) == []
    move(False)
    assert dict(m) == {"alice": 90, "bob": 10} and len(db.queue("mail")) == 1
    assert [record.value for record in db.stream("audit").read()] == [{"amount": 10}]


def test_whoever_loses_gets_a_conflict_and_run_transaction_tries_again(db):
    m = db.map("m")
    m["k"] = 0

    def bump(tx):
        tries.append(1)
        a = tx.map(m)
        a["k"] += 1
        if len(tries) < 3:
            in_thread(lambda: m.put("k", m["k"] + 10))
        return a["k"]

    tries = []
    assert db.run_transaction(bump) == 21 and len(tries) == 3 and m["k"] == 21
    for lost in ("a value", "an absence", "a range"):
        with pytest.raises(of.Conflict) as error, db.transaction() as tx:  # noqa: PT012
            a = tx.map(m)
            _ = (
                a["k"]
                if lost == "a value"
                else a.get("new")
                if lost == "an absence"
                else list(a.scan(prefix="x"))
            )
            a["written"] = lost
            key = {"a value": "k", "an absence": "new", "a range": ("x", 1)}[lost]
            in_thread(lambda key=key: m.put(key, 5))
        assert error.value.definite and "written" not in m, lost
    tries = []
    with pytest.raises(of.Conflict):
        db.run_transaction(bump, attempts=2)
    assert len(tries) == 2


def test_a_lost_try_with_a_request_id_stays_rejected(db):
    m = db.map("m")
    m["k"] = 0
    for _ in range(2):
        with pytest.raises(of.Conflict, match="'r'"), db.transaction("r") as tx:  # noqa: PT012
            tx.map(m)["k"] += 1
            in_thread(lambda: m.put("k", m["k"] + 1))
    assert db.outcome("r") == "rejected" and db.outcome("never") is None


def test_a_read_only_transaction_is_a_snapshot_and_appends_nothing(db):
    m = db.map("m")
    m["k"] = 1
    before = [space.applied for space in db._spaces]
    with db.transaction(read_only=True) as tx:
        assert tx.map(m)["k"] == 1
    assert [space.applied for space in db._spaces] == before
    with pytest.raises(of.TransactionError, match="read_only"), db.transaction(read_only=True) as tx:
        tx.map(m)["k"] = 2


PLAIN = {
    "read": lambda db: db.map("m").get("k"),
    "write": lambda db: db.map("m").put("k", 2),
    "scan": lambda db: list(db.map("m")),
    "len": lambda db: len(db.map("m")),
    "watch": lambda db: db.map("m").watch(),
    "put": lambda db: db.queue("q").put(1),
    "take": lambda db: db.queue("q").get(timeout=0).__enter__(),
    "append": lambda db: db.stream("s").append(1),
    "follow": lambda db: list(db.stream("s").read()),
    "lock": lambda db: db.lock("l").__enter__(),
    "nested": lambda db: db.transaction().__enter__(),
}


@pytest.mark.parametrize("name", PLAIN)
def test_plain_handles_are_refused_in_the_block_of_their_own_thread(name):
    with of.connect("memory://") as db:
        m = db.map("m")
        m["k"] = 1
        with db.transaction() as tx:
            refused(of.TransactionError, lambda: PLAIN[name](db), "transaction")
            assert in_thread(lambda: m["k"]) == 1  # another thread is not in the block
            assert tx.map(m)["k"] == 1
        assert m["k"] == 1 and len(db.queue("q")) == 0


# -- queues and locks


def test_a_message_is_given_until_it_is_acknowledged_and_then_is_a_dead_letter(db):
    for number in range(4):  # so that with shards some dead letters go to another one
        q = db.queue(f"mail{number}", lease="30s", max_attempts=2, dead_letter=f"dead{number}")
        held = db.queue(f"mail{number}")
        held.put("held")
        with held.get(timeout=0) as kept:
            q.put({"to": "ann"}, key="ann")
            for attempt in (1, 2):
                with pytest.raises(RuntimeError), q.get(timeout=0) as msg:  # noqa: PT012
                    assert (msg.value, msg.attempt) == ({"to": "ann"}, attempt)
                    msg.extend()
                    raise RuntimeError("bad mail")
            with db.queue(f"dead{number}").get(
                timeout=0
            ) as msg:  # at once, and nobody looks at the queue itself
                assert msg.value == {"to": "ann"}
            assert kept.value == "held"
        assert q.dead() == [] and len(q) == 0
    aside = db.queue("aside", max_attempts=1)
    aside.put("x")
    with pytest.raises(RuntimeError), aside.get(timeout=0):
        raise RuntimeError("no")
    assert [(letter.value, letter.errors) for letter in aside.dead()] == [("x", ("RuntimeError: no",))]
    with aside.get(timeout="10ms") as msg:
        assert msg is None


def test_messages_of_one_key_come_one_at_a_time_in_order(db):
    q = db.queue("q")
    for number in range(3):
        q.put(number, key="k")
    with q.get(timeout=0) as first:
        assert first.value == 0 and len(q) == 3
        with q.get(timeout=0) as second:
            assert second is None
    assert [q.take(0).ack() for _ in range(2)] == [None, None] and len(q) == 0


def test_each_message_goes_to_one_of_many_takers(folder):
    program = (
        "with of.connect(sys.argv[1]) as db:\n"
        "    while True:\n"
        "        with db.queue('q').get(timeout=0) as msg:\n"
        "            if msg is None: break\n"
        "            print(msg.value)\n"
    )
    with of.connect(folder) as db:
        for number in range(60):
            db.queue("q").put(number)
        printed = []
        threads = [
            threading.Thread(target=lambda: printed.append(elsewhere(program, folder))) for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(int(line) for text in printed for line in text.split()) == list(range(60))
        assert len(db.queue("q")) == 0


def test_a_delayed_message_and_a_lease_that_is_over(onefold_clock):
    with onefold_clock.connect() as db:
        q = db.queue("q", lease="30s")
        q.put("later", delay="1m")
        assert len(q) == 1 and q.take(0) is None
        onefold_clock.advance("61s")
        message = q.take(0)
        assert message.value == "later" and q.take(0) is None
        onefold_clock.advance("31s")
        again = q.take(0)
        assert again.attempt == 2
        refused(of.Conflict, message.ack, "lease")
        again.ack()


def test_a_lock_is_held_by_one_and_its_fencing_tokens_grow(folder):
    with of.connect(folder) as db:
        tokens = []
        for _ in range(2):
            with db.lock("nightly", ttl="1m") as lock:
                tokens.append(lock.fencing_token)
        with db.lock("nightly", ttl="1m") as lock:
            tokens.append(lock.fencing_token)
            program = (
                "try:\n"
                "    with of.connect(sys.argv[1]).lock('nightly', timeout='100ms'): print('mine')\n"
                "except of.Timeout as error: print(error.definite, error)\n"
            )
            assert elsewhere(program, folder).startswith(
                "True the lock 'nightly' did not become free in time"
            )
        tokens.append(
            int(
                elsewhere("with of.connect(sys.argv[1]).lock('nightly') as l: print(l.fencing_token)", folder)
            )
        )
        assert tokens == sorted(set(tokens))


# -- streams


def test_a_stream_keeps_the_order_of_each_key_and_reads_from_anywhere(db):
    s = db.stream("clicks", partitions=8)
    before = datetime.now() - timedelta(milliseconds=2)  # records have milliseconds
    positions = [s.append({"n": n}, key=f"u{n % 3}") for n in range(9)]
    records = list(s.read())
    for user in range(3):
        own = [record for record in records if record.key == f"u{user}"]
        assert [record.value["n"] for record in own] == [user, user + 3, user + 6]
        assert len({record.partition for record in own}) == 1
    assert {"n": 0} in [record.value for record in s.read(positions[0])]
    assert {record.value["n"] for record in s.read(str(positions[4]))} >= {4, 5, 6, 7, 8}
    later = [record.offset for record in s.read(positions[3]) if record.key == "u0"]
    assert later == [1, 2]  # in its own partition nothing before it
    assert list(s.read("latest")) == [] and len(list(s.read(start="earliest"))) == 9
    assert len(list(s.read(start=before))) == len(list(s.read(before.astimezone(UTC)))) == 9
    assert list(s.read(datetime.now(UTC) + timedelta(hours=1))) == []
    refused(of.InvalidArgument, lambda: list(s.read("sometime")), "'earliest'")
    refused(of.InvalidArgument, lambda: db.stream("clicks", partitions=4).append(1), "8", "4")


def test_many_records_at_once_from_a_list_and_a_frame(db):
    s = db.stream("clicks", partitions=8)
    s.append_many([{"user": "a", "n": 1}, {"user": "b", "n": 2}], key="user")
    s.append_many(pl.DataFrame({"user": ["a", "b"], "n": [3, 4]}), key="user")
    found = {(record.key, record.value["n"]): record.partition for record in s.read()}
    assert sorted(found) == [("a", 1), ("a", 3), ("b", 2), ("b", 4)]
    assert found[("a", 1)] == found[("a", 3)] and found[("b", 2)] == found[("b", 4)]
    refused(of.InvalidArgument, lambda: s.append_many(pl.DataFrame({"n": [1]}), key="user"), "'user'")


def test_following_gives_what_another_process_appends(folder):
    with of.connect(folder) as db:
        s = db.stream("s")
        reader = s.read("latest", follow=True, timeout="20s")
        elsewhere("of.connect(sys.argv[1]).stream('s').append('there')", folder)
        assert next(reader).value == "there"


def test_progress_and_effect_of_a_consumer_commit_together(db):
    s = db.stream("orders")
    for price in (1, 2, 3):
        s.append({"price": price}, key="k")
    with s.consumer("billing", timeout=0) as consumer:
        first = next(consumer)
        with db.transaction() as tx:
            tx.map("totals").increment(first.key, first.value["price"])
            tx.commit(consumer)
        next(consumer)  # its effect and progress are lost
    with s.consumer("billing", timeout=0) as consumer:
        for record in consumer:
            with db.transaction() as tx:
                tx.map("totals").increment(record.key, record.value["price"])
                tx.commit(consumer)
    assert dict(db.map("totals")) == {"k": 6}
    with s.consumer("billing", timeout=0) as consumer:
        assert list(consumer) == []
    with s.consumer("others", timeout=0) as consumer:
        assert len(list(consumer)) == 3
        consumer.commit()


# -- asyncio


def test_the_same_with_asyncio(tmp_path):
    async def program(url, **options):
        async with of.aio.connect(url, **options) as db:
            m = db.map("m")
            await m.put_many({"a": 1, "b": 2})
            assert [v async for v in m.values()] == [1, 2] and [k async for k in m] == ["a", "b"]
            assert await m.get("a") == 1 and await m.contains("b") and await m.increment("n") == 1
            async with db.transaction() as tx:
                a = tx.map("m")
                await a.put("a", await a.get("a") + 1)
                await tx.queue("q").put("mail")
                with pytest.raises(of.TransactionError):
                    await m.get("a")
            async with db.queue("q").get(timeout="5s") as msg:
                assert msg.value == "mail"
            async with db.queue("q").get(timeout=0) as msg:
                assert msg is None
            async with db.lock("l") as lock:
                assert lock.fencing_token > 0
            stream = db.stream("s")
            await stream.append({"n": 1}, key="k")
            assert [record.value async for record in stream.read()] == [{"n": 1}]
            async with m.watch(initial=True, timeout=0) as changes:
                assert [change.key async for change in changes] == ["a", "b", "n"]

            async def bump(tx):
                await asyncio.sleep(0)
                await tx.map(m).put("n", await tx.map(m).get("n") + 1)

            await asyncio.gather(*(db.run_transaction(bump) for _ in range(3)))
            assert await m.get("n") == 4
            return db.session.token

    token = asyncio.run(program(tmp_path / "one"))
    assert token.startswith("of1.")
    asyncio.run(program("memory://"))


# -- the command line


def onefold(*args, url, stdin="", stdout=subprocess.PIPE):
    clean = {key: value for key, value in os.environ.items() if not key.startswith("ONEFOLD_")}
    command = [sys.executable, "-m", "onefold.cli", *map(str, args), "--url", str(url)]
    return subprocess.run(
        command,
        input=stdin,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        env=clean,
        timeout=60,
        check=False,
    )


def test_a_full_disk_and_a_closed_stdout_give_no_traceback(tmp_path):
    with of.connect(tmp_path / "s") as db:
        db.map("m").put_many(dict.fromkeys(range(2000), "x" * 50))
    if Path("/dev/full").exists():
        for command in (["ls", "m", "--limit", 2000], ["get", "m", "5", "--json-key"], ["--json", "status"]):
            with open("/dev/full", "w") as full:
                failed = onefold(*command, url=tmp_path / "s", stdout=full)
            assert failed.returncode == 1
            assert (
                failed.stderr
                == f"onefold: the output cannot be written: {os.strerror(errno.ENOSPC)}. Write it elsewhere\n"
            )
    closed = 'exec "$0" -m onefold.cli --url "$1" ls m >&-'
    ended = subprocess.run(
        ["sh", "-c", closed, sys.executable, tmp_path / "s"], capture_output=True, text=True, check=False
    )
    assert "Traceback" not in ended.stderr


def test_wrong_usage_is_2_and_a_failed_operation_is_1(tmp_path):
    url = tmp_path / "s"
    assert onefold("put", "m", "7", '{"a": 1}', url=url).returncode == 0
    wrong = [
        ["put", "m", "k", "v", "--ttl", "x"],
        ["put", "m", "k", "v", "--if-version", "x"],
        ["put", "m"],
        ["nope"],
    ]
    for args in [*wrong, ["watch", "m", "--timeout", "x"]]:
        ended = onefold(*args, url=url)
        assert ended.returncode == 2 and ended.stdout == "" and "Usage" in ended.stderr, args
    assert onefold("ls", url="nats://h").returncode == 2
    for args, says in [
        (["get", "m", "8"], "there is no 8 in map 'm' (the text; --json-key looks for 8 as JSON)"),
        (["put", "m", "7", "v", "--if-absent"], "'7' is in 'm' already"),
        (["explain", "nope"], "there is nothing called 'nope'"),
    ]:
        ended = onefold(*args, url=url)
        assert ended.returncode == 1 and ended.stdout == "" and says in ended.stderr
    missing = onefold("ls", url=tmp_path / "none")
    assert missing.returncode == 1 and "--url" in missing.stderr and not (tmp_path / "none").exists()
    assert json.loads(onefold("--json", "doctor", url=url).stdout)["url"] == str(url)
