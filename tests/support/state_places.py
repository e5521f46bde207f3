"""Spaces in a folder, in memory and over several shards, and programs, threads and refusals around them."""

import subprocess
import sys
import threading

import pytest

import onefold as of

PLACES = {"folder": {}, "memory": {}, "shards": {"shards": 4}}


@pytest.fixture(params=PLACES, name="db")
def state_db(request, tmp_path):
    url = "memory://" if request.param == "memory" else tmp_path / "space"
    with of.connect(url, **PLACES[request.param]) as opened:
        yield opened


@pytest.fixture(params=["folder", "shards"], name="folder")
def folder_of_space(request, tmp_path):
    """A folder with a space that other processes can open."""
    of.connect(tmp_path / "space", **PLACES[request.param]).close()
    return tmp_path / "space"


def elsewhere(code, *args):
    """What a program in another process prints; ``args`` are its ``sys.argv[1:]``."""
    program = f"import sys\nimport onefold as of\n{code}"
    command = [sys.executable, "-c", program, *map(str, args)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


def in_thread(fn):
    """Run it in another thread, to its end; what it gives."""
    found = []
    thread = threading.Thread(target=lambda: found.append(fn()))
    thread.start()
    thread.join(60)
    assert found, "the thread has failed"
    return found[0]


def refused(kind, fn, *says):
    """It raises this, definite; the message has these words. Its text."""
    with pytest.raises(kind) as error:
        fn()
    assert error.value.definite
    for word in says:
        assert word in str(error.value)
    return str(error.value)
