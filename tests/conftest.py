"""For all tests: asserts in what they share tell as much as their own, and no program outlives the tests that started it."""

import signal
import threading

import pytest

pytest.register_assert_rewrite("support")

if threading.current_thread() is threading.main_thread():
    # Who starts the tests in the background (nohup, many CI runners) has them ignore signals, and every program that they start.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)

from support import guardian  # noqa: E402 - rewritten, too

guardian.watch()

WAITING = ("cluster", "conformance", "faults")
"""Folders whose tests mostly wait for servers and processes."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Spread the files that wait over those that compute, so that several workers keep the processors busy."""
    files: dict[bool, dict[str, list[pytest.Item]]] = {True: {}, False: {}}
    for item in items:
        path = item.path.relative_to(item.config.rootpath)
        files[any(folder in path.parts for folder in WAITING)].setdefault(str(path), []).append(item)
    waiting, computing = list(files[True].values()), list(files[False].values())
    # All that wait have begun when two thirds of the others have: they take longer, so none of them is the last.
    every = max(1.0, 2 / 3 * len(computing) / max(1, len(waiting)))
    items.clear()
    for place, of_file in enumerate(computing):
        while waiting and place >= every * (len(files[True]) - len(waiting)):
            items.extend(waiting.pop(0))
        items.extend(of_file)
    for of_file in waiting:
        items.extend(of_file)
