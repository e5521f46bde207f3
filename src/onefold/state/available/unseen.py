"""What nobody took of an evicted region, once it has come again: it is listed, and done again where that undoes nothing.

It is listed in the conflict feed and in a file. The file is the progress too: after a kill it continues behind the last effect
there. That one is done again under the same request id, so once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from onefold.available import effects, exchange
from onefold.available.kinds.cells import Register
from onefold.available.kinds.places import REGISTER, split_place
from onefold.available.ops import Committed, Rejected, available_op, decode_outcome
from onefold.available.regions import read_self
from onefold.available.rows import Requested, load_row, requested_decoder, shown_tables
from onefold.available.stamps import ms_of
from onefold.backoff import Backoff
from onefold.errors import InvalidValue, SpaceError, Unavailable
from onefold.files import sync
from onefold.state.encoding.items import utc
from onefold.state.encoding.json_values import key_to_json, to_json
from onefold.state.encoding.keys import decode_key
from onefold.state.encoding.values import ValueCodec

if TYPE_CHECKING:
    from onefold.available.effects import AnyWrite, Effect
    from onefold.fold.api import StoreView
    from onefold.shard.api import Shard
    from onefold.state.available.client import RegionClient

TRIES: Final = 20
KINDS: Final = {"r": "map", "f": "map", "k": "map", "s": "sets", "n": "counters", "b": "counters"}
_PAUSE_S: Final = (0.01, 0.5)


class Brought(NamedTuple):
    """What became of it."""

    writes: int
    """How many writes nobody had taken."""
    again: int
    """How many of them were done again."""
    missing: int
    """How many effects are not kept any more, so that nobody knows what they were."""


class _Found(NamedTuple):
    shard: int
    effects: list[Effect]
    certain: bool
    """Whether nobody has any of them."""
    missing: int


def bring_back(client: RegionClient, number: int, old: Sequence[Shard], path: Path) -> Brought:
    """List what nobody took of the region's log under its old ``number``, and do again what can be. ``path``: the file.
    ``client``: of the region under its new number, which knows what the others know.

    Raises SpaceError (the file), Unavailable (definite; it is not agreed yet what counts), and as ``Shard.submit``; then it is to
    be called again.
    """
    last = _continue(path)
    missing = 0
    try:
        with path.open("a", encoding="utf-8") as file:
            for shard in range(client.shard_count):
                found = _find(client, shard, number, old[shard])
                missing += found.missing
                for effect in found.effects:
                    if (shard, effect.seq) > last:
                        done = _do_again(client, shard, effect) if found.certain else []
                        lines = _lines(client.region.name, shard, effect, done, certain=found.certain)
                        file.write("".join(lines))
                        file.flush()
        sync(path)
        written = path.read_text("utf-8").splitlines()
    except OSError as error:
        raise SpaceError(f"{path} cannot be written: {error.strerror}. Do it again") from error
    return Brought(len(written), sum(json.loads(line)["again"] for line in written), missing)


def _continue(path: Path) -> tuple[int, int]:
    """(shard, seq) behind which it continues. What was written of the last effect is left out: it may be a part."""
    try:
        whole = path.read_text("utf-8", errors="replace").splitlines(keepends=True) if path.exists() else []
        at = [_place_of(line) for line in whole]
        last = max((one for one in at if one is not None), default=None)
        kept = [line for line, one in zip(whole, at, strict=True) if one is not None and one != last]
        path.write_text("".join(kept), "utf-8")
    except OSError as error:
        raise SpaceError(f"{path} cannot be written: {error.strerror}. Do it again") from error
    return max((one for one in at if one is not None and one != last), default=(-1, 0))


def _place_of(line: str) -> tuple[int, int] | None:
    if not line.endswith("\n"):
        return None
    found = json.loads(line)
    return found["shard"], found["seq"]


def _find(client: RegionClient, shard: int, number: int, old: Shard) -> _Found:
    """What nobody took; it is in the conflict feed then."""
    log = client.shards[shard]
    with old.view() as there, log.view() as here:
        me, was = read_self(here), read_self(there)
        region = me.regions.get(number)
        if region is None or not region.final:
            raise Unavailable(
                f"the other regions have not agreed yet how far effects of {client.region.name} count. Do it again when all of "
                "them can be reached (`onefold region list`)"
            )
        final, own = region.limit, was.origin(number).seq
        top = min(final, own)
        mine = exchange.chain_at(there, was, number, top)
        same = top == 0 or (mine is not None and mine == exchange.chain_at(here, me, number, top))
        after = top if same else 0  # its log had lost its end: nobody can say since when it has other effects
        found = exchange.unseen(there, after)
        listed = list(exchange.unseen_ops(there, final)) if same else []
        missing = own - after - len(found) if same else 0
    for op in listed:
        outcome = decode_outcome(log.submit([available_op(op)], client.deadline())[0])
        if isinstance(outcome, Rejected):
            raise Unavailable(
                f"what nobody took of region {client.region.name} could not be listed ({outcome.reason}). Do it again"
            )
    return _Found(shard, found, same, missing)


def _do_again(client: RegionClient, shard: int, effect: Effect) -> list[AnyWrite]:
    """Which of its writes are done again, now or before."""
    log = client.shards[shard]
    backoff = Backoff(*_PAUSE_S, client.env)
    for _ in range(TRIES):
        with log.view() as view:
            found = exchange.again(view, effect, max(view.head().now_ms, client.env.wall_ms()))
            before = _requested(view, found.request_id)
            if before is not None:
                return [write for write in effect.writes if _was_done(view, write, before)]
        if found.op is None:
            return []
        outcome = decode_outcome(log.submit([available_op(found.op, found.request_id)], client.deadline())[0])
        if isinstance(outcome, Committed):
            return [write for write in effect.writes if write not in found.left]
        if not isinstance(outcome, Rejected) or outcome.reason not in ("conflict", "not_admitted"):
            return []  # it is another kind of collection now, or too large
        log.pause(backoff.pause_s())
    raise Unavailable(
        f"what nobody took of region {client.region.name} cannot be done again now: others write all the time. Do it again"
    )


def _requested(view: StoreView, request_id: str) -> Requested | None:
    data = view.get(shown_tables(view).requests, request_id.encode())
    return None if data is None else requested_decoder.decode(data)


def _was_done(view: StoreView, write: AnyWrite, before: Requested) -> bool:
    match write:
        case effects.Count():
            return True
        case effects.Mark(present=present):
            return present
        case effects.SetCell(place, key) if place[0] == REGISTER:
            base = cast(Register, load_row(view, place, key)).base
            return base is not None and (base.region, base.seq) == (before.origin, before.seq)
    return False


def _lines(region: str, shard: int, effect: Effect, done: list[AnyWrite], *, certain: bool) -> Iterator[str]:
    for write in effect.writes:
        if isinstance(write, effects.CONTROL):
            continue
        kind, name, _ = split_place(write.place)
        line = {
            "region": region,
            "shard": shard,
            "seq": effect.seq,
            "time": _time(effect),
            "collection": name,
            "kind": KINDS[kind],
            "key": key_to_json(decode_key(write.key)),
            "write": _shown(write),
            "request_id": effect.request_id,
            "again": any(write is one for one in done),
            "certain": certain,
        }
        yield json.dumps(line, ensure_ascii=False, default=str) + "\n"


def _time(effect: Effect) -> str | None:
    found = utc(ms_of(effect.hlc))
    return None if found is None else found.isoformat()


def _shown(write: AnyWrite) -> dict[str, Any]:
    match write:
        case effects.SetCell(value=value):
            return {"delete": True} if value is None else {"put": _value(value)}
        case effects.SetFields(base=base, fields=fields) if base < 2:
            found = {field: _value(value) for field, value in fields if value is not None}
            gone = [field for field, value in fields if value is None]
            return {"put": found} if base else {"set": found, "unset": gone}
        case effects.Mark(element=element, present=present):
            return {"add" if present else "discard": key_to_json(decode_key(element))}
        case effects.Count(by=by) | effects.Spend(by=by):
            return {"add": by}
        case effects.Send(to=to, by=by):
            return {"move": by, "to": to}
        case effects.Want(need=need):
            return {"ask": need}
    return {"delete": True}


def _value(data: bytes) -> Any:
    try:
        return to_json(ValueCodec[Any](None).decode(data))
    except InvalidValue as error:
        return {"unreadable": str(error)}
