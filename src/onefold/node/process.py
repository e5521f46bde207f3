"""A node: one process that hosts replicas, answers for them, and does its part of what the space needs.

One thread decides. It beats, looks at what the nodes fold says, and begins what follows from that: opening and dropping replicas,
expiring the silent, joining again after having been expired. Whatever takes long (opening, snapshots, tasks) has threads of its
own. There is nothing that only this node knows: any other continues from its last record.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from enum import Enum
from typing import Any, Protocol

from onefold import config
from onefold.backoff import Deadline
from onefold.env import SYSTEM, Env
from onefold.errors import AppendUnknown, OnefoldError, Timeout, Unavailable
from onefold.fold.nodes.state import Node as NodeRow
from onefold.fold.nodes.state import read_nodes
from onefold.node.hosting import Ground, Hosting, Plan, handed_over, placement_of, plan
from onefold.node.members.membership import Identity, Membership, NodeReplaced
from onefold.node.members.observer import Observer
from onefold.node.members.placement import Placement
from onefold.node.members.witness import unsaid
from onefold.node.telemetry.logging import JsonLog
from onefold.node.telemetry.tracing import NoTracing, Tracing

_BEAT_TOGETHER_MAX = 50
"""Nodes of a space beat at the same time unless they are more: then a beat of all at once would hold up writers."""
_PASSING = (Unavailable, Timeout, AppendUnknown)


class Workers(Protocol):
    """What runs tasks on this node."""

    @property
    def busy(self) -> int:
        """How many tasks it works on now."""
        ...

    def live_jobs(self) -> Sequence[tuple[str, str, Any]]:
        """(job, state, ``LiveStatus`` or None) of the live jobs of the space."""
        ...

    def start(self) -> None:
        """Begin to claim tasks."""
        ...

    def stop_claims(self) -> None:
        """Claim no more; tasks in progress continue."""
        ...

    def close(self) -> None:
        """End, giving back what is not finished."""
        ...


class Duties(Protocol):
    """What a node does for the space in addition to answering: snapshots, trimming, the divergence check."""

    def look(self, membership: Membership, nodes: Sequence[NodeRow], placement: Placement) -> None:
        """Who is there, as of now. Must not block."""
        ...

    def close(self) -> None:
        """End."""
        ...


class Phase(Enum):
    """Where a node is in its life."""

    STARTING = "starting"
    MEMBER = "member"
    OUT = "out"
    """It was expired, and joins again as soon as it can."""
    DRAINING = "draining"
    ENDED = "ended"


class Node:
    """See the module. ``run`` is the thread that decides; ``stop`` and what is asked may come from any thread."""

    def __init__(
        self,
        ground: Ground,
        identity: Identity,
        log: JsonLog,
        *,
        env: Env = SYSTEM,
        tracing: Tracing | None = None,
        workers: Workers | None = None,
        duties: Duties | None = None,
    ) -> None:
        self.identity = identity
        self.phase = Phase.STARTING
        self._ground = ground
        self._log = log
        self._env = env
        self._tracing = tracing or NoTracing()
        self._kicked = threading.Event()
        self._stopping = threading.Event()
        self.hosting = Hosting(ground, log, self._tracing, changed=self._hosting_changed)
        self.workers = workers
        self.duties = duties
        self._membership: Membership | None = None
        self._observer = Observer(identity.name, config.NODE_LEASE_S, config.NODE_BEAT_S)
        self._beat_now = False
        self._next_beat_s = 0.0
        self._said: dict[int, int] = {}
        """By shard: the offset up to which digests were reported."""
        self._halted_s: dict[int, float] = {}
        """By shard: when it was first seen that it halted here, by the boot clock."""
        self._looked_s = env.boot_s()
        self._heard_s: float | None = None
        self._others: dict[str, int] = {}
        """How often each other member has beaten, and whether any has since the look before."""
        self._heard_others = False
        self.beats = 0
        self.nodes: list[NodeRow] = []
        self.placement: Placement = {}

    # -- its life

    def run(self) -> None:
        """Live until ``stop``, then leave. Raises NodeReplaced when another process has taken the name, and SpaceError when the
        space does not take this node."""
        watcher = threading.Thread(target=self._watch, name="onefold-watch", daemon=True)
        self.hosting.apply(Plan(frozenset({0}), frozenset()))
        try:
            if not self._await_first():
                return
            watcher.start()
            if self.workers is not None:
                self.workers.start()
            while not self._stopping.is_set():
                self._turn()
            self._drain()
        finally:
            self._stopping.set()
            self._close()
            if watcher.ident is not None:
                watcher.join(2 * config.NODE_BEAT_S)

    def stop(self) -> None:
        """Leave: others take over first. May be called in a signal handler."""
        self._stopping.set()
        self._kicked.set()

    def kick(self) -> None:
        """Look again soon."""
        self._kicked.set()

    def _await_first(self) -> bool:
        """Wait for shard 0, in which the nodes are; False when this node is to stop before."""
        while not self._stopping.is_set():
            self._looked_s = self._env.boot_s()
            halted = self.hosting.halted().get(0)
            if halted is not None:
                raise Unavailable(f"the replica of shard 0 halted, and without it there is no node: {halted}")
            if 0 in self.hosting.ready():
                space = self.hosting.ready()[0]
                self._membership = Membership(space, self.identity)
                return True
            self._kicked.wait(config.NODE_BEAT_S)
            self._kicked.clear()
        return False

    def _turn(self) -> None:
        """One look, and what follows from it; then wait for a reason to look again."""
        self._kicked.clear()
        try:
            self._look()
        except NodeReplaced:
            raise
        except _PASSING as error:
            self._log.begins("log_unreachable", f"{type(error).__name__}: {error}")
        else:
            self._log.ends("log_unreachable")
        if not self._stopping.wait(config.NODE_LOOK_S):
            self._kicked.wait(max(0.0, self._next_beat_s - self._env.boot_s()))

    def _look(self) -> None:
        self._looked_s = self._env.boot_s()
        self.hosting.look()
        membership = self._the_membership
        if 0 in self.hosting.halted():
            raise Unavailable(f"the replica of shard 0 halted: {self.hosting.halted()[0]}")
        if not membership.epoch:
            self._join(membership)
        if self._beat_now or self._env.boot_s() >= self._next_beat_s:
            self._beat(membership)
        self._see()
        if self._heard_others and self._env.boot_s() >= self._next_beat_s - config.NODE_BEAT_S / 2:
            self._beat(membership)  # nearly due: what comes together costs every node one look
        if not membership.epoch:
            self.kick()
            return
        self.hosting.apply(plan(self.identity.name, self.placement, self.nodes, self.hosting.shards))
        for name, epoch in self._observer.silent(self.nodes, self._env.boot_s()):
            if membership.expire(name, epoch):
                self._log.warning("node_expired", expired=name, epoch=epoch)
        if self.duties is not None:
            self.duties.look(membership, self.nodes, self.placement)

    def _see(self) -> None:
        """What the nodes fold says now."""
        with self._first.view() as view:
            self.nodes = read_nodes(view)
        others = {
            node.name: node.state.beats
            for node in self.nodes
            if node.member and node.name != self.identity.name
        }
        self._heard_others = len(others) < _BEAT_TOGETHER_MAX and others != self._others
        self._others = others
        self.placement = placement_of(self._ground.shard_count, self.nodes)

    def _join(self, membership: Membership) -> None:
        again = self.phase is Phase.OUT
        epoch = membership.join()
        self.phase = Phase.DRAINING if self._stopping.is_set() else Phase.MEMBER
        self._observer.restart()
        self._said.clear()
        self._beat_now = True
        self._log.info(
            "joined", epoch=epoch, again=again, region=self.identity.region, zone=self.identity.zone
        )

    def _beat(self, membership: Membership) -> None:
        self._beat_now = False
        began_s = self._env.boot_s()
        self._next_beat_s = began_s + config.NODE_BEAT_S
        replicas = self.hosting.ready()
        hosted = {shard: replica.applied for shard, replica in replicas.items()}
        digests: list[tuple[int, int, bytes]] = []
        for shard, applied in hosted.items():
            if applied // config.DIGEST_EVERY_OFFSETS * config.DIGEST_EVERY_OFFSETS > self._said.get(
                shard, 0
            ):
                found = unsaid(
                    replicas[shard].digests(), self._said.get(shard, 0), applied, config.DIGESTS_KEPT
                )
                digests += [(shard, offset, digest) for offset, digest in found]
        busy = self.workers.busy if self.workers is not None else 0
        if not membership.beat(hosted, digests, self._halted_to_tell(), busy):
            self.phase = Phase.OUT
            self._log.warning("expired_by_peer", silent_s=round(began_s - (self._heard_s or began_s), 3))
            return
        for shard, offset, _ in digests:
            self._said[shard] = max(offset, self._said.get(shard, 0))
        self.beats += 1
        self._heard_s = self._env.boot_s()
        self._observer.beat_applied()

    def _halted_to_tell(self) -> dict[int, str]:
        """What halted here, once the others had time to see why: this report ends what the node reported of that shard, to
        which they compare what they found."""
        now_s, halted = self._env.boot_s(), self.hosting.halted()
        self._halted_s = {shard: self._halted_s.get(shard, now_s) for shard in halted}
        return {
            shard: why
            for shard, why in halted.items()
            if now_s - self._halted_s[shard] >= 2 * config.UPKEEP_LOOK_S
        }

    # -- its end

    def _drain(self) -> None:
        """Claim no more tasks and finish those in progress, answer on until others do, leave."""
        self._stopping.set()
        self.phase = Phase.DRAINING
        deadline = Deadline.after(config.DRAIN_TIMEOUT_S, self._env)
        if self.workers is not None:
            self.workers.stop_claims()
        try:
            if self._the_membership.epoch and self._the_membership.drain():
                while not (self._handed_over() and self._idle) and not deadline.passed:
                    self._kicked.wait(config.NODE_LOOK_S)
                    self._kicked.clear()
            self.hosting.stop_serving()
            self._the_membership.leave()
            self._log.info("left", beats=self.beats)
        except OnefoldError as error:
            self._log.warning("left_unclean", error=error)

    @property
    def _idle(self) -> bool:
        return self.workers is None or self.workers.busy == 0

    def _handed_over(self) -> bool:
        if self._env.boot_s() >= self._next_beat_s:
            self._beat(self._the_membership)
        self._see()
        return handed_over(self.identity.name, self.placement, self.nodes, frozenset(self.hosting.ready()))

    def _close(self) -> None:
        self.phase = Phase.ENDED
        for part in (self.workers, self.duties):
            if part is not None:
                part.close()
        self.hosting.close()

    # -- what is asked of it

    def live(self) -> dict[str, Any]:
        """For ``/live``: whether the deciding thread continues."""
        silent_s = self._env.boot_s() - self._looked_s
        return {
            "ok": silent_s < config.NODE_STUCK_S,
            "phase": self.phase.value,
            "silent_s": round(silent_s, 1),
        }

    def ready(self) -> dict[str, Any]:
        """For ``/ready``: whether this node answers, with all that was acknowledged, for everything that it is to host."""
        waiting = []
        if self.phase is not Phase.MEMBER:
            waiting.append(f"the node is {self.phase.value}")
        heard_s = None if self._heard_s is None else self._env.boot_s() - self._heard_s
        if heard_s is None or heard_s > config.NODE_LEASE_S:
            waiting.append("no beat came through the log within the lease")
        phases = self.hosting.phases()
        waiting += [f"shard {shard} is {phase}" for shard, phase in phases.items() if phase != "ready"]
        mine = {shard for shard, names in self.placement.items() if self.identity.name in names}
        waiting += [f"shard {shard} is missing" for shard in sorted(mine - phases.keys())]
        for shard, replica in self.hosting.ready().items():
            behind = replica.log.last - replica.applied
            if behind > config.READY_LAG_OFFSETS_MAX:
                waiting.append(f"shard {shard} is {behind} records behind")
        return {"ok": not waiting, "node": self.identity.name, "shards": sorted(phases), "waiting": waiting}

    # -- inside

    @property
    def shard_count(self) -> int:
        """How many shards the space has."""
        return self._ground.shard_count

    @property
    def _the_membership(self) -> Membership:
        if self._membership is None:
            raise Unavailable("the node has not joined yet")
        return self._membership

    @property
    def _first(self) -> Any:
        replica = self.hosting.replica(0)
        if replica is None:
            raise Unavailable("the replica of shard 0 is not open")
        return replica

    def _hosting_changed(self) -> None:
        """What this node answers for has changed: others wait to hear of it."""
        self._beat_now = True
        self._kicked.set()

    def _watch(self) -> None:
        """Look when something was written to shard 0, though not too often."""
        applied = 0
        while not self._stopping.is_set():
            try:
                now = self._first.wait(applied, 2 * config.NODE_BEAT_S)
            except OnefoldError:
                self._stopping.wait(config.NODE_BEAT_S)
                continue
            if now > applied:
                applied = now
                self._kicked.set()
            self._stopping.wait(config.NODE_LOOK_S)
