"""What is in a space: its collections by kind and name, and a view of all shards at one instant."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING

from onefold.machine.first_use import first_use
from onefold.shard.api import View
from onefold.space import cuts
from onefold.state.core import recovery
from onefold.state.core.client import StateClient
from onefold.state.core.contents import Collection, CollectionKind
from onefold.state.fold.shards import fold as shard_fold
from onefold.state.kinds import KINDS

if TYPE_CHECKING:
    from onefold.state.available.client import RegionClient

__all__ = ["Collection", "CollectionKind", "collections", "cut"]


def cut(client: StateClient) -> AbstractContextManager[list[View]]:
    """A view of every shard, all of one instant, and no transaction in them that is decided and not carried out.

    Raises as ``space.cuts.cut``.
    """

    def settle() -> None:
        for shard_id in range(client.shard_count):
            recovery.settle(client, shard_id)

    def retry(views: Sequence[View]) -> Callable[[], None] | None:
        return settle if any(_is_undone(views, view) for view in views) else None

    return cuts.cut(client.shards, lambda shard: shard.view(), lambda view: view.offset, retry=retry)


def _is_undone(views: Sequence[View], view: View) -> bool:
    if len(views) == 1:
        return False
    return any(
        0 <= prepared.home < len(views)
        and shard_fold.standing(views[prepared.home], transaction) == "committed"
        for transaction, prepared in shard_fold.prepared_in(view)
    )


def collections(client: StateClient) -> list[Collection]:
    """Maps, queues, streams and locks that hold something, by kind and name. Counts every item: the time grows with them."""
    with ExitStack() as stack:
        views = [stack.enter_context(client.view(shard_id)) for shard_id in range(client.shard_count)]
        return [collection for kind in KINDS for collection in kind.collections(views)]


def available_collections(region: RegionClient) -> list[Collection]:
    """Those of a region that hold something, by name. Counts as ``collections``."""
    with first_use:
        from onefold.state.available import contents

    with ExitStack() as stack:
        views = [stack.enter_context(region.view(shard_id)) for shard_id in range(region.shard_count)]
        return list(contents.collections(views, region.env.wall_ms()))
