"""What a plan changes of a job that it continues: its steps and functions, which are not in the signature."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from onefold.compute.code.canonical.values import Normaliser
from onefold.compute.live.plan import CallbackSink, LivePlan
from onefold.compute.plan.nodes import Explode, Filter, FlatMap, Map, MapBatches, Select, WithColumns

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onefold.compute.live.plan import LivePart

_NAMES: dict[type, str] = {
    Select: "select",
    WithColumns: "with_columns",
    Filter: "filter",
    Explode: "explode",
    Map: "map",
    FlatMap: "flat_map",
    MapBatches: "map_batches",
}


def changes(old: LivePlan, new: LivePlan) -> list[str]:
    """The steps by their names that differ, each once. What has no canonical form is not compared."""
    found: dict[str, None] = {}
    for before, after in zip(old.parts, new.parts, strict=False):
        ours, theirs = list(_steps(after)), list(_steps(before))
        if [name for name, _ in ours] != [name for name, _ in theirs]:
            found.update(dict.fromkeys(name for name, _ in max(ours, theirs, key=len)))
            continue
        for (name, value), (_, other) in zip(ours, theirs, strict=True):
            if _differ(value, other):
                found[name] = None
    return list(found)


def _steps(part: LivePart) -> Iterator[tuple[str, tuple[object, ...]]]:
    for one in part.inputs:
        for step in one.steps:
            yield _NAMES[type(step)], tuple(getattr(step, name) for name in step.__slots__ if name != "input")
    if isinstance(part.sink, CallbackSink):
        yield "for_each", (part.sink.fn,)


def _differ(value: Any, other: Any) -> bool:
    ours, theirs = Normaliser(), Normaliser()
    digests = ours.digest(value), theirs.digest(other)
    return digests[0] != digests[1] and not ours.unstable and not theirs.unstable
