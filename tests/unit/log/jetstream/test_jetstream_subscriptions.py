"""Subscriptions while a link connects again or moves to another server: none is forgotten, and none outlives its end."""

from __future__ import annotations

import asyncio
from typing import Any

from onefold.log.jetstream.client.address import Address
from onefold.log.jetstream.client.link import Link
from onefold.log.jetstream.client.subscription import Subscription
from onefold.machine import forks


class FakeConnection:
    """A connection on which something happens while it takes a subscription."""

    max_payload, others, leaving, over, server, server_name = 1000, (), False, False, "h:1", "eu-1"

    def __init__(self, meanwhile: Any = None) -> None:
        self.subjects: dict[int, str] = {}
        self.left: Any = None
        self._meanwhile = meanwhile
        self._numbers = iter(range(1, 100))

    async def listen(self, subject: str, _handler: Any, _queue: Any) -> int:
        await asyncio.sleep(0)
        if self._meanwhile is not None:
            self._meanwhile(subject)
        number = next(self._numbers)
        self.subjects[number] = subject
        return number

    def unlisten(self, sid: int) -> None:
        self.subjects.pop(sid, None)


class QuietLink(Link):
    """A link that has not connected yet."""

    def __init__(self) -> None:
        self._process = forks.process
        super().__init__(Address(("h:1",), "space"))

    def run(self, work: Any, timeout: float | None) -> Any:
        """Connects nowhere."""


def adopt(link: Link, connection: Any) -> bool:
    async def work() -> bool:
        link._broken = asyncio.Event()
        return await link._adopt(connection)

    return asyncio.run(work())


def subscribed(link: Link, subject: str) -> Subscription:
    subscription = Subscription(link, subject, lambda *_: None, None)
    link._subscriptions.add(subscription)
    return subscription


def test_a_subscription_that_begins_while_a_link_connects_is_on_the_new_connection() -> None:
    link = QuietLink()
    subscribed(link, "a")
    connection = FakeConnection(lambda subject: subscribed(link, "late") if subject == "a" else None)
    assert adopt(link, connection)
    assert sorted(connection.subjects.values()) == ["a", "late"]


def test_a_subscription_that_ends_while_a_link_moves_is_nowhere() -> None:
    link = QuietLink()
    subscription = subscribed(link, "a")
    old = FakeConnection()
    assert adopt(link, old) and list(old.subjects.values()) == ["a"]
    new = FakeConnection(lambda _: subscription._end())
    assert adopt(link, new)
    assert not old.subjects and not new.subjects


def test_a_subscription_ends_on_both_connections_of_a_move() -> None:
    link = QuietLink()
    subscription = subscribed(link, "a")
    old, new = FakeConnection(), FakeConnection()
    assert adopt(link, old) and adopt(link, new)
    assert list(old.subjects.values()) == list(new.subjects.values()) == ["a"]
    subscription._end()
    assert not old.subjects and not new.subjects
