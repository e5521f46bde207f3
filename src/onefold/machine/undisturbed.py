"""Work that no signal interrupts.

Python runs signal handlers in the main thread, between nearly any two of its instructions. What they raise (KeyboardInterrupt, a
worker's soft time limit) leaves everything half done that was under way there. So what must not be left half done is kept out of
that thread, in one of two ways:

``undisturbed`` hands the work to another thread and waits. An interrupt ends the waiting only; the work comes to its end.

``mend_later`` is for work that cannot afford the handover, such as a commit: it runs in the main thread and keeps track of what
it holds. When it is broken off, ``mend_later`` gives that to a thread which ends it. It is a function of C, so that no handler
runs between the exception and the call when nothing else is called before it. ``Held`` is a lock for such work: taking it and
noting who took it is one step.

That thread is what everybody waits for who waits for a lock of a broken-off write, so nothing in it may wait for one: ``mend``
gives back, rolls back and wakes, and never takes a lock that another holder has. What takes its time (giving back what was taken;
disposing of a result that nobody wants) is done in threads of its own (``mend_apart``). The end of the program, and of a space,
waits for all of it for a moment (``wait_until_mended``).
"""

from __future__ import annotations

import _thread
import atexit
import contextlib
import functools
import os
import signal
import time
from _queue import SimpleQueue  # as ``queue`` has it, without what that imports: connecting is quick
from collections import deque
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Final, Protocol, TypeVar

from onefold import config
from onefold.errors import OnefoldError
from onefold.machine import forks

_WORKERS_IDLE_MAX = 4
_LOOK_S = 0.001
_SLICE_S = 0.05
"""A lock that is waited for is looked at this often, in case its last holder was broken off before it woke anybody."""

_SIGNALS: Final = frozenset(signal.valid_signals())
_TRACE_EVENTS: Final = frozenset(("call", "line", "return", "exception", "opcode"))
_VARARGS: Final = 0x04
"""``inspect.CO_VARARGS``, without what that imports."""

T = TypeVar("T")


class Mendable(Protocol):
    """Something that was broken off in the middle."""

    def mend(self) -> None:
        """Bring it to an end. Runs in a thread that no signal interrupts, possibly when there is nothing left to do. Must not
        wait for anything that another one's ``mend`` releases: they are called one after the other."""
        ...


def in_main_thread() -> bool:
    """Whether signals are delivered in this thread."""
    return _thread.get_ident() == forks.main_thread


def undisturbed(work: Callable[[], T], unwanted: Callable[[T], object] | None = None) -> T:
    """Call ``work`` where no signal is delivered, and return or raise what it does.

    When the caller is interrupted meanwhile, the exception is raised at once and the work comes to its end by itself; its result
    is then given to ``unwanted``.
    """
    if _thread.get_ident() != forks.main_thread:
        return work()
    if not _mending:
        prepare()
    call = _Call(work, unwanted)
    try:
        _calls.put(call)
        if not _idle:
            _thread.start_new_thread(_serve, ())
        call.turn.acquire()
        if call.error is not None:
            raise call.error
        return call.result  # type: ignore[no-any-return]
    except BaseException:
        call.gone = True
        if call.error is None:
            mend_later(call)
        raise


def is_interrupt(error: BaseException) -> bool:
    """Whether a signal handler raised it, and not the code that it came out of.

    Known by how handlers are called: with a signal's number and the very frame that they interrupt. Nothing is asked of the
    handlers that are installed now, since one may have replaced itself before it raised, or be wrapped in other functions.
    A trace function, which is called with the frame and an event, is the same.
    """
    if not in_main_thread():
        return False
    if not isinstance(error, Exception):
        return True
    codes = {_code(signal.getsignal(number)) for number in signal.valid_signals()} - {None}
    trace = error.__traceback__
    while trace is not None:
        # Installed handlers are asked too: one may have deleted its argument.
        if trace.tb_frame.f_code in codes or _is_called_as_handler(trace.tb_frame):
            return True
        trace = trace.tb_next
    return False


def let_pass(error: BaseException) -> None:
    """Raise it again if a signal handler raised it. First in what handles this library's own errors: a handler may raise one of
    them too, and it says nothing of what it has interrupted."""
    if is_interrupt(error):
        raise error


class MayFail:
    """A ``with`` block that may fail, since something else matters more to the caller. What a signal handler raises is not its
    failure, and is not swallowed."""

    __slots__ = ("_kinds",)

    def __init__(self, *kinds: type[Exception]) -> None:
        """``kinds``: of errors that may come."""
        self._kinds = kinds

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        return isinstance(error, self._kinds) and not is_interrupt(error)


best_effort: Final = MayFail(Exception)
"""Whatever it fails with."""
if_possible: Final = MayFail(OnefoldError)
"""It may be refused, or what it needs may be out of reach."""


