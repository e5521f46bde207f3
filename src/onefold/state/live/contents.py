"""All live jobs of a space: see ``state.core.contents``. They are not exported: their results are, as rows of what they write."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from onefold.shard.api import View
from onefold.state.core.contents import Collection, Contents
from onefold.state.fold.live import rows as live_rows


def _collections(views: Sequence[View]) -> Iterator[Collection]:
    """With the number of bundles of the present generation."""
    for shard, view in enumerate(views):
        for name, row in live_rows.jobs(view):
            parts = live_rows.parts(view, name, row.current)
            bundles = sum(len(live_rows.bundles(view, key)) for key, _ in parts)
            yield Collection("live job", name, bundles, (shard,))


def _holders(view: View) -> Iterator[tuple[str, str]]:
    for name, _ in live_rows.jobs(view):
        for generation, _ in live_rows.generations(view, name):
            for row in live_rows.workers(view, name, generation).values():
                yield f"lanes of the live job {name!r}", row.member


CONTENTS = Contents(_collections, holders=_holders)
