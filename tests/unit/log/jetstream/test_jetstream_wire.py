"""What the engine uses of nats-py's inside is there and behaves: a script plays the server, one connection at a time."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Awaitable, Callable

import pytest
from nats.aio.client import Client

from onefold.env import SYSTEM
from onefold.errors import SpaceError, Timeout, Unavailable
from onefold.log.jetstream.client.address import Address
from onefold.log.jetstream.client.connection import Connection

INFO = {
    "server_id": "X",
    "server_name": "s1",
    "version": "2.15.1",
    "proto": 1,
    "headers": True,
    "max_payload": 1000,
    "host": "127.0.0.1",
    "port": 1,
    "connect_urls": ["10.0.0.1:4222", "10.0.0.2:4222"],
}
Script = Callable[["Peer"], Awaitable[None]]


class Peer:
    """The server's end of a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.connect: dict[str, object] = {}
        self.sid = ""
        self.inbox = ""

    def say(self, text: str | bytes) -> None:
        self.writer.write(text.encode() if isinstance(text, str) else text)

    async def hear(self, *, pings: bool = True) -> list[str]:
        """The next line, in words; pings are answered in between."""
        while True:
            line = (await self.reader.readline()).decode()
            if line.startswith("PING") and pings:
                self.say("PONG\r\n")
                continue
            return line.split()

    async def greet(self, info: dict[str, object]) -> None:
        self.say(f"INFO {json.dumps(info)}\r\n")
        words = await self.hear()
        assert words[0] == "CONNECT"
        self.connect = json.loads(" ".join(words[1:]))
        words = await self.hear()
        assert words[0] == "SUB"
        self.inbox, self.sid = words[1], words[2]
        assert await self.hear(pings=False) == ["PING"]
        self.say("PONG\r\n")

    async def published(self) -> tuple[str, str, bytes]:
        """The next message: subject, reply subject, payload."""
        words = await self.hear()
        assert words[0] in ("PUB", "HPUB"), words
        payload = await self.reader.readexactly(int(words[-1]) + 2)
        return words[1], words[2], payload[:-2]

    def answer(self, reply: str, payload: bytes, headers: bytes = b"") -> None:
        sizes = f"{len(headers)} {len(headers) + len(payload)}" if headers else f"{len(payload)}"
        self.say(
            f"{'HMSG' if headers else 'MSG'} {reply} {self.sid} {sizes}\r\n".encode()
            + headers
            + payload
            + b"\r\n"
        )


def play(
    script: Script,
    use: Callable[[Connection], Awaitable[None]],
    info: dict[str, object] | None = None,
    **address: object,
) -> list[str]:
    """Run both ends; returns why the connection was lost, if it was."""
    lost: list[str] = []

    async def run() -> None:
        peers: list[asyncio.Task[None]] = []

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            peers.append(asyncio.current_task())  # type: ignore[arg-type]
            peer = Peer(reader, writer)
            try:
                await peer.greet(INFO if info is None else info)
                await script(peer)
            finally:
                writer.close()

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        try:
            connection = await Connection.open(
                Address(("127.0.0.1:1",), "main", url="nats://h/main", **address),  # type: ignore[arg-type]
                f"127.0.0.1:{port}",
                name="test",
                env=SYSTEM,
                timeout=10,
                lost=lambda _connection, why: lost.append(why),
            )
            try:
                await use(connection)
            finally:
                connection.close()
        finally:
            server.close()
            await asyncio.gather(*peers, return_exceptions=True)

    asyncio.run(asyncio.wait_for(run(), 30))
    return lost


async def silent(peer: Peer) -> None:
    while await peer.hear():
        pass


def test_what_the_server_says_of_itself() -> None:
    async def use(connection: Connection) -> None:
        assert (connection.server_name, connection.max_payload) == ("s1", 1000)
        assert connection.others == ["10.0.0.1:4222", "10.0.0.2:4222"]

    assert play(silent, use) == []


def test_a_question_and_its_answer() -> None:
    async def script(peer: Peer) -> None:
        subject, reply, payload = await peer.published()
        assert (subject, payload) == ("ask.me", b"why")
        peer.answer(reply, b"because", b"NATS/1.0\r\na: b\r\n\r\n")
        await silent(peer)

    async def use(connection: Connection) -> None:
        answer = await connection.ask("ask.me", b"why", timeout=10)
        assert (answer.data, answer.headers) == (b"because", {"a": "b"})
        assert connection.open_questions == 0

    assert play(script, use) == []


def test_nobody_answers() -> None:
    async def script(peer: Peer) -> None:
        _, reply, _ = await peer.published()
        peer.answer(reply, b"", b"NATS/1.0 503\r\n\r\n")
        await silent(peer)

    async def use(connection: Connection) -> None:
        with pytest.raises(Unavailable) as error:
            await connection.ask("ask.me", b"", timeout=10)
        assert error.value.definite

    assert play(script, use) == []


def test_no_answer_in_time_and_one_that_is_late() -> None:
    async def script(peer: Peer) -> None:
        _, first, _ = await peer.published()
        _, second, _ = await peer.published()
        peer.answer(first, b"late")
        peer.answer(second, b"in time")
        await silent(peer)

    async def use(connection: Connection) -> None:
        with pytest.raises(Timeout) as error:
            await connection.ask("ask.me", b"", timeout=0.05)
        assert not error.value.definite
        assert (await connection.ask("ask.me", b"", timeout=10)).data == b"in time"

    assert play(script, use) == []


