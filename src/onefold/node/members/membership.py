"""One node's own part in the nodes fold: joining, beating, leaving, and finding out that it was taken for dead."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from onefold import config
from onefold._version import __version__
from onefold.errors import SpaceError
from onefold.fold.nodes.ops import (
    Accepted,
    Beat,
    Drain,
    Expire,
    Join,
    Leave,
    Operation,
    Refused,
    decode_outcome,
    nodes_op,
)
from onefold.ids import new_id
from onefold.shard.api import Shard

_TRIES: Final = 2


class NodeReplaced(SpaceError):
    """Another process has joined under this node's name: two of a name would take turns in putting each other out."""


@dataclass(frozen=True)
class Identity:
    """What a node says when it joins."""

    name: str
    region: str
    zone: str
    slots: int = 0
    """How many tasks it works on at a time."""
    fold_version_max: int = 1


class Membership:
    """Speaks for one node in shard 0. Used by one thread at a time, except ``say``."""

    def __init__(self, shard: Shard, identity: Identity) -> None:
        self.identity = identity
        self.instance = new_id("n", shard.env)
        self.epoch = 0
        """In force as far as is known; 0: none is."""
        self._shard = shard

    def join(self) -> int:
        """Begin, or begin again after having been expired; the new epoch. Raises SpaceError when this node may not join, and as
        ``Shard.submit``."""
        me = self.identity
        outcome = self.say(
            Join(
                me.name,
                self.instance,
                me.region,
                me.zone,
                __version__,
                platform.python_version(),
                me.fold_version_max,
                me.slots,
            )
        )
        if isinstance(outcome, Refused):
            raise SpaceError(f"the space does not take node {me.name!r}: {outcome.message}")
        self.epoch = outcome.epoch
        return self.epoch

    def beat(
        self,
        hosted: Mapping[int, int],
        digests: Sequence[tuple[int, int, bytes]],
        halted: Mapping[int, str],
        busy: int,
    ) -> bool:
        """Say that this node lives; False when it was expired and has to join again. Raises NodeReplaced, and as
        ``Shard.submit``."""
        reasons = tuple((shard, why[: config.HALT_REASON_CHARS_MAX]) for shard, why in sorted(halted.items()))
        return self._still(
            self.say(
                Beat(
                    self.identity.name,
                    self.epoch,
                    tuple(sorted(hosted.items())),
                    tuple(digests),
                    reasons,
                    busy,
                )
            )
        )

    def drain(self) -> bool:
        """Say that this node is about to leave."""
        return self._still(self.say(Drain(self.identity.name, self.epoch)))

    def leave(self) -> None:
        """Say that this node is gone."""
        if self.epoch:
            self.say(Leave(self.identity.name, self.epoch))
            self.epoch = 0

    def expire(self, name: str, epoch: int) -> bool:
        """Say that another node was silent for a lease; whether that ended its epoch."""
        return isinstance(self.say(Expire(name, epoch)), Accepted)

    def say(self, op: Operation) -> Accepted | Refused:
        """Append an operation; its outcome. Thread-safe. Raises as ``Shard.submit``."""
        for _ in range(_TRIES):
            (data,) = self._shard.submit([nodes_op(op)])
            outcome = decode_outcome(data)
            if isinstance(outcome, Accepted) or outcome.code != "untrusted":
                break
            # The fold version was raised between the writing of the record and its place in the log; now that is known.
        return outcome

    def _still(self, outcome: Accepted | Refused) -> bool:
        if isinstance(outcome, Accepted):
            return True
        if outcome.code == "replaced":
            raise NodeReplaced(
                f"{outcome.message}; this one stops. Give each node a name of its own with --name",
                definite=True,
            )
        if outcome.code in ("expired", "unknown", "left"):
            self.epoch = 0
            return False
        raise SpaceError(f"node {self.identity.name!r} was refused: {outcome.message}")
