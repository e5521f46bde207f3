"""A node as one process: it hosts the logs of the space, and in a space of several regions those of its region too.

Each of the two has a thread that decides (``process.Node``), and neither waits for the other. So while the space's logs have no
majority, a region's are still hosted, also by a node that starts meanwhile. When one of them fails, the process ends.
"""

from __future__ import annotations

import threading
from typing import Any

from onefold.node.process import Node


class Life:
    """``run`` in one thread; the rest from any."""

    def __init__(self, space: Node, region: Node | None = None) -> None:
        self._space = space
        self._region = region
        self._failed: BaseException | None = None

    def run(self) -> None:
        """Live until ``stop``, then leave. Raises as ``Node.run`` of either."""
        if self._region is None:
            self._space.run()
            return
        other = threading.Thread(target=self._run_region, args=(self._region,), name="onefold-region")
        other.start()
        try:
            self._space.run()
        finally:
            self._region.stop()
            other.join()
        if self._failed is not None:
            raise self._failed

    def stop(self) -> None:
        """Leave: others take over first. May be called in a signal handler."""
        for node in self._nodes:
            node.stop()

    def live(self) -> dict[str, Any]:
        """For ``/live``: whether the threads that decide continue."""
        return self._both([node.live() for node in self._nodes])

    def ready(self) -> dict[str, Any]:
        """For ``/ready``: whether this node answers, with all that was acknowledged, for everything that it is to host."""
        return self._both([node.ready() for node in self._nodes])

    @property
    def _nodes(self) -> list[Node]:
        return [node for node in (self._space, self._region) if node is not None]

    def _both(self, found: list[dict[str, Any]]) -> dict[str, Any]:
        """What is said of the space's logs, and under ``region`` what is said of the region's. ``ok`` is about both."""
        first, *others = found
        for other in others:
            first = {**first, "ok": first["ok"] and other["ok"], "region": other}
        return first

    def _run_region(self, region: Node) -> None:
        try:
            region.run()
        except BaseException as error:
            self._failed = error
        finally:
            self._space.stop()  # no node of one half
