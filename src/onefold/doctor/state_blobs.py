"""Blobs of shared state, wherever they are: those that are missing, and those that wait to be removed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onefold import config
from onefold.compute.live.garbage import LiveGarbage
from onefold.compute.live.holds import release
from onefold.doctor.embedded import Check, lost_blobs
from onefold.errors import OnefoldError
from onefold.machine.undisturbed import let_pass
from onefold.state.fold import blobs as named_blobs

if TYPE_CHECKING:
    from onefold.compute.blobs.store import BlobStore
    from onefold.state.core.client import StateClient


def check_named(client: StateClient, blobs: BlobStore) -> Check:
    """Whether all that state names are in the place that has them. Lists the place."""
    needed = _named(client)
    try:
        # Listed after they were named: what is named was stored before.
        there = set(blobs.everywhere())
        # Put back, or put aside, while the place was listed.
        missing = [name for name in sorted(needed - there) if blobs.stored_at(name) is None]
    except (OnefoldError, OSError) as error:
        let_pass(error)
        return Check("blobs", "skipped", f"the place that has them cannot be listed: {error}".rstrip("."))
    # Removed since: nothing names it any more.
    lost = set(missing) & _named(client)
    return lost_blobs(
        len(needed),
        dict.fromkeys(lost, "missing"),
        lost,
        client.shards,
        "; their content was not compared: reading does that",
    )


def _named(client: StateClient) -> set[str]:
    found = set[str]()
    for shard in range(client.shard_count):
        with client.view(shard) as view:
            found |= {key.decode() for key, _ in view.scan(named_blobs.BLOBS)}
    return found


def check_garbage(client: StateClient, blobs: BlobStore, *, fix: bool) -> Check:
    """How many there are; ``fix`` removes those that readers cannot have on their lists any more, what commits that never
    happened have left, and what is kept of streams for live jobs that are over."""
    waiting, overdue = _counts(client)
    if not fix:
        return Check(
            "garbage",
            "warn" if overdue else "ok",
            f"{waiting} blobs that nothing names wait to be removed"
            if waiting
            else "no blobs wait to be removed",
            f"{overdue} of them for longer than a day: `onefold doctor --fix` removes them, and so does a node"
            if overdue
            else "",
        )
    garbage = LiveGarbage(client, blobs)
    try:
        release(client)
        removed = garbage.sweep() + garbage.remove_unnamed()
    except (OnefoldError, OSError) as error:
        let_pass(error)
        return Check(
            "garbage",
            "warn" if overdue else "skipped",
            f"{waiting} blobs that nothing names cannot be removed here: {error}".rstrip("."),
            "On a cluster nodes remove them; give the credential of a node, or of the admin"
            if overdue
            else "",
        )
    return Check("garbage", "ok", f"{removed} blobs that nothing names were removed")


def _counts(client: StateClient) -> tuple[int, int]:
    """(what waits, what has waited for longer than a day)."""
    day_ago_ms = client.env.wall_ms() - round(config.ORPHAN_BLOB_AGE_S * 1000)
    waiting = overdue = 0
    for shard in range(client.shard_count):
        with client.view(shard) as view:
            waiting += len(named_blobs.garbage(view))
            overdue += len(named_blobs.garbage(view, day_ago_ms))
    return waiting, overdue
