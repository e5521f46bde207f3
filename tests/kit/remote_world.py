"""Programs without a replica, and nodes that answer them, in one process: for tests of everything that goes over questions.

The nodes are replicas of logs in memory; a question is a call. What can happen to it on the way is chosen by the test: lost,
late, asked twice, answered by a replica that is behind.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from onefold.db import Database
from onefold.env import SYSTEM, Env
from onefold.errors import OnefoldError, Timeout, Unavailable
from onefold.fold.api import Fold
from onefold.folds import folds as space_folds
from onefold.log.memory import HeldBack, MemoryLog
from onefold.shard.memory import MemoryShard
from onefold.shard.remote import protocol
from onefold.shard.remote.server import Server
from onefold.shard.remote.shard import RemoteShard
from onefold.state.core.client import StateClient
from onefold.state.core.consistency import Consistency, parse_level

Folds = Callable[[int, int], Sequence[Fold]]


@dataclass(frozen=True)
class Way:
    """Chances, from 0 to 1, of what happens to a question."""

    lost: float = 0.0
    """It does not arrive."""
    lost_reply: float = 0.0
    """It is answered, and the answer does not arrive."""
    twice: float = 0.0
    """It arrives twice."""
    nobody: float = 0.0
    """Nobody is there to answer."""


class RemoteWorld:
    """Logs, nodes that each have a replica of all of them, and programs that ask."""

    def __init__(
        self,
        *,
        shards: int = 1,
        nodes: int = 2,
        seed: int = 0,
        env: Env = SYSTEM,
        folds: Folds = space_folds,
        reply_bytes: int | None = None,
        log: Callable[[int], MemoryLog] | None = None,
        pause: Callable[[float], None] | None = None,
        early: bool = False,
    ) -> None:
        """``early``: programs ask what becomes of a record while they append it. ``reply_bytes``: of an answer; few, so that
        everything comes in pieces. ``log``: makes a shard's; ``pause``: see ``ReplicatedShard``."""
        self.env = env
        self.shards = shards
        self.early = early
        self.way = Way()
        self.asked: Counter[str] = Counter()
        """How many questions of each kind were asked."""
        self.lock = threading.Lock()
        self._random = random.Random(seed)
        self._folds = folds
        self._pause = pause
        made = log or (lambda shard_id: MemoryLog(seed=seed * shards + shard_id, env=env))
        self.logs = [made(shard_id) for shard_id in range(shards)]
        self.delivered: list[list[Delivered]] = []
        """For each node, each shard's log as it is delivered to it."""
        self.replicas: list[list[MemoryShard]] = []
        self.servers: list[list[Server]] = []
        for _ in range(nodes):
            logs = [Delivered(log) for log in self.logs]
            all_shards = [
                MemoryShard(log, folds(shard_id, shards), env, replica=True, url="memory://node", pause=pause)
                for shard_id, log in enumerate(logs)
            ]
            options: dict[str, Any] = {} if reply_bytes is None else {"reply_bytes": reply_bytes}
            self.delivered.append(logs)
            self.replicas.append(all_shards)
            self.servers.append([Server(shard, **options) for shard in all_shards])

    def open_shards(self, **options: Any) -> list[RemoteShard]:
        """The shards as a program sees them that has no replica."""
        return [
            RemoteShard(
                Delivered(log),
                AskingEarly(self, shard, self.asking(shard)) if self.early else self.asking(shard),
                self._folds(shard, self.shards),
                self.env,
                url="memory://remote",
                pause=self._pause,
                **options,
            )
            for shard, log in enumerate(self.logs)
        ]

    def connect(self, *, consistency: Consistency = "strong", **options: Any) -> Database:
        """What ``onefold.connect`` would give a program."""
        return Database(self.open_shards(), level=parse_level(consistency), **options)

    def client(self, **options: Any) -> StateClient:
        """The core of that."""
        return StateClient(self.open_shards(), **options)

    def asking(self, shard: int) -> Callable[..., bytes]:
        """Asks any node about the shard. A question that is lost costs no time, and a node that cannot answer yet is left for
        another one when a real asker would ask that as well."""

        def ask(request: bytes, timeout: float, *, hedge_s: float) -> bytes:
            question = protocol.decode_ask(request)
            request = protocol.encode(msgspec.structs.replace(question, wait_s=min(question.wait_s, hedge_s)))
            with self.lock:
                lost, lost_reply, twice, nobody = (self._random.random() for _ in range(4))
                node = self._random.randrange(len(self.servers)) if self.servers else None
                self.asked[type(question.what).__name__] += 1
                way = self.way
            if node is None or nobody < way.nobody:
                raise Unavailable("no node is there")
            if lost < way.lost:
                raise Timeout("the question was lost")
            server = self.servers[node][shard]
            reply = server.answer(request)
            if twice < way.twice:
                reply = server.answer(request)
            if lost_reply < way.lost_reply:
                raise Timeout("the reply was lost")
            return reply

        return ask

    def close(self) -> None:
        """Release the nodes."""
        for all_shards in self.replicas:
            for shard in all_shards:
                shard.close()


class AskingEarly:
    """A way of asking with which the outcome of a record can be asked for while it is appended."""

    def __init__(self, world: RemoteWorld, shard: int, ask: Callable[..., bytes]) -> None:
        self._world, self._shard, self._ask = world, shard, ask

    def __call__(self, request: bytes, timeout: float, *, hedge_s: float) -> bytes:
        return self._ask(request, timeout, hedge_s=hedge_s)

    def begin(self, request: bytes) -> EarlyQuestion:
        return EarlyQuestion(self._ask, request)


class EarlyQuestion:
    """Answered when it is waited for: by then the record is in the log."""

    def __init__(self, ask: Callable[..., bytes], request: bytes) -> None:
        self._ask, self._request, self.closed = ask, request, False

    def wait(self, timeout: float) -> bytes | OnefoldError | None:
        assert not self.closed
        try:
            return self._ask(self._request, timeout, hedge_s=timeout)
        except Timeout:
            return None
        except OnefoldError as error:
            return error

    def close(self) -> None:
        self.closed = True


class Delivered(HeldBack):
    """The log for one of several that use it: closing it leaves it open for the others."""

    def __init__(self, log: MemoryLog) -> None:
        super().__init__(log, 0)
        self.go_on()

    def hold(self, upto: int | None = None) -> None:
        """Show nothing beyond that offset (default: beyond what is there) until ``go_on``."""
        self.go_on(self._log.last if upto is None else upto)

    def wait(self, after: int, timeout: float | None) -> int:
        return self._log.wait(after, timeout) if self._upto is None else super().wait(after, timeout)
