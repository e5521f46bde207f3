"""The blobs that shared state names in a shard: runs and plans of live jobs, and large frames of streams.

They are counted by name. One that nothing names any more is put on the garbage list with the fold time. ``sweep`` takes it off
only if that is still so, and one that is named again leaves the list. None of the tables has history.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final

from onefold import config
from onefold.fold.api import Context, Store, StoreView
from onefold.invariants import invariant

BLOBS: Final = "state/l/blobs"
"""Blob -> by how many rows it is named, of those that something names."""
GARBAGE: Final = "state/l/garbage"
"""Blob -> the fold time in ms since which nothing names it, until it is swept."""
GARBAGE_SINCE: Final = "state/l/garbage_since"
"""(fold time in ms, blob) -> nothing: the same by time."""
LIVE_JOBS: Final = "state/l/jobs"
"""Those of ``state.fold.live.rows``, whose module takes long to import: looked at before that is."""
BLOB_CHARS_MAX: Final = 128

_NUMBER = struct.Struct(">Q")


def garbage_key(garbage_ms: int, blob: str) -> bytes:
    """Sorts by time."""
    return _NUMBER.pack(max(0, garbage_ms)) + blob.encode()


def read_garbage_key(key: bytes) -> tuple[int, str]:
    """Since when, which blob."""
    return _NUMBER.unpack_from(key)[0], key[_NUMBER.size :].decode()


def named_by(view: StoreView, blob: str) -> int:
    """How many rows name a blob."""
    found = view.get(BLOBS, blob.encode())
    return 0 if found is None else int(_NUMBER.unpack(found)[0])


def garbage_since(view: StoreView, blob: str) -> int | None:
    """Since when nothing names a blob that is to be swept; None: it is not garbage."""
    found = view.get(GARBAGE, blob.encode())
    return None if found is None else int(_NUMBER.unpack(found)[0])


def known(view: StoreView, blobs: Iterable[str], *, garbage: bool = True) -> set[str]:
    """Those of the blobs that something names; ``garbage``: or that are to be swept."""
    keys = [blob.encode() for blob in blobs]
    found = set(view.get_many(BLOBS, keys))
    if garbage:
        found |= view.get_many(GARBAGE, keys).keys()
    return {key.decode() for key in found}


def garbage(view: StoreView, before_ms: int | None = None, limit: int | None = None) -> list[str]:
    """The blobs that nothing names, oldest first. ``before_ms``: those since an earlier fold time than that."""
    stop = None if before_ms is None else garbage_key(before_ms, "")
    return [read_garbage_key(key)[1] for key, _ in view.scan(GARBAGE_SINCE, b"", stop, limit=limit)]


def name(store: Store, blob: str) -> None:
    """Something names the blob."""
    _delete_garbage(store, blob)
    store.put(BLOBS, blob.encode(), _NUMBER.pack(named_by(store, blob) + 1))


def unname(store: Store, context: Context, blob: str) -> None:
    """One thing less names the blob."""
    named = named_by(store, blob)
    invariant(named > 0, "a blob that is named is counted", blob=blob)
    if named > 1:
        store.put(BLOBS, blob.encode(), _NUMBER.pack(named - 1))
        return
    store.delete(BLOBS, blob.encode())
    store.put(GARBAGE, blob.encode(), _NUMBER.pack(max(0, context.now_ms)))
    store.put(GARBAGE_SINCE, garbage_key(context.now_ms, blob), b"")


def sweep(store: Store, blobs: tuple[str, ...]) -> list[str]:
    """Forget those of the blobs that are garbage; which."""
    return [blob for blob in blobs[: config.SWEPT_BLOBS_MAX] if _delete_garbage(store, blob)]


def _delete_garbage(store: Store, blob: str) -> bool:
    """It is named again, or swept; whether it was garbage."""
    since_ms = garbage_since(store, blob)
    if since_ms is not None:
        store.delete(GARBAGE, blob.encode())
        store.delete(GARBAGE_SINCE, garbage_key(since_ms, blob))
    return since_ms is not None
