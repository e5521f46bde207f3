"""The exchange between regions: for each other region and each shard, one node of this region pulls what it lacks.

Which node that is follows from who answers for the shard, by rendezvous hashing. When it dies, it is expired like any node, and
another one pulls. Two that do so for a moment do no harm: what is known is skipped. The steps are in ``regions.runner``, here are
the threads.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from onefold.backoff import Deadline
from onefold.env import Env
from onefold.errors import OnefoldError
from onefold.regions.cluster import ClusterNeighbours, ClusterTransport
from onefold.regions.pulling import RETRY_S
from onefold.regions.runner import Beating, Runner

if TYPE_CHECKING:
    from onefold.fold.nodes.state import Node
    from onefold.node.hosting import Replica
    from onefold.node.members.membership import Membership
    from onefold.node.members.placement import Placement
    from onefold.node.telemetry.logging import JsonLog

BYTES_PER_S: Final = 50_000_000
"""A node takes at most so many bytes in a second from other regions."""
_QUICK_S: Final = 0.05
"""An answer that came sooner has not waited: the next question does."""
_LOOK_S: Final = 0.25
_END_S: Final = 1.0
ALARMS: Final = ("lost", "diverged", "differs")
"""States of a link that do not pass by themselves."""

Pull = tuple[int, str, int]
"""A region's number and name, and a shard."""


def pulls_of(
    name: str, others: Sequence[tuple[int, str]], nodes: Sequence[Node], placement: Placement
) -> set[Pull]:
    """What falls to node ``name``. ``others``: the other regions, by number and name."""
    return {
        (number, region, shard)
        for shard in placement
        for number, region in others
        if _chosen(f"{number}/{shard}", shard, nodes, placement) == name
    }


def beats_of(name: str, nodes: Sequence[Node], placement: Placement) -> set[int]:
    """The shards in which node ``name`` has the region make effects without writes."""
    return {shard for shard in placement if _chosen(f"beat/{shard}", shard, nodes, placement) == name}


def _chosen(what: str, shard: int, nodes: Sequence[Node], placement: Placement) -> str | None:
    answering = [node for node in nodes if node.member and shard in node.shards]
    staying = [node for node in answering if not node.draining] or answering
    placed = [node.name for node in staying if node.name in placement[shard]]
    names = placed or [node.name for node in staying]
    return max(names, key=lambda name: hashlib.blake2b(f"{what}/{name}".encode()).digest(), default=None)


class Pace:
    """Bounds the bytes that come in a second, over all threads that wait in it."""

    def __init__(self, bytes_per_s: int, env: Env, pause: Callable[[float], object]) -> None:
        self._bytes_per_s = bytes_per_s
        self._env = env
        self._pause = pause
        self._lock = threading.Lock()
        self._free_s = 0.0

    def came(self, count: int) -> None:
        """So many bytes have come: wait for their turn."""
        with self._lock:
            begins_s = max(self._free_s, self._env.boot_s())
            self._free_s = begins_s + count / self._bytes_per_s
        left_s = begins_s - self._env.boot_s()
        if left_s > 0:
            self._pause(left_s)


class Counts:
    """What came from another region to one shard, so far. Written by one thread."""

    def __init__(self) -> None:
        self.bytes = 0
        self.imports = 0


class Exchange:
    """See the module, and ``process.Duties``. ``look`` is called by the node's thread, ``states`` by any."""

    def __init__(
        self,
        name: str,
        replicas: Callable[[], Mapping[int, Replica]],
        neighbours: ClusterNeighbours,
        log: JsonLog,
        env: Env,
    ) -> None:
        """``replicas``: those of the region's shards that answer here."""
        self._name = name
        self._replicas = replicas
        self._neighbours = neighbours
        self._log = log
        self._env = env
        self._ending = threading.Event()
        self._pace = Pace(BYTES_PER_S, env, self._ending.wait)
        self._pulling: dict[Pull, _Pulling] = {}
        self._ended: list[_Pulling] = []
        self._counts: dict[Pull, Counts] = {}
        self._beats: frozenset[int] = frozenset()
        self._beating: threading.Thread | None = None

    def look(self, membership: Membership, nodes: Sequence[Node], placement: Placement) -> None:  # noqa: ARG002
        """Pull what falls to this node now, and nothing else. Does not block. Raises as ``Shard.view``."""
        others = [(other.number, other.name) for other in self._neighbours.others()]
        wanted = pulls_of(self._name, others, nodes, placement)
        for pull in self._pulling.keys() - wanted:
            ended = self._pulling.pop(pull)
            ended.stop()
            self._ended.append(ended)
        self._ended = [one for one in self._ended if one.is_alive()]
        for pull in wanted - self._pulling.keys():
            counts = self._counts.setdefault(pull, Counts())
            self._pulling[pull] = _Pulling(
                pull, self._replicas, self._neighbours, self._pace, counts, self._log, self._env
            )
        self._beats = frozenset(beats_of(self._name, nodes, placement) if others else ())
        if self._beats and self._beating is None:
            self._beating = threading.Thread(target=self._beat, name="onefold-region-beats", daemon=True)
            self._beating.start()

    def states(self) -> dict[Pull, tuple[str, float]]:
        """By what this node pulls: the state of the link, and for how many seconds the other region has not answered. With
        nothing to tell it answers every ``cluster.POLL_S`` seconds."""
        return {pull: one.state() for pull, one in list(self._pulling.items())}

    def pulled(self) -> dict[Pull, tuple[int, int]]:
        """By what this node pulls or has pulled: bytes of answers, and records appended of them."""
        return {pull: (one.bytes, one.imports) for pull, one in list(self._counts.items())}

    def close(self) -> None:
        """End. A thread whose question is still open ends when that is answered, and appends nothing any more."""
        self._ending.set()
        threads = [*self._pulling.values(), *self._ended]
        for one in threads:
            one.stop()
        self._neighbours.close()
        deadline = Deadline.after(_END_S, self._env)
        for one in threads:
            one.join(deadline.within(_END_S))
        if self._beating is not None:
            self._beating.join()

    def _beat(self) -> None:
        beating: dict[int, tuple[Replica, Beating]] = {}
        seen: dict[int, tuple[int, float | None]] = {}
        while not self._ending.wait(_LOOK_S):
            replicas = self._replicas()
            for shard in self._beats & replicas.keys():
                replica = replicas[shard]
                if shard not in beating or beating[shard][0] is not replica:
                    beating[shard] = replica, Beating(replica)
                    seen.pop(shard, None)
                applied, due_s = seen.get(shard, (-1, None))
                try:
                    now = replica.applied
                    if now != applied or (due_s is not None and due_s <= self._env.boot_s()):
                        seen[shard] = now, beating[shard][1].step()
                except OnefoldError as error:
                    seen[shard] = -1, None
                    self._log.begins(f"region_beats_{shard}_failed", f"{type(error).__name__}: {error}")
                else:
                    self._log.ends(f"region_beats_{shard}_failed")


