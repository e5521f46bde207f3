"""What the engine uses of nats-py's inside is there and behaves: a script plays the server, one connection at a time."""

from __future__ import annotations

import asyncio
import json
import queue
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from onefold.env import SYSTEM
from onefold.errors import OnefoldError, SpaceError, Timeout, Unavailable
from onefold.log.jetstream.client.address import Address
from onefold.log.jetstream.client.connection import Connection, Waiter
from onefold.log.jetstream.client.link import Link
from onefold.log.jetstream.client.message import Msg
from onefold.log.jetstream.client.subscription import RawHandler
from support.wire_peer import INFO, Peer, play, silent


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
        answer = await connection.ask("ask.me", b"why", timeout=60)
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
            await connection.ask("ask.me", b"", timeout=60)
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
        assert (await connection.ask("ask.me", b"", timeout=60)).data == b"in time"

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
        await connection.ping(60)

    assert play(script, use) == []


def test_whoever_waits_is_told_when_it_breaks() -> None:
    async def script(peer: Peer) -> None:
        await peer.published()

    async def use(connection: Connection) -> None:
        with pytest.raises(Unavailable) as error:
            await connection.ask("ask.me", b"", timeout=60)
        assert not error.value.definite, "it was sent"
        with pytest.raises(Unavailable) as error:
            await connection.ask("ask.me", b"", timeout=60)
        assert error.value.definite, "it was not sent"
        with pytest.raises(Unavailable):
            await connection.ping(60)

    assert len(play(script, use)) == 1


def test_an_error_of_the_server_ends_it() -> None:
    async def script(peer: Peer) -> None:
        peer.say("-ERR 'Maximum Payload Violation'\r\n")
        await silent(peer)

    async def use(connection: Connection) -> None:
        with pytest.raises(Unavailable):
            await connection.ask("ask.me", b"", timeout=60)

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
        asked = asyncio.create_task(connection.ask("Ask.Me", b"", timeout=60))
        await asyncio.sleep(0)
        assert (await connection.ask("other", b"", timeout=60)).data == b"fine"
        with pytest.raises(SpaceError, match=r"may not publish to Ask\.Me") as error:
            await asked
        assert error.value.definite
        with pytest.raises(SpaceError, match=r"may not subscribe to Not\.Mine"):
            await connection.listen("Not.Mine", lambda *message: None)

    assert play(script, use) == []


def test_too_large_a_message_is_not_sent() -> None:
    async def use(connection: Connection) -> None:
        with pytest.raises(SpaceError, match="max_payload") as error:
            await connection.ask("ask.me", bytes(1001), timeout=60)
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
            await Connection.open(address, f"127.0.0.1:{port}", name="t", env=SYSTEM, timeout=60)
        assert "hunter2" not in str(error.value) and "ann" not in str(error.value)
        server.close()

    asyncio.run(asyncio.wait_for(run(), 120))


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

    asyncio.run(asyncio.wait_for(run(), 120))


def changed_meanwhile() -> int:
    raise RuntimeError("deque mutated during iteration")


class Kept(Waiter):
    """A question of a thread: what came of it."""

    def __init__(self, subject: str) -> None:
        self.subject = subject
        self.came: queue.SimpleQueue[object] = queue.SimpleQueue()

    def take(self, data: bytes, headers: bytes | None) -> bool:
        self.came.put(data)
        return True

    def fail(self, error: OnefoldError) -> None:
        self.came.put(error)


def ask_from_threads(connection: Connection, threads: int, each: int, size: int) -> int:
    """Ask at once from many threads; how many questions were sent without the loop. Every answer is checked."""

    def ask(thread: int) -> int:
        now = 0
        for n in range(each):
            waiter, payload = Kept("echo"), b"%d-%d-" % (thread, n) + bytes(size)
            if connection.question_now(waiter, payload) is not None:
                now += 1
            else:
                loop.call_soon_threadsafe(connection.question, waiter, payload)
            assert waiter.came.get(timeout=120) == payload
        return now

    loop = connection._wire._loop
    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(ask, range(threads)))


@pytest.mark.parametrize("size", [10, 60_000])
def test_threads_send_without_the_loop_and_nothing_is_mixed_up(size: int) -> None:
    """The large ones do not fit into a socket at once: the loop sends the rest."""

    async def script(peer: Peer) -> None:
        while True:
            _, reply, payload = await peer.published()
            peer.answer(reply, payload)
            await peer.writer.drain()

    async def use(connection: Connection) -> None:
        each = 100 if size < 1000 else 4
        if size > 1000:
            found = connection._wire._socket
            assert found is not None
            found.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
        sent = await asyncio.get_running_loop().run_in_executor(
            None, ask_from_threads, connection, 8, each, size
        )
        assert sent > 0 and connection.open_questions == 0

    play(script, use, info=INFO | {"max_payload": 1 << 20})


