"""Links between the sites of a cluster on one machine: routes between servers go through a process that delays them.

Each server tells others to reach it by a port of this process, and names that port in the routes of other sites; within a site
servers reach each other directly. Who has connected says its name first, which begins with its site.

Run by ``Links``; it reads lines: ``listen PORT TARGET SITE`` and ``delay SECONDS`` (one way).
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from onefold.cluster import servers
from onefold.cluster.server_config import ClusterPlan, Secrets, ServerPlan, server_config
from state import free_port

_NAME = re.compile(rb'"server_name":"([^"]+)"')


class Links:
    """Those of the clusters that are started while ``between_sites`` is open."""

    def __init__(self) -> None:
        self._process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, text=True)
        self._ports: dict[int, int] = {}

    def delay(self, ms: float) -> None:
        """So long takes the way there and back between two sites, from now on."""
        self._tell(f"delay {ms / 2000}")

    def config(self, plan: ClusterPlan, server: ServerPlan, folder: Path, secrets: Secrets) -> str:
        """A server's configuration, as ``server_config``."""
        text = server_config(plan, server, folder, secrets)
        if server.region is None:
            return text
        found: dict[str, Any] = json.loads(text)
        cluster = found["cluster"]
        cluster["advertise"] = f"{server.address}:{self._port(server)}"
        others = [other for other in plan.servers if other != server]
        cluster["routes"] = [
            route
            if other.region == server.region
            else route.replace(f":{other.cluster_port}", f":{self._port(other)}")
            for route, other in zip(cluster["routes"], others, strict=True)
        ]
        return json.dumps(found, indent=2)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _port(self, server: ServerPlan) -> int:
        port = self._ports.get(server.cluster_port)
        if port is None:
            port = self._ports[server.cluster_port] = free_port()
            self._tell(f"listen {port} {server.cluster_port} {server.region}")
        return port

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()


@contextmanager
def between_sites() -> Iterator[Links]:
    """Servers that this process configures reach other sites by these links."""
    links = Links()
    servers.server_config = links.config
    try:
        yield links
    finally:
        servers.server_config = server_config
        links.close()


class Proxy:
    """What passes between servers."""

    def __init__(self) -> None:
        self.delay_s = 0.0
        self._listening: list[asyncio.Server] = []

    async def listen(self, port: int, target: int, site: str) -> None:
        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                other_reader, other_writer = await asyncio.open_connection("127.0.0.1", target)
            except OSError:
                writer.close()
                return
            way = Way(self, site)
            await asyncio.gather(
                way.pump(reader, other_writer, from_dialer=True), way.pump(other_reader, writer)
            )

        self._listening.append(await asyncio.start_server(accept, "127.0.0.1", port))


class Way:
    """One connection to a server of a site."""

    def __init__(self, proxy: Proxy, site: str) -> None:
        self._proxy = proxy
        self._site = site
        self._first = b""
        self._from: str | None = None

    def delay_s(self, data: bytes, *, from_dialer: bool) -> float:
        if self._from is None and from_dialer:
            self._first += data
            found = _NAME.search(self._first)
            if found is not None:
                self._from = found[1].decode().rpartition("-")[0] or found[1].decode()
        return self._proxy.delay_s if self._from not in (None, self._site) else 0.0

    async def pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, from_dialer: bool = False
    ) -> None:
        clock = asyncio.get_running_loop().time
        late: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def forward() -> None:
            while True:
                due, data = await late.get()
                if due > clock():
                    await asyncio.sleep(due - clock())
                if not data:
                    break
                writer.write(data)
                await writer.drain()

        sending = asyncio.ensure_future(forward())
        try:
            data = b"-"
            while data and not sending.done():
                data = await reader.read(1 << 16)
                late.put_nowait((clock() + self.delay_s(data, from_dialer=from_dialer), data))
            await sending
        except OSError:
            sending.cancel()
        finally:
            writer.close()


async def _serve() -> None:
    proxy = Proxy()
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while line := (await lines.readline()).decode():
        match line.split():
            case ["listen", port, target, site]:
                await proxy.listen(int(port), int(target), site)
            case ["delay", seconds]:
                proxy.delay_s = float(seconds)


if __name__ == "__main__":
    asyncio.run(_serve())
