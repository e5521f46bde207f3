"""An interrupted run of the fault suite leaves nothing behind, and nothing that is not its own is touched."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from kit.cluster import hosts, leftovers
from kit.cluster.leftovers import Note, Notebook
from kit.environment import with_tests
from onefold.cluster import daemons

RUN = [
    sys.executable,
    "-m",
    "kit.cluster",
    "--seeds",
    "1",
    "--faults",
    "kill-leader",
    "--job-tasks",
    "0",
]
PATIENCE_S = 90.0


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where notes and folders of stands are: of this test alone."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def bystander() -> Iterator[daemons.Daemon]:
    process = subprocess.Popen(["sleep", "300"])
    found = daemons.identify(process.pid)
    assert found is not None
    yield found
    process.kill()
    process.wait()


def await_state(done, problem: str):
    end = time.monotonic() + PATIENCE_S
    while not (found := done()):
        assert time.monotonic() < end, problem
        time.sleep(0.02)
    return found


def note_with_servers(place: Path) -> Note | None:
    """The note of the run, once it has servers."""
    for path in leftovers.folder().glob("*.json"):
        note = msgspec.json.decode(path.read_bytes(), type=Note)
        if len(running(note)) >= 2 and list(place.glob("onefold-faults-*/servers/*/pid.json")):
            return note
    return None


def running(note: Note) -> list[daemons.Daemon]:
    return leftovers._mine(note)


def namespaces(note: Note) -> list[str]:
    return [name for name in note.namespaces if Path(f"/run/netns/{name}").exists()]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
@pytest.mark.moving(2)
def test_an_interrupted_run_leaves_nothing(number: signal.Signals, place: Path) -> None:
    command = RUN if hosts.missing() or number != signal.SIGKILL else [*RUN, "--small-disk-mb", "64"]
    with (place / "output").open("wb") as output:
        run = subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            env=with_tests(os.environ | {"TMPDIR": str(place)}),
            start_new_session=True,
        )
    try:
        note = await_state(lambda: note_with_servers(place), "it has not begun")
        folder = Path(note.directory)
        assert folder.is_dir()
        os.kill(run.pid, number)
        code = run.wait(PATIENCE_S)
        if number == signal.SIGKILL:
            assert len(running(note)) >= 2, "the servers are daemons: they outlive it"
            assert leftovers.sweep() == [note.run]
        else:
            assert code == 128 + number, (place / "output").read_text()
        assert running(note) == []
        assert namespaces(note) == []
        assert not any(os.path.ismount(mount) for mount in note.mounts)
        assert not folder.exists()
        assert list(leftovers.folder().glob("*.json")) == []
    finally:
        if run.poll() is None:
            run.kill()
            run.wait()
        leftovers.sweep()


def test_nothing_foreign_is_touched(place: Path, bystander: daemons.Daemon) -> None:
    gone = daemons.Daemon(bystander.pid, "another start")
    other = place / "folder"
    (other / "servers" / "s1").mkdir(parents=True)
    (other / "servers" / "s1" / "pid.json").write_bytes(msgspec.json.encode(gone))
    note = Note("0" * 16, gone, str(other), False, [gone], ["of0-none"], [str(place)])
    (leftovers.folder() / "x.json").write_bytes(msgspec.json.encode(note))
    living = Notebook(place / "living")
    assert leftovers.sweep() == ["0" * 16]
    assert daemons.alive(bystander) and other.is_dir()
    assert [path.stem for path in leftovers.folder().glob("*.json")] == [living.note.run], "its owner lives"
    living.close()
    assert list(leftovers.folder().glob("*.json")) == []


def test_a_process_that_no_note_names_yet_is_found(place: Path) -> None:
    note = Notebook(place / "stand")
    command = [sys.executable, "-c", "import subprocess; subprocess.run(['sleep', '300'])"]
    child = subprocess.Popen(command, env=os.environ | note.environment)
    try:
        await_state(lambda: len(running(note.note)) == 2, "it has not started")
        note.close()
        assert running(note.note) == []
        assert child.poll() is not None
    finally:
        child.kill()
        child.wait()


def test_a_folder_of_another_user_is_not_used(place: Path) -> None:
    made = leftovers.folder()
    made.chmod(0o777)
    with pytest.raises(PermissionError, match="Remove it"):
        leftovers.folder()
    made.rmdir()
    made.symlink_to(place)
    with pytest.raises(PermissionError):
        leftovers.folder()
