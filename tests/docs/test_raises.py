"""Public methods list what they raise, and whether it is definite: a reader has one page open."""

import builtins
import inspect
import re

import pytest

import onefold as of
from onefold import errors
from onefold.state.locks.lock import Lock
from onefold.state.maps.in_transaction import TxMap
from onefold.state.maps.map import Map
from onefold.state.queues.queue import Queue
from onefold.state.streams.consumer import Consumer
from onefold.state.streams.stream import Stream

HANDLES = (Lock, Map, TxMap, Queue, Stream, Consumer)
REFUSABLE = {"timeout", "consistency", "request_id", "ttl", "if_version"}
"""What has such a parameter can fail."""
INTERNAL = {
    "Consumer": {"add_commit_to", "check_settled", "look", "poll"},
    "Lock": {"acquisition", "claim"},
    "Message": {"read"},
    "Queue": {"submit", "take_for", "taking"},
}
MAKES_A_HANDLE = {"map", "stream", "queue"}
IN_A_BLOCK = {"TxMap"}
"""Whose errors come from the block, but for those that it names."""
SAYS_NOTHING_OF_A_WRITE = {"JobFailed", "KeyError", "OSError"}
NAME = r"[A-Z]\w+"


def public():
    """(name, function) of all that is exported, and of the handles that a database gives."""
    exported = [getattr(of, name) for name in of.__all__]
    classes = [one for one in exported if inspect.isclass(one) and not issubclass(one, BaseException)]
    for one in (one for one in exported if inspect.isfunction(one)):
        yield one.__name__, one
    for of_class in {*classes, *HANDLES}:
        for name, _ in inspect.getmembers(of_class):
            found = inspect.getattr_static(of_class, name)
            found = getattr(found, "fget", None) or getattr(found, "__func__", found)
            own = inspect.isfunction(found) and found.__module__.startswith("onefold.")
            if own and not name.startswith("_") and name not in INTERNAL.get(of_class.__name__, ()):
                yield f"{of_class.__name__}.{name}", inspect.unwrap(found)


PUBLIC = dict(sorted(public()))


def entries(function):
    """(names, text) of its list; empty without one."""
    _, _, listed = (inspect.getdoc(function) or "").partition("\nRaises:\n")
    whole = re.sub(r"\n {5,}", " ", listed)
    return [line.strip().partition(":")[::2] for line in whole.splitlines() if line.strip()]


def test_the_public_methods_are_found():
    assert len(PUBLIC) > 120
    assert {"connect", "Map.put", "Queue.take", "Lock.acquire", "Run.wait", "Database.at"} <= PUBLIC.keys()


@pytest.mark.parametrize("name", PUBLIC)
def test_what_can_fail_lists_what_it_raises(name):
    function, (of_class, _, method) = PUBLIC[name], name.rpartition(".")
    text = inspect.getdoc(function) or ""
    before = text.partition("\nRaises:\n")[0]
    assert not re.search(rf"\bRaises (?:as|what|{NAME})", before), "prose: list it under Raises:"
    refusable = REFUSABLE & inspect.signature(function).parameters.keys()
    if refusable and method not in MAKES_A_HANDLE and of_class not in IN_A_BLOCK:
        assert entries(function), f"it takes {refusable}"


@pytest.mark.parametrize("name", [name for name, one in PUBLIC.items() if entries(one)])
def test_each_listed_error_exists_and_says_whether_it_is_definite(name):
    for names, text in entries(PUBLIC[name]):
        for one in names.split(", "):
            assert hasattr(errors, one) or hasattr(builtins, one), one
        if names not in SAYS_NOTHING_OF_A_WRITE:
            assert re.search(r"\b(in)?definite\b", text), (names, text)
