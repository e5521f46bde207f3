"""What a test stand has made, written down, so that an interrupted one leaves nothing behind.

Servers, nodes, clients, network namespaces and a mounted disk outlive the process that made them. So each stand has a *note*: a
file that names what it makes before it makes it, and who it is. A stand that ends removes what it made, then its note. Anyone who
starts a stand removes first what is left of those whose process is gone, as after ``kill -9``.

Nothing foreign is touched. Processes are known by pid and start time (``cluster.daemons``), or by an environment variable with
the stand's random id, which all that it starts inherit; namespaces and mounts by the names in the note.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Final

import msgspec

from onefold.cluster import daemons as processes
from onefold.cluster.daemons import Daemon
from onefold.files import write_whole

VARIABLE: Final = "STAND_RUN"
"""Holds the stand's id in the environment of every process that it starts."""
_GRACE_S: Final = 0.0
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(BaseException):
    """A signal asked this process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Note(msgspec.Struct):
    """What one stand has made, or was about to make."""

    run: str
    owner: Daemon
    """Who made it: while that process lives it is not touched."""
    directory: str
    removes: bool = False
    """Whether the directory goes too."""
    processes: list[Daemon] = []
    namespaces: list[str] = []
    mounts: list[str] = []


class Notebook:
    """The note of one stand, kept as a file."""

    def __init__(self, directory: Path, *, removes: bool = False) -> None:
        """Begin it. ``directory``: where the stand keeps its files; ``removes``: it goes with the stand."""
        owner = processes.identify(os.getpid())
        assert owner is not None
        self.note = Note(secrets.token_hex(8), owner, str(directory.absolute()), removes)
        self._path = folder() / f"{self.note.run}.json"
        self._write()

    @property
    def environment(self) -> dict[str, str]:
        """What the environment of the stand's processes has more."""
        return {VARIABLE: self.note.run}

    def started(self, pid: int) -> None:
        """A process was started."""
        daemon = processes.identify(pid)
        if daemon is not None:
            self.note.processes.append(daemon)
            self._write()

    def namespaces(self, names: list[str]) -> None:
        """Namespaces of these names are about to be made."""
        self.note.namespaces += names
        self._write()

    def mount(self, place: Path) -> None:
        """Something is about to be mounted there."""
        self.note.mounts.append(str(place.absolute()))
        self._write()

    def close(self) -> None:
        """Remove what is left, and the note."""
        if self._path.exists():
            _clear(self.note)
            self._path.unlink(missing_ok=True)

    def _write(self) -> None:
        write_whole(self._path, msgspec.json.encode(self.note))


def folder() -> Path:
    """Where the notes of this user are. Raises OSError, and PermissionError when it is another user's."""
    found = Path(tempfile.gettempdir()) / f"onefold-stands-{os.getuid()}"
    found.mkdir(mode=0o700, exist_ok=True)
    kept = found.lstat()
    if kept.st_uid != os.getuid() or found.is_symlink() or kept.st_mode & 0o022:
        raise PermissionError(f"{found} is another user's, or others may write there. Remove it")
    return found


def sweep() -> list[str]:
    """Remove what stands have left whose process is gone; their ids."""
    swept = []
    with (folder() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for path in sorted(folder().glob("*.json")):
            try:
                note = msgspec.json.decode(path.read_bytes(), type=Note)
            except (OSError, msgspec.DecodeError):
                continue  # it was removed meanwhile
            if not processes.alive(note.owner):
                _clear(note)
                path.unlink(missing_ok=True)
                swept.append(note.run)
    return swept


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Raise Stopped for the first signal that asks this process to end, and nothing for later ones: it is ending."""
    came: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if not came:
            came.append(number)
            raise Stopped(number)

    before = {number: signal.signal(number, handle) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _clear(note: Note) -> None:
    """End and remove all that a note names. What cannot be removed is left; it is tried again with nothing."""
    processes.end(_mine(note), _GRACE_S)
    for mount in reversed(note.mounts):
        if os.path.ismount(mount):
            subprocess.run(["umount", "-l", mount], capture_output=True, check=False)
    for name in note.namespaces:
        if Path(f"/run/netns/{name}").exists():
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    if note.removes:
        shutil.rmtree(note.directory, ignore_errors=True)


def _mine(note: Note) -> list[Daemon]:
    """The processes of a stand that still run."""
    found = {daemon.pid: daemon for daemon in note.processes if processes.alive(daemon)}
    for path in Path(note.directory).glob("servers/*/pid.json"):
        daemon = processes.read(path)
        if daemon is not None and processes.alive(daemon):
            found[daemon.pid] = daemon
    wanted = f"{VARIABLE}={note.run}".encode()
    for path in Path("/proc").glob("[0-9]*/environ"):
        pid = int(path.parent.name)
        daemon = processes.identify(pid)  # before it is looked at: a later process of this pid is another one
        try:
            if wanted in path.read_bytes().split(b"\0") and daemon is not None and pid != os.getpid():
                found[pid] = daemon
        except OSError:
            continue  # another user's, or gone
    return list(found.values())
