"""Snapshots for programs with a replica of their own: a log that was trimmed cannot be folded from its beginning.

Any node is asked what it can offer; then the file is read from that one, piece by piece, and compared with its name. Messages are
msgpack of the structs below; fields are only ever added, at the end.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from onefold import config
from onefold.errors import OnefoldError
from onefold.log.jetstream.names import node_subject

if TYPE_CHECKING:
    from onefold.log.api import Log
    from onefold.log.jetstream.client.link import Link
    from onefold.log.jetstream.spaces import SpaceInfo

ANY: Final = "any"
"""Instead of a node: whichever takes the question."""
PIECE_BYTES: Final = 512 * 1024
_FILE: Final = "fetched-snapshot"
_LEFT_S: Final = 3600.0


class SnapshotOf(msgspec.Struct, frozen=True, array_like=True, tag="snapshot_of"):
    """What is the newest snapshot of a shard? Answer: ``Offered``."""

    shard: int


class PieceOf(msgspec.Struct, frozen=True, array_like=True, tag="piece_of"):
    """Bytes of an offered file from ``start`` on. Answer: ``Piece``."""

    blob: str
    start: int


class Offered(msgspec.Struct, frozen=True, array_like=True, tag="offered"):
    """A snapshot that can be read now. ``at``: whom to ask for its pieces; empty: there is none."""

    at: str = ""
    blob: str = ""
    offset: int = 0
    bytes: int = 0


class Piece(msgspec.Struct, frozen=True, array_like=True, tag="piece"):
    """A piece; empty when that node has the file no more."""

    data: bytes


Question = SnapshotOf | PieceOf
Reply = Offered | Piece
encode = msgspec.msgpack.Encoder().encode
decode_question = msgspec.msgpack.Decoder(Question).decode
_reply: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)


BaseFetch = Callable[["Link", "SpaceInfo", int, Path], bool]
"""See ``compute.blobs.places.fetch_base``."""


def finder(
    link: Link, info: SpaceInfo, shard: int, log: Log, directory: Path, base: BaseFetch | None = None
) -> Callable[[], Path | None]:
    """What a ``LocalReplica`` asks for a file to begin from, where the log is trimmed or long: one from a node, or what the log
    continues from (``base`` fetches it); else None. The file is ``fetched(directory)``."""

    def from_node(path: Path) -> Path | None:
        return fetch(link, info, shard, path)

    def from_base(path: Path) -> Path | None:
        return path if base is not None and base(link, info, shard, path) else None

    def find() -> Path | None:
        begins = info.base_of(shard)
        before = 0 if begins is None else begins.offset
        near = log.last - before < config.SNAPSHOT_EVERY_OFFSETS
        if log.first == 1 and near:
            return None
        leads = begins is not None and log.first <= before + 1
        for look in (from_base, from_node) if leads and near else (from_node, from_base):
            # Whatever is wrong with one, then the other or the log itself has to do.
            with contextlib.suppress(OnefoldError, msgspec.MsgspecError, OSError):
                found = look(fetched(directory)) if leads or look is from_node else None
                if found is not None:
                    return found
        return None

    return find


def fetched(directory: Path) -> Path:
    """Where this thread keeps a fetched file until it has been loaded. Those that others left long ago are removed."""
    for left in directory.glob(f"{_FILE}-*"):
        with contextlib.suppress(OSError):
            if left.stat().st_mtime < time.time() - _LEFT_S:
                left.unlink()
    return directory / f"{_FILE}-{os.getpid()}-{threading.get_ident()}"


def fetch(link: Link, info: SpaceInfo, shard: int, path: Path) -> Path | None:
    """Bring a shard's newest snapshot to ``path``; None when no node has one, or its content is wrong.

    Raises Unavailable and Timeout when no node answers, and OSError.
    """

    def ask(at: str, question: Question, timeout: float) -> Reply:
        subject = node_subject(info.space, info.incarnation, at)
        return _reply.decode(link.request(subject, encode(question), timeout=timeout).data)

    offered = ask(ANY, SnapshotOf(shard), config.SNAPSHOT_OFFER_S)
    if not isinstance(offered, Offered) or not offered.at:
        return None
    digest = hashlib.blake2b(digest_size=32)
    size = 0
    with path.open("wb") as file:
        while size < offered.bytes:
            piece = ask(offered.at, PieceOf(offered.blob, size), config.ENGINE_REQUEST_TIMEOUT_S)
            if not isinstance(piece, Piece) or not piece.data:
                break
            file.write(piece.data)
            digest.update(piece.data)
            size += len(piece.data)
    if digest.hexdigest() == offered.blob:
        return path
    path.unlink()
    return None
