"""A worker process: runs the tasks that its executor sends, one at a time, until the executor is gone.

Started as a fresh Python program, never forked: it works from scripts without a ``__main__`` guard, from
notebooks and from ``python -c``. Whatever functions print goes to the executor's stderr; stdin is empty;
Ctrl-C is the executor's.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import mmap
import os
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from onefold.compute.blobs.shared import BlobsUnavailable, CachedBlobs
from onefold.compute.blobs.store import BlobMissing, BlobStore
from onefold.compute.plan.stages import Failure, Stage
from onefold.compute.tasks import protocol
from onefold.compute.tasks.failures import failure_of
from onefold.compute.tasks.spec import TaskError, TaskSpec, has_python

if TYPE_CHECKING:
    from onefold.compute.tasks.row_steps import RowStep

_PROGRESS_EVERY_S: Final = 0.2
_GC_THRESHOLD: Final = 50_000
_PR_SET_PDEATHSIG: Final = 1


def main(arguments: Sequence[str]) -> None:
    """``SOCKET_FD LIFELINE_FD MARK_FD DIE_WITH_PARENT PARENT_PID``: serve the executor at the socket. Never
    returns.
    """
    connection_fd, lifeline, mark_fd, die_with_parent, parent = map(int, arguments)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    _die_with(lifeline, parent if die_with_parent else None)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    connection = socket.socket(fileno=connection_fd)
    try:
        _Worker(connection, mmap.mmap(mark_fd, protocol.MARK_BYTES)).serve()
    except (BrokenPipeError, ConnectionResetError):
        pass  # the executor has gone
    finally:
        _leave(0)


def _die_with(lifeline: int, parent: int | None) -> None:
    """End this process when the executor's ends, even in the middle of a task.

    The executor holds the other end of the lifeline. A thread waits for its end; where the kernel can, a
    signal comes as well, since a function that never gives up the interpreter lock would keep the thread from
    running.
    """

    def wait() -> None:
        with contextlib.suppress(OSError):
            while os.read(lifeline, 1):
                pass
        os._exit(0)

    if sys.platform == "linux":
        import fcntl

        with contextlib.suppress(OSError, AttributeError):
            signal.signal(signal.SIGIO, signal.SIG_DFL)  # whose default is to end the process
            fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
            fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
        if parent is not None:
            # Only for workers started by a main thread: the signal comes when the *thread* that started this
            # ends.
            with contextlib.suppress(OSError, AttributeError):
                ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != parent:
                os._exit(0)
    threading.Thread(target=wait, daemon=True, name="onefold-parent-watch").start()


def _leave(status: int) -> NoReturn:
    """End at once: exit handlers of user code and non-daemon threads have no say."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(status)


