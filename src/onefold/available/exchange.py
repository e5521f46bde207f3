"""What regions ask of each other, and what they answer: the same for every transport.

A region *asks* with all that it knows. The answer has what it lacks, of all origins, in causal order, up to a size. Both are
pure. Who asks whom, over which link, and how often, is decided elsewhere. An answer is appended as one ``Import``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal, cast

import msgspec

from onefold.available import effects, regions
from onefold.available.kinds import places
from onefold.available.kinds.cells import Register
from onefold.available.ops import (
    MORE,
    SYNC_ROWS_MAX,
    Add,
    Answer,
    AnyRequest,
    AvailableOp,
    Do,
    Import,
    Include,
    Put,
    Read,
    SyncBegin,
    SyncEnd,
    SyncRows,
    Unseen,
)
from onefold.available.reading import signature
from onefold.available.regions import Dropped
from onefold.available.rows import OUT, all_places, load_row, out_key, shown_tables
from onefold.available.stamps import Hlc, Number, Vector
from onefold.fold.api import StoreView

EXCHANGE_BYTES_MAX: Final = 1_000_000
"""About how much one answer of a region to another holds."""

UNSEEN_EFFECTS_MAX: Final = 1000
"""One operation lists the writes of at most so many effects that nobody took."""

_encode = msgspec.msgpack.Encoder().encode


class Ask(msgspec.Struct, frozen=True, array_like=True):
    """What a region knows."""

    number: int
    have: Vector
    chains: dict[Number, bytes]
    """The chain digest of each origin up to there."""
    content: bytes
    """Its content hash; empty in a question that is asked before earlier answers are in the log."""


class Reply(msgspec.Struct, frozen=True, array_like=True):
    """What another region has for it."""

    number: int
    """The answering region's."""
    state: Literal["effects", "same", "sync", "lost", "diverged", "differs"]
    """``effects``: some follow. ``same``: nothing is missing. ``sync``: some are not kept any more, so it needs a full sync.
    ``lost``: it knows effects of the answering region which that one does not have. ``diverged``: other effects under the same
    numbers. ``differs``: the same effects and other rows. The last three are never repaired in silence."""
    origin: int = 0
    """Of ``sync``, ``lost`` and ``diverged``: whose effects."""
    have: Vector = msgspec.field(default_factory=dict)
    """What the answering region knows."""
    effects: tuple[bytes, ...] = ()
    chains: dict[Number, bytes] = msgspec.field(default_factory=dict)
    held: Hlc = 0
    """The clock of an effect of the asking region that is too far ahead there; 0: none is."""
    now_ms: int = 0
    """The answering region's time."""

    def as_import(self) -> Import:
        """What is appended to the log of the region that asked."""
        return Import(self.number, self.effects, self.chains)


def ask(view: StoreView) -> Ask:
    """What this region asks."""
    me = regions.read_self(view)
    chains = {number: origin.chain for number, origin in me.origins.items() if origin.seq}
    return Ask(me.number, me.have(), chains, me.content)


def answer(view: StoreView, asked: Ask, bytes_max: int = EXCHANGE_BYTES_MAX, now_ms: int = 0) -> Reply:
    """What this region answers. At least one effect, if there is any, however large it is. ``now_ms``: its time."""
    me = regions.read_self(view)
    region = me.regions.get(asked.number)
    reply = _answer(view, me, asked, bytes_max)
    return msgspec.structs.replace(reply, held=0 if region is None else region.held, now_ms=now_ms)


def _answer(view: StoreView, me: regions.Known, asked: Ask, bytes_max: int) -> Reply:
    have = me.have()
    if asked.have.get(me.number, 0) > have.get(me.number, 0):
        return Reply(me.number, "lost", me.number, have)
    for number, seq in asked.have.items():
        chain = chain_at(view, me, number, seq)
        if chain is not None and number in asked.chains and chain != asked.chains[number]:
            return Reply(me.number, "diverged", number, have)
    missing = [number for number, seq in have.items() if seq > asked.have.get(number, 0)]
    for number in missing:
        if asked.have.get(number, 0) < me.dropped.get(number, Dropped()).seq:
            return Reply(me.number, "sync", number, have)
    if not missing:
        differs = asked.have == have and asked.content not in (b"", me.content)
        return Reply(me.number, "differs" if differs else "same", have=have)
    found = _in_order(view, asked.have, {number: have[number] for number in missing}, bytes_max)
    return Reply(
        me.number,
        "effects",
        have=have,
        effects=tuple(found),
        chains={number: chain for number, chain in asked.chains.items() if number in missing},
    )


def chain_at(view: StoreView, me: regions.Known, number: int, seq: int) -> bytes | None:
    """The chain digest of an origin's effects up to one of them; None when it is not known any more, or not yet."""
    origin = me.origins.get(number)
    if origin is not None and origin.seq == seq:
        return origin.chain
    dropped = me.dropped.get(number)
    if dropped is not None and dropped.seq == seq:
        return dropped.chain
    data = view.get(OUT, out_key(number, seq))
    return None if data is None else data[: effects.CHAIN_BYTES]


