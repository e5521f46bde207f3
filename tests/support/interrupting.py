"""Exceptions of signal handlers, at each place that an action in the main thread passes."""

import sys
import threading
from pathlib import Path

import pytest

from support.traced import check_met, library_files

sys.path.insert(0, str(Path(__file__).parents[1] / "faults"))
from interrupted_program import INTERRUPTS

HANDLES = ("/onefold/state/",)
BELOW = ("machine", "log", "fold", "store", "shard", "space")
EVERYTHING = (*library_files(*BELOW, "codec.py"), *HANDLES, "/contextlib.py")
WAIT_S = 60


def is_traced(code, files=EVERYTHING):
    return any(part in code.co_filename for part in files)


def places_of(action, files=EVERYTHING):
    """Every line, entry and return of those files that the action passes in this thread."""
    places = {}

    def trace(frame, event, _):
        if not is_traced(frame.f_code):
            return None
        if event != "exception" and is_traced(frame.f_code, files):
            places[frame.f_code, frame.f_lineno, event] = True
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        action()
    finally:
        sys.settrace(before)
    if files is not EVERYTHING:
        check_met(files, (code.co_filename for code, _, _ in places))
    return list(places)


def handler(kind, _frame=None):
    raise kind


def interrupted_at(place, action, kind):
    """Run the action with an interrupt at that place, as a signal handler makes one."""
    hit = []

    def trace(frame, event, _):
        if not is_traced(frame.f_code):
            return None
        if not hit and (frame.f_code, frame.f_lineno, event) == place:
            hit.append(place)
            sys.settrace(None)
            handler(kind)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        action()
    except INTERRUPTS:
        pass
    else:
        if hit:
            pytest.fail(f"what the handler raised did not come out: {hit[0]}")
    finally:
        sys.settrace(before)


def in_a_thread(action):
    """The action's result in another thread; None when it did not come to its end."""
    results = []
    thread = threading.Thread(target=lambda: results.append(action()), daemon=True)
    thread.start()
    thread.join(WAIT_S)
    return results[0] if results else None
