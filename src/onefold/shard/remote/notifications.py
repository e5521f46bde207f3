"""Waiting for news of a shard without a replica: one question for all of a program's threads, parked at a node.

A thread that waits asks nobody itself. While any waits, or did a moment ago, one thread has a node keep a question until
something is applied beyond what was shown here; so a program that waits for long in many short turns costs a question every
``config.ASK_POLL_S``. A node that died with the question is left for another one after that time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

from onefold import config
from onefold.backoff import Backoff, Deadline
from onefold.env import Env
from onefold.errors import OnefoldError, SpaceError
from onefold.machine.undisturbed import undisturbed

_RETRY_S = 0.01
_RETRY_S_MAX = 1.0

Poll = Callable[[int, float], bool]
"""Asks a node to wait, so many seconds at most, for something beyond an offset; whether one answered."""


class News:
    """Where threads wait until the shown offset moves. Thread-safe."""

    def __init__(self, shown: Callable[[], int], poll: Poll, env: Env) -> None:
        """``shown``: the offset that was shown here, which ``poll`` moves. Starts nothing yet."""
        self._shown = shown
        self._poll = poll
        self._env = env
        self._changed = threading.Condition(threading.Lock())
        self._waiting = 0
        self._wanted_s = 0.0
        self._asks = False
        """Whether the thread that asks is there."""
        self._problem: OnefoldError | None = None
        """What ended it, for the next one who waits."""
        self._closed = False

    def wait(self, after: int, timeout: float | None) -> None:
        """Return when something beyond ``after`` was shown, or after so many seconds (None: however long it takes), or when it is
        closed. With 0 seconds it asks for news and does not wait for them.

        Raises what no node can help with, such as a space that was recreated.
        """
        # An interrupt would leave the main thread's lock held, and all others waiting. In turns, so that a wait that was
        # interrupted does not keep a node asked.
        deadline = Deadline.after(timeout, self._env)
        while not undisturbed(partial(self._wait, after, deadline.within(config.ASK_POLL_S))):
            if deadline.passed:
                return

    def _wait(self, after: int, timeout: float) -> bool:
        """Wait for so long; whether there is nothing more to wait for."""
        with self._changed:
            self._wanted_s = self._env.boot_s()
            if not self._asks and self._problem is None and not self._closed:
                self._asks = True
                threading.Thread(target=self._run, name="onefold-notifications", daemon=True).start()
            self._waiting += 1
            try:
                over = self._changed.wait_for(
                    lambda: self._shown() > after or self._closed or self._problem is not None, timeout
                )
            finally:
                self._waiting -= 1
                self._wanted_s = self._env.boot_s()
            problem, self._problem = self._problem, None
        if problem is not None:
            raise problem
        return over

    def moved(self) -> None:
        """What is shown has moved."""
        if self._waiting:  # who begins to wait now sees it
            undisturbed(self._notify)

    def close(self) -> None:
        """Let all waiters continue. The thread ends with its question."""
        self._closed = True
        undisturbed(self._notify)

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _run(self) -> None:
        backoff = Backoff(_RETRY_S, _RETRY_S_MAX)
        while self._goes_on():
            try:
                answered = self._poll(self._shown(), config.ASK_POLL_S)
            except OnefoldError as error:
                self._end(error)
                return
            except Exception as error:  # a bug: who waits would wait for a thread that is not there
                self._end(SpaceError(f"asking for news failed with {type(error).__name__}: {error}"))
                return
            if answered:
                backoff.reset()
                continue
            with self._changed:  # nobody there: waiting continues, reading will tell
                self._changed.wait_for(lambda: self._closed, backoff.pause_s())

    def _goes_on(self) -> bool:
        with self._changed:
            idle_s = self._env.boot_s() - self._wanted_s
            self._asks = not self._closed and (self._waiting > 0 or idle_s < config.ASK_POLL_S)
            return self._asks

    def _end(self, problem: OnefoldError) -> None:
        with self._changed:
            self._asks = False
            if not self._closed:
                self._problem = problem
            self._changed.notify_all()
