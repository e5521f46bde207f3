"""Wake-ups between processes: who waits makes a FIFO in ``<space>/wake``, who commits writes a byte into each.

Nobody polls, nothing listens on a port, and a byte in a full pipe is not missed since one unread byte is enough. A
writer killed between its commit and its wake-up is covered by a slow check (``config.WAKE_POLL_S``). A FIFO without a reader
belongs to a dead process: the next writer removes it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import threading
import time
from collections.abc import Callable
from pathlib import Path

from onefold import config
from onefold.env import Env
from onefold.errors import OnefoldError
from onefold.ids import new_id
from onefold.machine import forks

_FRESH_S = 0.05
_HALF_MADE_S = 60.0


class Notifier:
    """Wakes the waiting processes. Used by one thread at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = os.fspath(folder)
        self._changed_ns = -1
        self._names: list[str] = []
        self._fd = -1
        self.own: str | None = None
        """The FIFO of this process, which is notified in another way."""

    def close(self) -> None:
        """Release the folder."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def notify(self) -> None:
        """Wake everybody else who listens. Never raises and never blocks: who cannot be woken looks again by itself."""
        try:
            if self._fd < 0:
                self._fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            changed_ns = os.fstat(self._fd).st_mtime_ns  # once per commit, so not by path
            if changed_ns != self._changed_ns:
                names = os.listdir(self._folder)  # noqa: PTH208
                self._names = [name for name in names if not name.startswith(".")]
                # Two changes within the clock's grain have one mtime, so a young listing is not kept.
                settled = time.time() - changed_ns / 1e9 > _FRESH_S
                self._changed_ns = changed_ns if settled else -1
        except OSError:
            return
        for name in self._names:
            if name != self.own:
                self._poke(f"{self._folder}/{name}")

    def _poke(self, path: str) -> None:
        try:
            writer = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno == errno.ENXIO:
                with contextlib.suppress(OSError):
                    Path(path).unlink()
            return
        reader = -1
        try:
            # With a reading end of our own, a listener that dies now cannot turn the write into a SIGPIPE.
            reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.write(writer, b"!")
        except OSError:
            pass
        finally:
            os.close(writer)
            if reader >= 0:
                os.close(reader)


class Listener:
    """This process's FIFO. One thread waits; any thread may ``poke`` it awake.

    In a folder that cannot be written it waits on a private pipe, so only the slow check finds new records.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._path: Path | None = folder / name
        try:
            folder.mkdir(exist_ok=True)
            # A FIFO is published once it has a reader: without one, writers would take it for a dead one's.
            half_made = folder / f".{name}"
            os.mkfifo(half_made)
            self._reader = os.open(half_made, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            # Our own writing end keeps poll() from reporting a hang-up whenever a writer closes.
            self._writer = os.open(half_made, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            half_made.rename(self._path)
        except OSError:
            self._path = None
            self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._reader, select.POLLIN)
        self._poking = threading.Lock()
        """Held while it is poked or closed. The number of a closed descriptor is given to the next file that is opened, such as a
        write-ahead log of SQLite: a byte written there then makes its records look like leftovers."""
        forks.track(self)

    def wait(self, timeout: float) -> bool:
        """Wait for a byte, at most ``timeout`` seconds; True when one came."""
        if not self._poll.poll(timeout * 1000):
            return False
        self.drain()
        return True

    def fileno(self) -> int:
        """What becomes readable when somebody wakes it, for a ``poll`` over several; -1 once it is closed."""
        return self._reader

    def drain(self) -> None:
        """Take the bytes that have come, without waiting."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._reader, 1 << 16)

    def poke(self) -> None:
        """Wake the waiting thread of this process, if there still is one. Also while another thread closes it."""
        with self._poking, contextlib.suppress(OSError):
            if self._writer >= 0:
                os.write(self._writer, b"!")

    def close(self) -> None:
        """Remove the FIFO. Call it when no thread waits."""
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink()
        with self._poking:
            self._close()

    def _close(self) -> None:
        fds, self._reader, self._writer = (self._reader, self._writer), -1, -1
        for fd in fds:
            if fd >= 0:
                os.close(fd)

    def drop_after_fork(self) -> None:
        self._poking = threading.Lock()  # a thread that is not in this process may have had it
        self._close()


class Watch:
    """A thread that looks at what other processes have committed: when one of them wakes it, and every ``config.WAKE_POLL_S``."""

    def __init__(self, folder: Path, notifier: Notifier, env: Env, look: Callable[[], bool]) -> None:
        """``look``: notices what is new and wakes who waits for it; False when there is nothing to watch any more. An
        OnefoldError of it is for the waiters, who meet it at their next read."""
        self._folder = folder
        self._notifier = notifier
        self._env = env
        self._look = look
        self._changing = threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._listener: Listener | None = None

    @property
    def started(self) -> bool:
        """Whether anybody has waited yet."""
        return self._thread is not None

    def start(self) -> None:
        """Watch from now on, if it does not yet and has not ended."""
        with self._changing:
            if self._thread is None and not self._ended.is_set():
                self._notifier.own = new_id("w", self._env)
                listener = self._listener = Listener(self._folder, self._notifier.own)
                self._thread = threading.Thread(
                    target=self._run, args=(listener,), name="onefold-watch", daemon=True
                )
                self._thread.start()

    def end(self, timeout: float | None = None) -> None:
        """Watch no longer; wait for the thread's end, unless this is that thread."""
        with self._changing:
            self._ended.set()
            thread, listener = self._thread, self._listener
        if listener is not None:
            listener.poke()
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)

    def _run(self, listener: Listener) -> None:
        while not self._ended.is_set():
            listener.wait(config.WAKE_POLL_S)
            if self._ended.is_set():
                break
            try:
                if not self._look():
                    break
            except OnefoldError:
                self._ended.wait(config.WAKE_POLL_S)  # do not spin on it
        listener.close()


def sweep(folder: Path) -> None:
    """Remove the FIFOs of dead processes. Never raises: it is housekeeping."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            with contextlib.suppress(OSError):
                if path.name.startswith(".") and time.time() - path.stat().st_mtime < _HALF_MADE_S:
                    continue
                try:
                    os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC))
                except OSError as error:
                    if error.errno == errno.ENXIO:
                        path.unlink()