def _in_order(view: StoreView, have: dict[int, int], until: dict[int, int], bytes_max: int) -> list[bytes]:
    """Effects in the order of their clocks, which is a causal one: an effect is stamped above all that its region knew."""
    found: list[bytes] = []
    size = 0
    heads: dict[int, tuple[int, int, bytes]] = {}
    reached = {number: have.get(number, 0) for number in until}
    while True:
        for number, last in until.items():
            if number not in heads and reached[number] < last:
                data = view.get(OUT, out_key(number, reached[number] + 1))
                effect = None if data is None else effects.decode_effect(data[effects.CHAIN_BYTES :])
                if data is not None and effect is not None:
                    heads[number] = effect.hlc, number, data[effects.CHAIN_BYTES :]
        if not heads:
            return found
        _, number, data = min(heads.values())
        size += len(data)
        if found and size > bytes_max:
            return found
        found.append(data)
        reached[number] += 1
        del heads[number]


def sync_ops(view: StoreView, id: str) -> Iterator[AvailableOp]:
    """What a region that has nothing needs, in the order in which it is appended there: each operation until it does not
    ``continues``. ``id``: a new one each time.

    The view shows one offset for as long as this is iterated over.
    """
    me = regions.read_self(view)
    yield SyncBegin(id, me.number, me.hlc, _encode(me.origins))
    count, size = 0, 0
    page: list[tuple[str, bytes, bytes]] = []
    for row in _all_rows(view):
        page.append(row)
        count += 1
        size += len(row[1]) + len(row[2])
        if size > EXCHANGE_BYTES_MAX or len(page) == SYNC_ROWS_MAX:
            yield SyncRows(id, tuple(page))
            page, size = [], 0
    if page:
        yield SyncRows(id, tuple(page))
    yield SyncEnd(id, count)


def continues(op: AvailableOp, outcome: object) -> bool:
    """Whether an operation of a full sync is to be appended again before the next one: it has done a part of its work."""
    return isinstance(op, SyncEnd) and isinstance(outcome, Answer) and outcome.value == MORE


def _all_rows(view: StoreView) -> Iterator[tuple[str, bytes, bytes]]:
    tables = shown_tables(view)
    for key, data in view.scan(tables.requests):
        yield "", key, data
    for place in all_places(view):
        for key, data in view.scan(tables.rows + place):
            yield place, key, data


def unseen(view: StoreView, final: int) -> list[effects.Effect]:
    """In an evicted region's log: its own effects beyond the last one that counts, which no other region takes.

    Fewer than ``Retire`` has answered if some are not kept any more (``out``)."""
    me = regions.read_self(view)
    found = view.scan(OUT, out_key(me.number, final + 1), out_key(me.number, me.origin(me.number).seq + 1))
    decoded = (effects.decode_effect(data[effects.CHAIN_BYTES :]) for _, data in found)
    return [effect for effect in decoded if effect is not None]


def unseen_ops(view: StoreView, final: int) -> Iterator[Unseen]:
    """The same, as it is appended to the log of the region under its new number: there each write is listed as a conflict."""
    page: list[bytes] = []
    size = 0
    number = regions.read_self(view).number
    for effect in unseen(view, final):
        page.append(effects.encode_effect(effect))
        size += len(page[-1])
        if size > EXCHANGE_BYTES_MAX or len(page) == UNSEEN_EFFECTS_MAX:
            yield Unseen(number, tuple(page))
            page, size = [], 0
    if page:
        yield Unseen(number, tuple(page))


class Again(msgspec.Struct, frozen=True, array_like=True):
    """What of an effect that nobody took can be done again, by its region under a new number."""

    effect: effects.Effect
    op: Do | None
    """What is appended, under ``request_id``; None: nothing."""
    left: tuple[effects.AnyWrite, ...]
    """Writes that a person has to decide on."""
    request_id: str = ""
    """Under which it is appended, so that it is done once: that of the effect, or one that follows from its number."""


def again(view: StoreView, effect: effects.Effect, now_ms: int) -> Again:
    """Additions to counters and sets are done again, and puts into registers where nothing was written that they did not know.

    Everything else could undo what happened since: deletes, fields, siblings, and what was taken from bounded counters.
    """
    past = effect.past()
    requests: list[AnyRequest] = []
    reads: list[Read] = []
    left: list[effects.AnyWrite] = []
    for write in effect.writes:
        match write:
            case effects.Count(place, key, _, by):
                requests.append(Add(places.split_place(place)[1], key, by))
            case effects.Mark(place, key, element, True, ends_ms) if _lasts(ends_ms, now_ms):
                requests.append(Include(places.split_place(place)[1], key, (element,), _ttl(ends_ms, now_ms)))
            case effects.SetCell(place, key, bytes(value), ends_ms) if place[0] == places.REGISTER and _lasts(
                ends_ms, now_ms
            ):
                row = cast(Register, load_row(view, place, key))
                if row.base is not None and not row.base.is_in(past):
                    left.append(write)
                    continue
                name = places.split_place(place)[1]
                requests.append(Put(places.REGISTER, name, ((key, value),), _ttl(ends_ms, now_ms)))
                reads.append(Read(place, key, signature(row)))
            case effects.Admitted() | effects.Votes():
                pass
            case _:
                left.append(write)
    op = Do(tuple(requests), tuple(reads)) if requests else None
    name = effect.request_id or f"again:{effect.origin}:{effect.seq}"
    return Again(effect, op, tuple(left), name)


def _lasts(ends_ms: int | None, now_ms: int) -> bool:
    return ends_ms is None or ends_ms > now_ms


def _ttl(ends_ms: int | None, now_ms: int) -> int | None:
    return None if ends_ms is None else ends_ms - now_ms
