"""Transactions of threads and processes at once: money is neither made nor lost, and they share records."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

import onefold as of
from support.transacted import contents


def put(db, name="m", **items):
    with db.transaction() as tx:
        tx.map(name).update(items)


TRANSFER = """
import random
import onefold as of

ACCOUNTS = 8

def transfers(db, seed, count):
    rng = random.Random(seed)
    for _ in range(count):
        source, target = rng.sample(range(ACCOUNTS), 2)
        amount = rng.randrange(1, 50)

        def move(tx):
            a = tx.map("accounts")
            if a[source] >= amount:
                a[source] -= amount
                a[target] += amount
                tx.map("counts").increment("moves")

        db.run_transaction(move, attempts=200)

def total(db):
    return db.run_transaction(lambda tx: sum(tx.map("accounts").values()), read_only=True, attempts=1000)
"""


@pytest.mark.parametrize("shards", [1, 3])
def test_money_is_neither_made_nor_lost_by_threads_and_processes(tmp_path, shards):
    path = tmp_path / "space"
    script = (
        TRANSFER
        + "import sys\nwith of.connect(sys.argv[1]) as db:\n    transfers(db, int(sys.argv[2]), int(sys.argv[3]))\n"
    )
    names = {}
    exec(TRANSFER, names)
    with of.connect(path, shards=shards) as db:
        with db.transaction() as tx:
            tx.map("accounts").put_many(dict.fromkeys(range(8), 100))
        others = [
            subprocess.Popen([sys.executable, "-c", script, str(path), str(seed), str(60 // shards)])
            for seed in (1001, 1002)
        ]
        try:
            with ThreadPoolExecutor(4) as pool:
                work = [pool.submit(names["transfers"], db, seed, 30 // shards) for seed in range(4)]
                while not all(done.done() for done in work) or any(other.poll() is None for other in others):
                    assert names["total"](db) == 800
                for done in work:
                    done.result()
        finally:
            for other in others:
                if other.poll() is None:
                    other.kill()
                other.wait()
        assert [other.returncode for other in others] == [0, 0]
        assert names["total"](db) == 800
        assert all(balance >= 0 for balance in contents(db, "accounts").values())
        assert 0 < contents(db, "counts")["moves"] <= 240


def test_transactions_of_threads_share_records(tmp_path):
    with of.connect(tmp_path / "space") as db:
        put(db, "counts", **{f"t{number}": 0 for number in range(8)})
        space = db._state.shards[0]
        before = space.applied
        barrier = threading.Barrier(8, timeout=60)

        def work(number):
            barrier.wait()
            for _ in range(25):
                with db.transaction() as tx:
                    tx.map("counts")[f"t{number}"] += 1

        with ThreadPoolExecutor(8) as pool:
            for done in [pool.submit(work, number) for number in range(8)]:
                done.result()
        assert contents(db, "counts") == {f"t{number}": 25 for number in range(8)}
        assert space.applied - before < 200