class _Pulling:
    """A thread that pulls one shard from one other region."""

    def __init__(
        self,
        pull: Pull,
        replicas: Callable[[], Mapping[int, Replica]],
        neighbours: ClusterNeighbours,
        pace: Pace,
        counts: Counts,
        log: JsonLog,
        env: Env,
    ) -> None:
        self._number, self._region, self._shard = pull
        self._replicas = replicas
        self._pace = pace
        self._counts = counts
        self._transport = ClusterTransport(neighbours, self._region, self._came)
        self._log = log
        self._env = env
        self._began_s = env.boot_s()
        self._stopping = threading.Event()
        self._runner: Runner | None = None
        self._replica: Replica | None = None
        self._thread = threading.Thread(
            target=self._run, name=f"onefold-pull-{self._region}-{self._shard}", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Pull no more, after what is under way."""
        self._stopping.set()

    def is_alive(self) -> bool:
        """Whether its thread runs."""
        return self._thread.is_alive()

    def join(self, timeout: float) -> None:
        """Wait for its end."""
        self._thread.join(timeout)

    def state(self) -> tuple[str, float]:
        """See ``Exchange.states``."""
        runner = self._runner
        heard_s = None if runner is None else runner.heard_s
        silent_s = self._env.boot_s() - (self._began_s if heard_s is None else heard_s)
        return ("linked" if runner is None else runner.pull.state), silent_s

    def _came(self, size: int) -> None:
        self._counts.bytes += size
        self._pace.came(size)

    def _run(self) -> None:
        stalled = f"region_{self._region}_shard_{self._shard}_unreachable"
        alarm = f"region_{self._region}_shard_{self._shard}_alarm"
        while not self._stopping.is_set():
            replica = self._replicas().get(self._shard)
            if replica is None:
                self._stopping.wait(_LOOK_S)
                continue
            if self._runner is None or replica is not self._replica:
                self._replica = replica
                self._runner = Runner(
                    replica, self._shard, self._number, self._transport, stops=self._stopping.is_set
                )
            self._stopping.wait(self._step(self._runner, stalled, alarm))
        self._log.ends(stalled)
        self._log.ends(alarm)

    def _step(self, runner: Runner, stalled: str, alarm: str) -> float:
        """One step. For how many seconds to wait then."""
        began_s, imports = self._env.boot_s(), runner.imports
        try:
            try:
                again_s = runner.step()
            finally:
                self._counts.imports += runner.imports - imports
        except OnefoldError as error:
            if not self._stopping.is_set():
                self._log.begins(stalled, f"{type(error).__name__}: {error}")
            again_s = runner.pull.again_s
            return RETRY_S[1] if again_s is None else max(0.0, again_s - self._env.boot_s())
        except Exception as error:  # whatever another release sends: others are still pulled
            self._log.begins(stalled, f"{type(error).__name__}: {error}", level="error")
            return RETRY_S[1]
        self._log.ends(stalled)
        if runner.pull.state in ALARMS:
            self._log.begins(alarm, runner.pull.state, level="error")
        else:
            self._log.ends(alarm)
        now_s = self._env.boot_s()
        if again_s is not None:
            return max(0.0, again_s - now_s)
        if runner.pull.state in ALARMS or now_s - began_s < _QUICK_S:
            return RETRY_S[1]
        return 0.0
