"""Raising the fold version: only when every member can apply it, since one that cannot would stop."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from onefold.errors import SpaceError
from onefold.fold import authority
from onefold.fold.api import NEWEST_VERSION
from onefold.fold.nodes.state import Node
from onefold.log.api import TrustedLog
from onefold.node.hosting import Replica

if TYPE_CHECKING:
    from onefold.node.maintenance import Round
    from onefold.node.telemetry.logging import JsonLog


def too_old(nodes: Iterable[Node], version: int) -> list[str]:
    """The members that could not continue if folds applied by ``version``."""
    return [node.name for node in nodes if node.member and node.state.fold_version_max < version]


def raise_fold_version(nodes: Iterable[Node], replicas: Mapping[int, Replica], version: int) -> None:
    """From here on the folds of these shards apply by ``version``; shard 0 last, since joining nodes are checked against it.

    Raises SpaceError, naming them, when members are too old for it; and as ``Shard.submit``.
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


class Authority:
    """Brings in force that some operations count only where nodes publish, in a space of an earlier release: one of the duties.

    The first node of a shard does it for the shard once ``onefold init`` has given its log the nodes' subject and every member
    knows the version: shard 0 first, against which nodes that join are checked.
    """

    def __init__(self, name: str, log: JsonLog) -> None:
        self._name = name
        self._log = log
        self._done: set[int] = set()

    def look(self, now: Round) -> None:
        """Raise what is due. Raises as ``Shard.submit`` and ``TrustedLog.takes_trusted``."""
        for shard, replica in now.hosted.items():
            if shard in self._done or now.placement.get(shard, ("",))[0] != self._name:
                continue
            if self._is_in_force(replica):
                self._done.add(shard)
            elif shard == 0 or self._is_in_force(now.hosted[0]):
                self._raise(now, shard, replica)

    def _raise(self, now: Round, shard: int, replica: Replica) -> None:
        if not isinstance(replica.log, TrustedLog):
            return  # every record of it is trusted
        if not replica.log.takes_trusted():
            self._log.begins(
                "node_authority_unenforced",
                "the logs have no subject for nodes alone yet, so anybody who can write can append what only nodes should. Run "
                "`onefold init` again with the admin's credential, after giving the servers the users' new permissions",
            )
            return
        old = too_old(now.nodes, authority.IN_FORCE_VERSION)
        if old:
            self._log.begins("node_authority_unenforced", f"until these nodes are upgraded: {', '.join(old)}")
            return
        replica.raise_fold_version(authority.IN_FORCE_VERSION)
        self._log.ends("node_authority_unenforced")
        self._log.info("fold_version_raised", shard=shard, version=authority.IN_FORCE_VERSION)

    def _is_in_force(self, replica: Replica) -> bool:
        with replica.view() as view:
            return authority.in_force(view.head().fold_version)


class NewestVersion:
    """Brings the fold version of this release in force, once every member knows it: one of the duties.

    The first node of a shard does it for the shard, shard 0 first. It waits until ``Authority`` has done its part. Programs of an
    earlier release that keep a replica then stop, and say that they are to be upgraded.
    """

    def __init__(self, name: str, log: JsonLog) -> None:
        self._name = name
        self._log = log
        self._done: set[int] = set()

    def look(self, now: Round) -> None:
        """Raise what is due. Raises as ``Shard.submit``."""
        for shard, replica in now.hosted.items():
            if shard in self._done or now.placement.get(shard, ("",))[0] != self._name:
                continue
            version = _version(replica)
            if version >= NEWEST_VERSION:
                self._done.add(shard)
            elif self._is_due(now, shard, version):
                replica.raise_fold_version(NEWEST_VERSION)
                self._log.info("fold_version_raised", shard=shard, version=NEWEST_VERSION)

    def _is_due(self, now: Round, shard: int, version: int) -> bool:
        if not authority.in_force(version) or too_old(now.nodes, NEWEST_VERSION):
            return False
        return shard == 0 or _version(now.hosted[0]) >= NEWEST_VERSION


def _version(replica: Replica) -> int:
    with replica.view() as view:
        return view.head().fold_version
