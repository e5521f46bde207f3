"""Watching a map: what changed beyond an offset, read from the history, as a feed that waits for more.

A watch holds no resource while it waits: its whole state is a position for each shard, and every change carries the position
after it as a token. A position is an offset and, inside a record, the last change (place, key) of the record after it that was
given. The place -2 stands for the present state at that offset, given up to the key: so the initial state is resumed like a
record.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Final, Generic, Self, TypeVar

from onefold import config
from onefold.backoff import Backoff
from onefold.errors import SpaceError, TokenAhead, TokenError, TooOld, Unavailable
from onefold.machine.undisturbed import let_pass
from onefold.shard.waiters import Interest
from onefold.state.core.consistency import Level
from onefold.state.core.shards_client import ShardsClient
from onefold.state.core.waiting import Awaited, Looking, Pause, wait_any
from onefold.state.encoding.items import Change
from onefold.state.maps import reading as map_reading
from onefold.state.maps.changes import Known, MapChanges, Read
from onefold.state.maps.reading import Bounds
from onefold.state.maps.watched import Found, Position, Watched
from onefold.store.paged_view import Version

T = TypeVar("T")
_INITIAL: Final = -2
_PLACE_MAX: Final = 1 << 32


def open_watch(
    of: Watched[T],
    bounds: Bounds,
    level: Level,
    start: str | None,
    *,
    initial: bool,
    timeout: float | None,
    begun: Mapping[int, int] | None = None,
) -> Watch[T]:
    """See ``Map.watch``. ``begun``: what ``moment_of`` gave when the program asked for the watch, where that was earlier."""
    if start is not None:
        positions = _positions_of(of, bounds, start)
    else:
        positions = {}
        for shard in bounds.shards:
            if initial:
                of.rows.settle(shard, level)
            with of.client.view(shard, level) as view:
                of.saw(shard, view)
                if initial:
                    positions[shard] = Position(view.offset, (_INITIAL, b""))
                else:
                    offset = view.offset if begun is None else begun.get(shard, view.offset)
                    positions[shard] = Position(min(offset, view.offset))
    return Watch(of, bounds, positions, timeout)


def moment_of(client: ShardsClient) -> dict[int, int]:
    """How far each shard is known here, without waiting for anything: what is acknowledged later is beyond it. Shards of which
    this process keeps no state are left out."""
    return {
        shard_id: max(shard.applied, client.session.floor(shard_id))
        for shard_id, shard in enumerate(client.shards)
        if shard.reads_here
    }


def _positions_of(of: Watched[T], bounds: Bounds, text: str) -> dict[int, Position]:
    client = of.client
    offsets, places = of.read_token(text)
    positions: dict[int, Position] = {}
    for shard_id in bounds.shards:
        offset, within = offsets.get(shard_id, 0), places.get(shard_id)
        if within is not None and not _INITIAL <= within[0] < _PLACE_MAX:
            raise TokenError("the token's place in its record cannot be. Pass a change's `token`, unchanged")
        known = offset + (within is not None and within[0] != _INITIAL)
        shard = client.shards[shard_id]
        if known > shard.applied and not shard.reach(known, client.timeout):
            raise TokenAhead(
                f"the token has seen offset {known} of shard {shard_id}; nothing beyond {shard.applied} came within "
                f"{client.timeout:g} s. Wait longer (timeout= of connect), or watch without it"
            )
        with shard.view() as view:
            of.saw(shard_id, view)
            try:
                of.changes(shard_id, view, offset, None, bounds, 1)
            except TooOld as error:
                raise too_old(of.name, offset) from error
        positions[shard_id] = Position(offset, within)
    return positions


def too_old(name: str, offset: int) -> TooOld:
    """The error for a position that has left the history."""
    return TooOld(
        f"what followed offset {offset} in map {name!r} is no longer kept (the history has "
        f"{config.HISTORY_WINDOW_OFFSETS} offsets). Watch with initial=True: the present state, and the changes from then on"
    )


class Watch(Looking, Generic[T]):
    """An iterator of changes; see ``Map.watch``. One thread iterates, any may close."""

    def __init__(
        self, of: Watched[T], bounds: Bounds, positions: dict[int, Position], timeout: float | None
    ) -> None:
        self._of = of
        self._client = of.client
        self._name = of.name
        self._bounds = bounds
        self._positions = positions
        self._timeout = timeout
        self._found: deque[Found] = deque()
        self._known: Known | None = None
        """Of what was found last."""
        self._turn = 0
        self._dues: dict[int, int | None] = {}
        """Of shards that are asked: when the next lifetime ends, or None. Until something of this map changes there or is ended,
        none of this map ends sooner."""
        self._ticks: dict[int, tuple[float, Backoff]] = {}
        """Of shards where something stays due: when to tick again, and how long to pause after that."""
        self._closed = False

    @property
    def token(self) -> str:
        """Where it stands: a watch that starts here gives what this one would give next."""
        return self._of.token(self._positions)

    def close(self) -> None:
        """End it; a thread that waits in it stops within ``config.WATCH_LOOK_S``."""
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[Change[T]]:
        return self

    def __repr__(self) -> str:
        return f"<Watch of {self._name!r}>"

    def __next__(self) -> Change[T]:
        """The next change. Raises InvalidValue for a value that cannot be read, which names its map and key; iteration continues
        behind it."""
        if not self.poll():
            self._closed = True
            raise StopIteration
        return self.give()

    def poll(self) -> bool:
        """Find the next change, without giving it. False: none came within the timeout, or it is closed. Raises as iterating."""
        self._client.check_process()
        deadline_s = None if self._timeout is None else self._client.env.boot_s() + self._timeout
        while not self._closed:
            if self._found or self._fetch_any():
                return True
            left_s = None if deadline_s is None else deadline_s - self._client.env.boot_s()
            if left_s is not None and left_s <= 0:
                return False
            self._wait(left_s)
        return False

    def look(self) -> Pause | None:
        """Find the next change without waiting for one; None: it is found. Raises as iterating."""
        self._client.check_process()
        if self._found or self._fetch_any():
            return None
        due_s = self._until_due()
        return Pause(
            tuple(self._awaited(shard, position.offset) for shard, position in self._positions.items()),
            one_in_s=due_s or math.inf,
            in_s=0 if due_s == 0 else math.inf,
        )

    def handed(self, interests: Sequence[Interest]) -> bool:
        for interest in interests if not self._found else ():
            read = interest.read if isinstance(interest, MapChanges) and self._of.shares_reads else None
            if read is not None and not self._closed:
                self._use(read)
        return bool(self._found)

    def _use(self, read: Read) -> None:
        position = self._positions.get(read.shard)
        if position is None or position.within is not None or not read.after <= position.offset <= read.end:
            return
        self._dues.pop(read.shard, None)
        self._note(read.shard, [change for change in read.changes if change.offset > position.offset])
        self._known = Known(read.end, read.due_ms)

    def quiet(self) -> Pause | None:
        if self._found:
            return None
        known, self._known = self._known, None
        if known is None or self._closed or len(self._bounds.shards) != 1:
            return None
        (shard,) = self._bounds.shards
        position = self._positions[shard]
        due_s = math.inf if known.due_ms is None else (known.due_ms - self._client.env.wall_ms()) / 1000
        if position.within is not None or position.offset > known.end or due_s <= 0:
            return None
        self._positions[shard] = Position(known.end)
        return Pause((self._awaited(shard, known.end),), one_in_s=due_s)

    def _awaited(self, shard: int, offset: int) -> Awaited:
        # Each wait has an interest of its own: one that has been asked says what has changed since, without a gap.
        return Awaited(shard, self._of.interest(self._bounds, shard), offset)

    def give(self) -> Change[T]:
        """The change that ``poll`` or ``look`` has found."""
        found = self._found.popleft()
        self._positions[found.shard] = found.after
        self._client.session.observe(found.shard, found.offset)
        return self._of.change(found, self.token)

    @property
    def client(self) -> ShardsClient:
        """The core under it."""
        return self._client

    @property
    def timeout(self) -> float | None:
        """How many seconds a step waits at most."""
        return self._timeout

    # -- reading

    def _fetch_any(self) -> bool:
        """Read what is there next: every shard's present state if that was asked for, then changes, of the shards in turn."""
        shards = self._bounds.shards
        for shard in shards:
            while self._in_initial(shard):
                self._fetch_initial(shard)
                if self._found:
                    return True
        for _ in shards:
            shard = shards[self._turn % len(shards)]
            self._turn += 1
            if not self._is_quiet(shard, self._positions[shard].offset):
                self._fetch(shard)
            if self._found:
                return True
        return False

    def _is_quiet(self, shard_id: int, offset: int) -> bool:
        """Whether nothing is known beyond the offset in a shard that is asked; then there is nothing to ask for, and a node is
        made to tell when there is. Elsewhere looking is cheaper than knowing."""
        shard = self._client.shards[shard_id]
        return not shard.reads_here and shard.wait(offset, 0) <= offset

    def _in_initial(self, shard: int) -> bool:
        within = self._positions[shard].within
        return within is not None and within[0] == _INITIAL

    def _fetch(self, shard: int) -> None:
        """Read the next changes of a shard."""
        more = True
        while more and not self._found and not self._closed:
            more = self._fetch_page(shard)

    def _fetch_page(self, shard: int) -> bool:
        """Whether there are more behind it."""
        position = self._positions[shard]
        with self._client.shards[shard].view() as view:
            try:
                changes = self._of.changes(
                    shard, view, *position, self._bounds, config.WATCH_PAGE_CHANGES + 1
                )
            except TooOld as error:
                raise too_old(self._name, position.offset) from error
            end = view.offset
            due_ms = self._of.first_due(view) if changes and self._client.shards[shard].reads_here else None
            if changes:
                self._of.saw(shard, view)
        if not changes:
            self._positions[shard] = Position(max(position.offset, end))
            return False
        self._dues.pop(shard, None)
        self._note(shard, changes)
        more = len(changes) > config.WATCH_PAGE_CHANGES
        whole = not more and self._client.shards[shard].reads_here
        self._known = Known(end, due_ms) if whole else None
        return more

    def _note(self, shard: int, changes: Sequence[Version]) -> None:
        """These come next."""
        page = changes[: config.WATCH_PAGE_CHANGES]
        for at, (change, what) in enumerate(
            zip(page, self._of.select(shard, self._positions[shard], page), strict=True)
        ):
            after = Position(change.offset)
            if at + 1 < len(changes) and changes[at + 1].offset == change.offset:
                after = Position(change.offset - 1, (change.place, change.key))
            if what is not None:
                self._found.append(Found(shard, change.offset, change.place, change.key, what, after))
            elif self._found:
                self._found[-1] = self._found[-1]._replace(after=after)
            else:
                self._positions[shard] = after

    def _fetch_initial(self, shard: int) -> None:
        """Read more of the present state of a shard; its position says when that was all."""
        offset, within = self._positions[shard]
        key = within[1] if within is not None else b""
        start = max(self._bounds.start, key + b"\x00" if key else b"")
        try:
            page = map_reading.read_page(
                self._client,
                shard,
                self._of.rows,
                start,
                self._bounds.stop,
                at=offset,
                limit=config.WATCH_PAGE_CHANGES,
            )
        except TooOld as error:
            raise too_old(self._name, offset) from error
        wall_ms = self._client.env.wall_ms()
        last = len(page) < config.WATCH_PAGE_CHANGES
        for at, (found, row) in enumerate(page):
            end = last and at + 1 == len(page)
            after = Position(offset) if end else Position(offset, (_INITIAL, found))
            if self._of.rows.shown(row, wall_ms) is not None:
                self._found.append(Found(shard, offset, _INITIAL, found, self._of.initial(row), after))
        if not self._found:
            self._positions[shard] = Position(offset, None if last else (_INITIAL, page[-1][0]))

    # -- waiting

    def _wait(self, left_s: float | None) -> None:
        """Until a shard may have something new, something is due, or it is time to look around."""
        wait_s = config.WATCH_LOOK_S if left_s is None else min(config.WATCH_LOOK_S, left_s)
        due_s = self._until_due()
        if due_s is not None:
            wait_s = min(wait_s, due_s)
        if due_s != 0:
            seen = {shard: self._positions[shard].offset for shard in self._bounds.shards}
            wait_any(self._client, seen, max(wait_s, 0.0))

    def _until_due(self) -> float | None:
        """Seconds until a lifetime ends in any of the shards. What is due is ended now, and then it is 0. None: none ends."""
        first_s: float | None = None
        for shard in self._bounds.shards:
            due_s = self._due_in(shard)
            if due_s is None or due_s > 0:
                self._ticks.pop(shard, None)
            else:
                due_s = self._tick(shard)
                if due_s <= 0:
                    return 0
            if due_s is not None:
                first_s = due_s if first_s is None else min(first_s, due_s)
        return first_s

    def _due_in(self, shard_id: int) -> float | None:
        """Seconds until the next lifetime in the shard ends by this client's clock."""
        if shard_id in self._dues:
            due_ms = self._dues[shard_id]
        else:
            shard = self._client.shards[shard_id]
            with shard.view() as view:
                due_ms = self._of.first_due(view)
            if not shard.reads_here:
                self._dues[shard_id] = due_ms
        return None if due_ms is None else (due_ms - self._client.env.wall_ms()) / 1000

    def _tick(self, shard: int) -> float:
        """Let end what is due; 0 when that was done, else in how many seconds to try again. The pauses grow, since a tick ends
        nothing where fold time is ahead of this clock, in a read-only space, or when the log does not answer."""
        now_s = self._client.env.boot_s()
        again_s, backoff = self._ticks.get(shard) or (
            now_s,
            Backoff(config.TICK_PAUSE_S, config.TICK_PAUSE_S_MAX),
        )
        if now_s < again_s:
            return again_s - now_s
        pause_s = backoff.pause_s()
        self._ticks[shard] = (now_s + pause_s, backoff)
        self._dues.pop(shard, None)
        try:
            self._client.tick(shard)
        except (SpaceError, Unavailable) as error:
            let_pass(error)
            return pause_s
        return 0.0
