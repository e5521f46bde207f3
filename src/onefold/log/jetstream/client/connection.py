"""A connection to one server with questions and answers on it. It is used on the loop's thread, but for what says otherwise.

All answers come to one wildcard inbox, so a question costs no subscription: the caller is found by the last word of the
subject. When the connection breaks, everybody who waits is notified at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import ssl
import traceback
from collections.abc import Callable, Mapping
from typing import Final

from nats import errors

from onefold import config
from onefold.env import Env
from onefold.errors import OnefoldError, SpaceError, Timeout, Unavailable
from onefold.log.jetstream.client import loop
from onefold.log.jetstream.client.address import Address
from onefold.log.jetstream.client.message import Msg, header_block, nobody_answers, parse_headers
from onefold.log.jetstream.client.wire import NATS_PY, TlsMissing, Wire, nats_version
from onefold.machine import forks

MSG_BYTES_EXTRA: Final = 512
"""What a message costs beyond subject and payload, roughly, for the bound of what waits to be sent."""


class Waiter:
    """Somebody who waits for answers: ``take`` gets each and says if it was the last, ``fail`` ends it."""

    __slots__ = ()

    def take(self, data: bytes, headers: bytes | None) -> bool:
        """An answer came: its payload and header block. True when no more are wanted."""
        raise NotImplementedError

    def fail(self, error: OnefoldError) -> None:
        """No answer will come."""
        raise NotImplementedError

    def sent(self, connection: Connection, token: str) -> None:
        """The question was sent by a link: what ``Connection.forget`` takes. Possibly called after the answer."""

    subject: str


class Connection:
    """Open with ``Connection.open``; ``close`` it. ``lost`` is called back once when it breaks by itself."""

    def __init__(
        self,
        address: Address,
        server: str,
        inbox: str,
        lost: Callable[[Connection, str], None] | None,
    ) -> None:
        self.address = address
        self.server = server
        self._inbox = f"{inbox}."
        self._lost = lost
        self._waiters: dict[str, Waiter] = {}
        self._refused: dict[str, str] = {}
        self._tokens = itertools.count(1)
        self._wire = Wire(tls_required=address.tls, on_lost=self._broke, on_refused=self._on_refused)
        self.leaving = False
        """Whether the server has said that it is about to stop."""
        self.left: Callable[[], None] | None = None

    @classmethod
    async def open(
        cls,
        address: Address,
        server: str,
        *,
        name: str,
        env: Env,
        timeout: float,
        lost: Callable[[Connection, str], None] | None = None,
    ) -> Connection:
        """Connect to ``server`` (host:port). Raises Unavailable; SpaceError when the server refuses, or is not the right one."""
        inbox = f"{address.inbox}.{env.token(9).hex()}"
        connection = cls(address, server, inbox, lost)
        try:
            async with asyncio.timeout(timeout):
                await connection._connect(name, timeout)
        except BaseException as error:
            connection.close()
            raise _refusal(address, server, error) from None
        forks.track(connection)
        loop.close_at_end(connection)
        return connection

    async def _connect(self, name: str, timeout: float) -> None:
        address = self.address
        # nats-py's connect tries for ever unless told otherwise, and only a positive number tells it.
        await self._wire.connect(
            servers=[f"nats://{self.server}"],
            name=name,
            allow_reconnect=False,
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            connect_timeout=timeout,
            ping_interval=config.PING_INTERVAL_S,
            max_outstanding_pings=1,
            error_cb=_ignore,
            lame_duck_mode_cb=self._on_leaving,
            tls=_tls_context(address),
            user=address.user,
            password=address.password,
            nkeys_seed=address.nkey,
            user_credentials=address.creds,
        )
        self._wire.listen(f"{self._inbox}*", None, self._on_answer)
        await self._wire.ping(timeout)

    # -- what the server says of itself

    @property
    def info(self) -> Mapping[str, object]:
        """The server's INFO."""
        return self._wire._server_info

    @property
    def server_name(self) -> str:
        """The server's name in its cluster."""
        return str(self.info.get("server_name") or self.server)

    @property
    def max_payload(self) -> int:
        """The largest message that the server takes, headers included, in bytes."""
        return self._wire.max_payload

    @property
    def others(self) -> list[str]:
        """``host:port`` of the servers that this one tells of."""
        urls = self.info.get("connect_urls")
        return [str(url) for url in urls] if isinstance(urls, list) else []

    @property
    def unsent_bytes(self) -> int:
        """What waits to be sent."""
        return self._wire.unsent_bytes

    @property
    def open_questions(self) -> int:
        """How many wait for an answer."""
        return len(self._waiters)

    @property
    def over(self) -> bool:
        """Whether it broke or was closed."""
        return self._wire.over

    # -- sending

    def publish(self, subject: str, payload: bytes, *, reply: str = "", headers: bytes = b"") -> None:
        """Send a message. Raises Unavailable (definite: not sent), SpaceError (too large, or no subject)."""
        if self._wire.unsent_bytes > config.LINK_PENDING_BYTES_MAX:
            raise Unavailable(
                f"{self.server} takes messages too slowly: over {config.LINK_PENDING_BYTES_MAX} bytes wait. Try again later"
            )
        self._check(subject, payload, headers)
        try:
            self._wire.send(subject.encode(), reply.encode(), payload, headers)
        except errors.ConnectionClosedError:
            raise Unavailable(f"the connection to {self.server} is over. Try again") from None

    def question(self, waiter: Waiter, payload: bytes, headers: bytes = b"") -> str:
        """Send ``payload`` to ``waiter.subject``; answers go to the waiter. Returns the token for ``forget``."""
        token = str(next(self._tokens))
        self._waiters[token] = waiter
        try:
            self.publish(waiter.subject, payload, reply=self._inbox + token, headers=headers)
        except BaseException:
            self._waiters.pop(token, None)
            raise
        return token

    # -- sending from any thread that no signal interrupts

    def publish_now(self, subject: str, payload: bytes, *, reply: str = "", headers: bytes = b"") -> bool:
        """``publish`` without the loop. False when that is not possible now: nothing was sent. Raises SpaceError (as that)."""
        self._check(subject, payload, headers)
        return self._wire.send_now(subject.encode(), reply.encode(), payload, headers)

    def question_now(self, waiter: Waiter, payload: bytes, headers: bytes = b"") -> str | None:
        """``question`` without the loop. None when that is not possible now: nothing was sent. The waiter is called back on the
        loop's thread, or here when the connection broke meanwhile. Raises SpaceError (too large, or no subject)."""
        token = str(next(self._tokens))
        self._waiters[token] = waiter
        sent = False
        try:
            sent = self.publish_now(waiter.subject, payload, reply=self._inbox + token, headers=headers)
        finally:
            if not sent:
                self._waiters.pop(token, None)
        if not sent:
            return None
        if self.over and self._waiters.pop(token, None) is not None:
            # It broke, and who was waiting may have been listed before this one was.
            waiter.fail(self._broken_off(f"the connection to {self.server} broke"))
        return token

    def forget(self, token: str) -> None:
        """No answer is wanted any more. From any thread."""
        self._waiters.pop(token, None)

    async def ask(
        self, subject: str, payload: bytes, *, timeout: float, headers: Mapping[str, str] | None = None
    ) -> Msg:
        """One answer. Raises Unavailable (nobody took it; definite), Timeout(definite=False), SpaceError (not permitted)."""
        return (await self.ask_many(subject, payload, timeout=timeout, is_last=_first, headers=headers))[0]

    async def ask_many(
        self,
        subject: str,
        payload: bytes,
        *,
        timeout: float,
        is_last: Callable[[Msg], bool],
        headers: Mapping[str, str] | None = None,
    ) -> list[Msg]:
        """All answers up to the last one. ``timeout``: the longest silence, in seconds. Raises as ``ask``."""
        messages: list[Msg] = []

        def each(data: bytes, block: bytes | None) -> bool:
            messages.append(Msg("", "", parse_headers(block), data))
            return is_last(messages[-1])

        await self.collect(subject, payload, each, timeout=timeout, headers=headers)
        return messages

    async def collect(
        self,
        subject: str,
        payload: bytes,
        each: Callable[[bytes, bytes | None], bool],
        *,
        timeout: float,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """``ask_many`` without parsing: ``each`` gets the payload and header block of each and says if it was the last."""
        waiter = _Question(subject, each)
        token = self.question(waiter, payload, header_block(headers))
        try:
            while not waiter.done.done():
                seen = waiter.count
                await asyncio.wait({waiter.done}, timeout=timeout)
                if not waiter.done.done() and waiter.count == seen:
                    raise Timeout(f"{self.server} gave no answer to {subject} in {timeout:g} s")
            waiter.done.result()
        finally:
            self.forget(token)

    async def listen(
        self,
        subject: str,
        handler: Callable[[bytes, bytes, bytes, bytes | None], None],
        queue: str | None = None,
    ) -> int:
        """Subscribe, and be sure of it. Raises SpaceError when it is not permitted, Unavailable, Timeout."""
        try:
            sid = self._wire.listen(subject, queue, handler)
            await self.ping(config.ENGINE_REQUEST_TIMEOUT_S)
        except errors.ConnectionClosedError:
            raise Unavailable(f"the connection to {self.server} is over. Try again") from None
        refusal = self._refused.get(f"subscription to {subject}".lower())
        if refusal is not None:
            self._wire.unlisten(sid)
            raise self._not_permitted(f"subscribe to {subject}")
        return sid

    def unlisten(self, sid: int) -> None:
        """Unsubscribe."""
        self._wire.unlisten(sid)

    async def ping(self, timeout: float) -> None:
        """Raises Timeout(definite=False) when the server does not answer in time, Unavailable when the connection is over."""
        try:
            await self._wire.ping(timeout)
        except TimeoutError:
            raise Timeout(f"{self.server} gave no answer to a ping in {timeout:g} s") from None
        except errors.ConnectionClosedError:
            raise Unavailable(f"the connection to {self.server} is over. Try again") from None

    # -- the end

    def close(self) -> None:
        """End it. Every waiter is notified."""
        self._wire.abort()
        self._fail_all(f"the connection to {self.server} was closed")

    def lose(self, why: str) -> None:
        """End it as one that broke."""
        self._wire._lose(why)

    def drop_after_fork(self) -> None:
        self._wire.drop_after_fork()

    # -- from the wire

    def _broke(self, why: str) -> None:
        try:
            self._fail_all(f"the connection to {self.server} broke ({why})")
        finally:
            if self._lost is not None:
                self._lost(self, why)

    def _fail_all(self, why: str) -> None:
        waiters = self._waiters
        for token in list(waiters):
            waiter = waiters.pop(token, None)  # each is failed once, though a thread may do it too
            if waiter is not None:
                waiter.fail(self._broken_off(why))

    def _broken_off(self, why: str) -> Unavailable:
        return Unavailable(f"{why} before an answer came. Try again", definite=False)

    async def _on_leaving(self) -> None:
        self.leaving = True
        if self.left is not None:
            self.left()

    def _on_answer(self, subject: bytes, _reply: bytes, data: bytes, headers: bytes | None) -> None:
        token = subject[len(self._inbox) :].decode("ascii", "replace")
        waiter = self._waiters.get(token)
        if waiter is None:
            return
        try:
            last = waiter.take(data, headers)
        except Exception as error:  # it must not wait for an answer that has come
            last = True
            waiter.fail(
                SpaceError(f"an answer of {waiter.subject} cannot be handled ({error!r})", definite=False)
            )
        if last:
            self._waiters.pop(token, None)

    def _on_refused(self, text: str) -> None:
        """``… permissions violation for publish to "x"``: in lower case, and without saying which message it was."""
        what = (
            text.partition("permissions violation for ")[2]
            .replace('"', "")
            .strip(" '")
            .partition(" using ")[0]
        )
        self._refused[what] = text
        while len(self._refused) > _REFUSALS_KEPT:
            del self._refused[next(iter(self._refused))]
        if what.startswith("publish to "):
            subject = what.removeprefix("publish to ")
            for token, waiter in list(self._waiters.items()):
                if waiter.subject.lower() == subject and self._waiters.pop(token, None) is not None:
                    waiter.fail(self._not_permitted(f"publish to {waiter.subject}"))

    def _check(self, subject: str, payload: bytes, headers: bytes) -> None:
        if not subject:  # servers cut the connection of who sends that
            raise SpaceError("a message to no subject: who asked left no subject for answers")
        if len(payload) + len(headers) > self.max_payload:
            raise SpaceError(
                f"a message of {len(payload) + len(headers)} bytes to {subject}: {self.server} takes {self.max_payload} "
                "(max_payload)"
            )

    def _not_permitted(self, what: str) -> SpaceError:
        return SpaceError(
            f"the credential for {self.address} may not {what}. Use one that may, or have it permitted"
        )


class _Question(Waiter):
    """A coroutine that waits for answers."""

    __slots__ = ("count", "done", "each", "subject")

    def __init__(self, subject: str, each: Callable[[bytes, bytes | None], bool]) -> None:
        self.subject = subject
        self.each = each
        self.count = 0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def take(self, data: bytes, headers: bytes | None) -> bool:
        if self.count == 0 and not data and nobody_answers(headers):
            self.fail(Unavailable(f"nobody answers at {self.subject} now. Try again"))
            return True
        self.count += 1
        try:
            last = self.each(data, headers)
        except Exception as error:  # of the caller, so it is theirs
            self._end(error)
            return True
        if last:
            self._end(None)
        return last

    def fail(self, error: OnefoldError) -> None:
        self._end(error)

    def _end(self, error: Exception | None) -> None:
        if self.done.done():
            return
        if error is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(error)
            self.done.exception()  # retrieved: its waiter may have given up


_REFUSALS_KEPT: Final = 100


def _first(_msg: Msg) -> bool:
    return True


async def _ignore(error: Exception) -> None:
    """Errors reach the caller; nats-py would log them as well."""


def _tls_context(address: Address) -> ssl.SSLContext | None:
    if not (address.tls or address.ca or address.cert):
        return None
    try:
        context = ssl.create_default_context(cafile=address.ca)
        if address.cert is not None:
            context.load_cert_chain(address.cert, address.key)
    except (OSError, ssl.SSLError) as error:
        raise SpaceError(
            f"the certificates for {address} cannot be used ({type(error).__name__}: {error}). Look at ca=, cert= and key="
        ) from None
    return context


def _refusal(address: Address, server: str, error: BaseException) -> BaseException:
    """What a failed attempt to connect means. Never with what a credential's file holds."""
    if isinstance(error, (OnefoldError, asyncio.CancelledError)):
        return error
    text = str(error).lower()
    if isinstance(error, TlsMissing):
        return SpaceError(f"{server} offers no TLS, and {address} requires it. Nothing was sent to it")
    if isinstance(error, ssl.SSLError):
        return SpaceError(f"{server} cannot be trusted ({error}). Look at ca= in {address}")
    if "authorization violation" in text or "authentication" in text:
        return SpaceError(
            f"wrong credential: {server} refuses it for {address}. Look at the user, nkey or creds file"
        )
    if isinstance(error, (AttributeError, TypeError)) and not _of_nkeys(error):
        return SpaceError(
            f"connecting failed with {type(error).__name__}: {error}. It is a bug, or nats-py {nats_version()} is not one that "
            f"Onefold is made for: {NATS_PY}"
        )
    for kind, path in (("nkey", address.nkey), ("creds", address.creds)):
        if path is None or isinstance(error, (errors.Error, TimeoutError)):
            continue
        with contextlib.suppress(OSError), open(path, "rb"):
            if isinstance(error, OSError):
                continue  # the file is there; it is the server that is not
            return SpaceError(f"the {kind} file {path} holds no usable credential ({type(error).__name__})")
        return SpaceError(f"the {kind} file {path} cannot be read. Give one that is there")
    return Unavailable(f"{server} cannot be reached ({str(error) or type(error).__name__})")


def _of_nkeys(error: BaseException) -> bool:
    """Whether it is about what a credential's file holds: nkeys raises whatever comes of it."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_globals.get("__name__", "").partition(".")[0] == "nkeys" for frame, _ in frames)
