"""Which replicas a node hosts: opening those that it is to have, and dropping others once they are ready elsewhere.

``plan`` is pure: from what the nodes fold says, everybody finds what it has to do. ``Hosting`` does it: a replica is opened,
brought up to date, and only then answers; a new copy is ready before an old one is dropped.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol

from onefold import config
from onefold.backoff import Backoff
from onefold.errors import LogCorrupt, OnefoldError, SpaceError, Unavailable
from onefold.fold.nodes.state import Node
from onefold.log.api import Log
from onefold.node.members.placement import Candidate, Placement, place
from onefold.node.telemetry.logging import JsonLog
from onefold.node.telemetry.tracing import Tracing
from onefold.shard.api import Shard

_RETRY_S = 1.0
_RETRY_S_MAX = 15.0
_BARRIER_S = 10.0
_LOOK_S = 1.0
_STALLED_S = 30.0


class Replica(Shard, Protocol):
    """A space that a node hosts: a persistent replica of one shard."""

    @property
    def log(self) -> Log:
        """The log itself, for reading."""
        ...

    @property
    def halted(self) -> OnefoldError | None:
        """Why it serves nothing any more; None while it does."""
        ...

    @property
    def history(self) -> frozenset[str]:
        """Names of the tables whose history counts as state."""
        ...

    def digests(self) -> Mapping[int, bytes]:
        """The log's digests at multiples of ``config.DIGEST_EVERY_OFFSETS``, by offset."""
        ...

    def trim(self, before: int) -> None:
        """Record that the records below ``before`` are forgotten, and forget them."""
        ...

    def raise_fold_version(self, version: int) -> None:
        """From here on folds apply by ``version``."""
        ...


class Closing(Protocol):
    """Something to close."""

    def close(self) -> None: ...


class Ground(Protocol):
    """What a node stands on: the logs of the space and the ways to be asked."""

    @property
    def shard_count(self) -> int:
        """How many shards the space has."""
        ...

    def open_replica(self, shard: int) -> Replica:
        """Open this node's replica of a shard, from its store, a snapshot or the log. May take long. Raises OnefoldError."""
        ...

    def serve(self, shard: int, replica: Replica) -> Closing:
        """Answer what others ask about the shard, until it is closed."""
        ...

    def condemn(self, shard: int, why: str) -> None:
        """What is stored of a replica is wrong: the next one is recreated."""
        ...

    def remove(self, shard: int) -> None:
        """Delete what is stored of a replica that was closed and is not hosted any more."""
        ...


# -- what is to be done


class Plan(NamedTuple):
    """What a node has to change."""

    open: frozenset[int]
    drop: frozenset[int]


def placement_of(shards: int, nodes: Iterable[Node], copies: int = config.REPLICA_COPIES) -> Placement:
    """Where the shards belong: on the members that do not leave; on the leaving ones only when there are no others."""
    members = [node for node in nodes if node.member]
    staying = [node for node in members if not node.draining] or members
    return place(
        shards, (Candidate(node.name, node.state.region, node.state.zone) for node in staying), copies
    )


def plan(name: str, placement: Placement, nodes: Iterable[Node], hosted: Set[int]) -> Plan:
    """What node ``name`` has to open and may drop, when it hosts (or is opening) ``hosted``.

    Every node has shard 0, in which the nodes are. Another shard is dropped when all nodes where it belongs answer for it.
    """
    wanted = {0} | {shard for shard, names in placement.items() if name in names}
    answering = {node.name: node.shards for node in nodes if node.member}
    drop = {
        shard
        for shard in hosted - wanted
        if placement.get(shard) and all(shard in answering.get(one, ()) for one in placement[shard])
    }
    return Plan(frozenset(wanted - hosted), frozenset(drop))


def handed_over(name: str, placement: Placement, nodes: Iterable[Node], hosted: Set[int]) -> bool:
    """Whether others answer for all that this leaving node hosts, as far as there are others."""
    others = [node for node in nodes if node.member and node.name != name]
    if all(node.draining for node in others):
        return True
    answering = {node.name: node.shards for node in others}
    return all(
        all(shard in answering.get(one, ()) for one in placement.get(shard, ()) if one != name)
        for shard in hosted
    )


# -- doing it


class _Hosted:
    """A replica on its way, or answering."""

    def __init__(self) -> None:
        self.replica: Replica | None = None
        self.serving: Closing | None = None
        self.unwanted = threading.Event()
        self.ended = False
        self.phase = "opening"
        """``opening``, ``catching_up``, ``ready`` or ``halted``."""
        self.why = ""


