"""Planted errors: mistakes between programs and the fold of regions, each of which simulated programs must notice.

``planted(name)`` patches the product inside a ``with`` block; for tests of the tests only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from onefold.available import exchange
from onefold.available.effects import decode_effect
from onefold.available.ops import Import
from onefold.available.stamps import merged, ms_of
from onefold.errors import AppendUnknown, BelowFloor, TooStale, Unavailable
from onefold.fold.api import StoreView
from onefold.regions import runner
from onefold.state.available.bounded import Taking
from onefold.state.available.client import RegionClient
from onefold.state.available.levels import Levels
from onefold.state.core.tokens import RegionPart


@contextmanager
def planted(name: str) -> Iterator[None]:
    """The error is there inside the block. Raises KeyError for one that is not in ``BUGS``."""
    with ExitStack() as stack:
        BUGS[name](stack)
        yield


def _dropped_token(stack: ExitStack) -> None:
    """A session goes on without what its token saw in other regions."""

    def demand(self: RegionClient, part: RegionPart) -> None:
        if part.incarnation == self.incarnation:
            self.session.demand(part.offsets)

    stack.enter_context(patch.object(RegionClient, "demand", demand))


def _acknowledged_early(stack: ExitStack) -> None:
    """A puller tells that it has effects before its import is in the log, and so does not ask for them again."""
    told: dict[int, dict[int, int]] = {}
    original_ask, original_append = exchange.ask, runner.append

    def ask(view: StoreView) -> exchange.Ask:
        asked = original_ask(view)
        have = merged(asked.have, told.get(asked.number, {}))
        return asked if have == asked.have else exchange.Ask(asked.number, have, {}, b"")

    def append(shard: Any, op: Any) -> Any:
        if isinstance(op, Import):
            with shard.view() as view:
                number = original_ask(view).number
            found = {}
            for data in op.effects:
                effect = decode_effect(data)
                assert effect is not None
                found[effect.origin] = effect.seq
            told[number] = merged(told.get(number, {}), found)
        return original_append(shard, op)

    stack.enter_context(patch.object(exchange, "ask", ask))
    stack.enter_context(patch.object(runner, "append", append))


def _others_clock(stack: ExitStack) -> None:
    """``bounded`` takes the stamp of the latest effect of another region for the moment up to which that region is known."""
    original = Levels.fresh

    def fresh(self: Levels, shard: int, bound_s: float, timeout_s: float) -> None:
        client = self._client
        me = client.known(shard)
        limit_ms = client.env.wall_ms() - bound_s * 1000
        if any(number != me.number and ms_of(me.origin(number).hlc) < limit_ms for number in me.live()):
            original(self, shard, bound_s, timeout_s)

    stack.enter_context(patch.object(Levels, "fresh", fresh))


def _used_wish(stack: ExitStack) -> None:
    """What comes for a wish is taken after the wish was withdrawn, when the program is told that nothing is taken."""
    original = Taking._withdraw

    def withdraw(self: Taking, state: Any) -> None:
        original(self, state)
        if state.wish():
            self.client.shards[self.shard].pause(0.2)
            try:
                self._take()
            except (Unavailable, AppendUnknown, BelowFloor, TooStale):
                return

    stack.enter_context(patch.object(Taking, "_withdraw", withdraw))


BUGS: Mapping[str, Callable[[ExitStack], None]] = {
    "dropped_token": _dropped_token,
    "acknowledged_early": _acknowledged_early,
    "others_clock": _others_clock,
    "used_wish": _used_wish,
}
