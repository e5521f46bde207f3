"""Credentials of a cluster on this machine: nkeys seeds and the routes' password, each in a file of mode 0600.

Only the public halves go into the servers' configuration; a seed never leaves its file except to sign.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from onefold.cluster.permissions import USERS
from onefold.cluster.server_config import SYSTEM_USER, Secrets
from onefold.errors import SpaceError
from onefold.files import write_whole

_ROUTE_PASSWORD = "routes.password"


def make(folder: Path, spaces: list[str]) -> Secrets:
    """The secrets in ``folder`` for these spaces; what is not there yet is made.

    Raises SpaceError for files that are no seeds.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    password_file = folder / _ROUTE_PASSWORD
    if not password_file.exists():
        # A server takes the value of a variable for what stands in its configuration: with a digit in front, for a number.
        write_whole(password_file, f"r{secrets.token_hex(24)}".encode())
    users = [SYSTEM_USER] + [f"{space}/{user}" for space in spaces for user in USERS]
    public = {user: _public_key(seed_file(folder, user)) for user in users}
    return Secrets(password_file.read_text(), public)


def seed_file(folder: Path, user: str) -> Path:
    """Where the seed of a user (``system``, or ``space/app``, ``space/node``, ``space/admin``) is."""
    return folder / f"{user.replace('/', '.')}.nk"


def _public_key(path: Path) -> str:
    import nkeys

    if not path.exists():
        write_whole(path, bytes(nkeys.encode_seed(os.urandom(32), prefix=nkeys.PREFIX_BYTE_USER)))
    try:
        pair = nkeys.from_seed(bytearray(path.read_bytes().strip()))
        public: str = pair.public_key.decode()
        pair.wipe()
    except Exception:  # whatever it is made of; and never with what the file holds
        raise SpaceError(f"{path} holds no nkeys seed. Restore it, or remove it for a new one") from None
    return public
