"""Planted errors: mistakes that somebody could make in the fold of regions, each of which the simulation must notice.

``planted(name)`` patches the product inside a ``with`` block; for tests of the tests only. Gives the options of the world that
belong to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from onefold.available import fold, following, home, imports, ops, out, regions
from onefold.available.applying import Source
from onefold.available.effects import AnyWrite
from onefold.available.kinds.counts import Counter
from onefold.available.kinds.shares import Shares
from onefold.available.ops import Do, Rejected
from onefold.available.out import finish
from onefold.available.regions import Known, Sync
from onefold.available.rows import Working
from onefold.available.stamps import ms_of
from onefold.available.sync import joining, staging

Patch = Callable[[ExitStack], None]


@contextmanager
def planted(name: str | None) -> Iterator[dict[str, Any]]:
    """The error is there inside the block. Raises KeyError for one that is not in ``BUGS``."""
    with ExitStack() as stack:
        if name is not None and name != "old_number":
            BUGS[name](stack)
        yield OPTIONS.get(name or "", {})


def _by_age(stack: ExitStack) -> None:
    """Tombstones are collected when they are old enough, whoever knows them."""
    original = Working.write_rows

    def write_rows(self: Working, stable: Mapping[int, int]) -> None:
        limit_ms = self.now_ms - 3000
        old = {number: one.seq for number, one in self.me.origins.items() if ms_of(one.hlc) < limit_ms}
        original(self, {**stable, **old})

    stack.enter_context(patch.object(Working, "write_rows", write_rows))


def _gaps(stack: ExitStack) -> None:
    """An import takes what comes behind a gap."""
    original = imports.why_not

    def why_not(work: Working, effect: Any) -> str | None:
        reason = original(work, effect)
        return None if reason == "gap" else reason

    stack.enter_context(patch.object(imports, "why_not", why_not))


def _no_dependencies(stack: ExitStack) -> None:
    """An import does not wait for what an effect was made from."""
    stack.enter_context(patch.object(imports, "has", lambda me, deps: True))


def _looks_at_value(stack: ExitStack) -> None:
    """A bounded counter compares its value with the floor."""

    def rights(self: Shares, region: int, floor: int, heirs: Any) -> int:
        return self.value() - floor

    stack.enter_context(patch.object(Shares, "rights", rights))


def _grants_all(stack: ExitStack) -> None:
    """What is missing is granted, whether it is there or not."""
    stack.enter_context(patch.object(following, "amount", lambda here, missing: missing))


def _union(stack: ExitStack) -> None:
    """A full sync takes and keeps whatever either side has."""
    stack.enter_context(patch.object(Known, "joined_vectors", lambda self: ({}, {})))


def _early_switch(stack: ExitStack) -> None:
    """A full sync ends with the first rows that are joined."""
    original = joining.join_some

    def join_some(work: Working, sync: Sync) -> bool:
        original(work, sync)
        return True

    stack.enter_context(patch.object(staging, "join_some", join_some))


def _rows_missing(stack: ExitStack) -> None:
    """A full sync ends although rows were lost on their way."""

    def end(work: Working, op: ops.SyncEnd) -> Any:
        sync = work.me.sync
        return staging.end(work, op if sync is None else ops.SyncEnd(op.id, sync.staged))

    stack.enter_context(patch.dict(fold.OPERATIONS, {ops.SyncEnd: end}))


def _lost_meanwhile(stack: ExitStack) -> None:
    """What is written while rows are joined changes the old ones only."""
    original = Working.write_rows

    def write_rows(self: Working, stable: Mapping[int, int]) -> None:
        sync = self.joining
        if sync is not None:
            sync.joining = False
        original(self, stable)
        if sync is not None:
            sync.joining = True

    stack.enter_context(patch.object(Working, "write_rows", write_rows))


def _no_session(stack: ExitStack) -> None:
    """What a session has seen is not looked at."""

    def behind(work: Working, op: Do) -> Rejected | None:
        return None

    stack.enter_context(patch.object(home, "_behind", behind))


def _split(stack: ExitStack) -> None:
    """The writes of one transaction travel as two effects."""

    def half(
        work: Working, source: Source, writes: tuple[AnyWrite, ...], request_id: Any = None, results: Any = ()
    ) -> None:
        finish(work, source, writes[:1], request_id, results)
        if writes[1:]:
            second = out.next_source(work)
            finish(work, second, writes[1:])

    stack.enter_context(patch.object(home, "finish", half))


def _evicted_alone(stack: ExitStack) -> None:
    """Each region decides by itself how far an evicted one counts."""

    def settle(me: Known) -> bool:
        changed = False
        for number, region in me.evicted():
            if not region.out:
                region.limit = me.origin(number).seq
                region.final = region.out = changed = True
        return original(me) or changed

    original = regions.settle
    stack.enter_context(patch.object(regions, "settle", settle))


def _one_round(stack: ExitStack) -> None:
    """A vote of an earlier round counts for a later eviction."""

    def settle(me: Known) -> bool:
        rounds = {number: origin.round for number, origin in me.origins.items()}
        for origin in me.origins.values():
            origin.round = me.round if origin.round else 0
        changed = original(me)
        for number, round in rounds.items():
            me.origins[number].round = round
        return changed

    original = regions.settle
    stack.enter_context(patch.object(regions, "settle", settle))


def _not_admitted(stack: ExitStack) -> None:
    """A region that comes again writes at once."""
    stack.enter_context(patch.object(regions, "_admits", lambda me, number: True))


def _no_births(stack: ExitStack) -> None:
    """A counter's part is continued after a delete that has seen all of it."""

    def birth(self: Counter, region: int, seq: int) -> int:
        part = self.regions.get(region)
        return seq if part is None else part.birth

    stack.enter_context(patch.object(Counter, "birth", birth))


OPTIONS: dict[str, dict[str, Any]] = {
    "old_number": {"old_number": True},
    "no_dependencies": {"count": 3},
    "one_round": {"count": 4, "turnover": 4},
    "not_admitted": {"turnover": 4},
}
"""What the world needs in addition, so that they are noticed soon."""

BUGS: dict[str, Patch] = {
    "tombstones_by_age": _by_age,
    "gaps": _gaps,
    "no_dependencies": _no_dependencies,
    "looks_at_value": _looks_at_value,
    "grants_all": _grants_all,
    "union": _union,
    "early_switch": _early_switch,
    "rows_missing": _rows_missing,
    "lost_meanwhile": _lost_meanwhile,
    "no_session": _no_session,
    "split": _split,
    "evicted_alone": _evicted_alone,
    "one_round": _one_round,
    "not_admitted": _not_admitted,
    "no_births": _no_births,
}
