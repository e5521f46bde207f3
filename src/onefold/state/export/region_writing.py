"""Importing collections for every region: what a file holds of them becomes new writes of one region."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from onefold import config
from onefold.available import ops
from onefold.available.kinds import places
from onefold.available.kinds.places import split_key, split_place
from onefold.available.reading import signature, visible
from onefold.available.rows import load_row
from onefold.errors import Conflict, InvalidArgument, InvalidValue
from onefold.machine.undisturbed import let_pass
from onefold.state.available.maps.merges import split_fields
from onefold.state.available.places import check_consistent, check_place
from onefold.state.available.refusals import described
from onefold.state.available.settling import settle_due
from onefold.state.core.client import shown_key
from onefold.state.export.region_lines import Part, RegionLine

if TYPE_CHECKING:
    from onefold.state.available.client import RegionClient

OnConflict = Literal["error", "replace", "skip"]
_TRIES = 100
_TTL_MIN = 1


class Target(NamedTuple):
    """The region that is imported into."""

    open: Callable[[], RegionClient]
    """Opens it when the first line needs it: raises as that does."""
    is_there: bool
    """Whether the space has one already, so that its names are taken."""


class RegionDone(NamedTuple):
    """What was imported."""

    items: int = 0
    counters: int = 0
    elements: int = 0
    skipped: int = 0
    ended: int = 0


class RegionChecker:
    """The first reading: what the region says to the file."""

    def __init__(self, target: Target | None, *, strict: bool) -> None:
        self._target = target
        self._strict = strict
        self._places: dict[str, str] = {}
        self._maps: set[str] = set()
        self._waiting: dict[int, list[tuple[int, RegionLine]]] = {}

    def add_map(self, number: int, name: str) -> None:
        """A consistent map has an item in the file. Raises InvalidArgument."""
        if name in self._maps:
            return
        self._maps.add(name)
        if name in self._places:
            raise _two_things(number, name)
        if self._target is not None and self._target.is_there:
            try:
                check_consistent(self._target.open(), name)
            except InvalidArgument as error:
                raise InvalidArgument(f"line {number}: {error}. Nothing was imported") from None

    def add(self, number: int, line: RegionLine) -> None:
        """Raises InvalidValue, InvalidArgument, Conflict; and what opening the region raises."""
        client = opened(self._target)
        known = self._places.get(line.name)
        if known is None:
            if line.name in self._maps:
                raise _two_things(number, line.name)
            try:
                check_place(client, line.place)
            except InvalidArgument as error:
                raise InvalidArgument(f"line {number}: {error}. Nothing was imported") from None
            self._places[line.name] = line.place
        elif known != line.place:
            raise InvalidValue(
                f"line {number}: {line.name!r} is {described(line.place)} here and {described(known)} above, and a name is one "
                "thing. Nothing was imported; give one of them another name"
            )
        if not self._strict:
            return
        if len(line.parts) > 1:
            raise Conflict(
                f"line {number}: {shown_key(line.key)} of {line.name!r} has {len(line.parts)} values side by side, and one "
                "region writes one. Nothing was imported; --on-conflict replace or skip (on_conflict=) takes the latest"
            )
        shard = client.shard_of(line.key)
        waiting = self._waiting.setdefault(shard, [])
        waiting.append((number, line))
        if len(waiting) >= config.IMPORT_BATCH_LINES:
            self._check_absent(shard)

    def finish(self) -> None:
        """Raises Conflict."""
        for shard in list(self._waiting):
            self._check_absent(shard)

    def _check_absent(self, shard: int) -> None:
        client = opened(self._target)
        settle_due(client, shard)
        with client.view(shard) as view:
            for number, line in self._waiting.pop(shard):
                if load_row(view, line.place, line.row).is_live():
                    raise Conflict(
                        f"line {number}: {shown_key(line.key)} of {line.name!r} is there already. Nothing was imported; "
                        "say --on-conflict replace or skip (on_conflict=)"
                    )


def opened(target: Target | None) -> RegionClient:
    """The region. Raises InvalidArgument where there is none to import into; and as its opening."""
    if target is None:
        raise InvalidArgument(
            "the file has collections for every region, and no region was given to import them into"
        )
    return target.open()


def _two_things(number: int, name: str) -> InvalidValue:
    return InvalidValue(
        f"line {number}: {name!r} is a consistent map and an available collection in this file, and a name is one thing. "
        "Nothing was imported; give one of them another name"
    )


class RegionWriter:
    """The second reading. What goes into one shard is one effect, up to ``config.IMPORT_BATCH_LINES`` lines."""

    def __init__(self, target: Target | None, on_conflict: OnConflict) -> None:
        self._target = target
        self._on_conflict = on_conflict
        self._batches: dict[int, dict[tuple[str, bytes], tuple[int, RegionLine]]] = {}
        """By shard, what stands in which line; the later one of a row counts."""
        self._bytes: dict[int, int] = {}
        self.done = RegionDone()

    def add(self, number: int, line: RegionLine) -> None:
        """Raises what writing does."""
        shard = opened(self._target).shard_of(line.key)
        size = len(line.row) + sum(len(part.value) for part in line.parts)
        batch = self._batches.get(shard, {})
        if len(batch) >= config.IMPORT_BATCH_LINES or (
            batch and self._bytes[shard] + size > config.IMPORT_BATCH_BYTES
        ):
            self._flush(shard)
        self._batches.setdefault(shard, {})[line.place, line.row] = number, line
        self._bytes[shard] = self._bytes.get(shard, 0) + size

    def finish(self) -> RegionDone:
        """Write what is left."""
        for shard in list(self._batches):
            self._flush(shard)
        return self.done

    def _flush(self, shard: int) -> None:
        client = opened(self._target)
        batch = list(self._batches.pop(shard).values())
        self._bytes.pop(shard)
        for attempt in range(_TRIES):
            wall_ms = client.env.wall_ms()
            live = [line for _, line in batch if _latest(line, wall_ms) or not line.parts]
            wanted, requests, reads = self._asked(client, shard, live, wall_ms)
            try:
                if requests:
                    client.do(shard, requests, reads)
            except Conflict as error:
                let_pass(error)
                if self._on_conflict != "error" and attempt < _TRIES - 1:
                    continue  # somebody changed one of them meanwhile
                raise Conflict(
                    f"{error} What stands before line {batch[0][0]} was imported; say --on-conflict replace"
                ) from error
            letters = [line.place[0] for line in wanted]
            counters = letters.count(places.COUNTER) + letters.count(places.BOUNDED)
            elements = letters.count(places.SET)
            done = self.done
            self.done = RegionDone(
                done.items + len(wanted) - counters - elements,
                done.counters + counters,
                done.elements + elements,
                done.skipped + len(live) - len(wanted),
                done.ended + len(batch) - len(live),
            )
            return

    def _asked(
        self, client: RegionClient, shard: int, live: Sequence[RegionLine], wall_ms: int
    ) -> tuple[list[RegionLine], tuple[ops.AnyRequest, ...], tuple[ops.Read, ...]]:
        """What is to be written of it, and what must not have changed until then."""
        settle_due(client, shard)
        wanted: list[RegionLine] = []
        requests: list[ops.AnyRequest] = []
        reads: list[ops.Read] = []
        with client.view(shard) as view:
            for line in live:
                row = load_row(view, line.place, line.row)
                if self._on_conflict == "skip" and row.is_live():
                    continue
                wanted.append(line)
                here = visible(row, line.place) if row.is_live() else 0
                requests.append(_request(line, here if isinstance(here, int) else 0, wall_ms))
                if self._on_conflict != "replace":
                    reads.append(ops.Read(line.place, line.row, b""))
                elif not line.parts:
                    reads.append(ops.Read(line.place, line.row, signature(row)))
        return wanted, tuple(requests), tuple(reads)


def _latest(line: RegionLine, wall_ms: int) -> Part | None:
    """The latest of its values that has not ended."""
    lasting = [part for part in line.parts if part.expires_ms is None or part.expires_ms > wall_ms]
    return lasting[-1] if lasting else None


def _request(line: RegionLine, here: int, wall_ms: int) -> ops.AnyRequest:
    """``here``: what a counter is in this region; it becomes what the file says."""
    letter, name, floor = split_place(line.place)
    if letter == places.COUNTER:
        return ops.Add(name, line.key, line.total - here)
    if letter == places.BOUNDED:
        return ops.Change(name, floor or 0, line.key, line.total - here)
    part = _latest(line, wall_ms)
    assert part is not None
    ttl_ms = None if part.expires_ms is None else max(_TTL_MIN, part.expires_ms - wall_ms)
    if letter == places.SET:
        return ops.Include(name, line.key, (split_key(line.row)[1],), ttl_ms)
    if letter == places.FIELDS:
        return ops.Replace(name, line.key, split_fields(part.value), ttl_ms)
    return ops.Put("k" if letter == places.KEEP_BOTH else "r", name, ((line.key, part.value),), ttl_ms)
