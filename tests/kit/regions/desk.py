"""Regions without faults, for tests that say step by step what happens."""

from __future__ import annotations

from typing import Any

from kit.regions.region import SimRegion
from onefold.available import exchange, ops
from onefold.available.ops import AnyRequest

START_MS = 1_000_000


class Desk:
    """Some regions, founded together. ``now_ms``: their clock."""

    def __init__(self, count: int = 2) -> None:
        self.now_ms = START_MS
        self.regions = {number: SimRegion(number, f"r{number}") for number in range(1, count + 1)}
        for number in self.regions:
            for other in self.regions:
                self.append(number, ops.Admit(other, f"r{other}", here=number == other, founder=True))

    def __getitem__(self, number: int) -> SimRegion:
        return self.regions[number]

    def append(self, number: int, op: ops.AvailableOp, request_id: str | None = None) -> Any:
        """Append an operation in a region; its outcome."""
        return self.regions[number].append(op, self.now_ms, request_id)

    def do(self, number: int, *requests: AnyRequest, request_id: str | None = None, **options: Any) -> Any:
        """A program of a region does something; its outcome."""
        return self.append(number, ops.Do(requests, **options), request_id)

    def ok(self, number: int, *requests: AnyRequest, **options: Any) -> Any:
        """Likewise, and it is accepted. The result of the first request."""
        outcome = self.do(number, *requests, **options)
        assert isinstance(outcome, ops.Committed), outcome
        return outcome.results[0]

    def reply(self, asks: int, answers: int) -> exchange.Reply:
        """What one region answers another."""
        return exchange.answer(self[answers].store, self[asks].ask())

    def pull(self, asks: int, answers: int) -> Any:
        """One region takes what it lacks from another; the outcome of the import."""
        return self.append(asks, self.reply(asks, answers).as_import())

    def sync(self, asks: int, answers: int, id: str = "s") -> Any:
        """One region gets the rows of another; the outcome of the last step."""
        outcome = None
        for op in exchange.sync_ops(self[answers].store, id):
            outcome = self.finish(asks, op)
        return outcome

    def finish(self, number: int, op: ops.AvailableOp) -> Any:
        """Append an operation of a full sync, as often as it has more to do."""
        while exchange.continues(op, outcome := self.append(number, op)):
            pass
        return outcome

    def round(self) -> None:
        """Each pulls from each other one, and beats if it owes a beat."""
        for asks in self.regions:
            for answers in self.regions:
                if asks != answers and self.reply(asks, answers).effects:
                    self.pull(asks, answers)
        for number in self.regions:
            self.append(number, ops.Beat())

    def shown(self) -> list[dict[tuple[str, bytes], Any]]:
        """What each region shows."""
        return [region.shown() for region in self.regions.values()]
