"""Catching up: how fast a replica applies a log to a store on disk, next to raw upserts into the same kind of table.

Run: ``python benches/apply.py [--keys 300000] [--rounds 3]``. Two logs of new keys, in random order: records of
``put_many(1000)``, and records of 200 operations that each put one key (what group commit makes of many writers). The store
is as a replica keeps it: SQLite in WAL with ``synchronous=NORMAL``, the history of everything kept, up to 16 MB of records in
a transaction. *Raw* are upserts by ``executemany`` of the same keys and values, in the same transactions, without history.
All in one process, so what is measured is one core. Target: at least 60k new keys/s for ``put_many``, 40k operations/s for
small ones.
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import apsw

from common import data_dir
from onefold.codec import Record, encode_record
from onefold.fold.system import Register, system_op
from onefold.log.api import Entry
from onefold.state.encoding.keys import encode_key
from onefold.state.encoding.values import encode_value
from onefold.state.fold.machine import StateFold
from onefold.state.fold.maps.ops import Put
from onefold.state.fold.ops import STATE_FOLD, Commit, state_op
from onefold.store.replica import Replica
from onefold.store.snapshot import create_store
from onefold.store.tables import Tables

Items = list[tuple[bytes, bytes]]
BATCH_BYTES = 16 << 20
NOW_MS = 1_700_000_000_000
VALUE = encode_value(b"x" * 60)


def keys_in_random_order(number: int) -> list[bytes]:
    keys = [encode_key(("key", n)) for n in range(number)]
    random.Random(1).shuffle(keys)
    return keys


def records_of(keys: list[bytes], per_record: int, per_put: int) -> list[Entry]:
    """One client's log: each record has ``per_record`` keys, in operations of ``per_put`` keys each."""
    bodies = [(system_op(Register((STATE_FOLD,))),)]
    for at in range(0, len(keys), per_record):
        part = keys[at : at + per_record]
        puts = [part[i : i + per_put] for i in range(0, len(part), per_put)]
        bodies.append(
            tuple(state_op(Commit((), (), (Put("m", tuple((key, VALUE) for key in put)),))) for put in puts)
        )
    return [
        Entry(n, encode_record(Record("c0-bench", n, NOW_MS + n, ops)), NOW_MS + n)
        for n, ops in enumerate(bodies, 1)
    ]


def batches(entries: Sequence[Entry]) -> Iterator[list[Entry]]:
    batch: list[Entry] = []
    size = 0
    for entry in entries:
        batch.append(entry)
        size += len(entry.data)
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def on_disk(path: Path) -> apsw.Connection:
    con = apsw.Connection(str(path), statementcachesize=256)
    con.execute("PRAGMA journal_mode=WAL").fetchall()
    con.execute("PRAGMA synchronous=NORMAL; PRAGMA cache_size=-65536")
    return con


def apply_all(con: apsw.Connection, entries: Sequence[Entry]) -> None:
    replica = Replica(con, Tables(), [StateFold()], keep_all=True)
    for batch in batches(entries):
        con.execute("BEGIN IMMEDIATE")
        replica.load()
        for entry in batch:
            replica.apply(entry)
        replica.flush()
        con.execute("COMMIT")
        replica.commit()


def upsert_all(con: apsw.Connection, parts: Sequence[Items]) -> None:
    for part in parts:
        con.execute("BEGIN IMMEDIATE")
        con.executemany(
            "INSERT INTO kv VALUES(?, ?, ?) ON CONFLICT(t, k) DO UPDATE SET v = excluded.v",
            ((1, key, value) for key, value in part),
        )
        con.execute("COMMIT")


def seconds(folder: Path, run: Callable[[apsw.Connection], None]) -> float:
    path = folder / "store.db"
    con = on_disk(path)
    create_store(con)
    start = time.perf_counter()
    run(con)
    took = time.perf_counter() - start
    con.close()
    for file in folder.glob("store.db*"):
        file.unlink()
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--keys", type=int, default=300_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    keys = keys_in_random_order(options.keys)
    logs = {"put_many(1000)": records_of(keys, 1000, 1000), "200 single puts": records_of(keys, 200, 1)}
    per_part = round(len(keys) / len(list(batches(logs["put_many(1000)"]))))
    raw = [[(key, VALUE) for key in keys[at : at + per_part]] for at in range(0, len(keys), per_part)]
    measures: dict[str, Callable[[apsw.Connection], None]] = {"raw upserts": lambda con: upsert_all(con, raw)}
    for name, log in logs.items():
        measures[name] = lambda con, log=log: apply_all(con, log)  # type: ignore[misc]
    rates: dict[str, list[float]] = {name: [] for name in measures}
    folder = Path(tempfile.mkdtemp(dir=data_dir()))
    try:
        for _ in range(options.rounds):
            for name, run in measures.items():
                rates[name].append(len(keys) / seconds(folder, run))
    finally:
        shutil.rmtree(folder)
    found = {name: statistics.median(rate) for name, rate in rates.items()}
    targets = {"put_many(1000)": 60_000, "200 single puts": 40_000}
    for name, rate in found.items():
        target = targets.get(name)
        said = "" if target is None else f"   target {target:,}: {'met' if rate >= target else 'MISSED'}"
        print(f"{name:16} {rate:10,.0f} keys/s   {rate / found['raw upserts']:5.2f} of raw{said}")


if __name__ == "__main__":
    main()
