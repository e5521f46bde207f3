"""Raising the fold version: only when every member can apply it, since one that cannot would stop."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from onefold.errors import SpaceError
from onefold.fold.nodes.state import Node
from onefold.node.hosting import Replica


def too_old(nodes: Iterable[Node], version: int) -> list[str]:
    """The members that could not go on if folds applied by ``version``."""
    return [node.name for node in nodes if node.member and node.state.fold_version_max < version]


def raise_fold_version(nodes: Iterable[Node], replicas: Mapping[int, Replica], version: int) -> None:
    """From here on the folds of these shards apply by ``version``; shard 0 last, since joining nodes are checked against it.

    Raises SpaceError, naming them, when members are too old for it; and as ``Space.submit``.
    """
    old = too_old(nodes, version)
    if old:
        raise SpaceError(
            f"fold version {version} is not known to {', '.join(old)}. Upgrade them first: pip install -U onefold"
        )
    for shard in sorted(replicas, reverse=True):
        with replicas[shard].view() as view:
            if view.head().fold_version >= version:
                continue
        replicas[shard].raise_fold_version(version)
