"""Identifiers: short, sortable by time where people read them, random where they must not collide."""

from __future__ import annotations

from onefold.env import Env

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: no i, l, o, u


def _base32(value: int, width: int) -> str:
    digits = []
    for _ in range(width):
        value, digit = divmod(value, 32)
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))


def new_id(prefix: str, env: Env) -> str:
    """``prefix_`` + 9 characters of milliseconds + 7 random ones: ids sort by the time they were made."""
    stamp = _base32(env.wall_ms(), 9)
    noise = _base32(int.from_bytes(env.token(5), "big"), 7)
    return f"{prefix}_{stamp}{noise}"


def client_id(born_at_offset: int, env: Env, *, of_node: bool = False) -> str:
    """A client's id holds the shard offset at which it was born, so an expiry floor can tell forgotten from new.

    ``of_node``: of a client whose records are trusted (see ``fold.authority``).
    """
    return f"{'n' if of_node else 'c'}{born_at_offset:x}-{env.token(9).hex()}"


def is_of_node(client: str) -> bool:
    """Whether it is the id of a client whose records are trusted."""
    return client.startswith("n")


def born_at(client: str) -> int:
    """The offset inside a client id; raises ValueError when it is not one."""
    if not client.startswith(("c", "n")):
        raise ValueError(f"not a client id: {client!r}")
    return int(client[1 : client.index("-")], 16)
