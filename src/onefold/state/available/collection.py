"""What all handles of collections for every region share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onefold import config
from onefold.available.ops import AnyRequest, Committed, Read
from onefold.errors import InvalidArgument
from onefold.state.available.client import RegionClient, check_level
from onefold.state.available.places import check_place
from onefold.state.core.consistency import SESSION, Consistency, Level, parse_level
from onefold.state.core.guard import check_plain
from onefold.state.encoding.names import check_name

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Collection:
    """A handle. Any number of them may be open, in any threads and processes."""

    def __init__(
        self,
        client: RegionClient | Callable[[], RegionClient],
        what: str,
        name: str,
        place: str,
        level: Level | None = None,
    ) -> None:
        """``client``: or what opens it, at the first use: a handle is made without waiting. ``what``: as it is called on a
        database (``map``, ``counters``, ``sets``). ``place``: see ``available.kinds.places``. ``level``: of reads that name none
        (None: ``session``).

        Raises InvalidArgument for a name that cannot be, UnsupportedConsistency for ``strong``.
        """
        self.name = check_name(what, name)
        if len(place.encode()) > config.NAME_BYTES_MAX:
            raise InvalidArgument(
                f"the name of available {what} takes at most {config.NAME_BYTES_MAX - len(place.encode()) + len(name.encode())} "
                f"bytes; got {name[:60]!r}..."
            )
        self._opened: RegionClient | None = None
        if isinstance(client, RegionClient):
            self._opened = client
        else:
            self._open = client
        self.place = place
        self.level = SESSION if level is None else check_level(level)
        self._what = f"{what}({name!r})"
        self._is_checked = False

    @property
    def client(self) -> RegionClient:
        """The core under it. Opens the region if this is its first use: raises as that."""
        opened = self._opened
        if opened is None:
            opened = self._opened = self._open()
        return opened

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"

    def _check(self) -> None:
        """Before each use. Raises TransactionError, SpaceError; at the first one InvalidArgument if the name is another thing."""
        check_plain(self.client.space, self._what)
        if not self._is_checked:
            check_place(self.client, self.place)
            self._is_checked = True

    def _level(self, consistency: Consistency | None) -> Level:
        return self.level if consistency is None else check_level(parse_level(consistency))

    def _do(
        self,
        key: bytes,
        requests: Sequence[AnyRequest],
        reads: Sequence[Read] = (),
        request_id: str | None = None,
    ) -> Committed:
        """``key``: an encoded one, of all of them."""
        shard = self.client.shard_of(key)
        return self.client.do(shard, tuple(requests), tuple(reads), request_id=request_id)
