"""A graph of "must come before" with kinds of edges, and the search for cycles in it.

Besides the real nodes there are helper nodes, which stand for many edges at once: a -> helper -> b means a -> b, of the
kind of the first edge. They keep graphs small in which each of n nodes comes before each of n others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_STARTS_MAX = 100


@dataclass(frozen=True, slots=True)
class Step:
    """One edge of a cycle: ``source`` must come before ``target``, and why."""

    source: int
    target: int
    kind: str
    why: str


class Graph:
    """Real nodes are the integers below ``nodes``; ``helper`` adds others."""

    def __init__(self, nodes: int) -> None:
        self.nodes = nodes
        self._edges: list[dict[int, dict[str, str]]] = [{} for _ in range(nodes)]

    def helper(self) -> int:
        """A new helper node."""
        self._edges.append({})
        return len(self._edges) - 1

    def add(self, source: int, target: int, kind: str, why: str) -> None:
        """``source`` must come before ``target``. Of several reasons of one kind the first is kept."""
        self._edges[source].setdefault(target, {}).setdefault(kind, why)

    def pass_on(self, helper: int, target: int) -> None:
        """Whatever comes before the helper comes before the target."""
        self._edges[helper].setdefault(target, {})[""] = ""

    def next(self, node: int, kinds: frozenset[str]) -> Iterator[int]:
        """Where the edges of these kinds lead."""
        for target, reasons in self._edges[node].items():
            if node >= self.nodes or not kinds.isdisjoint(reasons):
                yield target

    def reason(self, source: int, target: int, kinds: frozenset[str]) -> tuple[str, str]:
        """A kind of this edge among those, and why it is there."""
        return next((kind, why) for kind, why in self._edges[source][target].items() if kind in kinds)

    def components(self, kinds: frozenset[str]) -> list[list[int]]:
        """The strongly connected components of more than one node (Tarjan 1972, without recursion)."""
        index: dict[int, int] = {}
        low: dict[int, int] = {}
        stack: list[int] = []
        on_stack: set[int] = set()
        found: list[list[int]] = []
        for root in range(len(self._edges)):
            if root in index:
                continue
            work = [(root, self.next(root, kinds))]
            index[root] = low[root] = len(index)
            stack.append(root)
            on_stack.add(root)
            while work:
                node, targets = work[-1]
                for target in targets:
                    if target not in index:
                        index[target] = low[target] = len(index)
                        stack.append(target)
                        on_stack.add(target)
                        work.append((target, self.next(target, kinds)))
                        break
                    if target in on_stack:
                        low[node] = min(low[node], index[target])
                else:
                    work.pop()
                    if work:
                        low[work[-1][0]] = min(low[work[-1][0]], low[node])
                    if low[node] == index[node]:
                        at = _last_place(stack, node)
                        component = stack[at:]
                        del stack[at:]
                        on_stack.difference_update(component)
                        if len(component) > 1:
                            found.append(component)
        return found


def find_cycle(graph: Graph, kinds: frozenset[str], once: str | None = None) -> list[Step] | None:
    """A short cycle of edges of these kinds, and, if ``once`` is given, of exactly one edge of that kind besides.

    It is the shortest of its component, or in a large component the shortest of those through its first nodes.
    None if there is no such cycle: that answer is exact.
    """
    best: list[int] | None = None
    allowed = kinds if once is None else kinds | {once}
    for component in graph.components(allowed):
        inside = frozenset(component)
        tried = 0
        for node in sorted(component):
            if node >= graph.nodes:
                continue
            first = (
                [node] if once is None else [t for t in graph.next(node, frozenset({once})) if t in inside]
            )
            for start in first:
                if best is not None and tried >= _STARTS_MAX:
                    break
                tried += 1
                path = _shortest_path(graph, start, node, kinds, inside)
                if path is not None:
                    cycle = path if once is None else [node, *path]
                    best = cycle if best is None or _length(graph, cycle) < _length(graph, best) else best
    return None if best is None else _steps(graph, best, kinds, once)


def _last_place(stack: Sequence[int], node: int) -> int:
    place = len(stack) - 1
    while stack[place] != node:
        place -= 1
    return place


def _length(graph: Graph, path: Sequence[int]) -> int:
    return sum(node < graph.nodes for node in path)


def _shortest_path(
    graph: Graph, start: int, goal: int, kinds: frozenset[str], inside: frozenset[int]
) -> list[int] | None:
    """The nodes from start to goal over at least one edge; helpers cost nothing (0-1 breadth first search)."""
    distance: dict[int, int] = {}
    came: dict[int, int] = {}
    queue = deque([(0, start)])
    settled: set[int] = set()
    while queue:
        length, node = queue.popleft()
        if node == goal and goal in came:
            return _trace(came, start, goal)
        if node in settled:
            continue
        settled.add(node)
        cost = 1 if node < graph.nodes else 0
        for target in graph.next(node, kinds):
            if target in inside and (target not in distance or length + cost < distance[target]):
                distance[target] = length + cost
                came[target] = node
                (queue.append if cost else queue.appendleft)((length + cost, target))
    return None


def _trace(came: dict[int, int], start: int, goal: int) -> list[int]:
    path = [goal, came[goal]]
    while path[-1] != start:
        path.append(came[path[-1]])
    return path[::-1]


def _steps(graph: Graph, path: Sequence[int], kinds: frozenset[str], once: str | None) -> list[Step]:
    """The path without its helpers. The edge of the kind ``once`` is the first."""
    steps: list[Step] = []
    source, kind, why = path[0], "", ""
    for i in range(len(path) - 1):
        node, target = path[i], path[i + 1]
        if node < graph.nodes:
            wanted = frozenset({once}) if once is not None and i == 0 else kinds
            source, (kind, why) = node, graph.reason(node, target, wanted)
        if target < graph.nodes:
            steps.append(Step(source, target, kind, why))
    return steps
