"""The ways to shared state (connections, asyncio, the command line) and its maps, as their users see them: what the documents
promise, in a folder, in memory and over several shards.
"""

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
import pytest

import onefold as of
from support.command_line import ask
from support.state_places import elsewhere, folder_of_space, in_thread, refused, state_db  # noqa: F401

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
    refused(of.InvalidArgument, lambda: m.put("k", 4, if_version="x"), "'x' is not a version")
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
        ended = ask(*args, url=url)
        assert ended.returncode == 2 and ended.stdout == "" and "Usage" in ended.stderr, args
    assert onefold("nope", url=url).returncode == ask("ls", url="nats://h").returncode == 2
    for args, says in [
        (["get", "m", "8"], "there is no 8 in map 'm' (the text; --json-key looks for 8 as JSON)"),
        (["put", "m", "7", "v", "--if-absent"], "'7' is in 'm' already"),
        (["explain", "nope"], "there is nothing called 'nope'"),
    ]:
        ended = ask(*args, url=url)
        assert ended.returncode == 1 and ended.stdout == "" and says in ended.stderr
    missing = ask("ls", url=tmp_path / "none")
    assert missing.returncode == 1 and "--url" in missing.stderr and not (tmp_path / "none").exists()
    assert json.loads(onefold("--json", "doctor", url=url).stdout)["url"] == str(url)
