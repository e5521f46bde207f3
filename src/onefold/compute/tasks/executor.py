"""Executors: where a task runs. In this process, or in a worker process of its own."""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Literal, Protocol

from onefold import _version
from onefold.compute.blobs.store import BlobMissing, BlobStore, BlobsUnavailable
from onefold.compute.plan.stages import Failure, Result, Stage
from onefold.compute.tasks import protocol
from onefold.compute.tasks.spec import TaskError, TaskSpec, has_python
from onefold.errors import SpaceError

_EXIT_WAIT_S: Final = 5.0
_POLL_S: Final = 0.25
"""How often a dead worker is looked for where the kernel does not tell."""
_BOOT: Final = "import sys; sys.path.append(sys.argv[1]); from onefold.compute.tasks.worker import main; main(sys.argv[2:])"
_CLOSE_RETRY_S: Final = 0.02
OnRows = Callable[[int], None]


class Executor(Protocol):
    """Runs tasks, one at a time. ``close`` may be called from another thread and ends a task that is running."""

    @property
    def pid(self) -> int | None:
        """The worker's process id while there is a worker."""

    def run(self, spec: TaskSpec, on_rows: OnRows | None = None) -> Result:
        """Run a task. Raises TaskError (``failure.died`` when the worker died, also by ``close``), BlobMissing and
        BlobsUnavailable.
        """

    def close(self) -> None:
        """End the worker. The executor cannot be used afterwards."""


class InlineExecutor:
    """Runs tasks in this process: for stages without Python functions, where Polars' threads do the work."""

    pid: int | None = None

    def __init__(self, stages: Sequence[Stage], blobs: BlobStore) -> None:
        self._stages = tuple(stages)
        self._blobs = blobs

    def run(self, spec: TaskSpec, on_rows: OnRows | None = None) -> Result:
        """Run a task here. Functions, if it has any after all, leave this program's random state as it was."""
        from onefold.compute.tasks import kernels
        from onefold.compute.tasks.python_steps import seeded

        if not has_python(spec.stage):
            return kernels.execute(spec, self._blobs, on_rows=on_rows)
        with seeded(spec.seed):
            return kernels.execute(spec, self._blobs, on_rows=on_rows)

    def close(self) -> None:
        """Nothing to end."""


class WorkerDied(Exception):
    """The worker process ended while it had something to do."""


