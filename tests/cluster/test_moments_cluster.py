"""Read-only transactions over shards on a real cluster, beside writers: each reads the whole sum, from a replica of its own or
from nodes' replicas, and also where the connection itself may not write."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

import onefold as of
from onefold.cluster.servers import LocalServers
from onefold.env import SYSTEM
from onefold.folds import folds
from onefold.log.jetstream import admin
from onefold.log.jetstream.client.address import parse_address
from onefold.log.jetstream.client.link import Link
from onefold.log.jetstream.engine import JetStreamLog
from onefold.log.jetstream.names import NODES_QUEUE, LogNames
from onefold.shard.remote.server import Server
from onefold.shard.replica.shard import LocalReplica
from onefold.state.encoding.keys import encode_key, shard_of

SHARDS = 3
READS = 8
BALANCE = 1000
SEED = 1
ACCOUNTS = [
    next(f"a{n}" for n in range(100) if shard_of(encode_key(f"a{n}"), SHARDS) == shard)
    for shard in range(SHARDS)
]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A space of three shards on one server, with somebody who answers for every shard, as a node does."""
    folder = tmp_path_factory.mktemp("moments")
    servers = LocalServers.start(folder / "servers", 1)
    try:
        with ExitStack() as stack:
            as_admin = Link(parse_address(servers.url("bank", user="admin")))
            stack.callback(as_admin.close)
            info = admin.make_space(as_admin, "bank", SHARDS, 1)
            link = Link(parse_address(servers.url("bank", user="node")))
            stack.callback(link.close)
            for shard in range(SHARDS):
                replica = LocalReplica(
                    JetStreamLog(link, info, shard),
                    folds(shard, SHARDS),
                    SYSTEM,
                    directory=folder / "node" / str(shard),
                    url=servers.url("bank"),
                    keep_all=True,
                )
                stack.callback(replica.close)
                _answer(stack, link, LogNames(info.space, info.incarnation, shard).ask, Server(replica))
            yield servers.url("bank", user="app")
    finally:
        servers.stop(delete=True)


def _answer(stack: ExitStack, link: Link, subject: str, server: Server) -> None:
    crew = stack.enter_context(ThreadPoolExecutor(4))
    questions = link.subscribe(
        subject,
        lambda msg: crew.submit(lambda: link.publish(msg.reply, server.answer(msg.data))),
        queue=NODES_QUEUE,
    )
    stack.callback(questions.close)


def _move(db: of.Database, rng: random.Random) -> None:
    source, target = rng.sample(ACCOUNTS, 2)
    amount = rng.randrange(1, 50)

    def move(tx: of.Transaction) -> None:
        accounts = tx.map("accounts")
        accounts[source] -= amount
        accounts[target] += amount

    db.run_transaction(move, attempts=100)


def _sum(db: of.Database) -> int:
    return db.run_transaction(
        lambda tx: sum(tx.map("accounts")[name] for name in ACCOUNTS), attempts=1, read_only=True
    )


@pytest.mark.parametrize("replicas", ["local", "remote"])
def test_read_only_transactions_read_the_whole_sum_beside_writers(
    url: str, replicas: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONEFOLD_CACHE", str(tmp_path / "cache"))
    with (
        of.connect(url, replicas=replicas, timeout=120) as writer,
        of.connect(url, replicas=replicas, timeout=120) as reader,
    ):
        writer.map("accounts").update(dict.fromkeys(ACCOUNTS, BALANCE))
        stop, problems, moved = threading.Event(), [], [0, 0]

        def write(number: int) -> None:
            rng = random.Random(SEED + number)
            while not stop.is_set():
                try:
                    _move(writer, rng)
                    moved[number] += 1
                except of.Conflict:
                    pass  # a transfer may lose
                except of.OnefoldError as error:
                    problems.append(error)
                    return

        threads = [threading.Thread(target=write, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        try:
            sums = [_sum(reader) for _ in range(READS)]
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert not problems
        assert sum(moved) > 0
        assert sums == [SHARDS * BALANCE] * READS
        assert _sum(reader) == SHARDS * BALANCE


def test_a_read_only_connection_reads_the_whole_sum_between_writes(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONEFOLD_CACHE", str(tmp_path / "cache"))
    rng = random.Random(SEED)
    with (
        of.connect(url, replicas="remote", timeout=120) as writer,
        of.connect(url, replicas="remote", read_only=True, timeout=120) as reader,
        of.connect(url, read_only=True, timeout=5) as alone,
    ):
        writer.map("accounts").update(dict.fromkeys(ACCOUNTS, BALANCE))
        for _ in range(3):
            _move(writer, rng)
            expected = {name: writer.map("accounts")[name] for name in ACCOUNTS}
            with reader.transaction(read_only=True) as tx:
                assert dict(tx.map("accounts").items()) == expected
        with pytest.raises(of.Unavailable, match="replicas='remote'"):
            _sum(alone)
