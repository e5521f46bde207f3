"""nats-py's client, made to break cleanly and to hand messages on at once. All that knows nats-py's inside is here.

nats-py connects and authenticates. From then on its stream is read and written here. Left out are its reconnecting (what was
buffered before a break would be sent after it, when its sender has long been informed that it is lost) and its queue and task
per subscription (which drop messages). So are its reader (several turns of the loop for each message) and its flusher (another).
``tests/unit/log/jetstream/test_jetstream_wire.py`` fails when a release changes what is used.

Threads may send too, without waking the loop: waking it costs more than sending does. All that is written goes through one lock,
and a thread writes only what the socket takes at once. What it takes in part is continued by the loop before anything else. What
the loop's transport has not sent yet goes before it too: the transport says so by ``pause_writing``. Its buffer does not: the
transport takes a piece out, sends a part of it and puts the rest back, without our lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable
from importlib import metadata
from typing import Any, Final

from nats import errors
from nats.aio import transport as transports
from nats.aio.client import Client

from onefold.errors import SpaceError
from onefold.log.jetstream.client.parser import Malformed, Parser

Handler = Callable[[bytes, bytes, bytes, bytes | None], None]
"""Takes subject, reply, payload and the header block as they came. Must not block."""
_CRLF: Final = b"\r\n"
NATS_PY: Final = "nats-py[nkeys]>=2.16,<2.17"
"""The versions whose inside is as it is used here."""


class TlsMissing(errors.Error):
    """A server without TLS where TLS is required."""


class Wire(Client):
    """One connection to one server. It does not come back when it breaks: ``on_lost`` is called once, and it is over."""

    def __init__(
        self, *, tls_required: bool, on_lost: Callable[[str], None], on_refused: Callable[[str], None]
    ) -> None:
        """``on_lost(why)``; ``on_refused(text)``: a permissions violation, in lower case."""
        super().__init__()
        self._tls_required = tls_required
        self._on_lost = on_lost
        self._on_refused = on_refused
        self._handlers: dict[int, Handler] = {}
        self._over = False
        self._loop: asyncio.AbstractEventLoop
        self._parser = Parser(self._on_message, self._on_line)
        self._renewals: set[asyncio.Task[None]] = set()
        self._writing = threading.Lock()
        """Guards the following and every write. Never taken by a thread that a signal may interrupt, but the loop's."""
        self._socket: socket.socket | None = None
        """A second handle of the socket, for threads: its number is not taken by another file while they use it."""
        self._behind: list[bytes] = []
        """What a thread could not send whole, and what came after it."""
        self._full = False
        """Whether the transport keeps something to be sent. It becomes so under the lock, as only a write makes it so."""
        self._counted_bytes = 0
        """What was unsent when it was counted last."""

    # -- sending

    def send(self, subject: bytes, reply: bytes, payload: bytes, headers: bytes) -> None:
        """Publish now. ``headers``: a header block, or empty. Raises ConnectionClosedError when the connection is over."""
        if self.over:
            raise errors.ConnectionClosedError
        self._write(_publication(subject, reply, payload, headers))

    def send_now(self, subject: bytes, reply: bytes, payload: bytes, headers: bytes) -> bool:
        """``send`` from any thread that no signal interrupts. False when that is not possible now: nothing was sent."""
        if self._socket is None or self.over:
            return False
        data = _publication(subject, reply, payload, headers)
        with self._writing:
            if self._socket is None or self._behind or self._full:
                return False
            try:
                sent = self._socket.send(data)
            except OSError:
                return False  # it takes nothing now, or is broken, which the loop finds out
            if sent < len(data):
                self._behind.append(data[sent:])
        if sent < len(data):
            with contextlib.suppress(RuntimeError):  # the loop has ended, and the connection with it
                self._loop.call_soon_threadsafe(self._write_behind)
        return True

    def listen(self, subject: str, queue: str | None, handler: Handler) -> int:
        """Subscribe; ``ping`` afterwards to be sure that the server knows."""
        if self.over:
            raise errors.ConnectionClosedError
        self._sid += 1
        sid = self._sid
        self._handlers[sid] = handler
        self._write(f"SUB {subject} {queue + ' ' if queue else ''}{sid}\r\n".encode())
        return sid

    def unlisten(self, sid: int) -> None:
        """Unsubscribe."""
        if self._handlers.pop(sid, None) is not None and not self.over:
            self._write(b"UNSUB %d\r\n" % sid)

    async def ping(self, timeout: float) -> None:
        """Wait until the server has seen what was sent so far. Raises TimeoutError, or nats' ConnectionClosedError."""
        if self.over:
            raise errors.ConnectionClosedError
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._pongs.append(answer)
        self._write(b"PING\r\n")
        await asyncio.wait({answer}, timeout=timeout)
        if answer.cancelled():
            raise errors.ConnectionClosedError
        if not answer.done():
            raise TimeoutError(f"no answer to a ping in {timeout:g} s")

    @property
    def over(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._over or not self.is_connected

    @property
    def unsent_bytes(self) -> int:
        """What the socket has not taken yet. From any thread, from which it is near enough."""
        writer = getattr(self._transport, "_io_writer", None)
        if writer is None:
            return 0
        with contextlib.suppress(RuntimeError):  # the loop changes its buffer while a thread counts
            self._counted_bytes = int(writer.transport.get_write_buffer_size()) + self._pending_data_size
        return self._counted_bytes

    def _write(self, data: bytes) -> None:
        assert self._transport is not None
        with self._writing:
            if self._behind:
                self._behind.append(data)
            else:
                self._transport.write(data)

    def _write_behind(self) -> None:
        with self._writing:
            behind, self._behind = self._behind, []
            if behind and not self._over and self._transport is not None:
                self._transport.write(b"".join(behind))

    async def _send_ping(self, future: asyncio.Future[bool] | None = None) -> None:
        """nats-py's, for its periodic pings."""
        self._pongs.append(future or asyncio.get_running_loop().create_future())
        self._write(b"PING\r\n")

    # -- receiving

    def receive(self, data: bytes) -> None:
        """The server sent this."""
        try:
            self._parser.feed(data)
        except Malformed as error:
            self._lose(f"it sent what is not of the protocol: {error}")
        except Exception as error:  # nothing more would be read: those who wait must know
            self._lose(f"handling a message failed: {type(error).__name__}: {error}")

    def _on_message(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> bool:
        handler = self._handlers.get(sid)
        if handler is not None:
            # Anybody may send anything to a subject: a message that cannot be handled is as lost as one on the way, and the
            # others' are not.
            try:
                handler(subject, reply, data, headers)
            except Exception:
                pass
        return not self._over

    def _on_line(self, line: bytes) -> bool:
        word, _, rest = line.partition(b" ")
        match word.upper():
            case b"PING":
                self._write(b"PONG\r\n")
            case b"PONG":
                self._on_pong()
            case b"-ERR":
                self._on_error(rest.decode("utf-8", "replace").strip(" '").lower())
            case b"INFO":
                renewal = asyncio.get_running_loop().create_task(self._process_info(_info(rest)))
                self._renewals.add(renewal)
                renewal.add_done_callback(self._renewals.discard)
            case b"+OK":
                pass
            case _:
                raise Malformed(f"the line {line[:200]!r}")
        return not self._over

    def _on_pong(self) -> None:
        self._pings_outstanding = 0
        if self._pongs:
            answer = self._pongs.pop(0)
            if not answer.done():
                answer.set_result(True)

    def _on_error(self, text: str) -> None:
        if "permissions violation" in text:
            self._on_refused(text)
        else:
            self._lose(f"the server said {text}")

    # -- beginning and end

    async def connect(self, *args: Any, **options: Any) -> None:
        """nats-py's; then the stream is taken from it."""
        await super().connect(*args, **options)
        transport: Any = self._transport
        self._loop = asyncio.get_running_loop()
        stream: Any = transport._io_writer.transport
        reader = transport._io_reader
        here = _current_task()
        for task in (self._reading_task, self._flusher_task):
            if task is not None and task is not here:
                task.cancel()
        arrived = bytes(self._ps.buf) + bytes(reader._buffer)
        reader._buffer.clear()
        self._ps.reset()
        stream.set_protocol(_Stream(self))
        stream.resume_reading()  # its reader may have paused it
        if isinstance(transport._io_writer, asyncio.StreamWriter) and stream is _plain(transport):
            stream.set_write_buffer_limits(high=0)  # so that it says whenever it keeps something
            self._full = stream.get_write_buffer_size() > 0
            self._socket = _second_handle(stream)
        if arrived:
            self.receive(arrived)
        if reader.at_eof():
            self._lose("it was closed by the server")

    def _connect_command(self) -> bytes:
        if self._tls_required and not self._server_info.get("tls_required"):
            raise TlsMissing  # before the credential is sent
        command: bytes = super()._connect_command()
        return command

    async def _process_err(self, err_msg: str) -> None:
        self._on_error(err_msg)

    async def _process_op_err(self, e: Exception) -> None:
        self._lose(str(e) or type(e).__name__)

    def _lose(self, why: str) -> None:
        if not self._over:
            self.abort()
            self._on_lost(why)

    def abort(self) -> None:
        """End it without a word to the server, which may not listen any more. Nothing is called back."""
        self._over = True
        self._status = Client.CLOSED
        here = _current_task()
        for task in (self._reading_task, self._ping_interval_task, self._flusher_task):
            if task is not None and task is not here and not task.done():
                task.cancel()
        for waiting in self._pongs:
            waiting.cancel()
        self._handlers.clear()
        self._close_second_handle()
        writer = getattr(self._transport, "_io_writer", None)
        if writer is not None:
            writer.transport.abort()

    def _close_second_handle(self) -> None:
        with self._writing:
            found, self._socket = self._socket, None
        if found is not None:
            found.close()

    def drop_after_fork(self) -> None:
        """In a forked child: let go of the parent's socket. Its number is kept taken, so nobody else's file gets closed by it."""
        second, self._socket = self._socket, None  # without the lock, which another thread may have had
        if second is not None:
            second.close()
        writer = getattr(self._transport, "_bare_io_writer", None)
        found: Any = None if writer is None else writer.get_extra_info("socket")
        if isinstance(found, socket.socket) or hasattr(found, "fileno"):
            number = found.fileno()
            if number >= 0:
                null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
                os.dup2(null, number, inheritable=False)
                os.close(null)


class _Stream(asyncio.Protocol):
    """What the transport calls back."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def data_received(self, data: bytes) -> None:
        self._wire.receive(data)

    def pause_writing(self) -> None:
        self._wire._full = True

    def resume_writing(self) -> None:
        self._wire._full = False

    def connection_lost(self, exc: Exception | None) -> None:
        self._wire._lose("it was closed by the server" if exc is None else str(exc) or type(exc).__name__)


def _publication(subject: bytes, reply: bytes, payload: bytes, headers: bytes) -> bytes:
    reply = reply + b" " if reply else b""
    if headers:
        sizes = b"%d %d" % (len(headers), len(headers) + len(payload))
        return b"".join([b"HPUB ", subject, b" ", reply, sizes, _CRLF, headers, payload, _CRLF])
    return b"".join([b"PUB ", subject, b" ", reply, b"%d" % len(payload), _CRLF, payload, _CRLF])


def _info(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise Malformed(f"INFO {text[:200]!r}")
    return found


def _plain(transport: Any) -> Any:
    """The transport without TLS."""
    return transport._bare_io_writer.transport


def _second_handle(stream: Any) -> socket.socket | None:
    """Another handle of a transport's socket; None when there cannot be one."""
    try:
        found: socket.socket = stream.get_extra_info("socket").dup()
        found.setblocking(False)
    except (AttributeError, OSError):
        return None
    return found


def _current_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


_METHODS: Final = (
    "connect",
    "is_connected",
    "max_payload",
    "CLOSED",
    "_connect_command",
    "_process_err",
    "_process_info",
    "_process_op_err",
    "_send_ping",
)
_ATTRIBUTES: Final = (
    "_flusher_task",
    "_pending_data_size",
    "_ping_interval_task",
    "_pings_outstanding",
    "_pongs",
    "_ps",
    "_reading_task",
    "_server_info",
    "_sid",
    "_status",
    "_transport",
)


def nats_version() -> str:
    """The version of nats-py that is installed."""
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version("nats-py")
    return "of an unknown version"


def check_names() -> None:
    """Raises SpaceError when nats-py has not the names that are used here: they are not public, and change without notice."""
    client, transport = Client(), getattr(transports, "TcpTransport", object)()
    wanted = {
        "Client": (Client, _METHODS),
        "Client()": (client, _ATTRIBUTES),
        "Client()._ps": (getattr(client, "_ps", None), ("buf", "reset")),
        "TcpTransport()": (transport, ("_bare_io_writer", "_io_reader", "_io_writer", "write")),
    }
    missing = [
        f"{of}.{name}" for of, (what, names) in wanted.items() for name in names if not hasattr(what, name)
    ]
    if missing:
        raise SpaceError(
            f"nats-py {nats_version()} cannot be used: it has no {', '.join(missing)}. Install a version that Onefold is made "
            f"for: {NATS_PY}"
        )


check_names()