@pytest.mark.parametrize("counted", [lambda: 0, changed_meanwhile])
def test_a_thread_does_not_send_into_the_middle_of_what_the_loop_sends(
    monkeypatch: pytest.MonkeyPatch, counted: Callable[[], int]
) -> None:
    """While it sends, the transport has a piece taken out of its buffer, which looks empty to a thread, or changes."""
    heard: list[bytes] = []
    reads = asyncio.Event()

    async def script(peer: Peer) -> None:
        await reads.wait()
        while True:
            words = await peer.hear()
            heard.append((await peer.reader.readexactly(int(words[-1]) + 2))[:-2])

    async def use(connection: Connection) -> None:
        large, count = bytes(10_000), 0
        transport = connection._wire._transport._io_writer.transport  # type: ignore[union-attr]
        while not connection.unsent_bytes:
            connection.publish("large", large)
            count += 1
        unsent = connection.unsent_bytes
        writable, other = socket.socketpair()  # the socket has room again, which the loop has not come to use
        with writable, other, monkeypatch.context() as patched:
            patched.setattr(connection._wire, "_socket", writable)
            patched.setattr(transport, "get_write_buffer_size", counted)
            now = await asyncio.to_thread(connection.publish_now, "small", b"s")
            assert not now, "the rest of the last large one comes first, however little it is"
            assert connection.unsent_bytes in (0, unsent)
        reads.set()
        await connection.ping(20)
        assert connection.unsent_bytes == 0
        assert await asyncio.to_thread(connection.publish_now, "small", b"s")
        await connection.ping(20)
        assert heard == [large] * count + [b"s"]

    assert play(script, use, info=INFO | {"max_payload": 10_000}) == []


def test_a_question_of_a_thread_is_failed_when_the_connection_breaks_meanwhile() -> None:
    """Those who wait were notified before it was among them."""

    async def use(connection: Connection) -> None:
        send, waiter = connection._wire.send_now, Kept("ask.me")

        def broken(*message: bytes) -> bool:
            sent = send(*message)
            waiters, connection._waiters = connection._waiters, {}
            connection.lose("it broke")
            connection._waiters = waiters
            return sent

        connection._wire.send_now = broken  # type: ignore[method-assign]
        assert connection.question_now(waiter, b"x") is not None
        error = waiter.came.get_nowait()
        assert isinstance(error, Unavailable) and not error.definite

    assert play(silent, use) == ["it broke"]


def test_what_cannot_be_understood_ends_the_connection() -> None:
    async def script(peer: Peer) -> None:
        peer.say("HELLO\r\n")
        await silent(peer)

    async def use(connection: Connection) -> None:
        with pytest.raises(Unavailable):
            await connection.ask("ask.me", b"", timeout=60)

    [why] = play(script, use)
    assert "HELLO" in why


def test_a_message_that_cannot_be_handled_is_lost_alone() -> None:
    async def script(peer: Peer) -> None:
        words = await peer.hear()
        for payload in (b"good", b"bad", b"good"):
            peer.say(b"MSG to.all %s 4\r\n%s\r\n" % (words[-1].encode(), payload.ljust(4)))
        _, reply, payload = await peer.published()
        peer.answer(reply, payload)
        _, reply, payload = await peer.published()
        peer.answer(reply, payload)
        await silent(peer)

    class Broken(Kept):
        def take(self, data: bytes, headers: bytes | None) -> bool:
            raise ValueError(data)

    async def use(connection: Connection) -> None:
        seen: list[bytes] = []

        def handle(subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
            if data == b"bad ":
                raise ValueError(data)
            seen.append(data)

        await connection.listen("to.all", handle)
        broken = Broken("ask.me")
        connection.question(broken, b"broken")
        assert (await connection.ask("ask.me", b"fine", timeout=60)).data == b"fine"
        assert seen == [b"good", b"good"]
        error = broken.came.get_nowait()
        assert isinstance(error, SpaceError) and not error.definite and "broken" in str(error)
        assert connection.open_questions == 0

    assert play(script, use) == []


def test_a_subject_of_any_bytes_is_handed_on() -> None:
    class Raw(Link):
        def __init__(self) -> None:
            """Without a connection."""

        def subscribe_raw(self, subject: str, handler: RawHandler, *, queue: str | None = None) -> Any:
            handler(b"ask.\xff", b"\xfe", b"data", None)

    seen: list[Msg] = []
    Raw().subscribe("ask.*", seen.append)
    assert seen == [Msg("ask.\ufffd", "\ufffd", None, b"data")]


def test_an_answer_to_who_left_no_subject_for_it_is_not_sent() -> None:
    """A server ends the connection of who publishes to nothing."""

    async def use(connection: Connection) -> None:
        for publish in (connection.publish, connection.publish_now):
            with pytest.raises(SpaceError, match="no subject"):
                publish("", b"x")

    async def said(peer: Peer) -> None:
        assert await peer.hear() == [], "nothing came"

    assert play(said, use) == []


def test_a_server_that_is_about_to_stop_is_noticed() -> None:
    async def script(peer: Peer) -> None:
        assert (await peer.hear())[0] == "PUB"
        peer.say(f"INFO {json.dumps(INFO | {'ldm': True})}\r\n")
        await silent(peer)

    async def use(connection: Connection) -> None:
        left = asyncio.Event()
        connection.left = left.set
        connection.publish("go", b"")
        async with asyncio.timeout(60):
            await left.wait()
        assert connection.leaving

    assert play(script, use) == []
