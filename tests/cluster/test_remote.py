"""Programs without a replica on a real cluster: questions go over the link, to the own region first, and are asked again."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from itertools import count

import pytest

import onefold as of
from onefold.cluster import server_config
from onefold.cluster.servers import LocalServers
from onefold.env import SYSTEM
from onefold.folds import folds as space_folds
from onefold.log.jetstream import admin
from onefold.log.jetstream.client.address import parse_address
from onefold.log.jetstream.client.link import Link
from onefold.log.jetstream.engine import JetStreamLog
from onefold.log.jetstream.names import NODES_QUEUE, LogNames
from onefold.node.members.membership import Identity
from onefold.node.nats_runtime import ClusterGround
from onefold.node.telemetry.logging import JsonLog
from onefold.shard.remote.asking import LinkAsking
from onefold.shard.remote.server import Server
from onefold.shard.replica.shard import LocalReplica

SOON_S = 60
_numbers = count()


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    started = LocalServers.start(tmp_path_factory.mktemp("servers"), 3)
    yield started
    started.stop(delete=True)


class Shard:
    """A new space, and what answers for it in this process, with a node's credential."""

    def __init__(self, servers, folder, stack, shards, replicas=3):
        name = f"remote{next(_numbers)}"
        self.url = servers.url(name, user="app")
        with self._linked(servers.url(name, user="admin")) as link:
            self.info = admin.make_space(link, name, shards, replicas)
        self.link = stack.enter_context(self._linked(servers.url(name, user="node")))
        self.app = stack.enter_context(self._linked(self.url))
        self._folder, self._stack = folder, stack
        self._crew = stack.enter_context(ThreadPoolExecutor(8))

    @contextmanager
    def _linked(self, url):
        link = Link(parse_address(url))
        try:
            yield link
        finally:
            link.close()

    def names(self, shard=0):
        return LogNames(self.info.space, self.info.incarnation, shard)

    def answer(self, subject, reply):
        """Have questions answered by ``reply(data)``; None: not at all."""

        def work(msg):
            data = reply(msg.data)
            if data is not None:
                self.link.publish(msg.reply, data)

        subscription = self.link.subscribe(
            subject, lambda msg: self._crew.submit(work, msg), queue=NODES_QUEUE
        )
        self._stack.callback(subscription.close)

    def host(self):
        """Answer for every shard, as a node does."""
        for shard in range(self.info.shards):
            replica = LocalReplica(
                JetStreamLog(self.link, self.info, shard),
                space_folds(shard, self.info.shards),
                SYSTEM,
                directory=self._folder / str(shard),
                url=self.url,
                keep_all=True,
            )
            self._stack.callback(replica.close)
            self.answer(self.names(shard).ask, Server(replica).answer)


@pytest.fixture
def make(servers, tmp_path):
    with ExitStack() as stack:
        yield lambda shards=1: Shard(servers, tmp_path / "node", stack, shards)


@pytest.mark.parametrize("shards", [1, 3])
def test_the_same_program_runs_without_a_replica(make, shards, tmp_path, monkeypatch):
    monkeypatch.setenv("ONEFOLD_CACHE", str(tmp_path / "cache"))
    space = make(shards)
    space.host()
    with of.connect(space.url, replicas="remote", region="eu", timeout=SOON_S) as db:
        m = db.map("m")
        m.put_many({("k", number): number for number in range(50)})
        assert dict(m.scan(prefix="k")) == {("k", number): number for number in range(50)}
        for level in ("strong", "bounded:10s", "session", "prefix", "eventual"):
            assert m.get(("k", 7), consistency=level) == 7
        db.run_transaction(lambda tx: tx.map("m").put("a", tx.map("m")["k", 1]), request_id="once")
        assert m["a"] == 1 and db.outcome("once") == "committed"
        db.queue("q").put("x")
        with db.queue("q").get(timeout=SOON_S) as message:
            assert message.value == "x"
        db.stream("s").append(1)
        assert [record.value for record in db.stream("s").read()] == [1]
        assert not list(tmp_path.glob("cache/*/*/current")), "there is no replica"
        with m.watch(timeout=SOON_S) as changes, of.connect(space.url, timeout=SOON_S) as local:
            local.map("m")["seen"] = True
            assert next(changes).key == "seen"
            assert local.map("m").get("a", consistency="strong") == 1
    assert list(tmp_path.glob("cache/*/*/current"))


