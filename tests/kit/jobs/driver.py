"""Speaks to a jobs fold as a log would, one operation after the other, with short words for tests."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

from onefold.compute.jobs import ops, state
from onefold.compute.jobs.fold import JobsFold
from onefold.compute.jobs.ops import Accepted, Assignment, Refused, StageSpec
from onefold.compute.jobs.read_rows import RunRow
from onefold.compute.plan.stages import Failure, Result
from onefold.fold.api import Context
from onefold.testing.memory_store import MemoryStore

_decode = msgspec.msgpack.Decoder(ops.Outcome).decode


def identity(name: str) -> bytes:
    """A task identity that can be read."""
    return name.encode().ljust(16, b".")


def stage(names: str, *needs: int) -> StageSpec:
    """A stage of one task per word."""
    words = names.split()
    return StageSpec(
        tuple(identity(word) for word in words), tuple(needs), f"inputs-{names}", tuple(10 for _ in words)
    )


@dataclass
class Jobs:
    """A fold over a memory store, spoken to like a log."""

    store: MemoryStore = field(default_factory=MemoryStore)
    fold: JobsFold = field(default_factory=JobsFold)
    offset: int = 0
    log: list[bytes] = field(default_factory=list)

    def do(self, operation: ops.Operation) -> Any:
        """Append an operation; its outcome."""
        return self.do_bytes(msgspec.msgpack.encode(operation))

    def do_bytes(self, body: bytes) -> Any:
        """Append any bytes; a refusal must not have written anything."""
        self.offset += 1
        self.log.append(body)
        before = self.store.digest()
        outcome = _decode(
            self.fold.apply(self.store, Context(self.offset, 0, self.offset * 10, "c", None), body, 1)
        )
        if isinstance(outcome, Refused):
            assert self.store.digest() == before, f"a refused operation wrote something: {outcome}"
        return outcome

    def submit(self, run: str, /, *stages: StageSpec, **changes: Any) -> Any:
        values: dict[str, Any] = {
            "run": run, "table": "t", "sink": "table", "mode": "continue", "version": None, "digest": "d",
            "columns": ("k", "n"), "plan": f"plan-{run}", "seed": 7, "on_error": "fail", "max_attempts": 2,
            "stages": stages, "member": "m", "explain": f"explain-{run}",
        }  # fmt: skip
        if "expect" not in changes:
            table = state.read_table(self.store, changes.get("table", "t"))
            values["expect"] = table.head if table is not None else None
        return self.do(ops.Submit(**(values | changes)))

    def claim(self, run: str, count: int = 1, worker: str = "m/0") -> tuple[Assignment, ...]:
        outcome = self.do(ops.Claim(run, worker, count))
        assert isinstance(outcome, Accepted), outcome
        return outcome.assignments

    def done(self, run: str, task: Assignment, blob: str | None = None, **values: Any) -> Any:
        result = Result(blob=blob, **values) if blob else Result(inline=b"x", **values)
        return self.do(ops.Done(run, task.stage, task.index, task.epoch, result))

    def failed(self, run: str, task: Assignment, **values: Any) -> Any:
        return self.do(
            ops.Failed(run, task.stage, task.index, task.epoch, Failure(**({"message": "boom"} | values)))
        )

    def finish(self, run: str, label: str = "") -> None:
        """Do all that is open."""
        while tasks := self.claim(run, 100):
            for task in tasks:
                assert isinstance(self.done(run, task, f"{label}{task.stage}-{task.index}"), Accepted)
            if self.run(run).state != "running":
                return

    def run(self, run: str) -> RunRow:
        row = state.read_run(self.store, run)
        assert row is not None
        return row

    def places(self, run: str, count: int = 100) -> list[tuple[int, int]]:
        return [(task.stage, task.index) for task in self.claim(run, count)]
