"""Makes the users of spaces: ``python accounts.py KEYS SPACE... > accounts.conf``.

``KEYS`` gets a seed for each user in a file of mode 0600 (``SPACE.app.nk``, ``SPACE.node.nk``, ``SPACE.admin.nk``,
``system.nk``) and the routes' password. What is there stays. What is printed goes to all servers: an account for each space, the
users' public keys, and what each of them may do. No secret is in it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from onefold.cluster import credentials
from onefold.cluster.permissions import USERS, permissions
from onefold.cluster.server_config import SYSTEM_ACCOUNT, SYSTEM_USER
from onefold.log.jetstream.names import check_space


def accounts(keys: Path, spaces: list[str]) -> dict[str, Any]:
    """What belongs into the configuration of every server."""
    public = credentials.make(keys, [check_space(space) for space in spaces]).public_keys
    found: dict[str, Any] = {SYSTEM_ACCOUNT: {"users": [{"nkey": public[SYSTEM_USER]}]}}
    for space in spaces:
        users = [
            {"nkey": public[f"{space}/{user}"], "permissions": permissions(space, user)} for user in USERS
        ]
        found[space] = {"jetstream": "enabled", "users": users}
    return found


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("usage: python accounts.py KEYS SPACE...")
    print(f'"system_account": {json.dumps(SYSTEM_ACCOUNT)}')
    print(f'"accounts": {json.dumps(accounts(Path(sys.argv[1]), sys.argv[2:]), indent=2)}')
