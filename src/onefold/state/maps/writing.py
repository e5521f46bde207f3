"""Writing many keys of a map: all or nothing, or in parts of bounded size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, NamedTuple, TypeVar

from onefold import config
from onefold.env import SystemEnv
from onefold.errors import InvalidArgument, InvalidValue, OnefoldError, TooLarge
from onefold.state.core.client import StateClient
from onefold.state.core.shards_client import ShardsClient
from onefold.state.encoding.items import Version
from onefold.state.encoding.keys import encode_key
from onefold.state.fold.maps.ops import Put
from onefold.state.fold.outcomes import Committed

Pairs = Mapping[Any, Any] | Iterable[tuple[Any, Any]]
Encoded = tuple[bytes, bytes]
C = TypeVar("C")
_CHUNK = 1000


class _Part(NamedTuple):
    """What one record of a put that is not atomic writes."""

    shard: int
    items: tuple[Encoded, ...]
    number: int


def encode_pairs(pairs: Pairs, encode: Callable[[Any], bytes]) -> Iterator[list[Encoded]]:
    """Encoded keys and values, some at a time. Raises what encoding raises, InvalidArgument for what is not a pair."""
    try:
        source = iter(pairs.items() if isinstance(pairs, Mapping) else pairs)
    except TypeError:
        raise _no_pairs(pairs) from None
    while chunk := list(islice(source, _CHUNK)):
        try:
            yield [(encode_key(key), _encoded(encode, key, value)) for key, value in chunk]
        except OnefoldError:
            raise
        except (TypeError, ValueError) as error:
            raise _no_pairs(next((pair for pair in chunk if not _is_pair(pair)), error)) from None


def _encoded(encode: Callable[[Any], bytes], key: object, value: object) -> bytes:
    try:
        return encode(value)
    except (InvalidValue, TooLarge) as error:
        raise type(error)(f"the value of {key!r:.80}: {error}") from None


def put_all(
    client: StateClient,
    name: str,
    chunks: Iterable[list[Encoded]],
    ttl_ms: int | None,
    request_id: str | None,
) -> Version:
    """Put everything or nothing. Raises TooLarge before anything is written."""
    shards = gathered(client, chunks)
    if not shards:
        return Version(())
    if len(shards) == 1:
        ((shard, items),) = shards.items()
        return version_of(
            shard, client.commit(shard, (Put(name, tuple(items), ttl_ms),), request_id=request_id)
        )
    from onefold.state.transactions.over_shards import ShardPart, commit_over_shards

    parts = {
        shard: ShardPart(reads=(), spans=(), writes=(Put(name, tuple(items), ttl_ms),))
        for shard, items in sorted(shards.items())
    }
    done = commit_over_shards(client, parts, request_id)
    return Version(tuple((shard, done[shard].offset, done[shard].index) for shard in sorted(done)))


def gathered(client: ShardsClient, chunks: Iterable[list[Encoded]]) -> dict[int, list[Encoded]]:
    """By shard, what one record each will hold. Raises TooLarge."""
    shards: dict[int, list[Encoded]] = {}
    sizes: dict[int, int] = {}
    for chunk in chunks:
        for shard, items in _by_shard(client, chunk).items():
            sizes[shard] = sizes.get(shard, 0) + _size(items)
            if sizes[shard] > config.PUT_MANY_RECORD_BYTES:
                raise TooLarge(
                    f"more than {config.PUT_MANY_RECORD_BYTES} bytes of keys and values do not fit into one record; nothing was "
                    "written. Use put_many(..., atomic=False), or several calls"
                )
            shards.setdefault(shard, []).extend(items)
    return shards


def put_in_parts(
    client: StateClient,
    name: str,
    chunks: Iterable[list[Encoded]],
    ttl_ms: int | None,
    request_id: str | None,
) -> Version:
    """Put part after part: see ``in_parts``."""

    def put(shard: int, items: Sequence[Encoded], own_id: str | None) -> Committed:
        return client.commit(shard, (Put(name, tuple(items), ttl_ms),), request_id=own_id)

    newest = in_parts(client, chunks, put, request_id)
    return Version(tuple((shard, newest[shard].offset, newest[shard].index) for shard in sorted(newest)))


def in_parts(
    client: ShardsClient,
    chunks: Iterable[list[Encoded]],
    put_items: Callable[[int, Sequence[Encoded], str | None], C],
    request_id: str | None,
) -> dict[int, C]:
    """Put part after part; those of different shards at the same time. With a request id each part has its own, made from it, and
    the last one has it itself: so its outcome is that of the whole. A part that the log does not take whole (servers may be set
    to take less) is put in halves. By shard, what the last part of it has answered."""
    newest: dict[int, C] = {}

    def put(part: _Part, own_id: str | None) -> tuple[int, C]:
        return part.shard, put_some(part, own_id, 0, len(part.items))

    def put_some(part: _Part, own_id: str | None, start: int, stop: int) -> C:
        # Each piece is known by where it ends, so that a repetition knows it again.
        its_id = own_id if stop == len(part.items) else own_id and f"{own_id}/to-{stop}"
        try:
            return put_items(part.shard, part.items[start:stop], its_id)
        except TooLarge:
            if stop - start == 1:
                raise
        middle = (start + stop) // 2
        put_some(part, own_id, start, middle)
        return put_some(part, own_id, middle, stop)

    rounds = _rounds(client, chunks)
    ahead = next(rounds, None)
    while ahead is not None:
        parts, ahead = ahead, next(rounds, None)
        last = parts.pop() if ahead is None and request_id is not None else None
        ids = [request_id and f"{request_id}/{part.number}" for part in parts]
        if len(parts) > 1 and isinstance(client.env, SystemEnv):  # a simulated space meets no threads
            with ThreadPoolExecutor(len(parts)) as pool:
                newest.update(pool.map(put, parts, ids))
        else:
            newest.update(map(put, parts, ids))
        if last is not None:
            newest.update([put(last, request_id)])
    return newest


def version_of(shard: int, done: Committed) -> Version:
    """The version of what a commit in one shard wrote."""
    return Version(((shard, done.offset, done.index),))


def _rounds(client: ShardsClient, chunks: Iterable[list[Encoded]]) -> Iterator[list[_Part]]:
    """Parts in rounds; no two of a round are of one shard, so the later of two puts of a key wins. Never an empty round."""
    open_parts: dict[int, list[Encoded]] = {}
    sizes: dict[int, int] = {}
    ready: list[_Part] = []
    number = 0
    for chunk in chunks:
        for shard, items in _by_shard(client, chunk).items():
            for piece in _pieces(items):
                size = _size(piece)
                part = open_parts.setdefault(shard, [])
                full = len(part) + len(piece) > config.PUT_MANY_PART_KEYS
                if part and (full or sizes[shard] + size > config.PUT_MANY_PART_BYTES):
                    if any(other.shard == shard for other in ready) or len(ready) == config.PUT_MANY_PARALLEL:
                        yield ready
                        ready = []
                    ready.append(_Part(shard, tuple(part), number))
                    number += 1
                    part = open_parts[shard] = []
                    sizes[shard] = 0
                part.extend(piece)
                sizes[shard] = sizes.get(shard, 0) + size
    for shard, part in sorted(open_parts.items()):
        if any(other.shard == shard for other in ready) or len(ready) == config.PUT_MANY_PARALLEL:
            yield ready
            ready = []
        ready.append(_Part(shard, tuple(part), number))
        number += 1
    if ready:
        yield ready


def _pieces(items: list[Encoded]) -> Iterator[list[Encoded]]:
    """The items whole when they are small, else one by one."""
    if _size(items) <= config.PUT_MANY_PART_BYTES // 4:
        yield items
    else:
        yield from ([item] for item in items)


def _by_shard(client: ShardsClient, items: list[Encoded]) -> Mapping[int, list[Encoded]]:
    if client.shard_count == 1:
        return {0: items}
    shards: dict[int, list[Encoded]] = {}
    for item in items:
        shards.setdefault(client.shard_of(item[0]), []).append(item)
    return shards


def _size(items: Sequence[Encoded]) -> int:
    return sum([len(key) + len(value) for key, value in items]) + 8 * len(items)


def _is_pair(pair: object) -> bool:
    try:
        _, _ = pair  # type: ignore[misc]
    except (TypeError, ValueError):
        return False
    return True


def _no_pairs(what: object) -> InvalidArgument:
    return InvalidArgument(f"put_many takes a mapping or pairs of (key, value); got {what!r:.100}")