def test_a_ping_whose_answer_is_late_breaks_nothing() -> None:
    async def script(peer: Peer) -> None:
        assert await peer.hear(pings=False) == ["PING"]
        await peer.hear(pings=False)
        peer.say("PONG\r\nPONG\r\n")
        await silent(peer)

    async def use(connection: Connection) -> None:
        with pytest.raises(Timeout):
            await connection.ping(0.05)
        await connection.ping(10)

    assert play(script, use) == []


def test_whoever_waits_is_told_when_it_breaks() -> None:
    async def script(peer: Peer) -> None:
        await peer.published()

    async def use(connection: Connection) -> None:
        with pytest.raises(Unavailable) as error:
            await connection.ask("ask.me", b"", timeout=10)
        assert not error.value.definite, "it was sent"
        with pytest.raises(Unavailable) as error:
            await connection.ask("ask.me", b"", timeout=10)
        assert error.value.definite, "it was not sent"
        with pytest.raises(Unavailable):
            await connection.ping(10)

    assert len(play(script, use)) == 1


def test_an_error_of_the_server_ends_it() -> None:
    async def script(peer: Peer) -> None:
        peer.say("-ERR 'Maximum Payload Violation'\r\n")
        await silent(peer)

    async def use(connection: Connection) -> None:
        with pytest.raises(Unavailable):
            await connection.ask("ask.me", b"", timeout=10)

    [why] = play(script, use)
    assert "maximum payload violation" in why


def test_what_is_not_permitted_is_told_to_whoever_asked_for_it() -> None:
    async def script(peer: Peer) -> None:
        await peer.published()
        _, other, _ = await peer.published()
        peer.say("-ERR 'Permissions Violation for Publish to \"Ask.Me\"'\r\n")
        peer.answer(other, b"fine")
        words = await peer.hear()
        assert words[:2] == ["SUB", "Not.Mine"]
        peer.say("-ERR 'Permissions Violation for Subscription to \"Not.Mine\"'\r\n")
        await silent(peer)

    async def use(connection: Connection) -> None:
        asked = asyncio.create_task(connection.ask("Ask.Me", b"", timeout=10))
        await asyncio.sleep(0)
        assert (await connection.ask("other", b"", timeout=10)).data == b"fine"
        with pytest.raises(SpaceError, match=r"may not publish to Ask\.Me") as error:
            await asked
        assert error.value.definite
        with pytest.raises(SpaceError, match=r"may not subscribe to Not\.Mine"):
            await connection.listen("Not.Mine", lambda *message: None)

    assert play(script, use) == []


def test_too_large_a_message_is_not_sent() -> None:
    async def use(connection: Connection) -> None:
        with pytest.raises(SpaceError, match="max_payload") as error:
            await connection.ask("ask.me", bytes(1001), timeout=10)
        assert error.value.definite and connection.open_questions == 0

    assert play(silent, use) == []


def test_a_server_without_tls_gets_no_credential() -> None:
    async def use(connection: Connection) -> None:
        raise AssertionError

    async def script(peer: Peer) -> None:
        raise AssertionError("it went on without TLS")

    with pytest.raises(SpaceError, match="no TLS"):
        play(script, use, tls=True, user="ann", password="hunter2")


def test_a_wrong_credential_is_told_without_it() -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(f"INFO {json.dumps(INFO | {'auth_required': True})}\r\n".encode())
        line = await reader.readline()
        assert json.loads(line.removeprefix(b"CONNECT "))["pass"] == "hunter2"
        writer.write(b"-ERR 'Authorization Violation'\r\n")
        await writer.drain()
        writer.close()

    async def run() -> None:
        server = await asyncio.start_server(refuse, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        address = Address(("h:1",), "main", user="ann", password="hunter2", url="nats://h/main")
        with pytest.raises(SpaceError, match="wrong credential") as error:
            await Connection.open(address, f"127.0.0.1:{port}", name="t", env=SYSTEM, timeout=10)
        assert "hunter2" not in str(error.value) and "ann" not in str(error.value)
        server.close()

    asyncio.run(asyncio.wait_for(run(), 30))


@pytest.mark.parametrize("kind", ["nkey", "creds"])
def test_files_of_credentials_that_cannot_be_used(kind: str, tmp_path) -> None:
    async def use(connection: Connection) -> None:
        raise AssertionError

    info = INFO | {"auth_required": True, "nonce": "abc"}
    with pytest.raises(SpaceError, match="cannot be read"):
        play(silent, use, info=info, **{kind: str(tmp_path / "absent")})
    broken = tmp_path / "broken"
    broken.write_text("hunter2hunter2")
    with pytest.raises(SpaceError) as error:
        play(silent, use, info=info, **{kind: str(broken)})
    assert str(broken) in str(error.value) and "hunter2hunter2" not in str(error.value)


def test_nobody_is_there() -> None:
    async def run() -> None:
        server = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        server.close()
        await server.wait_closed()
        with pytest.raises(Unavailable, match="cannot be reached"):
            await Connection.open(
                Address(("h:1",), "main"), f"127.0.0.1:{port}", name="t", env=SYSTEM, timeout=10
            )

    asyncio.run(asyncio.wait_for(run(), 30))


@pytest.mark.parametrize(
    "name", ["_process_msg", "_process_pong", "_process_err", "_process_op_err", "_connect_command"]
)
def test_what_is_overridden_is_there(name: str) -> None:
    assert inspect.isfunction(getattr(Client, name))


def test_attributes_that_are_used_are_there() -> None:
    client = Client()
    for name in (
        "_transport",
        "_pending",
        "_pending_data_size",
        "_sid",
        "_pongs",
        "_pings_outstanding",
        "_status",
    ):
        assert hasattr(client, name), name
    for name in ("_reading_task", "_ping_interval_task", "_flusher_task", "_server_info"):
        assert hasattr(client, name), name
