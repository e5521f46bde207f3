"""Offers snapshots to programs that cannot reach the blob store: see ``shard.remote.snapshot_fetch``."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from onefold.fold.nodes import state
from onefold.log.jetstream.names import NODES_QUEUE, node_subject
from onefold.shard.remote.request_queue import WorkerPool
from onefold.shard.remote.snapshot_fetch import (
    ANY,
    PIECE_BYTES,
    Offered,
    Piece,
    PieceOf,
    Reply,
    SnapshotOf,
    decode_question,
    encode,
)

if TYPE_CHECKING:
    from onefold.log.jetstream.client.link import Link
    from onefold.log.jetstream.client.message import Msg
    from onefold.log.jetstream.spaces import SpaceInfo
    from onefold.node.snapshots.store import Vault
    from onefold.node.telemetry.logging import JsonLog
    from onefold.shard.api import Shard


class _Kept(NamedTuple):
    blob: str
    offset: int
    path: Path
    bytes: int


class SnapshotServer:
    """Answers until it is closed. Keeps one file of each shard that was asked for, the newest."""

    def __init__(
        self,
        link: Link,
        info: SpaceInfo,
        instance: str,
        vault: Vault,
        first: Callable[[], Shard | None],
        log: JsonLog,
        base: Callable[[int], Path | None] = lambda _: None,
    ) -> None:
        """``instance``: of this process, unlike any other. ``first``: the replica of shard 0, in which snapshots are named.
        ``base``: fetches what a restored shard's log continues from; see ``ClusterGround.fetch_base``."""
        self._link = link
        self._instance = instance
        self._vault = vault
        self._first = first
        self._log = log
        self._info = info
        self._base = base
        self._lock = threading.Lock()
        self._kept: dict[int, _Kept] = {}
        self._pool = WorkerPool(threads=2, queued_max=100, name="snapshot-server")
        self._subscriptions = [
            link.subscribe(node_subject(info.space, info.incarnation, ANY), self._take, queue=NODES_QUEUE),
            link.subscribe(node_subject(info.space, info.incarnation, instance), self._take),
        ]

    def close(self) -> None:
        """Answer no more, and remove the files."""
        for subscription in self._subscriptions:
            subscription.close()
        self._pool.close()
        for kept in self._kept.values():
            _remove(kept.path)

    def _take(self, msg: Msg) -> None:
        self._pool.give(lambda: self._answer(msg))  # where there is too much to do, who asked asks another

    def _answer(self, msg: Msg) -> None:
        try:
            match decode_question(msg.data):
                case SnapshotOf(shard):
                    reply: Reply = self._offer(shard)
                case PieceOf(blob, start):
                    reply = Piece(self._piece(blob, start))
        except (msgspec.MsgspecError, ValueError):
            reply = Offered()
        except Exception as error:  # whatever it was: the thread answers others too
            self._log.begins("snapshot_offer_failed", f"{type(error).__name__}: {error}")
            reply = Offered()
        else:
            self._log.ends("snapshot_offer_failed")
        with contextlib.suppress(Exception):
            self._link.publish(msg.reply, encode(reply))

    def _offer(self, shard: int) -> Offered:
        """The newest snapshot of a shard, brought here from the blob store."""
        first = self._first()
        if first is None or not 0 <= shard < self._info.shards:
            return Offered()
        with first.view() as view:
            found = state.snapshots(view, shard)
        newest = found[-1] if found else self._info.base_of(shard)
        if newest is None:
            return Offered()
        with self._lock:
            kept = self._kept.get(shard)
            if kept is None or kept.blob != newest.blob:
                path = self._vault.fetch(newest.blob) if found else self._base(shard)
                if path is None:
                    return Offered()
                if kept is not None:
                    _remove(kept.path)
                kept = _Kept(newest.blob, newest.offset, path, path.stat().st_size)
                self._kept[shard] = kept
        return Offered(self._instance, kept.blob, kept.offset, kept.bytes)

    def _piece(self, blob: str, start: int) -> bytes:
        kept = next((one for one in list(self._kept.values()) if one.blob == blob), None)
        if kept is None or start < 0:
            return b""
        with kept.path.open("rb") as file:
            file.seek(start)
            return file.read(PIECE_BYTES)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