def test_a_question_that_gets_no_answer_is_asked_again_of_others(make):
    space = make()
    asked = []
    space.answer(space.names().ask_region("eu"), lambda data: asked.append("near"))
    asking = LinkAsking(space.app, space.names(), "eu")
    with pytest.raises(of.Unavailable):  # nobody but the silent one: the second question finds nobody
        asking(b"x", 5.0, hedge_s=0.05)
    space.answer(space.names().ask, lambda data: asked.append("far") or b"answer to " + data)
    assert asking(b"x", SOON_S, hedge_s=0.05) == b"answer to x"
    assert asked[asked.index("far") - 1] == "near"  # a slow machine may have asked further ones since
    assert LinkAsking(space.app, space.names(), "us")(b"y", SOON_S, hedge_s=SOON_S) == b"answer to y"
    assert asked[-1] == "far", "where no node is in the own region, any other is asked at once"


def test_silence_ends_with_the_time_that_was_given(make):
    space = make()
    asked = threading.Semaphore(0)
    space.answer(space.names().ask, lambda data: asked.release())

    def ask():
        end = time.monotonic() + SOON_S
        while time.monotonic() < end:
            with suppress(of.Unavailable):  # until the servers have told each other who listens
                LinkAsking(space.app, space.names())(b"x", 2.0, hedge_s=0.05)

    with pytest.raises(of.Timeout) as caught:
        ask()
    assert caught.value.definite
    for _ in range(2):
        assert asked.acquire(timeout=SOON_S), "it was asked more than once"


def test_no_node_at_all_is_unavailable_within_the_time(make):
    space = make()
    with of.connect(space.url, replicas="remote", timeout=2.0) as db:
        with pytest.raises(of.Unavailable) as caught:
            db.map("m").get("k")
        assert caught.value.definite
        began = time.monotonic()
        with pytest.raises(of.Unavailable):
            db.map("m").get("k", consistency="eventual")
        assert time.monotonic() - began < SOON_S


@pytest.mark.parametrize("max_payload", [1024 * 1024, 200_000])
def test_answers_fit_into_what_the_servers_take(max_payload, tmp_path, monkeypatch):
    """A node's answers, whatever their size, on servers with NATS's default of 1 MB, and with less."""
    monkeypatch.setattr(server_config, "MAX_PAYLOAD_BYTES", max_payload)
    largest = "x" * (max_payload - 2000)  # as a record it just fits
    with ExitStack() as stack:
        servers = LocalServers.start(tmp_path / "servers", 1)
        stack.callback(servers.stop)
        space = Shard(servers, tmp_path / "node", stack, 1, replicas=1)
        assert space.link.max_payload == max_payload
        identity = Identity("n1", "eu", "")
        ground = ClusterGround(space.link, space.info, identity, tmp_path / "node", JsonLog("n1"))
        stack.callback(ground.close)
        replica = ground.open_replica(0)
        stack.callback(replica.close)
        stack.callback(ground.serve(0, replica).close)
        with of.connect(space.url, replicas="remote", timeout=SOON_S) as db:
            m = db.map("m")
            m.put_many({number: str(number) * (max_payload // 10) for number in range(12)}, atomic=False)
            m["largest"] = largest
            with pytest.raises(of.TooLarge):  # and definitely so
                m["too large"] = "x" * (max_payload - 10)
            found = dict(m.items())
            assert len(found) == 13 and found["largest"] == largest
            assert all(found[number] == str(number) * (max_payload // 10) for number in range(12))
            assert m["largest"] == largest and len(m) == 13
            assert m.get_many([*range(12), "largest"]) == found
