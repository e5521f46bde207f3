"""Simulated time and seeded scheduling for ordinary, blocking code.

Every task has a real thread, so that programs need no change, but exactly one thread runs at any time: it holds the *baton*,
and gives it up only where it waits (``sleep``, ``block``). Who waits takes the next event from a queue that is ordered by
simulated time, and by the seed where times are equal. Either it calls a function (a message arrives, a fault begins) or it
hands the baton to the task that is to continue. So one seed gives one run, and time costs nothing. The idea is that of every
discrete event simulator; FoundationDB's ("Simulation and testing", 2014) made it the way to test databases.

The thread that made the scheduler is a task too, named ``main``. A task that is killed raises at the place where it waits, and
again wherever it would wait while it unwinds, so the dead do nothing more.
"""

from __future__ import annotations

import heapq
import random
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Protocol

STEPS_MAX = 20_000_000
"""Events of one simulation; more of them are a program that goes round in circles."""
STALL_REAL_S = 120.0
"""Real seconds in which a task that holds the baton must come to a place where it waits."""
_REFUSALS_MAX = 10_000


class Killed(BaseException):
    """Raised in a task that must end: its machine has crashed, or the simulation is over. Not an ``Exception``: programs that
    catch errors do not catch their own death."""


class Stalled(AssertionError):
    """The simulation cannot continue: nothing is left to happen, or a task waits outside of it."""


class Machine(Protocol):
    """What a task runs on."""

    @property
    def suspended_until(self) -> float:
        """No task of it runs before this moment."""
        ...


class Task:
    """A thread of the simulation."""

    __slots__ = (
        "_baton",
        "_refused",
        "_turn",
        "done",
        "error",
        "killed",
        "machine",
        "name",
        "thread",
        "watchers",
    )

    def __init__(self, name: str, machine: Machine | None) -> None:
        self.name = name
        self.machine = machine
        self.thread: threading.Thread | None = None
        self.done = False
        self.killed: BaseException | None = None
        self.error: BaseException | None = None
        """What it ended with, unless it was killed."""
        self.watchers: list[Task] = []
        self._baton = threading.Lock()
        self._baton.acquire()
        self._turn = 0
        self._refused = 0

    def __repr__(self) -> str:
        return f"<Task {self.name}>"


