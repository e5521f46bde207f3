"""The configuration of NATS servers, as production uses it: pure functions from a plan to configuration files.

The servers read JSON, so the files are JSON. They hold public keys of users (seeds are files of their own) and the password
of the routes between the servers, so only their owner may read them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import msgspec

from onefold.cluster.permissions import USERS, permissions
from onefold.log.jetstream.regions import CP_TAG, region_tag

LOOPBACK: Final = "127.0.0.1"
SYSTEM_ACCOUNT: Final = "$SYS"
SYSTEM_USER: Final = "system"
OPEN_ACCOUNT: Final = "OPEN"

MAX_PAYLOAD_BYTES: Final = 8 * 1024 * 1024
"""The largest message: a record of the log fits into one."""
MAX_PENDING_BYTES: Final = 128 * 1024 * 1024
"""What a slow client may have outstanding before it is cut off."""
MAX_MEMORY_BYTES: Final = 64 * 1024 * 1024
"""Streams in memory; Onefold uses none, the servers want a limit."""
LOG_BYTES_MAX: Final = 64 * 1024 * 1024
"""A server's own log file is begun again at this size."""


class ServerPlan(msgspec.Struct, frozen=True):
    """One server. ``region`` is None where all are in one place; ``cp``: it holds copies of consistent logs; ``prefix`` comes
    before its command."""

    name: str
    port: int
    cluster_port: int
    region: str | None = None
    address: str = LOOPBACK
    prefix: list[str] = []
    cp: bool = False


class TlsFiles(msgspec.Struct, frozen=True):
    """Paths of PEM files: the authority's certificate, a certificate and its key."""

    ca: str
    cert: str
    key: str


class ClusterPlan(msgspec.Struct, frozen=True):
    """All servers of a cluster of this machine and what they have in common.

    ``spaces``: an account each. ``secure``: users with nkeys; without, anybody may do anything, in one account (tests).
    ``max_file_bytes``: disk that JetStream may use on each server.
    """

    name: str
    servers: list[ServerPlan]
    max_file_bytes: int
    secure: bool = True
    spaces: list[str] = []
    tls: TlsFiles | None = None

    @property
    def by_tags(self) -> bool:
        """Whether copies are placed by tags. Those of a cluster over regions that an earlier release made are not: each is in
        another place."""
        return any(server.cp for server in self.servers)


class Secrets(msgspec.Struct, frozen=True):
    """What servers must know and nobody else: the routes' password; and the users' public keys, by ``space/user``."""

    route_password: str
    public_keys: dict[str, str]

    def __repr__(self) -> str:
        return "Secrets(…)"


def server_config(plan: ClusterPlan, server: ServerPlan, folder: Path, secrets: Secrets) -> str:
    """The configuration file of one server, which keeps everything below ``folder``."""
    found: dict[str, Any] = {
        "server_name": server.name,
        "listen": f"{server.address}:{server.port}",
        "max_payload": MAX_PAYLOAD_BYTES,
        "max_pending": MAX_PENDING_BYTES,
        "ping_interval": "5s",
        "ping_max": 2,
        "write_deadline": "10s",
        "lame_duck_duration": "30s",
        "lame_duck_grace_period": "2s",
        "log_file": str(folder / "server.log"),
        "log_size_limit": LOG_BYTES_MAX,
        "logtime_utc": True,
        "jetstream": _jetstream(plan, server, folder),
        "system_account": SYSTEM_ACCOUNT,
        "accounts": _accounts(plan, secrets),
    }
    if server.region is not None and plan.by_tags:
        found["server_tags"] = [region_tag(server.region), *([CP_TAG] if server.cp else [])]
    elif server.region is not None:
        found["server_tags"] = [f"az:{server.region}"]
    if len(plan.servers) > 1:
        found["cluster"] = _cluster(plan, server, secrets)
    if plan.tls is not None:
        found["tls"] = _tls(plan.tls)
    if not plan.secure:
        found["no_auth_user"] = OPEN_ACCOUNT
    return json.dumps(found, indent=2, ensure_ascii=False) + "\n"


def _jetstream(plan: ClusterPlan, server: ServerPlan, folder: Path) -> dict[str, Any]:
    found = {
        "store_dir": str(folder / "data"),
        "sync_interval": "always",  # else an acknowledged record may be lost with the power
        "max_file": plan.max_file_bytes,
        "max_mem": MAX_MEMORY_BYTES,
    }
    if server.region is not None and not plan.by_tags:
        found["unique_tag"] = "az:"  # the copies of a stream are in different places
    return found


def _cluster(plan: ClusterPlan, server: ServerPlan, secrets: Secrets) -> dict[str, Any]:
    user, password = "route", secrets.route_password
    found: dict[str, Any] = {
        "name": plan.name,
        "listen": f"{server.address}:{server.cluster_port}",
        "authorization": {"user": user, "password": password, "timeout": 5},
        "routes": [
            f"nats://{user}:{password}@{other.address}:{other.cluster_port}"
            for other in plan.servers
            if other != server
        ],
    }
    if plan.tls is not None:
        found["tls"] = _tls(plan.tls)
    return found


def _tls(files: TlsFiles) -> dict[str, Any]:
    return {"ca_file": files.ca, "cert_file": files.cert, "key_file": files.key, "timeout": 5}


def _accounts(plan: ClusterPlan, secrets: Secrets) -> dict[str, Any]:
    keys = secrets.public_keys
    found: dict[str, Any] = {SYSTEM_ACCOUNT: {"users": [{"nkey": keys[SYSTEM_USER]}]}}
    if not plan.secure:
        user = {"user": OPEN_ACCOUNT, "password": secrets.route_password}
        return found | {OPEN_ACCOUNT: {"jetstream": "enabled", "users": [user]}}
    for space in plan.spaces:
        users = [{"nkey": keys[f"{space}/{user}"], "permissions": permissions(space, user)} for user in USERS]
        found[space] = {"jetstream": "enabled", "users": users}
    return found
