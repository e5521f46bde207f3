"""How a program without a replica reaches nodes: questions over the link, to its own region first, hedged."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from onefold import config
from onefold.errors import OnefoldError, SpaceError, Timeout, Unavailable

if TYPE_CHECKING:
    from onefold.log.jetstream.client.link import Link
    from onefold.log.jetstream.names import LogNames


class LinkAsking:
    """See ``onefold.shard.remote.shard.Asking``. Thread-safe."""

    def __init__(self, link: Link, names: LogNames, region: str | None = None) -> None:
        """``region``: its nodes are asked first."""
        self._link = link
        self._anywhere = names.ask
        self._near = names.ask if region is None else names.ask_region(region)

    def __call__(self, request: bytes, timeout: float, *, hedge_s: float) -> bytes:
        return self._link.run(lambda: self._ask(request, timeout, hedge_s), timeout)

    async def _ask(self, request: bytes, timeout: float, hedge_s: float) -> bytes:
        deadline = asyncio.get_running_loop().time() + timeout
        asked: set[asyncio.Task[bytes]] = set()
        problem: OnefoldError | None = None
        tries, pause_s, due = 0, hedge_s, True
        try:
            while True:
                left = deadline - asyncio.get_running_loop().time()
                if left <= 0:
                    raise problem or Timeout(f"no node answered within {timeout:g} s", definite=True)
                if due or tries < config.ASK_HEDGES_MAX + 1:
                    subject = self._near if tries == 0 else self._anywhere
                    asked.add(asyncio.create_task(self._one(subject, request, left)))
                    tries += 1
                    if tries > config.ASK_HEDGES_MAX:
                        # What went into a connection that was cut is lost without an error. So it is asked again, ever rarer.
                        pause_s = max(pause_s, config.ASK_AGAIN_S * 2 ** (tries - config.ASK_HEDGES_MAX - 1))
                done, asked = await asyncio.wait(
                    asked, timeout=min(left, pause_s), return_when=asyncio.FIRST_COMPLETED
                )
                due = not done
                for task in done:
                    error = task.exception()
                    if error is None:
                        return task.result()
                    if not isinstance(error, OnefoldError) or isinstance(error, SpaceError):
                        raise error
                    problem = error
                nobody_near = tries == 1 and self._near != self._anywhere
                if problem is not None and not asked and not nobody_near:
                    raise problem
        finally:
            for task in asked:
                task.cancel()

    async def _one(self, subject: str, request: bytes, timeout: float) -> bytes:
        try:
            answer = await self._link.ask(subject, request, timeout=timeout)
        except Unavailable as error:
            raise Unavailable(f"no node answers for {self._link.address}: {error}", definite=True) from error
        except Timeout as error:
            raise Timeout(
                f"no node answered: {error}", definite=True
            ) from error  # a question changes nothing
        return answer.data
