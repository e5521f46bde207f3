"""Commits of live jobs on a cluster: workers with a replica and without one, and one that was given up."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

import onefold as of
from kit.cluster.log_ground import until
from onefold.cluster.servers import LocalServers
from onefold.compute.live.bundles import Worker
from onefold.compute.live.client import BundleLost, LiveJob
from onefold.env import SYSTEM
from onefold.errors import SpaceError
from onefold.folds import folds
from onefold.log.jetstream import admin
from onefold.log.jetstream.client.address import parse_address
from onefold.log.jetstream.client.link import Link
from onefold.log.jetstream.engine import JetStreamLog
from onefold.log.jetstream.names import LogNames
from onefold.shard.remote.server import Server
from onefold.shard.replica.shard import LocalReplica
from onefold.state.fold.live.ops import LIVE_VERSION
from support.live_counting import ALL, PART, begun, count, output, work


class Node:
    """What of a node a program without a replica needs, and what raises the fold version."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        servers = LocalServers.start(folder / "servers", 1)
        stack.callback(lambda: servers.stop(delete=True))
        as_admin = Link(parse_address(servers.url("live", user="admin")))
        stack.callback(as_admin.close)
        info = until(lambda: admin.make_space(as_admin, "live", 1, 1))
        link = Link(parse_address(servers.url("live", user="node")))
        stack.callback(link.close)
        log = JetStreamLog(link, info, 0)
        self.replica = LocalReplica(
            log, folds(0, 1), SYSTEM, directory=folder / "node", url=servers.url("live"), keep_all=True
        )
        stack.callback(self.replica.close)
        server, crew = Server(self.replica), stack.enter_context(ThreadPoolExecutor(4))
        subject = LogNames(info.space, info.incarnation, 0).ask
        link.subscribe(
            subject, lambda msg: crew.submit(lambda: link.publish(msg.reply, server.answer(msg.data)))
        )
        self.url = servers.url("live", user="app")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with ExitStack() as stack:
        yield Node(stack, tmp_path_factory.mktemp("live"))


def test_each_row_is_committed_once_by_workers_with_and_without_a_replica(node: Node) -> None:
    with of.connect(node.url, replicas="local") as here, of.connect(node.url, replicas="remote") as there:
        with pytest.raises(SpaceError, match="fold version 3"):
            LiveJob(here._state, "job").start("plan", [PART])
        node.replica.raise_fold_version(LIVE_VERSION)
        job = begun(here._state)
        first, second = Worker(job, 1), Worker(LiveJob(there._state, "job"), 1)
        (held,) = first.claim("count")
        second.claim("count")
        assert held.commit(count(held, 5)).wanted == 2
        first.give("count")
        assert first.needs_beats and first.beat() and second.needs_beats and second.beat()
        (stale,) = second.refresh("count")
        assert stale.lanes == 0b1100
        batch = count(stale, 7)
        second.leave()
        stale.lost = False  # it was stopped, and does not know
        work(first)
        with pytest.raises(BundleLost):
            stale.commit(batch)
        assert sorted(output(here._state)) == [*ALL]
        assert sorted(output(there._state)) == [*ALL]
