"""The links of this process by address: each is made once, and ends when the last of its users has closed it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from onefold.env import Env
from onefold.log.jetstream.client.address import Address
from onefold.machine import forks

if TYPE_CHECKING:
    from onefold.log.jetstream.client.link import Link


class SharedLinks:
    """See the module. ``make`` makes a link to an address."""

    def __init__(self, make: Callable[[Address, str, Env], Link]) -> None:
        self.lock = threading.Lock()
        self.links: dict[Address, Link] = {}
        self._make = make

    def get(self, address: Address, name: str, env: Env) -> Link:
        """The link to the address, made when there is none. Raises as ``Link``."""
        with self.lock:
            forks.track(self)
            link = self.links.get(address)
            if link is not None:
                link._users += 1
                return link
            link = self._make(address, name, env)
            link._shared = True
            self.links[address] = link
            return link

    def release(self, link: Link) -> None:
        """One user fewer."""
        with self.lock:
            link._users -= 1
            if link._users == 0:
                del self.links[link.address]
                link._end()

    def drop_after_fork(self) -> None:
        """In a child: the links are the parent's."""
        self.lock = threading.Lock()
        self.links = {}
