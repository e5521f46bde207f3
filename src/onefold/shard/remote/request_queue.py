"""Answering many questions with few threads: ``WorkerPool`` is the threads of a node, ``RequestQueue`` takes the questions
about one shard.

A question that can be answered now goes to the pool. One that has to wait takes no thread. Those for a later offset are parked
with one thread that waits for the replica to move. Those for a barrier with one that appends it, for all that have come until
its append starts (and for none that comes later, which would make a strong read show the past). Everything has a bound;
a question that arrives when it is reached is answered "busy", so that another node is asked.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from onefold import config
from onefold.errors import OnefoldError, SpaceError, Unavailable
from onefold.shard.remote import protocol
from onefold.shard.remote.protocol import Ask
from onefold.shard.remote.server import NothingYet, Server, TellsWritten
from onefold.store.replica import Applied

Reply = Callable[[bytes], None]
"""Sends a reply. Called once, from any thread; must not block."""
_SHORT_BYTES = 512
_LOOK_S = 0.1
"""How exactly deadlines of parked questions are kept."""


class WorkerPool:
    """A bounded number of threads with a bounded queue of work."""

    def __init__(
        self, threads: int = config.ASK_THREADS, queued_max: int = config.ASKS_QUEUED_MAX, name: str = "ask"
    ) -> None:
        self._queued_max = queued_max
        self._work: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._run, name=f"onefold-{name}-{at}", daemon=True)
            for at in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def give(self, work: Callable[[], None]) -> bool:
        """Have it done, in order; False when there is too much to do already. It must not raise."""
        with self._changed:
            if self._closed or len(self._work) >= self._queued_max:
                return False
            self._work.append(work)
            self._changed.notify()
            return True

    @property
    def queued(self) -> int:
        """How much waits for its turn."""
        return len(self._work)

    def close(self) -> None:
        """Do what was given, and end."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._work or self._closed)
                if not self._work:
                    return
                work = self._work.popleft()
            work()


class _Waiting(NamedTuple):
    ask: Ask
    reply: Reply
    deadline: float


