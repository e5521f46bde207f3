"""How much of its logs a space in a folder keeps, over all its shards, and how far back its past can be read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from onefold.shard.api import Shard
from onefold.shard.embedded import EmbeddedShard
from onefold.shard.log_keep import KEEP_ALL
from onefold.space.log_prefix import as_time, time_at
from onefold.store.tables import oldest_readable


class KeptLog(NamedTuple):
    """What a space keeps of its logs."""

    keep_bytes: int | None
    """The bound of all shards together; None: everything is kept."""
    trimmed: bool
    """Whether something was trimmed: then ``restore --to`` leads nowhere, and ``db.at`` as far as maps keep their history."""
    at_from_ms: int
    """The earliest moment that ``db.at`` reaches, in ms since 1970; 0: the beginning of the space."""


def say_log_keep(shards: Sequence[Shard], keep: int, *, only_if_unsaid: bool = False) -> bool:
    """Say how many bytes all logs together keep (``KEEP_ALL``); whether anything changed. Nothing for shards in memory."""
    local = [shard for shard in shards if isinstance(shard, EmbeddedShard) and not shard.read_only]
    each = keep if keep == KEEP_ALL else max(1, keep // max(1, len(local)))
    changed = False
    for shard in local:
        if shard.log_keep.bytes != each:
            changed |= shard.log_keep.say(each, only_if_unsaid=only_if_unsaid)
    return changed


def kept_log(shards: Sequence[Shard]) -> KeptLog | None:
    """What is kept; None where this is not a space in a folder."""
    local = [shard for shard in shards if isinstance(shard, EmbeddedShard)]
    if not local or len(local) != len(shards):
        return None
    keeps = [shard.log_keep.bytes for shard in local]
    bound = (
        None if any(keep is None or keep == KEEP_ALL for keep in keeps) else sum(keep or 0 for keep in keeps)
    )
    reaches = [
        time_at(shard.log, max(oldest_readable(shard.applied), first))
        for shard in local
        if (first := shard.log.first) > 1
    ]
    return KeptLog(bound, bool(reaches), max(reaches, default=0))


def reach_of(shards: Sequence[Shard]) -> str:
    """A sentence that says how far back ``db.at`` reaches, with a space behind it; empty where that is the beginning, or the log
    is not in a folder."""
    kept = kept_log(shards)
    if kept is None or not kept.trimmed:
        return ""
    return f"The log was cut (`log_keep`), and db.at reaches back to {as_time(kept.at_from_ms)} at most. "