class _Worker:
    def __init__(self, connection: socket.socket, marks: mmap.mmap) -> None:
        self._connection = connection
        self._marks = marks
        self._stages: dict[int, Stage] = {}
        self._live: tuple[tuple[RowStep, ...], ...] = ()
        self._blobs: BlobStore | None = None
        self._sending = threading.Lock()
        self._reported_at = 0.0

    def serve(self) -> None:
        while (request := protocol.receive_request(self._connection)) is not None:
            self._send(self._answer(request))

    def _answer(self, request: protocol.Request) -> protocol.Reply:
        try:
            return self._do(request)
        except BlobMissing as error:
            return protocol.Missing(error.name)
        except TaskError as error:
            return protocol.Failed(error.failure)
        except BaseException as error:
            return protocol.Failed(failure_of(error))
        finally:
            from onefold.compute.tasks.python_steps import flush_prints

            flush_prints()

    def _do(self, request: protocol.Request) -> protocol.Reply:
        if isinstance(request, protocol.Hello):
            return self._hello(request)
        from onefold.compute.tasks import kernels
        from onefold.compute.tasks.python_steps import seed_everything

        assert self._blobs is not None
        match request:
            case protocol.Task():
                spec = self._spec(request)
                if has_python(spec.stage):
                    seed_everything(spec.seed)
                mark = self._mark if spec.isolate else None
                result = kernels.execute(
                    spec, self._blobs, rows=request.rows, on_rows=self._progress, mark=mark
                )
                return protocol.Finished(result)
            case protocol.Count(task=task):
                return protocol.Counted(kernels.count_rows(self._spec(task), self._blobs))
            case protocol.Peek(task=task, row=row):
                return protocol.Peeked(*kernels.peek(self._spec(task), self._blobs, row))
            case protocol.Rows():
                return self._rows(request)
            case protocol.Given():
                raise RuntimeError("the executor gave what this worker did not ask for")

    def _rows(self, request: protocol.Rows) -> protocol.Reply:
        import polars as pl

        from onefold.compute.tasks import row_steps

        done = row_steps.run(
            self._live[request.input], pl.read_ipc_stream(request.frame, use_pyarrow=False), self._mark
        )
        frames = (frame.write_ipc_stream(None).getvalue() for frame in done.frames)
        return protocol.RowsDone(tuple(frames), tuple(done.letters))

    def _hello(self, hello: protocol.Hello) -> protocol.Reply:
        from onefold.compute.code import functions

        known = set(sys.path)
        sys.path.extend(entry for entry in hello.import_path if entry not in known)
        try:
            plan = functions.load(hello.plan, code=hello.code)
        except BaseException as error:
            failure = failure_of(error, final=True)
            return protocol.Failed(
                Failure(
                    message=f"the worker process cannot load the plan's functions: {failure.message}",
                    traceback=failure.traceback,
                    final=True,
                    kind=failure.kind,
                )
            )
        self._live = getattr(plan, "steps", ())
        stages: Sequence[Stage] = getattr(plan, "stages", plan)
        self._stages = {stage.index: stage for stage in stages}
        directory = Path(hello.blobs)
        self._blobs = _RelayedBlobs(directory, self) if hello.shared else BlobStore(directory)
        # What is loaded by now stays; the collector need not look at it, nor after every few hundred records.
        gc.collect()
        gc.freeze()
        gc.set_threshold(_GC_THRESHOLD, 20, 50)
        return protocol.Ready()

    def _spec(self, task: protocol.Task) -> TaskSpec:
        return TaskSpec(
            stage=self._stages[task.stage],
            input=task.input,
            seed=task.seed,
            inputs=task.inputs,
            isolate=task.isolate,
            skip_errors=task.skip_errors,
            dead_letters_max=task.dead_letters_max,
        )

    def _mark(self, lo: int, hi: int) -> None:
        struct.pack_into("<qq", self._marks, 0, lo, hi)

    def _progress(self, rows: int) -> None:
        now = time.monotonic()
        if now - self._reported_at >= _PROGRESS_EVERY_S:
            self._reported_at = now
            self._send(protocol.Progress(rows))

    def _send(self, message: protocol.Reply) -> None:
        with self._sending:  # progress may be reported by a thread that reads ahead
            protocol.send(self._connection, message)

    def ask(self, message: protocol.Fetch | protocol.Share) -> protocol.Given:
        """Have the executor do something with a blob, in the middle of a task."""
        self._send(message)
        answer = protocol.receive_request(self._connection)
        if answer is None:
            _leave(0)  # the executor has gone
        if not isinstance(answer, protocol.Given):
            raise RuntimeError(f"the executor sent {type(answer).__name__} in the middle of a task")
        return answer


class _RelayedBlobs(CachedBlobs):
    """The cache of this machine's blobs; what is not in it comes through the executor, and what is made goes there."""

    def __init__(self, directory: Path, worker: _Worker) -> None:
        super().__init__(directory)
        self._worker = worker
        self._asking = threading.Lock()

    def _upload(self, name: str) -> None:
        self._ask(protocol.Share(name))

    def _download(self, name: str) -> None:
        self._ask(protocol.Fetch(name))

    def _ask(self, message: protocol.Fetch | protocol.Share) -> None:
        with self._asking:
            given = self._worker.ask(message)
        if given.missing:
            raise BlobMissing(message.blob)
        if given.problem:
            raise BlobsUnavailable(given.problem)


if __name__ == "__main__":
    main(sys.argv[1:])
