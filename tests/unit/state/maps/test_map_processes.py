"""Maps of several processes and connections: what one writes the others see, no update is lost, and who may not write is told."""

import subprocess
import sys
from contextlib import contextmanager

import pytest

import onefold as of
from onefold import config
from onefold.env import SYSTEM
from onefold.errors import SpaceError

SOON_S = 60

CHILD = """
import sys, onefold as of
with of.connect(sys.argv[1]) as db:
    m = db.map("m")
    for line in sys.stdin:
        name, key, value = line.split()
        if name == "put":
            m[key] = int(value)
        elif name == "session":
            print(m.get(key, consistency="session"), flush=True)
            continue
        elif name == "add":
            for _ in range(int(value)):
                m.increment(key)
                m.modify(key + "'", lambda n: n + 1, default=0)
        print(m.get(key), flush=True)
"""


@contextmanager
def child(folder):
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.stdin.close()
            process.wait(SOON_S)


def tell(process, line):
    process.stdin.write(line + "\n")
    process.stdin.flush()


def answer(process):
    return process.stdout.readline().strip()


def test_another_processs_writes_are_seen_at_once(tmp_path):
    with of.connect(tmp_path / "s") as db, child(tmp_path / "s") as other:
        m = db.map("m")
        for number in range(50):
            tell(other, f"put k {number}")
            assert answer(other) == str(number)
            assert m["k"] == number and m.get_many(["k"]) == dict(m.items()) == {"k": number}
            assert m.get("k", consistency="session") == number  # as a strong read has seen it
            m["k"] = -number
            tell(other, "get k 0")
            assert answer(other) == str(-number)


def test_session_reads_follow_another_process_within_the_caches_time(tmp_path):
    with of.connect(tmp_path / "s", consistency="session") as db, child(tmp_path / "s") as other:
        m = db.map("m")
        m["k"] = -1
        for number in range(10):
            assert m["k"] == number - 1
            tell(other, f"put k {number}")
            assert answer(other) == str(number)
            end_s = SYSTEM.boot_s() + config.SESSION_CACHE_FRESH_S
            seen = None
            while seen != number:
                began_s = SYSTEM.boot_s()
                seen = m["k"]
                assert seen == number or (seen == number - 1 and began_s <= end_s)


def test_processes_and_threads_lose_no_update(tmp_path):
    with of.connect(tmp_path / "s") as db, child(tmp_path / "s") as one, child(tmp_path / "s") as two:
        for process in (one, two):
            tell(process, "add n 60")
        m = db.map("m")
        for _ in range(60):
            m.increment("n")
            m.modify("n'", lambda n: n + 1, default=0)
        assert answer(one) and answer(two)
        assert dict(m) == {"n": 180, "n'": 180}


def test_a_closed_space_and_a_read_only_one_say_so(tmp_path):
    with of.connect(tmp_path / "s") as db:
        m = db.map("m", consistency="session")
        m["k"] = 1
        assert m["k"] == 1
        with of.connect(tmp_path / "s", read_only=True) as reader:
            r = reader.map("m")
            assert dict(r) == {"k": 1} and r.get("k", consistency="session") == 1
            for write in (lambda: r.put("k", 2), lambda: r.pop("k"), r.clear, lambda: r.put_many({"a": 1})):
                with pytest.raises(SpaceError, match="read-only"):
                    write()
    for use in (lambda: m["k"], lambda: m.get("k", consistency="strong"), lambda: list(m.scan()), lambda: len(m),
                lambda: m.put("k", 1), m.watch, lambda: m.get_many(["k"])):  # fmt: skip
        with pytest.raises(SpaceError, match="closed"):
            use()
