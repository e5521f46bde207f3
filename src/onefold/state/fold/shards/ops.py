"""Steps of a transaction over several shards, after ``Prepare`` (``ops``): see ``state.fold.shards.fold``."""

from __future__ import annotations

import msgspec


class Decide(msgspec.Struct, frozen=True, array_like=True, tag="decide"):
    """In the home shard: commit or abort. The first one wins. Answer: ``Decided``."""

    transaction: str
    commit: bool
    keep: bool = False
    """Whether an abort is kept under the request id; a commit always is."""
    reason: str = ""
    """Of an abort: why; as in ``Rejected``."""
    detail: str = ""
    key: bytes = b""


class Resolve(msgspec.Struct, frozen=True, array_like=True, tag="resolve"):
    """In each participant: do the writes (commit) and give up the locks. Answer: of a commit ``Committed``, also when it was done
    before; of an abort ``Answer``: whether this operation gave up locks."""

    transaction: str
    commit: bool


class Forget(msgspec.Struct, frozen=True, array_like=True, tag="forget"):
    """In the home shard: every participant has resolved it, so the decision need not be kept. Answer: ``Answer`` of None."""

    transaction: str