class ProcessExecutor:
    """Runs tasks in one worker process, which is started when first needed and again after it has died.

    ``plan``: bytes of ``functions.dump`` of the stages, or of anything with ``stages``; or a file with them.
    ``blobs``: the store, or its directory; where machines share one, the worker gets what it needs through this process.
    ``threads``: how many Polars threads the worker may use. ``code``: which functions it runs (see ``functions.load``).
    """

    def __init__(
        self,
        plan: bytes | Path,
        blobs: BlobStore | Path,
        *,
        threads: int = 1,
        code: Literal["pickle", "reference"] = "pickle",
    ) -> None:
        self._plan = plan
        self._blobs = blobs if isinstance(blobs, BlobStore) else BlobStore(Path(blobs))
        self._code = code
        self._outage: OSError | BlobsUnavailable | None = None
        """Why a blob was not brought or kept for the task that runs."""
        self._threads = max(1, threads)
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        self._lifeline: int | None = None
        self._pidfd: int | None = None
        self._buffer = protocol.ReplyBuffer()
        self._greeted = False
        self._marks: mmap.mmap | None = None
        self._mark_fd: int | None = None
        self._lock = threading.RLock()
        self._closed = False
        self.restarts = 0
        """How many workers have died."""

    @property
    def closed(self) -> bool:
        """Whether ``close`` has been called."""
        return self._closed

    @property
    def pid(self) -> int | None:
        """The worker's process id while there is a worker."""
        process = self._process
        return process.pid if process is not None else None

    def run(self, spec: TaskSpec, on_rows: OnRows | None = None) -> Result:
        """Run a task in the worker; an isolating one in as many pieces as it takes (see ``isolate``)."""
        with self._lock:
            if spec.isolate:
                from onefold.compute.tasks import isolate

                return isolate.run_isolated(self, spec, self._blobs, on_rows)
            return self.run_rows(spec, None, on_rows)

    def run_rows(self, spec: TaskSpec, rows: tuple[int, int] | None, on_rows: OnRows | None = None) -> Result:
        """Run some of a task's records in the worker. Raises as ``run`` does."""
        reply = self._ask(_task(spec, rows), on_rows)
        assert isinstance(reply, protocol.Finished)
        return reply.result

    def rows(self, number: int, frame: bytes) -> protocol.RowsDone:
        """Have the steps of an input of a live job work on a frame. Raises as ``run`` does."""
        with self._lock:
            reply = self._ask(protocol.Rows(number, frame))
        assert isinstance(reply, protocol.RowsDone)
        return reply

    def count(self, spec: TaskSpec) -> int:
        """How many input records a task has."""
        reply = self._ask(protocol.Count(_task(spec, None)))
        assert isinstance(reply, protocol.Counted)
        return reply.rows

    def peek(self, spec: TaskSpec, row: int) -> tuple[str, str]:
        """(text, location) of an input record."""
        reply = self._ask(protocol.Peek(_task(spec, None), row))
        assert isinstance(reply, protocol.Peeked)
        return reply.record, reply.location

    def marked(self) -> tuple[int, int]:
        """The records that an isolating worker was about to work on when it was last heard of."""
        assert self._marks is not None
        lo, hi = struct.unpack_from("<qq", self._marks, 0)
        return int(lo), int(hi)

    def start(self) -> None:
        """Start the worker without waiting for it, so that several start side by side."""
        with self._lock:
            self._check_open()
            if self._process is None:
                self._spawn()

    def close(self) -> None:
        """End the worker; a task that it is running fails with ``died``."""
        self._closed = True
        while not self._lock.acquire(
            timeout=_CLOSE_RETRY_S
        ):  # a task runs, or its worker is just being started
            process = self._process
            if process is not None:
                with contextlib.suppress(OSError):
                    process.kill()  # which wakes the thread that waits for its reply
        try:
            self._end()
            if self._mark_fd is not None and self._marks is not None:
                self._marks.close()
                os.close(self._mark_fd)
                self._mark_fd = self._marks = None
        finally:
            self._lock.release()

    # -- asking ----------------------------------------------------------------------------------------------

    def _ask(self, request: protocol.Request, on_rows: OnRows | None = None) -> protocol.Reply:
        self._check_open()
        self._outage = None
        try:
            if self._process is None:
                self._spawn()
            if not self._greeted:
                self._greet()
            self._send(request)
            reply = self._receive(on_rows)
        except WorkerDied as death:
            self.restarts += 1
            raise TaskError(self._died(str(death))) from None
        if isinstance(reply, protocol.Failed):
            if self._outage is not None:  # nothing is wrong with the task
                raise self._outage
            raise TaskError(reply.failure)
        if isinstance(reply, protocol.Missing):
            raise BlobMissing(reply.blob)
        return reply

    def _greet(self) -> None:
        plan = self._plan if isinstance(self._plan, bytes) else self._plan.read_bytes()
        directory = str(self._blobs.directory.absolute())
        self._send(protocol.Hello(plan, directory, _import_path(), self._blobs.shared, self._code))
        reply = self._receive(None)
        if isinstance(reply, protocol.Failed):
            self._end()
            raise TaskError(reply.failure)
        self._greeted = True

    def _died(self, how: str) -> Failure:
        if self._closed:
            return Failure(message="the worker was closed", died=True, kind="WorkerDied")
        return Failure(message=f"the worker process {how}", died=True, kind="WorkerDied")

    def _send(self, request: protocol.Request) -> None:
        assert self._connection is not None
        try:
            protocol.send(self._connection, request)
        except OSError:
            raise WorkerDied(self._reap()) from None

    def _receive(self, on_rows: OnRows | None) -> protocol.Reply:
        while True:
            while (reply := self._buffer.next()) is not None:
                if isinstance(reply, protocol.Fetch | protocol.Share):
                    self._send(self._give(reply))
                    continue
                if not isinstance(reply, protocol.Progress):
                    return reply
                if on_rows is not None:
                    on_rows(reply.rows)
            self._fill()

    def _give(self, asked: protocol.Fetch | protocol.Share) -> protocol.Given:
        """Bring a blob into the worker's directory, or store one from there."""
        try:
            if isinstance(asked, protocol.Fetch):
                self._blobs.open_path(asked.blob)
            else:
                self._blobs.share(asked.blob)
        except BlobMissing:
            return protocol.Given(missing=True)
        except (BlobsUnavailable, OSError) as error:
            self._outage = error
            return protocol.Given(problem=str(error))
        return protocol.Given()

    def _fill(self) -> None:
        """Wait for bytes from the worker, or for its end."""
        assert self._connection is not None
        assert self._process is not None
        poller = select.poll()
        poller.register(self._connection, select.POLLIN)
        if self._pidfd is not None:
            poller.register(self._pidfd, select.POLLIN)
        while True:
            ready = dict(poller.poll(None if self._pidfd is not None else _POLL_S * 1000))
            if self._connection.fileno() in ready:
                try:
                    data = self._connection.recv(1 << 20)
                except OSError:
                    data = b""
                if data:
                    self._buffer.feed(data)
                    return
                raise WorkerDied(self._reap())
            # Somebody else (a process that the function forked) may still hold the socket of a worker that is
            # gone.
            if ready or self._process.poll() is not None:
                raise WorkerDied(self._reap())

    def _check_open(self) -> None:
        if self._closed:
            raise SpaceError("this executor is closed")

    # -- the process -----------------------------------------------------------------------------------------

    def _spawn(self) -> None:
        if self._marks is None:
            self._mark_fd = _anonymous_file(protocol.MARK_BYTES)
            self._marks = mmap.mmap(self._mark_fd, protocol.MARK_BYTES)
        assert self._mark_fd is not None
        struct.pack_into("<qq", self._marks, 0, -1, -1)
        ours, theirs = socket.socketpair()
        lifeline_read, lifeline_write = os.pipe()
        in_main_thread = threading.current_thread() is threading.main_thread()
        arguments = [theirs.fileno(), lifeline_read, self._mark_fd, int(in_main_thread), os.getpid()]
        root = str(Path(_version.__file__).absolute().parent.parent)
        # Ctrl-C must not meet the worker before it ignores it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _BOOT, root, *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=_stderr(),
                stderr=_stderr(),
                pass_fds=(theirs.fileno(), lifeline_read, self._mark_fd),
                env={**os.environ, "POLARS_MAX_THREADS": str(self._threads)},
            )
        except BaseException:
            ours.close()
            os.close(lifeline_write)
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()
            os.close(lifeline_read)
        self._connection, self._lifeline = ours, lifeline_write
        self._buffer = protocol.ReplyBuffer()
        self._greeted = False
        if hasattr(os, "pidfd_open"):
            with contextlib.suppress(OSError):
                self._pidfd = os.pidfd_open(self._process.pid)

    def _reap(self) -> str:
        """Make sure that the worker is gone; how it went."""
        process, greeted = self._process, self._greeted
        assert process is not None
        try:
            status = process.wait(_EXIT_WAIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait()
        self._end()
        if status < 0:
            try:
                name = signal.Signals(-status).name
            except ValueError:
                name = f"signal {-status}"
            hint = {
                "SIGKILL": " (out of memory?)",
                "SIGSEGV": " (a crash in native code)",
                "SIGABRT": " (native code gave up)",
            }.get(name, "")
            return f"was killed by {name}{hint}"
        if not greeted and status == 1:
            return "could not start: its error is on this program's stderr"
        return f"exited with status {status}"

    def _end(self) -> None:
        process, self._process = self._process, None
        if self._connection is not None:
            self._connection.close()
        if self._lifeline is not None:
            os.close(self._lifeline)
        if self._pidfd is not None:
            os.close(self._pidfd)
        self._connection = self._lifeline = self._pidfd = None
        if process is not None and process.returncode is None:
            try:
                process.wait(_EXIT_WAIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _task(spec: TaskSpec, rows: tuple[int, int] | None) -> protocol.Task:
    return protocol.Task(
        stage=spec.stage.index,
        input=spec.input,
        seed=spec.seed,
        inputs={
            stage: [Result(inline=one.inline, blob=one.blob, rows_out=one.rows_out) for one in results]
            for stage, results in spec.inputs.items()
        },
        isolate=spec.isolate,
        skip_errors=spec.skip_errors,
        dead_letters_max=spec.dead_letters_max,
        rows=rows,
    )


def _import_path() -> tuple[str, ...]:
    return tuple(
        dict.fromkeys(str(Path(entry).absolute()) if entry else str(Path.cwd()) for entry in sys.path)
    )


def _anonymous_file(size: int) -> int:
    """A file without a name, for memory shared with the worker."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("onefold-marks")
    else:
        fd, path = tempfile.mkstemp(prefix="onefold-")
        Path(path).unlink()
    os.ftruncate(fd, size)
    return fd


def _stderr() -> int:
    """This process's own stderr, whatever ``sys.stderr`` is; nothing when it is closed."""
    try:
        os.fstat(2)
    except OSError:
        return subprocess.DEVNULL
    return 2