class Scheduler:
    """One simulation's time, tasks and order of events. Only the task that holds the baton may use it."""

    def __init__(self, seed: int | str) -> None:
        self.random = random.Random(f"scheduler {seed}")
        self.now = 0.0
        """Seconds since the simulation began."""
        self.steps = 0
        self.main = Task("main", None)
        self.main.thread = threading.current_thread()
        self.current = self.main
        self._events: list[tuple[float, float, int, Task | Callable[[], None], int]] = []
        self._pushed = 0
        self._tasks: list[Task] = []
        self._by_thread: dict[int, Task] = {threading.get_ident(): self.main}
        self._failure: BaseException | None = None
        self._broken = False

    # -- tasks

    def spawn(self, name: str, run: Callable[[], None], machine: Machine | None = None) -> Task:
        """A new task; it begins at this simulated moment, once the others let it."""
        task = Task(name, machine)
        thread = threading.Thread(
            target=self._live, args=(task, run), name=f"onefold-sim {name}", daemon=True
        )
        self.adopt(task, thread)
        thread.start()
        return task

    def adopt(self, task: Task, thread: threading.Thread) -> None:
        """Take a thread that is about to start for a task; it must call ``begin`` first and ``end`` last."""
        task.thread = thread
        self._tasks.append(task)
        self._push(self.now, task, task._turn)

    def begin(self, task: Task) -> None:
        """In the thread of a new task: wait for the baton. Raises what it was killed with."""
        task._baton.acquire()
        self._by_thread[threading.get_ident()] = task
        if task.killed is not None:
            raise task.killed

    def end(self, task: Task) -> None:
        """The last thing in the thread of a task."""
        self._by_thread.pop(threading.get_ident(), None)
        task.done = True
        for watcher in task.watchers:
            self.wake(watcher)
        self._tasks.remove(task)
        self._hand_on(None)

    def _live(self, task: Task, run: Callable[[], None]) -> None:
        try:
            self.begin(task)
            run()
        except Killed:
            pass
        except BaseException as error:
            task.error = error
        finally:
            self.end(task)

    def kill(self, task: Task, why: BaseException) -> None:
        """The task ends where it waits."""
        if not task.done and task.killed is None:
            task.killed = why
            if task is not self.current:
                self.wake(task)

    def join(self, task: Task, timeout: float | None = None) -> bool:
        """Wait for the end of a task; whether it came within ``timeout`` simulated seconds."""
        until = None if timeout is None else self.now + timeout
        while not task.done:
            task.watchers.append(self.me())
            try:
                self.block(until)
            finally:
                task.watchers.remove(self.me())
            if until is not None and self.now >= until:
                break
        return task.done

    def owner(self) -> Task | None:
        """The task of the calling thread, if it has one."""
        return self._by_thread.get(threading.get_ident())

    def me(self) -> Task:
        """The calling task. Raises what it was killed with; Stalled for a thread that is none of the simulation's."""
        me = self.current
        if me.thread is not threading.current_thread():
            raise Stalled(
                "a thread that is not of the simulation uses a simulated database. Give threads of one program as further "
                "functions: sim.client(first, second)"
            )
        if me.killed is not None:
            me._refused += 1
            if me._refused > _REFUSALS_MAX and self._failure is None:
                self._failure = Stalled(f"{me.name} was killed and never ends: does it catch BaseException?")
                self.wake(self.main)
                self._hand_on(me)
            raise me.killed
        return me

    # -- waiting

    def sleep(self, seconds: float) -> None:
        """Let simulated time pass."""
        me = self.me()
        self._push(self.now + seconds, me, me._turn)
        self._hand_on(me)

    def block(self, until: float | None) -> None:
        """Wait for ``wake``, at most until that simulated moment. What was waited for must be looked at again."""
        me = self.me()
        if until is not None:
            self._push(until, me, me._turn)
        self._hand_on(me)

    def wake(self, task: Task, at: float | None = None) -> None:
        """The task continues at that moment (default: now), if it then still waits where it waits now."""
        self._push(self.now if at is None else at, task, task._turn)

    def call_at(self, when: float, event: Callable[[], None]) -> None:
        """Call a function at that moment. It must not wait."""
        self._push(when, event, 0)

    # -- the end

    def close(self) -> None:
        """End every task and its thread. In ``main``."""
        if self._broken:
            return  # the baton is lost; the threads are daemons
        self._failure = None
        threads = [task.thread for task in self._tasks]
        while self._tasks:
            for task in self._tasks:
                self.kill(task, Killed("the simulation is over"))
            first = self._tasks[0]
            if not self.join(first, 1.0) and first._refused > _REFUSALS_MAX:
                self._tasks.remove(first)  # its thread cannot be ended; it holds no baton
        for thread in threads:
            if thread is not None:
                thread.join(1.0)
        self._events.clear()

    # -- the baton

    def _push(self, when: float, what: Task | Callable[[], None], turn: int) -> None:
        self._pushed += 1
        heapq.heappush(self._events, (when, self.random.random(), self._pushed, what, turn))

    def _hand_on(self, me: Task | None) -> None:
        """Let others continue until it is this task's turn again (None: it has ended)."""
        heir = self._next()
        if heir is me and me is not None:
            self._resume(me)
            return
        self.current = heir
        heir._baton.release()
        if me is not None:
            self._wait_for_baton(me)
            self._resume(me)

    def _resume(self, me: Task) -> None:
        if me is self.main and self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        if me.killed is not None:
            raise me.killed

    def _next(self) -> Task:
        """Make events happen up to the one that is the turn of a task."""
        events = self._events
        while True:
            if self._failure is not None and not self.main.done:
                self.main._turn += 1
                return self.main
            if not events:
                waiting = ", ".join(task.name for task in [self.main, *self._tasks])
                self._failure = Stalled(
                    f"deadlock: nothing is left to happen, and these wait for ever: {waiting}"
                )
                continue
            when, _, _, what, turn = heapq.heappop(events)
            if isinstance(what, Task):
                if what._turn != turn or what.done:
                    continue
                machine = what.machine
                if machine is not None and machine.suspended_until > when and what.killed is None:
                    self._push(machine.suspended_until, what, turn)
                    continue
                self._count(when)
                what._turn += 1
                return what
            self._count(when)
            try:
                what()
            except Exception as error:
                self._failure = error

    def _count(self, when: float) -> None:
        self.now = max(self.now, when)
        self.steps += 1
        if self.steps > STEPS_MAX:
            self.steps = 0
            self._failure = Stalled(f"more than {STEPS_MAX} events: the programs go round in circles")

    def _wait_for_baton(self, me: Task) -> None:
        if me is not self.main:
            me._baton.acquire()
            return
        # Only here real time matters: a task that waits outside of the simulation would stop it for ever.
        steps = -1
        while not me._baton.acquire(timeout=STALL_REAL_S):
            if steps == self.steps:
                self._broken = True
                raise Stalled(self._stuck())
            steps = self.steps

    def _stuck(self) -> str:
        task = self.current
        ident = task.thread.ident if task.thread is not None else None
        frame = sys._current_frames().get(ident) if ident is not None else None
        shown = "".join(traceback.format_stack(frame)) if frame is not None else ""
        return (
            f"{task.name} has not come to a place where it waits for {STALL_REAL_S:g} real seconds. It must not sleep or wait "
            f"outside of the simulation (use sim.sleep). It is at:\n{shown}"
        )


class Turn:
    """One task waits, another lets it continue: ``onefold.shard.appender.Turn`` in simulated time."""

    __slots__ = ("_ended", "_scheduler", "_waiting")

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._ended = False
        self._waiting: Task | None = None

    def wait(self, timeout: float | None) -> bool:
        scheduler = self._scheduler
        until = None if timeout is None else scheduler.now + timeout
        self._waiting = scheduler.me()
        try:
            while not self._ended and (until is None or scheduler.now < until):
                scheduler.block(until)
        finally:
            self._waiting = None
        return self._ended

    def end(self) -> None:
        self._ended = True
        if self._waiting is not None:
            self._scheduler.wake(self._waiting)