def _is_called_as_handler(frame: FrameType) -> bool:
    """Whether its arguments have the caller's frame where signal handlers and trace functions get it. What else a function has in
    its variables says nothing: many a logger keeps its caller's frame."""
    caller = frame.f_back
    if caller is None:
        return False
    arguments = _positional(frame)
    for at, value in enumerate(arguments):
        if value is caller:
            before = arguments[at - 1] if at else None
            after = arguments[at + 1] if at + 1 < len(arguments) else None
            if type(before) is not bool and isinstance(before, int) and before in _SIGNALS:
                return True
            if isinstance(after, str) and after in _TRACE_EVENTS:
                return True
    return False


def _positional(frame: FrameType) -> list[Any]:
    """What a function was called with, by position, as far as it still has it."""
    code, values = frame.f_code, frame.f_locals
    found = [values.get(name) for name in code.co_varnames[: code.co_argcount]]
    if code.co_flags & _VARARGS:
        rest = values.get(code.co_varnames[code.co_argcount + code.co_kwonlyargcount])
        if type(rest) is tuple:
            found += rest
    return found


def _code(handler: Any) -> object:
    while isinstance(handler, functools.partial):
        handler = handler.func
    if not callable(handler):
        return None
    handler = getattr(handler, "__func__", handler)
    return getattr(handler, "__code__", None) or getattr(type(handler).__call__, "__code__", None)


class _Call:
    """One call that the main thread waits for."""

    __slots__ = ("_disposed", "_unwanted", "_work", "error", "finished", "gone", "result", "thread", "turn")

    def __init__(self, work: Callable[[], Any], unwanted: Callable[[Any], object] | None) -> None:
        self._work = work
        self._unwanted = unwanted
        self._disposed: dict[int, object] = {}
        self.turn = _thread.allocate_lock()
        self.turn.acquire()
        self.result: Any = None
        self.error: BaseException | None = None
        self.finished = False
        self.gone = False
        """The caller was interrupted."""
        self.thread = 0
        """Which makes it."""

    def run(self) -> None:
        self.thread = _thread.get_ident()
        try:
            self.result = self._work()
        except BaseException as error:
            self.error = error
        self.finished = True
        if self.gone:
            self.mend()
            _under_way.discard(self)

    def mend(self) -> None:
        """Dispose of the result, once, in a thread of its own: that may wait for locks. Or have it called now, when the caller
        was interrupted before it started a thread for it: in the queue it would wait for the next call, and be made at a time
        when nobody expects it."""
        if not self.finished:
            _under_way.add(self)
            if not _calls.empty() and not _idle:
                _thread.start_new_thread(_serve, ())
        if self.finished:
            _under_way.discard(self)
        me = object()
        if (
            self.finished
            and self.error is None
            and self._unwanted is not None
            and self._disposed.setdefault(0, me) is me
        ):
            mend_apart(functools.partial(self._unwanted, self.result))


class Held:
    """A lock of threads whose holder is known at every moment, so that one which was broken off can be released by others.

    A holder is any object; it is compared by identity. Not reentrant.
    """

    __slots__ = ("_holder", "_waiting")

    def __init__(self) -> None:
        self._holder: dict[int, object] = {}
        self._waiting: deque[_thread.LockType] = deque()

    def take(self, holder: object) -> bool:
        """Take it if it is free; whether it was."""
        return self._holder.setdefault(0, holder) is holder

    def acquire(self, holder: object, timeout: float | None = None) -> bool:
        """Take it within ``timeout`` seconds (None: wait as long as it takes); whether that succeeded."""
        if self._holder.setdefault(0, holder) is holder:
            return True
        deadline = None if timeout is None else time.monotonic() + timeout
        turn = None
        while True:
            if turn is None:
                turn = _thread.allocate_lock()
                turn.acquire()
                self._waiting.append(turn)
            if self._holder.setdefault(0, holder) is holder:
                return True
            left = _SLICE_S if deadline is None else min(deadline - time.monotonic(), _SLICE_S)
            if left <= 0:
                return False
            if turn.acquire(True, left):
                turn = None

    def release(self, holder: object) -> None:
        """Let the next one have it. Without effect when ``holder`` does not have it."""
        if self._holder.get(0) is holder:
            del self._holder[0]
            while self._waiting:
                with contextlib.suppress(IndexError):
                    self._waiting.popleft().release()

    def held_by(self, holder: object) -> bool:
        """Whether ``holder`` has it."""
        return self._holder.get(0) is holder

    def holder(self) -> object:
        """Who has it; None when nobody does."""
        return self._holder.get(0)


