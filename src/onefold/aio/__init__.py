"""The asynchronous API: the same names as the synchronous one, over the same core.

>>> import asyncio
>>> import onefold as of
>>> async def main() -> int:
...     async with of.aio.connect("memory://") as db:
...         hits = db.map("hits")
...         await hits.put("home", 1)
...         async with db.transaction() as tx:
...             inside = tx.map("hits")
...             await inside.put("home", await inside.get("home") + 1)
...         return await hits.get("home")
>>> asyncio.run(main())
2

``db.map()`` and its like are not awaited, their methods are. There is no ``m[key]``, since it could not wait. Scans, watches and
streams are read with ``async for``; transactions, messages and locks are ``async with`` blocks. A connection and its handles
belong to the event loop in which they were opened. Cancelling a wait changes nothing that the program was not given; a write
that was waited for has happened or not, never half.

May import everything but ``cli`` and ``testing``.
"""

from __future__ import annotations

from onefold.aio.available_maps import AsyncAvailableMap
from onefold.aio.counters import AsyncCounters
from onefold.aio.database import AsyncDatabase, connect
from onefold.aio.jobs import AsyncRun, AsyncTable
from onefold.aio.maps import AsyncMap
from onefold.aio.queues import AsyncLock, AsyncQueue
from onefold.aio.sets import AsyncSets
from onefold.aio.streams import AsyncConsumer, AsyncStream
from onefold.aio.transactions import AsyncTransaction, AsyncTxMap

__all__ = [
    "AsyncAvailableMap",
    "AsyncConsumer",
    "AsyncCounters",
    "AsyncDatabase",
    "AsyncLock",
    "AsyncMap",
    "AsyncQueue",
    "AsyncRun",
    "AsyncSets",
    "AsyncStream",
    "AsyncTable",
    "AsyncTransaction",
    "AsyncTxMap",
    "connect",
]
