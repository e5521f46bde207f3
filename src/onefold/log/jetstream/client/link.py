"""The process's link to a NATS cluster: one connection, re-established whenever it breaks, for all shards, blobs and questions.

All calls are synchronous and may come from any thread but the loop's; callbacks run on the loop's thread and must not block. What
is sent while there is no connection fails at once and definitely; what was sent when it broke has an unknown outcome. Nothing is
kept to be sent later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any, Final, TypeVar, cast

from onefold import config
from onefold.backoff import Backoff
from onefold.env import SYSTEM, Env
from onefold.errors import OnefoldError, SpaceError, Timeout, Unavailable
from onefold.log.jetstream.client import loop as loops
from onefold.log.jetstream.client.address import Address
from onefold.log.jetstream.client.call import Call
from onefold.log.jetstream.client.connection import Connection, Waiter
from onefold.log.jetstream.client.home import Home, answered, stay
from onefold.log.jetstream.client.message import Msg, header_block, parse_headers
from onefold.log.jetstream.client.pending import Pending
from onefold.log.jetstream.client.shared_links import SharedLinks
from onefold.log.jetstream.client.subscription import RawHandler, Subscription
from onefold.machine import forks
from onefold.machine.undisturbed import in_main_thread

T = TypeVar("T")
_SLACK_S: Final = 5.0
"""How much longer a thread waits for the loop than the question itself may take: only a bug or a starved process needs it."""


class Link:
    """See the module. ``Link.shared`` is the usual way to get one."""

    def __init__(
        self, address: Address, *, name: str = "onefold", env: Env = SYSTEM, inbox_prefix: str | None = None
    ) -> None:
        """Connect. ``inbox_prefix``: instead of the address's.

        Raises Unavailable when no server can be reached, SpaceError when they refuse the credential.
        """
        if inbox_prefix is not None:
            import dataclasses

            address = dataclasses.replace(address, inbox=inbox_prefix)
        self.address = address
        self.env = env
        self._name = name
        self._process = forks.process
        self._loop = loops.loop()
        self._connection: Connection | None = None
        self._known: dict[str, None] = dict.fromkeys(address.servers)
        self._max_payload = 0
        self._subscriptions: set[Subscription] = set()
        self._watchers: list[Callable[[bool], None]] = []
        self._problem: OnefoldError | None = None
        self._suspecting = False
        self._broken: asyncio.Event
        self._adopting: asyncio.Lock
        self._tasks: list[asyncio.Task[None]] = []
        self._home = Home(address.region, env)
        self._closed = False
        self._users = 1
        self._shared = False
        self.run(self._begin, config.CONNECT_TIMEOUT_S)

    # -- sharing

    @classmethod
    def shared(cls, address: Address, *, name: str = "onefold", env: Env = SYSTEM) -> Link:
        """The link of this process to this address; made when there is none. Each caller closes it once."""
        return _shared.get(address, name, env)

    # -- what is known

    @property
    def connected(self) -> bool:
        """Whether there is a connection now."""
        return self._connection is not None

    @property
    def max_payload(self) -> int:
        """The largest message that the servers take, headers included, in bytes (of the last connection)."""
        return self._max_payload

    @property
    def server_name(self) -> str | None:
        """The name of the server that this is connected to."""
        connection = self._connection
        return None if connection is None else connection.server_name

    @property
    def servers(self) -> list[str]:
        """``host:port`` of every server that is configured or announced."""
        return list(self._known)

    def stay_in_region(self) -> None:
        """From here on prefer servers whose names begin with the address's region, and go back to them after a time elsewhere."""
        self.post(self._stay)

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop on whose thread its connection lives."""
        return self._loop

    # -- questions and messages

    def request(
        self, subject: str, payload: bytes, *, headers: Mapping[str, str] | None = None, timeout: float
    ) -> Msg:
        """Ask, and return the first answer.

        Raises Unavailable when nobody took it or there is no connection (definite), or when it broke meanwhile (not definite);
        Timeout (not definite); SpaceError when it is not permitted.
        """
        return self.run(lambda: self.ask(subject, payload, headers=headers, timeout=timeout), timeout)

    def request_many(
        self,
        subject: str,
        payload: bytes,
        *,
        timeout: float,
        is_last: Callable[[Msg], bool],
        headers: Mapping[str, str] | None = None,
    ) -> list[Msg]:
        """Ask, and return the answers up to the one that ``is_last`` (called on the loop's thread). ``timeout``: the longest
        silence, in seconds. Raises as ``request``."""
        self.check_usable()
        return self.run(
            lambda: self.ask_many(subject, payload, timeout=timeout, is_last=is_last, headers=headers), None
        )

    def publish(
        self,
        subject: str,
        payload: bytes,
        *,
        headers: Mapping[str, str] | None = None,
        reply: str | None = None,
    ) -> None:
        """Send, and do not wait. Raises Unavailable when too much waits to be sent or there is no connection (definite); what is
        lost later is not told."""
        self.check_usable()
        block = header_block(headers)
        connection = self.connection()
        if connection.unsent_bytes > config.LINK_PENDING_BYTES_MAX:
            raise Unavailable(f"{connection.server} takes messages too slowly. Try again later")
        with suppress(OnefoldError):  # which what is posted meets too
            if not in_main_thread() and connection.publish_now(
                subject, payload, reply=reply or "", headers=block
            ):
                return
        self.post(_publish, connection, subject, payload, reply or "", block)

    def append(self, subject: str, payload: bytes, headers: Mapping[str, str] | None) -> Pending:
        """Send a message that is answered, and do not wait yet. Never raises for the connection's sake: ``Pending.wait`` does."""
        self.check_usable()
        pending = Pending(self, subject)
        self.question(pending, payload, header_block(headers))
        return pending

    def question(self, waiter: Waiter, payload: bytes, headers: bytes = b"") -> None:
        """Send ``payload`` to ``waiter.subject``. The waiter is called back with the answers, or with why there are none; on the
        loop's thread or this one. A caller that wants no more of them calls ``forget`` of the connection it was ``sent`` on."""
        connection = self._connection
        try:
            if connection is not None and not in_main_thread():
                token = connection.question_now(waiter, payload, headers)
                if token is not None:
                    waiter.sent(connection, token)
                    return
        except OnefoldError as error:
            waiter.fail(error)
            return
        if not self.post(self._send, waiter, payload, headers):
            waiter.fail(Unavailable("this process is ending: nothing is sent any more"))

    def subscribe(
        self, subject: str, callback: Callable[[Msg], None], *, queue: str | None = None
    ) -> Subscription:
        """Have ``callback`` called with each message, over reconnections too, until it is closed.

        Raises SpaceError when it is not permitted. When there is no connection now it begins with the next one.
        """

        def handle(subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
            # Servers pass on any bytes as a subject, also of who asks.
            texts = subject.decode("utf-8", "replace"), reply.decode("utf-8", "replace")
            callback(Msg(*texts, parse_headers(headers), data))

        return self.subscribe_raw(subject, handle, queue=queue)

    def subscribe_raw(self, subject: str, handler: RawHandler, *, queue: str | None = None) -> Subscription:
        """``subscribe`` without parsing: the handler gets subject, reply, payload and header block as bytes."""
        self.check_usable()
        subscription = Subscription(self, subject, handler, queue)
        self.run(lambda: self._listen(subscription), config.ENGINE_REQUEST_TIMEOUT_S)
        return subscription

    def on_change(self, callback: Callable[[bool], None]) -> Callable[[], None]:
        """Have ``callback`` called with True after each connection and False after each break. Returns what ends that."""
        self._watchers.append(callback)

        def end() -> None:
            if callback in self._watchers:
                self._watchers.remove(callback)

        return end

    def close(self) -> None:
        """End it, or one share of it. Every waiter is notified."""
        if self._process != forks.process:
            return
        if self._shared:
            _shared.release(self)
        else:
            self._end()

    # -- for the engine: on the loop's thread

    def run(self, work: Callable[[], Coroutine[Any, Any, T]], timeout: float | None) -> T:
        """Run a coroutine on the loop and wait for it; ``timeout``: what it bounds itself to, in seconds.

        ``work`` makes the coroutine, on the loop's thread: an interrupted caller leaves none that is never awaited.
        """
        self.check_may_wait()
        call = Call(work)
        if not self.post(call.begin):
            raise SpaceError(f"this process is ending: {self.address} is not asked any more")
        try:
            if not call.turn.acquire(timeout=-1 if timeout is None else timeout + _SLACK_S):
                raise Timeout(f"{self.address} gave no answer, and the loop is stuck or starved")
            return cast(T, call.result())
        except asyncio.CancelledError:
            raise Unavailable(f"the link to {self.address} was closed meanwhile", definite=False) from None
        finally:
            if not call.ended:
                self.post(call.cancel)

    def started(self, work: Callable[[], Coroutine[Any, Any, Any]]) -> Call | None:
        """Begin a coroutine as ``run`` does, and do not wait for it. None when the loop has ended."""
        call = Call(work)
        return call if self.post(call.begin) else None

    def post(self, callback: Callable[..., object], *args: object) -> bool:
        """Have something called on the loop's thread. False when the loop has ended, as it does with the process."""
        try:
            self._loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:
            return False
        return True

    async def ask(
        self, subject: str, payload: bytes, *, timeout: float, headers: Mapping[str, str] | None = None
    ) -> Msg:
        """``request`` on the loop's thread."""
        connection = self.connection()
        try:
            return await connection.ask(subject, payload, timeout=timeout, headers=headers)
        except Timeout:
            self.suspect()
            raise

    async def ask_many(
        self,
        subject: str,
        payload: bytes,
        *,
        timeout: float,
        is_last: Callable[[Msg], bool],
        headers: Mapping[str, str] | None = None,
    ) -> list[Msg]:
        """``request_many`` on the loop's thread."""
        connection = self.connection()
        try:
            return await connection.ask_many(
                subject, payload, timeout=timeout, is_last=is_last, headers=headers
            )
        except Timeout:
            self.suspect()
            raise

    async def collect(
        self,
        subject: str,
        payload: bytes,
        each: Callable[[bytes, bytes | None], bool],
        *,
        timeout: float,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """See ``Connection.collect``."""
        connection = self.connection()
        try:
            await connection.collect(subject, payload, each, timeout=timeout, headers=headers)
        except Timeout:
            self.suspect()
            raise

    def connection(self) -> Connection:
        """The present connection. Raises Unavailable (definite) when there is none."""
        connection = self._connection
        if connection is None:
            why = "" if self._problem is None else f": {self._problem}"
            raise Unavailable(
                f"there is no connection to {self.address} now{why}. It is tried for ever; try again"
            )
        return connection

    def suspect(self) -> None:
        """An answer is overdue: see whether the server still answers at all, and leave it when it does not."""
        connection = self._connection
        if connection is not None and not self._suspecting:
            self._suspecting = True
            self._loop.create_task(self._probe(connection))

    def check_usable(self) -> None:
        """Raises SpaceError when it was closed, or opened by the parent of this process."""
        if self._process != forks.process:
            raise forks.opened_before(f"the link to {self.address}", "the space")
        if self._closed:
            raise SpaceError(f"the link to {self.address} is closed. Open it again")

    def check_may_wait(self) -> None:
        """Raises SpaceError as ``check_usable``, and on the loop's thread."""
        self.check_usable()
        if loops.on_loop():
            raise SpaceError("a callback of a NATS connection must not wait for the same connection")

    # -- inside, on the loop's thread

    def _send(self, waiter: Waiter, payload: bytes, headers: bytes) -> None:
        try:
            connection = self.connection()
            waiter.sent(connection, connection.question(waiter, payload, headers))
        except OnefoldError as error:
            waiter.fail(error)

    async def _begin(self) -> None:
        self._broken = asyncio.Event()
        self._adopting = asyncio.Lock()
        await self._connect_once()
        self._tasks.append(self._loop.create_task(self._keep()))

    async def _keep(self) -> None:
        """Connect again whenever the connection broke."""
        backoff = Backoff(config.RECONNECT_WAIT_S, config.RECONNECT_WAIT_S_MAX, self.env)
        while True:
            await self._broken.wait()
            try:
                async with self._adopting:
                    if self._connection is None:  # else it moved meanwhile
                        await self._connect_once()
                backoff.reset()
            except Exception as error:  # whatever it was: nobody else would ever connect again
                self._problem = error if isinstance(error, OnefoldError) else Unavailable(repr(error))
                await asyncio.sleep(backoff.pause_s())

    async def _connect_once(self) -> None:
        """Try all servers, those of its region first. Raises what the most telling one of them said."""
        problem: OnefoldError | None = None
        for server in self._home.attempts(self._known):
            try:
                connection = await self._open(server)
            except SpaceError as error:
                problem = error
                continue
            except OnefoldError as error:
                problem = problem or error
                continue
            if await self._adopt(connection):
                return
        raise problem or Unavailable(f"no server of {self.address} can be reached")

    async def _open(self, server: str) -> Connection:
        return await Connection.open(
            self.address,
            server,
            name=self._name,
            env=self.env,
            timeout=config.CONNECT_SERVER_TIMEOUT_S,
            lost=self._on_lost,
        )

    def _stay(self) -> None:
        """Begin to look for servers of the region whenever it is elsewhere."""
        if not self._closed and self._home.prefer():
            work = stay(self._home, lambda: self._connection, lambda: self._known, self._open, self._move)
            self._tasks.append(self._loop.create_task(work))

    async def _move(self, old: Connection, new: Connection) -> bool:
        """Make ``new`` the connection instead of ``old``. False when that is over, or broke at once."""
        async with self._adopting:
            if self._connection is not old:
                return False
            if await self._adopt(new):
                return True
            old.lose("subscriptions were moved to a connection that broke")  # all begin on the next one
            return False

    async def _adopt(self, connection: Connection) -> bool:
        """Make it the connection, with all subscriptions on it. False when it broke at once."""
        begun: set[Subscription] = set()
        try:
            while left := self._subscriptions - begun:  # others may begin meanwhile
                begun |= left
                for subscription in left:
                    await subscription._begin(connection)
        except (Unavailable, Timeout):
            connection.close()
            return False
        except SpaceError as error:
            self._problem = error  # no longer permitted; the others continue
        if connection.over:  # since the last answer: who lost it was not told, as it was nobody's yet
            connection.close()
            return False
        self._home.note(connection)
        self._known.update(dict.fromkeys(connection.others))
        self._max_payload = connection.max_payload
        connection.left = lambda: self._leave(connection)
        if connection.leaving:  # it said so before
            self._leave(connection)
        self._broken.clear()
        self._connection = connection
        self._problem = None
        self._tell(True)
        return True

    def _leave(self, connection: Connection) -> None:
        """The server is about to stop: go elsewhere once what is under way is answered."""

        async def leave() -> None:
            await answered(connection)
            connection.lose("the server is about to stop")

        self._loop.create_task(leave())

    def _on_lost(self, connection: Connection, why: str) -> None:
        if connection is self._connection:
            self._connection = None
            self._problem = Unavailable(f"the connection to {connection.server} broke ({why})")
            self._broken.set()
            self._tell(False)

    async def _probe(self, connection: Connection) -> None:
        try:
            await connection.ping(config.PING_TIMEOUT_S)
        except OnefoldError as error:
            connection.lose(str(error))
        finally:
            self._suspecting = False

    async def _listen(self, subscription: Subscription) -> None:
        self._subscriptions.add(subscription)
        connection = self._connection
        if connection is None:
            return
        try:
            await subscription._begin(connection)
        except (Unavailable, Timeout):
            connection.lose("it did not take a subscription")
        except BaseException:
            self._subscriptions.discard(subscription)
            raise

    def _tell(self, connected: bool) -> None:
        for watcher in list(self._watchers):
            watcher(connected)

    def _end(self) -> None:
        if not self._closed:
            self._closed = True
            self.post(self._shut)

    def _shut(self) -> None:
        for task in self._tasks:
            task.cancel()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
            self._tell(False)


_shared = SharedLinks(lambda address, name, env: Link(address, name=name, env=env))


def _publish(connection: Connection, subject: str, payload: bytes, reply: str, headers: bytes) -> None:
    try:
        connection.publish(subject, payload, reply=reply, headers=headers)
    except OnefoldError:
        pass  # as lost as if the server had died with it: nobody was promised anything
