"""A node's ground on NATS: logs on its servers, replicas in its folder, questions by request and reply.

The folder of a node is its own: ``replicas/<incarnation>/<shard>/`` (see ``shard.replica.copies``), ``scratch/`` for files on
their way. All of it can be made again from the log and the snapshots.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from onefold import config
from onefold.compute.blobs.places import fetch_base
from onefold.env import SYSTEM, Env
from onefold.errors import OnefoldError, SpaceError, Unavailable
from onefold.fold.api import Fold
from onefold.fold.nodes import state
from onefold.fold.nodes.state import SnapshotAt
from onefold.folds import folds
from onefold.ids import new_id
from onefold.log.jetstream.client.link import Link
from onefold.log.jetstream.client.message import Msg
from onefold.log.jetstream.engine import JetStreamLog
from onefold.log.jetstream.names import NODES_QUEUE, LogNames
from onefold.log.jetstream.spaces import SpaceInfo
from onefold.node.hosting import Closing, Replica
from onefold.node.members.membership import Identity
from onefold.node.snapshots import snapshots
from onefold.node.snapshots.store import Vault
from onefold.node.telemetry.logging import JsonLog
from onefold.shard.remote.asking import LinkAsking
from onefold.shard.remote.request_queue import RequestQueue, WorkerPool
from onefold.shard.remote.server import Exchanging, Server
from onefold.shard.remote.shard import RemoteShard
from onefold.shard.replica.copies import Copies
from onefold.shard.replica.shard import LocalReplica
from onefold.space.log_prefix import LogPrefix

if TYPE_CHECKING:
    import apsw

    from onefold.shard.api import Shard

Folds = Callable[[int, int], Sequence[Fold]]
"""Given a shard and how many there are: its folds."""
Boundary = Callable[[int, int, "apsw.Connection"], None]
"""Given a shard, an offset and a connection that shows the state there."""
_REFOLD_S = 600.0
_REPLY_ROOM_BYTES = 4096
"""What a message of the servers' largest size leaves for all of an answer that is not its body."""


