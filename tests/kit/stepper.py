"""Threads of which one at a time continues, from step to step, in an order that a seed gives; any of them can be killed at any
step.

For code that waits and appends in plain calls: a ``SteppedShard`` makes a step of everything that others could come in
between of.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, cast

from onefold.codec import Op
from onefold.env import SeededEnv
from onefold.shard.api import Shard, View
from onefold.shard.receipts import Receipt
from onefold.shard.requirements import ReadRequirement

_STEPS_MAX = 200_000


class Killed(BaseException):
    """The process of this thread is gone: nothing that it would still do happens."""


class Worker:
    """One thread. ``kill_at``: the step (from 1) instead of which it is killed."""

    def __init__(self, work: Callable[[], object], kill_at: int | None = None) -> None:
        self.steps = 0
        self.killed = self.ended = False
        self.error: BaseException | None = None
        self._work = work
        self._kill_at = kill_at
        self._turn, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._thread: threading.Thread | None = None

    def begin(self, registry: dict[int, Worker]) -> None:
        """Start the thread, which waits for its first turn."""
        self._thread = threading.Thread(target=self._run, args=(registry,), daemon=True)
        self._thread.start()

    def go_on(self) -> None:
        """Let it take a step."""
        self._turn.release()
        self._back.acquire()

    def pause(self) -> None:
        """Called by the thread itself: its step is over, the next one begins at its next turn. Raises Killed."""
        self.steps += 1
        if self.killed or self.steps == self._kill_at:
            self.killed = True  # permanent: nothing it still tries on its way out counts
            raise Killed
        self._back.release()
        self._turn.acquire()

    def join(self) -> None:
        """Wait for the thread's end and raise what it raised."""
        if self._thread is not None:
            self._thread.join()
        if self.error is not None:
            raise self.error

    def _run(self, registry: dict[int, Worker]) -> None:
        registry[threading.get_ident()] = self
        self._turn.acquire()
        try:
            self._work()
        except Killed:
            self.killed = True
        except BaseException as error:
            self.error = error
        del registry[threading.get_ident()]
        self.ended = True
        self._back.release()


class Stepper:
    """Runs workers one step at a time."""

    def __init__(self, seed: int) -> None:
        self.steps = 0
        """Steps taken by all of them: a clock for histories."""
        self._random = random.Random(seed)
        self._workers: list[Worker] = []
        self._of_thread: dict[int, Worker] = {}

    def start(self, work: Callable[[], object], kill_at: int | None = None) -> Worker:
        """Another worker, for the next ``run``."""
        worker = Worker(work, kill_at)
        self._workers.append(worker)
        return worker

    def step(self) -> None:
        """A step ends here, if a worker calls; calls of other threads do nothing."""
        self.steps += 1
        worker = self._of_thread.get(threading.get_ident())
        if worker is not None:
            worker.pause()

    def run(self) -> None:
        """Let all of them continue until they have ended; raises what one of them raised, and AssertionError when they never
        end."""
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.begin(self._of_thread)
        for _ in range(_STEPS_MAX):
            running = [worker for worker in workers if not worker.ended]
            if not running:
                break
            self._random.choice(running).go_on()
        else:
            raise AssertionError("the workers never end")
        for worker in workers:
            worker.join()


class SteppedShard:
    """A space whose appends, views, waits and pauses are steps. Time passes in pauses."""

    def __init__(
        self, inner: Shard, stepper: Stepper, env: SeededEnv, alive: Callable[[str], bool | None]
    ) -> None:
        """``alive``: what is known of members, see ``Shard.member_alive``."""
        self.inner = inner
        self._stepper = stepper
        self._env = env
        self._alive = alive

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def submit(
        self, ops: Sequence[Op], deadline: float | None = None, receipt: Receipt | None = None
    ) -> list[bytes]:
        """See ``Shard``."""
        self._stepper.step()
        outcomes = self.inner.submit(ops, deadline, receipt)
        self._stepper.step()
        return outcomes

    def view(
        self, at: int | None = None, need: ReadRequirement | None = None
    ) -> AbstractContextManager[View]:
        """See ``Shard``."""
        self._stepper.step()
        return self.inner.view(at, need)

    def peek(
        self, table: str, key: bytes, need: ReadRequirement | None = None, at: int | None = None
    ) -> tuple[bytes | None, int]:
        """See ``Shard``."""
        self._stepper.step()
        return self.inner.peek(table, key, need, at)

    def pause(self, seconds: float) -> None:
        """See ``Shard``."""
        self._env.advance(seconds)
        self._stepper.step()

    def member_alive(self, member: str) -> bool | None:
        """See ``Shard``."""
        return self._alive(member)


def stepped(
    inner: Shard,
    stepper: Stepper,
    env: SeededEnv,
    alive: Callable[[str], bool | None] = lambda _: None,
) -> Shard:
    """The space, in steps."""
    return cast(Shard, SteppedShard(inner, stepper, env, alive))
