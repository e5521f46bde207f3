"""Identifiers: short, sortable by time where people read them, random where they must not collide; and names of regions."""

from __future__ import annotations

import re
from typing import Final

from onefold.env import Env
from onefold.errors import InvalidArgument

REGION_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,32}")
REGIONS_MAX: Final = 16
"""So many regions has a space at most at a time."""
WITNESS: Final = "witness"
"""The third place of a cluster over two regions: it votes and holds copies, and has no nodes."""
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


def check_region(name: object) -> str:
    """The name itself. Raises InvalidArgument when it cannot be the name of a region."""
    if not isinstance(name, str) or not REGION_NAME.fullmatch(name):
        raise InvalidArgument(f"{name!r} cannot be the name of a region: 1 to 32 letters, digits, _ and -")
    if name.lower() == WITNESS:
        raise InvalidArgument(
            f"{name!r} is the place of servers that only vote. Give the region another name"
        )
    return name


def is_region(name: str) -> bool:
    """Whether it can be the name of a region."""
    return REGION_NAME.fullmatch(name) is not None and name.lower() != WITNESS
