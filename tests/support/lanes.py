"""How the tests are spread over several workers: two lanes side by side, one that waits and one that computes.

Files that mostly wait for servers and processes stay whole, since their tests share them. So do the other files, but for the
simulations: each of their tests is a run of its own, so whoever is free takes the next one, and all workers end together.
Half of the workers compute first, and the others wait first; where a lane is empty, its workers help in the other one.
"""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

WAITING = ("cluster", "conformance", "faults", "docs")
"""Folders whose tests mostly wait for servers and processes."""
ALONE = "sim"
"""The folder whose tests share nothing."""
LONGEST = (
    "tests/faults/test_cluster_faults.py",
    "tests/cluster/test_fire.py",
    "tests/cluster/test_cluster_backup.py",
    "tests/cluster/test_jobs_cluster.py",
    "tests/cluster/test_doctor.py",
)
"""Files that take longest, first to last: they begin first, so that none of them is the last."""


def waits(nodeid: str) -> bool:
    """Whether a test, or a file, belongs to the lane that waits."""
    return _folder(nodeid) in WAITING


def _folder(nodeid: str) -> str:
    """The folder of tests that a file is in; nothing for one in the project's root."""
    return "".join(PurePosixPath(nodeid.partition("::")[0]).parts[1:2])


def in_order(items: list[pytest.Item]) -> list[pytest.Item]:
    """The longest files first, the simulations last; otherwise as they were."""
    place = {path: number for number, path in enumerate(LONGEST)}

    def rank(item: pytest.Item) -> int:
        path = item.nodeid.partition("::")[0]
        return len(LONGEST) + 1 if _folder(path) == ALONE else place.get(path, len(LONGEST))

    return sorted(items, key=rank)


class Lanes(LoadScopeScheduling):
    """Gives each worker a file, or a simulation, of its lane."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        return nodeid if _folder(path) == ALONE else path

    def _assign_work_unit(self, node: WorkerController) -> None:
        number = int(node.gateway.id.removeprefix("gw"))
        wanted = number >= self.numnodes // 2
        found = next((scope for scope in self.workqueue if waits(scope) == wanted), None)
        if found is not None:
            self.workqueue.move_to_end(found, last=False)
        super()._assign_work_unit(node)
