"""Processes that outlive the one that started them: started in a session of their own, known by pid *and* start time.

A pid alone may belong to somebody else by the time it is read from a file. So each daemon is written down with the moment
it started (as the kernel counts it, and of which boot), and a signal goes to that very process or to none.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from onefold.backoff import Deadline, wait_until
from onefold.files import write_whole

_LOOK_S: Final = 0.01


class Daemon(msgspec.Struct, frozen=True):
    """One process: ``started`` tells it from a later one with the same pid."""

    pid: int
    started: str


def start(
    command: Sequence[str], *, log: Path, pid_file: Path, environment: Mapping[str, str] | None = None
) -> Daemon:
    """Start a daemon whose output goes to ``log`` (added to, readable by its owner only), and write it to ``pid_file``.

    Raises OSError when the program cannot be started. Who starts it may end before it.
    """
    with _undisturbed():
        return _start(command, log, pid_file, environment)


def _start(
    command: Sequence[str], log: Path, pid_file: Path, environment: Mapping[str, str] | None
) -> Daemon:
    with open(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            start_new_session=True,
            close_fds=True,
        )
    try:
        # Looked up before anybody reaps it: even when it has ended already, it is its own zombie that is found.
        daemon = Daemon(process.pid, _started(process.pid, zombies=True) or "ended")
        write_whole(pid_file, msgspec.json.encode(daemon))
    except BaseException:  # such as a full disk: nobody would know of it
        process.kill()
        process.wait()
        raise
    process.returncode = 0  # it is looked after by its identity from here on, also by other processes
    return daemon


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Put off interrupts: one between a start and the note of it would leave a process that nobody knows of."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signal handlers run in the main thread only
        return
    came: list[int] = []
    kept = {number: handler for number in _INTERRUPTS if (handler := signal.getsignal(number)) is not None}
    try:
        for number in kept:
            signal.signal(number, lambda number, _: came.append(number))
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, _INTERRUPTS)
        for number, handler in kept.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _INTERRUPTS)
        for interrupt in came:
            signal.raise_signal(interrupt)


_INTERRUPTS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def read(pid_file: Path) -> Daemon | None:
    """The daemon in a pid file; None when there is no such file, or none that can be read."""
    try:
        return msgspec.json.decode(pid_file.read_bytes(), type=Daemon)
    except (OSError, msgspec.DecodeError):
        return None


def identify(pid: int) -> Daemon | None:
    """The process that has this pid now, to know it by; None when there is none."""
    started = _started(pid)
    return None if started is None else Daemon(pid, started)


def alive(daemon: Daemon | None) -> bool:
    """Whether that very process still runs (stopped ones do, zombies do not)."""
    if daemon is None:
        return False
    _reap(daemon.pid)
    return _started(daemon.pid) == daemon.started


def send(daemon: Daemon | None, number: int) -> bool:
    """Send a signal to that very process. False when it is gone. Raises PermissionError when it is another user's."""
    if daemon is None or not alive(daemon):
        return False
    try:
        if hasattr(os, "pidfd_open"):
            handle = os.pidfd_open(daemon.pid)
            try:
                if not alive(daemon):  # the handle may be of a later process with this pid
                    return False
                signal.pidfd_send_signal(handle, number)
            finally:
                os.close(handle)
        else:
            os.kill(daemon.pid, number)
    except ProcessLookupError:
        return False
    return True


def wait_ended(daemon: Daemon | None, timeout: float) -> bool:
    """Wait until that process is gone. False when it is still there after ``timeout`` seconds."""
    return wait_until(lambda: not alive(daemon), timeout, _LOOK_S)


def end(daemons: Sequence[Daemon | None], grace_s: float) -> list[Daemon]:
    """SIGTERM to all, SIGKILL to those that are there after ``grace_s`` seconds; returns what could not be ended even so."""
    for daemon in daemons:
        send(daemon, signal.SIGTERM)
        send(daemon, signal.SIGCONT)  # a stopped process would not see it
    deadline = Deadline.after(grace_s)
    for daemon in daemons:
        if not wait_ended(daemon, deadline.within(grace_s)):
            send(daemon, signal.SIGKILL)
    return [daemon for daemon in daemons if daemon is not None and not wait_ended(daemon, _KILLED_S)]


_KILLED_S: Final = 5.0
"""How long the kernel may take to clear away a killed process."""


def _reap(pid: int) -> None:
    """Clear away the process if it is our child and has ended."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        pass


def _started(pid: int, *, zombies: bool = False) -> str | None:
    """When the process started, as text that no other process of this pid has; None when there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return None if Path("/proc/self/stat").exists() else _started_by_ps(pid, zombies=zombies)
    except ProcessLookupError:
        return None
    fields = stat[stat.rindex(")") + 2 :].split()  # the name before may hold anything
    if fields[0] in "ZX" and not zombies:
        return None
    return f"{_boot()}-{fields[19]}"


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
    except OSError:
        return "boot"


def _started_by_ps(pid: int, *, zombies: bool) -> str | None:
    """The same where there is no /proc."""
    command = ["ps", "-o", "stat=,lstart=", "-p", str(pid)]
    found = subprocess.run(
        command, capture_output=True, text=True, check=False, env={"LC_ALL": "C"}
    ).stdout.split()
    if not found or (found[0].startswith("Z") and not zombies):
        return None
    return "-".join(found[1:])