class ClusterGround:
    """See ``hosting.Ground``. Thread-safe."""

    def __init__(
        self,
        link: Link,
        info: SpaceInfo,
        identity: Identity,
        directory: Path,
        log: JsonLog,
        *,
        folds: Folds = folds,
        exchanging: Exchanging | None = None,
        vault: Vault | None = None,
        env: Env = SYSTEM,
    ) -> None:
        """``exchanging``: answers other regions, where these are the logs of a region."""
        self.info = info
        self._folds = folds
        self._exchanging = exchanging
        self.first: Callable[[], Shard | None] = lambda: None
        """This node's replica of shard 0, in which it reads which snapshots there are."""
        self.at_boundary: Boundary | None = None
        """Called in a thread of the replica when it has come to a boundary."""
        self.boundary_missed: Callable[[int, int], None] | None = None
        """Called with a shard and an offset when that comes to nothing; see ``shard.replica.boundaries``."""
        self._link = link
        self._identity = identity
        self._directory = directory / "replicas" / info.incarnation
        self._scratch = directory / "scratch"
        self._log = log
        self._vault = vault
        self._env = env
        self._pool = WorkerPool()

    @property
    def shard_count(self) -> int:
        return self.info.shards

    def open_replica(self, shard: int) -> Replica:
        def at_boundary(offset: int, con: apsw.Connection) -> None:
            if self.at_boundary is not None:
                self.at_boundary(shard, offset, con)

        def missed(offset: int) -> None:
            if self.boundary_missed is not None:
                self.boundary_missed(shard, offset)

        log = JetStreamLog(self._link, self.info, shard, self._env)
        try:
            with self._starting(log, shard) as start:
                return LocalReplica(
                    log,
                    self._folds(shard, self.shard_count),
                    self._env,
                    directory=self._place(shard),
                    url=self._link.address.url,
                    keep_all=True,
                    on_boundary=at_boundary,
                    on_missed=missed,
                    snapshots=start,
                )
        except BaseException:
            log.close()
            raise

    def open_remote(self, shard: int) -> RemoteShard:
        """A shard that is not hosted here: other nodes are asked, those of this region first. Asks nobody yet."""
        log = JetStreamLog(self._link, self.info, shard, self._env)
        asking = LinkAsking(self._link, log.names, self._identity.region)
        return RemoteShard(
            log, asking, self._folds(shard, self.shard_count), self._env, url=self._link.address.url
        )

    def serve(self, shard: int, replica: Replica) -> Closing:
        if not isinstance(replica, LocalReplica):
            raise SpaceError(f"shard {shard} is hosted by a {type(replica).__name__}, which answers nobody")
        room = max(_REPLY_ROOM_BYTES, self._link.max_payload - _REPLY_ROOM_BYTES)
        server = Server(
            replica, reply_bytes=min(config.ASK_REPLY_BYTES_MAX, room), exchanging=self._exchanging
        )
        names = LogNames(self.info.space, self.info.incarnation, shard)
        return _Serving(self._link, names, self._identity.region, server, self._pool, self._log)

    def condemn(self, shard: int, why: str) -> None:
        copies = Copies(self._place(shard), self._env)
        try:
            current = copies.current()
            if current is not None:
                copies.condemn(current, why)
        finally:
            copies.close()

    def remove(self, shard: int) -> None:
        shutil.rmtree(self._place(shard), ignore_errors=True)

    def refold(self, shard_id: int, offset: int) -> str | None:
        """The hash of a shard's state at an offset, folded again in a file aside, from the newest agreed snapshot before it;
        None when neither a snapshot nor the log leads there."""
        aside = self._scratch / f"refold-{shard_id}"
        shutil.rmtree(aside, ignore_errors=True)
        log = JetStreamLog(self._link, self.info, shard_id, self._env)
        try:
            with (
                self._starting(log, shard_id, below=offset) as start,
                self._past(log, shard_id, offset, aside, start) as shard,
            ):
                return shard.state_digest() if shard.reach(offset, _REFOLD_S) else None
        finally:
            log.close()
            shutil.rmtree(aside, ignore_errors=True)

    def fetch_base(self, shard: int) -> Path | None:
        """The snapshot that a restored shard's log continues from, in the scratch directory; the caller removes it. None: there
        is none. Raises BlobsUnavailable, OSError."""
        self._scratch.mkdir(parents=True, exist_ok=True)
        path = self._scratch / f"base-{shard}-{new_id('f', self._env)}"
        if fetch_base(self._link, self.info, shard, path):
            self._log.info("base_fetched", shard=shard, bytes=path.stat().st_size)
            return path
        return None

    def close(self) -> None:
        """Answer what was asked, and end."""
        self._pool.close()

    # -- inside

    def _place(self, shard: int) -> Path:
        return self._directory / str(shard)

    def _past(
        self, log: JetStreamLog, shard: int, offset: int, aside: Path, start: Callable[[], Path | None]
    ) -> LocalReplica:
        if log.wait(offset - 1, _REFOLD_S) < offset:
            raise Unavailable(f"the log of shard {shard} was not delivered up to offset {offset}")
        return LocalReplica(
            LogPrefix(log, offset, self._env),
            self._folds(shard, self.shard_count),
            self._env,
            directory=aside,
            url=self._link.address.url,
            read_only=True,
            snapshots=start,
        )

    @contextmanager
    def _starting(
        self, log: JetStreamLog, shard: int, *, below: int | None = None
    ) -> Iterator[Callable[[], Path | None]]:
        """Gives what finds a file to start from; the files are removed at the end."""
        with ExitStack() as stack:

            def start() -> Path | None:
                path = None
                if self._vault is not None:
                    found = [
                        one for one in self._candidates(log, shard) if below is None or one.offset < below
                    ]
                    path = snapshots.fetch_first(self._vault, found, self._log)
                base = self.info.base_of(shard)
                if path is None and base is not None and (below is None or base.offset < below):
                    path = self.fetch_base(shard)
                if path is not None:
                    stack.callback(_remove, path)
                return path

            yield start

    def _candidates(self, log: JetStreamLog, shard: int) -> list[SnapshotAt]:
        """Snapshots of a shard, newest first. Those of shard 0 are found in its log by a node that has no state of it yet."""
        first = self.first()
        if first is not None:
            try:
                with first.view() as view:
                    return state.snapshots(view, shard)[::-1]
            except OnefoldError:
                pass  # it halted meanwhile
        found = snapshots.in_log(log, shard) if shard == 0 else None
        return [] if found is None else [found]


class _Serving:
    """Answers questions about a shard until it is closed."""

    def __init__(
        self,
        link: Link,
        names: LogNames,
        region: str,
        server: Server,
        pool: WorkerPool,
        log: JsonLog,
    ) -> None:
        self._link = link
        self._log = log
        self._queue = RequestQueue(server, pool, name=f"-{names.shard}")
        self._subscriptions = []
        try:
            for subject in (names.ask, names.ask_region(region)):
                self._subscriptions.append(link.subscribe(subject, self._take, queue=NODES_QUEUE))
        except BaseException:
            self.close()
            raise

    def _take(self, msg: Msg) -> None:
        self._queue.take(msg.data, lambda data: self._reply(msg.reply, data))

    def _reply(self, to: str, data: bytes) -> None:
        try:
            self._link.publish(to, data)
        except Exception as error:  # whatever it was: who asked asks again
            self._log.begins("answer_send_failed", f"{type(error).__name__}: {error}")
        else:
            self._log.ends("answer_send_failed")

    def close(self) -> None:
        """Take no more questions, and refuse those that wait: other nodes have the answer."""
        for subscription in self._subscriptions:
            subscription.close()
        self._queue.close()


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