class Waiters:
    """Threads that wait until something has changed: a condition variable without a lock of its own.

    An interrupted waiter leaves nothing behind but an entry that the next notification removes.
    """

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: deque[_thread.LockType] = deque()

    def wait_for(self, reached: Callable[[], bool], timeout: float | None = None) -> bool:
        """Wait until ``reached()``, for at most ``timeout`` seconds; what it was in the end. Anyone who changes what it looks at
        calls ``notify`` afterwards."""
        deadline = None if timeout is None else time.monotonic() + timeout
        turn = None
        while not reached():
            if turn is None:
                turn = _thread.allocate_lock()
                turn.acquire()
                self._waiting.append(turn)
                continue  # look again: a change before this is not notified any more
            left = -1.0 if deadline is None else min(deadline - time.monotonic(), _thread.TIMEOUT_MAX)
            if deadline is not None and left <= 0:
                with contextlib.suppress(ValueError):
                    self._waiting.remove(turn)
                return reached()
            if turn.acquire(True, left):
                turn = None
        if turn is not None:
            with contextlib.suppress(ValueError):
                self._waiting.remove(turn)
        return True

    def notify(self) -> None:
        """Have all that wait look again."""
        while self._waiting:
            with contextlib.suppress(IndexError):
                self._waiting.popleft().release()


_calls: SimpleQueue[_Call] = SimpleQueue()
_idle: dict[int, bool] = {}
_broken: SimpleQueue[Mendable] = SimpleQueue()
_under_way: set[_Call | _Apart] = set()
"""What is being mended apart, and the calls of interrupted callers."""
_mending = False
_one_at_a_time = _thread.allocate_lock()
mend_later: Callable[[Mendable], None] = _broken.put
"""Has ``mend()`` called by a thread that no signal interrupts. Look it up here when it is needed: a fork replaces it."""


def prepare() -> None:
    """Start the thread that mends, if there is none yet. Call it before anything that may have to be mended."""
    global _mending
    if not _mending:
        _thread.start_new_thread(_mend_all, ())
        _mending = True
        atexit.unregister(wait_until_mended)  # of the process that forked this one
        atexit.register(wait_until_mended)


def mend_apart(work: Callable[[], object]) -> None:
    """For ``mend``: do what may take its time, in a thread of its own. What it raises is thrown away."""
    one = _Apart()
    _under_way.add(one)
    try:
        _thread.start_new_thread(one.run, (work,))
    except BaseException:
        _under_way.discard(one)
        raise


class _Apart:
    """What is being mended in a thread of its own."""

    thread = 0

    def run(self, work: Callable[[], object]) -> None:
        self.thread = _thread.get_ident()
        try:
            with contextlib.suppress(Exception):
                work()
        finally:
            _under_way.discard(self)


class _Reached:
    """Mended when all that came before it is, or is being mended apart."""

    def __init__(self) -> None:
        self.turn = _thread.allocate_lock()
        self.turn.acquire()

    def mend(self) -> None:
        self.turn.release()


def wait_until_mended(timeout_s: float = config.MENDED_WITHIN_S) -> bool:
    """Wait until what was broken off has come to its end, except for what this thread itself is doing; whether it has.

    For the end of a program or of a space: what was taken for an interrupted caller is given back before.
    """
    if not _mending:
        return True
    end, reached, me = time.monotonic() + timeout_s, _Reached(), _thread.get_ident()
    mend_later(reached)
    if not reached.turn.acquire(True, timeout_s):
        return False
    while any(one.thread != me for one in list(_under_way)):
        if time.monotonic() > end:
            return False
        time.sleep(_LOOK_S)
    return True


def _serve() -> None:
    """What a thread does that makes calls for the main thread."""
    me = _thread.get_ident()
    calls = _calls
    while True:
        _idle[me] = True
        call = calls.get()
        del _idle[me]
        if not calls.empty() and not _idle:
            _thread.start_new_thread(_serve, ())
        call.run()
        turn, call = call.turn, None  # type: ignore[assignment]
        ends = len(_idle) >= _WORKERS_IDLE_MAX
        if not ends:
            _idle[me] = True
        turn.release()
        del turn
        if ends:
            return


def _mend_all() -> None:
    """What the mending thread does."""
    broken, one_at_a_time = _broken, _one_at_a_time
    while True:
        one = broken.get()
        with one_at_a_time, contextlib.suppress(Exception):
            one.mend()
        del one


def _forget() -> None:
    """In a forked child, where the threads are not."""
    global _calls, _broken, _mending, _one_at_a_time, mend_later
    _calls, _broken, _mending = SimpleQueue(), SimpleQueue(), False
    _one_at_a_time = _thread.allocate_lock()
    _idle.clear()
    _under_way.clear()
    mend_later = _broken.put


os.register_at_fork(after_in_child=_forget)
