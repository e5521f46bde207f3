"""For all tests: asserts in what they share are rewritten too, and no program outlives the tests that started it."""

import os
import shutil
import signal
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest

# Compiled code is kept, whatever the environment says: rewriting the asserts of all tests takes three times as long as collecting
# them, for each worker, and a thousand programs are started that import the package.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

pytest.register_assert_rewrite("support", "kit")

if threading.current_thread() is threading.main_thread():
    # Tests that are started in the background (nohup, many CI runners) ignore signals, and so would every program they start.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)

from support import guardian, lanes, parts  # noqa: E402 - rewritten, too

guardian.watch()

parts.fix_day()


CACHE = pytest.StashKey[str]()


def pytest_configure(config: pytest.Config) -> None:
    """Replicas of clusters that live for one test are not kept in the user's cache. Workers share the folder."""
    if not hasattr(config, "workerinput"):
        os.environ["XDG_CACHE_HOME"] = config.stash[CACHE] = tempfile.mkdtemp(prefix="onefold-cache-")


def pytest_unconfigure(config: pytest.Config) -> None:
    if (folder := config.stash.get(CACHE, None)) is not None:
        shutil.rmtree(folder, ignore_errors=True)


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    return parts.ignores_file(collection_path) or None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    parts.deselect_others(config, items)
    items[:] = lanes.in_order(items)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object | None:
    """Two lanes, unless the command line names another way to spread the tests."""
    return lanes.Lanes(config, log) if config.getvalue("dist") == "loadfile" else None