class RequestQueue:
    """Takes the questions about one shard. Thread-safe; close it before its space."""

    def __init__(
        self, server: Server, pool: WorkerPool, *, parked_max: int = config.ASKS_PARKED_MAX, name: str = ""
    ) -> None:
        self._server = server
        self._pool = pool
        self._env = server.shard.env
        self._busy = server.refusal(Unavailable("this node has too many questions to answer"))
        self._leaving = server.refusal(Unavailable("this node stops serving the shard"))
        self._parked_max = parked_max
        self._lock = threading.Lock()
        self._parked: list[_Waiting] = []
        self._barred: list[_Waiting] = []
        self._something_parked = threading.Condition(self._lock)
        self._something_barred = threading.Condition(self._lock)
        self._closed = False
        self._threads = [
            threading.Thread(target=work, name=f"onefold-{kind}{name}", daemon=True)
            for work, kind in ((self._watch, "parked"), (self._bar, "barrier"))
        ]
        for thread in self._threads:
            thread.start()

    def take(self, request: bytes, reply: Reply) -> None:
        """Answer by and by. Does not block."""
        reply = _harmless(reply)
        if self._closed:
            reply(self._leaving)
        elif not self._await_record(request, reply) and not self._pool.give(
            lambda: self._begin(request, reply)
        ):
            reply(self._busy)

    @property
    def waiting(self) -> int:
        """How many questions wait for an offset or a barrier."""
        return len(self._parked) + len(self._barred)

    def close(self) -> None:
        """Refuse what waits, and end."""
        with self._lock:
            self._closed = True
            left = [*self._parked, *self._barred]
            self._parked.clear()
            self._barred.clear()
            self._something_parked.notify_all()
            self._something_barred.notify_all()
        for waiting in left:
            waiting.reply(self._leaving)
        for thread in self._threads:
            thread.join()

    # -- one question

    def _await_record(self, request: bytes, reply: Reply) -> bool:
        """Whether it is about a record that is being appended, and is answered by the thread that applies it: of all questions
        these are in the most haste, and none is cheaper."""
        shard, server = self._server.shard, self._server
        if len(request) > _SHORT_BYTES or not isinstance(shard, TellsWritten):
            return False
        try:
            ask = server.parse(request)
        except OnefoldError:
            return False  # it is said by the pool
        what = ask.what
        if not isinstance(what, protocol.Written):
            return False
        try:
            wait_s = min(ask.wait_s, config.ASK_EARLY_S)
            shard.when_written(what.client, what.number, wait_s, lambda told: self._tell(ask, told, reply))
        except OnefoldError as error:
            reply(server.refusal(error))
        return True

    def _tell(self, ask: Ask, told: Applied | None, reply: Reply) -> None:
        """Called by the thread that applies records, which must not fail for a question's sake."""
        try:
            answer = self._server.written(ask, told)
        except Exception as error:
            answer = self._server.refusal(error)
        reply(answer)

    def _begin(self, request: bytes, reply: Reply) -> None:
        server = self._server
        try:
            ask = server.parse(request)
            wait_s = min(ask.wait_s, config.ASK_WAIT_S_MAX)
            waiting = _Waiting(ask, reply, self._env.boot_s() + wait_s)
            if server.unmet(ask):
                self._park(waiting, self._barred, self._something_barred)
            else:
                self._go_on(waiting)
        except Exception as error:
            reply(server.refusal(error))

    def _go_on(self, waiting: _Waiting) -> None:
        """What it had to wait for by a barrier has come."""
        server = self._server
        needed = server.offset_of(waiting.ask)
        if not needed or server.shard.reach(needed, 0):
            self._answer(waiting)
        else:
            self._park(waiting, self._parked, self._something_parked)

    def _park(self, waiting: _Waiting, where: list[_Waiting], something: threading.Condition) -> None:
        with self._lock:
            if not self._closed and self.waiting < self._parked_max:
                where.append(waiting)
                something.notify()
                return
        waiting.reply(self._leaving if self._closed else self._busy)

    def _release(self, waiting: _Waiting, go: Callable[[_Waiting], None]) -> None:
        def work() -> None:
            try:
                go(waiting)
            except Exception as error:
                waiting.reply(self._server.refusal(error))

        if not self._pool.give(work):
            waiting.reply(self._busy)

    # -- those that wait for an offset

    def _watch(self) -> None:
        shard, applied = self._server.shard, 0
        while True:
            with self._lock:
                self._something_parked.wait_for(lambda: self._parked or self._closed)
                if self._closed:
                    return
                first = min(waiting.deadline for waiting in self._parked)
            try:
                # It returns at once for what was applied between the last look and the parking.
                applied = shard.wait(applied, min(_LOOK_S, max(0.0, first - self._env.boot_s())))
            except OnefoldError as error:
                self._refuse_parked(error)
                continue
            self._look_at_parked(applied)

    def _look_at_parked(self, applied: int) -> None:
        server, now_s = self._server, self._env.boot_s()
        with self._lock:
            parked, self._parked[:] = self._parked[:], []
            ready: list[_Waiting] = []
            late: list[_Waiting] = []
            for waiting in parked:
                if server.offset_of(waiting.ask) <= applied:
                    ready.append(waiting)
                elif waiting.deadline <= now_s:
                    late.append(waiting)
                else:
                    self._parked.append(waiting)
        told = server.offset_answer(applied)  # one for all: a record may end the waiting of thousands
        for waiting in ready:
            if isinstance(waiting.ask.what, protocol.Beyond):
                waiting.reply(told)
            else:
                self._release(waiting, self._answer)
        for waiting in late:
            if isinstance(waiting.ask.what, protocol.Beyond):
                waiting.reply(told)
            elif server.is_patient(waiting.ask):
                self._release(waiting, self._answer)
            else:
                waiting.reply(server.refusal(server.behind(waiting.ask, applied)))

    def _answer(self, waiting: _Waiting) -> None:
        late = waiting.deadline <= self._env.boot_s()
        try:
            answer = self._server.run(waiting.ask, late)
        except NothingYet as found:
            ask = msgspec.structs.replace(waiting.ask, after=found.offset + 1)
            self._park(waiting._replace(ask=ask), self._parked, self._something_parked)
        else:
            waiting.reply(answer)

    def _refuse_parked(self, error: OnefoldError) -> None:
        with self._lock:
            parked, self._parked[:] = self._parked[:], []
        refusal = self._server.refusal(error)
        for waiting in parked:
            waiting.reply(refusal)

    # -- those that wait for a barrier

    def _bar(self) -> None:
        while True:
            with self._lock:
                self._something_barred.wait_for(lambda: self._barred or self._closed)
                if self._closed:
                    return
                # All that are here came before the append that follows; anyone who comes from now on waits for the next one.
                group, self._barred[:] = self._barred[:], []
            now_s = self._env.boot_s()
            timeout_s = min(config.READ_TIMEOUT_S, max(waiting.deadline for waiting in group) - now_s)
            try:
                self._server.shard.barrier(max(timeout_s, 0.0))
            except (Unavailable, SpaceError) as error:
                self._refuse_barred(group, error)
            except OnefoldError as error:
                self._refuse_barred(group, Unavailable(f"a node cannot serve: {error}"))
            else:
                for waiting in group:
                    self._release(waiting, self._go_on)

    def _refuse_barred(self, group: list[_Waiting], error: OnefoldError) -> None:
        for waiting in group:
            told = self._server.stale(waiting.ask, error) if isinstance(error, Unavailable) else error
            waiting.reply(self._server.refusal(told))


def _harmless(reply: Reply) -> Reply:
    """A reply that cannot end the thread which sends it: that applies records, or answers all the others too."""

    def send(answer: bytes) -> None:
        with contextlib.suppress(Exception):  # as lost as one on the way: who asked asks again
            reply(answer)

    return send
