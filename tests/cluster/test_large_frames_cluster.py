"""Large frames of streams on a cluster: what does not fit into a record is a blob, where the space keeps blobs."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import onefold as of
from kit.cluster.log_ground import until
from onefold import config
from onefold.cluster.servers import LocalServers
from onefold.compute.live.garbage import LiveGarbage
from onefold.doctor.state_blobs import check_named
from onefold.env import SYSTEM
from onefold.folds import blob_tables, folds
from onefold.log.jetstream import admin
from onefold.log.jetstream.client.address import parse_address
from onefold.log.jetstream.client.link import Link
from onefold.log.jetstream.engine import JetStreamLog
from onefold.log.jetstream.names import LogNames
from onefold.shard.remote.server import Server
from onefold.shard.replica.shard import LocalReplica
from onefold.state.core.consistency import STRONG
from onefold.state.fold.streams.ops import STREAM_BLOBS_VERSION, Append, AppendBlob
from onefold.state.streams import large_frames


class Node:
    """What of a node a program without a replica needs, and what raises the fold version."""

    def __init__(self, stack: ExitStack, servers: LocalServers, folder: Path, space: str, blobs: str) -> None:
        as_admin = Link(parse_address(servers.url(space, user="admin")))
        stack.callback(as_admin.close)
        info = until(lambda: admin.make_space(as_admin, space, 1, 1, blobs=blobs))
        link = Link(parse_address(servers.url(space, user="node")))
        stack.callback(link.close)
        log = JetStreamLog(link, info, 0)
        self.replica = LocalReplica(
            log, folds(0, 1), SYSTEM, directory=folder / space, url=servers.url(space), keep_all=True
        )
        stack.callback(self.replica.close)
        server, crew = Server(self.replica), stack.enter_context(ThreadPoolExecutor(4))
        subject = LogNames(info.space, info.incarnation, 0).ask
        link.subscribe(
            subject, lambda msg: crew.submit(lambda: link.publish(msg.reply, server.answer(msg.data)))
        )
        self.url = servers.url(space, user="app")


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServers]:
    servers = LocalServers.start(tmp_path_factory.mktemp("servers"), 1)
    try:
        yield servers
    finally:
        servers.stop(delete=True)


def noise(seed: int, rows: int = 80_000) -> pl.DataFrame:
    return pl.DataFrame({"v": np.random.default_rng(seed).random(rows)})


def blobs_of(db: of.Database) -> int:
    with db._state.view(0, STRONG) as view:
        return sum(1 for table in blob_tables() for _ in view.scan(table))


@pytest.mark.parametrize("place", ["jetstream", "dir"])
def test_what_does_not_fit_into_a_record_is_a_blob(
    servers: LocalServers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setattr(config, "RECORD_BYTES_MAX", 1024 * 1024)
    shared = tmp_path / "shared"
    shared.mkdir()
    with ExitStack() as stack:
        node = Node(stack, servers, tmp_path, place, place if place == "jetstream" else f"dir:{shared}")
        db = stack.enter_context(of.connect(node.url))
        stream = db.stream("s")
        stream.append_many(noise(1))
        assert blobs_of(db) == 0, "the nodes have not raised the fold version"
        with pytest.raises(of.TooLarge, match="a record takes"):
            stream.append_many(noise(2, 180_000))
        node.replica.raise_fold_version(STREAM_BLOBS_VERSION)
        db._shards[0].barrier()  # it is here, too
        stream.append_many(noise(3))
        one = blobs_of(db)
        assert one == (place == "dir"), "in JetStream a frame that fits is appended faster with the record"
        stream.append_many(noise(2, 180_000))
        several = blobs_of(db)
        assert several > one
        monkeypatch.setenv("ONEFOLD_CACHE", str(tmp_path / "another machine"))
        other = stack.enter_context(of.connect(node.url, replicas="remote"))
        other.stream("s").append_many(noise(4, 180_000))
        assert blobs_of(db) > several
        parts = (noise(1), noise(3), noise(2, 180_000), noise(4, 180_000))
        for reader in (db, other):
            assert reader.stream("s").to_polars().select("v").equals(pl.concat(parts))
        assert check_named(db._state, db._engine.blobs).status == "ok"
        if place == "dir":
            file = max(shared.glob("**/??/*"), key=lambda path: path.stat().st_size)
            file.rename(tmp_path / "away")
            found = check_named(db._state, db._engine.blobs)
            assert found.status == "problem" and file.name[:16] in found.found
            (tmp_path / "away").rename(file)
        # What a program stores and never names goes, whichever machine sweeps, and nothing else does.
        with large_frames.stored(other._state, {0: [Append("s", 0, 1, bytes(1 << 20))]}) as kept:
            (left,) = kept.parts[0]
        nodes = stack.enter_context(of.connect(servers.url(place, user="node")))
        there = nodes._engine.blobs
        assert isinstance(left, AppendBlob) and left.blob in set(there.everywhere())
        garbage = LiveGarbage(nodes._state, there)
        assert garbage.remove_unnamed() == 0 and garbage.remove_unnamed(age_s=-60) == 1
        assert left.blob not in set(there.everywhere()) and len(set(there.everywhere())) == blobs_of(db)
