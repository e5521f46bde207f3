"""Compares what nodes report about the log and about the state.

Nodes report in the log what the log's digest is at multiples of ``config.DIGEST_EVERY_OFFSETS``, and the hash of their state at
multiples of ``config.SNAPSHOT_EVERY_OFFSETS``. Where two differ, nobody is believed: each looks again whether it can reproduce
what it said, from what it said before and the log itself. Who cannot is wrong and halts; who can continues, and alarms.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from enum import Enum
from typing import NamedTuple

from onefold.fold.nodes.state import ReportedHashes


class Dispute(NamedTuple):
    """Nodes that say different things of one place."""

    shard: int
    offset: int
    said: tuple[tuple[str, tuple[str, ...]], ...]
    """What was said, with those who say it; what most say comes first, then in order of the text."""

    def says(self, name: str) -> str | None:
        """What a node says; None: nothing."""
        return next((text for text, names in self.said if name in names), None)

    @property
    def outvoted(self) -> tuple[str, ...]:
        """The nodes whose word differs from that of the most; empty where no word has a majority of those who said one."""
        (_, most), *others = self.said
        total = sum(len(names) for _, names in self.said)
        if 2 * len(most) <= total:
            return ()
        return tuple(sorted(name for _, names in others for name in names))


class Verdict(Enum):
    """What a node finds when it looks again."""

    SOUND = "sound"
    """It reproduced what it said: somebody else is wrong."""
    WRONG = "wrong"
    """It cannot reproduce what it said: its copy is damaged."""
    UNKNOWN = "unknown"
    """It could not look: the log or what is needed of it cannot be had. Look again later."""


def disputes(reported: ReportedHashes) -> list[Dispute]:
    """The earliest place of each shard at which nodes differ: what follows there differs for the same reason."""
    found: dict[int, Dispute] = {}
    for (shard, offset), said in sorted(reported.items()):
        if shard in found:
            continue
        by_word: dict[str, list[str]] = {}
        for name, word in said.items():
            by_word.setdefault(word, []).append(name)
        if len(by_word) > 1:
            ranked = sorted(by_word.items(), key=lambda one: (-len(one[1]), one[0]))
            found[shard] = Dispute(
                shard, offset, tuple((word, tuple(sorted(names))) for word, names in ranked)
            )
    return [found[shard] for shard in sorted(found)]


def concerning(found: Iterable[Dispute], name: str, hosted: Set[int]) -> list[Dispute]:
    """The disputes in which a node has said something itself, about shards that it hosts: it has to look again."""
    return [one for one in found if one.shard in hosted and one.says(name) is not None]


def judge(said: str, reproduced: str | None) -> Verdict:
    """``reproduced``: what looking again gave; None: it could not be done."""
    if reproduced is None:
        return Verdict.UNKNOWN
    return Verdict.SOUND if reproduced == said else Verdict.WRONG


def describe(dispute: Dispute) -> str:
    """For people."""
    words = "; ".join(f"{', '.join(names)}: {word[:16]}" for word, names in dispute.said)
    return f"shard {dispute.shard} at offset {dispute.offset}: {words}"


def unsaid(digests: Mapping[int, bytes], said: int, applied: int, limit: int) -> list[tuple[int, bytes]]:
    """Of a replica's digests (by offset): those beyond offset ``said`` that a node has not reported yet, the latest
    ``limit`` of them, in order."""
    return [(offset, digests[offset]) for offset in sorted(digests) if said < offset <= applied][-limit:]
