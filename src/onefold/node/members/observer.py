"""Who is silent: what one node sees of the others' beats, on its own boot clock.

No other machine's clock is believed, and not this one's alone: a process that was stopped for a minute finds that a minute has
passed in which it heard nobody. So time counts only while this node's own beats come through the log: a node is silent when
none of its beats came in a lease in which enough of ours did.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from onefold.fold.nodes.state import Node


@dataclass(slots=True)
class _Seen:
    epoch: int
    beats: int
    since_s: float
    own_beats: int


class Observer:
    """Watches the other nodes. Pure: the clock comes in as an argument."""

    def __init__(self, name: str, lease_s: float, beat_s: float) -> None:
        """``name``: of this node. ``lease_s``: how long another may be silent; ``beat_s``: how often this one beats."""
        self._name = name
        self._lease_s = lease_s
        self._own_beats_min = max(2, int(lease_s / beat_s) - 1)
        self._seen: dict[str, _Seen] = {}
        self._own_beats = 0

    def beat_applied(self) -> None:
        """A beat of this node is in the log and applied here: the log could be reached, and was read."""
        self._own_beats += 1

    def restart(self) -> None:
        """This node was gone, or has a new epoch: what it had seen counts no more."""
        self._seen.clear()

    def silent(self, nodes: Iterable[Node], now_s: float) -> list[tuple[str, int]]:
        """The members (name, epoch) that have been silent for a lease. Called after this node's own beats at least."""
        found: list[tuple[str, int]] = []
        members = {node.name: node for node in nodes if node.member and node.name != self._name}
        for name in list(self._seen):
            if name not in members:
                del self._seen[name]
        for name, node in members.items():
            seen = self._seen.get(name)
            if seen is None or (seen.epoch, seen.beats) != (node.state.epoch, node.state.beats):
                self._seen[name] = _Seen(node.state.epoch, node.state.beats, now_s, self._own_beats)
            elif (
                now_s - seen.since_s >= self._lease_s
                and self._own_beats - seen.own_beats >= self._own_beats_min
            ):
                found.append((name, node.state.epoch))
        return found
