"""What NATS servers say about themselves: a few questions over one short connection, each bounded.

The system user may ask every server by itself; a space's admin only for what its account sees.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from typing import Any, Final, NamedTuple, Self

import msgspec

from onefold import config
from onefold.env import SYSTEM
from onefold.errors import OnefoldError, Unavailable
from onefold.log.jetstream.client import loop
from onefold.log.jetstream.client.address import Address
from onefold.log.jetstream.client.connection import Connection
from onefold.log.jetstream.client.message import Msg

_ANSWER_S: Final = 1.0
_SILENCE_S: Final = 0.3
"""How long after the last answer of several another one is waited for."""


class Meta(NamedTuple):
    """The cluster as one server sees it: its leader's name (None: none known) and how many servers take part."""

    leader: str | None
    servers: int


class ServerStates:
    """A connection to the first server of ``address`` that takes it. Use it as a context manager.

    Questions return None, or nothing, when there is no connection or no answer in time; ``problem`` says why there is none.
    """

    def __init__(self, address: Address) -> None:
        self._address = address
        self._connection: Connection | None = None
        self.problem: OnefoldError | None = None

    def __enter__(self) -> Self:
        self._connection = _run(self._connect())
        return self

    def __exit__(self, *_: object) -> None:
        if self._connection is not None:
            _run(_close(self._connection))

    @property
    def connected(self) -> bool:
        """Whether a server took the connection."""
        return self._connection is not None

    def meta(self) -> Meta | None:
        """How the connected server sees the cluster; a server on its own leads itself."""
        answer = self.ask(f"$SYS.REQ.SERVER.{self._server_id()}.JSZ")
        if answer is None or "data" not in answer:
            return None
        found = answer["data"].get("meta_cluster")
        if found is None:
            return None if answer["data"].get("disabled") else Meta(answer["server"]["name"], 1)
        return Meta(found.get("leader") or None, int(found.get("cluster_size", 0)))

    def accounts(self) -> list[str]:
        """The accounts that the connected server knows."""
        answer = self.ask(f"$SYS.REQ.SERVER.{self._server_id()}.ACCOUNTZ")
        return [] if answer is None else list(answer.get("data", {}).get("accounts", ()))

    def has_streams(self) -> bool:
        """Whether the user's account may have streams."""
        answer = self.ask("$JS.API.INFO")
        return answer is not None and "error" not in answer

    def ask(self, subject: str, body: Mapping[str, object] | None = None) -> dict[str, Any] | None:
        """One question, one answer."""
        if self._connection is None:
            return None
        try:
            work = self._connection.ask(subject, msgspec.json.encode(body or {}), timeout=_ANSWER_S)
            found: dict[str, Any] = msgspec.json.decode(_run(work).data)
        except (OnefoldError, msgspec.DecodeError):
            return None
        return found

    def ask_all(self, what: str, body: Mapping[str, object] | None = None) -> dict[str, dict[str, Any]]:
        """What every server of the cluster says (``VARZ``, ``JSZ``), by its name. Needs the system user."""
        found: dict[str, dict[str, Any]] = {}

        def take(answer: Msg) -> bool:
            try:
                said = msgspec.json.decode(answer.data)
                found[said["server"]["name"]] = said["data"]
            except (msgspec.DecodeError, KeyError, TypeError):
                pass  # an error, or none of ours
            return False  # how many there are is not known; silence ends it

        if self._connection is not None:
            subject, payload = f"$SYS.REQ.SERVER.PING.{what}", msgspec.json.encode(body or {})
            work = self._connection.ask_many(subject, payload, timeout=_SILENCE_S, is_last=take)
            try:
                _run(work)
            except OnefoldError:
                pass  # the silence
        return found

    def _server_id(self) -> str:
        return "" if self._connection is None else str(self._connection.info["server_id"])

    async def _connect(self) -> Connection | None:
        for server in self._address.servers:
            try:
                return await Connection.open(
                    self._address,
                    server,
                    name="onefold-states",
                    env=SYSTEM,
                    timeout=config.CONNECT_SERVER_TIMEOUT_S,
                )
            except OnefoldError as error:
                self.problem = error
        self.problem = self.problem or Unavailable(f"{self._address} names no server")
        return None


async def _close(connection: Connection) -> None:
    connection.close()


def _run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run_coroutine_threadsafe(work, loop.loop()).result()
