"""Who may do what, as the servers enforce it: every need of a user works, and everything else is refused."""

from __future__ import annotations

import asyncio
import json
import queue
import ssl
import threading
import time
from collections.abc import Coroutine, Iterator
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

import nats
import nats.errors
import pytest

from onefold.cluster.permissions import USERS
from onefold.cluster.servers import LocalServers

I = "i_1"  # noqa: E741 - an incarnation
LOG = f"OF_main_{I}_0"
SUBJECT = f"of.main.{I}.log.0"
TAIL = f"of.main.{I}.tail.0"
ASK = f"of.main.{I}.ask.0"
CONFIG = {
    "name": LOG,
    "subjects": [SUBJECT],
    "storage": "file",
    "num_replicas": 3,
    "retention": "limits",
    "discard": "new",
    "deny_delete": True,
    "allow_direct": True,
    "republish": {"src": SUBJECT, "dest": TAIL},
}


class Refused(Exception):
    """The server said that the user may not."""


class Probe:
    """A plain NATS connection as the user of a URL of ``LocalServers``, outside of Onefold."""

    def __init__(self, url: str, inbox: str = "_INBOX", **options: Any) -> None:
        parts = urlsplit(url)
        query = parse_qs(parts.query)
        self._hosts = [f"{parts.scheme}://{host}" for host in parts.netloc.split(",")]
        if "nkey" in query:
            options.setdefault("nkeys_seed", query["nkey"][0])
        if "ca" in query:
            options.setdefault("tls", ssl.create_default_context(cafile=query["ca"][0]))
        self._options = {"inbox_prefix": inbox, "allow_reconnect": False, **options}
        self._refused: asyncio.Queue[str] = asyncio.Queue()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self._client = self._run(self._connect())
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._client.close())
        self._end()

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(120)

    async def _connect(self) -> Any:
        async def note(error: Exception) -> None:
            if "permissions violation" in str(error).lower():
                self._refused.put_nowait(str(error))

        return await nats.connect(self._hosts, error_cb=note, connect_timeout=30, **self._options)

    async def _settled(self) -> None:
        for _ in range(2):  # the client's first ping may overtake what it has still to send
            await self._client.flush()
        if not self._refused.empty():
            raise Refused(self._refused.get_nowait())

    def publish(self, subject: str, payload: bytes = b"") -> None:
        """Returns when the server has taken it. Raises Refused."""

        async def work() -> None:
            await self._client.publish(subject, payload)
            await self._settled()

        self._run(work())

    def subscribe(self, subject: str, group: str = "") -> queue.Queue[Any]:
        """What arrives. Raises Refused."""
        found: queue.Queue[Any] = queue.Queue()

        async def take(message: Any) -> None:
            found.put(message)

        async def work() -> None:
            await self._client.subscribe(subject, queue=group, cb=take)
            await self._settled()

        self._run(work())
        return found

    def answer(self, subject: str, replies: list[bytes]) -> None:
        """Answer every question on a subject."""

        async def take(message: Any) -> None:
            for reply in replies:
                await self._client.publish(message.reply, reply)

        async def work() -> None:
            await self._client.subscribe(subject, queue="nodes", cb=take)
            await self._settled()

        self._run(work())

    def request(self, subject: str, payload: bytes = b"", headers: dict[str, str] | None = None) -> Any:
        """The answer. Raises Refused as soon as the server says so."""

        async def work() -> Any:
            answer = asyncio.ensure_future(
                self._client.request(subject, payload, timeout=60, headers=headers)
            )
            refused = asyncio.ensure_future(self._refused.get())
            await asyncio.wait([answer, refused], return_when=asyncio.FIRST_COMPLETED)
            if refused.done():
                answer.cancel()
                raise Refused(refused.result())
            refused.cancel()
            return await answer

        return self._run(work())

    def request_known(self, subject: str, payload: bytes) -> Any:
        """The answer of somebody of whom this client's server may still have to hear from the other's."""
        end = time.monotonic() + 120
        while True:
            try:
                return self.request(subject, payload)
            except nats.errors.NoRespondersError:
                assert time.monotonic() < end
                time.sleep(0.01)

    def api(self, name: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """JetStream's answer to a question."""
        payload = b"" if body is None else json.dumps(body).encode()
        found: dict[str, Any] = json.loads(self.request(f"$JS.API.{name}", payload).data)
        return found


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServers]:
    found = LocalServers.start(tmp_path_factory.mktemp("cluster"), 3, spaces=["main", "other"])
    try:
        with Probe(found.url("main", "admin"), "_INBOX_admin") as admin:
            assert "error" not in admin.api(f"STREAM.CREATE.{LOG}", CONFIG)
        yield found
    finally:
        found.stop()


