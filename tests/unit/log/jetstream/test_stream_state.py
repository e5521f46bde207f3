"""What is made of a server's answer about a stream, also of answers that are not to be believed."""

from __future__ import annotations

from typing import Any

from onefold.doctor.facts import StreamFacts
from onefold.log.jetstream.streams import state_of


def info(leader: str | None, *others: str, copies: int = 5, messages: int = 1) -> dict[str, Any]:
    """As servers of release 2.15.1 say it."""
    cluster: dict[str, Any] = {
        "name": "c",
        "replicas": [{"name": name, "current": True, "active": 1, "lag": 0} for name in others],
    }
    if leader is not None:
        cluster["leader"] = leader
    state = {"messages": messages, "first_seq": messages, "last_seq": messages, "bytes": 9}
    return {"config": {"num_replicas": copies}, "state": state, "cluster": cluster}


def test_a_leader_is_one_of_the_copies() -> None:
    state = state_of("s", info("a", "b", "c", copies=3))
    assert (state.led, state.leader, state.servers, state.current) == (
        True,
        "a",
        ("a", "b", "c"),
        ("a", "b", "c"),
    )


def test_a_server_that_is_named_twice_counts_once() -> None:
    """Seen while a leader was moving: it was named among the others too."""
    found = info("dc1-2", "dc1-1", "dc1-2", "dc2-1", "dc2-2")
    state = state_of("s", found)
    assert state.servers == state.current == ("dc1-2", "dc1-1", "dc2-1", "dc2-2")
    facts = StreamFacts("s", None, found)
    assert facts.servers == list(state.servers)
    assert [one.server for one in facts.replicas] == ["dc1-1", "dc2-1", "dc2-2"]


def test_a_server_without_a_leader_is_no_evidence() -> None:
    """Seen of one that was restarted while a majority was away: it says that there is no record."""
    assert not state_of("s", info(None, "a", "b", "c", "d", messages=0)).led
    assert state_of("s", info(None, copies=1)).led
    assert (
        state_of("s", {"config": {"num_replicas": 1}, "state": {"messages": 1, "last_seq": 1}}).leader
        == "alone"
    )
