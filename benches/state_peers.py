"""What ``state.py`` compares with: one measure of one peer, as ``{"rate": per second}``.

Run by ``state.py`` with the Python that has the peers' usual clients: ``pip install redis diskcache etcd3 'protobuf<3.21' huey
litequeue``; those that are missing are left out.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable

os.environ.setdefault("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "python")  # what etcd3 works with

VALUE = b"x" * 60


def rate(step: Callable[[int], object], seconds: float, per_step: int = 1) -> float:
    """Steps a second over about that long."""
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        for _ in range(10):
            step(count)
            count += 1
    return count * per_step / (time.perf_counter() - start)


def redis_measures(port: str) -> dict[str, Callable[[float], float]]:
    import redis

    client = redis.Redis(port=int(port))

    def many(n: int) -> None:
        with client.pipeline(transaction=True) as pipe:
            for k in range(1000):
                pipe.set(f"m{n % 20}:{k}", VALUE)
            pipe.execute()

    def queue(n: int) -> None:
        client.lpush("q", VALUE)
        client.rpop("q")

    client.set("hot", VALUE)
    return {
        "put": lambda s: rate(lambda n: client.set(f"k{n % 5000}", VALUE), s),
        "get": lambda s: rate(lambda _: client.get("hot"), s),
        "put_many": lambda s: rate(many, s, 1000),
        "queue": lambda s: rate(queue, s),
    }


def etcd_measures(port: str) -> dict[str, Callable[[float], float]]:
    import etcd3

    client = etcd3.client(port=int(port))
    client.put("hot", VALUE)

    def transaction(n: int) -> None:
        client.transaction(
            compare=[client.transactions.version("hot") > 0],
            success=[client.transactions.put(f"t{n % 5000}", VALUE), client.transactions.put("u", VALUE)],
            failure=[],
        )

    return {
        "put": lambda s: rate(lambda n: client.put(f"k{n % 5000}", VALUE), s),
        "get": lambda s: rate(lambda _: client.get("hot"), s),
        "transaction": lambda s: rate(transaction, s),
    }


def diskcache_measures(folder: str) -> dict[str, Callable[[float], float]]:
    import diskcache

    cache = diskcache.Cache(folder)
    cache.set("hot", VALUE)
    return {
        "put": lambda s: rate(lambda n: cache.set(f"k{n % 5000}", VALUE), s),
        "get": lambda s: rate(lambda _: cache.get("hot"), s),
    }


def huey_measures(folder: str) -> dict[str, Callable[[float], float]]:
    """A queue of tasks on SQLite, with its default of full sync. Taking a task removes it: there is nothing to acknowledge."""
    from huey import SqliteHuey

    os.makedirs(folder, exist_ok=True)  # noqa: PTH103
    huey = SqliteHuey("bench", filename=f"{folder}/huey.db")

    @huey.task()
    def task(_: bytes) -> None:
        return None

    def queue(_: int) -> None:
        task(VALUE)
        taken = huey.dequeue()
        assert taken is not None
        huey.execute(taken)

    return {"queue": lambda s: rate(queue, s)}


def litequeue_measures(folder: str) -> dict[str, Callable[[float], float]]:
    """A queue on SQLite, here with full sync (its default is not)."""
    from litequeue import LiteQueue

    os.makedirs(folder, exist_ok=True)  # noqa: PTH103
    messages = LiteQueue(f"{folder}/litequeue.db")
    messages.conn.execute("PRAGMA synchronous=FULL")

    def queue(_: int) -> None:
        messages.put("x" * 60)
        messages.done(messages.pop().message_id)

    return {"queue": lambda s: rate(queue, s)}


def main() -> None:
    if sys.argv[1] == "--has":
        __import__(sys.argv[2])
        return
    peer, where, measure, seconds = sys.argv[1:5]
    measures = {
        "redis": redis_measures,
        "etcd": etcd_measures,
        "diskcache": diskcache_measures,
        "huey": huey_measures,
        "litequeue": litequeue_measures,
    }[peer](where)
    if "--wait" in sys.argv:  # several begin at once
        print("ready", flush=True)
        sys.stdin.readline()
    if peer in ("huey", "litequeue"):  # as the others, once its write-ahead log has been written once
        measures[measure](float(seconds))
    print(json.dumps({"rate": measures[measure](float(seconds))}))


if __name__ == "__main__":
    main()
