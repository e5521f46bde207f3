"""What NATS servers say about themselves: a few questions over one short connection, each bounded.

The system user may ask every server by itself; a space's admin only for what its account sees.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import msgspec

_CONNECT_S: Final = 2.0
_ANSWER_S: Final = 1.0


class Meta(NamedTuple):
    """The cluster as one server sees it: its leader's name (None: none known) and how many servers take part."""

    leader: str | None
    servers: int


class ServerStates:
    """A connection to one of ``urls``. Questions return None when there is no connection or no answer in time."""

    def __init__(self, urls: Sequence[str], seed_file: Path, ca_file: str | None = None) -> None:
        self._urls = list(urls)
        self._seed_file = seed_file
        self._tls = None if ca_file is None else ssl.create_default_context(cafile=ca_file)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="onefold-states", daemon=True)
        self._client: Any = None

    def __enter__(self) -> Self:
        self._thread.start()
        self._client = self._run(self._connect())
        return self

    def __exit__(self, *_: object) -> None:
        if self._client is not None:
            self._run(self._client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

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

    def ask(self, subject: str, body: dict[str, Any] | None = None) -> dict[str, Any] | None:
        """One question, one answer."""
        if self._client is None:
            return None
        answer: dict[str, Any] | None = self._run(self._ask(subject, body))
        return answer

    def _server_id(self) -> str:
        return "" if self._client is None else str(self._client._server_info["server_id"])

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _connect(self) -> Any:
        import nats

        async def quiet(_: Exception) -> None:
            return None

        try:
            return await nats.connect(
                self._urls,
                nkeys_seed=str(self._seed_file),
                allow_reconnect=False,
                connect_timeout=_CONNECT_S,
                error_cb=quiet,
                inbox_prefix="_INBOX_admin",
                tls=self._tls,
            )
        except (TimeoutError, OSError, nats.errors.Error):
            return None

    async def _ask(self, subject: str, body: dict[str, Any] | None) -> dict[str, Any] | None:
        import nats

        try:
            answer = await self._client.request(subject, msgspec.json.encode(body or {}), timeout=_ANSWER_S)
            found: dict[str, Any] = msgspec.json.decode(answer.data)
            return found
        except (TimeoutError, OSError, nats.errors.Error, msgspec.DecodeError):
            return None
