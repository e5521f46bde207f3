"""nats-py's client, made to break cleanly and to hand messages on at once. All that knows nats-py's inside is here.

nats-py connects, authenticates and parses. Left out are its reconnecting (what was buffered before a break would be sent after
it, when its sender has long been informed that it is lost), its queue and task per subscription (which drop messages), and its
flusher (a turn of the loop for each message). ``tests/unit/log/jetstream/test_jetstream_wire.py`` fails when a release changes
what is used.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from typing import Any, Final

from nats import errors
from nats.aio.client import Client

Handler = Callable[[bytes, bytes, bytes, bytes | None], None]
"""Takes subject, reply, payload and the header block as they came. Must not block."""
_CRLF: Final = b"\r\n"


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

    # -- sending

    def send(self, subject: bytes, reply: bytes, payload: bytes, headers: bytes) -> None:
        """Publish now. ``headers``: a header block, or empty. Raises ConnectionClosedError when the connection is over."""
        if self.over:
            raise errors.ConnectionClosedError
        reply = reply + b" " if reply else b""
        if headers:
            sizes = b"%d %d" % (len(headers), len(headers) + len(payload))
            parts = [b"HPUB ", subject, b" ", reply, sizes, _CRLF, headers, payload, _CRLF]
        else:
            parts = [b"PUB ", subject, b" ", reply, b"%d" % len(payload), _CRLF, payload, _CRLF]
        self._write(b"".join(parts))

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
        """What the socket has not taken yet."""
        writer = getattr(self._transport, "_io_writer", None)
        return (
            0 if writer is None else int(writer.transport.get_write_buffer_size()) + self._pending_data_size
        )

    def _write(self, data: bytes) -> None:
        assert self._transport is not None
        if self._pending:  # behind what nats-py itself has not written yet
            self._pending.append(data)
            self._pending_data_size += len(data)
            return
        self._transport.write(data)

    # -- receiving

    async def _process_msg(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None
    ) -> None:
        handler = self._handlers.get(sid)
        if handler is not None:
            handler(bytes(subject), bytes(reply), data, headers)

    async def _process_pong(self) -> None:
        self._pings_outstanding = 0
        if self._pongs:
            answer = self._pongs.pop(0)
            if not answer.done():
                answer.set_result(True)

    # -- beginning and end

    def _connect_command(self) -> bytes:
        if self._tls_required and not self._server_info.get("tls_required"):
            raise TlsMissing  # before the credential is sent
        command: bytes = super()._connect_command()
        return command

    async def _process_err(self, err_msg: str) -> None:
        if "permissions violation" in err_msg:
            self._on_refused(err_msg)
        else:
            self._lose(f"the server said {err_msg}")

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
        writer = getattr(self._transport, "_io_writer", None)
        if writer is not None:
            writer.transport.abort()

    def drop_after_fork(self) -> None:
        """In a forked child: let go of the parent's socket. Its number is kept taken, so nobody else's file gets closed by it."""
        writer = getattr(self._transport, "_bare_io_writer", None)
        found: Any = None if writer is None else writer.get_extra_info("socket")
        if isinstance(found, socket.socket) or hasattr(found, "fileno"):
            number = found.fileno()
            if number >= 0:
                null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
                os.dup2(null, number, inheritable=False)
                os.close(null)


def _current_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None
