"""Blobs of shared state, wherever they are: those that are missing, and those that wait to be removed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from onefold import config
from onefold.compute.live.output.left import say_given_up
from onefold.compute.upkeep.duties import DUTIES, Space
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


def check_garbage(client: StateClient, blobs: BlobStore, *, fix: bool, deep: bool = False) -> Check:
    """What waits to be done for the whole space (``duties``): blobs that nothing names, and what was kept for live jobs that are
    over. ``fix`` does it. ``deep``: look also for what can be found only by listing a place that machines share."""
    space = Space(client, lambda: blobs, _say)
    lists = deep or not blobs.shared
    waiting, overdue = _counts(client)
    in_common = _in_common(blobs, waiting) if waiting or fix or deep else None
    if in_common is not None:
        return in_common
    if fix:
        return _done(space, waiting, overdue)
    due, unread = [], ""
    for duty in DUTIES:
        if lists or not duty.lists_place:
            try:
                count = duty.waits(space)
            except (OnefoldError, OSError) as error:
                let_pass(error)
                unread = unread or f"; what else waits cannot be read: {error}".rstrip(".")
                continue
            if count and duty.name != "garbage":  # which is among those that wait
                due.append(f"{count} {duty.what}")
    found = (
        f"{waiting} blobs that nothing names wait to be removed" if waiting else "no blobs wait to be removed"
    )
    return Check(
        "garbage",
        "warn" if overdue else "ok",
        "; ".join((found, *due)) + unread,
        f"{overdue} of them for longer than a day: `onefold doctor --fix` removes them, and so does a node"
        if overdue
        else "",
    )


def _in_common(blobs: BlobStore, waiting: int) -> Check | None:
    """That nothing can be removed, since other spaces have the place too; None where that is not so, or not known."""
    try:
        others = sorted(blobs.other_spaces())
    except (OnefoldError, OSError) as error:
        let_pass(error)
        return None  # what cannot be listed is said of what is to be done there
    if not others:
        return None
    return Check(
        "garbage",
        "warn",
        f"{waiting} blobs that nothing names wait, and stay: {len(others)} other spaces keep blobs in the same place, and "
        "may name them",
        "Make a backup, and restore it under another name (`onefold restore`): a new space has a folder of its own. Where "
        f"{', '.join(others[:3])} is gone, remove the file of that name from the folder `spaces` there",
    )


def _done(space: Space, waiting: int, overdue: int) -> Check:
    removed, failed = 0, list[str]()
    for duty in DUTIES:
        try:
            done = duty.do(space)
        except (OnefoldError, OSError) as error:
            let_pass(error)
            if str(error) not in failed:
                failed.append(str(error))
            continue
        removed += done if duty.removes_blobs else 0
    if not failed:
        return Check("garbage", "ok", f"{removed} blobs that nothing names were removed")
    return Check(
        "garbage",
        "warn" if overdue else "skipped",
        f"{waiting} blobs that nothing names cannot be removed here: {'; '.join(failed)}".rstrip("."),
        "On a cluster nodes remove them; give the credential of a node, or of the admin" if overdue else "",
    )


def _say(_: str, fields: dict[str, Any]) -> None:
    say_given_up(fields["why"])


def _counts(client: StateClient) -> tuple[int, int]:
    """(what waits, what has waited for longer than a day)."""
    day_ago_ms = client.env.wall_ms() - round(config.ORPHAN_BLOB_AGE_S * 1000)
    waiting = overdue = 0
    for shard in range(client.shard_count):
        with client.view(shard) as view:
            waiting += len(named_blobs.garbage(view))
            overdue += len(named_blobs.garbage(view, day_ago_ms))
    return waiting, overdue
