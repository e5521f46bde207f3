"""What nodes testify, compared; and who is silent."""

from __future__ import annotations

import pytest

from onefold.fold.nodes import rows
from onefold.fold.nodes.state import Node
from onefold.node.members.observer import Observer
from onefold.node.members.witness import Verdict, concerning, describe, disputes, judge, unsaid

# -- reported digests and hashes


def test_equal_reports_are_not_a_dispute() -> None:
    assert disputes({(0, 4096): {"a": "x", "b": "x"}, (1, 4096): {"a": "y"}}) == []
    assert disputes({}) == []


def test_the_earliest_difference_of_each_shard_is_disputed() -> None:
    found = disputes(
        {
            (1, 12288): {"a": "p", "b": "q"},
            (1, 8192): {"c": "s", "b": "r", "a": "r"},
            (0, 4096): {"a": "x", "b": "x"},
            (2, 4096): {"b": "2", "a": "1"},
        }
    )
    assert [(one.shard, one.offset) for one in found] == [(1, 8192), (2, 4096)]
    assert found[0].said == (("r", ("a", "b")), ("s", ("c",)))
    assert found[0].outvoted == ("c",)
    assert found[1].outvoted == ()  # one against one: nobody is believed
    assert "shard 1 at offset 8192: a, b: r; c: s" in describe(found[0])


def test_three_words_of_three_outvote_nobody() -> None:
    (found,) = disputes({(0, 4096): {"a": "1", "b": "2", "c": "3"}})
    assert found.outvoted == ()
    (found,) = disputes({(0, 4096): {"a": "1", "b": "1", "c": "3", "d": "4"}})
    assert found.outvoted == ()  # two of four are no majority


def test_who_said_something_of_what_it_hosts_looks_again() -> None:
    found = disputes({(0, 4096): {"a": "1", "b": "2"}, (1, 4096): {"a": "1", "b": "2"}})
    assert [one.shard for one in concerning(found, "a", {1})] == [1]
    assert concerning(found, "c", {0, 1}) == []


def test_verdicts() -> None:
    assert judge("x", "x") is Verdict.SOUND
    assert judge("x", "y") is Verdict.WRONG
    assert judge("x", None) is Verdict.UNKNOWN


def test_each_digest_is_said_once_and_only_the_latest() -> None:
    known = {offset: bytes([offset // 4096]) for offset in range(4096, 4096 * 11, 4096)}
    assert [offset for offset, _ in unsaid(known, 4096 * 7, 4096 * 9, 8)] == [4096 * 8, 4096 * 9]
    assert [offset for offset, _ in unsaid(known, 0, 4096 * 10, 2)] == [4096 * 9, 4096 * 10]
    assert unsaid(known, 4096 * 10, 4096 * 10, 8) == []


# -- silence

LEASE, BEAT = 10.0, 2.0


def node(name: str, beats: int, *, epoch: int = 1, state: str = rows.LIVE) -> Node:
    return Node(name, rows.NodeState(epoch, "i", state, "eu", "z", "", "", 1, 0, 0, beats))


def beats(observer: Observer, count: int) -> None:
    for _ in range(count):
        observer.beat_applied()


def test_a_node_without_beats_for_a_lease_is_silent() -> None:
    observer = Observer("me", LEASE, BEAT)
    assert observer.silent([node("a", 3), node("me", 1)], 100.0) == []
    beats(observer, 4)
    assert observer.silent([node("a", 3)], 109.9) == []
    beats(observer, 1)
    assert observer.silent([node("a", 3)], 110.0) == [("a", 1)]
    assert observer.silent([node("a", 4)], 110.1) == []  # it was heard of


def test_time_in_which_this_node_was_not_heard_does_not_count() -> None:
    observer = Observer("me", LEASE, BEAT)
    observer.silent([node("a", 3)], 100.0)
    assert observer.silent([node("a", 3)], 500.0) == [], "a stopped process accuses nobody when it continues"
    beats(observer, 3)
    assert observer.silent([node("a", 3)], 501.0) == []
    beats(observer, 1)
    assert observer.silent([node("a", 3)], 502.0) == [("a", 1)]


@pytest.mark.parametrize("gone", [rows.LEFT, rows.EXPIRED])
def test_who_is_gone_is_not_expired(gone: str) -> None:
    observer = Observer("me", LEASE, BEAT)
    observer.silent([node("a", 3, state=gone)], 0.0)
    beats(observer, 9)
    assert observer.silent([node("a", 3, state=gone)], 100.0) == []


def test_a_new_epoch_begins_anew() -> None:
    observer = Observer("me", LEASE, BEAT)
    observer.silent([node("a", 0)], 0.0)
    beats(observer, 9)
    assert observer.silent([node("a", 0, epoch=7)], 100.0) == []
    beats(observer, 9)
    assert observer.silent([node("a", 0, epoch=7)], 110.0) == [("a", 7)]
    observer.restart()
    assert observer.silent([node("a", 0, epoch=7)], 111.0) == []


def test_a_draining_node_can_be_silent_too() -> None:
    observer = Observer("me", LEASE, BEAT)
    observer.silent([node("a", 0, state=rows.DRAINING)], 0.0)
    beats(observer, 9)
    assert observer.silent([node("a", 0, state=rows.DRAINING)], 11.0) == [("a", 1)]