class Hosting:
    """The replicas of one node. ``apply``, ``look`` and ``close`` are called by one thread at a time; the rest by any."""

    def __init__(
        self, ground: Ground, log: JsonLog, tracing: Tracing, *, changed: Callable[[], None] = lambda: None
    ) -> None:
        """``changed``: called when a replica has become ready, has halted, or was dropped while it was being opened."""
        self._ground = ground
        self._log = log
        self._tracing = tracing
        self._changed = changed
        self._lock = threading.Lock()
        self._hosted: dict[int, _Hosted] = {}
        self._ending: set[int] = set()
        """Shards whose dropped copy is still there, because it was being opened: it goes before another one is opened."""
        self._closing = False
        self._pool = ThreadPoolExecutor(config.OPENINGS_AT_ONCE, thread_name_prefix="onefold-opening")

    # -- what there is

    @property
    def shards(self) -> frozenset[int]:
        """The shards that are hosted, or on their way."""
        return frozenset(self._hosted)

    def ready(self) -> dict[int, Replica]:
        """The replicas that answer, by shard."""
        with self._lock:
            return {
                shard: one.replica
                for shard, one in self._hosted.items()
                if one.phase == "ready" and one.replica is not None
            }

    def halted(self) -> dict[int, str]:
        """By shard: why its replica serves no more."""
        with self._lock:
            return {shard: one.why for shard, one in self._hosted.items() if one.phase == "halted"}

    def phases(self) -> dict[int, str]:
        """By shard: ``opening``, ``catching_up``, ``ready`` or ``halted``."""
        with self._lock:
            return {shard: one.phase for shard, one in sorted(self._hosted.items())}

    def replica(self, shard: int) -> Replica | None:
        """The replica of a shard, once it is open."""
        with self._lock:
            hosted = self._hosted.get(shard)
            return None if hosted is None else hosted.replica

    # -- changes

    def apply(self, wanted: Plan) -> None:
        """Begin to open what is to be opened, and drop what may be dropped."""
        for shard in sorted(wanted.open - self.shards):
            hosted = _Hosted()
            with self._lock:
                if shard in self._ending:
                    continue  # its end removes what is stored; ``changed`` tells when that is over
                self._hosted[shard] = hosted
            self._pool.submit(self._bring_up, shard, hosted)
        for shard in sorted(wanted.drop):
            self._drop(shard)

    def look(self) -> None:
        """Stop answering for replicas that have halted."""
        for shard, replica in self.ready().items():
            if replica.halted is not None:
                self.halt(shard, str(replica.halted))

    def halt(self, shard: int, why: str) -> None:
        """Answer for a shard no more: its copy here is wrong."""
        with self._lock:
            hosted = self._hosted.get(shard)
            if hosted is None or hosted.phase == "halted":
                return
            hosted.phase, hosted.why = "halted", why
            serving, hosted.serving = hosted.serving, None
        self._log.error("replica_halted", shard=shard, reason=why)
        if serving is not None:
            serving.close()
        self._changed()

    def stop_serving(self) -> None:
        """Answer nothing any more; the replicas stay open."""
        with self._lock:
            serving = [one.serving for one in self._hosted.values() if one.serving is not None]
            for one in self._hosted.values():
                one.serving = None
        for each in serving:
            each.close()

    def close(self) -> None:
        """Stop answering, and close all replicas; what is stored of them stays."""
        self._closing = True
        hosted = dict(self._hosted)
        for one in hosted.values():
            one.unwanted.set()
        self.stop_serving()
        for shard, one in hosted.items():
            self._end(shard, one)
        self._pool.shutdown(cancel_futures=True)

    def _drop(self, shard: int) -> None:
        with self._lock:
            hosted = self._hosted.pop(shard, None)
            if hosted is not None:
                self._ending.add(shard)
        if hosted is not None:
            hosted.unwanted.set()
            if hosted.phase in ("ready", "halted"):  # else who brings it up ends it
                self._end(shard, hosted)

    def _end(self, shard: int, hosted: _Hosted) -> None:
        with self._lock:
            if hosted.ended or (hosted.replica is None and self._closing):
                return  # who is still opening it ends it
            hosted.ended = True
            serving, hosted.serving = hosted.serving, None
        try:
            if serving is not None:
                serving.close()
            if hosted.replica is not None:
                hosted.replica.close()
            if not self._closing:
                self._ground.remove(shard)
                self._log.info("replica_dropped", shard=shard)
        finally:
            with self._lock:
                self._ending.discard(shard)

    def _bring_up(self, shard: int, hosted: _Hosted) -> None:
        """Open a replica and let it answer once it has all that was acknowledged; tried until it is unwanted."""
        backoff = Backoff(_RETRY_S, _RETRY_S_MAX)
        stalled = f"shard_{shard}_stalled"
        with self._tracing.span("open_replica", shard=shard):
            while not hosted.unwanted.is_set():
                try:
                    self._try(shard, hosted)
                    break
                except Exception as error:  # of one replica: the node continues with the others
                    if hosted.unwanted.is_set():
                        break
                    passes = isinstance(error, OnefoldError) and not isinstance(
                        error, LogCorrupt | SpaceError
                    )
                    if not passes:
                        self.halt(shard, f"{type(error).__name__}: {error}")
                        break
                    self._log.begins(stalled, str(error), shard=shard)
                hosted.unwanted.wait(backoff.pause_s())
        self._log.ends(stalled, shard=shard)
        if hosted.unwanted.is_set():
            self._end(shard, hosted)
            self._changed()

    def _catch_up(self, replica: Replica, unwanted: threading.Event) -> None:
        """Wait until what the log has now is applied, as long as it continues. Raises Unavailable when it does not."""
        target, seen, since_s = replica.log.last, -1, replica.env.boot_s()
        while not replica.reach(target, _LOOK_S) and not unwanted.is_set():
            if replica.applied > seen:
                seen, since_s = replica.applied, replica.env.boot_s()
            elif replica.env.boot_s() - since_s > _STALLED_S:
                raise Unavailable(
                    f"offset {seen} of {target} is applied, and nothing more for {_STALLED_S:g} s"
                )

    def _try(self, shard: int, hosted: _Hosted) -> None:
        replica = hosted.replica
        if replica is None:
            replica = self._ground.open_replica(shard)
            with self._lock:
                hosted.replica = replica
                hosted.phase = "catching_up"
            self._log.info("replica_opened", shard=shard, applied=replica.applied)
        self._catch_up(replica, hosted.unwanted)
        # A record of our own that is applied here comes after all that had been acknowledged.
        applied = replica.barrier(_BARRIER_S)
        serving = self._ground.serve(shard, replica)
        with self._lock:
            hosted.serving = serving
            hosted.phase = "ready"
        self._log.info("replica_ready", shard=shard, applied=applied)
        self._changed()
