"""Jobs that would feed each other: what one writes into a stream comes back to it through others, for ever."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from onefold.compute.live.plan import StreamSink
from onefold.compute.plan.nodes import INTO_STREAM
from onefold.errors import InvalidPlan
from onefold.state.fold.live import rows as live_rows

if TYPE_CHECKING:
    from onefold.compute.live.job.stored import LiveJobs
    from onefold.compute.live.plan import LivePlan


def check_no_loop(jobs: LiveJobs, plan: LivePlan) -> None:
    """Raise InvalidPlan when a new job reads what comes, through jobs that are there, of the stream that it writes."""
    sink = plan.parts[-1].sink
    if not isinstance(sink, StreamSink) or jobs.find(plan.job) is not None:
        return
    feeds = _feeds(jobs)
    read = {one.stream for one in plan.parts[0].inputs if not one.history}
    ways: list[Sequence[str]] = [(sink.stream,)]
    seen: set[str] = set()
    while ways:
        way = ways.pop()
        if way[-1] in read:
            shown = " → ".join(map(repr, (way[-1], *way)))
            raise InvalidPlan(
                f"into_stream: jobs would feed each other for ever: {shown}. Write into another stream, or drop the other job"
            )
        if way[-1] not in seen:
            seen.add(way[-1])
            ways += [(*way, after) for after in sorted(feeds.get(way[-1], ()))]


def _feeds(jobs: LiveJobs) -> dict[str, set[str]]:
    """The streams that jobs write of each stream that they read. Needs none of their plans, which may not be loadable here."""
    feeds: dict[str, set[str]] = {}
    for found, is_current, row in jobs.all():
        name = found.job.name
        if not is_current or row.state in live_rows.OVER or not name.startswith(INTO_STREAM):
            continue
        with found.job.local() as view:
            parts = live_rows.parts(view, name, found.generation)
        for _, part in parts:
            for about, value in part.spec.signature:
                if about.partition(" ")[0] == "input":
                    feeds.setdefault(value, set()).add(name.removeprefix(INTO_STREAM))
    return feeds
