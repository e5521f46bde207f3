"""What simulated runs compute: plans small enough to check, in which every mistake shows.

Records are names. A source task gives the records of its split; a derived task takes its share of the records of all
tasks that it needs, where the share depends on a *salt* that each execution of a task may choose differently: so results of two
executions of one task do not fit together, and anyone who mixes them counts a record twice or not at all.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import msgspec

SHAPES: tuple[tuple[tuple[int | None, tuple[int, ...]], ...], ...] = (
    ((None, ()),),
    ((None, ()), (3, (0,))),
    ((None, ()), (2, (0,)), (1, (1,))),
    ((None, ()), (None, ()), (3, (0, 1))),
    ((None, ()), (2, (0,)), (2, (0,))),
    ((None, ()), (None, (0,)), (2, (1,))),
)
"""Plans: per stage its number of partitions (None: a source, one task a split) and the stages that it needs."""


class Content(msgspec.Struct, frozen=True, array_like=True):
    """What a task gives."""

    records: tuple[str, ...]
    salt: int = 0
    read: str = ""
    """A source that needs other stages says which of their data it has read."""


@dataclass(frozen=True)
class Submission:
    """What a run computes: its plan, its splits (name -> version of their content) and its tasks in dispatch order."""

    shape: tuple[tuple[int | None, tuple[int, ...]], ...]
    splits: dict[str, int]
    tasks: tuple[tuple[str, ...], ...]
    """Per stage: split names, or partition numbers as text."""

    def records(self, split: str) -> tuple[str, ...]:
        """The records of one split. Some are poison (``!``), some kill the process (``#``)."""
        digest = hashlib.blake2b(f"{split}/{self.splits[split]}".encode(), digest_size=4).digest()
        mark = "!" if digest[1] < 20 else "#" if digest[1] > 245 else ""
        last = len(digest) if digest[0] > 40 else 0
        return tuple(
            f"{split}.{self.splits[split]}.{number}{mark if not number else ''}" for number in range(last)
        )

    def expected(self, stage: int, skip: bool) -> list[str]:
        """What the stage gives when it is computed in one go."""
        partitions, needs = self.shape[stage]
        if partitions is not None:
            return sorted(record for need in needs for record in self.expected(need, skip))
        found = (record for split in self.tasks[stage] for record in self.records(split))
        return sorted(record for record in found if not (skip and record.endswith("!")))

    def compute(self, stage: int, index: int, inputs: dict[int, list[Content]], salt: int) -> Content:
        """One task."""
        partitions, needs = self.shape[stage]
        task = self.tasks[stage][index]
        if partitions is None:
            read = short_hash(
                *sorted(msgspec.msgpack.encode(part) for need in needs for part in inputs[need])
            )
            return Content(self.records(task), salt, read if needs else "")
        share = [
            record
            for need in needs
            for part in inputs[need]
            for record in part.records
            if int(short_hash(f"{record}/{part.salt}".encode()), 16) % partitions == int(task)
        ]
        return Content(tuple(sorted(share)), salt)

    def last_stages(self) -> list[int]:
        """The stages that nobody reads."""
        read = {need for _, needs in self.shape for need in needs}
        return [stage for stage in range(len(self.shape)) if stage not in read]


def short_hash(*parts: bytes) -> str:
    """24 hex digits that tell these parts from others."""
    digest = hashlib.blake2b(digest_size=12)
    for part in parts:
        digest.update(len(part).to_bytes(4, "big") + part)
    return digest.hexdigest()