@pytest.fixture(params=USERS)
def user(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def probe(servers: LocalServers, user: str, space: str = "main") -> Probe:
    return Probe(servers.url(space, user), f"_INBOX_{user}")


# -- what everybody needs


def test_every_user_appends_and_reads_the_log(servers: LocalServers, user: str) -> None:
    with probe(servers, user) as client:
        tail = client.subscribe(TAIL)
        answer = json.loads(client.request(SUBJECT, user.encode(), {"Nats-Expected-Stream": LOG}).data)
        assert answer["stream"] == LOG
        delivered = tail.get(timeout=60)
        assert delivered.data == user.encode() and delivered.headers["Nats-Sequence"] == str(answer["seq"])
        got = client.request(f"$JS.API.DIRECT.GET.{LOG}", json.dumps({"seq": answer["seq"]}).encode())
        assert got.data == user.encode()
        last = client.request(f"$JS.API.DIRECT.GET.{LOG}", json.dumps({"last_by_subj": SUBJECT}).encode())
        assert last.data == user.encode()
        assert client.request(f"$JS.API.DIRECT.GET.{LOG}.{SUBJECT}").data == user.encode()
        assert "message" in client.api(f"STREAM.MSG.GET.{LOG}", {"seq": answer["seq"]})
        assert client.api(f"STREAM.INFO.{LOG}")["config"]["num_replicas"] == 3


def test_nodes_answer_what_programs_ask(servers: LocalServers) -> None:
    with probe(servers, "node") as node, probe(servers, "app") as app:
        for subject in (ASK, f"{ASK}.dc1", f"of.main.{I}.node.n1"):
            node.answer(subject, [b"answer"])
            assert app.request_known(subject, b"question").data == b"answer"


def test_an_answer_may_have_many_pages(servers: LocalServers) -> None:
    with probe(servers, "node") as node, probe(servers, "app") as app:
        pages = [b"page %d" % number for number in range(300)]
        node.answer(f"of.main.{I}.ask.1", pages)
        app.request_known(f"of.main.{I}.ask.1", b"are you there?")
        got = app.subscribe("_INBOX_app.pages")
        app._run(app._client.publish(f"of.main.{I}.ask.1", b"question", reply="_INBOX_app.pages"))
        assert [got.get(timeout=60).data for _ in pages] == pages


def test_a_node_trims(servers: LocalServers) -> None:
    with probe(servers, "node") as node:
        for _ in range(5):
            last = json.loads(node.request(SUBJECT, b"x").data)["seq"]
        assert node.api(f"STREAM.PURGE.{LOG}", {"seq": last})["success"]
        assert node.api(f"STREAM.INFO.{LOG}")["state"]["first_seq"] == last


def test_the_admin_makes_and_deletes(servers: LocalServers) -> None:
    made = f"OF_main_{I}_9"
    with probe(servers, "admin") as admin:
        config = CONFIG | {"name": made, "subjects": [f"of.main.{I}.log.9"], "republish": None}
        assert "error" not in admin.api(f"STREAM.CREATE.{made}", config)
        assert made in admin.api("STREAM.NAMES")["streams"]
        assert admin.api(f"STREAM.DELETE.{made}")["success"]


# -- what is refused


def publishing_is_refused(client: Probe, subjects: list[str]) -> None:
    for subject in subjects:
        with pytest.raises(Refused, match=r"[Pp]ublish"):
            client.publish(subject)


def subscribing_is_refused(client: Probe, subjects: list[str]) -> None:
    for subject in subjects:
        with pytest.raises(Refused, match=r"[Ss]ubscription"):
            client.subscribe(subject)


def test_programs_make_trim_and_delete_nothing(servers: LocalServers) -> None:
    with probe(servers, "app") as app:
        publishing_is_refused(
            app,
            [
                f"$JS.API.STREAM.CREATE.{LOG}",
                f"$JS.API.STREAM.UPDATE.{LOG}",
                f"$JS.API.STREAM.DELETE.{LOG}",
                f"$JS.API.STREAM.PURGE.{LOG}",
                f"$JS.API.STREAM.MSG.DELETE.{LOG}",
                f"$JS.API.STREAM.SNAPSHOT.{LOG}",
                f"$JS.API.STREAM.RESTORE.{LOG}",
                f"$JS.API.STREAM.LEADER.STEPDOWN.{LOG}",
                f"$JS.API.STREAM.PEER.REMOVE.{LOG}",
                f"$JS.API.CONSUMER.CREATE.{LOG}",
                f"$JS.API.CONSUMER.CREATE.{LOG}.c",
                "$JS.API.META.LEADER.STEPDOWN",
                "of.main.space",
            ],
        )
        assert app.api(f"STREAM.INFO.{LOG}")["state"]["messages"] > 0


def test_nodes_make_and_delete_nothing(servers: LocalServers) -> None:
    with probe(servers, "node") as node:
        publishing_is_refused(
            node,
            [
                f"$JS.API.STREAM.CREATE.{LOG}",
                f"$JS.API.STREAM.UPDATE.{LOG}",
                f"$JS.API.STREAM.DELETE.{LOG}",
                f"$JS.API.STREAM.MSG.DELETE.{LOG}",
                f"$JS.API.STREAM.PEER.REMOVE.{LOG}",
                "$JS.API.STREAM.LEADER.STEPDOWN.OF_main",
                "$JS.API.META.LEADER.STEPDOWN",
                "$JS.API.STREAM.PURGE.OF_main",
                "of.main.space",
                "_INBOX_app.forged",
            ],
        )


def test_nobody_forges_what_the_servers_deliver(servers: LocalServers, user: str) -> None:
    with probe(servers, user) as client:
        publishing_is_refused(client, [TAIL, "_INBOX_app.x", "_INBOX_node.x", "_INBOX_admin.x", "anything"])


def test_nobody_hears_what_is_for_others(servers: LocalServers, user: str) -> None:
    with probe(servers, user) as client:
        others = [f"_INBOX_{other}.>" for other in USERS if other != user]
        subscribing_is_refused(
            client, [*others, "_INBOX.>", ">", "of.>", SUBJECT, "$JS.>", "$SYS.>", "$JS.API.>"]
        )


def test_only_nodes_answer(servers: LocalServers) -> None:
    for user in ("app", "admin"):
        with probe(servers, user) as client:
            subscribing_is_refused(client, [ASK, f"of.main.{I}.ask.>", f"of.main.{I}.node.n1"])


def test_no_user_reaches_another_space(servers: LocalServers, user: str) -> None:
    with probe(servers, user, "other") as client:
        publishing_is_refused(client, [SUBJECT, ASK, "of.main.space", "$O.of_main_blobs.C.x"])
        subscribing_is_refused(client, [TAIL])
        with pytest.raises(nats.errors.NoRespondersError):
            client.request(f"$JS.API.DIRECT.GET.{LOG}", b'{"seq":1}')
        assert client.api(f"STREAM.INFO.{LOG}")["error"]["code"] == 404


# -- who gets in


def test_without_a_credential_nobody_gets_in(servers: LocalServers) -> None:
    url = servers.url("main").partition("?")[0]
    with pytest.raises(nats.errors.Error, match=r"[Aa]uthorization"), Probe(url):
        pass


def test_a_seed_of_nobody_does_not_get_in(servers: LocalServers) -> None:
    import nkeys

    seed = nkeys.encode_seed(bytes(range(32)), prefix=nkeys.PREFIX_BYTE_USER).decode()
    url = servers.url("main").partition("?")[0]
    with pytest.raises(nats.errors.Error, match=r"[Aa]uthorization"), Probe(url, nkeys_seed_str=seed):
        pass


def test_the_route_port_takes_no_stranger(servers: LocalServers) -> None:
    import socket

    with socket.create_connection(("127.0.0.1", servers.servers[0].cluster_port), timeout=60) as route:
        lines = route.makefile("rwb")
        assert lines.readline().startswith(b"INFO")
        lines.write(b'CONNECT {"verbose":false,"user":"route","pass":"wrong","name":"x"}\r\nPING\r\n')
        lines.flush()
        said = lines.read().decode()  # until the server hangs up
    assert "Authorization Violation" in said and "PONG" not in said


def test_with_certificates(tmp_path_factory: pytest.TempPathFactory) -> None:
    servers = LocalServers.start(tmp_path_factory.mktemp("tls"), 3, tls=True, spaces=["main"])
    try:
        url = servers.url("main")
        assert url.startswith("tls://") and "ca=" in url
        with Probe(url, "_INBOX_app") as app:
            assert app.api(f"STREAM.INFO.{LOG}")["error"]["code"] == 404
        with pytest.raises(ssl.SSLCertVerificationError), Probe(url, tls=ssl.create_default_context()):
            pass  # an authority that did not sign
        keys = servers.directory / "keys" / "tls"
        assert {path.name for path in keys.iterdir()} == {"ca.pem", "server.pem", "server.key"}
        assert (keys / "server.key").stat().st_mode & 0o777 == 0o600
        log = (servers.servers[0].dir / "server.log").read_text()
        assert "TLS required for client connections" in log
    finally:
        servers.stop()
