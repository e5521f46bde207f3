"""The conformance suite of the fold contract, for one fold and a list of its operations."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from onefold.arguments import WHOLE_MAX, check_whole
from onefold.codec import Op, Record, encode_record
from onefold.env import SeededEnv
from onefold.fold.api import Fold
from onefold.ids import client_id
from onefold.log.memory import MemoryLog
from onefold.shard.embedded import EmbeddedShard
from onefold.shard.memory import MemoryShard

_GARBAGE = 200
_CUTS = 4


def check_fold(fold: Fold, operations: Sequence[bytes], *, seed: int = 0, fold_version: int = 1) -> None:
    """Check the fold against its contract; raises AssertionError (or what the fold raised) with the seed.

    - The same log folded twice, in memory and in a file, gives the same outcomes and the same state.
    - The fold of a log equals the fold of what follows a snapshot, wherever the snapshot was taken.
    - Garbage (cut, flipped and random bytes) is refused without raising, and alike by all.

    ``operations``: bodies, in an order that makes sense; the more of the fold they reach, the better the check.
    ``fold_version``: the one by which the log is folded.
    """
    check_whole("seed", seed, least=-WHOLE_MAX)
    check_whole("fold_version", fold_version, least=1)
    rng = random.Random(seed)
    bodies = [*operations, *_garbage(operations, rng)]
    log = _log_of(fold.name, bodies, rng, seed, fold_version)
    with tempfile.TemporaryDirectory() as folder:
        whole = _fold(log, fold, seed)
        digest = whole.state_digest()
        again = _fold(log, fold, seed)
        assert again.state_digest() == digest, f"the same log gave another state (seed {seed})"
        assert _embedded(log, fold, Path(folder) / "space") == digest, (
            f"a file gave another state (seed {seed})"
        )
        for cut in sorted(rng.sample(range(1, log.last), min(_CUTS, log.last - 1))):
            part = _fold(log, fold, seed, upto=cut)
            path = Path(folder) / f"at-{cut}"
            part.snapshot(path)
            resumed = MemoryShard(log, [fold], SeededEnv(seed), snapshot=path)
            assert resumed.state_digest() == digest, (
                f"a snapshot at {cut} and the rest gave another state (seed {seed})"
            )


def _garbage(operations: Sequence[bytes], rng: random.Random) -> list[bytes]:
    found = [b"", b"\x00", b"\xc1"]
    for _ in range(_GARBAGE):
        body = bytearray(rng.choice(operations)) if operations else bytearray()
        match rng.randrange(4):
            case 0:
                body = body[: rng.randrange(len(body) + 1)]
            case 1 if body:
                body[rng.randrange(len(body))] ^= 1 << rng.randrange(8)
            case 2:
                body += rng.randbytes(rng.randrange(1, 5))
            case _:
                body = bytearray(rng.randbytes(rng.randrange(40)))
        found.append(bytes(body))
    return found


def _log_of(
    name: str, bodies: Sequence[bytes], rng: random.Random, seed: int, fold_version: int
) -> MemoryLog:
    """The operations in records of several clients, with moving time, duplicates and records that are no records."""
    from onefold.fold.system import RaiseFoldVersion, Register, system_op

    env = SeededEnv(seed)
    log = MemoryLog(env=env)
    clients = [client_id(0, env) for _ in range(3)]
    numbers = dict.fromkeys(clients, 0)
    at = 0
    while at < len(bodies):
        size = rng.randrange(1, 5)
        ops = tuple(
            Op(name, body, f"r{rng.randrange(1000)}" if rng.random() < 0.1 else None)
            for body in bodies[at : at + size]
        )
        at += size
        client = rng.choice(clients)
        numbers[client] += 1
        stamp_ms = env.wall_ms() + rng.randrange(-5000, 5000)
        if log.last == 0:
            raised = (system_op(RaiseFoldVersion(fold_version)),) if fold_version > 1 else ()
            ops = (system_op(Register((name,))), *raised, *ops)
        data = encode_record(Record(client, numbers[client], stamp_ms, ops))
        log.append(data)
        if rng.random() < 0.1:
            log.append(data)
        if rng.random() < 0.05:
            log.append(rng.randbytes(20))
        env.advance(rng.random())
    return log


def _fold(log: MemoryLog, fold: Fold, seed: int, *, upto: int | None = None) -> MemoryShard:
    return MemoryShard(log if upto is None else log.hold(upto), [fold], SeededEnv(seed))


def _embedded(log: MemoryLog, fold: Fold, directory: Path) -> str:
    """The digest of the same entries replayed in the embedded engine."""
    with closing(EmbeddedShard(directory, [fold], SeededEnv(0))) as shard:
        with shard.log.appending() as con:
            for entry in log.read(1, 1 << 30):
                shard.log.append_in(con, entry.data, entry.engine_ms)
        shard.catch_up()
        return shard.state_digest()
