"""A server that says what a test wants."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable

from onefold.env import SYSTEM
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
                timeout=60,
                lost=lambda _connection, why: lost.append(why),
            )
            try:
                await use(connection)
            finally:
                connection.close()
        finally:
            server.close()
            await asyncio.gather(*peers, return_exceptions=True)

    asyncio.run(asyncio.wait_for(run(), 120))
    return lost


async def silent(peer: Peer) -> None:
    while await peer.hear():
        pass
